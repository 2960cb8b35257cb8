"""Events in answers: every written form, damaged ones, and whatever chance makes of them."""

from __future__ import annotations

import random
import time

import pytest
from event_answers import CASES, Expected

from qwenvl.tasks.events.answers import parse_events
from qwenvl.tasks.events.times import parse_time, written

FPS = 2.0
pytestmark = pytest.mark.feature(88)


@pytest.mark.parametrize(("text", "duration", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_events_of_answers(text: str, duration: float | None, expected: Expected) -> None:
    found = parse_events(text, duration, FPS)
    assert [(round(s.start, 3), round(s.end, 3)) for s in found] == sorted((a, b) for a, b, _ in expected)
    told = sorted(expected, key=lambda e: e[:2])
    assert [s.text for s, e in zip(found, told, strict=True) if e[2] is not None] == [
        e[2] for e in told if e[2] is not None
    ]


def test_the_corpus_is_large_and_each_answer_is_there_once() -> None:
    assert len(CASES) >= 60
    assert len({text for _, text, _, _ in CASES}) == len({name for name, *_ in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("00:03.20", 3.2), ("1:02:03.4", 3723.4), ("00:00:03,200", 3.2), ("3.2s", 3.2), ("<3.2s>", 3.2), ("3.2", 3.2),
        (7, 7.0), (7.5, 7.5), ("1 minute 5 seconds", 65.0), ("two minutes", 120.0), ("~4 s", 4.0), ("-3 s", 0.0),
        (-3, 0.0), (None, None), (True, None), ("soon", None), ("3 dogs", None), (float("nan"), None),
        (float("inf"), None), (10**400, None), ("frame 3", None), ("1:2:3:4:5", None), ("", None), ([3], None),
    ],
)  # fmt: skip
def test_single_times(value: object, seconds: float | None) -> None:
    found = parse_time(value)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_times_are_written_so_that_they_read_back() -> None:
    assert written(3723.4567) == "01:02:03.457"
    assert written(59.9996) == "00:01:00.000"
    assert written(3.2, ",") == "00:00:03,200"
    assert written(62.5, digits=2, hours=False) == "01:02.50"
    for seconds in (0.0, 0.004, 59.99, 61.5, 3599.99, 86399.123):
        assert parse_time(written(seconds)) == pytest.approx(seconds, abs=0.001)


def test_where_the_times_stand() -> None:
    text = '[{"start_time": "00:03.20", "end_time": "00:07.00", "description": "at 00:03.20"}]'
    (span,) = parse_events(text, 10)
    assert [text[a:b] for a, b in span.places] == ["00:03.20", "00:07.00"]
    text = "It happens between 2.0 and 5.5 seconds, not at 9 seconds of 2.0."
    span = parse_events(text, 10)[0]
    assert [text[a:b] for a, b in span.places] == ["2.0", "5.5 seconds"]
    assert parse_events("It is there from the start.", 10)[0].places == ()


def test_edges_of_a_clip_are_told() -> None:
    (span,) = parse_events("The red circle is there from the start.", 10)
    assert (span.from_start, span.to_end) == (True, False)
    (span,) = parse_events("From 5 seconds until the end.", 10)
    assert (span.from_start, span.to_end) == (False, True)
    (span,) = parse_events("It goes on throughout the video.", 10)
    assert (span.from_start, span.to_end) == (True, True)


def test_frames_need_a_rate() -> None:
    assert parse_events("from frame 4 to frame 8", 10) == []
    assert [(s.start, s.end) for s in parse_events("from frame 4 to frame 8", 10, 4.0)] == [(1, 2)]


def test_the_usual_reading_of_times_is_kept_where_it_fits() -> None:
    """00:03:50 is read as 3.5 s only where 230 s cannot be."""
    text = '[{"start_time": "00:03:50", "end_time": "00:07:00", "description": "a"}]'
    assert [(s.start, s.end) for s in parse_events(text, 600)] == [(230, 420)]
    assert [(s.start, s.end) for s in parse_events(text)] == [(230, 420)]
    mixed = '[{"start_time": "00:03:50", "end_time": "09:07:00", "description": "a"}]'
    assert parse_events(mixed, 10) == []  # neither reading fits


PIECES = [
    "00:03", "3.2s", "[", "]", "{", "}", '"start":', "'end':", "from", " to ", " and ", "between ", "-", ",", "\n", ":",
    "9" * 400, "1e999", "-", "0x1f", "½", "٣", "²", "\ud800", "\x00", "<", ">", "|", "```json", "the start", " until ",
    "throughout the video", "frame ", "th second", "first ", " for ", "lasts ", "minutes", "\\u12", "NaN", "null", "(",
]  # fmt: skip


def mutated(rng: random.Random) -> str:
    text = rng.choice(CASES)[1]
    for _ in range(rng.randint(1, 6)):
        at, other = rng.randint(0, len(text)), rng.choice(CASES)[1]
        kind = rng.randrange(7)
        if kind == 0:
            text = text[:at]
        elif kind == 1:
            text = text[:at] + other[rng.randint(0, len(other)) :]
        elif kind == 2:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif kind == 3:
            text = text[:at] + text[at + rng.randint(1, 9) :]
        elif kind == 4:
            text = text[:at] + chr(rng.choice([rng.randrange(32, 127), rng.randrange(1, 0xD800)])) + text[at + 1 :]
        elif kind == 5:
            text = text[:at] + text[max(0, at - rng.randint(1, 40)) : at] * rng.randint(2, 30) + text[at:]
        else:
            text = rng.choice(PIECES) * rng.randint(1, 200) + text
    return text


def fuzz(rounds: int, seed: int) -> float:
    """The slowest answer, in seconds."""
    rng, slowest = random.Random(seed), 0.0
    for _ in range(rounds):
        text, duration = mutated(rng), rng.choice([None, 0.0, 0.5, 10.0, 3600.0])
        started = time.process_time()
        found = parse_events(text, duration, rng.choice([None, FPS]))
        slowest = max(slowest, time.process_time() - started)
        for span in found:
            assert 0 <= span.start <= span.end < 10**10
            assert duration is None or span.end <= duration
            assert all(0 <= a < b <= len(text) for a, b in span.places)
            assert span.text == span.text.strip()
        assert found == sorted(found, key=lambda s: (s.start, s.end))
    return slowest


def test_mutated_answers_never_raise() -> None:
    assert fuzz(2000, 1) < 0.5


@pytest.mark.slow
def test_many_mutated_answers_never_raise() -> None:
    assert fuzz(20000, 2) < 0.5


@pytest.mark.parametrize("piece", [
    "from 3s to 7s ", "at 3 ", "[", '{"start": 1, "end": 2},', "00:", "1:1:", "3.", "from the start ", "one ",
    "frame 3 ", "- 0:02: the light goes on\n", "start: 3 ", "<start>3</start>", '"', "9", "between 3 and ",
    "1 hour 2 minutes 3 s, ", "(0:01-0:02) ", '[{"start_time": "00:01.00", "end_time": "', "throughout the video ",
    "the video is ", "| 00:01 ",
])  # fmt: skip
def test_time_is_linear(piece: str) -> None:
    """Four times the text takes no more than some ten times as long; a quadratic reader takes sixteen times."""

    def seconds(characters: int) -> float:
        text = piece * (characters // len(piece))
        best = 10.0
        for _ in range(2):
            started = time.process_time()
            parse_events(text, 100.0, FPS)
            best = min(best, time.process_time() - started)
        return best

    short, long = seconds(3000), seconds(12000)
    assert long < 0.02 + 10 * short, f"{short:.4f} s for 3,000 characters, {long:.4f} s for 12,000"
