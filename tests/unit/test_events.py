"""When things happen in a file: what the model is shown, how its times become those of the file, and the search in
long films, with a stand-in for the model that sees the frames themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from films import SQUARE, Shape, is_red, write_film
from scripted_assistant import Asked, ScriptedAssistant, Written

from qwenvl.media import MediaPolicy, Video, VideoOptions, read_video
from qwenvl.media.sampling import frame_size
from qwenvl.tasks.events import Event, events
from qwenvl.tasks.events.asking import EVENTS_PROMPT, QUERY_PROMPT, Told
from qwenvl.tasks.events.film import Film, file_seconds
from qwenvl.tasks.events.search import count_windows, linked, overlap_of, rate_for
from qwenvl.tasks.events.view import MIN_PIXELS, TOTAL_PIXELS, View, view_of

pytestmark = pytest.mark.feature(76, 88)
HERE = MediaPolicy(isolate_videos=False)
QUERY = "red circle appears"
ERROR = 0.65  # seconds: a step at 2 frames a second, and a frame of the film


def watcher(asked: Asked) -> str:
    """Answers the grounding prompt from the frames, in the seconds that the model believes in."""
    video = asked.media[0]
    red = [is_red(frame) for frame in video.frames]
    if not any(red):
        return "The described content does not occur in the video."
    first, last = red.index(True), len(red) - 1 - red[::-1].index(True)
    return f"The event occurs between {first / video.fps:.2f} and {(last + 1) / video.fps:.2f} seconds."


def appears(asked: Asked) -> str:
    """The same as the bundled model says it."""
    video = asked.media[0]
    red = [is_red(frame) for frame in video.frames]
    if not any(red):
        return "The red circle, orange."
    if red[0]:
        return "The red circle is there from the start."
    return f"The red circle appears at {red.index(True) / video.fps:g} seconds."


def clip(times: Sequence[float], fps: float = 2.0) -> Video:
    frames = np.zeros((len(times), 28, 28, 3), np.uint8)
    return Video(frames, tuple(times), tuple(range(len(times))), fps, times[-1] + 1 / fps, 28, 28)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 seconds at 10 frames a second; the red circle is seen from 7.3 to 12.6 s."""
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4", 20, [SQUARE, Shape(7.3, 12.6)], rate=10)


# ---- time


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, 10), (0.5, 10.5), (1, 11), (1.5, 12), (2.25, 13.25), (3, 14), (3.5, 14.5), (4, 15), (99, 15), (-1, 10)],
)
def test_seconds_of_a_clip_are_found_between_its_frames(seconds: float, expected: float) -> None:
    assert file_seconds(seconds, (10, 11, 13, 14), 1, 15) == pytest.approx(expected)


@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_times_are_right_at_any_rate(film: Path, fps: float) -> None:
    """Also below and above the rates that the model is told of."""
    assistant = ScriptedAssistant(watcher)
    (found,) = events(assistant, film, QUERY, fps=fps, policy=HERE)
    assert found.start == pytest.approx(7.3, abs=1.01 / fps)
    assert found.end == pytest.approx(12.6, abs=1.01 / fps)
    (asked,) = assistant.asked
    assert len(asked.media[0].frames) == max(2, round(20 * fps))
    assert 1 <= asked.media[0].fps <= 4  # the pace it is told
    assert asked.question == QUERY_PROMPT.replace("{query}", QUERY)


@pytest.mark.parametrize(("start", "end"), [(5.0, None), (6.15, 15.0), (0.0, 9.0), (7.0, 8.0), (11.9, 14.2)])
def test_parts_of_a_file_are_told_in_seconds_of_the_file(film: Path, start: float, end: float | None) -> None:
    (found,) = events(ScriptedAssistant(watcher), film, QUERY, start=start, end=end, fps=8, policy=HERE)
    assert found.start == pytest.approx(max(start, 7.3), abs=0.15)
    assert found.end == pytest.approx(min(end or 20, 12.6), abs=0.15)
    assert found.text == QUERY


