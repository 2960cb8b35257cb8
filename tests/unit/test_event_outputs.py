"""Events as subtitles, clips and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from films import SQUARE, Shape, write_film
from video_files import seen, write_video

from qwenvl.media import MediaPolicy, VideoOptions, read_video
from qwenvl.tasks.events import Event, contact_sheet, cut_clips, merge_overlaps, to_json, to_srt, to_vtt
from qwenvl.tasks.events.event import in_order, merge_same
from qwenvl.tasks.events.sheet import shown_time

pytestmark = pytest.mark.feature(88)
EVENTS = [
    Event(1.0, 3.2, "A man\nwalks --> in", 0.87654),
    Event(3725.5, 3725.5, 'He says "a < b & c"'),
    Event(4000.0, 4001.0, ""),
]


def test_json_reads_back() -> None:
    assert json.loads(to_json(EVENTS)) == [
        {"start": 1.0, "end": 3.2, "text": "A man\nwalks --> in", "confidence": 0.8765},
        {"start": 3725.5, "end": 3725.5, "text": 'He says "a < b & c"'},
        {"start": 4000.0, "end": 4001.0, "text": ""},
    ]


def test_subtitles() -> None:
    assert to_srt(EVENTS) == (
        "1\n00:00:01,000 --> 00:00:03,200\nA man walks -> in\n\n"
        '2\n01:02:05,500 --> 01:02:07,500\nHe says "a < b & c"\n\n'
        "3\n01:06:40,000 --> 01:06:42,000\n(no description)\n"
    )
    assert to_vtt(EVENTS[:2]) == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:03.200\nA man walks -&gt; in\n\n"
        '01:02:05.500 --> 01:02:07.500\nHe says "a &lt; b &amp; c"\n'
    )
    assert to_srt([]) == ""
    assert to_srt(EVENTS[1:2], shown=0.5).splitlines()[1].endswith("01:02:06,000")


def test_subtitles_are_ones_that_players_read(tmp_path: Path) -> None:
    """FFmpeg's own readers find each event, at its time."""
    for name, text in (("a.srt", to_srt(EVENTS)), ("a.vtt", to_vtt(EVENTS))):
        path = tmp_path / name
        path.write_text(text, "utf-8")
        with av.open(str(path)) as container:
            packets = [p for p in container.demux() if p.size]
        assert [round(float(p.pts * p.time_base), 3) for p in packets] == [1.0, 3725.5, 4000.0]
        assert [round(float(p.duration * p.time_base), 3) for p in packets] == [2.2, 2.0, 2.0]


def test_overlaps_become_one() -> None:
    events = [Event(5, 6, "c", 0.5), Event(0, 3, "a", 0.2), Event(2, 4, "b", 0.9), Event(4, 4.5, "b")]
    assert merge_overlaps(events) == [Event(0, 4.5, "a; b", 0.9), Event(5, 6, "c", 0.5)]
    assert [(e.start, e.end) for e in merge_overlaps(events, gap=0.5)] == [(0, 6)]
    with pytest.raises(ValueError, match="gap=-1"):
        merge_overlaps(events, gap=-1)


def test_order_and_copies() -> None:
    events = [Event(2, 3, "b"), Event(1, 2, "a", 0.1), Event(1, 2, "a", 0.7), Event(1, 1.5, "a")]
    assert in_order(events) == [Event(1, 1.5, "a"), Event(1, 2, "a", 0.7), Event(2, 3, "b")]


