"""Boxes that lie in a picture, as grammar rules: "[x1, y1, x2, y2]" with 0 <= x1 < x2 <= width, 0 <= y1 < y2 <= height.

In: width and height as the model sees the picture. Out: rules in llguidance's Lark dialect, the first of which is the
box. Does not know schemas or tokens.

That x2 is above x1 is no matter of a schema, as no schema compares two values. The rules carry 64 bits along
(llguidance calls such rules parametric): the digits of x1 and y1 and how many they are. While x2 is written, each digit
is compared with the digit of x1 at its place, as one compares on paper: of two numbers without leading zeros the
longer one is larger; of two of equal length the first digit that differs decides. A digit is allowed only where the
number can still be finished, so that no prefix is a dead end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

DIGITS = 5  # most digits of a coordinate
LARGEST = 10**DIGITS - 1
_NIBBLE = 4  # bits of a digit
_LENGTH = DIGITS * _NIBBLE  # where the number of digits stands, behind them
_Y = _LENGTH + _NIBBLE  # where y1 stands, behind x1


def box_rules(name: str, width: int, height: int) -> str:
    """Rules of which `name` is a box within (width, height); the other names begin with it. ValueError for a picture
    in which no box fits, or one with more than 99999 pixels a side."""
    for side, length in (("width", width), ("height", height)):
        if not 1 <= length <= LARGEST:
            raise ValueError(f"a box needs a picture with a {side} of 1 to {LARGEST} pixels, got {length}")
    x1, y1, x2, y2 = (f"{name}_{coordinate}" for coordinate in ("x1", "y1", "x2", "y2"))
    return "\n".join(
        (
            f'{name}: "[" {x1}::0',
            *_noted(x1, width - 1, 0, f'", " {y1}'),
            *_noted(y1, height - 1, _Y, f'", " {x2}'),
            *_Above(x2, width, 0, f'", " {y2}::_', carries=True).rules(),
            *_Above(y2, height, _Y, '"]"', carries=False).rules(),
        )
    )


def _noted(name: str, largest: int, base: int, then: str) -> Iterator[str]:
    """Rules for a number from 0 to `largest` whose digits are noted from bit `base` on; `then` follows, with what was
    noted. The rule `name`_n_i_t is the digit at place i of a number of n; t: so far it is as `largest`."""
    top = str(largest)
    first = (f"{name}_{n}_0_{int(n == len(top))}::_" for n in range(1, len(top) + 1))
    yield _rule(f"{name}::_", first)
    for n in range(1, len(top) + 1):
        for i in range(n):
            for tight in (False, True) if n == len(top) and i else (n == len(top),):
                last = int(top[i]) if tight else 9
                lines = []
                for digit in range(int(i == 0 and n > 1), last + 1):
                    bits = digit << base + _NIBBLE * i
                    if i + 1 == n:
                        bits |= n << base + _LENGTH
                        lines.append(f'"{digit}" {then}::bit_or({bits})')
                    else:
                        follows = f"{name}_{n}_{i + 1}_{int(tight and digit == last)}"
                        lines.append(f'"{digit}" {follows}::' + (f"bit_or({bits})" if bits else "_"))
                yield _rule(f"{name}_{n}_{i}_{int(tight)}::_", lines)


@dataclass(frozen=True)
class _Above:
    """Rules for a number that is larger than the one noted from bit `base` on, and at most `largest`; `then` follows.
    carries: whether `then` needs what was noted.

    The rule name_n_i_low_high is the digit at place i of a number of n; low: so far it is as the noted one; high: so
    far it is as `largest`.
    """

    name: str
    largest: int
    base: int
    then: str
    carries: bool

    def rules(self) -> list[str]:
        top = str(self.largest)
        noted = f"[{self.base + _LENGTH}:{self.base + _LENGTH + _NIBBLE}]"
        found: dict[str, list[str]] = {}  # by name; built from the last digit, so that empty ones are known
        starts = []
        for n in range(1, len(top) + 1):
            for i in reversed(range(n)):
                for high in (False, True) if n == len(top) else (False,):
                    for low in (False, True):
                        lines = self._digit(n, i, low, high, found)
                        if lines:
                            found[self._label(n, i, low, high)] = lines
            high = n == len(top)
            if n > 1:
                starts.append(f"{self._label(n, 0, False, high)} %if lt({noted}, {n})")
            equal = f"eq({noted}, {n})"
            starts.append(
                f"{self._label(n, 0, True, high)} %if " + (equal if high else f"and({equal}, {self._room(0, n)})")
            )
        return [_rule(f"{self.name}::_", starts), *(_rule(label, lines) for label, lines in found.items())]

    def _label(self, n: int, i: int, low: bool, high: bool) -> str:
        """A rule's name; with a parameter where it, or one that follows, looks at it."""
        return f"{self.name}_{n}_{i}_{int(low)}_{int(high)}" + ("::_" if low or self.carries else "")

    def _digit(self, n: int, i: int, low: bool, high: bool, found: dict[str, list[str]]) -> list[str]:
        """What may be written at place i."""
        last = int(str(self.largest)[i]) if high else 9
        place = self._bits(i)
        lines = []
        for digit in range(int(i == 0 and n > 1), last + 1):
            still = high and digit == last
            if i + 1 == n:
                follows = self.then
            else:
                follows = self._label(n, i + 1, False, still)
                assert follows in found
            if not low:
                lines.append(f'"{digit}" {follows}')
                continue
            if digit:
                lines.append(f'"{digit}" {follows} %if lt({place}, {digit})')
            follows = self._label(n, i + 1, True, still)
            if i + 1 < n and follows in found:
                equal = f"eq({place}, {digit})"
                lines.append(
                    f'"{digit}" {follows} %if ' + (equal if still else f"and({equal}, {self._room(i + 1, n)})")
                )
        return lines

    def _room(self, start: int, n: int) -> str:
        """The condition that a digit of the noted number from place `start` on is below 9, so that one can be
        larger."""
        *others, condition = (f"lt({self._bits(i)}, 9)" for i in range(start, n))
        for other in others:
            condition = f"or({other}, {condition})"
        return condition

    def _bits(self, i: int) -> str:
        at = self.base + _NIBBLE * i
        return f"[{at}:{at + _NIBBLE}]"


def _rule(name: str, lines: Iterator[str] | list[str]) -> str:
    return f"{name}: " + "\n  | ".join(lines)
