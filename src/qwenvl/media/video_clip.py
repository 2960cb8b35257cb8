"""A local video file -> Video, here or in a process of its own."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwenvl.media.frame_lists import check_memory
from qwenvl.media.policy import MediaError, MediaPolicy
from qwenvl.media.resample import Resampler
from qwenvl.media.sampling import Video, VideoOptions, frame_indices, frame_range, frame_size, limit_note, smart_nframes
from qwenvl.media.video_readers import VideoReader, chosen_reader, open_reader


@dataclass(frozen=True)
class ClipRequest:
    """What to read, in values that pass through JSON. name: how the file stands in messages. reader: which library.
    max_pixels: of one frame; memory: bytes of all frames; timeout: seconds."""

    path: str
    name: str
    reader: str
    options: VideoOptions
    max_pixels: int
    memory: int
    timeout: float


@dataclass(frozen=True)
class ClipPlan:
    """What is known before the frames are decoded. shape: [T, height, width, 3]; the others as in Video."""

    shape: tuple[int, int, int, int]
    indices: tuple[int, ...]
    fps: float
    duration: float
    width: int
    height: int


def read_clip(path: Path, name: str, options: VideoOptions, policy: MediaPolicy) -> Video:
    """The sampled frames of a local file. Raises MediaError, and ValueError for options that make no sense."""
    limits = (policy.max_pixels, policy.decode_memory, policy.decode_timeout)
    request = ClipRequest(str(path.absolute()), name, chosen_reader(), options, *limits)
    if not policy.isolate_videos:
        return read_here(request)
    from qwenvl.media.video_process import read_apart

    return read_apart(request)


def read_here(request: ClipRequest) -> Video:
    """The sampled frames, decoded in this process: crashes are the caller's, and a library that hangs hangs it."""
    clip = Clip(request)
    try:
        frames = np.empty(clip.plan.shape, np.uint8)
        times = []
        for i, (seconds, frame) in enumerate(clip.frames()):
            frames[i] = frame
            times.append(seconds)
        return finished(clip.plan, frames, times, clip.notes)
    finally:
        clip.close()


def finished(plan: ClipPlan, frames: np.ndarray, times: Sequence[float], notes: Sequence[str]) -> Video:
    """The result; notes become warnings."""
    for note in notes:
        warnings.warn(note, stacklevel=5)
    return Video(frames, tuple(times), plan.indices, plan.fps, plan.duration, plan.width, plan.height)


class Clip:
    """An opened file and the plan of its frames. A library other than PyAV that fails is replaced by PyAV."""

    def __init__(self, request: ClipRequest) -> None:
        self.notes: list[str] = []
        self._request, self._deadline = request, time.monotonic() + request.timeout
        self._reader = self._open()
        self.plan = self._plan()

    def _open(self) -> VideoReader:
        request = self._request
        if request.reader != "pyav":
            try:
                return open_reader(request.reader, Path(request.path), request.name, request.max_pixels)
            except Exception as error:  # libraries raise whatever they like
                self._note(error)
        return open_reader("pyav", Path(request.path), request.name, request.max_pixels)

    def _note(self, error: BaseException) -> None:
        text = (str(error).split("\n")[0] or type(error).__name__)[:200]
        self.notes.append(f"{self._request.reader} could not read {self._request.name} ({text}): PyAV reads it instead")

    def _plan(self) -> ClipPlan:
        reader, options, name = self._reader, self._request.options, self._request.name
        if len(reader.times) < 2:
            raise MediaError(f"{name} has a single frame: expected at least 2; give it as a picture")
        try:
            first, last = frame_range(reader.times, options.video_start, options.video_end)
            total = last - first + 1
            number = smart_nframes(options.given(), total, reader.fps)
            height, width = frame_size(reader.height, reader.width, number, options)
        except ValueError as error:
            raise MediaError(f"{name}: {error}") from None
        check_memory(number, (height, width), self._request.memory)
        note = limit_note(options, number)
        self.notes += [note] if note else []
        return ClipPlan(
            shape=(number, height, width, 3),
            indices=frame_indices(first, last, number),
            fps=number / total * reader.fps,
            duration=reader.duration,
            width=reader.width,
            height=reader.height,
        )

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds, uint8 [height, width, 3]) of every frame of the plan."""
        resample = None
        new = self.plan.shape[1:3]
        for seconds, frame in self._originals():
            if time.monotonic() > self._deadline:
                raise MediaError(too_long(self._request))
            if resample is None or resample.old != frame.shape[:2]:  # some files change their size
                resample = Resampler((frame.shape[0], frame.shape[1]), new)
            yield seconds, resample(frame)
        self.notes += self._reader.notes

    def _originals(self) -> Iterator[tuple[float, np.ndarray]]:
        done, indices = 0, self.plan.indices
        try:
            for found in self._reader.frames(indices):
                yield found
                done += 1
        except Exception as error:
            if self._request.reader == "pyav":
                raise
            self._note(error)
            self._reader = open_reader("pyav", Path(self._request.path), self._request.name, self._request.max_pixels)
            yield from self._reader.frames(indices[done:])

    def close(self) -> None:
        """Lets the file go."""
        self._reader.close()


def too_long(request: ClipRequest) -> str:
    """The message of a video that takes too long."""
    return (
        f"decoding {request.name} took longer than the limit of {request.timeout:g} s: it is damaged, or shorten it "
        "with video_start and video_end, or raise decode_timeout"
    )