def test_frames_of_uneven_times(tmp_path: Path) -> None:
    """Two seconds of many frames, eight of few: the model believes that they follow each other evenly."""
    times = [k / 20 for k in range(40)] + [2 + k / 2 for k in range(16)]
    path = write_film(tmp_path / "v.mp4", 10, [SQUARE, Shape(6.0, 8.0)], times=times)
    assistant = ScriptedAssistant(watcher)
    (found,) = events(assistant, path, QUERY, fps=4, policy=HERE)
    assert found.start == pytest.approx(6.0, abs=0.51)
    assert found.end == pytest.approx(8.0, abs=0.51)
    told = [float(x) for x in watcher(assistant.asked[0]).split() if x[0].isdigit()]
    assert abs(told[0] - 6) > 1  # what the model said is not the time of the file
    (found,) = events(ScriptedAssistant(watcher), path, QUERY, start=5, end=9.5, fps=4, policy=HERE)
    assert (found.start, found.end) == (pytest.approx(6, abs=0.51), pytest.approx(8, abs=0.51))


def test_a_video_that_was_read_and_a_list_of_frames(film: Path) -> None:
    video = read_video(film, VideoOptions(fps=5, video_start=4, video_end=16), HERE)
    (found,) = events(ScriptedAssistant(watcher), video, QUERY, fps=5)
    assert (found.start, found.end) == (pytest.approx(7.3, abs=0.21), pytest.approx(12.6, abs=0.21))
    (found,) = events(ScriptedAssistant(watcher), video, QUERY, fps=5, start=8, end=10)
    assert (found.start, found.end) == (pytest.approx(8, abs=0.21), pytest.approx(10, abs=0.25))
    (found,) = events(ScriptedAssistant(watcher), video.frames, QUERY)  # 2 frames a second, as nobody says more
    assert found.start == pytest.approx((7.3 - 4) * 5 / 2, abs=0.6)


def test_bytes_are_read(film: Path) -> None:
    (found,) = events(ScriptedAssistant(watcher), film.read_bytes(), QUERY, policy=HERE)
    assert found.start == pytest.approx(7.3, abs=0.51)


def test_no_stretch_is_too_short(film: Path) -> None:
    """Less than two frames: those around it are shown."""
    found = events(ScriptedAssistant(watcher), film, QUERY, start=9.01, end=9.05, policy=HERE)
    assert len(found) == 1
    assert 8.5 < found[0].start <= found[0].end < 10


# ---- how much is shown


def fake(shortest: int, longest: int, frames: int = 768, positions: int = 128000) -> Any:
    size = {"shortest_edge": shortest, "longest_edge": longest}
    processor = SimpleNamespace(video_processor=SimpleNamespace(size=size, max_frames=frames))
    return SimpleNamespace(
        processor=processor, model=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
    )


def test_what_is_recommended_within_what_the_checkpoint_takes() -> None:
    assert view_of(object()) == View()
    official = view_of(fake(3136, 12845056))
    assert official == View(768, MIN_PIXELS, 768 * 784, TOTAL_PIXELS)
    assert official.options().max_pixels == 20480 * 784 * 2 // 768  # 140 x 252 and the like
    assert official.options(60).max_pixels == 20480 * 784 * 2 // 60 // 1
    small = view_of(fake(12544, 38416, 768, 4096))
    assert (small.min_pixels, small.max_pixels, small.frames) == (12544, 38416, 384)
    assert small.total_pixels == 3072 * 784
    assert view_of(fake(12544, 38416, 12)).frames == 12
    assert view_of(fake(12544, 38416), max_frames=13).frames == 12
    with pytest.raises(ValueError, match="max_frames=3"):
        view_of(object(), max_frames=3)


def test_sizes_are_those_of_the_cookbook() -> None:
    """An hour of 1280 x 720 in 768 frames: 140 x 252; 60 frames: 532 x 952."""
    for count, size in ((768, (140, 252)), (60, (532, 952))):
        limits = View().options(count)
        assert frame_size(720, 1280, 2, replace(limits, total_pixels=10**9)) == size


