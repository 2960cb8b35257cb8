"""Grammars: what they allow and what not, over a small vocabulary; boxes that lie in their picture; cut answers."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest
from grammar_cases import INSTANCES, SCHEMAS, closed, draw, follows, written

from qwenvl.engine.grammar import Grammars
from qwenvl.engine.grammar_boxes import LARGEST, box_rules
from qwenvl.processing import Tokenizer
from qwenvl.types import Grammar, SamplingParams

BOX: dict[str, Any] = {"type": "array", "format": "bbox_2d"}
POINT: dict[str, Any] = {"type": "array", "format": "point_2d"}
NODE = closed({"box": BOX, "kids": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 2}}, ["box"])
LABEL = {"enum": ["cat", "dög"]}
PLACED: dict[str, dict[str, Any]] = {
    "list": {"type": "array", "items": closed({"bbox_2d": BOX, "label": LABEL}), "minItems": 1, "maxItems": 3},
    "optional": closed({"a": LABEL, "b": BOX, "c": POINT, "d": {"anyOf": [BOX, {"type": "null"}]}}, ["c"]),
    "recursive": {"$defs": {"n": NODE, "l": LABEL}, **closed({"n": {"$ref": "#/$defs/n"}, "l": {"$ref": "#/$defs/l"}})},
    "map": {"type": "object", "additionalProperties": BOX},
    "tuple": {"type": "array", "prefixItems": [BOX, LABEL], "minItems": 2, "maxItems": 2},
    "nullable": closed({"v": {"type": ["object", "null"], "properties": {"default": BOX}, "required": ["default"]}}),
    "alone": BOX,
}  # fmt: skip


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, len(tokenizer) + 5, [tokenizer.eos_token_id])


@pytest.fixture
def luck() -> Random:
    return Random(0)


@pytest.mark.feature(87, 95)
@pytest.mark.parametrize("name", SCHEMAS)
def test_just_what_the_schema_allows_can_be_written(name: str, grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = Grammar.json_schema(SCHEMAS[name])
    valid = jsonschema.Draft202012Validator(SCHEMAS[name])
    verdicts = [valid.is_valid(value) for value in INSTANCES[name]]
    assert {*verdicts} == {True, False}
    for value, good in zip(INSTANCES[name], verdicts, strict=True):
        ids = tokenizer.encode(written(value), special=False)
        assert follows(grammars.start(grammar, SamplingParams()), ids) == good, value


@pytest.mark.feature(87)
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_random_answer_is_valid(name: str, grammars: Grammars, tokenizer: Tokenizer, luck: Random) -> None:
    for _ in range(8):
        ids, _, whole = draw(grammars, Grammar.json_schema(SCHEMAS[name]), luck)
        if whole:
            jsonschema.validate(json.loads(tokenizer.decode(ids)), SCHEMAS[name])


@pytest.mark.feature(86)
@pytest.mark.parametrize("size", [(1260, 812), (28, 28), (100, 1000), (1, 1), (1, 10), (9999, 99999), (84, 2996)])
def test_boxes_lie_in_their_picture(size: tuple[int, int], grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Random draws never leave the picture, and never come to a dead end; every box within can be written."""
    luck, grammar, (width, height) = Random(str(size)), Grammar.json_schema(BOX), size
    digits = [tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"]
    for _ in range(60):
        guide, ids = grammars.start(grammar, SamplingParams(), (size,)), list[int]()
        while not guide.complete:
            banned = guide.banned()
            allowed = np.flatnonzero(~banned)
            more = [token for token in digits if not banned[token]]  # long numbers, to come near the edge
            ids.append(luck.choice(more) if more and luck.random() < 0.8 else int(luck.choice(allowed)))
            guide.take(ids[-1])
        x1, y1, x2, y2 = json.loads(tokenizer.decode(ids))
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height


def _pair(luck: Random, side: int) -> tuple[int, int]:
    first = luck.choice((0, side - 1, luck.randrange(side)))
    return first, luck.choice((first + 1, side, luck.randint(first + 1, side)))


@pytest.mark.feature(86)
def test_thousands_of_boxes_are_judged_as_a_comparison_judges_them(grammars: Grammars, tokenizer: Tokenizer) -> None:
    luck = Random(1)
    for size in ((1260, 812), (99, 1000), (28, 56), (110, 101)):
        start = grammars.start(Grammar.json_schema(BOX), SamplingParams(), (size,))
        for _ in range(600):
            (x1, x2), (y1, y2) = _pair(luck, size[0]), _pair(luck, size[1])
            if luck.random() < 0.6:  # beside or beyond the edges
                change = luck.choice((-11, -10, -1, 1, 2, 9, 10, 100))
                x1, y1, x2, y2 = ((n, n + change)[i == luck.randrange(4)] for i, n in enumerate((x1, y1, x2, y2)))
            good = 0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]
            text = written([x1, y1, x2, y2])
            matcher = start._compiled.deep_copy()
            ids = tokenizer.encode(text)
            assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) == good, (text, size)
        for text in ("[00, 0, 5, 5]", "[01, 0, 5, 5]", "[1.0, 0, 5, 5]", "[1,0,5,5]", "[1, 0, 5]", "[1, 0, 5, 5, 6]"):
            assert not follows(
                grammars.start(Grammar.json_schema(BOX), SamplingParams(), (size,)), tokenizer.encode(text)
            )


