"""JSON text -> its values and where each of them stands in the text; from there, how sure the model was of each.

In: the text of an answer, which characters each token wrote, log-probabilities. Out: data, and numbers from 0 to 1 by
the paths of fields ("items[0].price"). Does not know schemas, pictures or models.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?|true|false|null")


@dataclass(frozen=True)
class Span:
    """A value that holds no others, or an empty list or object: the field's path, and the characters [start, end) that
    wrote it."""

    path: str
    start: int
    end: int


def read(text: str) -> tuple[Any, list[Span]]:
    """The value that a text is, and the spans of its fields in order. ValueError for what is not JSON."""
    spans: list[Span] = []
    value, end = _value(text, _skip(text, 0), "", spans)
    if _skip(text, end) != len(text):
        raise ValueError(f"more text behind the JSON, from character {end} on: {text[end : end + 40]!r}")
    return value, spans


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _value(text: str, at: int, path: str, spans: list[Span]) -> tuple[Any, int]:
    sign = text[at : at + 1]
    value: Any
    if sign == "{":
        value, end = _object(text, at, path, spans)
    elif sign == "[":
        value, end = _array(text, at, path, spans)
    elif sign == '"':
        try:
            value, end = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise ValueError(f"a string of the JSON cannot be read: {error}") from None
    else:
        found = _PLAIN.match(text, at)
        if found is None:
            raise ValueError(f"expected a JSON value at character {at}, got {text[at : at + 20]!r}")
        value, end = json.loads(found.group()), found.end()
    if not isinstance(value, dict | list) or not value:
        spans.append(Span(path, at, end))
    return value, end


def _object(text: str, at: int, path: str, spans: list[Span]) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    at = _skip(text, at + 1)
    if text[at : at + 1] == "}":
        return found, at + 1
    while True:
        if text[at : at + 1] != '"':
            raise ValueError(f"expected a key in quotes at character {at}, got {text[at : at + 20]!r}")
        key, at = _DECODER.raw_decode(text, at)
        at = _expect(text, _skip(text, at), ":")
        found[key], at = _value(text, _skip(text, at), f"{path}.{key}" if path else key, spans)
        at = _skip(text, at)
        if text[at : at + 1] == "}":
            return found, at + 1
        at = _skip(text, _expect(text, at, ","))


def _array(text: str, at: int, path: str, spans: list[Span]) -> tuple[list[Any], int]:
    found: list[Any] = []
    at = _skip(text, at + 1)
    if text[at : at + 1] == "]":
        return found, at + 1
    while True:
        value, at = _value(text, at, f"{path}[{len(found)}]", spans)
        found.append(value)
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            return found, at + 1
        at = _skip(text, _expect(text, at, ","))


def _expect(text: str, at: int, sign: str) -> int:
    if text[at : at + 1] != sign:
        raise ValueError(f"expected {sign!r} at character {at}, got {text[at : at + 20]!r}")
    return at + 1


def confidences(
    spans: Sequence[Span], offsets: Sequence[tuple[int, int]], logprobs: Sequence[float]
) -> dict[str, float]:
    """By path: the geometric mean of the probabilities of the tokens that wrote the value, its quotes included; 0 for
    what no token wrote (a field that was closed after the answer was cut)."""
    assert len(offsets) == len(logprobs), (len(offsets), len(logprobs))
    found: dict[str, float] = {}
    first = 0
    for span in spans:
        while first < len(offsets) and offsets[first][1] <= span.start:
            first += 1
        logs, index = [], first
        while index < len(offsets) and offsets[index][0] < span.end:
            if offsets[index][1] > offsets[index][0]:
                logs.append(logprobs[index])
            index += 1
        found[span.path] = min(1.0, math.exp(sum(logs) / len(logs))) if logs else 0.0
    return found
