"""Pictures and videos -> sizes, grids and tokens, from their headers: no pixels of pictures are decoded, and of a video
its index and one frame.

What is found in a file stays in a Header, so that other limits can be tried without opening it again.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from qwenvl.media.images import COMMON, OTHERS, load_image
from qwenvl.media.kinds import is_video
from qwenvl.media.policy import DEFAULT_POLICY, MediaPolicy
from qwenvl.media.sampling import VideoOptions, frame_range, frame_size, smart_nframes
from qwenvl.media.sources import open_media, read_bytes
from qwenvl.media.video_readers import chosen_reader, open_reader
from qwenvl.planning.memory import PIXELS
from qwenvl.processing.image_processor import Qwen2VLImageProcessor
from qwenvl.processing.video_processor import Qwen2VLVideoProcessor

ORIENTATION = 0x0112
HELD, READ, CUT = 4, 11, 10  # bytes a pixel: of a picture in Pillow; the most while it is read, and while it is cut
TURNED = (5, 6, 7, 8)  # values of the EXIF field that swap width and height


@dataclass(frozen=True)
class Header:
    """What a file says of itself. size: width and height, upright. times: seconds of all frames of a video; fps: their
    rate. Both are empty for a picture."""

    name: str
    kind: str
    size: tuple[int, int]
    times: np.ndarray = field(default_factory=lambda: np.zeros(0), compare=False)
    fps: float = 0.0


@dataclass(frozen=True)
class Item:
    """A picture or video as the model will see it. resized: width and height; grid: (time, height, width) in patches;
    frames: taken of a video, 1 for a picture."""

    name: str
    kind: str
    size: tuple[int, int]
    resized: tuple[int, int]
    frames: int
    grid: tuple[int, int, int]
    tokens: int

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def held_bytes(self) -> int:
        """Bytes from reading to the end of the answer: a picture as Pillow has it, or the frames that were taken, and
        the patches."""
        pixels = self.frames * self.resized[0] * self.resized[1] if self.kind == "video" else 0
        return 3 * pixels + HELD * self.size[0] * self.size[1] * (self.kind == "image") + self.patch_bytes

    @property
    def reading_bytes(self) -> int:
        """The most that reading and cutting it needs, what is held then included."""
        if self.kind == "video":
            return self.held_bytes + self.patch_bytes
        return READ * self.size[0] * self.size[1] + CUT * self.resized[0] * self.resized[1]

    @property
    def patch_bytes(self) -> int:
        return self.patches * PIXELS[self.kind]


@dataclass(frozen=True)
class Limits:
    """The limits of a question, as `qwenvl ask` takes them; None: the checkpoint's and the documents' own."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    start: float | None = None
    end: float | None = None

    @property
    def video(self) -> VideoOptions:
        return VideoOptions(
            fps=self.fps, max_frames=self.max_frames, video_start=self.start, video_end=self.end,
            min_pixels=self.min_pixels, max_pixels=self.max_pixels,
        )  # fmt: skip


def read_header(source: str | Path, policy: MediaPolicy = DEFAULT_POLICY) -> Header:
    """What a picture or video says of itself. Raises MediaError for what cannot be read."""
    name = str(source) if len(str(source)) <= 160 else f"{str(source)[:157]}..."
    if is_video(source):
        with open_media(source, policy, "video") as path:
            reader = open_reader(chosen_reader(), path, name, policy.max_pixels)
            try:
                return Header(name, "video", (reader.width, reader.height), np.asarray(reader.times), reader.fps)
            finally:
                reader.close()
    return Header(name, "image", _picture_size(source, policy))


def _picture_size(source: str | Path, policy: MediaPolicy) -> tuple[int, int]:
    """Width and height, upright. A header that cannot be read is left to load_image(), which says what is wrong."""
    data = read_bytes(source, policy)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=(*COMMON, *OTHERS)) as image,
        ):
            width, height = image.size
            told = image.getexif().get(ORIENTATION) if image.format != "PNG" or "exif" in image.info else None
    except Exception:
        return load_image(source, policy).size
    if width * height > policy.max_pixels:
        return load_image(source, policy).size  # raises
    return (height, width) if told in TURNED else (width, height)


def see(header: Header, images: Qwen2VLImageProcessor, videos: Qwen2VLVideoProcessor, limits: Limits) -> Item:
    """What the model will see of a file under these limits. ValueError where the file and they do not go together."""
    width, height = header.size
    merge = images.merge_size**2
    if header.kind == "image":
        tall, wide = images.target_size(height, width, limits.min_pixels, limits.max_pixels)
        grid = images.grid(images.temporal_patch_size, tall, wide)
        frames = 1
    else:
        options = limits.video
        first, last = frame_range(header.times, options.video_start, options.video_end)
        frames = smart_nframes(options.given(), last - first + 1, header.fps)
        tall, wide = frame_size(height, width, frames, options)
        changed = videos.changed(min_pixels=limits.min_pixels, max_pixels=limits.max_pixels)
        tall, wide = changed.target_size(tall, wide)
        grid = videos.grid(frames + frames % videos.temporal_patch_size, tall, wide)
    time, rows, columns = grid
    tokens = time * rows * columns // merge
    return Item(header.name, header.kind, header.size, (wide, tall), frames, (time, rows, columns), tokens)


def see_all(
    headers: Sequence[Header], images: Qwen2VLImageProcessor, videos: Qwen2VLVideoProcessor, limits: Limits
) -> list[Item]:
    """see() of each; an error names the file."""
    found = []
    for header in headers:
        try:
            found.append(see(header, images, videos, limits))
        except ValueError as error:
            raise ValueError(f"{header.name}: {error}") from None
    return found


def fewer_frames(limits: Limits, items: Sequence[Item]) -> Limits | None:
    """The limits with half as many frames of the longest video; None when that has four or fewer."""
    longest = max((item.frames for item in items if item.kind == "video"), default=0)
    return replace(limits, max_frames=longest // 4 * 2) if longest > 4 else None
