"""Which frames of a video are taken, and how large they become.

Source of the rules: the documented behaviour of qwen-vl-utils. Legend: T frames taken; h, w sides in pixels.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from qwenvl.media.resize import FACTOR, smart_resize

FRAME_FACTOR = 2  # two frames make one temporal patch
FPS = 2.0
FPS_MIN_FRAMES = 4
FPS_MAX_FRAMES = 768
VIDEO_MIN_PIXELS = 128 * FACTOR**2  # of one frame
VIDEO_MAX_PIXELS = 768 * FACTOR**2
IMAGE_MIN_PIXELS = 4 * FACTOR**2  # limits of pictures, which resized_height x resized_width and listed frames pass
IMAGE_MAX_PIXELS = 16384 * FACTOR**2
MODEL_SEQ_LEN = 128_000  # tokens that the model takes; nine tenths are for video
CLOSE = 1e-6  # seconds within which a frame counts as being at video_start or video_end


@dataclass(frozen=True)
class VideoOptions:
    """How a video is sampled and how large its frames become; names and defaults as in the documents.

    fps (frames a second wanted) or nframes, not both; neither: 2 frames a second. min_frames, max_frames: bounds of
    the number that fps gives. video_start, video_end: seconds. min_pixels, max_pixels: area of one frame;
    total_pixels: area of all frames together (two frames count once, as they share tokens). resized_height with
    resized_width: the size itself, rounded to 28. resize=False leaves frames as they are decoded (for short, small
    videos: the policy bounds the memory). sample_fps: frames a second of a list or array of frames (fps means the
    same there, the default is 2).
    """

    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    resize: bool = True
    sample_fps: float | None = None

    def given(self) -> dict[str, Any]:
        """The options that have a value, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Video:
    """Frames of a video as the model gets them.

    frames: uint8 [T, height, width, 3], T even (an odd list is filled up with its last frame). times: seconds of each
    frame from the start of the file, as the file says (frame lists: i / fps). indices: which frames of the file.
    fps: frames a second really sampled, T / seconds that the sampled part lasts; its inverse is what one frame stands
    for. duration: seconds of the whole file. width, height: of the frames as they came, upright, before any resize.
    """

    frames: np.ndarray
    times: tuple[float, ...]
    indices: tuple[int, ...]
    fps: float
    duration: float
    width: int
    height: int


def smart_nframes(ele: Mapping[str, Any], total_frames: int, video_fps: float) -> int:
    """How many of `total_frames` frames at `video_fps` the model sees: even, at least 2, at most `total_frames`.

    ele: nframes (rounded to even), or fps (default 2) within min_frames (default 4) and max_frames (default 768).
    Example: smart_nframes({"fps": 2}, 300, 30) == 20. Raises ValueError for fps with nframes, for numbers that make
    no sense, and when no even number from 2 to total_frames fits.
    """
    known = {name: value for name, value in ele.items() if value is not None}
    if "fps" in known and "nframes" in known:
        raise ValueError(f"fps={known['fps']} and nframes={known['nframes']} were both given: only accept one of them")
    for name in ("fps", "nframes", "min_frames", "max_frames"):
        if name in known and not (math.isfinite(known[name]) and known[name] > 0):
            raise ValueError(f"{name}={known[name]} of a video: expected a number above 0")
    if not (math.isfinite(video_fps) and video_fps > 0):
        raise ValueError(f"video_fps={video_fps}: expected a number above 0")
    if "nframes" in known:
        number = round(known["nframes"] / FRAME_FACTOR) * FRAME_FACTOR
    else:
        lowest = math.ceil(known.get("min_frames", FPS_MIN_FRAMES) / FRAME_FACTOR) * FRAME_FACTOR
        highest = math.floor(known.get("max_frames", min(FPS_MAX_FRAMES, total_frames)) / FRAME_FACTOR) * FRAME_FACTOR
        wanted = total_frames / video_fps * known.get("fps", FPS)
        wanted = min(max(wanted, lowest), highest, total_frames)
        number = math.floor(wanted / FRAME_FACTOR) * FRAME_FACTOR
    if not FRAME_FACTOR <= number <= total_frames:
        raise ValueError(
            f"nframes should be in the interval [{FRAME_FACTOR}, {total_frames}] (the frames that the video has), but "
            f"got {number}"
        )
    return number


