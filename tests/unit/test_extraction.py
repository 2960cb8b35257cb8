"""Extraction with a scripted assistant: what is asked, what comes of the answers, places, confidences, cut answers."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from enum import Enum
from typing import Any, Literal

import jsonschema
import pytest
from grammar_cases import closed, draw
from PIL import Image
from pydantic import BaseModel, Field, field_validator
from scripted_assistant import ScriptedAssistant, Written

from qwenvl.engine.grammar import Grammars
from qwenvl.processing import Tokenizer
from qwenvl.tasks.extraction import (
    BBox2D,
    ExtractionError,
    Point2D,
    choice_grammar,
    classify,
    extract,
    labels_grammar,
    tool_call_grammar,
    wanted,
)
from qwenvl.tasks.extraction.extract import row
from qwenvl.tasks.extraction.prompts import question
from qwenvl.tasks.extraction.written import read
from qwenvl.types import Grammar, SamplingParams

PICTURE = Image.new("RGB", (200, 100), "white")  # seen as 196 x 112


class Item(BaseModel):
    name: str
    price: Decimal = Field(ge=0)


class Receipt(BaseModel):
    """A receipt."""

    company: str = Field(description="who wrote it")
    date: datetime.date
    items: list[Item] = []
    paid: Literal["cash", "card"] | None = None
    tags: set[str] = set()


class Find(BaseModel):
    box: BBox2D
    at: Point2D | None = None
    label: str


class Finds(BaseModel):
    finds: list[Find]


@pytest.mark.feature(87, 95)
def test_the_question_is_the_cookbooks() -> None:
    helper = ScriptedAssistant(['{"company": "ACME", "date": "2024-03-12"}'])
    found = extract(helper, PICTURE, ["company", "date"])
    assert helper.asked[0].question == 'Extract the key-value information in the format:{"company": "", "date": ""}'
    assert found.value == found.data == {"company": "ACME", "date": "2024-03-12"}
    assert found.complete
    assert found.cut == ()
    grammar = helper.asked[0].sampling.grammar
    assert grammar is not None
    assert json.loads(grammar.source)["required"] == ["company", "date"]
    extract(helper, [PICTURE, PICTURE], ["company", "date"], instructions="Dates as YYYY-MM-DD.")
    assert helper.asked[1].question.endswith('"date": ""}\nDates as YYYY-MM-DD.')
    assert len(helper.asked[1].media) == 2


def test_questions_of_nested_schemas() -> None:
    assert question(wanted(Receipt)) == (
        'Extract the key-value information in the format:{"company": "", "date": "", '
        '"items": [{"name": "", "price": ""}], "paid": "", "tags": [""]}\n'
        'company: who wrote it\npaid: one of "cash", "card"'
    )
    assert question(wanted(Finds)).endswith(
        '{"finds": [{"box": ["x1", "y1", "x2", "y2"], "at": ["x", "y"], "label": ""}]}'
    )
    loop = {"$defs": {"n": {"type": "object", "properties": {"kid": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}
    assert question(wanted(loop)).count("kid") == 7


@pytest.mark.feature(95)
def test_a_pydantic_model_comes_back_as_an_instance() -> None:
    text = (
        '{"company": "Café", "date": "2024-02-29", "items": [{"name": "TEA", "price": 3.50}], "paid": null, '
        '"tags": ["a", "a"]}'
    )
    found = extract(ScriptedAssistant([Written(text, probability=0.25)]), PICTURE, Receipt)
    receipt = found.value
    assert isinstance(receipt, Receipt)
    assert (receipt.date, receipt.tags) == (datetime.date(2024, 2, 29), {"a"})
    assert receipt.items == [Item(name="TEA", price=Decimal("3.5"))]
    assert [*found.confidence] == [
        "company", "date", "items[0].name", "items[0].price", "paid", "tags[0]", "tags[1]"
    ]  # fmt: skip
    assert found.confidence["company"] == pytest.approx(0.25)
    assert found.to_dict()["data"]["company"] == "Café"


def test_confidence_is_of_the_tokens_that_wrote_the_value() -> None:
    text = '{"a": "xy", "b": 12}'
    helper = ScriptedAssistant([Written(text)])

    def ask(*arguments: Any, **options: Any) -> Any:
        answer = ScriptedAssistant.ask(helper, *arguments, **options)
        assert answer.completion.logprobs is not None
        for place, sure in ((6, 0.5), (7, 0.25), (8, 0.125), (9, 1.0), (17, 0.9), (18, 0.1)):
            answer.completion.logprobs[place] = math.log(sure)
        return answer

    helper.ask = ask  # type: ignore[method-assign]
    found = extract(
        helper, PICTURE, {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}
    )
    assert found.confidence == pytest.approx({"a": (0.5 * 0.25 * 0.125) ** 0.25, "b": 0.3})


@pytest.mark.feature(86, 95)
def test_places_come_in_original_pixels() -> None:
    """200 x 100 is seen as 196 x 112."""
    text = '{"finds": [{"box": [49, 28, 196, 112], "at": [98, 56], "label": "x"}]}'
    (find,) = extract(ScriptedAssistant([text]), PICTURE, Finds).value.finds
    assert isinstance(find.box, BBox2D)
    assert find.box == (50.0, 25.0, 200.0, 100.0)
    assert (find.at.x, find.at.y) == (100.0, 50.0)
    whole = closed({"bbox_2d": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}})
    found = extract(ScriptedAssistant(['{"bbox_2d": [10, 10, 11, 11]}']), PICTURE, whole)
    assert found.data == {"bbox_2d": [10, 8, 12, 10]}, "whole numbers, rounded outwards"
    asked = wanted(whole)
    assert asked.has_places
    assert not wanted(["bbox"]).has_places


def test_each_picture_has_its_own_size() -> None:
    box = {"type": "array", "format": "bbox_2d"}
    schema = closed({"a": {**box, "picture": 0}, "b": {**box, "picture": -1}})
    text = '{"a": [0, 0, 98, 56], "b": [0, 0, 112, 56]}'
    other = Image.new("RGB", (112, 84))
    found = extract(ScriptedAssistant([text]), [PICTURE, other], schema)
    assert found.data == {"a": [0, 0, 100, 50], "b": [0, 0, 112, 56]}
    with pytest.raises(ExtractionError, match="a place needs its picture"):
        extract(ScriptedAssistant(['{"a": [0, 0, 9, 9]}']), [PICTURE, other], closed({"a": box}))


@pytest.mark.parametrize(
    ("schema", "text", "says"),
    [
        (Receipt, '{"company": "x"}', "date"),
        (Receipt, "Sorry, I cannot.", "expected a JSON value"),
        (["a"], '{"a": 1}', "a: 1 is not of type 'string'"),
        (["a"], '{"b": ""}', "'a' is a required property"),
        (["a"], '{"a": "x"', "expected ','"),
        (["a"], '{"a": "x"} and more', "more text"),
    ],
)
def test_answers_that_do_not_fit_are_told_with_their_text(schema: Any, text: str, says: str) -> None:
    with pytest.raises(ExtractionError, match=says) as told:
        extract(ScriptedAssistant([text]), PICTURE, schema)
    assert told.value.text == text


def test_a_models_own_checks_count() -> None:
    class Strict(BaseModel):
        a: str

        @field_validator("a")
        @classmethod
        def never(cls, value: str) -> str:
            raise ValueError("not this one")

    with pytest.raises(ExtractionError, match="not this one"):
        extract(ScriptedAssistant(['{"a": "x"}']), PICTURE, Strict)


def test_cut_answers_are_closed_and_say_so() -> None:
    helper = ScriptedAssistant([Written('{"a": "one", "b": "tw', "length")])
    ask = helper.ask

    def closing(*arguments: Any, **options: Any) -> Any:
        answer = ask(*arguments, **options)
        answer.completion.closed = '{"a": "one", "b": "tw", "c": ""}'
        return answer

    helper.ask = closing  # type: ignore[method-assign]
    found = extract(helper, PICTURE, ["a", "b", "c"])
    assert found.data == {"a": "one", "b": "tw", "c": ""}
    assert (found.complete, found.cut) == (False, ("b", "c"))
    assert found.confidence["c"] == 0
    assert row(found, ["c", "a", "nothing"]) == ["", "one", ""]
    with pytest.raises(ExtractionError, match="raise max_new_tokens"):
        extract(ScriptedAssistant([Written('{"a": "one', "length")]), PICTURE, ["a"])


@pytest.mark.parametrize("wrong", [[], [""], ["a", "a"], {"type": 5}, [1]])
def test_what_is_no_schema_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"names|name twice|expected a JSON Schema"):
        extract(ScriptedAssistant(["{}"]), PICTURE, wrong)


def test_sampling_of_ones_own() -> None:
    helper = ScriptedAssistant(['{"a": ""}'])
    extract(helper, PICTURE, ["a"], sampling=SamplingParams(temperature=1.0, max_new_tokens=7))
    assert (helper.asked[0].sampling.temperature, helper.asked[0].sampling.max_new_tokens) == (1.0, 7)
    for wrong in (
        SamplingParams(grammar=Grammar("json")),
        SamplingParams(stop=("}",)),
        SamplingParams(stop_token_ids=(5,)),
    ):
        with pytest.raises(ValueError, match="leave"):
            extract(helper, PICTURE, ["a"], sampling=wrong)


def test_classify_answers_one_of_the_choices() -> None:
    helper = ScriptedAssistant(["ein Größeres"])
    assert classify(helper, PICTURE, ["cat", "ein Größeres"]) == "ein Größeres"
    assert "cat, ein Größeres" in helper.asked[0].question
    with pytest.raises(ExtractionError, match="none of"):
        classify(ScriptedAssistant(["dog"]), PICTURE, ["cat"])
    with pytest.raises(ValueError, match="expected a list of strings"):
        classify(helper, PICTURE, "cat")


class Kind(Enum):
    A = "a"
    B = "größe"


class Everything(BaseModel):
    """Types whose own schemas are wider than what they take."""

    day: datetime.date
    moment: datetime.datetime
    clock: datetime.time
    amount: Decimal = Field(ge=1, le=9)
    kind: Kind
    pair: tuple[int, str]
    union: int | list[bool] | None
    letters: frozenset[Literal["x", "y"]]
    more: dict[str, Item] = {}


def test_what_a_grammar_allows_a_pydantic_model_takes(tokenizer: Tokenizer) -> None:
    """Random answers: dates are real ones, decimals are numbers."""
    from random import Random

    grammars, luck = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id]), Random(0)
    want, taken = wanted(Everything), 0
    for _ in range(12):
        ids, guide, _ = draw(grammars, Grammar.json_schema(want.schema), luck, most=200)
        text = guide.close(ids)
        assert text is not None
        want.check(read(text)[0])
        taken += 1
    assert taken == 12
    day = grammars.start(Grammar.json_schema(wanted({"type": "string", "format": "date"}).schema), SamplingParams())
    for text, good in (("2024-02-29", True), ("2023-02-29", False), ("1900-02-29", False), ("2000-02-29", True),
                       ("0000-01-01", False), ("2023-04-31", False), ("2023-12-31", True)):  # fmt: skip
        ids = tokenizer.encode(json.dumps(text))
        matcher = day._compiled.deep_copy()
        assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) == good, text


def test_grammars_for_other_tasks(tokenizer: Tokenizer) -> None:
    from random import Random

    grammars, luck = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id]), Random(0)
    for _ in range(5):
        ids, _, _ = draw(grammars, labels_grammar(["cat", "dog"], least=1, most=3), luck, ((56, 28),))
        for find in json.loads(tokenizer.decode(ids)):
            assert find["label"] in ("cat", "dog")
            assert 0 <= find["bbox_2d"][0] < find["bbox_2d"][2] <= 56
        ids, _, _ = draw(grammars, choice_grammar(["a", "größer"]), luck)
        assert tokenizer.decode(ids) in ("a", "größer")
    parameters = {
        "type": "object",
        "properties": {
            "action": {"type": "string", "enum": ["click", "wait"]},
            "coordinate": {"type": "array", "description": "x and y"},
        },
        "required": ["action", "coordinate"],
    }
    tools = [{"type": "function", "function": {"name": "computer_use", "parameters": parameters}}, {"name": "look"}]
    grammar = tool_call_grammar(tools, points=("coordinate",), picture=-1)
    names = set()
    for _ in range(20):
        ids, _, whole = draw(grammars, grammar, luck, ((280, 280), (56, 28)))
        text = tokenizer.decode(ids)
        if not whole:
            continue
        assert text.startswith("<tool_call>\n")
        assert text.endswith("\n</tool_call>")
        call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        names.add(call["name"])
        if call["name"] == "computer_use":
            jsonschema.validate(call["arguments"], parameters)
            assert 0 <= call["arguments"]["coordinate"][0] < 56
            assert 0 <= call["arguments"]["coordinate"][1] < 28
    assert names == {"computer_use", "look"}
    with pytest.raises(ValueError, match="no tools"):
        tool_call_grammar([])


def test_reading_json_gives_the_places_of_its_values() -> None:
    text = '{"a": [1, {"b": "x\\"y"}], "c": {}, "d": -1.5e3 ,"e":[ ], "f": null}'
    value, spans = read(text)
    assert value == json.loads(text)
    assert {s.path: text[s.start : s.end] for s in spans} == {
        "a[0]": "1", "a[1].b": '"x\\"y"', "c": "{}", "d": "-1.5e3", "e": "[ ]", "f": "null"
    }  # fmt: skip
    for broken in ("", "{", '{"a" 1}', "[1,]", "01", "nul", '{"a": 1,}', '"x', "{1: 2}", "[1 2]", "NaN"):
        with pytest.raises(ValueError, match=r"."):
            read(broken)
