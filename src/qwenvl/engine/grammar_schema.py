"""A Grammar -> the text that llguidance compiles.

In: a Grammar, and the sizes of the pictures of its request. Out: a grammar as llguidance reads it. Does not know
tokenizers, requests or matchers.

llguidance compiles JSON Schemas by itself. Points in a picture are put into the schema as bounds. A schema with
boxes, whose corners depend on one another (grammar_boxes.py), is taken apart: what lies above a box (objects, arrays,
unions, references) becomes rules, and every part without a box stays a schema within them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from qwenvl.types import Grammar

from .grammar_boxes import box_rules

Schema = Any  # a mapping, or True or False
Size = tuple[int, int]  # width and height

BOX, POINT = "bbox_2d", "point_2d"
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_NOTES = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$defs",
     "definitions", "$schema", "$id", "format", "picture", "discriminator"}
)  # fmt: skip
_LITERAL = frozenset({"enum", "const", "default", "examples"})  # keywords with values that are no schemas
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})  # with schemas by name
_REFERENCE = "#/$defs/whole"  # where the whole schema stands in a part of it


def knows_pictures(grammar: Grammar) -> bool:
    """Whether a grammar depends on the sizes of the pictures."""
    return grammar.kind == "json_schema" and (f'"{BOX}"' in grammar.source or f'"{POINT}"' in grammar.source)


def grammar_text(grammar: Grammar, sizes: Sequence[Size], added: Collection[str], sides: Size | None = None) -> str:
    """What llguidance compiles. sizes: of the pictures and videos as the model sees them, in order; sides: what their
    sides are in the numbers that the model writes, where these are no pixels. added: the tokenizer's added tokens.
    ValueError for a schema that cannot be kept to while an answer is written."""
    from llguidance import LLMatcher

    if grammar.kind == "lark":
        return str(LLMatcher.grammar_from_lark(grammar.source))
    if grammar.kind == "regex":
        return str(LLMatcher.grammar_from_regex(grammar.source))
    schema = {"type": "object"} if grammar.kind == "json" else _read(grammar.source)
    _check(_places_as(schema, sizes, sides, boxes=False), LLMatcher)
    body, rules = _Rules(_places_as(schema, sizes, sides, boxes=True), sizes, sides).text()
    before, after = _literal(grammar.before, added), _literal(grammar.after, added)
    thought = ""
    if grammar.thought:  # any text, up to where the rest begins
        lazy = before[0].startswith('"')
        options = ["lazy"] * lazy + ([] if grammar.thought is True else [f"max_tokens={grammar.thought}"])
        thought = f"thought[{', '.join(options)}]: " if options else "thought: "
        thought += f"TEXT {before[0]}\nTEXT: /(.|\\n)*/\n" if lazy else "/(.|\\n)*/\n"
        before = ["thought", *before[lazy:]]
    return str(LLMatcher.grammar_from_lark(f"start: {' '.join((*before, body, *after))}\n{thought}{rules}"))


def is_place(schema: Schema, name: str) -> bool:
    """Whether a schema is a box (name "bbox_2d") or a point ("point_2d")."""
    return isinstance(schema, Mapping) and schema.get("format") == name and "$ref" not in schema


def _read(source: str) -> Schema:
    try:
        schema = json.loads(source)
    except json.JSONDecodeError as error:
        raise ValueError(f"the JSON Schema is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ValueError(f"a JSON Schema is an object, got {type(schema).__name__}")
    return {key: value for key, value in schema.items() if key not in ("$id", "$schema")}


def _check(schema: Schema, matcher: Any) -> None:
    """ValueError unless llguidance can keep to the schema (boxes apart); what it cannot do it refuses."""
    text = matcher.grammar_from_json_schema({**schema, "x-guidance": STYLE})
    failed, messages = matcher.validate_grammar_with_warnings(text)
    if failed or messages:
        raise ValueError(f"this JSON Schema cannot be kept to: {' '.join(messages[0].split())}; leave that part out")


def _mapped(schema: Schema, change: Any) -> Schema:
    """The schema with change(node) in place of each node, from the top; `change` gives the node whose parts are gone
    through next."""
    if isinstance(schema, list):
        return [_mapped(one, change) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    mapped = {}
    for key, value in change(schema).items():
        if key in _NAMED and isinstance(value, Mapping):
            mapped[key] = {name: _mapped(one, change) for name, one in value.items()}
        else:
            mapped[key] = value if key in _LITERAL else _mapped(value, change)
    return mapped


def _places_as(schema: Schema, sizes: Sequence[Size], sides: Size | None, boxes: bool) -> Schema:
    """The schema with points as bounded integers; boxes stay as they are, or become bounded integers too."""

    def place(node: Schema) -> Schema:
        if is_place(node, POINT) or (not boxes and is_place(node, BOX)):
            width, height = _written_size(node, sizes, sides)
            edge = int(is_place(node, POINT))
            bounds = [{"type": "integer", "minimum": 0, "maximum": side - edge} for side in (width, height)]
            items = bounds if is_place(node, POINT) else bounds * 2
            return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        return node

    return _mapped(schema, place)


def size_of(place: Mapping[str, Any], sizes: Sequence[Size]) -> Size:
    """The size of the picture that a box or a point lies in. ValueError where there is none, or it is not clear."""
    at = place.get("picture")
    if at is None and len(set(sizes)) == 1:
        return sizes[0]
    if at is None or not isinstance(at, int) or not -len(sizes) <= at < len(sizes):
        which = "its schema does not say in which" if at is None else f'"picture": {at!r} is none of them'
        raise ValueError(
            f"a place needs its picture: the prompt has {len(sizes)} of {len(set(sizes))} sizes, and {which}; give "
            '"picture": 0, 1, ...'
        )
    return sizes[at]


def _written_size(place: Mapping[str, Any], sizes: Sequence[Size], sides: Size | None) -> Size:
    """The size of a place's picture in the numbers that the model writes."""
    size = size_of(place, sizes)  # also where it is not needed: that it is clear is asked for in both families
    return sides or size


