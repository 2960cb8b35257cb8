"""Parts of a video file -> files of their own.

A part is copied as it is, without loss, where its first frame is a keyframe and none of its frames needs one behind its
end; otherwise its frames are encoded again (H.264), so that it begins and ends with the very frame. Sound is copied.
Subtitles and other tracks are left out. Frames keep their own times.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from qwenvl.tasks.events.event import Event

LEAST = 1.0  # seconds of a clip; a moment gets half of it on both sides
KEPT = (".mp4", ".m4v", ".mov", ".mkv")  # containers that are kept; others become Matroska, which takes every codec
QUALITY = {"crf": "18", "preset": "veryfast"}
EARLY = 0.5  # seconds of sound that is read before the begin


def cut_clips(
    video: str | Path,
    events: Sequence[Event],
    folder: str | Path,
    margin: float = 0.0,
    least: float = LEAST,
    name: str | None = None,
) -> list[Path]:
    """A file for each event in `folder` (made where it is not there), in their order: NAME-001.mp4 and so on.

    video: a local file, decoded in this process. name: in place of the file's own NAME. margin: seconds added on both
    sides; a clip shorter than `least` seconds is widened evenly. Each shows what is seen from begin to end: its first
    frame is the one that stands at the begin, its last the one before the end. Files of the same names are replaced.
    Raises ValueError (MediaError) for a file that cannot be read, and for a margin below 0; OSError where it cannot be
    written.
    """
    if not (margin >= 0 and least >= 0):
        raise ValueError(f"margin={margin}, least={least}: expected seconds, 0 or more")
    path, target = Path(video), Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower() if path.suffix.lower() in KEPT else ".mkv"
    files = []
    with closing(_Source(path)) as source:
        for number, event in enumerate(events, 1):
            begin, end = widened(event.start - margin, event.end + margin, least)
            files.append(target / f"{name or path.stem}-{number:03d}{suffix}")
            source.cut(begin, end, files[-1])
    return files


def widened(begin: float, end: float, least: float) -> tuple[float, float]:
    """At least `least` seconds, evenly on both sides, and not before 0."""
    more = max(0.0, least - (end - begin)) / 2
    begin, end = begin - more, end + more
    return max(0.0, begin), end - min(0.0, begin)


@dataclass(frozen=True)
class _Packet:
    """pts: when its frame is shown, in units of the stream. usable: known in time, whole, and not cut away."""

    pts: int
    key: bool
    usable: bool


class _Source:
    """An opened file and its packets in the order of the file."""

    def __init__(self, path: Path) -> None:
        import av

        from qwenvl.media.policy import DEFAULT_POLICY, MediaError
        from qwenvl.media.video_pyav import FORMATS, PyAVReader

        self._path = path
        with closing(PyAVReader(path, str(path), DEFAULT_POLICY.max_pixels)) as reader:
            times = np.asarray(reader.times)
            self._rate = reader.fps
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        self._container: Any = av.open(f"file:{path}", options=options, metadata_errors="replace")
        self._video: Any = self._container.streams.video[0]
        self._audio: Any = next(iter(self._container.streams.audio), None)
        self._base = Fraction(self._video.time_base or Fraction(1, 1000))
        self._packets = [
            _Packet(p.pts if p.pts is not None else -1, p.is_keyframe, p.pts is not None and not p.is_discard)
            for p in self._demux(self._video)
        ]
        shown = sorted({p.pts for p in self._packets if p.usable})
        if not shown:
            self._container.close()
            raise MediaError(f"{path} has no times in its frames: convert it to mp4 to cut it")
        self._shown = shown
        # second 0 of the file is where read_video has it: before the first frame, where sound begins earlier
        self._zero = shown[0] - round(Fraction(float(times[0])) / self._base)

    def _demux(self, *streams: Any) -> Iterator[Any]:
        for packet in self._container.demux(*streams):
            if packet.size:
                yield packet

    def _pts(self, seconds: float) -> int:
        return self._zero + round(Fraction(seconds) / self._base)

    def cut(self, begin: float, end: float, target: Path) -> None:
        """The frames shown from begin to end seconds into a file."""
        first = max(0, bisect_right(self._shown, self._pts(begin)) - 1)
        last = max(first, bisect_left(self._shown, self._pts(end)) - 1)
        low, high = self._shown[first], self._shown[last]
        from_packet = self._copyable(low, high)
        import av

        with av.open(str(target), "w") as out:
            if from_packet:
                self._copy(out, low, high, last - first + 1)
            else:
                self._encode(out, low, high)

    def _copyable(self, low: int, high: int) -> bool:
        """Whether the packets from `low` on are, in the order of the file, those of the part and then others."""
        first = next((k for k, p in enumerate(self._packets) if p.usable and p.key and p.pts == low), None)
        if first is None:
            return False
        inside = [low <= p.pts <= high for p in self._packets[first:]]
        count = inside.index(False) if False in inside else len(inside)
        wanted = bisect_right(self._shown, high) - bisect_left(self._shown, low)
        return count == wanted and not any(inside[count:])

    def _copy(self, out: Any, low: int, high: int, count: int) -> None:
        video, audio = self._template(out, self._video), self._template(out, self._audio)
        self._container.seek(low, stream=self._video, backward=True)
        began, sound = False, self._sound(low, high)
        for packet in self._both():
            if packet.stream is self._audio:
                if audio is not None and sound(packet):
                    _send(out, packet, audio, self._start(low, packet))
                continue
            began = began or packet.pts == low
            if began and count and low <= packet.pts <= high:
                count -= 1
                _send(out, packet, video, low)
            elif began and not count and (audio is None or self._past(packet, high)):
                return

    def _encode(self, out: Any, low: int, high: int) -> None:
        """Decode from the keyframe before, encode what is wanted."""
        import av

        audio = self._template(out, self._audio)
        self._container.seek(low, stream=self._video, backward=True)
        encoder: Any = None
        sound = self._sound(low, high)
        held: list[Any] = []
        for packet in [*self._until(low, high), None]:
            if packet is not None and packet.stream is self._audio:
                if audio is not None and sound(packet):
                    held.append(packet)
                continue
            try:
                frames = self._video.codec_context.decode(packet)
            except av.error.FFmpegError:
                continue  # a damaged frame
            for frame in frames:
                if frame.pts is None or not low <= frame.pts <= high:
                    continue
                encoder = encoder or self._encoder(out, frame)
                out.mux(encoder.encode(_upright(frame, frame.pts - low, self._base, encoder)))
        if encoder is not None:
            out.mux(encoder.encode(None))
        for packet in held:
            _send(out, packet, audio, self._start(low, packet))
        self._video.codec_context.flush_buffers()

    def _until(self, low: int, high: int) -> Iterator[Any]:
        """Packets of both streams from the keyframe before `low` to a second behind `high`."""
        for packet in self._both():
            if packet.stream is not self._audio and self._past(packet, high):
                return
            yield packet

    def _past(self, packet: Any, high: int) -> bool:
        stamp = packet.dts if packet.dts is not None else packet.pts
        return stamp is not None and (stamp - high) * self._base > 1

    def _both(self) -> Iterator[Any]:
        yield from self._demux(*(s for s in (self._video, self._audio) if s is not None))

    def _sound(self, low: int, high: int) -> Any:
        """Whether a packet of sound lies in the part."""
        following = bisect_right(self._shown, high)
        after = self._shown[following] if following < len(self._shown) else high + round(1 / self._rate / self._base)
        first, last = low * self._base, after * self._base

        def inside(packet: Any) -> bool:
            return packet.pts is not None and first <= packet.pts * Fraction(packet.time_base) < last

        return inside

    def _start(self, low: int, packet: Any) -> int:
        """The begin of the part in units of another stream."""
        return round(low * self._base / Fraction(packet.time_base))

    def _template(self, out: Any, stream: Any) -> Any:
        if stream is None:
            return None
        if hasattr(out, "add_stream_from_template"):
            return out.add_stream_from_template(stream)
        return out.add_stream(template=stream)

    def _encoder(self, out: Any, frame: Any) -> Any:
        """An H.264 stream for frames like this one; their sides become even."""
        from av.codec import codecs_available

        name = "libx264" if "libx264" in codecs_available else "mpeg4"
        rate = Fraction(self._rate).limit_denominator(1001)
        stream = out.add_stream(name, rate=rate, options=QUALITY if name == "libx264" else {"q": "2"})
        turned = round(getattr(frame, "rotation", 0) / 90) % 2
        width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
        stream.width, stream.height, stream.pix_fmt = max(2, width // 2 * 2), max(2, height // 2 * 2), "yuv420p"
        stream.codec_context.time_base = self._base
        return stream

    def close(self) -> None:
        """Lets the file go."""
        self._container.close()


def _send(out: Any, packet: Any, stream: Any, start: int) -> None:
    """A packet into another file, `start` earlier."""
    packet.stream = stream
    packet.pts -= start
    if packet.dts is not None:
        packet.dts -= start
    out.mux(packet)


def _upright(frame: Any, pts: int, base: Fraction, encoder: Any) -> Any:
    """The frame as it is shown, in the encoder's size and colours."""
    import av

    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    if turns:
        frame = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns)), format="rgb24"
        )
    frame = frame.reformat(width=encoder.width, height=encoder.height, format="yuv420p")
    frame.pts, frame.time_base, frame.pict_type = pts, base, 0
    return frame
