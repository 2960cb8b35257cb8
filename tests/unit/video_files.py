"""Small video files whose frames tell which frame they are: frame i is grey of level STEP * i."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

STEP = 8


def grey(i: int, height: int, width: int) -> np.ndarray:
    """Frame i."""
    return np.full((height, width, 3), STEP * i, np.uint8)


def seen(frames: np.ndarray) -> list[int]:
    """Which frames these are."""
    return [round(float(frame.mean()) / STEP) for frame in frames]


def write_video(
    path: Path,
    codec: str = "libx264",
    number: int = 30,
    rate: float = 10,
    size: tuple[int, int] = (48, 64),
    pts: Sequence[int] | None = None,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    pictures: Sequence[np.ndarray] | None = None,
    changes: dict[str, Any] | None = None,
    container: dict[str, str] | None = None,
    source: str = "rgb24",
) -> Path:
    """size: (height, width). pts: of each frame in milliseconds, else one after the other. pictures: the frames
    themselves. changes: attributes of the stream."""
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=Fraction(rate).limit_denominator(1001), options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1  # the same bytes on every machine: some codecs cut frames by threads
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in (changes or {}).items():
            setattr(stream, name, value)
        for i in range(number if pictures is None else len(pictures)):
            picture = grey(i, *size) if pictures is None else pictures[i]
            frame = av.VideoFrame.from_ndarray(picture, format=source)
            if pts is not None:
                frame.pts, frame.time_base = pts[i], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path