def frame_range(times: Sequence[float] | np.ndarray, start: float | None, end: float | None) -> tuple[int, int]:
    """(first, last) frame from `start` to `end` seconds, both included. times: seconds of every frame, ascending.

    Raises ValueError when fewer than two frames lie between.
    """
    first = 0 if start is None else bisect_left(times, start - CLOSE)
    last = len(times) - 1 if end is None else bisect_right(times, end + CLOSE) - 1
    if first >= last and not (start is None and end is None):
        raise ValueError(
            f"video_start={start}, video_end={end} leave {max(last - first + 1, 0)} frames of a video of "
            f"{times[-1]:.2f} s with {len(times)} frames: expected at least 2"
        )
    return first, last


def frame_indices(first: int, last: int, number: int) -> tuple[int, ...]:
    """`number` frames from `first` to `last`, evenly spread and rounded, in single precision as the peers count."""
    if number == 1:
        return (first,)
    low, high = np.float32(first), np.float32(last)
    step = (high - low) / np.float32(number - 1)
    steps = np.arange(number, dtype=np.float32)
    up, down = low + step * steps, high - step * steps[::-1]
    return tuple(int(i) for i in np.where(np.arange(number) < number // 2, up, down).round())


def total_budget() -> float:
    """Area of all frames together, two frames counting once; VIDEO_MAX_PIXELS (pixels) or MODEL_SEQ_LEN (tokens) in
    the environment change it. Raises ValueError when they are no numbers."""
    for name, unit in (("VIDEO_MAX_PIXELS", 1.0), ("MODEL_SEQ_LEN", FACTOR**2 * 0.9)):
        text = os.environ.get(name)
        if text:
            try:
                return int(float(text)) * unit
            except (ValueError, OverflowError):
                raise ValueError(f"{name}={text!r} in the environment: expected a number") from None
    return MODEL_SEQ_LEN * FACTOR**2 * 0.9


def frame_limits(options: VideoOptions, number: int) -> tuple[int, float]:
    """(min_pixels, max_pixels) of one of `number` frames."""
    low = VIDEO_MIN_PIXELS if options.min_pixels is None else options.min_pixels
    total = total_budget() if options.total_pixels is None else options.total_pixels
    high = max(min(VIDEO_MAX_PIXELS, total / number * FRAME_FACTOR), int(low * 1.05))
    high = high if options.max_pixels is None else min(options.max_pixels, high)
    if options.min_pixels is None:  # a max_pixels below the default minimum wins over it
        low = int(min(low, high))
    return low, high


def limit_note(options: VideoOptions, number: int) -> str:
    """What to say when max_pixels is above what `number` frames may have; empty when it is not."""
    high = frame_limits(replace(options, max_pixels=None), number)[1]
    if options.max_pixels is None or options.max_pixels <= high:
        return ""
    return f"max_pixels={options.max_pixels} of a video is above the limit of {high:.0f} for each of {number} frames"


def frame_size(height: int, width: int, number: int, options: VideoOptions) -> tuple[int, int]:
    """(height, width) that each of `number` frames of height x width gets."""
    if not options.resize:
        return height, width
    if (options.resized_height is None) != (options.resized_width is None):
        raise ValueError("resized_height and resized_width belong together: give both or none")
    if options.resized_height is not None and options.resized_width is not None:
        return smart_resize(
            options.resized_height, options.resized_width, min_pixels=IMAGE_MIN_PIXELS, max_pixels=IMAGE_MAX_PIXELS
        )
    low, high = frame_limits(options, number)
    return smart_resize(height, width, min_pixels=low, max_pixels=high)  # type: ignore[arg-type]  # half a pixel is fine
