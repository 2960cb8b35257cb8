"""The sample pictures that are shipped: drawn with plain PIL calls, not with the generator that trains the model.

`python -m qwenvl.demo.samples FOLDER` writes them again, byte for byte with the same Pillow.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw

PICTURES = Path(__file__).parent / "pictures"


def star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a five-pointed star around (x, y), pixels."""
    corners = []
    for i in range(10):
        reach = radius if i % 2 == 0 else 0.4 * radius
        angle = math.pi * (i / 5 - 0.5)
        corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return corners


def three_shapes() -> Image.Image:
    """A red circle, a blue square and a green triangle on white, 280 x 210, hard edges."""
    picture = Image.new("RGB", (280, 210), "white")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((24, 20, 94, 90), fill="red")
    pen.rectangle((176, 36, 246, 106), fill="blue")
    pen.polygon([(140, 118), (96, 194), (184, 194)], fill="green")
    return picture


def two_stars() -> Image.Image:
    """Two yellow stars and a white rectangle on dark blue-grey, 320 x 200, smooth edges."""
    picture = Image.new("RGB", (960, 600), (47, 62, 80))
    pen = ImageDraw.Draw(picture)
    pen.polygon(star(200, 190, 140), fill=(255, 221, 0))
    pen.polygon(star(700, 420, 140), fill=(255, 221, 0))
    pen.rectangle((540, 90, 860, 210), fill="white")
    return picture.resize((320, 200), Image.Resampling.LANCZOS)


def tall_note() -> Image.Image:
    """An orange cross over a purple circle on a pale ground, 150 x 300, smooth edges."""
    picture = Image.new("RGB", (450, 900), (238, 242, 230))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((190, 90, 270, 330), fill=(255, 140, 0))
    pen.rectangle((110, 170, 350, 250), fill=(255, 140, 0))
    pen.ellipse((110, 560, 350, 800), fill=(128, 0, 128))
    return picture.resize((150, 300), Image.Resampling.LANCZOS)


SAMPLES = {"three-shapes.png": three_shapes, "two-stars.png": two_stars, "tall-note.png": tall_note}


def write(folder: Path) -> list[Path]:
    """Draw every sample into an existing folder; their paths."""
    paths = []
    for name, draw in SAMPLES.items():
        paths.append(folder / name)
        draw().save(paths[-1], optimize=True)
    return paths


if __name__ == "__main__":
    for path in write(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES):
        print(path)
