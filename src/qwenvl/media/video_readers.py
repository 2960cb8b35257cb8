"""Which library decodes videos: PyAV, or torchcodec or decord where the environment asks for it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qwenvl.media.policy import MediaError

VARIABLE = "FORCE_QWENVL_VIDEO_READER"
CHOICES = ("torchcodec", "decord", "torchvision", "pyav")
THREADS_VARIABLE = "TORCHCODEC_NUM_THREADS"


class VideoReader(Protocol):
    """An opened video. times: float64 [N], seconds of every frame, ascending; fps: their mean rate; duration:
    seconds; width, height: upright; notes: what the caller should know after reading."""

    times: np.ndarray
    fps: float
    width: int
    height: int
    notes: list[str]

    @property
    def duration(self) -> float: ...

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds, upright RGB uint8 [H, W, 3]) of each frame asked for; indices ascend."""

    def close(self) -> None: ...


def chosen_reader() -> str:
    """pyav, or what FORCE_QWENVL_VIDEO_READER names (torchvision is its PyAV reader, so pyav). Raises ValueError for
    other names and for a library that is not installed."""
    name = os.environ.get(VARIABLE, "").strip().lower()
    if name in ("", "pyav", "torchvision"):
        return "pyav"
    if name not in CHOICES:
        raise ValueError(f"{VARIABLE}={name!r}: expected one of {', '.join(CHOICES)}")
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"{VARIABLE}={name}, but {name} is not installed: pip install {name}, or unset the variable")
    return name


def open_reader(reader: str, path: Path, name: str, max_pixels: int) -> VideoReader:
    """The file opened by that library. Raises MediaError, and what other libraries raise."""
    if reader == "torchcodec":
        return TorchcodecReader(path, name, max_pixels)
    if reader == "decord":
        return DecordReader(path, name, max_pixels)
    from qwenvl.media.video_pyav import PyAVReader

    return PyAVReader(path, name, max_pixels)


class _LibraryReader:
    """What readers of other libraries share."""

    def __init__(self, times: np.ndarray, fps: float, size: tuple[int, int], name: str, max_pixels: int) -> None:
        if not len(times):
            raise MediaError(f"{name} holds no frames")
        self.times, self.fps, self.notes = np.asarray(times, np.float64), float(fps), list[str]()
        self.height, self.width = size
        if self.width * self.height > max_pixels:
            raise MediaError(
                f"{name} has frames of {self.width} x {self.height} pixels, the limit is {max_pixels}: make it smaller"
            )

    @property
    def duration(self) -> float:
        return float(self.times[-1] - self.times[0]) + 1 / self.fps

    def close(self) -> None:
        """Nothing is held but memory."""


class DecordReader(_LibraryReader):
    """The frames by decord."""

    def __init__(self, path: Path, name: str, max_pixels: int) -> None:
        import decord

        self._reader: Any = decord.VideoReader(str(path), num_threads=0)
        times = self._reader.get_frame_timestamp(np.arange(len(self._reader)))[:, 0]
        size = self._reader[0].shape[:2]
        super().__init__(times - min(times[0], 0.0), self._reader.get_avg_fps(), size, name, max_pixels)

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[float, np.ndarray]]:
        """One frame at a time: a batch would hold all of them in full size."""
        for i in indices:
            yield float(self.times[i]), self._reader[i].asnumpy()


class TorchcodecReader(_LibraryReader):
    """The frames by torchcodec."""

    def __init__(self, path: Path, name: str, max_pixels: int) -> None:
        from torchcodec.decoders import VideoDecoder

        threads = int(os.environ.get(THREADS_VARIABLE, "8"))
        self._decoder: Any = VideoDecoder(str(path), num_ffmpeg_threads=threads, dimension_order="NHWC")
        about = self._decoder.metadata
        begin = about.begin_stream_seconds or 0.0
        fps = about.average_fps
        times = begin + np.arange(about.num_frames) / fps
        height, width = self._decoder[0].shape[:2]
        super().__init__(times, fps, (height, width), name, max_pixels)

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[float, np.ndarray]]:
        """One frame at a time: a batch would hold all of them in full size."""
        for i in indices:
            frame = self._decoder.get_frame_at(i)
            yield float(frame.pts_seconds), frame.data.numpy()
