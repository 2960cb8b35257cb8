"""Is it a picture, a video or a PDF? Told by type and name alone; nothing is opened."""

from __future__ import annotations

import os
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

SourceKind: TypeAlias = Literal["image", "video", "pdf"]

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
VIDEO_ENDINGS = (
    ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".3gp", ".ogv",
)  # fmt: skip
ENDINGS: dict[SourceKind, tuple[str, ...]] = {"image": PICTURE_ENDINGS, "video": VIDEO_ENDINGS, "pdf": (".pdf",)}
_TYPES: dict[SourceKind, str] = {"image": "data:image", "video": "data:video/", "pdf": "data:application/pdf"}


def is_video(source: Any) -> bool:
    """Whether `source` is a video: a Video that was read, a list of frames, an array [T, H, W, 3], a data:video/
    address, or a path or address whose name ends like one."""
    from qwenvl.media.sampling import Video

    if isinstance(source, Video | list | tuple):
        return True
    if isinstance(source, str | os.PathLike):
        return kind_of(source) == "video"
    return getattr(source, "ndim", 0) == 4


def kind_of(source: str | os.PathLike[str]) -> SourceKind | None:
    """What a path or address names, as its ending (or the type in a data: address) tells; None when it does not."""
    text = os.fspath(source).lower()
    if text.startswith("data:"):
        return next((kind for kind, beginning in _TYPES.items() if text.startswith(beginning)), None)
    if text.startswith(("http://", "https://")):
        try:
            text = urlsplit(text).path
        except ValueError:  # not a possible address; whoever opens it says so
            return None
    return next((kind for kind, endings in ENDINGS.items() if text.endswith(endings)), None)
