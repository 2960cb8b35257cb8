"""A schema -> the question that asks for it, in the form of the published cookbook on key information extraction.

In: Wanted, and the caller's own words. Out: one string. Does not know pictures or models.

    {"company": string, "date": string}  ->  Extract the key-value information in the format:{"company": "", "date": ""}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from qwenvl.tasks.extraction.schemas import BOX, POINT, Wanted

ASK = "Extract the key-value information in the format:"
DEPTH = 6  # levels that are shown of a schema that refers to itself


def question(wanted: Wanted, instructions: str | None = None) -> str:
    """The question. What the schema says of its fields (descriptions, and the values there are) stands on lines of its
    own behind the format, and the instructions behind that."""
    lines = [ASK + json.dumps(_example(wanted, wanted.schema, 0), ensure_ascii=False)]
    lines += dict.fromkeys(_remarks(wanted, wanted.schema, "", 0))
    if instructions and instructions.strip():
        lines.append(instructions.strip())
    return "\n".join(lines)


def _shape(wanted: Wanted, schema: Any) -> Mapping[str, Any]:
    """The branch of a schema that is shown: the first that is an object, an array or a place, else the first."""
    branches = list(wanted.branches(schema))
    telling = [b for b in branches if b.get("type") in ("object", "array") or "properties" in b or "format" in b]
    return (telling or branches)[0]


def _example(wanted: Wanted, schema: Any, depth: int) -> Any:
    """The format: keys, and "" for every value that is written."""
    shape = _shape(wanted, schema)
    if shape.get("format") == BOX:
        return ["x1", "y1", "x2", "y2"]
    if shape.get("format") == POINT:
        return ["x", "y"]
    if depth > DEPTH:
        return ""
    if "properties" in shape:
        return {name: _example(wanted, value, depth + 1) for name, value in shape["properties"].items()}
    if shape.get("type") == "array":
        if "prefixItems" in shape:
            return [_example(wanted, one, depth + 1) for one in shape["prefixItems"]]
        return [_example(wanted, shape.get("items", {}), depth + 1)]
    if isinstance(shape.get("additionalProperties"), Mapping):
        return {"": _example(wanted, shape["additionalProperties"], depth + 1)}
    return ""


def _remarks(wanted: Wanted, schema: Any, name: str, depth: int) -> Iterator[str]:
    """Lines "field: what it is" of fields with a description, or with a list of values."""
    if depth > DEPTH:
        return
    shape = _shape(wanted, schema)
    said = schema.get("description") if isinstance(schema, Mapping) else None
    values = [value for branch in wanted.branches(schema) for value in branch.get("enum", ())]
    if name and (said or values):
        choice = f"one of {', '.join(json.dumps(v, ensure_ascii=False) for v in values)}" if values else ""
        yield f"{name}: " + "; ".join(filter(None, (" ".join(str(said or "").split()), choice)))
    for key, value in shape.get("properties", {}).items():
        yield from _remarks(wanted, value, f"{name}.{key}" if name else key, depth + 1)
    if shape.get("type") == "array" and shape.get("format") not in (BOX, POINT):
        yield from _remarks(wanted, shape.get("items", {}), name, depth + 1)
