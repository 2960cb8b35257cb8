"""Places in a picture: boxes and points in ORIGINAL pixels, and what is computed of them.

In: numbers as an answer has them, and the sizes of the picture. Out: Box and Point objects, plain dicts, overlaps.
Does not know how an answer is written, nor models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from qwenvl.types import ImageSize

# What a written number means. resized: pixels of the picture as the model sees it (Qwen2.5-VL). thousandths: of the
# picture's sides (Qwen2-VL's box tokens). shares: 0 to 1 of its sides. auto: as the written form is used.
Frame = Literal["auto", "resized", "thousandths", "shares"]
FRAMES: tuple[Frame, ...] = ("auto", "resized", "thousandths", "shares")
Corner = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A rectangle: x1 < x2 and y1 < y2 in pixels of the original, upright picture, within its borders.

    resized: the four numbers as the model wrote them. extra: further fields of the item (sub_label, ...).
    confidence: 0 to 1, or None where it is not known (`tasks.answers.confidence` says what it is).
    polygon: the corners in original pixels, where more than a rectangle was written; the box goes around them.
    """

    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    resized: tuple[float, float, float, float]
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    confidence: float | None = field(default=None, compare=False)
    polygon: tuple[Corner, ...] = ()

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2."""
        return self.x1, self.y1, self.x2, self.y2

    @property
    def area(self) -> float:
        return (self.x2 - self.x1) * (self.y2 - self.y1)

    @property
    def centre(self) -> Corner:
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2


@dataclass(frozen=True)
class Point:
    """A point in pixels of the original, upright picture. resized, extra, confidence: as in Box."""

    label: str
    x: float
    y: float
    resized: tuple[float, float]
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    confidence: float | None = field(default=None, compare=False)


Place = Box | Point


def make_place(label: str, numbers: Sequence[float], size: ImageSize, frame: Frame, extra: Mapping[str, Any]) -> Place:
    """A Point of 2 numbers, a Box of 4 (two opposite corners, in any order), a Box with its polygon of 6 or more.

    What lies beyond the picture's borders is brought to them. Raises ValueError for a box without area within the
    picture and for numbers that are not finite. frame: any but "auto".
    """
    wide, high = frame_sides(size, frame)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{list(numbers)} is no place: its numbers must be finite")
    xs = [_clamp(x / wide) * size.width for x in numbers[0::2]]
    ys = [_clamp(y / high) * size.height for y in numbers[1::2]]
    if len(numbers) == 2:
        return Point(label, xs[0], ys[0], (numbers[0], numbers[1]), extra)
    x1, x2, y1, y2 = min(xs), max(xs), min(ys), max(ys)
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"{list(numbers)} has no area in a picture of {size.width} x {size.height} pixels")
    if len(numbers) == 4:
        a, b, c, d = numbers
        return Box(label, x1, y1, x2, y2, (a, b, c, d), extra)
    written = (min(numbers[0::2]), min(numbers[1::2]), max(numbers[0::2]), max(numbers[1::2]))
    return Box(label, x1, y1, x2, y2, written, extra, polygon=tuple(zip(xs, ys, strict=True)))


def frame_sides(size: ImageSize, frame: Frame) -> tuple[float, float]:
    """Width and height of the picture in the numbers of a frame."""
    if frame == "thousandths":
        return 1000.0, 1000.0
    if frame == "shares":
        return 1.0, 1.0
    assert frame == "resized", frame
    return float(size.resized_width), float(size.resized_height)


def _clamp(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def places_to_dicts(places: Sequence[Place]) -> list[dict[str, Any]]:
    """Places as plain dicts for JSON: label, and "box" [x1, y1, x2, y2] or "point" [x, y] in original pixels (to a
    hundredth), "resized": the numbers as the model wrote them, and where there is something "confidence", "polygon"
    and "extra"."""
    rows = []
    for place in places:
        row: dict[str, Any] = {"label": place.label}
        if isinstance(place, Box):
            row["box"] = [round(number, 2) for number in place.corners]
        else:
            row["point"] = [round(number, 2) for number in (place.x, place.y)]
        row["resized"] = list(place.resized)
        if place.confidence is not None:
            row["confidence"] = round(place.confidence, 4)
        if isinstance(place, Box) and place.polygon:
            row["polygon"] = [[round(x, 2), round(y, 2)] for x, y in place.polygon]
        if place.extra:
            row["extra"] = dict(place.extra)
        rows.append(row)
    return rows


def iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2; 0 to 1."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    shared = wide * high
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, 0 to 1."""
    return iou(a.corners, b.corners)


PlaceT = TypeVar("PlaceT", Box, Point, Box | Point)


def reading_order(boxes: Sequence[Box]) -> list[Box]:
    """Boxes of text line by line from the top, each line from left to right.

    A box joins the line above it when its vertical middle lies within that line's first box, or that one's within it.
    One column: what stands side by side is one line.
    """
    lines: list[list[Box]] = []
    for box in sorted(boxes, key=lambda b: (b.centre[1], b.x1)):
        first = lines[-1][0] if lines else None
        if first is not None and (_holds(first, box) or _holds(box, first)):
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line, key=lambda b: b.x1)]


def _holds(a: Box, b: Box) -> bool:
    return a.y1 <= b.centre[1] <= a.y2


def without_repeats(places: Sequence[PlaceT]) -> Iterator[PlaceT]:
    """Places with those left out that were written before: same label, same numbers."""
    seen: set[tuple[str, tuple[float, ...]]] = set()
    for place in places:
        key = (place.label, place.resized)
        if key not in seen:
            seen.add(key)
            yield place