@pytest.mark.feature(86, 95)
@pytest.mark.parametrize("name", PLACED)
def test_boxes_anywhere_in_a_schema(name: str, grammars: Grammars, tokenizer: Tokenizer, luck: Random) -> None:
    places = 0
    for _ in range(12):
        ids, _, whole = draw(grammars, Grammar.json_schema(PLACED[name]), luck, ((84, 112),))
        if not whole:
            continue
        data = json.loads(tokenizer.decode(ids))
        jsonschema.validate(data, PLACED[name])
        for numbers in _lists_of_numbers(data):
            places += 1
            if len(numbers) == 4:
                assert 0 <= numbers[0] < numbers[2] <= 84
                assert 0 <= numbers[1] < numbers[3] <= 112
            else:
                assert 0 <= numbers[0] < 84
                assert 0 <= numbers[1] < 112
    assert places


def _lists_of_numbers(data: Any) -> list[list[int]]:
    if isinstance(data, list) and data and all(type(n) is int for n in data):
        return [data]
    parts = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return [one for part in parts for one in _lists_of_numbers(part)]


@pytest.mark.parametrize("name", PLACED)
def test_schemas_with_boxes_leave_nothing_out(name: str, grammars: Grammars, tokenizer: Tokenizer) -> None:
    """What was taken apart allows what it allowed before."""
    box, other = [83, 0, 84, 112], [0, 111, 1, 112]
    whole = {
        "list": [[{"bbox_2d": box, "label": "dög"}], [{"bbox_2d": other, "label": "cat"}] * 3],
        "optional": [{"c": [83, 111]}, {"a": "cat", "c": [0, 0], "d": None}, {"b": box, "c": [0, 0], "d": other}],
        "recursive": [{"n": {"box": box, "kids": [{"box": other}, {"box": box, "kids": []}]}, "l": "cat"}],
        "map": [{}, {"größe": box, "b": other}],
        "tuple": [[box, "cat"]],
        "nullable": [{"v": None}, {"v": {"default": box}}],
        "alone": [box, other],
    }
    for value in whole[name]:
        guide = grammars.start(Grammar.json_schema(PLACED[name]), SamplingParams(), ((84, 112),))
        assert follows(guide, tokenizer.encode(written(value), special=False)), value


@pytest.mark.parametrize("point", [[84, 0], [0, 112], [-1, 0], [5], [5, 5, 5]])
def test_points_lie_in_their_picture(point: list[int], grammars: Grammars, tokenizer: Tokenizer) -> None:
    for place, good in (([83, 111], True), ([0, 0], True), (point, False)):
        guide = grammars.start(Grammar.json_schema(POINT), SamplingParams(), ((84, 112),))
        assert follows(guide, tokenizer.encode(written(place))) == good