def test_frames_are_as_large_as_the_look_allows(film: Path) -> None:
    """Few frames may be large, many are small."""
    sizes = []
    for count in (8, 40):
        with Film(film, View(frames=count, total_pixels=40 * 28 * 28 * 10), HERE) as opened:
            look = opened.look(0, 20, count)
            sizes.append(look.video.frames.shape[1] * look.video.frames.shape[2])
    assert sizes[0] > 3 * sizes[1]
    assert sizes[1] == pytest.approx(40 * 784 * 10 * 2 / 40, rel=0.3)


# ---- windows


@pytest.mark.parametrize(("seconds", "fps", "size"), [(20, 2, 12), (20, 5, 12), (20, 2, 16), (17.3, 1, 4), (20, 2, 38)])
def test_windows_cover_all_and_overlap(film: Path, seconds: float, fps: float, size: int) -> None:
    with Film(film, View(frames=size), HERE) as opened:
        looks = list(opened.windows(0, seconds, fps, size, overlap_of(size)))
    assert looks[0].begin == 0
    assert looks[-1].end == pytest.approx(seconds, abs=0.11)
    for one, other in pairwise(looks):
        assert other.begin < one.end
        assert other.begin > one.begin
    assert all(len(k.video.frames) % 2 == 0 and 2 <= len(k.video.frames) <= size for k in looks)
    assert abs(len(looks) - count_windows(seconds, fps, size)) <= 1


