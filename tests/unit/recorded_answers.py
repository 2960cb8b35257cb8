"""The corpus of answers in answers/*.txt: texts as models write them, well formed and damaged, with what they say.

A file is a row of cases:

    === what is special about it | WIDTHxHEIGHT as RESIZED_WIDTHxRESIZED_HEIGHT [frame FRAME]
    the text of the answer, as it came; without the line end before the next line
    ---
    box X1 Y1 X2 Y2 label         in ORIGINAL pixels, one line each, in the order written
    point X Y label               a line end within a label is written \\n, a backslash \\\\
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qwenvl.tasks.places import Box, Frame, Place
from qwenvl.types import ImageSize

FOLDER = Path(__file__).parent / "answers"
_HEAD = re.compile(r"=== (.*) \| (\d+)x(\d+) as (\d+)x(\d+)(?: frame (\w+))?")


@dataclass(frozen=True)
class Recorded:
    """One answer and the places in it: ("box" or "point", numbers, label)."""

    name: str
    size: ImageSize
    text: str
    places: tuple[tuple[str, tuple[float, ...], str], ...]
    frame: Frame = "auto"


@cache
def recorded_answers() -> tuple[Recorded, ...]:
    """Every case of every file, in order."""
    return tuple(case for path in sorted(FOLDER.glob("*.txt")) for case in _cases(path))


def _cases(path: Path) -> list[Recorded]:
    cases = []
    for part in re.split(r"^(?==== )", path.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        head, _, rest = part.partition("\n")
        match = _HEAD.fullmatch(head)
        assert match is not None, head
        text, _, said = ("\n" + rest).partition("\n---\n")
        numbers = [int(match[group]) for group in range(2, 6)]
        places = tuple(_place(line) for line in said.splitlines() if line)
        frame: Frame = match[6] or "auto"  # type: ignore[assignment]
        cases.append(Recorded(f"{path.stem}: {match[1]}", ImageSize(*numbers), text[1:], places, frame))
    return cases


def _place(line: str) -> tuple[str, tuple[float, ...], str]:
    kind, rest = line.split(" ", 1)
    count = {"box": 4, "point": 2}[kind]
    parts = rest.split(" ", count)
    label = parts[count] if len(parts) > count else ""
    label = re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), label)
    return kind, tuple(map(float, parts[:count])), label


def as_recorded(place: Place) -> tuple[str, tuple[float, ...], str]:
    """A parsed place in the corpus's own form."""
    if isinstance(place, Box):
        return "box", place.corners, place.label
    return "point", (place.x, place.y), place.label


def same(found: list[Place], wanted: Recorded, pixels: float = 1.0) -> bool:
    """Whether kinds, labels and order are equal, and numbers to so many original pixels."""
    rows = [as_recorded(place) for place in found]
    return len(rows) == len(wanted.places) and all(
        a[0] == b[0] and a[2] == b[2] and all(abs(x - y) <= pixels for x, y in zip(a[1], b[1], strict=True))
        for a, b in zip(rows, wanted.places, strict=True)
    )
