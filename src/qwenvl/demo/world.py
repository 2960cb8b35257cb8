"""The small world of the bundled model: pictures of one to five plain coloured shapes, with the truth.

Sizes come in two systems. ORIGINAL pixels: the picture as drawn (boxes of `Thing`). RESIZED pixels: after the
smart resize of the processor with the limits below (boxes in answers). Boxes are x1, y1, x2, y2 with x2, y2
the outer edge of the last drawn pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from qwenvl.demo.drawing import (
    COLOURS,
    SHAPES,
    Ground,
    Point,
    fill_colour,
    finish,
    ground,
    paste,
    pick,
    polygon,
    stamp,
    uniform,
)
from qwenvl.demo.foreign import foreign_image
from qwenvl.media.resize import smart_resize

__all__ = [
    "COLOURS", "FACTOR", "MAX_PIXELS", "MIN_PIXELS", "SHAPES", "Picture", "Thing", "resized_size",
    "sample_foreign", "sample_picture", "sample_size",
]  # fmt: skip

MIN_PIXELS = 168 * 168
MAX_PIXELS = 336 * 336
FACTOR = 28
MAX_THINGS = 3  # what the bundled model is taught and measured on; up to 5 can be drawn
GRID = 5  # resized pixels: answers give coordinates as multiples of this
MIN_SIDE = 28.0  # resized pixels; planned sides, so that drawn ones are at least 26
GAP = 6.0  # resized pixels between boxes, on at least one axis

Box = tuple[float, float, float, float]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Thing:
    """One drawn shape. box: tight, corners: of its polygon (() for a circle), both in ORIGINAL pixels."""

    shape: str
    colour: str
    box: Box
    corners: tuple[Point, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def centre(self) -> Point:
        """Middle of the box, ORIGINAL pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def contains(self, x: float, y: float) -> bool:
        """Does the drawn shape (not just its box) cover the point, in ORIGINAL pixels?"""
        x1, y1, x2, y2 = self.box
        if self.shape == "circle":
            return ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
        if not self.corners:
            return x1 <= x <= x2 and y1 <= y <= y2
        inside = False
        for (ax, ay), (bx, by) in zip(self.corners, self.corners[1:] + self.corners[:1], strict=True):
            if (ay > y) != (by > y) and x < ax + (bx - ax) * (y - ay) / (by - ay):
                inside = not inside
        return inside


@dataclass
class Picture:
    """Pixels (uint8 [height, width, 3]) and what is in them.

    things: in raster order of the 28 x 28 cell of the resized picture in which the centre lies.
    kind "scene": a drawing of the world, possibly of nothing. kind "foreign": outside the world, no things.
    kind "card": text, no things (see cards.py).
    """

    image: np.ndarray
    things: list[Thing]
    width: int
    height: int
    resized_width: int
    resized_height: int
    kind: Literal["scene", "foreign", "card"] = "scene"

    def to_resized(self, x: float, y: float) -> tuple[int, int]:
        """A point in ORIGINAL pixels -> whole RESIZED pixels inside the picture."""
        rx = round(x * self.resized_width / self.width)
        ry = round(y * self.resized_height / self.height)
        return min(max(rx, 0), self.resized_width - 1), min(max(ry, 0), self.resized_height - 1)

    def to_original(self, x: float, y: float) -> Point:
        """A point in RESIZED pixels -> ORIGINAL pixels."""
        return x * self.width / self.resized_width, y * self.height / self.resized_height

    def resized_box(self, thing: Thing) -> tuple[int, int, int, int]:
        """The box of `thing` in whole RESIZED pixels, clamped to the picture."""
        return self.to_resized(*thing.box[:2]) + self.to_resized(*thing.box[2:])

    def resized_centre(self, thing: Thing) -> tuple[int, int]:
        """The middle of the box of `thing` in whole RESIZED pixels; always inside the shape."""
        return self.to_resized(*thing.centre)

    def answer_box(self, thing: Thing) -> tuple[int, int, int, int]:
        """The box as answers give it: RESIZED pixels on the grid."""
        x1, y1, x2, y2 = self.resized_box(thing)
        width, height = self.resized_width, self.resized_height
        return on_grid(x1, width), on_grid(y1, height), on_grid(x2, width), on_grid(y2, height)

    def answer_point(self, thing: Thing) -> tuple[int, int]:
        """The middle as answers give it: RESIZED pixels on the grid."""
        x, y = self.resized_centre(thing)
        return on_grid(x, self.resized_width), on_grid(y, self.resized_height)

    def cell(self, thing: Thing) -> tuple[int, int]:
        """Row and column of the 28 x 28 cell of the resized picture in which the centre lies."""
        x, y = thing.centre
        row = int(y * self.resized_height / self.height) // FACTOR
        return row, int(x * self.resized_width / self.width) // FACTOR


