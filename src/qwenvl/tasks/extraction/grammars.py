"""Grammars for the answers of other tasks: labelled boxes, one of several words, calls of tools.

In: labels, choices, descriptions of functions. Out: Grammar, for SamplingParams(grammar=...).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from qwenvl.tasks.extraction.schemas import BOX, POINT, writable
from qwenvl.types import Grammar


def labels_grammar(labels: Sequence[str], *, points: bool = False, least: int = 0, most: int | None = None) -> Grammar:
    """A list of boxes (or points) in the picture as the model writes it, each with one of these labels, in JSON:
    [{"bbox_2d": [x1, y1, x2, y2], "label": "..."}, ...]. least, most: how many."""
    _check_names("labels", labels)
    name = POINT if points else BOX
    item = {"type": "object", "properties": {name: {"type": "array", "format": name}, "label": {"enum": list(labels)}},
            "required": [name, "label"], "additionalProperties": False}  # fmt: skip
    bounds = {"minItems": least} if most is None else {"minItems": least, "maxItems": most}
    return Grammar.json_schema({"type": "array", "items": item, **bounds})


def choice_grammar(choices: Sequence[str]) -> Grammar:
    """Just one of these strings."""
    _check_names("choices", choices)
    return Grammar("lark", "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices))


def tool_call_grammar(
    tools: Sequence[Mapping[str, Any]], *, points: Collection[str] = (), picture: int = -1, thought: bool | int = False
) -> Grammar:
    """One call of one of these tools, as the chat template shows calls:

        <tool_call>
        {"name": "...", "arguments": {...}}
        </tool_call>

    tools: descriptions of functions, bare or within {"type": "function", "function": {...}}. points: names of arguments
    that are [x, y] in a picture of the prompt ("coordinate" of computer_use), that of index `picture` (-1 = the last).
    thought: any text may stand before the call; a number: of at most so many tokens.
    """
    if not tools:
        raise ValueError("there are no tools: give at least one description")
    calls = []
    for tool in tools:
        function = tool.get("function", tool)
        if not isinstance(function.get("name"), str):
            raise ValueError(f"a tool has no name: {json.dumps(function, default=str)[:120]}")
        arguments = _with_points(function.get("parameters") or {"type": "object"}, points, picture)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return Grammar.json_schema(writable(schema), before="<tool_call>\n", after="\n</tool_call>", thought=thought)


def _with_points(node: Any, names: Collection[str], picture: int) -> Any:
    """A schema in which the arguments of these names are points in a picture."""
    if isinstance(node, list):
        return [_with_points(one, names, picture) for one in node]
    if not isinstance(node, Mapping):
        return node
    new = {key: _with_points(value, names, picture) for key, value in node.items()}
    if isinstance(new.get("properties"), Mapping):
        new["properties"] = {
            name: {"type": "array", "format": POINT, "picture": picture} if name in names else value
            for name, value in new["properties"].items()
        }
    return new


def _check_names(what: str, names: Sequence[str]) -> None:
    if isinstance(names, str) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{what}={names!r} is not valid: expected a list of strings, none of them empty")
