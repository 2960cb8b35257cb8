"""Places in the text of answers, whole, damaged and hostile (inventory rows 86, 87, 95)."""

from __future__ import annotations

import gc
import json
import math
import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_answers import Recorded, recorded_answers, same

from qwenvl.tasks.answers import find_places, parse_boxes, read_values, with_confidence
from qwenvl.tasks.answers.literals import read
from qwenvl.tasks.answers.objects import key_pattern
from qwenvl.tasks.places import Box, Point
from qwenvl.types import ImageSize

SIZE = ImageSize(200, 100, 224, 112)


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    cases = recorded_answers()
    assert len({case.name for case in cases}) == len(cases) >= 220
    assert len({case.text for case in cases}) == len(cases)


@pytest.mark.feature(86, 87, 95)
@pytest.mark.parametrize("case", recorded_answers(), ids=lambda case: case.name)
def test_recorded_answers_give_every_item(case: Recorded) -> None:
    found = parse_boxes(case.text, case.size, case.frame)
    assert same(found, case), found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(value=st.lists(JSON, max_size=4) | st.dictionaries(st.text(max_size=9), JSON, max_size=4), data=st.data())
@settings(max_examples=150, deadline=None)
def test_valid_json_is_read_as_what_it_is(value: object, data: st.DataObject) -> None:
    ascii_only, indent = data.draw(st.booleans()), data.draw(st.sampled_from([None, 0, 2]))
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert read_values(text) == [json.loads(text)]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "x, \\"y\\": 1"}',
        '[["a"], "b: c"]',
        '{"a": "```", "b": "</p>"}',
        '{"a": "// no remark", "b": "# none"}',
        '[{"": 1}, {"[x]": 2, "{": 3, ":": 4}]',
        '["", "", ["\\\\", "\\""]]',
        '{"arguments": "{\\"a\\": [1, 2]}"}',
    ],
)
def test_valid_json_that_looks_damaged(text: str) -> None:
    assert read_values(text) == [json.loads(text)]


def test_values_beside_places() -> None:
    assert read_values("Sure: [{'a': 1, \"b\": [2, 3,") == [[{"a": 1, "b": [2, 3]}]]
    assert read_values("no values, not even 1") == []
    nodes = read("label: cup, bbox_2d: [1, 2, 3, 4]", key_pattern())
    assert len(nodes) == 1


def test_frames() -> None:
    text = '[{"bbox_2d": [100, 50, 200, 100]}]'
    (resized,), (thousandths,) = parse_boxes(text, SIZE), parse_boxes(text, SIZE, "thousandths")
    assert isinstance(resized, Box)
    assert isinstance(thousandths, Box)
    assert thousandths.corners == (20, 5, 40, 10)
    assert resized.corners == pytest.approx((100 / 1.12, 50 / 1.12, 200 / 1.12, 100 / 1.12))
    with pytest.raises(ValueError, match="frame='pixels' is not known: expected one of auto, resized"):
        parse_boxes(text, SIZE, "pixels")  # type: ignore[arg-type]


def test_where_a_place_is_written() -> None:
    text = 'So: [{"bbox_2d": [56, 28, 112, 56], "label": "cup 7"}, {"point_2d": [5, 60]}]'
    found = find_places(text, SIZE)
    assert [[text[n.start : n.end] for n in one.written.numbers] for one in found] == [
        ["56", "28", "112", "56"],
        ["5", "60"],
    ]


def test_confidence_is_the_mean_of_the_tokens_that_wrote_the_numbers() -> None:
    """A token a character, as the official tokenizers have for digits; others are half as likely and do not count."""
    text = '[{"bbox_2d": [56, 28, 112, 56], "label": "cup 7"}, {"point_2d": [5, 60]}]'
    found = find_places(text, SIZE)
    at = {n.start + i: 0.9 for n in found[0].written.numbers for i in range(n.end - n.start)}
    at |= {n.start + i: p for n, p in zip(found[1].written.numbers, (0.2, 0.8), strict=True) for i in range(2)}
    offsets = [(i, i + 1) for i in range(len(text))]
    places = with_confidence(found, offsets, [math.log(at.get(i, 0.5)) for i in range(len(text))])
    assert places[0].confidence == pytest.approx(0.9)
    assert places[1].confidence == pytest.approx((0.2 * 0.8 * 0.8) ** (1 / 3))
    assert [place.confidence for place in with_confidence(found, offsets, None)] == [None, None]


def test_confidence_of_tokens_longer_than_a_number_and_of_none() -> None:
    text = '{"point_2d": [5, 60]}'
    found = find_places(text, SIZE)
    (place,) = with_confidence(found, [(0, 13), (13, 19), (19, 19), (19, 21)], [-9.0, math.log(0.25), -3.0, -9.0])
    assert place.confidence == pytest.approx(0.25)
    (place,) = with_confidence(found, [(0, 13), (19, 21)], [0.0, 0.0])
    assert place.confidence is None