def test_each_place_lies_in_its_own_picture(grammars: Grammars, tokenizer: Tokenizer) -> None:
    sizes = ((28, 28), (280, 28))
    schema = closed({"a": {**BOX, "picture": 0}, "b": {**BOX, "picture": -1}, "c": {**POINT, "picture": 1}})
    wide = [100, 0, 200, 5]
    for value, good in (((wide, wide, [99, 0]), False), (([0, 0, 9, 9], wide, [99, 0]), True)):
        guide = grammars.start(Grammar.json_schema(schema), SamplingParams(), sizes)
        text = written(dict(zip("abc", value, strict=True)))
        assert follows(guide, tokenizer.encode(text)) == good
    with pytest.raises(ValueError, match=r"2 of 2 sizes, and its schema does not say in which"):
        grammars.start(Grammar.json_schema(BOX), SamplingParams(), sizes)
    with pytest.raises(ValueError, match=r"\"picture\": 7 is none of them"):
        grammars.start(Grammar.json_schema({**BOX, "picture": 7}), SamplingParams(), sizes)
    with pytest.raises(ValueError, match="0 of 0 sizes"):
        grammars.start(Grammar.json_schema(POINT), SamplingParams())


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"type": "nope"}, "nope"),
        ({"type": "string", "pattern": "(?=a)b"}, "look"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"type": "object", "properties": {"b": BOX}, "required": ["b"], "minProperties": 1}, "minProperties"),
        ({"type": "array", "items": BOX, "contains": {}}, "contains"),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": BOX}, "additionalProperties"),
    ],
)
def test_what_cannot_be_kept_to_is_refused(schema: dict[str, Any], says: str, grammars: Grammars) -> None:
    with pytest.raises(ValueError, match=says):
        grammars.start(Grammar.json_schema(schema), SamplingParams(), ((28, 28),))


def test_mistakes_in_descriptions() -> None:
    for wrong in (
        lambda: Grammar("yaml", "x"),  # type: ignore[arg-type]
        lambda: Grammar("regex"),
        lambda: Grammar("json", "{}"),
        lambda: Grammar("regex", "a", before="b"),
        lambda: Grammar("json", thought=True),
        lambda: Grammar.json_schema({"enum": [object()]}),
        lambda: SamplingParams(grammar=Grammar("json"), forced_eos=(1,)),
        lambda: box_rules("b", 0, 5),
        lambda: box_rules("b", 5, LARGEST + 1),
    ):
        with pytest.raises(ValueError, match=r"expected|needs|into|no JSON"):
            wrong()


def test_broken_grammars_are_refused(grammars: Grammars) -> None:
    for grammar in (Grammar("regex", "(a"), Grammar("lark", "start: nothing"), Grammar("json_schema", "{")):
        with pytest.raises(ValueError, match=r"cannot be read|no JSON"):
            grammars.start(grammar, SamplingParams())
    with pytest.raises(ValueError, match="give the engine a tokenizer"):
        Grammars(None, 10, []).start(Grammar("json"), SamplingParams())


def test_other_kinds(grammars: Grammars, tokenizer: Tokenizer) -> None:
    for grammar, good, bad in (
        (Grammar("regex", "[A-Z]{2}-[0-9]+"), ["AB-1", "ZZ-000"], ["A-1", "AB-"]),
        (Grammar("lark", 'start: "yes" | "no"'), ["yes", "no"], ["yesno", "maybe"]),
        (Grammar("json"), ["{}", '{"a": [1, {"b": null}]}'], ["[]", '{"a":1}', "{} "]),
    ):
        for text in (*good, *bad):
            ids = tokenizer.encode(text, special=False)
            assert follows(grammars.start(grammar, SamplingParams()), ids) == (text in good), (grammar, text)


@pytest.mark.feature(97)
def test_text_around_the_json(grammars: Grammars, tokenizer: Tokenizer) -> None:
    one = {"const": 1}
    call = Grammar.json_schema(one, before="<tool_call>\n", after="\n</tool_call>")
    thought = Grammar.json_schema(one, before="<tool_call>\n", after="\n</tool_call>", thought=True)
    fence = Grammar.json_schema(one, before="```json\n", after="\n```", thought=True)
    for grammar, text, good in (
        (call, "<tool_call>\n1\n</tool_call>", True),
        (call, "So: <tool_call>\n1\n</tool_call>", False),
        (thought, "I see < and {.\n<tool_call>\n1\n</tool_call>", True),
        (thought, "I see\n<tool_call>\n2\n</tool_call>", False),
        (thought, "I see", False),
        (fence, "I see {.\n```json\n1\n```", True),
    ):
        assert follows(grammars.start(grammar, SamplingParams()), tokenizer.encode(text)) == good, text
    plain = tokenizer.encode("<tool_call>\n1\n</tool_call>", special=False)
    assert not follows(grammars.start(call, SamplingParams()), plain), "the token, not its spelling"


def test_control_tokens_and_ids_without_a_token_are_never_allowed(grammars: Grammars, tokenizer: Tokenizer) -> None:
    guide = grammars.start(Grammar("regex", "(.|\n)*"), SamplingParams())
    allowed = set(np.flatnonzero(~guide.banned()).tolist())
    specials = set(tokenizer.convert_tokens_to_ids(list(tokenizer.added_tokens)))
    assert allowed & specials == {tokenizer.eos_token_id}
    assert max(allowed) < len(tokenizer)
    assert len(allowed) > len(tokenizer) - len(specials) - 200  # pieces of characters may not begin a text


