"""How one coloured shape, and the ground under it, becomes pixels.

Shapes live in a unit square (x right, y down), are drawn as an 8-bit mask (supersampled when the picture is
anti-aliased) and pasted. Everything random comes from the `numpy.random.Generator` that is passed in.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

RGB = tuple[int, int, int]
Point = tuple[float, float]
T = TypeVar("T")

COLOURS: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (255, 0, 0), (220, 20, 60), (200, 30, 30), (178, 34, 34), (214, 39, 40),
        (230, 40, 45)),
    "orange": ((255, 165, 0), (255, 165, 0), (255, 140, 0), (255, 127, 14), (245, 130, 30), (235, 125, 15)),
    "yellow": ((255, 255, 0), (255, 255, 0), (255, 225, 25), (250, 230, 40), (240, 220, 0), (255, 235, 59)),
    "green": ((0, 128, 0), (0, 128, 0), (0, 255, 0), (34, 139, 34), (0, 160, 60), (44, 160, 44),
        (50, 205, 50), (0, 100, 0), (76, 175, 80)),
    "blue": ((0, 0, 255), (0, 0, 255), (0, 0, 200), (30, 60, 220), (31, 119, 180), (65, 105, 225),
        (0, 0, 140), (33, 150, 243), (30, 144, 255)),
    "purple": ((128, 0, 128), (128, 0, 128), (148, 0, 211), (160, 32, 240), (148, 103, 189),
        (155, 50, 190), (186, 85, 211), (120, 30, 140)),
    "black": ((0, 0, 0), (0, 0, 0), (20, 20, 20), (32, 32, 32)),
    "white": ((255, 255, 255), (255, 255, 255), (250, 250, 250), (242, 242, 242)),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle")
MIN_COLOUR_DISTANCE = 110.0


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of `items`, all equally likely (much faster than rng.choice)."""
    return items[int(rng.random() * len(items))]


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A float in [low, high)."""
    return low + (high - low) * float(rng.random())


def jitter(rng: np.random.Generator, colour: RGB, amount: int) -> RGB:
    """`colour` with each channel moved by at most `amount`, kept in 0..255."""
    r, g, b = (min(255, max(0, c + int(uniform(rng, -amount, amount + 1)))) for c in colour)
    return r, g, b


def distance(a: RGB, b: RGB) -> float:
    """Euclidean distance in RGB, 0..441."""
    return math.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2)


def polygon(rng: np.random.Generator, shape: str) -> tuple[Point, ...]:
    """Corners of `shape`, scaled so that they touch all four sides of the unit square; () for a circle."""
    if shape == "circle":
        return ()
    if shape == "square":
        return (0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)
    if shape == "triangle":
        apex = 0.5 if rng.random() < 0.75 else uniform(rng, 0.36, 0.64)
        if rng.random() < 0.7:
            return (apex, 0.0), (1.0, 1.0), (0.0, 1.0)
        return (apex, 1.0), (1.0, 0.0), (0.0, 0.0)
    raise ValueError(f"shape {shape!r} is not known: expected one of {', '.join(SHAPES)}")


@dataclass(frozen=True)
class Stamp:
    """A shape as pixels: mask "L" to paste with its top left corner at `at`; box: tight around the mask."""

    mask: Image.Image
    at: tuple[int, int]
    box: tuple[float, float, float, float]
    corners: tuple[Point, ...]


def stamp(rng: np.random.Generator, corners: tuple[Point, ...], x: int, y: int, w: int, h: int, scale: int) -> Stamp:
    """Draw the unit shape `corners` (() = ellipse) into the cell x, y, w, h of the picture (whole pixels).

    scale 1: hard edges. scale 2-4: anti-aliased by supersampling, with a random shift below one pixel, so
    that the mask may reach one pixel further than the cell. Box and corners come back in picture pixels
    (x2, y2 = far edge of the last pixel).
    """
    dx, dy = (int(rng.random() * scale), int(rng.random() * scale)) if scale > 1 else (0, 0)
    extra = 1 if scale > 1 else 0
    mask = Image.new("L", ((w + extra) * scale, (h + extra) * scale), 0)
    draw = ImageDraw.Draw(mask)
    fw, fh = w * scale - 1, h * scale - 1
    if not corners:
        draw.ellipse((dx, dy, dx + fw, dy + fh), fill=255)
    else:
        draw.polygon([(dx + px * fw, dy + py * fh) for px, py in corners], fill=255)
    x1, y1, x2, y2 = mask.getbbox() or (0, 0, 1, 1)
    if scale > 1:
        mask = mask.reduce(scale)
    placed = tuple((x + (dx + px * (fw + 1)) / scale, y + (dy + py * (fh + 1)) / scale) for px, py in corners)
    return Stamp(mask, (x, y), (x + x1 / scale, y + y1 / scale, x + x2 / scale, y + y2 / scale), placed)


def paste(rng: np.random.Generator, image: Image.Image, piece: Stamp, colour: RGB, outline: int) -> None:
    """Fill the stamp with `colour`; outline > 0: that many pixels inside the edge are darker (or black)."""
    if outline:
        edge: RGB = (0, 0, 0) if rng.random() < 0.4 else tuple(int(c * 0.5) for c in colour)  # type: ignore[assignment]
        image.paste(edge, piece.at, piece.mask)
        padded = Image.new("L", (piece.mask.width + 2 * outline, piece.mask.height + 2 * outline), 0)
        padded.paste(piece.mask, (outline, outline))
        inner = padded.filter(ImageFilter.MinFilter(2 * outline + 1))
        image.paste(colour, (piece.at[0] - outline, piece.at[1] - outline), inner)
    else:
        image.paste(colour, piece.at, piece.mask)


@dataclass(frozen=True)
class Ground:
    """A picture without objects, the tones it is made of, and the colour that must not be drawn on it."""

    image: Image.Image
    tones: tuple[RGB, ...]
    colour: str | None = None


def ground(rng: np.random.Generator, width: int, height: int) -> Ground:
    """White most often; else light grey, pastel, coloured, dark or black; at times gradient or texture."""
    u = rng.random()
    colour: str | None = None
    if u < 0.40:
        tone = (255, 255, 255)
    elif u < 0.50:
        g = int(uniform(rng, 205, 250))
        tone = (g, g, g)
    elif u < 0.66:
        tone = tuple(int(uniform(rng, 185, 256)) for _ in range(3))  # type: ignore[assignment]
    elif u < 0.76:
        colour = pick(rng, ("red", "orange", "yellow", "green", "blue", "purple"))
        tone = jitter(rng, pick(rng, COLOURS[colour]), 15)
    elif u < 0.82:
        g = int(uniform(rng, 90, 180))
        tone = jitter(rng, (g, g, g), 25)
    elif u < 0.90:
        tone = tuple(int(uniform(rng, 12, 80)) for _ in range(3))  # type: ignore[assignment]
    else:
        tone = (0, 0, 0)
    v = rng.random()
    if v < 0.12:
        return gradient(rng, width, height, tone, colour)
    if v < 0.22:
        return texture(rng, width, height, tone, colour)
    return Ground(Image.new("RGB", (width, height), tone), (tone,), colour)


def gradient(rng: np.random.Generator, width: int, height: int, tone: RGB, colour: str | None) -> Ground:
    """A smooth change between `tone` and one not far from it, along a side or a diagonal."""
    other = jitter(rng, tone, 45)
    u = rng.random()
    if u < 0.35:
        cells = [[tone, tone], [other, other]]
    elif u < 0.7:
        cells = [[tone, other], [tone, other]]
    else:
        middle: RGB = tuple((a + b) // 2 for a, b in zip(tone, other, strict=True))  # type: ignore[assignment]
        cells = [[tone, middle], [middle, other]]
    image = Image.fromarray(np.array(cells, np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    return Ground(image, (tone, other), colour)


def texture(rng: np.random.Generator, width: int, height: int, tone: RGB, colour: str | None) -> Ground:
    """`tone` with a faint pattern: blotches of 2-30 px, or paper-like grain."""
    cell = pick(rng, (1, 2, 4, 10, 30))
    amount = int(uniform(rng, 4, 18))
    grain = rng.integers(-amount, amount + 1, (height // cell + 2, width // cell + 2, 1), dtype=np.int16)
    small = np.clip(grain + np.array(tone, np.int16), 0, 255).astype(np.uint8)
    image = Image.fromarray(small)
    image = image.resize((width, height), Image.Resampling.BILINEAR) if cell > 1 else image.crop((0, 0, width, height))
    return Ground(image, (tone,), colour)


def fill_colour(rng: np.random.Generator, colour: str, under: Ground) -> RGB | None:
    """A tone of the class `colour` that is clearly visible on the ground, or None when there is none."""
    if colour == under.colour:
        return None
    for _ in range(4):
        tone = pick(rng, COLOURS[colour])
        if rng.random() < 0.6:
            tone = jitter(rng, tone, 7 if colour in ("black", "white") else 14)
        if all(distance(tone, t) >= MIN_COLOUR_DISTANCE for t in under.tones):
            return tone
    return None


def finish(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """What happens to pictures on their way: at times blur, contrast, noise, and JPEG at quality 60-95."""
    if rng.random() < 0.08:
        image = image.filter(ImageFilter.GaussianBlur(uniform(rng, 0.3, 0.9)))
    if rng.random() < 0.08:
        gain, lift = uniform(rng, 0.82, 1.1), uniform(rng, -12, 12)
        table = [min(255, max(0, int((i - 128) * gain + 128 + lift))) for i in range(256)]
        image = image.point(table * 3)
    if rng.random() < 0.10:
        amount = int(uniform(rng, 2, 14))
        pixels = np.asarray(image).astype(np.int16)
        pixels += rng.integers(-amount, amount + 1, pixels.shape, dtype=np.int16)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.25:
        image = jpeg(image, int(uniform(rng, 60, 96)))
    return image


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The picture after one JPEG round trip."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")
