"""Places drawn on a copy of their picture.

In: a PIL picture and boxes or points in its pixels. Out: a new RGB picture of the same size; the input is unchanged.
Does not know where the places come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl.tasks.places import Box, Place

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

# Okabe and Ito (2008), told apart by colour-blind readers too; a white line around each keeps it visible on any ground.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_LIGHT = ("#E69F00", "#56B4E9", "#F0E442")  # letters on these are black
_PADDING = 2  # pixels around the letters of a label
_LONGEST = 40  # characters of a label that are shown

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom


def draw_boxes(
    image: Image, places: Sequence[Place], *, confidence: bool = False, font: str | Path | None = None
) -> Image:
    """A copy of `image` with each place outlined and its label beside it; one colour a label.

    Line width and letters grow with the picture: 2 px and 12 px up to 400 px, in proportion above. A label stands at
    its place's corner or, where another one stands there, as near as there is room, with a line to its place; two
    labels overlap only where the picture has no room left. confidence: write it behind the label, where it is known.
    font: a TrueType file, for letters that Pillow's own lacks (it has Latin ones). OSError when it cannot be read.
    """
    from PIL import ImageDraw

    canvas = image.convert("RGB").copy()
    pen = ImageDraw.Draw(canvas)
    scale = max(1.0, min(canvas.size) / 400)
    letters = _font(font, round(12 * scale))
    names = list(dict.fromkeys(place.label for place in places))
    colours = [_COLOURS[names.index(place.label) % len(_COLOURS)] for place in places]
    for place, colour in zip(places, colours, strict=True):
        _outline(pen, place, colour, scale, canvas.size)
    texts = [_caption(place, confidence) for place in places]
    plates = label_plates(canvas.size, places, [_extent(pen, text, letters) for text in texts], 3 * scale)
    labelled = [row for row in zip(places, colours, texts, plates, strict=True) if row[2]]
    for place, colour, _, plate in labelled:
        _lead(pen, place, colour, plate, scale)
    for _, colour, text, plate in labelled:
        _write(pen, colour, text, plate, letters)
    return canvas


def _font(font: str | Path | None, size: int) -> Font:
    from PIL import ImageFont

    return ImageFont.load_default(size=size) if font is None else ImageFont.truetype(str(font), size)


def _outline(pen: ImageDraw, place: Place, colour: str, scale: float, size: tuple[int, int]) -> None:
    width = round(2 * scale)
    if isinstance(place, Box) and place.polygon:
        around = [*place.polygon, place.polygon[0]]
        pen.line(around, fill="white", width=width + 2, joint="curve")
        pen.line(around, fill=colour, width=width, joint="curve")
    elif isinstance(place, Box):
        x1, y1, x2, y2 = place.corners
        pen.rectangle(
            (max(0, x1 - 1), max(0, y1 - 1), min(size[0], x2 + 1), min(size[1], y2 + 1)),
            outline="white", width=width + 2,
        )  # fmt: skip
        pen.rectangle(place.corners, outline=colour, width=width)
    else:
        radius = 3 * scale
        around_point = (place.x - radius, place.y - radius, place.x + radius, place.y + radius)
        pen.ellipse(around_point, fill=colour, outline="white", width=max(1, width // 2))


def _caption(place: Place, confidence: bool) -> str:
    label = " ".join(place.label.split())
    label = label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"
    if confidence and place.confidence is not None:
        label = f"{label} {place.confidence:.2f}".strip()
    return label


def _extent(pen: ImageDraw, text: str, font: Font) -> tuple[int, int]:
    """Width and height of a label's plate; of an empty text 0, 0."""
    if not text:
        return 0, 0
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    return round(right - left) + 2 * _PADDING, round(bottom - top) + 2 * _PADDING


def _lead(pen: ImageDraw, place: Place, colour: str, plate: Rectangle, scale: float) -> None:
    """A line from a plate to its place, where that is not near."""
    x, y = _nearest(place, plate)
    from_x, from_y = min(max(x, plate[0]), plate[2]), min(max(y, plate[1]), plate[3])
    if abs(x - from_x) + abs(y - from_y) > 6 * scale:
        pen.line((from_x, from_y, x, y), fill="white", width=round(scale) + 2)
        pen.line((from_x, from_y, x, y), fill=colour, width=round(scale))


