"""A place as it stands in a text: its numbers, what they are numbers of, and which characters wrote them.

In: a part of a text. Out: Written, numbers with their characters. Does not know pictures: what a number is worth is
decided where the sizes are known (`answers/__init__.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwenvl.tasks.places import Frame

_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_BETWEEN = re.compile(r"[\s,;:()\[\]{}<>|，、（）]*")  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Number:
    """A number at text[start:end]."""

    value: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Written:
    """numbers: 2 of a point, 4 of a box, 6 and more of a polygon: x, y, x, y, ...

    frame: what the numbers mean where nobody says otherwise. start, end: the whole item, label included. sure: the
    text says that these numbers are a place; else they only look like one.
    """

    label: str
    numbers: tuple[Number, ...]
    frame: Frame
    start: int
    end: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    sure: bool = True

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(number.value for number in self.numbers)

    @property
    def at(self) -> int:
        """Where its numbers begin: what the order in the text is told by."""
        return self.numbers[0].start


def numbers_within(text: str, start: int, end: int) -> list[Number] | None:
    """The numbers of text[start:end] where it holds nothing else but brackets, commas and spaces; else None.

    A number that ends where the whole text ends may lack a digit: it is left out.
    """
    found: list[Number] = []
    at = _BETWEEN.match(text, start, end).end()  # type: ignore[union-attr]
    while at < end:
        number = _NUMBER.match(text, at, end)
        if number is None:
            return None
        at = _BETWEEN.match(text, number.end(), end).end()  # type: ignore[union-attr]
        if number.end() < len(text):
            found.append(Number(to_float(number[0]), number.start(), number.end()))
    return found


def to_float(text: str) -> float:
    """A number of any length; one that is too large is infinite."""
    try:
        return float(text)
    except OverflowError:
        return float("inf")


def only_counts(numbers: Sequence[Number] | None, *counts: int) -> list[Number] | None:
    """The numbers, where they are as many as one of `counts`."""
    return list(numbers) if numbers is not None and len(numbers) in counts else None
