"""Words of a line: how wide they are about, and in which order they stand.

In: text. Out: units that lines are broken between, their width in sizes of the letters, their order from left to right.
Widths are typical ones: which font a page has is not known.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

SPACE = 0.27  # width of a space
_NARROW = frozenset("iljtfrI.,:;'|!()[]{}·`ـاﺎ")
# Scripts whose lines may be broken between any two characters.
_WIDE = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"
_PIECES = re.compile(f"[{_WIDE}]|[^{_WIDE}]+")


@dataclass(frozen=True)
class Unit:
    """What a line is not broken in: a word, or one character of a script without spaces."""

    text: str
    width: float  # in sizes of its letters
    spaced: bool  # a space follows


def width_of(text: str) -> float:
    """About how wide a text is, in sizes of its letters."""
    return sum(map(_letter_width, text))


def _letter_width(letter: str) -> float:
    if letter in _NARROW:
        return 0.3
    if letter.isascii():
        return 0.85 if letter in "mwMW@%" else 0.66 if letter.isupper() else SPACE if letter == " " else 0.53
    if unicodedata.combining(letter):
        return 0.0
    return 1.0 if unicodedata.east_asian_width(letter) in "WF" else 0.55


def is_rtl(text: str) -> bool:
    return any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text)


def units_of(line: str) -> list[Unit]:
    """The words of a line, those of scripts without spaces a character each."""
    units: list[Unit] = []
    for word in line.split():
        pieces = _PIECES.findall(word)
        units.extend(Unit(piece, max(width_of(piece), 0.1), False) for piece in pieces)
        units[-1] = replace(units[-1], spaced=True)
    return units


def merged(units: Sequence[Unit]) -> list[Unit]:
    """Characters without a space between them, as one word again."""
    words: list[Unit] = []
    for unit in units:
        if words and not words[-1].spaced:
            before = words.pop()
            unit = Unit(before.text + unit.text, before.width + unit.width, unit.spaced)
        words.append(unit)
    return words


def visual_order(words: Sequence[Unit]) -> list[int]:
    """Indexes of the words from left to right: runs against the line's direction are turned (UAX #9 in short)."""
    turned = [is_rtl(word.text) for word in words]
    base = next(
        (rtl for word, rtl in zip(words, turned, strict=True) if rtl or any(map(str.isalpha, word.text))), False
    )
    order: list[int] = []
    at = 0
    while at < len(words):
        end = at + 1
        while end < len(words) and turned[end] == turned[at]:
            end += 1
        run = list(range(at, end))
        if base:
            order = [*(reversed(run) if turned[at] else run), *order]
        else:
            order = [*order, *(reversed(run) if turned[at] else run)]
        at = end
    return order
