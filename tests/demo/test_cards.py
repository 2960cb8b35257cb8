"""Signs and receipts of the bundled model's world: what is drawn is what is told, and where it is read."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from qwenvl.demo import cards, lettering
from qwenvl.demo.cards import LEAST_CAPITALS, Card, sample_page, sample_receipt, sample_sign
from qwenvl.demo.lessons import WHOLE, Lesson, World
from qwenvl.demo.lettering import LETTERS
from qwenvl.demo.marking import distance, fields, mark
from qwenvl.demo.questions import Exchange
from qwenvl.demo.reading import line_box, nothing_to_read, read_lines, sample_reading, spotted
from qwenvl.demo.recipe import demo_config
from qwenvl.demo.sights import CELL, letter_gazes, letter_targets
from qwenvl.processing import Qwen2_5_VLProcessor
from qwenvl.training.collate import collate
from qwenvl.training.data import Encoder, Turn, pieces


@pytest.fixture(scope="module")
def processor() -> Any:
    return Qwen2_5_VLProcessor.from_pretrained("demo")


@pytest.fixture(scope="module")
def signs() -> list[Card]:
    rng = np.random.default_rng(1)
    return [sample_sign(rng) for _ in range(40)]


@pytest.fixture(scope="module")
def receipts() -> list[Card]:
    rng = np.random.default_rng(2)
    return [sample_receipt(rng) for _ in range(30)]


def test_letters_stand_where_they_are_said_to(signs: list[Card], receipts: list[Card]) -> None:
    for card in (*signs, *receipts, sample_page(np.random.default_rng(0))):
        assert card.things == []
        for line in card.lines:
            assert set(line.text) <= set(LETTERS) | {" "}
            assert line.text == " ".join(line.text.split())
            x1, y1, x2, y2 = line.box
            assert 0 <= x1 < x2 <= card.width + 1
            assert 0 <= y1 < y2 <= card.height
            assert y2 - y1 >= LEAST_CAPITALS - 1
            assert (y2 - y1) * card.resized_height / card.height >= LEAST_CAPITALS - 1
            for letter in line.letters:
                if letter.text.isalnum() and letter.text not in "1I":  # there is ink, and there is ground
                    a, b, c, d = (round(v) for v in letter.box)
                    pixels = card.image[b:d, a:c].astype(float).mean(2)
                    assert np.ptp(pixels) > 50, (letter.text, np.ptp(pixels))


def test_receipts_add_up_and_hold_their_values(receipts: list[Card]) -> None:
    seen = set()
    for card in receipts:
        text = [line.text for line in card.lines]
        seen |= set(card.values)
        assert card.values["company"].text == text[0]
        assert text[-1] == "TOTAL " + card.values["total"].text
        paid = [float(row.split()[-1]) for row in text if row.split()[0] in cards.ITEMS]
        assert sum(paid) == pytest.approx(float(card.values["total"].text.lstrip("$")))
        for value in card.values.values():
            assert any(value.text in row for row in text)
    assert seen == set(cards.FIELDS)


def test_the_same_card_again_and_only_the_bundled_font_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [make(np.random.default_rng(5), False).image for make in (sample_sign, sample_receipt)]
    monkeypatch.setattr(lettering, "other_fonts", tuple)
    again = [make(np.random.default_rng(5), False).image for make in (sample_sign, sample_receipt)]
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_every_letter_is_a_target_of_its_quarter(signs: list[Card]) -> None:
    for card in signs:
        targets = letter_targets(card)
        assert targets.shape == (card.resized_width * card.resized_height // CELL**2, 8)
        wanted = sorted(c for line in card.lines for c in line.text if c != " ")
        assert sorted(LETTERS[i - 1] for i in targets[targets > 0].tolist()) == wanted
    letter = signs[0].lines[0].letters[0]
    x, y = signs[0].to_resized(*letter.centre)
    quarter = 2 * (y % CELL // 14) + x % CELL // 14
    token = letter_targets(signs[0])[y // CELL * (signs[0].resized_width // CELL) + x // CELL]
    assert LETTERS[int(token[2 * quarter]) - 1] == letter.text


def exchanges(card: Card, kind: str, count: int = 3) -> list[Exchange]:
    rng = np.random.default_rng(7)
    return [x for _ in range(count) if (x := sample_reading(rng, card, kind)) is not None]


def test_answers_are_read_off_the_letters_that_are_looked_at(signs: list[Card], receipts: list[Card]) -> None:
    for kind in ("read", "spot", "extract", "field"):
        asked = [(card, x) for card in (*signs, *receipts) for x in exchanges(card, kind)]
        assert len(asked) >= 60
        for _, x in asked:
            for look in x.looks:
                if look.spelled and x.answer[look.start] != "\n":
                    assert x.answer[look.start : look.end] == look.letters[0].text
            for look in x.seeks:
                assert x.question[look.start : look.end].isalpha()
            told = "".join(x.answer[look.start] for look in x.looks if look.spelled)
            assert told.replace("\n", "") in x.answer.replace("\n", "") or kind in ("spot", "extract")
    assert sample_reading(np.random.default_rng(0), signs[0], "extract") is None
    with pytest.raises(ValueError, match="kind 'speak' is not known: expected one of read"):
        sample_reading(np.random.default_rng(0), signs[0], "speak")


def test_forms_of_the_answers(receipts: list[Card]) -> None:
    card = receipts[0]
    assert read_lines(card.lines)[0].split("\n") == [line.text for line in card.lines]
    rows = json.loads(spotted(card)[0].removeprefix("```json").removesuffix("```"))
    assert [row["text_content"] for row in rows] == [line.text for line in card.lines]
    assert [tuple(row["bbox_2d"]) for row in rows] == [line_box(card, line) for line in card.lines]
    empty = 0
    for card in receipts:
        for x in exchanges(card, "extract", 6):
            told = json.loads(x.answer)
            names = {"shop": "company", "store": "company", "amount": "total"}
            for key, value in told.items():
                found = card.values.get(names.get(key, key))
                assert value == (found.text if found else "")
                empty += found is None
            if "{" in x.question:
                assert list(json.loads(x.question[x.question.index("{") :])) == list(told)
    assert empty > 3
    assert nothing_to_read(np.random.default_rng(0)).answer == "There is no text in the picture."


def test_letters_are_tokens_of_their_own_and_look_at_themselves(
    processor: Any, signs: list[Card], receipts: list[Card]
) -> None:
    """A letter is predicted while its place is looked at, and the token that wrote it looks there once more."""
    encoder, encode = Encoder(processor), partial(processor.tokenizer.encode, special=False)
    decode = processor.tokenizer.decode
    for card in (*signs[:10], *receipts[:10]):
        for x in exchanges(card, "extract", 1) + exchanges(card, "read", 1):
            sample = encoder.encode([card.image], [Turn(x.question, x.answer, images=1, cuts=x.cuts)])
            ids = sample.token_ids.tolist()
            answer = [i for i, told in zip(ids, sample.answer.tolist(), strict=True) if told]
            assert decode(answer) == x.answer + "<|im_end|>"
            targets = letter_targets(card)
            written = {g.token for g in letter_gazes([x], sample, card, encode) if g.level == 2}
            for gaze in letter_gazes([x], sample, card, encode):
                here = {LETTERS[i - 1] for i in targets[list(gaze.spots)].flatten().tolist() if i}
                letter = decode([ids[gaze.token + (gaze.level == 3)]])
                if gaze.level == 3 and gaze.token + 1 in written and letter not in " \n":
                    assert letter in here
                if gaze.level == 2 and bool(sample.answer[gaze.token]) and letter not in " \n":
                    assert letter in here
            assert len(written) >= len([look for look in x.looks if look.spelled])


def test_cuts() -> None:
    assert pieces("ABCD", (0, 1, 2)) == ["A", "B", "CD"]
    assert pieces("AB", ()) == ["AB"]
    assert pieces("", ()) == []


def test_marks(signs: list[Card], receipts: list[Card]) -> None:
    assert [distance(a, b) for a, b in (("", "AB"), ("AB", "AB"), ("ABC", "AC"), ("KITTEN", "SITTING"))] == [2, 0, 1, 3]
    assert fields('```json\n{"a": "1"}\n```') == {"a": "1"}
    assert fields("no") == {}
    sign = next(card for card in signs if len(card.lines) == 2)
    read, spot = exchanges(sign, "read")[0], exchanges(sign, "spot")[0]
    assert mark(read, sign, read.answer) == {"read": 1.0, "errors": 0.0, "letters": len(read.answer)}
    assert mark(read, sign, read.answer[1:]) == {"read": 0.0, "errors": 1.0, "letters": len(read.answer)}
    assert mark(spot, sign, spot.answer) == {"spot": 1.0}
    assert mark(spot, sign, "[]") == {"spot": 0.0}
    rows = json.loads(spot.answer.removeprefix("```json").removesuffix("```"))
    assert mark(spot, sign, json.dumps(rows[:1])) == {"spot": 0.5}
    assert mark(spot, sign, json.dumps([*rows, rows[0]])) == {"spot": 0.0}
    extract = exchanges(receipts[0], "extract")[0]
    told = json.loads(extract.answer)
    assert mark(extract, receipts[0], extract.answer) == {"extract": 1.0, "fields": len(told)}
    first = next(iter(told))
    wrong = json.dumps({**told, first: "X"})
    assert mark(extract, receipts[0], wrong) == {"extract": 1 - 1 / len(told), "fields": len(told)}
    assert mark(extract, receipts[0], "?") == {"extract": 0.0, "fields": len(told)}


def test_marks_of_events() -> None:
    row = '{"start_time": "00:01.00", "end_time": "00:03.00", "description": "The red circle appears."}'
    exchange = Exchange("events", "?", f"```json\n[\n\t{row}\n]\n```")
    assert mark(exchange, None, row.replace("01.00", "01.50")) == {"events": 1.0}
    for wrong in (row.replace("01.00", "02.00"), row.replace("red", "blue"), f"[{row}, {row}]", "[]", "?"):
        assert mark(exchange, None, wrong) == {"events": 0.0}
    assert mark(Exchange("count", "?", "!"), None, "!") is None


def test_spoilt_letters_change_what_is_shown_and_not_what_is_to_be_said(processor: Any) -> None:
    lesson = Lesson(10, 3, 0.2, WHOLE, cards=1.0)
    world = World(Encoder(processor), 3, token_budget=3000, looking=0, lessons=(lesson,))
    spoilt = [sample for sample in world.batch(0) if sample.shown is not None]
    assert len(spoilt) > 3
    changed = 0
    for sample in spoilt:
        assert sample.shown is not None
        other = sample.shown != sample.token_ids
        assert not bool((other & ~sample.answer).any())
        assert {processor.tokenizer.decode([i]) for i in sample.shown[other].tolist()} <= set(LETTERS)
        changed += int(other.sum())
        batch = collate([sample], demo_config(processor.tokenizer))
        assert torch.equal(batch.packed.token_ids, sample.shown)
        assert torch.equal(batch.targets, sample.token_ids[sample.answer])
    assert changed > 5
