"""Videos -> sampled RGB frames with their real times."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any, TypeAlias

import numpy as np

from qwenvl.media.frame_lists import read_array, read_frames
from qwenvl.media.images import ImageSource
from qwenvl.media.policy import DEFAULT_POLICY, MediaPolicy, shown
from qwenvl.media.sampling import Video, VideoOptions, smart_nframes
from qwenvl.media.sources import open_media

__all__ = ["Video", "VideoOptions", "VideoSource", "read_video", "smart_nframes"]
# A tensor is meant too; this room does not know torch.
DEFAULT_OPTIONS = VideoOptions()
VideoSource: TypeAlias = str | PathLike[str] | bytes | bytearray | Sequence[ImageSource] | np.ndarray | Any


def read_video(
    source: VideoSource, options: VideoOptions = DEFAULT_OPTIONS, policy: MediaPolicy = DEFAULT_POLICY
) -> Video:
    """The sampled frames of a video, with their real times.

    source: a path, file://, http(s):// or data: address, the file's bytes; a list of frames, each anything that
    load_image takes, or an array or tensor [T, H, W, 3] or [T, 3, H, W] with values 0 to 255: these are taken as
    sampled already. Files are decoded by PyAV, or by torchcodec or decord where the environment variable
    FORCE_QWENVL_VIDEO_READER asks for it; only frames that are needed are decoded, each is resized at once, and never
    more than the result is held. Raises MediaError (a ValueError), also for files that are damaged, cut off, too
    large or take too long, and ValueError for options that make no sense.
    """
    if isinstance(source, str | PathLike | bytes | bytearray):
        from qwenvl.media.video_clip import read_clip

        with open_media(source, policy, "video") as path:
            return read_clip(path, _name(source), options, policy)
    if isinstance(source, list | tuple):
        return read_frames(source, options, policy)
    return read_array(source, options, policy)


def _name(source: str | PathLike[str] | bytes | bytearray) -> str:
    """How the video stands in messages."""
    if isinstance(source, bytes | bytearray):
        return f"the video of {len(source)} bytes"
    text = fspath(source)
    return "the data: video" if text[:5].lower() == "data:" else shown(text)
