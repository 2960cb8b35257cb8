"""Events -> one picture of them all: a frame each, its time and its text, for people who would rather look."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl.tasks.events.event import Event
from qwenvl.tasks.events.times import written

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 400  # events of one picture
LINES = 2  # of text below a frame
GAP, LETTERS = 10, 15  # pixels
GROUND, TIME, TEXT = (250, 250, 248), (0, 90, 150), (30, 30, 30)


def contact_sheet(video: str | Path, events: Sequence[Event], columns: int = 4, width: int = 320) -> Image:
    """An RGB picture with a frame of each event, from the middle of it; `width` pixels wide each, in rows of `columns`.

    video: a local file, decoded in this process. Raises ValueError (MediaError) for a file that cannot be read, and
    when there are no events, or more than 400.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not 0 < len(events) <= MOST:
        raise ValueError(f"{len(events)} events for one picture: expected 1 to {MOST}")
    if columns < 1 or width < 64:
        raise ValueError(f"columns={columns}, width={width}: expected at least 1, and 64 pixels")
    frames = list(_frames(Path(video), events, width))
    font = ImageFont.load_default(size=LETTERS)
    line = LETTERS + 4
    columns = min(columns, len(events))
    high = max(frame.height for frame in frames) + line * (1 + LINES) + GAP
    rows = -(-len(events) // columns)
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * (high + GAP)), GROUND)
    pen = ImageDraw.Draw(sheet)
    for k, (event, frame) in enumerate(zip(events, frames, strict=True)):
        x, y = GAP + k % columns * (width + GAP), GAP + k // columns * (high + GAP)
        sheet.paste(frame, (x, y))
        y += frame.height + 4
        pen.text((x, y), _fitted(shown_time(event), width, font.getlength), fill=TIME, font=font)
        for n, text in enumerate(_lines(event.text, width, font.getlength)):
            pen.text((x, y + line * (n + 1)), text, fill=TEXT, font=font)
    return sheet


def shown_time(event: Event) -> str:
    """0:01:02.5, or 0:01:02.5 - 0:01:04.0."""
    begin, end = (written(seconds, digits=1)[1:] for seconds in (event.start, event.end))
    return begin if begin == end else f"{begin} - {end}"


def _frames(path: Path, events: Sequence[Event], width: int) -> Iterator[Image]:
    """A frame of each event in the order of the events, `width` wide."""
    from PIL import Image

    from qwenvl.media.policy import DEFAULT_POLICY
    from qwenvl.media.video_pyav import PyAVReader

    with closing(PyAVReader(path, str(path), DEFAULT_POLICY.max_pixels)) as reader:
        last = len(reader.times) - 1
        wanted = [min(last, max(0, bisect_right(reader.times, (e.start + e.end) / 2 + 1e-6) - 1)) for e in events]
        unique = sorted(set(wanted))
        small = {}
        for place, (_, pixels) in zip(unique, reader.frames(unique), strict=True):
            image = Image.fromarray(pixels)
            small[place] = image.resize((width, max(1, round(image.height * width / image.width))))
    yield from (small[place] for place in wanted)


def _lines(text: str, width: int, measure: Callable[[str], float]) -> list[str]:
    """The text in at most LINES lines of so many pixels, with an ellipsis where it is longer."""
    lines: list[str] = [""]
    words = text.split()
    for k, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if measure(longer) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < LINES:
            lines.append(word)
        else:
            words = words[: k + 1]
            lines[-1] += "..."
            break
    return [_fitted(line, width, measure) for line in lines]


def _fitted(text: str, width: int, measure: Callable[[str], float]) -> str:
    """The text, cut until it is so many pixels wide."""
    while len(text) > 1 and measure(text) > width:
        text = text[:-2].rstrip(".") + "…"
    return text
