"""JSON, well formed or damaged -> the calls it means.

In: what stands within the tags. Out: ToolCall objects; none for what has no one meaning.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from qwenvl.tasks.answers.literals import Fields, Items, Node, plain, read
from qwenvl.tasks.calls.events import ToolCall

ARGUMENTS = ("arguments", "parameters", "args", "params", "input")
_NAMES = ("name", "function", "tool", "tool_name", "function_name")
_WRAPPERS = ("function", "tool_call", "function_call")
_NOT_ARGUMENTS = (*_NAMES, "type", "id")
_DEEPEST = 100
_FENCE = re.compile(r"```\w*\s*")


def read_calls(body: str, closed: bool = True) -> list[ToolCall]:
    """The calls in what stands within the tags. closed: whether the closing tag is there; without it, what ends the
    text may be cut."""
    bare = body.strip()
    if (fence := _FENCE.match(bare)) is not None:
        bare = bare[fence.end() :].removesuffix("```").rstrip()
    value = strict(bare)
    if value is not None:
        values = value if isinstance(value, list) else [value]
        calls = [call for v in values if (call := _as_call(v, bare)) is not None]
        return calls if len(calls) == len(values) else []
    return [call for node in read(bare + "\n" * closed) for call in calls_in(node, bare)]


def calls_in(node: Node, text: str) -> list[ToolCall]:
    """The calls that a node is: one, or a list of them; none where a part of it is cut."""
    while isinstance(node, Fields) and not node.pairs and len(node.loose) == 1:
        node = node.loose[0]  # braces around braces
    nodes = node.items if isinstance(node, Items) else [node]
    calls: list[ToolCall] = []
    for one in nodes:
        call = None
        if isinstance(one, Fields) and not _cut(one):
            call = _as_call(_finite(plain(one)), text[one.start : one.end].strip())
        if call is None:
            return []
        calls.append(call)
    return calls


def _cut(node: Node) -> bool:
    if isinstance(node, Fields):
        return node.cut or any(_cut(value) for _, value in node.pairs)
    return isinstance(node, Items) and any(map(_cut, node.items))


def _as_call(value: Any, raw: str) -> ToolCall | None:
    """The call that an object means: a name, and an object of arguments."""
    if not isinstance(value, Mapping):
        return None
    fields = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), Mapping)), value)
    name = next((fields[key] for key in _NAMES if isinstance(fields.get(key), str)), "").strip()
    if not name:
        return None
    source = fields if any(key in fields for key in ARGUMENTS) else value
    key = next((key for key in ARGUMENTS if key in source), None)
    if key is None:
        given: Any = {k: v for k, v in fields.items() if k not in _NOT_ARGUMENTS}
    else:
        given = source[key]
    if isinstance(given, str):
        given = _from_text(given)
    if given is None:
        given = {}
    return ToolCall(name, dict(given), raw) if isinstance(given, Mapping) else None


def _from_text(text: str) -> Any:
    """Arguments that are a JSON text; "" is none. Anything that is not an object is returned as it is."""
    if not text.strip():
        return {}
    value = strict(text)
    if value is None:
        nodes = read(text + "\n")
        value = _finite(plain(nodes[0])) if len(nodes) == 1 and not _cut(nodes[0]) else text
    return value


def strict(text: str) -> Any:
    """The value of valid JSON; None for what is not (null too, which is no call either)."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        return value if _finite(value) == value else None
    except (ValueError, RecursionError):
        return None


def valid_end(text: str) -> int:
    """Where the valid JSON objects end that the text begins with; 0 where there are none."""
    decoder, end, at = json.JSONDecoder(parse_constant=_refuse), 0, 0
    while text[at : at + 1] == "{" or text[at : at + 1].isspace():
        if text[at] != "{":
            at += 1
            continue
        try:
            _, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        end = at
    return end


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _finite(value: Any, depth: int = 0) -> Any:
    """The same with null for numbers that JSON cannot write, and U+FFFD for halves of characters. ValueError for what
    is nested too deep."""
    if depth > _DEEPEST:
        raise ValueError(f"nested more than {_DEEPEST} deep")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value if value.isprintable() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_finite(key): _finite(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item, depth + 1) for item in value]
    return value
