"""Video files for tests of events: a plain ground on which a red circle and others come and go at given seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 240, 180
GROUND = (235, 235, 230)


@dataclass(frozen=True)
class Shape:
    """A disc or a square that is seen from `start` to `end` seconds."""

    start: float
    end: float
    colour: tuple[int, int, int] = (215, 30, 30)
    box: tuple[int, int, int, int] = (130, 30, 200, 100)
    disc: bool = True


SQUARE = Shape(0.0, 1e9, (30, 60, 200), (20, 90, 80, 150), disc=False)


def picture(seconds: float, shapes: Sequence[Shape], size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """uint8 [height, width, 3] of the film at that second."""
    image = Image.new("RGB", (WIDTH, HEIGHT), GROUND)
    pen = ImageDraw.Draw(image)
    for shape in shapes:
        if shape.start <= seconds < shape.end:
            (pen.ellipse if shape.disc else pen.rectangle)(shape.box, fill=shape.colour)
    return np.asarray(image if size == (WIDTH, HEIGHT) else image.resize(size))


def is_red(frame: np.ndarray) -> bool:
    """Whether the red disc is seen in a frame of any size."""
    high, wide = frame.shape[:2]
    r, g, b = (int(c) for c in frame[round(high * 65 / HEIGHT), round(wide * 165 / WIDTH)])
    return r > 150 and g < 110 and b < 110


def write_film(
    path: Path,
    seconds: float,
    shapes: Sequence[Shape],
    rate: int = 5,
    times: Sequence[float] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    sound: bool = False,
    keys: int = 250,
) -> Path:
    """times: of every frame, in place of `rate` frames a second. sound: a tone whose pitch rises by the second. keys:
    frames from one keyframe to the next."""
    moments = list(times) if times is not None else [k / rate for k in range(round(seconds * rate))]
    seen: dict[tuple[bool, ...], av.VideoFrame] = {}
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "g": str(keys), "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 1000)
        track = out.add_stream("aac", rate=16000, layout="mono") if sound else None
        for moment in moments:
            state = tuple(s.start <= moment < s.end for s in shapes)
            if state not in seen:
                pixels = picture(moment, shapes, size)
                seen[state] = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame = seen[state]
            frame.pts, frame.time_base = round(moment * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if track is not None:
            _tone(out, track, seconds)
    return path


def _tone(out: av.container.OutputContainer, track: av.AudioStream, seconds: float) -> None:
    t = np.arange(int(seconds * 16000)) / 16000
    wave = (np.sin(2 * np.pi * (300 + 100 * np.floor(t)) * t) * 8000).astype(np.int16)
    for first in range(0, len(wave) - 1023, 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, first : first + 1024], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, first, Fraction(1, 16000)
        out.mux(track.encode(frame))
    out.mux(track.encode(None))
