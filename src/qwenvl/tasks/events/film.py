"""A video, looked at a stretch at a time: which frames the model gets, and which second of the FILE it means.

A look is a row of frames that is shown to the model as a clip of its own. The model tells time by the pace at which it
believes frames to follow each other: frame k is at k / pace seconds. What it says is brought back through the frames'
own times, so that nothing of this shows in the result:

    frames of uneven times     a second between two frames is found between their own times
    a stretch of the file      its first frame is second 0 for the model, and times[0] in the file
    few frames a second        below SLOWEST the model is shown a time lapse: positions stay in the range it learned
                               (sparse frames told as such make its times come out short)
    many frames a second       above QUICKEST a slow motion: above two steps a second its positions are the same
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenvl.media import MediaPolicy, Video, VideoOptions
    from qwenvl.tasks.events.view import View

SLOWEST, QUICKEST = 1.0, 4.0  # frames a second that the model is told of
FEWEST = 4  # frames of a look, where the film has them
AT_ONCE = 512  # most frames read together
WIDER = 6  # times that a stretch with less than two frames is doubled


@dataclass(frozen=True)
class Look:
    """What the model is shown. video: frames with their seconds of the file, and the pace that the model is told as
    fps. begin, end: seconds of the file that the frames stand for."""

    video: Video
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long the clip is for the model."""
        return len(self.video.frames) / self.video.fps

    @property
    def step(self) -> float:
        """Seconds of the file from one frame to the next, on average."""
        return (self.end - self.begin) / len(self.video.frames)

    def file_seconds(self, seconds: float) -> float:
        """The second of the file that a second of the clip is."""
        return file_seconds(seconds, self.video.times, self.video.fps, self.end)


def file_seconds(seconds: float, times: tuple[float, ...], fps: float, end: float) -> float:
    """The second of the file at a second of a clip with frames of these times, shown `fps` a second; `end` is where the
    last frame's share of the file ends.

    Example: file_seconds(1.5, (10, 11, 13, 14), 1, 15) == 12.
    """
    place = max(0.0, seconds) * fps
    k = int(place)
    if k >= len(times) - 1:
        rest = min(1.0, place - (len(times) - 1))
        return times[-1] + rest * max(0.0, end - times[-1])
    return times[k] + (place - k) * (times[k + 1] - times[k])


