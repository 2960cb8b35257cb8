"""Lists and arrays of frames -> Video. They count as sampled already."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from qwenvl.media.images import load_image
from qwenvl.media.policy import MediaError, MediaPolicy
from qwenvl.media.resample import Resampler
from qwenvl.media.resize import smart_resize
from qwenvl.media.sampling import (
    FPS,
    FRAME_FACTOR,
    IMAGE_MAX_PIXELS,
    IMAGE_MIN_PIXELS,
    Video,
    VideoOptions,
    frame_size,
    limit_note,
)

WITHOUT_EFFECT = ("nframes", "min_frames", "max_frames", "video_start", "video_end")


def read_frames(frames: Sequence[Any], options: VideoOptions, policy: MediaPolicy) -> Video:
    """A video from pictures: paths, addresses, bytes, PIL pictures, arrays, also in lists within the list.

    Each frame is first resized as a picture would be, then as a frame of a video: two steps, as in the documented
    pipeline, whose sizes and pixels could not be had in one. Raises MediaError for an empty list, a frame that cannot
    be read, and frames of different shapes without resized_height and resized_width.
    """
    flat = list(_flat(frames))
    if not flat:
        raise MediaError("the list of frames is empty: expected at least one picture")
    number = math.ceil(len(flat) / FRAME_FACTOR) * FRAME_FACTOR
    result: np.ndarray | None = None
    resample: Resampler | None = None
    first = original = (0, 0)
    for i, source in enumerate(flat):
        picture = load_image(source, policy)
        size = _picture_size(picture, options)
        if result is None:
            first, original = size, (picture.height, picture.width)
            result = _room(number, frame_size(*size, number, options), policy)
        if size != first:
            raise MediaError(
                f"frame {i} has {picture.width} x {picture.height} pixels, frame 0 has {original[1]} x {original[0]}: "
                "expected one size; give resized_height and resized_width to bring them to one"
            )
        if (picture.height, picture.width) != size:
            picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        resample = resample or Resampler(size, (result.shape[1], result.shape[2]))
        result[i] = resample(np.asarray(picture))
    assert result is not None
    result[len(flat) :] = result[len(flat) - 1]
    return _video(result, original, options)


def read_array(source: Any, options: VideoOptions, policy: MediaPolicy) -> Video:
    """A video from an array or tensor [T, H, W, 3] or [T, 3, H, W]: uint8, or floats from 0 to 255."""
    frames = _array(source)
    number = math.ceil(len(frames) / FRAME_FACTOR) * FRAME_FACTOR
    old = (frames.shape[1], frames.shape[2])
    result = _room(number, frame_size(*old, number, options), policy)
    resample = Resampler(old, (result.shape[1], result.shape[2]))
    for i, frame in enumerate(frames):
        pixels = frame if frame.dtype == np.uint8 else np.rint(frame).astype(np.uint8)
        result[i] = resample(np.ascontiguousarray(pixels))
    result[len(frames) :] = result[len(frames) - 1]
    return _video(result, old, options)


def _flat(frames: Iterable[Any]) -> Iterator[Any]:
    for frame in frames:
        if isinstance(frame, list | tuple):
            yield from _flat(frame)
        else:
            yield _plain(frame)


def _plain(value: Any) -> Any:
    """Tensors as arrays [H, W, 3], without knowing torch; anything else as it is."""
    if _is_tensor(value):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[0] == 3 and value.shape[2] not in (3, 4):
        value = np.ascontiguousarray(value.transpose(1, 2, 0))
    return value


def _is_tensor(value: Any) -> bool:
    """Told without torch. A file object has detach() too."""
    return hasattr(value, "detach") and hasattr(value, "cpu")


def _array(source: Any) -> np.ndarray:
    """[T, H, W, 3] with values from 0 to 255. Raises MediaError for anything else."""
    value = source.detach().cpu().numpy() if _is_tensor(source) else source
    if not isinstance(value, np.ndarray):
        raise MediaError(
            f"a video of type {type(source).__name__} cannot be read: expected a path, an address, bytes, a list of "
            "frames, or an array or tensor of frames"
        )
    if value.ndim == 4 and value.shape[3] != 3 and value.shape[1] == 3:
        value = value.transpose(0, 2, 3, 1)
    if value.ndim != 4 or value.shape[3] != 3 or not value.size:
        raise MediaError(
            f"an array of shape {value.shape} is no video: expected [T, H, W, 3] or [T, 3, H, W], T at least 1"
        )
    if value.dtype == np.uint8:
        return value
    if value.dtype.kind != "f":
        raise MediaError(f"a video of type {value.dtype}: expected uint8, or floats from 0 to 255")
    low, high = float(value.min()), float(value.max())
    if not (low >= 0 and 1 < high <= 255):
        raise MediaError(f"a video of floats from {low:g} to {high:g}: expected 0 to 255; rescale it, or give uint8")
    return value


def _picture_size(picture: Image.Image, options: VideoOptions) -> tuple[int, int]:
    """(height, width) that the frame would get as a picture."""
    if not options.resize or (options.resized_height is not None and options.resized_width is not None):
        return frame_size(picture.height, picture.width, FRAME_FACTOR, options)
    low = IMAGE_MIN_PIXELS if options.min_pixels is None else options.min_pixels
    high = IMAGE_MAX_PIXELS if options.max_pixels is None else options.max_pixels
    return smart_resize(picture.height, picture.width, min_pixels=low, max_pixels=high)


def _room(number: int, size: tuple[int, int], policy: MediaPolicy) -> np.ndarray:
    check_memory(number, size, policy.decode_memory)
    return np.empty((number, *size, 3), np.uint8)


def check_memory(number: int, size: tuple[int, int], limit: int) -> None:
    """MediaError when so many frames of (height, width) take more than `limit` bytes."""
    needed = number * size[0] * size[1] * 3
    if needed > limit:
        raise MediaError(
            f"{number} frames of {size[1]} x {size[0]} pixels take {needed} bytes, the limit is {limit}: "
            "take fewer (fps, max_frames) or smaller ones (max_pixels, total_pixels)"
        )


def _video(frames: np.ndarray, original: tuple[int, int], options: VideoOptions) -> Video:
    useless = [name for name in WITHOUT_EFFECT if getattr(options, name) is not None]
    if useless:
        warnings.warn(
            f"{', '.join(useless)} without effect: a list or array of frames counts as sampled already", stacklevel=4
        )
    note = limit_note(options, len(frames))
    if note:
        warnings.warn(note, stacklevel=4)
    fps = next((value for value in (options.sample_fps, options.fps) if value is not None), FPS)
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps={fps} of a list of frames: expected a number above 0")
    number = len(frames)
    return Video(
        frames=frames,
        times=tuple(i / fps for i in range(number)),
        indices=tuple(range(number)),
        fps=float(fps),
        duration=number / fps,
        width=original[1],
        height=original[0],
    )
