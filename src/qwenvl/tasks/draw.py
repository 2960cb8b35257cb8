"""Places drawn on a copy of their picture.

In: a PIL picture and boxes or points in its pixels. Out: a new RGB picture of the same size; the input is unchanged.
Does not know where the places come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwenvl.tasks.grounding import Box, Point

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

# Okabe and Ito (2008), told apart by colour-blind readers too; a white line around each keeps it visible on any ground.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")


def draw_boxes(image: Image, places: Sequence[Box | Point]) -> Image:
    """A copy of `image` with each place outlined and its label beside it; one colour a label.

    Line width and letters grow with the picture: 2 px and 12 px up to 400 px, in proportion above.
    """
    from PIL import ImageDraw, ImageFont

    canvas = image.convert("RGB").copy()
    pen = ImageDraw.Draw(canvas)
    scale = max(1.0, min(canvas.size) / 400)
    width = round(2 * scale)
    font = ImageFont.load_default(size=round(12 * scale))
    labels = list(dict.fromkeys(place.label for place in places))
    for place in places:
        colour = _COLOURS[labels.index(place.label) % len(_COLOURS)]
        if isinstance(place, Box):
            corners = (place.x1, place.y1, place.x2, place.y2)
            pen.rectangle(_grown(corners, 1, canvas.size), outline="white", width=width + 2)
            pen.rectangle(corners, outline=colour, width=width)
            _caption(pen, place.label, place.x1, place.y1, colour, font)
        else:
            radius = 3 * scale
            around = (place.x - radius, place.y - radius, place.x + radius, place.y + radius)
            pen.ellipse(around, fill=colour, outline="white", width=max(1, width // 2))
            _caption(pen, place.label, place.x + radius, place.y - radius, colour, font)
    return canvas


def _grown(
    corners: tuple[float, float, float, float], by: int, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = corners
    return max(0, x1 - by), max(0, y1 - by), min(size[0], x2 + by), min(size[1], y2 + by)


def _caption(pen: ImageDraw, text: str, x: float, y: float, colour: str, font: FreeTypeFont | ImageFont) -> None:
    """`text` in white on a plate of `colour`: above (x, y), or below it where the picture ends."""
    if not text:
        return
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    wide, high = right - left + 4, bottom - top + 4
    x = max(0, min(x, pen.im.size[0] - wide))
    y = y - high if y >= high else y
    pen.rectangle((x, y, x + wide, y + high), fill=colour)
    pen.text((x + 2 - left, y + 2 - top), text, fill="white", font=font)