def test_what_two_windows_tell_is_one_event() -> None:
    """The same words going on over the border are one event; other words, and the same later, are not."""
    events = [
        Event(0, 10, "A man walks."),
        Event(9.5, 14, "a man walks."),
        Event(20, 22, "A man walks."),
        Event(9, 14, "Rain"),
    ]
    assert [(e.start, e.end, e.text) for e in merge_same(events, gap=1.0)] == [
        (0, 14, "A man walks."),
        (9, 14, "Rain"),
        (20, 22, "A man walks."),
    ]


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames at 10 a second, a keyframe every tenth, none of the others reordered."""
    folder = tmp_path_factory.mktemp("grey")
    return write_video(folder / "grey.mp4", options={"g": "10", "bf": "0", "sc_threshold": "0"})


def frames_of(path: Path) -> tuple[list[int], list[float]]:
    """Which frames a file has, and when."""
    with av.open(str(path)) as container:
        found = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    return seen(np.stack([f for _, f in found])), [round(t, 3) for t, _ in found]


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(video=0) if p.size]


def test_a_clip_from_a_keyframe_is_copied(grey: Path, tmp_path: Path) -> None:
    (clip,) = cut_clips(grey, [Event(1.0, 1.8, "x")], tmp_path, least=0.2)
    assert clip.name == "grey-001.mp4"
    assert packets_of(clip) == packets_of(grey)[10:18]
    assert frames_of(clip) == (list(range(10, 18)), [k / 10 for k in range(8)])


def test_other_clips_begin_and_end_with_the_very_frame(grey: Path, tmp_path: Path) -> None:
    spans = [(0.75, 1.5), (0.7, 1.5), (1.35, 1.55), (2.5, 2.9), (0.0, 0.6)]
    wanted = [range(7, 15), range(7, 15), range(13, 16), range(25, 29), range(6)]
    clips = cut_clips(grey, [Event(a, b, "") for a, b in spans], tmp_path / "new" / "folder", least=0.2)
    assert [path.name for path in clips] == [f"grey-00{k}.mp4" for k in range(1, 6)]
    for clip, frames in zip(clips, wanted, strict=True):
        assert frames_of(clip) == (list(frames), [k / 10 for k in range(len(frames))])


def test_frames_out_of_order_are_not_copied_by_half(tmp_path: Path) -> None:
    """With B-frames a clip that ends before the frame that they need is encoded again; others are copied."""
    path = write_video(tmp_path / "b.mp4", options={"g": "10", "bf": "2", "sc_threshold": "0", "b-adapt": "0"})
    with av.open(str(path)) as container:
        order = [round(p.pts * p.time_base * 10) for p in container.demux(video=0) if p.size]
    copied = []
    for end in range(11, 21):
        (clip,) = cut_clips(path, [Event(1.0, end / 10, "")], tmp_path / f"{end}", least=0.0)
        assert frames_of(clip)[0] == list(range(10, end))
        first, count = order.index(10), end - 10
        whole = sorted(order[first : first + count]) == list(range(10, end))
        assert (packets_of(clip) == packets_of(path)[first : first + count]) == whole
        copied.append(whole)
    assert 3 <= sum(copied) < 8


def test_margins_and_moments(grey: Path, tmp_path: Path) -> None:
    clips = cut_clips(grey, [Event(1.5, 1.5, ""), Event(0.1, 0.1, ""), Event(2.95, 2.95, "")], tmp_path)
    assert [len(packets_of(c)) for c in clips] == [10, 10, 6]  # a second around a moment, as far as there is one
    (clip,) = cut_clips(grey, [Event(1.5, 1.7, "")], tmp_path, margin=0.2, least=0)
    assert len(packets_of(clip)) == 6
    with pytest.raises(ValueError, match="margin=-1"):
        cut_clips(grey, [], tmp_path, margin=-1)


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    stamps = [0, 40, 80, 500, 900, 1000, 1700, 1750]
    path = write_video(tmp_path / "v.mkv", number=8, pts=stamps, options={"g": "100", "bf": "0"})
    (clip,) = cut_clips(path, [Event(0.2, 1.72, "")], tmp_path / "out", least=0)
    assert clip.suffix == ".mkv"
    assert frames_of(clip) == ([2, 3, 4, 5, 6], [0, 0.42, 0.82, 0.92, 1.62])


def test_sound_is_kept(tmp_path: Path) -> None:
    """The tone of each second has a pitch of its own."""
    path = write_film(tmp_path / "s.mp4", 6, [SQUARE, Shape(2, 4)], sound=True)
    (clip,) = cut_clips(path, [Event(2.3, 4.3, "")], tmp_path / "out")
    with av.open(str(clip)) as container:
        stream = container.streams.audio[0]
        parts = [(f.time, f.to_ndarray()[0]) for f in container.decode(stream)]
    assert parts[0][0] == pytest.approx(0.0, abs=0.15)
    wave = np.concatenate([p for _, p in parts])
    assert len(wave) / 16000 == pytest.approx(2.0, abs=0.2)
    middle = wave[int((1.2 - parts[0][0]) * 16000) :][:8000]  # second 3.5 of the film
    assert np.argmax(np.abs(np.fft.rfft(middle))) * 2 == pytest.approx(600, abs=6)


def test_odd_sides_become_even(tmp_path: Path) -> None:
    whole = {"pixels": "yuv444p", "size": (47, 63), "number": 12}
    path = write_video(tmp_path / "odd.mkv", codec="ffv1", options={"g": "1"}, **whole)
    (copied,) = cut_clips(path, [Event(0.3, 0.9, "")], tmp_path / "out", least=0)
    assert packets_of(copied) == packets_of(path)[3:9]
    path = write_video(tmp_path / "odd.mp4", options={"g": "12"}, **whole)
    (clip,) = cut_clips(path, [Event(0.3, 0.9, "")], tmp_path / "out", least=0)
    assert frames_of(clip)[0] == [3, 4, 5, 6, 7, 8]
    with av.open(str(clip)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (62, 46)


@pytest.mark.parametrize("begin", [0.0, 0.3])
def test_turned_frames_are_cut_upright(tmp_path: Path, begin: float) -> None:
    """As phones write them: the file says how to turn what is in it. Copied, and encoded again."""
    half = np.zeros((48, 64, 3), np.uint8)
    half[:, 32:] = 200
    path = write_video(tmp_path / "turned.mp4", options={"g": "12", "bf": "0"}, pictures=[half] * 12)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # the matrix of the track header: a quarter turn
    data[at : at + 36] = b"".join(
        int(v).to_bytes(4, "big", signed=True) for v in (0, 65536, 0, -65536, 0, 0, 0, 0, 2**30)
    )
    path.write_bytes(data)
    whole = read_video(path, VideoOptions(nframes=2, resize=False), MediaPolicy(isolate_videos=False))
    assert whole.frames.shape[1:3] == (64, 48)
    (clip,) = cut_clips(path, [Event(begin, begin + 0.6, "")], tmp_path / "out", least=0)
    video = read_video(clip, VideoOptions(nframes=2, resize=False), MediaPolicy(isolate_videos=False))
    assert video.frames.shape[1:3] == (64, 48)
    assert np.abs(video.frames[0].astype(int) - whole.frames[0]).mean() < 4
    assert len(packets_of(clip)) == 6


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.mp4"
    path.write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"no\.mp4 is not a video"):
        cut_clips(path, [Event(0, 1, "")], tmp_path)
    with pytest.raises(ValueError, match=r"no\.mp4 is not a video"):
        contact_sheet(path, [Event(0, 1, "")])


def test_the_sheet_shows_a_frame_of_each(grey: Path) -> None:
    events = [Event(1.0, 1.4, "a"), Event(0.2, 0.2, "many words " * 40), Event(2.9, 99.0, "W" * 200), Event(0, 0, "")]
    sheet = contact_sheet(grey, events, columns=3, width=120)
    assert sheet.mode == "RGB"
    assert sheet.width == 10 + 3 * 130
    pixels = np.asarray(sheet)
    centres = [(55, 70), (55, 200), (55, 330)]
    assert [round(pixels[y, x].mean() / 8) for y, x in centres] == [12, 2, 29]
    assert (pixels[:, -10:] == 250).any(axis=2).all()  # no text runs over the border
    with pytest.raises(ValueError, match="0 events"):
        contact_sheet(grey, [])
    with pytest.raises(ValueError, match="columns=0"):
        contact_sheet(grey, events, columns=0)


def test_times_of_the_sheet() -> None:
    assert shown_time(Event(62.54, 62.54, "")) == "0:01:02.5"
    assert shown_time(Event(62.54, 3700, "")) == "0:01:02.5 - 1:01:40.0"