class Film:
    """A video that is opened once and looked at often; a context manager, as addresses and bytes become a file for its
    time. source: what `read_video` takes, or a Video that was read.

    duration: seconds of the file. fps: its own frames a second, on average.
    """

    def __init__(self, source: Any, view: View, policy: MediaPolicy | None = None) -> None:
        from qwenvl.media import Video, VideoOptions, open_media, read_video
        from qwenvl.media.policy import DEFAULT_POLICY

        self._stack, self._view, self._policy = ExitStack(), view, policy or DEFAULT_POLICY
        self._frames: Video | None = None
        self._path: Path | None = None
        if isinstance(source, str | Path | bytes | bytearray):
            self._path = self._stack.enter_context(open_media(source, self._policy, "video"))
            # the whole film in two small frames: how long it is, and that it can be read
            seen = read_video(self._path, VideoOptions(nframes=2, max_pixels=view.min_pixels), self._policy)
            count = seen.indices[-1] + 1
        else:
            seen = source if isinstance(source, Video) else read_video(source, VideoOptions(), self._policy)
            self._frames, count = seen, len(seen.frames)
        # a Video that was read tells its times, in which the last frame lasts as long as the others
        last = seen.times[-1] + 1 / seen.fps if self._frames is not None else seen.duration
        self.begin, self.duration = (seen.times[0] if self._frames is not None else 0.0), last
        self.fps = count / max(self.duration - self.begin, 1e-9)

    def __enter__(self) -> Film:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def look(self, begin: float, end: float, frames: int, pace: float | None = None) -> Look:
        """At most `frames` frames, evenly spread from `begin` to `end` seconds of the file. pace: that the model is
        told, where it is not the frames' own within SLOWEST and QUICKEST."""
        begin, end = self._within(begin, end)
        return _look(self._read(begin, end, frames, frames), begin, end, pace)

    def windows(self, begin: float, end: float, fps: float, size: int, overlap: int) -> Iterator[Look]:
        """The stretch at `fps` frames a second in looks of `size` frames, of which `overlap` are those of the look
        before. Frames are read some hundred at a time."""
        stride = size - overlap
        group = max(1, (AT_ONCE - overlap) // stride) * stride + overlap
        at = begin
        while True:
            stop = min(end, at + group / fps)
            last = stop >= end - 0.5 / fps
            stop = end if last else stop
            count = min(group, max(2, round((stop - at) * fps)))
            low, high = self._within(at, stop)
            video = self._read(low, high, count, size)
            yield from _slices(video, low, high, size, overlap, last)
            if last:
                return
            at = stop - overlap / fps

    def _within(self, begin: float, end: float) -> tuple[float, float]:
        begin = min(max(begin, self.begin), self.duration)
        return begin, min(max(end, begin), self.duration)

    def _read(self, begin: float, end: float, count: int, size: int) -> Video:
        """An even number of frames, at least two, as large as those of a look of `size` frames may be. Where fewer than
        two lie between, those around them."""
        from qwenvl.media import MediaError, read_video

        count = max(2, count - count % 2)
        if self._frames is not None:
            return _chosen(self._frames, begin, end, count)
        assert self._path is not None
        limits = replace(self._view.options(min(size, count)), fps=SLOWEST, min_frames=count, max_frames=count)
        # limits hold for one look, not for all that are read together
        limits = replace(limits, total_pixels=count * (limits.max_pixels or 1))
        for _ in range(WIDER):
            try:
                options: VideoOptions = replace(limits, video_start=begin, video_end=end)
                return read_video(self._path, options, self._policy)
            except MediaError as error:
                if "expected at least 2" not in str(error):
                    raise
            middle, half = (begin + end) / 2, max(end - begin, 2 / self.fps)
            begin, end = self._within(middle - half, middle + half)
        return read_video(self._path, replace(limits, video_start=None, video_end=None), self._policy)


def _look(video: Video, begin: float, end: float, pace: float | None = None) -> Look:
    begin, end = min(begin, video.times[0]), max(end, video.times[-1])
    rate = len(video.frames) / max(end - begin, 1e-9)
    shown = min(max(rate, SLOWEST), QUICKEST) if pace is None else pace
    return Look(replace(video, fps=shown, duration=len(video.frames) / shown), begin, end)


def _chosen(video: Video, begin: float, end: float, count: int) -> Video:
    """`count` of the frames between two seconds, evenly spread."""
    first = max(0, bisect_right(video.times, begin + 1e-6) - 1)
    last = max(first, bisect_right(video.times, end + 1e-6) - 1)
    if last == first:
        first, last = max(0, last - 1), min(len(video.times) - 1, max(last, 1))
    count = min(count, (last - first + 1) // 2 * 2) or 2
    places = [round(first + (last - first) * k / (count - 1)) for k in range(count)]
    return _picked(video, places)


def _picked(video: Video, places: list[int]) -> Video:
    times, indices = tuple(video.times[k] for k in places), tuple(video.indices[k] for k in places)
    run = places == list(range(places[0], places[-1] + 1))
    frames = video.frames[places[0] : places[-1] + 1] if run else video.frames[places]
    return replace(video, frames=frames, times=times, indices=indices)


def _slices(video: Video, begin: float, end: float, size: int, overlap: int, last: bool) -> Iterator[Look]:
    """Looks of `size` frames; the last of a film also takes the few that would be left over."""
    count, stride = len(video.frames), size - overlap
    starts = list(range(0, max(1, count - overlap), stride))
    while len(starts) > 1 and count - starts[-1] < max(FEWEST, overlap + 2):
        starts.pop()
    if len(starts) > 1 and count - starts[-1] > size:
        starts.append(count - size)
    for k, first in enumerate(starts):
        stop = min(first + size, count)
        if k == len(starts) - 1 and stop < count:
            first, stop = max(0, count - size), count
        stop -= (stop - first) % 2
        part = _picked(video, list(range(first, stop)))
        until = end if stop >= count else video.times[stop]
        yield _look(part, begin if k == 0 else part.times[0], until)