def _write(pen: ImageDraw, colour: str, text: str, plate: Rectangle, font: Font) -> None:
    """`text` on its plate."""
    pen.rectangle((plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=colour)
    left, top, _, _ = pen.textbbox((0, 0), text, font=font)
    ink = "black" if colour in _LIGHT else "white"
    pen.text((plate[0] + _PADDING - left, plate[1] + _PADDING - top), text, fill=ink, font=font)


def _nearest(place: Place, plate: Rectangle) -> tuple[float, float]:
    """The point of a place that is nearest to the middle of a plate."""
    if not isinstance(place, Box):
        return place.x, place.y
    x, y = (plate[0] + plate[2]) / 2, (plate[1] + plate[3]) / 2
    return min(max(x, place.x1), place.x2), min(max(y, place.y1), place.y2)


def label_plates(
    size: tuple[int, int], places: Sequence[Place], extents: Sequence[tuple[int, int]], radius: float = 3.0
) -> list[Rectangle]:
    """Where the label of each place stands: within the picture, and free of the others where that can be.

    extents: width and height of each; 0, 0 takes no room. radius: of a point's mark. Labels are placed in the order
    given: above the left or right end of the place, below it, within it, beside it; else at the free spot that is
    nearest; with none left, above it all the same.
    """
    taken: list[Rectangle] = []
    plates: list[Rectangle] = []
    for place, (wide, high) in zip(places, extents, strict=True):
        spots = [_within(x, y, wide, high, size) for x, y in _spots(place, wide, high, radius)]
        free = (plate for plate in spots if not any(_meet(plate, other) for other in taken))
        plate = next(free, None) or (_free_spot(size, spots[0], taken) if wide else None) or spots[0]
        plates.append(plate)
        if wide:
            taken.append(plate)
    return plates


def _spots(place: Place, wide: int, high: int, radius: float) -> Iterator[tuple[float, float]]:
    """Left and top of a label, the best one first."""
    if isinstance(place, Box):
        x1, y1, x2, y2 = place.corners
    else:
        x1, y1, x2, y2 = place.x - radius, place.y - radius, place.x + radius, place.y + radius
        yield x2, y1 - high
    if y1 >= high:
        yield from ((x1, y1 - high), (x2 - wide, y1 - high))
    else:
        yield from ((x1, y1), (x2 - wide, y1))
    yield from ((x1, y2), (x2 - wide, y2))
    if isinstance(place, Box) and x2 - x1 > wide + 4 and y2 - y1 > 2 * high:
        yield from ((x1, y1), (x2 - wide, y1), (x1, y2 - high), (x2 - wide, y2 - high))
    yield from ((x2, y1), (x2, y2 - high), (x1 - wide, y1), (x1 - wide, y2 - high))


def _within(x: float, y: float, wide: int, high: int, size: tuple[int, int]) -> Rectangle:
    """A plate moved into the picture."""
    left = round(max(0, min(x, size[0] - wide)))
    top = round(max(0, min(y, size[1] - high)))
    return left, top, left + wide, top + high


def _meet(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _free_spot(size: tuple[int, int], wanted: Rectangle, taken: Sequence[Rectangle]) -> Rectangle | None:
    """The spot nearest to `wanted` that no other label covers, to 4 pixels; None where there is none."""
    import numpy as np

    step = 4
    wide, high = wanted[2] - wanted[0], wanted[3] - wanted[1]
    rows, columns = -(-(high + 1) // step), -(-(wide + 1) // step)
    covered = np.zeros((size[1] // step, size[0] // step), dtype=np.int32)
    if covered.shape[0] < rows or covered.shape[1] < columns:
        return None
    for left, top, right, bottom in taken:
        covered[top // step : -(-bottom // step), left // step : -(-right // step)] = 1
    sums = np.pad(covered.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    filled = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    ys, xs = np.nonzero(filled == 0)
    if not len(xs):
        return None
    best = int(np.argmin((xs * step - wanted[0]) ** 2 + (ys * step - wanted[1]) ** 2))
    left, top = int(xs[best]) * step, int(ys[best]) * step
    return left, top, left + wide, top + high
