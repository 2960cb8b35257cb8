"""Pictures outside the world of the bundled model, on which it should say that it does not know them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from qwenvl.demo.drawing import RGB, distance, pick, uniform


def foreign_image(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """An RGB picture of the given size (pixels) without any single plain shape in it."""
    makers = (_noise, _clouds, _clouds, _landscape, _landscape, _scribbles, _checkerboard, _heap, _stripes)
    return pick(rng, makers)(rng, width, height)


def _colour(rng: np.random.Generator, low: int = 0, high: int = 256) -> RGB:
    r, g, b = (int(uniform(rng, low, high)) for _ in range(3))
    return r, g, b


def _noise(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Coloured or grey noise, coarse or fine, around a base colour."""
    cell = pick(rng, (1, 1, 2, 4, 8))
    channels = pick(rng, (1, 3))
    low = int(uniform(rng, 0, 90))
    grain = rng.integers(low, 256, (height // cell + 1, width // cell + 1, channels), dtype=np.uint8)
    image = Image.fromarray(np.repeat(grain, 3, axis=2) if channels == 1 else grain)
    if cell == 1:
        return image.crop((0, 0, width, height))
    return image.resize((width, height), pick(rng, (Image.Resampling.NEAREST, Image.Resampling.BILINEAR)))


def _clouds(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Fractal clouds between two colours: octaves of smooth noise."""
    total = np.zeros((height, width), np.float32)
    for octave, weight in ((2, 1.0), (4, 0.6), (8, 0.35), (16, 0.2), (32, 0.12)):
        grain = rng.random((octave + 1, octave + 1), dtype=np.float32)
        total += weight * np.asarray(Image.fromarray(grain).resize((width, height), Image.Resampling.BICUBIC))
    total = np.clip((total - total.min()) / (np.ptp(total) + 1e-6), 0, 1)[..., None]
    first, second = _colour(rng), _colour(rng)
    while distance(first, second) < 150:
        second = _colour(rng)
    a, b = np.array(first, np.float32), np.array(second, np.float32)
    return Image.fromarray((a + (b - a) * total).astype(np.uint8))


def _landscape(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Photograph-like: a gradient, soft blobs of many sizes, grain."""
    corners = np.array([[_colour(rng), _colour(rng)], [_colour(rng), _colour(rng)]], np.uint8)
    image = Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    side = min(width, height)
    for _ in range(int(uniform(rng, 22, 60))):
        rx, ry = uniform(rng, 0.03, 0.3) * side, uniform(rng, 0.03, 0.3) * side
        x, y = uniform(rng, 0, width), uniform(rng, 0, height)
        draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=_colour(rng))
    image = image.filter(ImageFilter.BoxBlur(side * uniform(rng, 0.02, 0.06)))
    pixels = np.asarray(image).astype(np.int16)
    pixels += rng.integers(-9, 10, pixels.shape, dtype=np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _scribbles(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Many thin lines and curves, in one colour or many."""
    image = Image.new("RGB", (width, height), pick(rng, ((255, 255, 255), (0, 0, 0), _colour(rng, 200))))
    draw = ImageDraw.Draw(image)
    one = _colour(rng, 0, 160) if rng.random() < 0.5 else None
    for _ in range(int(uniform(rng, 8, 30))):
        points = [(uniform(rng, 0, width), uniform(rng, 0, height)) for _ in range(int(uniform(rng, 2, 9)))]
        draw.line(points, fill=one or _colour(rng), width=pick(rng, (1, 1, 2, 3)))
    return image


def _checkerboard(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Two alternating colours in many cells."""
    cell = max(4, int(min(width, height) / uniform(rng, 5, 16)))
    board = np.indices((height, width)) // cell
    pair = np.array([_colour(rng, 0, 120), _colour(rng, 135)], np.uint8)
    return Image.fromarray(pair[board.sum(axis=0) % 2])


def _heap(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Many overlapping random polygons that cover the whole picture."""
    image = Image.new("RGB", (width, height), _colour(rng))
    draw = ImageDraw.Draw(image)
    side = max(width, height)
    for _ in range(int(uniform(rng, 30, 80))):
        x, y, r = uniform(rng, 0, width), uniform(rng, 0, height), uniform(rng, 0.08, 0.3) * side
        points = [(x + uniform(rng, -r, r), y + uniform(rng, -r, r)) for _ in range(int(uniform(rng, 3, 7)))]
        draw.polygon(points, fill=_colour(rng))
    return image


def _stripes(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Waves or rings of two colours over the whole picture."""
    y, x = np.indices((height, width), dtype=np.float32)
    if rng.random() < 0.5:
        phase = x * uniform(rng, -0.4, 0.4) + y * uniform(rng, 0.15, 0.5)
    else:
        phase = np.hypot(x - uniform(rng, 0, width), y - uniform(rng, 0, height)) * uniform(rng, 0.2, 0.6)
    share = (np.sin(phase)[..., None] + 1) / 2
    if rng.random() < 0.5:
        share = np.round(share)
    a, b = np.array(_colour(rng, 0, 130), np.float32), np.array(_colour(rng, 125), np.float32)
    return Image.fromarray((a + (b - a) * share).astype(np.uint8))