def _literal(text: str, added: Collection[str]) -> list[str]:
    """A text as Lark: strings, and added tokens between them."""
    pattern = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
    parts = re.split(f"({pattern})", text) if pattern else [text]
    return [part if part in added else json.dumps(part, ensure_ascii=False) for part in parts if part]


class _Rules:
    """A schema with boxes as rules."""

    def __init__(self, schema: Schema, sizes: Sequence[Size], sides: Size | None) -> None:
        self._whole, self._sizes, self._sides = schema, sizes, sides
        self._rules: dict[str, str] = {}
        self._boxes: dict[Size, str] = {}
        self._references: dict[str, str] = {}

    def text(self) -> tuple[str, str]:
        """(the expression of the whole, the rules that it needs)."""
        body = self._node(self._whole)
        rules = [f"{name}: {rule}" for name, rule in self._rules.items()]
        return body, "\n".join((*rules, *(box_rules(name, *size) for size, name in self._boxes.items())))

    def _node(self, schema: Schema) -> str:
        if not self._has_box(schema, set()):
            return self._part(schema)
        if is_place(schema, BOX):
            size = _written_size(schema, self._sizes, self._sides)
            return self._boxes.setdefault(size, f"box{len(self._boxes)}")
        if "$ref" in schema:
            _only(schema, "$ref")
            return self._reference(schema["$ref"])
        for union in ("anyOf", "oneOf", "allOf"):
            if union in schema and (union != "allOf" or len(schema[union]) == 1):
                _only(schema, union)
                return self._rule(" | ".join(self._node(one) for one in schema[union]))
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._rule(" | ".join(self._node({**schema, "type": one}) for one in kind))
        if kind == "object" or (kind is None and "properties" in schema):
            return self._object(schema)
        if kind == "array":
            return self._array(schema)
        if kind in ("string", "number", "integer", "boolean", "null"):  # of a list of types
            return self._part({"type": kind})
        keys = ", ".join(key for key in schema if key not in _NOTES)
        raise ValueError(f"a box cannot stand under {keys}: put it under properties, items, anyOf or $ref")

    def _has_box(self, schema: Schema, seen: set[str]) -> bool:
        """Whether a box is somewhere in a schema or in what it refers to."""
        if isinstance(schema, list):
            return any(self._has_box(one, seen) for one in schema)
        if not isinstance(schema, Mapping):
            return False
        if is_place(schema, BOX):
            return True
        target = schema.get("$ref")
        if isinstance(target, str) and target not in seen and self._has_box(self._find(target), seen | {target}):
            return True
        named = [one for key in ("properties", "patternProperties") for one in schema.get(key, {}).values()]
        others = [value for key, value in schema.items() if key not in _LITERAL | _NAMED]
        return any(self._has_box(one, seen) for one in (*named, *others))

    def _find(self, reference: str) -> Schema:
        node = self._whole
        for step in filter(None, reference.removeprefix("#").split("/")):
            name = step.replace("~1", "/").replace("~0", "~")
            try:
                node = node[int(name)] if isinstance(node, list) else node[name]
            except (KeyError, IndexError, ValueError, TypeError):
                raise ValueError(f"the JSON Schema refers to {reference!r}, which it does not have") from None
        return node

    def _part(self, schema: Schema) -> str:
        """A schema without boxes, as it is."""
        if schema is self._whole:
            return "%json " + json.dumps({**schema, "x-guidance": STYLE}, ensure_ascii=False)
        if schema is True:
            schema = {}

        def moved(node: Schema) -> Schema:
            target = node.get("$ref")
            return {**node, "$ref": _REFERENCE + target[1:]} if isinstance(target, str) else node

        part = {**_mapped(schema, moved), "x-guidance": STYLE}
        if "$ref" in json.dumps(part):
            part["$defs"] = {"whole": _mapped(self._whole, moved)}
        return self._rule("%json " + json.dumps(part, ensure_ascii=False))

    def _reference(self, target: str) -> str:
        if target not in self._references:
            name = self._references[target] = f"ref{len(self._references)}"
            self._rules[name] = self._node(self._find(target))
        return self._references[target]

    def _object(self, schema: Schema) -> str:
        """Properties in their order; the optional ones may be left out."""
        _only(schema, "type", "properties", "required", "additionalProperties")
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties", False)
        if rest is not False and self._has_box(rest, set()):
            if properties:
                raise ValueError("boxes in additionalProperties beside properties cannot be kept to: name the keys")
            pair = self._rule(f'{self._part({"type": "string"})} ": " {self._node(rest)}')
            return self._rule(f'"{{" ({pair} (", " {pair})*)? "}}"')
        required = schema.get("required", [])
        missing = [key for key in required if key not in properties]
        if missing:
            raise ValueError(f"the schema requires {missing[0]!r} and has no property of this name")
        begun = fresh = '""'  # what may follow behind a property, and where none was written yet
        for key, value in reversed(properties.items()):
            name = json.dumps(json.dumps(key, ensure_ascii=False) + ": ", ensure_ascii=False)
            pair = self._rule(f"{name} {self._node(value)}")
            optional = key not in required
            fresh = self._rule(f"{pair} {begun}" + (f" | {fresh}" if optional else ""))
            begun = self._rule(f'", " {pair} {begun}' + (f" | {begun}" if optional else ""))
        return self._rule(f'"{{" {fresh} "}}"')

    def _array(self, schema: Schema) -> str:
        _only(schema, "type", "items", "prefixItems", "minItems", "maxItems")
        first, items = schema.get("prefixItems", []), schema.get("items", True)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if first:
            count = len(first)
            if least != count or not (items is False or most == count):
                raise ValueError(
                    f"an array of {count} prefixItems with a box in it needs minItems and maxItems of {count}"
                )
            return self._rule('"[" ' + ' ", " '.join(self._node(one) for one in first) + ' "]"')
        if most is not None and most < max(least, 1):
            if most < least:
                raise ValueError(f"an array of minItems {least} and maxItems {most} cannot be written")
            return '"[]"'
        item = self._rule(self._node(items))
        more = f'(", " {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        return self._rule(f'"[" {item} {more} "]"' + ("" if least else ' | "[]"'))

    def _rule(self, rule: str) -> str:
        name = f"part{len(self._rules)}"
        self._rules[name] = rule
        return name


def _only(schema: Mapping[str, Any], *known: str) -> None:
    """ValueError for a keyword that says more than `known` about a schema with boxes in it."""
    for key in schema:
        if key not in known and key not in _NOTES:
            raise ValueError(f"{key!r} cannot be kept to in a schema with boxes in it: leave it out")
