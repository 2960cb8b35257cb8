"""Videos as callers hand them over: which of them is a video and which a list of videos, and frames -> Video."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike, fspath
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from qwenvl.media.policy import DEFAULT_POLICY, MediaPolicy
from qwenvl.media.videos import Video
from qwenvl.processing.handover import as_frames, as_picture

FPS = 2.0  # of frames whose rate nobody says
Given: TypeAlias = Any  # a path, address, bytes, Video, 4-D array, list of frames, or (one of them, metadata)


def is_frame(value: Any) -> bool:
    """A picture, an array of one, or the name of a picture file."""
    if isinstance(value, str | PathLike):
        name = fspath(value)
        if isinstance(name, str) and name[:11].lower() == "data:image/":
            return True
        kind = mimetypes.guess_type(name.split("?")[0] if isinstance(name, str) else "")[0] or ""
        return kind.startswith("image/") and kind != "image/gif"  # a moving picture is a video of its own
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim in (2, 3))


def is_video(value: Any) -> bool:
    """One video, not a list of them."""
    if isinstance(value, Video | str | PathLike | bytes | bytearray):
        return True
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim == 4
    if with_metadata(value):
        return True
    return isinstance(value, list | tuple) and bool(value) and all(map(is_frame, value))


def with_metadata(value: Any) -> bool:
    """(video, metadata), as newer vision utilities hand it over."""
    return (
        isinstance(value, tuple) and len(value) == 2 and is_video(value[0])
        and (isinstance(value[1], Mapping) or hasattr(value[1], "frames_indices"))
    )  # fmt: skip


def flat_videos(videos: Any) -> tuple[list[Given], list[int] | None]:
    """(videos in order, how many each prompt has where they came in one list a prompt, else None).

    Raises ValueError for what holds no videos. Examples: ["a.mp4", "b.mp4"] is two videos; [picture, picture] and
    ["1.jpg", "2.jpg"] are one; [[tensor], [], [tensor, "c.mp4"]] is three, of three prompts.
    """
    if videos is None:
        return [], None
    if is_video(videos):
        return [videos], None
    if not isinstance(videos, list | tuple):
        raise ValueError(f"videos is {type(videos).__name__}: expected paths, addresses, frames, or lists of them")
    nested = any(x is None or (isinstance(x, list | tuple) and not is_video(x)) for x in videos)
    found: list[Given] = []
    shares = []
    for i, entry in enumerate(videos):
        inner = [entry] if is_video(entry) else entry if nested and isinstance(entry, list | tuple) else []
        if entry is not None and not inner and entry != []:
            raise ValueError(f"videos[{i}] is {_words(entry)}: expected a path, an address, or frames")
        for k, video in enumerate(inner):
            if not is_video(video) and not _names(video):
                raise ValueError(f"videos[{i}][{k}] is {_words(video)}: expected a path, an address, or frames")
        found += inner
        shares.append(len(inner))
    return found, shares if nested else None


def as_video(
    source: Given,
    fps: float | None = None,
    metadata: Any = None,
    policy: MediaPolicy = DEFAULT_POLICY,
    first: bool | None = None,
) -> Video:
    """Frames as they are, in a Video. fps: of frames that do not say it themselves (by metadata, or as a Video)."""
    if with_metadata(source):
        source, metadata = source[0], source[1] if metadata is None else metadata
    if isinstance(source, Video):
        return source if source.frames.dtype == np.uint8 else replace(source, frames=as_frames(source.frames))
    if isinstance(source, np.ndarray | torch.Tensor):
        frames = as_frames(source, policy, first)
    elif isinstance(source, list | tuple):
        frames = _stacked([as_picture(frame, policy, first) for frame in source])
    else:
        raise ValueError(f"a video of type {type(source).__name__} cannot be read: expected a path, or frames")
    indices = tuple(range(len(frames)))
    rate: float = fps or FPS
    times: tuple[float, ...] | None = None
    if metadata is not None:
        rate, indices, times = _sampled(metadata, len(frames), rate)
    real = getattr(source, "frame_times", ())  # of fetch_video: what the file said
    times = tuple(real) if len(real) == len(frames) else times or tuple(i / rate for i in range(len(frames)))
    height, width = frames.shape[1:3]
    return Video(frames, times, indices, float(rate), len(frames) / rate, width, height)


def _stacked(pictures: list[Image.Image]) -> np.ndarray:
    if not pictures:
        raise ValueError("a list of frames is empty: expected at least one")
    for i, picture in enumerate(pictures):
        if picture.size != pictures[0].size:
            raise ValueError(
                f"frame {i} has {picture.width} x {picture.height} pixels, frame 0 {pictures[0].width} x "
                f"{pictures[0].height}: expected one size"
            )
    return np.stack([np.asarray(picture) for picture in pictures])


def _sampled(metadata: Any, count: int, fps: float) -> tuple[float, tuple[int, ...], tuple[float, ...] | None]:
    """(frames a second, which frames, their seconds) by what metadata tells of the sampling."""

    def told(name: str) -> Any:
        return metadata.get(name) if isinstance(metadata, Mapping) else getattr(metadata, name, None)

    own, found, total = told("fps"), told("frames_indices"), told("total_num_frames")
    if found is None or not own or not total:
        return float(own or fps), tuple(range(count)), None
    indices = [int(i) for i in found]
    if len(indices) > count or count - len(indices) > 1:
        raise ValueError(f"the metadata tells of {len(indices)} frames, the video has {count}")
    times = [i / own for i in indices] + [indices[-1] / own] * (count - len(indices))
    return len(indices) / total * own, tuple(indices), tuple(times)


def _names(value: Any) -> bool:
    """A list of file names, which three lists deep can only be frames."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(x, str | PathLike) for x in value)


def _words(value: Any) -> str:
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"an array of shape {tuple(value.shape)}"
    return f"an empty {type(value).__name__}" if value in ([], ()) else f"of type {type(value).__name__}"
