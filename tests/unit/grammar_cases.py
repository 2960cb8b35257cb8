"""Schemas that are hard to keep to, instances that they allow and others that they do not, and random answers."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import numpy as np

from qwenvl.engine.grammar import Grammars, Guide
from qwenvl.types import Grammar, SamplingParams


def closed(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    wanted = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": wanted, "additionalProperties": False, **more}


NODE = closed(
    {
        "v": {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3},
        "c": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 2},
    },
    ["v"],
)
ITEM = closed(
    {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "price": {"type": "number", "minimum": 0, "maximum": 99.5},
        "tags": {"type": "array", "items": {"enum": ["new", "sale", "größe"]}, "maxItems": 2},
    },
    ["name", "price"],
)
ENUM = [1, "1", None, True, {"a": [1, 2]}, "日本", 'a"b\\c\n']
SCHEMAS: dict[str, dict[str, Any]] = {
    "receipt": closed({name: {"type": "string", "maxLength": 12} for name in ("company", "date", "total")}),
    "nested": closed(
        {"id": {"type": "integer"}, "items": {"type": "array", "minItems": 1, "maxItems": 3, "items": ITEM}}
    ),
    "union": closed(
        {
            "value": {
                "anyOf": [
                    {"type": "integer", "minimum": -5, "maximum": 12},
                    {"type": "null"},
                    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
                    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
                ]
            }
        }
    ),
    "enum": closed({"e": {"enum": ENUM}, "c": {"const": "x"}}),
    "map": {
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 9},
        "maxProperties": 4,
    },
    "recursive": {"$defs": {"n": NODE}, "$ref": "#/$defs/n"},
    "optional": closed({name: {"type": "integer", "minimum": 0, "maximum": 255} for name in "abcd"}, ["c"]),
    "multiple": closed({"m": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700}}),
    "one of": {
        "oneOf": [
            closed({"kind": {"const": "a"}, "x": {"type": "integer", "minimum": 0, "maximum": 99}}),
            closed({"kind": {"const": "b"}, "y": {"type": "string", "maxLength": 3}}),
        ]
    },
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["a"]},
            {"properties": {"b": {"type": "string", "maxLength": 4}}, "required": ["b"], "additionalProperties": True},
        ],
        "maxProperties": 2,
    },
}
INSTANCES: dict[str, list[Any]] = {
    "receipt": [
        {"company": 'A "q" \\ é 日', "date": "", "total": "x\ny\t"},
        {"company": "A", "date": ""},
        {"company": "A" * 13, "date": "", "total": ""},
        {"company": "A", "date": "", "total": "", "more": 1},
    ],
    "nested": [
        {"id": -3, "items": [{"name": "ab", "price": 99.5}, {"name": "é", "price": 0.25, "tags": ["größe", "new"]}]},
        {"id": 1, "items": []},
        {"id": 1, "items": [{"name": "", "price": 1}]},
        {"id": 1, "items": [{"name": "a", "price": 99.6}]},
        {"id": 1, "items": [{"name": "a" * 21, "price": 1}]},
        {"id": 1, "items": [{"name": "a", "price": 1, "tags": ["old"]}]},
        {"id": 1.5, "items": [{"name": "a", "price": 1}]},
    ],
    "union": [{"value": v} for v in (12, 13, -5, -6, "AB-123", "AB-12", "xAB-123", [True, False], [True], None, 0.5)],
    "enum": [*({"e": e, "c": "x"} for e in ENUM), {"e": 2, "c": "x"}, {"e": 1, "c": "y"}],
    "map": [{}, {"a b": 3, "é": 9}, {"a": 10}, dict.fromkeys("abcd", 1), dict.fromkeys("abcde", 1)],
    "recursive": [{"v": 2, "c": [{"v": -2, "c": []}, {"v": 0}]}, {"v": 3}, {"v": 1, "c": [{"v": 1}] * 3}],
    "optional": [{"c": 1}, {"a": 255, "c": 1, "d": 0}, {"a": 256, "c": 1}, {"a": 1}, {"b": 0, "c": 0}],
    "multiple": [{"m": 693}, {"m": 694}, {"m": 0}, {"m": 707}],
    "one of": [{"kind": "a", "x": 1}, {"kind": "b", "x": 1}, {"kind": "b", "y": ""}, {"kind": "c"}],
    "all of": [{"a": 1, "b": "abcd"}, {"a": 1, "b": "abcde"}, {"a": 1}, {"b": "x"}],
}  # fmt: skip


def draw(
    grammars: Grammars, grammar: Grammar, luck: Random, sizes: tuple[tuple[int, int], ...] = (), most: int = 400
) -> tuple[list[int], Guide, bool]:
    """A random answer: ids, the guide behind them, and whether it came to its end. What ends a string or a list is
    preferred where much is allowed, so that answers end."""
    tokenizer = grammars._tokenizer
    guide, ids = grammars.start(grammar, SamplingParams(), sizes), list[int]()
    vocabulary = tokenizer.get_vocab()
    closers = [vocabulary[text] for text in CLOSERS if text in vocabulary]
    while len(ids) < most:
        banned = guide.banned()
        allowed = np.flatnonzero(~banned)
        assert len(allowed), (tokenizer.decode(ids), guide.fault)
        ends = [token for token in closers if not banned[token]] if len(allowed) > 12 else []
        token = luck.choice(ends) if ends and luck.random() < 0.5 else int(luck.choice(allowed))
        guide.take(token)
        if token == tokenizer.eos_token_id:
            return ids, guide, True
        ids.append(token)
        if guide.complete:
            return ids, guide, True
    return ids, guide, False


CLOSERS = ('"', "}", "]", '"}', '",', "]}", "}]", '"]')


def follows(guide: Guide, ids: list[int]) -> bool:
    """Whether a guide lets an answer come, token by token, and end there."""
    for token in ids:
        if guide.banned()[token]:
            return False
        guide.take(token)
    return guide.may_end


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
