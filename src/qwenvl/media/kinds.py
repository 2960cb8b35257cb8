"""Is it a picture or a video? Told by type and name alone; nothing is opened."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

VIDEO_ENDINGS = (
    ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".3gp", ".ogv",
)  # fmt: skip


def is_video(source: Any) -> bool:
    """Whether `source` is a video: a Video that was read, a list of frames, an array [T, H, W, 3], a data:video/
    address, or a path or address whose name ends like one."""
    from qwenvl.media.sampling import Video

    if isinstance(source, Video | list | tuple):
        return True
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source).lower()
        if text.startswith("data:"):
            return text.startswith("data:video/")
        if text.startswith(("http://", "https://")):
            try:
                text = urlsplit(text).path
            except ValueError:  # not a possible address; whoever opens it says so
                return False
        return text.endswith(VIDEO_ENDINGS)
    return getattr(source, "ndim", 0) == 4
