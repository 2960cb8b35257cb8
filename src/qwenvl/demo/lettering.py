"""How text becomes pixels: lines of capitals, digits and a few signs, with the box of every letter.

One font comes with Pillow and is there on every machine. Training adds those that come with matplotlib, where it is
installed, so that the model knows letters and not one font.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qwenvl.demo.drawing import RGB, pick

Box = tuple[float, float, float, float]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789./:-$%&"
BUNDLED = "default"  # the font that comes with Pillow
OTHERS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf")
OTHER_SHARE = 0.35  # of the training pictures


@dataclass(frozen=True)
class Letter:
    """One drawn character, a space included. box: x1, y1, x2, y2 of its advance and of the capitals' height, in
    ORIGINAL pixels."""

    text: str
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Line:
    """A drawn line of text, or a part of one. letters: one for every character of its text."""

    letters: tuple[Letter, ...]

    @property
    def text(self) -> str:
        return "".join(letter.text for letter in self.letters)

    @property
    def box(self) -> Box:
        """Around all its letters, ORIGINAL pixels."""
        boxes = [letter.box for letter in self.letters]
        return boxes[0][0], min(b[1] for b in boxes), boxes[-1][2], max(b[3] for b in boxes)


@cache
def other_fonts() -> tuple[str, ...]:
    """Paths of the fonts for training beside the bundled one; none where matplotlib is not installed."""
    found = find_spec("matplotlib")
    if found is None or found.origin is None:
        return ()
    folder = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
    return tuple(str(folder / name) for name in OTHERS if (folder / name).is_file())


def some_font(rng: np.random.Generator, training: bool) -> str:
    """The bundled font, or in training at times one of the others."""
    u, others = rng.random(), other_fonts()
    return pick(rng, others) if training and others and u < OTHER_SHARE else BUNDLED


@cache
def font(name: str, capitals: int) -> ImageFont.FreeTypeFont:
    """The font in the size at which capitals are `capitals` pixels high (within one)."""
    size = round(capitals / (0.73 if name != BUNDLED else 0.7), 1)
    found = ImageFont.load_default(size) if name == BUNDLED else ImageFont.truetype(name, size)
    assert isinstance(found, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return found


def length(name: str, capitals: int, text: str) -> float:
    """Width of the text in pixels."""
    return font(name, capitals).getlength(text)


def write(image: Image.Image, text: str, x: float, y: float, name: str, capitals: int, ink: RGB) -> Line:
    """Draw the text with its capitals' top at `y` and its left edge at `x`."""
    used = font(name, capitals)
    top, bottom = used.getbbox("H")[1], used.getbbox("H")[3]
    ImageDraw.Draw(image).text((x, y - top), text, fill=ink, font=used)
    ends = [used.getlength(text[:i]) for i in range(len(text) + 1)]
    return Line(
        tuple(
            Letter(letter, (x + ends[i], y, x + max(ends[i + 1], ends[i] + 1), y + bottom - top))
            for i, letter in enumerate(text)
        )
    )