# Fuzzing: recorded answers, broken further.

BITS = (
    '"', "'", "{", "}", "[", "]", "(", ")", ",", ":", "\\", "\n", "```", "```json\n", "<points ", "/>", "<p", "</ref>",
    "<|box_start|>", "<|box_end|>", 'data-bbox="', "//", "#", "\\u12", "\\ud83d", "“", "：", "，", "\x00", "\u2028",  # noqa: RUF001
    "9" * 400, "-", ".", "1e999", "NaN", "null", "bbox_2d", "label: ", "&amp;", " " * 50, "😀", "٣", "\udc80",
)  # fmt: skip


def mutated(rng: random.Random, texts: list[str]) -> str:
    """A recorded answer with one to four accidents."""
    text = rng.choice(texts)
    for _ in range(rng.randint(1, 4)):
        at, to = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        kind = rng.randrange(9)
        if kind == 0:
            text = text[:at]
        elif kind == 1:
            text = text[:at] + text[to:]
        elif kind == 2:
            text = text[:to] + text[at:]
        elif kind == 3:
            other = rng.choice(texts)
            cut = rng.randint(0, len(other))
            text = text[:at] + other[cut:]
        elif kind == 4:
            text = text[:at] + rng.choice(BITS) * rng.choice((1, 1, 2, 5, 300)) + text[at:]
        elif kind == 5 and text:
            text = text[: at - 1] + rng.choice(BITS) + text[at:]
        elif kind == 6:
            characters = list(text)
            for _ in range(min(8, len(characters) // 2)):
                a, b = rng.randrange(len(characters)), rng.randrange(len(characters))
                characters[a], characters[b] = characters[b], characters[a]
            text = "".join(characters)
        elif kind == 7:
            opening, closing = rng.choice((("{", "}"), ("[", "]"), ('{"a":', "}"), ('[{"bbox_2d":', "}]"), ("<p>", "")))
            depth = rng.choice((3, 50, 150, 600))
            text = opening * depth + text + closing * rng.randint(0, depth)
        else:
            text = "".join(chr(rng.randrange(0x20, 0x3000)) if rng.random() < 0.03 else c for c in text)
    return text[:12_000]


def timed(text: str, frame: str) -> tuple[list[Box | Point], float]:
    """The places and the processor's seconds."""
    started = time.process_time()
    places = parse_boxes(text, SIZE, frame)  # type: ignore[arg-type]
    seconds = time.process_time() - started
    return places, seconds


def fuzz(seed: int, count: int) -> None:
    """Every answer gives places within the picture, and takes less than a tenth of a second of the processor."""
    rng, texts = random.Random(seed), [case.text for case in recorded_answers()]
    for _ in range(count):
        text = mutated(rng, texts)
        frame = rng.choice(("auto", "auto", "resized", "thousandths", "shares"))
        places, seconds = timed(text, frame)
        if seconds >= 0.1:  # again: a machine that does other things too is slow now and then
            seconds = min(timed(text, frame)[1] for _ in range(3))
        assert seconds < 0.1, (seconds, text[:300])
        for place in places:
            if isinstance(place, Point):
                assert 0 <= place.x <= SIZE.width, text
                assert 0 <= place.y <= SIZE.height, text
            else:
                assert 0 <= place.x1 < place.x2 <= SIZE.width, text
                assert 0 <= place.y1 < place.y2 <= SIZE.height, text


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Garbage collection goes through all that pytest holds, which is no part of what is timed."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.feature(86)
@pytest.mark.usefixtures("no_collection")
def test_three_thousand_broken_answers() -> None:
    fuzz(1, 3_000)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("no_collection")
def test_fifty_thousand_broken_answers() -> None:
    started = time.process_time()
    fuzz(2, 50_000)
    assert time.process_time() - started < 120


@pytest.mark.slow
def test_a_cut_anywhere_keeps_the_whole_items_in_front_of_it() -> None:
    """Of every answer that is a list of JSON items, cut at every character: exactly the first so many items, and never
    one fewer than at an earlier cut."""
    for case in recorded_answers():
        if not case.name.startswith(("whole: the documented", "text: lines of a sign", "text: a receipt")):
            continue
        whole, before = parse_boxes(case.text, case.size), 0
        for cut in range(len(case.text) + 1):
            found = parse_boxes(case.text[:cut], case.size)
            assert [box for box in found if box.label] == whole[: len([box for box in found if box.label])]
            complete = case.text[:cut].count("}")
            assert len(found) >= complete - case.text[:cut].count("{0,5l}")
            before = max(before, len(found))
        assert before == len(whole)
