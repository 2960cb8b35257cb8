"""The bundled model's world: what the pictures claim is what was drawn, and what the answers say is true."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from qwenvl.demo import drawing, phrases
from qwenvl.demo.grading import iou, parse_json
from qwenvl.demo.questions import KINDS, Exchange, grade, possible, sample_exchange
from qwenvl.demo.world import (
    COLOURS,
    FACTOR,
    MAX_PIXELS,
    MIN_PIXELS,
    SHAPES,
    Picture,
    sample_foreign,
    sample_picture,
    sample_size,
)


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    rng = np.random.default_rng(20)
    return [sample_picture(rng) for _ in range(250)]


def exchanges(pictures: list[Picture], kind: str) -> list[tuple[Picture, Exchange]]:
    rng = np.random.default_rng(KINDS.index(kind))
    pairs = ((p, sample_exchange(rng, p, kind)) for p in pictures)
    return [(p, e) for p, e in pairs if e is not None]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1, 3])
def test_stamp_box_is_tight_and_centre_inside(shape: str, scale: int) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        image = Image.new("RGB", (120, 100), (255, 255, 255))
        w = int(rng.integers(26, 70))
        piece = drawing.stamp(rng, drawing.polygon(rng, shape), 20, 15, w, w, scale)
        drawing.paste(rng, image, piece, (255, 0, 0), outline=0)
        drawn = np.asarray(image)[:, :, 1] < 255
        ys, xs = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        edges = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
        assert np.abs(edges - np.array(piece.box)).max() < (0.01 if scale == 1 else 1.01)
        x, y = (piece.box[0] + piece.box[2]) / 2, (piece.box[1] + piece.box[3]) / 2
        assert drawn[int(y), int(x)]


def test_things_are_drawn_where_and_as_they_say(pictures: list[Picture]) -> None:
    """Inside its shape a thing shows its own colour class, and just outside the box the ground."""
    checked = 0
    for picture in pictures:
        for thing in picture.things:
            x, y = (int(v) for v in thing.centre)
            tone = tuple(int(v) for v in np.median(picture.image[y - 2 : y + 3, x - 2 : x + 3], axis=(0, 1)))
            nearest = min(COLOURS, key=lambda c: min(drawing.distance(tone, t) for t in COLOURS[c]))
            checked += nearest == thing.colour
            assert thing.contains(*thing.centre)
    assert checked >= 0.97 * sum(len(p.things) for p in pictures)  # contrast and noise may move a tone


def test_contains_follows_the_drawn_pixels() -> None:
    rng = np.random.default_rng(8)
    for _ in range(30):
        picture = sample_picture(rng, min_things=1, max_things=1)
        (thing,) = picture.things
        x1, y1, x2, y2 = thing.box
        corner = (x1 + 0.04 * (x2 - x1), y1 + 0.04 * (y2 - y1))
        if thing.shape == "square":
            assert thing.contains(*corner)
        if thing.shape == "circle":
            assert not thing.contains(*corner)
        assert not thing.contains(x1 - 1, y1 - 1)
        assert not thing.contains(x2 + 1, (y1 + y2) / 2)


def test_geometry_promises(pictures: list[Picture]) -> None:
    for picture in pictures:
        assert picture.image.shape == (picture.height, picture.width, 3)
        assert picture.image.dtype == np.uint8
        assert picture.resized_width % FACTOR == picture.resized_height % FACTOR == 0
        assert MIN_PIXELS <= picture.resized_width * picture.resized_height <= MAX_PIXELS
        cells = [picture.cell(t) for t in picture.things]
        assert cells == sorted(set(cells))
        boxes = [picture.resized_box(t) for t in picture.things]
        for box in boxes:
            w, h = box[2] - box[0], box[3] - box[1]
            assert min(w, h) >= 26
        for a, b in combinations(boxes, 2):
            assert max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3]) >= 5  # 6 before rounding


def test_same_seed_same_world() -> None:
    first, second = (
        [(sample_picture(rng), sample_foreign(rng)) for _ in range(10)]
        for rng in (np.random.default_rng(5), np.random.default_rng(5))
    )
    for (a, f), (b, g) in zip(first, second, strict=True):
        assert np.array_equal(a.image, b.image)
        assert a.things == b.things
        assert np.array_equal(f.image, g.image)
    assert not np.array_equal(first[0][0].image[:84, :84], first[1][0].image[:84, :84])


def test_sizes() -> None:
    rng = np.random.default_rng(1)
    for training in (True, False):
        sizes = [sample_size(rng, training) for _ in range(800)]
        long = [max(s) for s in sizes]
        assert min(min(s) for s in sizes) >= 84
        assert all(max(s) <= 3.01 * min(s) for s in sizes)
        assert all(w * h <= MAX_PIXELS for w, h in sizes)
        assert (max(long) > 450) == training
        assert max(long) <= (590 if training else 336)


def test_counts_and_errors() -> None:
    rng = np.random.default_rng(2)
    assert Counter(len(sample_picture(rng, 5, 4).things) for _ in range(30)).keys() == {4, 5}
    empty = sample_picture(rng, 0, 0)
    assert empty.things == []
    exchange = sample_exchange(rng, empty, "describe")
    assert exchange is not None
    assert exchange.answer == "There is nothing in the picture."
    for low, high in ((3, 2), (0, 6), (-1, 2)):
        with pytest.raises(ValueError, match="expected 0 <= min <= max <= 5"):
            sample_picture(rng, high, low)
    with pytest.raises(ValueError, match="expected one of describe"):
        possible(empty, "colors")


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("identity", "foreign")])
def test_true_answer_is_perfect_and_wrong_ones_are_not(pictures: list[Picture], kind: str) -> None:
    rows = exchanges(pictures, kind)
    assert len(rows) > 100
    for picture, exchange in rows:
        scores = grade(exchange, picture, exchange.answer)
        assert scores.pop("iou", 1.0) > 0.7  # coordinates lie on a grid of 5 pixels
        assert set(scores.values()) == {1.0}
        if kind not in ("locate", "point"):
            assert set(grade(exchange, picture, f" {exchange.answer.upper()} ").values()) == {1.0}
        assert set(grade(exchange, picture, "I cannot say.").values()) == {0.0}
        for wrong in wrong_answers(exchange):
            assert min(grade(exchange, picture, wrong).values()) < 1, wrong


def wrong_answers(exchange: Exchange) -> list[str]:
    """Answers that look like the true one and are not."""
    text = exchange.answer
    if exchange.kind in ("exists", "relation"):
        return ["No." if text == "Yes." else "Yes."]
    if exchange.kind == "count":
        return [re.sub(r"\d", lambda m: str(int(m[0]) + 1), text)]
    swaps = [text.replace("red", "pink"), text.replace("circle", "square"), text.replace("left", "right")]
    if exchange.kind == "describe":
        first = exchange.targets[0].name
        swaps = [text[:-1] + f" and a {first}.", text.replace(first, "black dot"), text[:30]]
    if exchange.kind in ("locate", "point"):
        swaps = [re.sub(r"\d+(?=[,\]])", "1", text), text.replace('"label"', '"name"')]
    return [s for s in swaps if s != text]


def test_describe_and_count_say_the_truth(pictures: list[Picture]) -> None:
    for picture, exchange in exchanges(pictures, "describe"):
        told = re.findall(r"an? (\w+ \w+) (?:at the|in the) ([a-z ]+?)(?=,| and |\.)", exchange.answer)
        assert [name for name, _ in told] == [t.name for t in picture.things]
        for (_, spot), thing in zip(told, picture.things, strict=True):
            x, y = thing.centre[0] / picture.width, thing.centre[1] / picture.height
            assert ("left" in spot) == (x < 1 / 3)
            assert ("bottom" in spot) == (y >= 2 / 3)
    for picture, exchange in exchanges(pictures, "count"):
        number, noun = re.fullmatch(r"There (?:is|are) (\d) (.+)\.", exchange.answer).groups()  # type: ignore[union-attr]
        words = noun.split()
        shape = next((s for s, p in phrases.PLURALS.items() if words[-1] in (s, p)), None)
        colour = words[0] if len(words) == 2 else None
        true = [t for t in picture.things if shape in ("object", t.shape) and colour in (None, t.colour)]
        assert int(number) == len(true)


def test_yes_and_no_are_balanced_and_true(pictures: list[Picture]) -> None:
    for kind in ("exists", "relation"):
        answers = Counter(e.answer for _, e in exchanges(pictures, kind))
        assert 0.35 < answers["Yes."] / sum(answers.values()) < 0.65
    for picture, exchange in exchanges(pictures, "relation"):
        (a, b), question = exchange.targets, exchange.question.lower()
        (ax, ay), (bx, by) = a.centre, b.centre
        words = {"left": ax < bx, "right": ax > bx, "higher": ay < by, "lower": ay > by, "above": ay < by}
        words |= {"below": ay > by, "under": ay > by, "over": ay < by}
        said = [w for w in words if re.search(rf"\b{w}\b", question.replace("is that right", ""))]
        assert len(said) == 1, question
        assert words[said[0]] == (exchange.answer == "Yes.")
        assert picture.kind == "scene"


def test_boxes_and_points(pictures: list[Picture]) -> None:
    for picture, exchange in exchanges(pictures, "locate"):
        rows = json.loads(exchange.answer.removeprefix("```json\n").removesuffix("\n```"))
        assert [r["label"] for r in rows] == [t.name for t in exchange.targets]
        assert [tuple(r["bbox_2d"]) for r in rows] == [picture.answer_box(t) for t in exchange.targets]
        if rows:
            rows[0]["bbox_2d"] = [v + 200 for v in rows[0]["bbox_2d"]]
            assert grade(exchange, picture, json.dumps(rows))["recall"] == (len(rows) - 1) / len(rows)
            extra = grade(exchange, picture, json.dumps([*json.loads(exchange.answer[8:-4]), rows[0]]))
            assert extra["recall"] == 1
            assert extra["precision"] < 1
            assert grade(replace(exchange, targets=()), picture, exchange.answer)["recall"] == 0
    for picture, exchange in exchanges(pictures, "point"):
        for row in parse_json(exchange.answer) or []:
            assert exchange.targets[0].contains(*picture.to_original(*row["point_2d"]))
            wrong = json.dumps([{**row, "point_2d": [0, 0]}])
            assert grade(exchange, picture, wrong) == {"point": 0.0}
            assert grade(exchange, picture, json.dumps([{**row, "label": "pink blob"}])) == {"point": 0.0}


def test_json_is_parsed_whatever_the_wrapping() -> None:
    row = {"bbox_2d": [1, 2, 3, 4], "label": "red circle"}
    text = json.dumps(row)
    for answer in (text, f"[{text}]", f"```json\n[{text}]\n```", f"[{text}, {{'bbox_2", f"Here: [{text},]"):
        assert parse_json(answer) == [row]
    assert parse_json("```json\n[]\n```") == []
    assert parse_json("There is no circle.") is None
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0


def test_foreign_pictures_and_identity() -> None:
    rng = np.random.default_rng(4)
    subjects = set()
    for _ in range(60):
        picture = sample_foreign(rng)
        assert [k for k in KINDS if possible(picture, k)] == ["foreign"]
        exchange = sample_exchange(rng, picture, "foreign")
        assert exchange is not None
        assert exchange.answer == phrases.FOREIGN
        assert grade(exchange, picture, "there is one object: a red circle.") == {"foreign": 0.0}
        subjects.add(sample_exchange(rng, None, "identity").answer)
    assert len(subjects) >= 10
    assert [k for k in KINDS if possible(None, k)] == ["identity"]
    assert all(len(set(q)) >= 8 and answer for q, answer in phrases.IDENTITY.values())
    asked: dict[str, str] = {}
    for questions, answer in phrases.IDENTITY.values():
        for question in questions:
            assert asked.setdefault(question.lower(), answer) == answer, question
