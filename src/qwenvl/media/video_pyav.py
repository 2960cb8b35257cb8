"""Frames of a file by PyAV: an index of all frames without decoding, then only what the wanted frames need.

Vocabulary: pts, the time of a frame in units of the stream; a run, the packets from one keyframe to the last frame
wanted after it.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from qwenvl.media.policy import MediaError

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,live_flv,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ogg,gif,apng,nut,"
    "ivf,yuv4mpegpipe,mxf,dv"
)  # none that opens other files or addresses, as playlists do
NEAR = 24  # packets: reading on over so few is cheaper than emptying the decoder and seeking
MOST_PACKETS = 10_000_000  # 46 hours at 60 frames a second
MICRO = 1_000_000
LOST = 4  # at most one frame in LOST may be replaced by its neighbour
AGREE = 0.005  # relative: the header's frame rate is believed when the frames' own times agree so well


@dataclass
class Index:
    """All frames of a stream. pts: ascending. order: for each pts, which packet of the file holds it. keys: (pts, dts,
    packet number) of the keyframes, ascending. seekable: packets have times of their own."""

    pts: np.ndarray
    order: np.ndarray
    keys: list[tuple[int, int, int]]
    seekable: bool


class PyAVReader:
    """A video file, opened and indexed. times: seconds of every frame from the start of the file; fps: their mean
    rate; width, height: upright. Raises MediaError."""

    def __init__(self, path: Path, name: str, max_pixels: int) -> None:
        self.name, self._path, self._max_pixels = name, path, max_pixels
        self.notes: list[str] = []
        self._errors = 0
        self._open()
        width, height = int(self._stream.codec_context.width), int(self._stream.codec_context.height)
        self._check_size(width, height)
        self._index = self._scan()
        self._zero, start = int(self._index.pts[0]), self._container.start_time
        if self._container.streams.audio and start is not None:  # which may begin before the frames
            begin = round(start / MICRO / self._base)
            self._zero = begin if 0 <= (self._zero - begin) * self._base < 3600 else self._zero
        self.times = (self._index.pts - self._zero) * self._base.numerator / self._base.denominator
        self.fps = self._rate()
        self.height, self.width = next(self._decoded([0]))[1].shape[:2]

    def _open(self) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        try:
            self._container: Any = av.open(f"file:{self._path}", options=options, metadata_errors="replace")
        except Exception as error:
            raise MediaError(f"{self.name} is not a video that can be read: {_short(error)}") from None
        still = getattr(getattr(av.stream, "Disposition", None), "attached_pic", None)
        streams = [s for s in self._container.streams.video if still is None or not s.disposition & still]
        if not streams:
            self._container.close()
            raise MediaError(f"{self.name} has no pictures, only sound or text: expected a video")
        self._stream: Any = streams[0]
        if self._stream.codec_context is None:
            raise MediaError(f"{self.name} has a codec that is not known here: convert it to H.264 in mp4")
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = 0  # as many as there are cores, at most 16
        self._stream.codec_context.options = {"max_pixels": str(self._max_pixels)}
        self._reformatter = VideoReformatter()

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise MediaError(
                f"{self.name} has frames of {width} x {height} = {width * height} pixels, the limit is "
                f"{self._max_pixels}: make it smaller"
            )

    def _packets(self) -> Iterator[Any]:
        """The packets of the stream in the order of the file; an unreadable rest counts as the end."""
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError):
                return
            if packet is None:
                return
            if packet.size:
                yield packet

    def _scan(self) -> Index:
        """Reads every packet once; nothing is decoded."""
        form, codec = self._container.format.name, self._stream.codec_context.name
        guessed = form == "avi" and codec in ("h264", "hevc")  # its packets have no pts, and those made up are wrong
        pts, order, keys = array("q"), array("q"), list[tuple[int, int, int]]()
        number, partial, timed, whole = 0, 0, False, not guessed
        for packet in self._packets():
            stamps = [stamp for stamp in (packet.pts, packet.dts) if stamp is not None]
            timed = timed or bool(stamps)
            whole = whole and packet.pts is not None
            time = (stamps[-1] if guessed else stamps[0]) if timed and stamps else number
            if packet.is_keyframe:
                keys.append((time, stamps[-1] if stamps else time, number))
            if not packet.is_discard:  # cut away by an edit list, but others may need it
                pts.append(time)
                order.append(number)
            number, partial = number + 1, partial + packet.is_corrupt
            if number > MOST_PACKETS:
                raise MediaError(f"{self.name} has more than {MOST_PACKETS} frames: cut it into parts")
        if not pts:
            raise MediaError(f"{self.name} holds no frames that can be read: it is empty, damaged or cut off")
        promised = int(self._stream.frames)
        loose = 0 if form.startswith("mov") else 2  # others count less exactly
        if promised > number - partial + loose:
            raise MediaError(
                f"{self.name} is cut off: its header promises {promised} frames, {number - partial} are there; get the "
                "file again"
            )
        self._base = Fraction(self._stream.time_base)
        if not timed:  # bare H.264 and the like
            self._base = 1 / Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)
        unique, where = np.unique(np.array(pts, np.int64), return_index=True)
        return Index(unique, np.array(order, np.int64)[where], sorted(keys), whole)

    def _rate(self) -> float:
        known = [float(rate) for rate in (self._stream.average_rate, self._stream.guessed_rate) if rate]
        span = float(self.times[-1] - self.times[0])
        if span <= 0:
            return known[0] if known else 1.0
        measured = (len(self.times) - 1) / span
        return next((rate for rate in known[:1] if abs(rate - measured) < AGREE * measured), measured)

    @property
    def duration(self) -> float:
        """Seconds from the first frame's begin to the last one's end."""
        return float(self.times[-1] - self.times[0]) + 1 / self.fps

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds, upright RGB uint8 [H, W, 3]) of the frames asked for, which ascend. Raises MediaError."""
        for pts, frame in self._decoded(indices):
            yield (pts - self._zero) * self._base.numerator / self._base.denominator, frame

    def _decoded(self, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """The frames asked for; one that cannot be decoded is replaced by its neighbour, within reason."""
        last: tuple[int, np.ndarray] | None = None
        waiting = lost = 0
        for i, found in zip(indices, self._wanted(indices), strict=True):
            if found is not None:
                last = (found[0], self._rgb(found[1]))
            lost += found is None or (found[0] != self._index.pts[i] and self._errors > 0)
            waiting += 1
            if last is not None:
                yield from itertools.repeat(last, waiting)
                waiting = 0
        if waiting or lost * LOST > len(indices):
            raise MediaError(f"{self.name} is damaged: {lost} of {len(indices)} frames cannot be decoded")
        if lost:
            self.notes.append(f"{self.name} is damaged: {lost} of {len(indices)} frames are copies of their neighbours")

    def _wanted(self, indices: Sequence[int]) -> Iterator[tuple[int, Any] | None]:
        """For each index its frame, or None where it cannot be had."""
        if not self._index.seekable or not self._index.keys:
            yield from self._in_order(indices)
            return
        for run in self._runs(indices):
            yield from self._decode_run(*run)

    def _runs(self, indices: Sequence[int]) -> Iterator[tuple[tuple[int, int, int], list[int]]]:
        """Keyframe and the pts wanted from it on, run after run."""
        starts = [key[0] for key in self._index.keys]
        key, wanted, reached = None, list[int](), 0
        for i in indices:
            pts = int(self._index.pts[i])
            own = self._index.keys[max(bisect_right(starts, pts) - 1, 0)]
            if key is not None and own != key and own[2] - reached > NEAR:
                yield key, wanted
                key, wanted = None, []
            if key is None:
                key, reached = own, 0
            wanted.append(pts)
            reached = max(reached, int(self._index.order[i]))
        if key is not None:
            yield key, wanted

    def _decode_run(self, key: tuple[int, int, int], wanted: list[int]) -> Iterator[tuple[int, Any] | None]:
        """The frames of one run. Packets whose frame no other needs are skipped unless wanted themselves."""
        context, missing = self._stream.codec_context, set(wanted)
        left, previous, position = set(missing), None, 0

        def take(frames: Sequence[Any]) -> Iterator[tuple[int, Any] | None]:
            nonlocal previous, position
            for frame in frames:
                pts = frame.pts
                if pts is None:
                    continue
                while position < len(wanted) and pts > wanted[position]:  # its own frame never came
                    yield (previous.pts, previous) if previous is not None else (pts, frame)
                    position += 1
                previous = frame
                while position < len(wanted) and pts == wanted[position]:
                    yield pts, frame
                    position += 1

        for packet in self._from_key(key):
            needed = packet.pts in left
            context.skip_frame = "DEFAULT" if needed else "NONREF"
            yield from take(self._feed(packet))
            left.discard(packet.pts)
            if not left or position == len(wanted):
                break
        if position < len(wanted):
            yield from take(self._feed(None))
        for _ in range(position, len(wanted)):
            yield None if previous is None else (previous.pts, previous)
        context.flush_buffers()

    def _feed(self, packet: Any) -> Sequence[Any]:
        """Frames that a packet brings out; damaged packets bring none."""
        import av

        try:
            return self._stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except (av.error.FFmpegError, ValueError):
            self._errors += 1
            return ()

    def _from_key(self, key: tuple[int, int, int]) -> Iterator[Any]:
        """Packets from a keyframe on. Seeks land where they like, so what was found is checked."""
        import av

        pts, stamp, number = key
        second = int(1 / self._stream.time_base)
        for target in dict.fromkeys((pts, stamp, pts - second, pts - 10 * second)):
            try:
                self._container.seek(target, stream=self._stream, backward=True)
            except (av.error.FFmpegError, OSError):
                continue
            packets = self._packets()
            for packet in packets:
                if packet.pts == pts and packet.is_keyframe:
                    yield packet
                    yield from packets
                    return
                if packet.dts is not None and packet.dts > stamp:
                    break
        self.close()
        self._open()
        yield from itertools.islice(self._packets(), number, None)

    def _in_order(self, indices: Sequence[int]) -> Iterator[tuple[int, Any] | None]:
        """The frames by counting, for files whose packets carry no times of their own."""
        self.close()
        self._open()
        targets = iter(indices)
        target, count, previous = next(targets, None), 0, None
        for packet in itertools.chain(self._packets(), (None,)):
            for frame in self._feed(packet):
                while target is not None and target == count:
                    yield int(self._index.pts[count]), frame
                    target = next(targets, None)
                previous = frame
                count += 1
            if target is None:
                return
        while target is not None:
            yield None if previous is None else (int(self._index.pts[min(target, count - 1)]), previous)
            target = next(targets, None)

    def _rgb(self, frame: Any) -> np.ndarray:
        """Upright RGB, transparency on white."""
        self._check_size(frame.width, frame.height)
        clear = any(component.is_alpha for component in frame.format.components)
        pixels: np.ndarray = self._reformatter.reformat(frame, format="rgba" if clear else "rgb24").to_ndarray()
        if clear:
            alpha = pixels[..., 3:].astype(np.uint16)
            pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels

    def close(self) -> None:
        """Lets the file go."""
        self._container.close()


def _short(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
    return f"{text}; expected mp4, mov, mkv, webm, avi, wmv, flv or mpeg"
