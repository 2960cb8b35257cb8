"""Clips and pairs of the bundled model's world: what is drawn is what is told."""

from __future__ import annotations

import numpy as np
import pytest

from qwenvl.demo.clips import CLIP_MAX_PIXELS, CLIP_MIN_PIXELS, Clip, sample_clip
from qwenvl.demo.grading import MISSED, grade, parse_json, told_seconds
from qwenvl.demo.happenings import CLIP_KINDS, WAYS, difference, sample_comparison, sample_happening, seconds, stamp
from qwenvl.demo.pairs import CHANGES, Pair, sample_pair
from qwenvl.demo.questions import Exchange


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    rng = np.random.default_rng(1)
    return [sample_clip(rng) for _ in range(40)]


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    rng = np.random.default_rng(2)
    return [sample_pair(rng) for _ in range(60)]


def test_clips_are_even_and_of_a_size_that_the_model_sees(clips: list[Clip]) -> None:
    for clip in clips:
        count, height, width, _ = clip.frames.shape
        assert count % 2 == 0
        assert 4 <= count <= 12
        assert (width, height) == (clip.width, clip.height)
        assert CLIP_MIN_PIXELS <= clip.resized_width * clip.resized_height <= CLIP_MAX_PIXELS
        assert any(a.motion != "still" or a.first for a in clip.actors), "nothing happens"
        assert len({a.thing.name for a in clip.actors}) == len(clip.actors)


def test_things_move_the_way_that_is_told_and_only_they(clips: list[Clip]) -> None:
    seen = set()
    for clip in clips:
        for actor in clip.actors:
            (x0, y0), (x1, y1) = (t.centre for t in (actor.frames[actor.first], actor.thing) if t is not None)
            far = 0.2 * min(clip.width, clip.height)
            moved = {"left": x1 < x0 - far, "right": x1 > x0 + far, "up": y1 < y0 - far, "down": y1 > y0 + far}
            assert [way for way, true in moved.items() if true] == ([] if actor.motion == "still" else [actor.motion])
            seen.add(actor.motion)
    assert seen == {"still", "left", "right", "up", "down"}


def test_a_thing_appears_in_its_frame(clips: list[Clip]) -> None:
    late = [(c, a) for c in clips for a in c.actors if a.first]
    assert len(late) > 5
    for clip, actor in late:
        x, y = (int(v) for v in actor.thing.centre)
        inside = clip.frames[:, y - 2 : y + 3, x - 2 : x + 3].astype(float).mean((1, 2))
        jump = np.abs(np.diff(inside, axis=0)).sum(1)
        assert int(jump.argmax()) + 1 == actor.first
        assert abs(clip.appears(actor) - actor.first / clip.fps) <= 0.25
        spot = clip.spot(actor, actor.first)
        assert spot is not None
        assert spot // (clip.resized_width * clip.resized_height // 784) == actor.first // 2
        assert clip.spot(actor, actor.first - 1) is None


def test_answers_about_clips(clips: list[Clip]) -> None:
    rng = np.random.default_rng(5)
    for clip in clips:
        for kind in CLIP_KINDS:
            exchange = sample_happening(rng, clip, kind)
            assert exchange is not None
            assert grade(exchange, None, exchange.answer)[kind] == 1
            assert grade(exchange, None, "It is a cat.")[kind] == 0
            for words, things in exchange.mentions:
                assert words.lower() in exchange.question.lower()
                assert things
    with pytest.raises(ValueError, match="expected one of happens, moves"):
        sample_happening(rng, clips[0], "why")


def test_events_are_told_with_their_times(clips: list[Clip]) -> None:
    rng = np.random.default_rng(6)
    for clip in clips:
        exchange = sample_happening(rng, clip, "events")
        assert exchange is not None
        rows = parse_json(exchange.answer)
        assert rows is not None
        assert [row["description"] for row in rows] == [
            f"The {a.thing.name} appears." if a.first else f"The {a.thing.name} moves {WAYS[a.motion]}."
            for a in sorted((a for a in clip.actors if a.motion != "still" or a.first), key=lambda a: a.first > 0)
        ]
        for row, thing in zip(rows, exchange.targets, strict=True):
            actor = next(a for a in clip.actors if a.thing == thing)
            assert row["start_time"] == stamp(clip.appears(actor) if actor.first else 0)
            assert row["end_time"] == stamp(len(clip.frames) / clip.fps)
        query = sample_happening(rng, clip, "query")
        assert query is not None
        assert query.targets[0].name in query.question
        assert (f" to {seconds(clip.end)}." in query.answer) == ("moves" in query.question)
    assert [stamp(x) for x in (0, 2.5, 61.25)] == ["00:00.00", "00:02.50", "01:01.25"]


def test_times_are_graded_by_their_error() -> None:
    exchange = Exchange("when", "When?", "The red circle appears at 2.5 seconds.")
    assert grade(exchange, None, "The red circle appears at 3 seconds.") == {"when": 1.0, "error": 0.5}
    assert grade(exchange, None, "At 4 s.") == {"when": 0.0, "error": 1.5}
    assert grade(exchange, None, "Soon.")["error"] == MISSED
    assert told_seconds("The red circle is there from the start.") == 0
    assert [seconds(x) for x in (0.5, 1.0, 2.0)] == ["0.5 seconds", "1 second", "2 seconds"]


def test_pairs_differ_where_they_say(pairs: list[Pair]) -> None:
    assert {p.change for p in pairs} == set(CHANGES)
    for pair in pairs:
        first, second = pair.pictures
        names = [sorted(t.name for t in p.things) for p in pair.pictures]
        lost = [n for n in names[0] if n not in names[1]]
        new = [n for n in names[1] if n not in names[0]]
        assert lost == ([pair.before.name] if pair.before else [])
        assert new == ([pair.after.name] if pair.after else [])
        assert (first.width, first.height) == (second.width, second.height)
        assert (
            pair.change == {(0, 0): "none", (1, 0): "missing", (0, 1): "extra", (1, 1): "colour"}[len(lost), len(new)]
        )


def test_answers_about_pairs(pairs: list[Pair]) -> None:
    rng = np.random.default_rng(6)
    for pair in pairs:
        exchange = sample_comparison(rng, pair, "differs")
        assert exchange.answer == difference(pair)
        assert grade(exchange, None, exchange.answer) == {"differs": 1.0}
        which = sample_comparison(rng, pair, "which")
        assert grade(which, None, which.answer) == {which.kind: 1.0}
        assert which.kind.split()[1] in which.question.lower()
    with pytest.raises(ValueError, match="expected one of differs, which"):
        sample_comparison(rng, pairs[0], "why")


def test_the_same_seed_draws_the_same() -> None:
    a, b = (sample_clip(np.random.default_rng(9)) for _ in range(2))
    assert np.array_equal(a.frames, b.frames)
    assert a.actors == b.actors
    c, d = (sample_pair(np.random.default_rng(9)) for _ in range(2))
    assert np.array_equal(c.pictures[1].image, d.pictures[1].image)
