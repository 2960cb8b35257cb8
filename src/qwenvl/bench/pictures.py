"""Pictures like photographs for the JPEG decoder and the tower: soft shapes of all sizes, edges, and grain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

OCTAVES = 6
GRAIN = 6.0  # standard deviation, of 255
QUALITY = 90


def draw(width: int, height: int, seed: int) -> Image.Image:
    """An RGB picture of this size; the same one for the same seed."""
    rng = np.random.default_rng([seed, width, height])
    field = np.zeros((height, width, 3), np.float32)
    for octave in range(OCTAVES):
        cells = (max(2, 2**octave * height // max(width, height)) + 1, 2**octave + 2, 3)
        coarse = Image.fromarray(rng.integers(0, 256, cells, np.uint8))
        field += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 2 ** (octave + 1)
    picture = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        wide, high = (int(n) for n in rng.integers(4, max(5, min(width, height) // 4), 2))
        colour = tuple(int(n) for n in rng.integers(0, 256, 3))
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)((x, y, x + wide, y + high), fill=colour)
    grainy = np.asarray(picture, np.float32) + rng.normal(0, GRAIN, (height, width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(grainy, 0, 255).astype(np.uint8))


class Album:
    """Pictures in a folder, drawn when first asked for. seed: another one gives other pictures of the same sizes."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, size: tuple[int, int], number: int) -> str:
        """The JPEG file of the picture of this number: different numbers, different contents."""
        path = self._folder / f"{size[0]}x{size[1]}-{self._seed}-{number}.jpg"
        if not path.exists():
            draw(*size, self._seed * 100_003 + number).save(path, quality=QUALITY)
        return str(path)