def on_grid(value: int, limit: int) -> int:
    """The nearest multiple of GRID, not beyond `limit`."""
    return min((value + GRID // 2) // GRID, limit // GRID) * GRID


def resized_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) of the picture as the bundled model sees it."""
    h, w = smart_resize(height, width, factor=FACTOR, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    return w, h


def sample_size(rng: np.random.Generator, training: bool = True) -> tuple[int, int]:
    """(width, height): sides 84-336 px, aspect 1:3 to 3:1; in training 10 % are longer, to 590 px."""
    if training and rng.random() < 0.10:
        long = int(uniform(rng, 337, 591))
        short = int(uniform(rng, max(84, long / 3), MAX_PIXELS / long))
        return (long, short) if rng.random() < 0.6 else (short, long)
    while True:
        a, b = int(uniform(rng, 84, 337)), int(uniform(rng, 84, 337))
        if max(a, b) <= 3 * min(a, b):
            return a, b


def of_some_size(rng: np.random.Generator, longest: int, attempt: Callable[[int, int], Made | None]) -> Made:
    """What `attempt(width, height)` makes, of sides 84 to `longest` - 1 and aspect 1:2 to 2:1; tried until it makes
    something."""
    while True:
        width, height = (int(uniform(rng, 84, longest)) for _ in range(2))
        if max(width, height) <= 2 * min(width, height):
            made = attempt(width, height)
            if made is not None:
                return made


def sample_picture(
    rng: np.random.Generator,
    max_things: int = MAX_THINGS,
    min_things: int = 1,
    large: bool = False,
    training: bool = True,
) -> Picture:
    """A fresh picture with min_things..max_things shapes (0 = an empty ground); large: big ones only.

    The same state of `rng` gives the same picture. ValueError for counts outside 0 <= min <= max <= 5.
    """
    if not 0 <= min_things <= max_things <= 5:
        raise ValueError(f"min_things={min_things}, max_things={max_things}: expected 0 <= min <= max <= 5")
    while True:
        width, height = sample_size(rng, training)
        resized_width, resized_height = resized_size(width, height)
        count = min_things + int(rng.random() * (max_things - min_things + 1))
        plans = place_things(rng, count, (width, height), (resized_width, resized_height), large)
        if len(plans) == count:
            break
    under = ground(rng, width, height)
    image, things = _draw(rng, under, plans)
    picture = Picture(np.asarray(finish(rng, image)), things, width, height, resized_width, resized_height)
    things.sort(key=picture.cell)
    assert len({picture.cell(t) for t in things}) == len(things), "two centres in one cell"
    return picture


def sample_foreign(rng: np.random.Generator, training: bool = True) -> Picture:
    """A picture outside the world: noise, clouds, blobs, scribbles, checkerboards, heaps of polygons."""
    width, height = sample_size(rng, training)
    image = finish(rng, foreign_image(rng, width, height))
    return Picture(np.asarray(image), [], width, height, *resized_size(width, height), kind="foreign")


@dataclass(frozen=True)
class Plan:
    shape: str
    x: int
    y: int
    w: int
    h: int


def _draw(rng: np.random.Generator, under: Ground, plans: list[Plan]) -> tuple[Image.Image, list[Thing]]:
    """Colour the planned shapes and draw them on the ground."""
    scale = 1 if rng.random() < 0.4 else pick(rng, (2, 3, 3, 4))
    outlined = rng.random() < 0.16
    names = list(COLOURS)
    if max(min(tone) for tone in under.tones) < 150:  # white is not seen on light grounds: make up for it here
        names += ["white"] * 3
    if rng.random() < 0.35:  # few colours, so that counting and comparing are worth asking
        names = [pick(rng, names), pick(rng, names), pick(rng, names)]
    things = []
    for plan in plans:
        colour = pick(rng, names)
        tone = fill_colour(rng, colour, under)
        while tone is None:
            colour = pick(rng, tuple(COLOURS))
            tone = fill_colour(rng, colour, under)
        piece = stamp(rng, polygon(rng, plan.shape), plan.x, plan.y, plan.w, plan.h, scale)
        outline = pick(rng, (1, 1, 2)) if outlined and colour != "black" and min(plan.w, plan.h) >= 20 else 0
        paste(rng, under.image, piece, tone, outline)
        things.append(Thing(plan.shape, colour, piece.box, piece.corners))
    return under.image, things


def place_things(
    rng: np.random.Generator, count: int, size: tuple[int, int], resized: tuple[int, int], large: bool
) -> list[Plan]:
    """Shapes and cells (whole ORIGINAL pixels) without overlap; fewer than `count` when they did not fit."""
    sx, sy = resized[0] / size[0], resized[1] / size[1]
    short, long = min(resized), max(resized)
    cap = min(0.65 * math.sqrt(short * long), 0.85 * short)
    high = max(36.0, cap * (1.0, 1.0, 0.8, 0.68, 0.58, 0.5)[count])
    low = max(MIN_SIDE, 0.6 * high) if large else MIN_SIDE
    gap_x, gap_y = math.ceil(GAP / sx) + 1, math.ceil(GAP / sy) + 1  # + 1: anti-aliasing may shift by a pixel
    shapes = SHAPES if rng.random() < 0.7 else (pick(rng, SHAPES), pick(rng, SHAPES))
    plans: list[Plan] = []
    for _ in range(count):
        shape = pick(rng, shapes)
        for attempt in range(50):
            side = uniform(rng, low, low + (high - low) * (1 - attempt / 50))
            w, h = _extent(rng, shape, side / min(sx, sy), MIN_SIDE / min(sx, sy))
            room_x, room_y = size[0] - w - 4, size[1] - h - 4
            if room_x < 0 or room_y < 0:
                continue
            x, y = 2 + int(rng.random() * (room_x + 1)), 2 + int(rng.random() * (room_y + 1))
            if all(
                x >= p.x + p.w + gap_x or p.x >= x + w + gap_x or y >= p.y + p.h + gap_y or p.y >= y + h + gap_y
                for p in plans
            ):
                plans.append(Plan(shape, x, y, w, h))
                break
        else:
            return plans
    return plans


def _extent(rng: np.random.Generator, shape: str, side: float, least: float) -> tuple[int, int]:
    """Width and height of a shape in ORIGINAL pixels; no side below `least`. Triangles may be a little flat or slim."""
    s = math.ceil(side)
    if shape == "triangle" and rng.random() < 0.35:
        other = max(math.ceil(least), round(s * uniform(rng, 0.82, 1.0)))
        return (s, other) if rng.random() < 0.5 else (other, s)
    return s, s
