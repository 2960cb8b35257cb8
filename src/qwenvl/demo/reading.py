"""The second part of the bundled model's world: cards with one to three printed lines, to be read aloud.

Kept apart from the drawings, so that a model may be trained without it. The letters are Pillow's own font and, where
matplotlib is installed, the fonts that come with it: the same seed gives the same card only with the same fonts.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ImageDraw, ImageFont

from qwenvl.demo.drawing import RGB, Ground, finish, ground, pick, uniform
from qwenvl.demo.questions import Exchange, style
from qwenvl.demo.world import Picture, resized_size, sample_size

KIND = "read"
MIN_LETTER, MAX_LETTER = 14.0, 48.0  # height of a capital letter, resized pixels
MIN_CONTRAST = 90.0  # difference in brightness (0-255) of letters and ground
FONT_FILES = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf", "STIXGeneral.ttf",
)  # fmt: skip
QUESTIONS = (
    "Read the text.", "Read the text.", "Read all the text in the image.", "Read the text in the image.",
    "What does it say?", "What does the text say?", "What is written here?", "What is written in the image?",
    "What text is in the picture?", "Transcribe the text.", "Read this.", "Which words are written here?",
    "Tell me what the text says.", "Output the text in the image.", "Please read the text in this picture.",
)  # fmt: skip
WORDS = """
    the and for you open closed today sale new free exit entry stop start push pull water coffee tea milk bread cake
    apple lemon orange green blue red black white house garden street road city north south east west left right up
    down hello thanks welcome please wait quiet danger warning private public hotel station airport ticket total price
    date time name page room floor door office school library museum market bank post police doctor monday tuesday
    wednesday thursday friday saturday sunday january march april june july august morning evening night summer winter
    book paper letter music radio phone mail number order table chair window paint small large fast slow good best
    happy quick brown fox jumps over lazy dog box zebra queen king world light heavy change machine view value
"""


@dataclass
class Card(Picture):
    """A picture of kind "text". lines: what is printed on it, from top to bottom."""

    lines: tuple[str, ...] = ()


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass
class Fonts:
    """The fonts to print with: Pillow's own (None) and font files. Loaded sizes are kept."""

    files: tuple[Path | None, ...] = field(default_factory=lambda: (None, *installed_fonts()))
    _loaded: dict[tuple[Path | None, int], Font] = field(default_factory=dict, repr=False)

    def load(self, file: Path | None, size: int) -> Font:
        """The font at `size` pixels a line."""
        if (file, size) not in self._loaded:
            font = ImageFont.load_default(size) if file is None else ImageFont.truetype(str(file), size)
            self._loaded[file, size] = font
        return self._loaded[file, size]