def test_an_end_is_allowed_only_where_the_answer_may_end(grammars: Grammars, tokenizer: Tokenizer) -> None:
    end, letter = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("a")
    other = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for params, ends in (
        (SamplingParams(), {end}),
        (SamplingParams(stop_token_ids=(other,)), {end, other}),
        (SamplingParams(ignore_eos=True), set()),
        (SamplingParams(stop_token_ids=(letter,)), {end, letter}),
    ):
        guide = grammars.start(Grammar("regex", "(ab)+"), params)
        for token in tokenizer.encode("abab"):
            banned = guide.banned()
            open_ends = {i for i in (end, other) if not banned[i]}
            assert open_ends == (ends - {letter} if guide.may_end else set())
            if letter in ends:
                assert bool(banned[letter]) == (not guide.may_end), "a stop token of text ends too, and only there"
                break
            guide.take(token)


def test_forced_tokens_are_the_only_ones_allowed(grammars: Grammars, tokenizer: Tokenizer) -> None:
    guide = grammars.start(Grammar.json_schema(SCHEMAS["receipt"]), SamplingParams())
    forced = guide.forced(64)
    assert tokenizer.decode(forced).startswith('{"company"')
    assert guide.forced(3) == forced[:3]
    assert guide.forced(0) == ()
    for token in forced:
        assert np.flatnonzero(~guide.banned()).tolist() == [token]
        guide.take(token)
    rest = '{"company": "x", "datum": "'.removeprefix(tokenizer.decode(forced))
    draft = tuple(tokenizer.encode(rest, special=False))
    agreed = guide.agree(draft)
    assert tokenizer.decode(agreed) in rest[: rest.index("um")]
    assert 0 < len(agreed) < len(draft)


@pytest.mark.feature(95)
@pytest.mark.parametrize("name", [*SCHEMAS, *(f"placed {name}" for name in PLACED)])
def test_an_answer_can_be_closed_wherever_it_was_cut(
    name: str, grammars: Grammars, tokenizer: Tokenizer, luck: Random
) -> None:
    schema = SCHEMAS.get(name) or PLACED[name.removeprefix("placed ")]
    grammar = Grammar.json_schema(schema)
    for _ in range(3):
        ids, guide, _ = draw(grammars, grammar, luck, ((84, 112),))
        for cut in {0, len(ids), *(luck.randint(0, len(ids)) for _ in range(5))}:
            text = guide.close(ids[:cut])
            assert text is not None, tokenizer.decode(ids[:cut])
            assert text.startswith(tokenizer.decode(ids[:cut]).rstrip("\N{REPLACEMENT CHARACTER}"))
            jsonschema.validate(json.loads(text), schema)


def test_closing_is_short(grammars: Grammars, tokenizer: Tokenizer) -> None:
    guide = grammars.start(Grammar.json_schema(SCHEMAS["receipt"]), SamplingParams())
    cut = tokenizer.encode('{"company": "Corner Ca', special=False)
    assert guide.close(cut) == '{"company": "Corner Ca", "date": "", "total": ""}'
    assert guide.close([*cut, tokenizer.eos_token_id]) == guide.close(cut)
    assert guide.close(tokenizer.encode("nonsense", special=False)) is None
    number = grammars.start(Grammar.json_schema(SCHEMAS["optional"]), SamplingParams())
    assert number.close(tokenizer.encode('{"c": 1', special=False)) == '{"c": 1}'
    loop = grammars.start(Grammar("regex", "a*b"), SamplingParams())
    closed_loop = loop.close([])
    assert closed_loop is not None
    assert closed_loop.rstrip("b").strip("a") == ""


def test_grammars_are_compiled_once(tokenizer: Tokenizer) -> None:
    grammars = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    schema, sizes = Grammar.json_schema(SCHEMAS["receipt"]), ((28, 28), (56, 56))
    grammars.start(schema, SamplingParams(), sizes[:1])
    grammars.start(schema, SamplingParams(), sizes[1:])
    assert len(grammars._kept) == 1, "pictures do not matter to it"
    box = Grammar.json_schema(BOX)
    for size in sizes:
        grammars.start(box, SamplingParams(), (size,))
    assert len(grammars._kept) == 3
    for i in range(100):
        grammars.start(Grammar("regex", f"a{{{i}}}"), SamplingParams())
    assert len(grammars._kept) == 64