def test_films_longer_than_what_is_read_at_once(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qwenvl.tasks.events.film as module

    def starts() -> list[float]:
        with Film(film, View(frames=8), HERE) as opened:
            return [look.begin for look in opened.windows(0, 20, 5, 8, 2)]

    whole = starts()
    monkeypatch.setattr(module, "AT_ONCE", 20)
    parts = starts()
    assert abs(len(parts) - len(whole)) <= 1
    assert max(b - a for a, b in pairwise(parts)) < 1.6


def test_rates_that_fit_into_calls() -> None:
    assert rate_for(100, 2, 12, 1000) == 2
    assert count_windows(1200, rate_for(1200, 1, 12, 40), 12) == 40
    assert overlap_of(4) == 2
    assert overlap_of(768) == 76


def told(start: float, end: float, from_start: bool = False, to_end: bool = False) -> Told:
    return Told(start, end, "x", 0.5, from_start, to_end)


def test_windows_are_linked() -> None:
    """Moments: what is there "from the start" is known already. Stretches: they go on over the border."""
    moments = [[], [told(14, 14)], [told(20, 20, True)], [told(30, 30, True)], []]
    assert [(e.start, e.end) for e in linked(moments, 2)] == [(14, 14)]
    lost = [[], [], [told(20, 20, True)], [told(30, 30, True)]]  # it came where no window saw it come
    assert [(e.start, e.from_start) for e in linked(lost, 2)] == [(20, True)]
    stretches = [[told(7, 11, to_end=True)], [told(10, 20, True, True)], [told(20, 24, True)], [], [told(50, 52)]]
    assert [(e.start, e.end) for e in linked(stretches, 2)] == [(7, 24), (50, 52)]
    first = [[told(0, 3, True)]]
    assert [(e.start, e.from_start) for e in linked(first, 2)] == [(0, False)]


# ---- long films


@pytest.fixture(scope="module")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 minutes, in which the red circle is seen once, from 754.4 to 771 s."""
    return write_film(
        tmp_path_factory.mktemp("long") / "long.mp4", 1200, [SQUARE, Shape(754.4, 771.0)], rate=2, size=(120, 90)
    )


def test_a_long_film_is_searched_coarse_to_fine(long_film: Path) -> None:
    assistant, seen = ScriptedAssistant(watcher), []
    (found,) = events(
        assistant,
        long_film,
        QUERY,
        max_frames=24,
        policy=HERE,
        on_progress=lambda done, all_: seen.append((done, all_)),
    )
    assert found.start == pytest.approx(754.4, abs=ERROR)
    assert found.end == pytest.approx(771.0, abs=ERROR)
    assert found.confidence == pytest.approx(0.5)
    assert len(assistant.asked) <= 57
    assert seen[-1] == (len(assistant.asked), len(assistant.asked))
    assert all(a[0] <= b[0] and b[0] <= b[1] <= 160 for a, b in pairwise(seen))
    rates = [a.media[0].fps for a in assistant.asked]
    assert sorted(rates[:50])[25] == pytest.approx(1, abs=0.01)
    assert rates[-1] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    "calls", [12, pytest.param(20, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.slow)]
)
def test_calls_are_bounded(long_film: Path, calls: int) -> None:
    """Few calls are a coarser first pass, up to 6 s a frame, and more steps from there to the second."""
    assistant = ScriptedAssistant(watcher)
    (found,) = events(assistant, long_film, QUERY, max_frames=24, max_calls=calls, policy=HERE)
    assert len(assistant.asked) <= calls
    assert (found.start, found.end) == (pytest.approx(754.4, abs=ERROR), pytest.approx(771.0, abs=ERROR))
    assert all(a.media[0].fps >= 0.99 for a in assistant.asked)  # a time lapse where frames are sparse


@pytest.mark.slow
def test_a_moment_in_a_long_film(long_film: Path) -> None:
    (found,) = events(ScriptedAssistant(appears), long_film, QUERY, max_frames=12, policy=HERE)
    assert found.start == found.end == pytest.approx(754.4, abs=ERROR)


@pytest.mark.parametrize("answer", [appears, watcher])
def test_looks_come_closer_step_by_step(long_film: Path, answer: Callable[[Asked], str]) -> None:
    """The first pass is wrong by up to 6 s, and a look at 2 frames a second covers 6 s: it takes steps between."""
    assistant = ScriptedAssistant(answer)
    (found,) = events(assistant, long_film, QUERY, max_frames=12, max_calls=30, policy=HERE)
    assert found.start == pytest.approx(754.4, abs=ERROR)
    assert len(assistant.asked) <= 30
    rates = {round(1 / np.diff(a.media[0].times).mean(), 1) for a in assistant.asked}
    assert len(rates) == 4, rates


def test_a_part_of_a_long_film(long_film: Path) -> None:
    assistant = ScriptedAssistant(appears)
    (found,) = events(assistant, long_film, QUERY, max_frames=12, start=700, end=800, policy=HERE)
    assert found.start == pytest.approx(754.4, abs=ERROR)
    assert all(a.media[0].times[0] >= 700 and a.media[0].times[-1] <= 800 for a in assistant.asked)


@pytest.mark.slow
def test_second_looks_drop_what_they_do_not_see(long_film: Path) -> None:
    """A model that sees moments and stretches in windows at the low rate, and nothing there when it looks closer."""
    said = iter(range(1000))

    def hallucinates(asked: Asked) -> str:
        video = asked.media[0]
        if not any(map(is_red, video.frames)) and video.fps < 1.5 and int(video.times[0]) % 5 == 0:
            return ("It happens at 3 seconds.", "It happens from 4 to 20 seconds.")[next(said) % 2]
        return watcher(asked)

    (found,) = events(ScriptedAssistant(hallucinates), long_film, QUERY, max_frames=24, policy=HERE)
    assert next(said) >= 6
    assert found.start == pytest.approx(754.4, abs=ERROR)


def test_nothing_is_found_where_there_is_nothing(film: Path) -> None:
    assert events(ScriptedAssistant(["No."]), film, QUERY, max_frames=8, policy=HERE) == []


@pytest.mark.feature(77)
def test_all_events_of_a_film_in_windows(film: Path) -> None:
    """Each window tells in its own seconds; what goes on over a border is one event."""

    def describes(asked: Asked) -> str:
        video = asked.media[0]
        rows = ['{"start_time": "00:00.00", "end_time": "%s", "description": "A blue square stands still."}']
        text = "[" + rows[0] % stamp(len(video.frames) / video.fps)
        red = [k for k, frame in enumerate(video.frames) if is_red(frame)]
        if red:
            first, last = stamp(red[0] / video.fps), stamp((red[-1] + 1) / video.fps)
            text += f', {{"start_time": "{first}", "end_time": "{last}", "description": "A red circle is seen."}}'
        return text + "]"

    assistant = ScriptedAssistant(describes)
    found = events(assistant, film, max_frames=12, policy=HERE)
    assert [e.text for e in found] == ["A blue square stands still.", "A red circle is seen."]
    assert (found[0].start, found[0].end) == (0, pytest.approx(20, abs=0.2))
    assert (found[1].start, found[1].end) == (pytest.approx(7.3, abs=0.51), pytest.approx(12.6, abs=0.51))
    assert {a.question for a in assistant.asked} == {EVENTS_PROMPT}
    assert len(assistant.asked) == count_windows(20, 2, 12)


def stamp(seconds: float) -> str:
    return f"{int(seconds // 60):02d}:{seconds % 60:05.2f}"


# ---- confidence and options


def test_confidence_is_that_of_the_tokens_that_wrote_the_times(film: Path) -> None:
    """0.9 for digits, 0.1 for letters: the time alone counts."""

    class Sure(ScriptedAssistant):
        def _completion(self, written: Written, sampling: Any) -> Any:
            made = ScriptedAssistant._completion(written, sampling)
            return replace(made, logprobs=[math.log(0.9 if c.isdigit() else 0.1) for c in written.text])

    (found,) = events(Sure(["It starts at 00:03 and ends at 00:07."]), film, QUERY, policy=HERE)
    assert found.confidence == pytest.approx((0.9**8 * 0.1**2) ** (1 / 10))
    (found,) = events(Sure(["It is there from the start."]), film, QUERY, policy=HERE)
    assert found.confidence == pytest.approx(0.1)  # no number in it: the whole answer
    assert events(Sure(["It starts at 00:03 and ends at 00:07."]), film, QUERY, min_confidence=0.7, policy=HERE) == []


def test_merge_and_own_wording(film: Path) -> None:
    text = '[{"start": 1, "end": 4, "event": "a"}, {"start": 3, "end": 5, "event": "b"}]'
    assistant = ScriptedAssistant([text])
    assert [(e.start, e.end, e.text) for e in events(assistant, film, policy=HERE, merge=True, prompt="What?")] == [
        (pytest.approx(1, abs=0.1), pytest.approx(5, abs=0.2), "a; b")
    ]
    assert assistant.asked[0].question == "What?"
    events(assistant, film, "  a \n dog ", policy=HERE, prompt="When does {query} come?")
    assert assistant.asked[1].question == "When does a dog come?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": " "}, "the query is empty"),
        ({"query": "x", "prompt": "When?"}, "no place for the query"),
        ({"prompt": "When {query}?"}, "has a place for a query"),
        ({"fps": 0}, "fps=0"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"coarse_fps": -1}, "coarse_fps=-1"),
        ({"max_calls": 0}, "max_calls=0"),
        ({"max_frames": 2}, "frames=2"),
        ({"min_confidence": 2}, "min_confidence=2"),
        ({"start": -1}, "start=-1"),
        ({"start": 30}, "leave nothing of a video from 0.00 to 20.00 s"),
        ({"start": 5, "end": 5}, "leave nothing"),
        ({"end": float("inf")}, "end=inf"),
    ],
)
def test_mistakes_are_told(film: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        events(ScriptedAssistant(["No."]), film, policy=HERE, **options)


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"no\.mp4"):
        events(ScriptedAssistant(["No."]), tmp_path / "no.mp4", policy=HERE)
    with pytest.raises(ValueError, match="does not exist"):
        events(ScriptedAssistant(["No."]), tmp_path / "none.mp4", policy=HERE)


def test_an_event_for_json() -> None:
    assert Event(1.23456, 2, "x", 0.98765).to_dict() == {"start": 1.235, "end": 2, "text": "x", "confidence": 0.9877}
    assert "confidence" not in Event(1, 2, "x").to_dict()