def installed_fonts() -> tuple[Path, ...]:
    """The known font files of the matplotlib package; () where it is not installed."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return ()
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return tuple(folder / name for name in FONT_FILES if (folder / name).is_file())


def sample_card(rng: np.random.Generator, fonts: Fonts, max_lines: int = 3, training: bool = True) -> Card:
    """A fresh card with 1..max_lines (at most 3) lines, dark on light or light on dark."""
    if not 1 <= max_lines <= 3:
        raise ValueError(f"max_lines={max_lines}: expected 1, 2 or 3")
    while True:
        width, height = sample_size(rng, training)
        resized_width, resized_height = resized_size(width, height)
        scale = min(resized_width / width, resized_height / height)
        letter = MIN_LETTER + (MAX_LETTER - MIN_LETTER) * float(rng.random()) ** 2
        font = fonts.load(pick(rng, fonts.files), round(letter / scale / 0.7))
        if (capital_height(font) + 1) * scale < MIN_LETTER:
            continue
        placed = _lay_out(rng, font, 1 + int(rng.random() * max_lines), width, height)
        if placed:
            break
    under = ground(rng, width, height)
    ink = _ink(rng, under)
    draw = ImageDraw.Draw(under.image)
    draw.fontmode = "1" if rng.random() < 0.15 else "L"
    for text, x, y in placed:
        draw.text((x, y), text, fill=ink, font=font)
    image = np.asarray(finish(rng, under.image))
    lines = tuple(text for text, _, _ in placed)
    return Card(image, [], width, height, resized_width, resized_height, "text", lines)


def capital_height(font: Font) -> float:
    """Height of the letter H in pixels."""
    _, top, _, bottom = font.getbbox("H")
    return bottom - top


def sample_reading(rng: np.random.Generator, card: Card) -> Exchange:
    """A question that asks to read the card; the answer is its lines, joined by line ends."""
    return Exchange(KIND, style(rng, pick(rng, QUESTIONS)), "\n".join(card.lines))


def grade_reading(exchange: Exchange, answer_text: str) -> dict[str, float]:
    """{"cer"}: character error rate, edits per true character (0 is perfect; at most 1 is reported)."""
    truth, told = exchange.answer, answer_text.strip()
    return {"cer": min(1.0, edit_distance(truth, told) / len(truth))}


def edit_distance(a: str, b: str) -> int:
    """Least number of insertions, deletions and replacements of characters that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def _ink(rng: np.random.Generator, under: Ground) -> RGB:
    """A colour that can be read on the ground: mostly black or white, at times another."""
    while True:
        u = rng.random()
        ink: RGB = (0, 0, 0) if u < 0.4 else (255, 255, 255) if u < 0.6 else _any_colour(rng)
        if all(abs(brightness(ink) - brightness(tone)) >= MIN_CONTRAST for tone in under.tones):
            return ink


def brightness(colour: RGB) -> float:
    """Luma of a colour, 0-255 (ITU-R BT.601 weights)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _any_colour(rng: np.random.Generator) -> RGB:
    r, g, b = (int(uniform(rng, 0, 256)) for _ in range(3))
    return r, g, b


def _lay_out(
    rng: np.random.Generator, font: Font, count: int, width: int, height: int
) -> list[tuple[str, int, int]] | None:
    """(text, x, y) of `count` lines that fit the picture with a margin of 3 px, or None when they do not."""
    _, top, _, bottom = (int(v) for v in font.getbbox("Agpq|"))
    line = round((bottom - top) * uniform(rng, 1.1, 1.7))
    room = height - 6 - (bottom - top) - line * (count - 1)
    texts = [_text(rng, font, width - 6) for _ in range(count)]
    if room < 0 or not all(texts):
        return None
    y0 = 3 - top + int(rng.random() * (room + 1))
    spare = width - 6 - max(_length(font, t) for t in texts)
    x0 = 3 + int(rng.random() * (spare + 1))
    widest, centred = width - 6 - spare, rng.random() < 0.3
    return [(t, x0 + ((widest - _length(font, t)) // 2 if centred else 0), y0 + i * line) for i, t in enumerate(texts)]


def _length(font: Font, text: str) -> int:
    """Width of a text in pixels, rounded up."""
    return int(font.getbbox(text)[2]) + 1


def _text(rng: np.random.Generator, font: Font, room: int) -> str:
    """Words that fit into `room` pixels; "" when not even the first one tried does."""
    text = ""
    for _ in range(1 + int(rng.random() * 4)):
        longer = f"{text} {_word(rng)}".strip()
        if _length(font, longer) > room:
            break
        text = longer
    return text


def _word(rng: np.random.Generator) -> str:
    """A word in some case, a number, a price, a date or a made-up word."""
    u = rng.random()
    if u < 0.6:
        word = pick(rng, WORDS.split())
        v = rng.random()
        return word if v < 0.45 else word.capitalize() if v < 0.8 else word.upper()
    if u < 0.72:
        return str(int(10 ** uniform(rng, 0, 5)))
    if u < 0.8:
        return f"{int(10 ** uniform(rng, 0, 3))}.{int(uniform(rng, 0, 100)):02d}"
    if u < 0.85:
        return f"{int(uniform(rng, 1, 29)):02d}/{int(uniform(rng, 1, 13)):02d}"
    letters = "abcdefghijklmnopqrstuvwxyz" if u < 0.95 else "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
    return "".join(pick(rng, letters) for _ in range(2 + int(rng.random() * 5)))
