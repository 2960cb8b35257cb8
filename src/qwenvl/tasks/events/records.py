"""Values that an answer writes (objects, lists, pairs) -> drafts of events.

    [{"start_time": "00:03.20", "end_time": "00:07.00", "description": "A man opens the door."}]
    {"events": [{"timestamp": [3.2, 7], "label": "..."}]}      {"00:03-00:07": "..."}      [[3.2, 7.0], [9, 12]]
Keys are compared without case, signs and spaces; numbers are seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qwenvl.tasks.answers.literals import Items, Node, Scalar
from qwenvl.tasks.events.prose import Draft, read_prose
from qwenvl.tasks.events.times import MOST_DIGITS, Mark, whole_mark

_DEEPEST = 12
_TAIL = r"(?:s|at|sec|secs|second|seconds|time|times|timestamp|timestamps|timecode)*"
_STARTS = re.compile(rf"(?:t|time|event|segment|clip)?(?:start|begin|from|onset){_TAIL}")
_ENDS = re.compile(rf"(?:t|time|event|segment|clip)?(?:end|stop|finish|to|until|till|offset){_TAIL}")
_BOTH = re.compile(
    r"(?:temporal|event|clip)?(?:time|timestamp|timecode|range|interval|segment|span|window|moment|period|when|seconds|"
    r"duration|frame)+s?"
)
_LENGTHS = re.compile(r"(?:duration|length|lasts)(?:s|sec|seconds)*")
_FRAMES = {"startframe": "start", "endframe": "end", "framestart": "start", "frameend": "end", "frame": "moment"}
_TEXTS = (
    "description", "event", "caption", "activity", "sentence", "text", "label", "action", "content", "summary", "title",
    "name", "query", "what",
)  # fmt: skip
_OTHER = re.compile(r"[^a-z]+")
_FIELD = re.compile(
    r"(?<![A-Za-z])(?P<key>start|begin|end|stop|time[ _]?range|timestamps?|description|event|caption|activity|sentence)"
    r"(?P<more>[ _]?time(?:stamp)?s?)?[\"'*`]{0,4}\s?(?:[:=]|>)\s?[\"'*`\[]{0,4}",
    re.IGNORECASE,
)
_VALUE = re.compile(r"[^\n<>{}\"`]{1,400}")


def read_records(node: Node) -> list[Draft]:
    """The events of a value that was read from an answer, in its order; what the end of the answer cut off counts when
    its times are whole."""
    drafts = _read(_value(node), "", 0)
    return [replace(d, start=_loose(d.start), end=_loose(d.end), length=_loose(d.length)) for d in drafts]


def _loose(mark: Mark | None) -> Mark | None:
    """A mark whose characters are not those of the answer."""
    return None if mark is None else replace(mark, begin=0, end=0)


def _value(node: Node) -> Any:
    """As Python values, without objects that were cut off before their end was told."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Items):
        return [value for value in map(_value, node.items) if value != {}]
    values = {key: _value(value) for key, value in node.pairs}
    plain = {_plain(key) for key in values}
    whole = any(_ENDS.fullmatch(key) or _LENGTHS.fullmatch(key) for key in plain)
    if node.cut and not whole and any(map(_STARTS.fullmatch, plain)):
        return {}
    return values if values or not node.loose else [_value(one) for one in node.loose]


def _plain(key: Any) -> str:
    return _OTHER.sub("", str(key).lower())


def _read(value: Any, text: str, depth: int) -> Iterator[Draft]:
    if depth > _DEEPEST:
        return
    if isinstance(value, Mapping):
        yield from _object(value, text, depth)
    elif isinstance(value, list | tuple):
        yield from _list(value, text, depth)
    elif isinstance(value, str) and depth:
        for draft in read_prose(value):
            yield Draft(draft.start, draft.end, draft.text or text, draft.to_end, draft.length)


def _object(value: Mapping[Any, Any], text: str, depth: int) -> Iterator[Draft]:
    keys = {_plain(key): key for key in value}
    said = next((value[keys[k]] for k in _TEXTS if isinstance(value.get(keys.get(k)), str)), "")
    text = said.strip() or text
    start = _first(value, keys, _STARTS)
    end = _first(value, keys, _ENDS)
    length = _first(value, keys, _LENGTHS)
    if start is None and end is None:
        start = _frame(value, keys, "start") or _frame(value, keys, "moment")
        end = _frame(value, keys, "end")
    if start is not None or end is not None:
        yield Draft(start, end, text, length=length if end is None else None)
        return
    found = False
    for key, inner in value.items():
        plain = _plain(key)
        scalar = isinstance(inner, int | float)
        if _BOTH.fullmatch(plain) and not isinstance(inner, Mapping) and not (scalar and _LENGTHS.fullmatch(plain)):
            times = list(_times(inner, text, depth + 1))
            found = found or bool(times)
            yield from times
    if found:
        return
    for key, inner in value.items():
        plain = _plain(key)
        if isinstance(inner, Mapping | list | tuple):
            yield from _read(inner, text or (str(key) if _is_phrase(key, inner) else ""), depth + 1)
        elif isinstance(inner, str):
            ranges = [draft for draft in read_prose(str(key)) if _covers(str(key))]
            if ranges:
                yield Draft(ranges[0].start, ranges[0].end, inner.strip(), ranges[0].to_end)
            elif plain not in _TEXTS and whole_range(inner) is not None:
                yield from (Draft(d.start, d.end, str(key), d.to_end) for d in [whole_range(inner)] if d)


def _is_phrase(key: Any, inner: Any) -> bool:
    """Whether a key tells what happens at the times beside it: {"a man enters": [0, 3.5]}."""
    flat = isinstance(inner, list | tuple) and all(not isinstance(x, Mapping) for x in inner)
    return isinstance(key, str) and flat and _plain(key) not in ("events", "activities", "results", "answer", "output")


def _covers(text: str) -> bool:
    """Whether a key is nothing but times."""
    return not re.search(r"[A-Za-z]{3}", re.sub(r"(?i)sec(?:ond)?s?|min(?:ute)?s?|from|until", "", text))


def whole_range(text: str) -> Draft | None:
    """The event of a text that is nothing but its times."""
    if not _covers(text):
        return None
    drafts = read_prose(text)
    return drafts[0] if len(drafts) == 1 else None


def _first(value: Mapping[Any, Any], keys: Mapping[str, Any], names: re.Pattern[str]) -> Mark | None:
    for plain, key in keys.items():
        if names.fullmatch(plain):
            mark = mark_of(value[key])
            if mark is not None:
                return mark
    return None


def _frame(value: Mapping[Any, Any], keys: Mapping[str, Any], part: str) -> Mark | None:
    for plain, meaning in _FRAMES.items():
        if meaning == part and plain in keys:
            mark = mark_of(value[keys[plain]])
            if mark is not None:
                return Mark(0, 0, mark.seconds, "frame")
    return None


def _times(value: Any, text: str, depth: int) -> Iterator[Draft]:
    """What stands under a key such as "timestamps"."""
    if isinstance(value, list | tuple):
        yield from _list(value, text, depth)
        return
    mark = mark_of(value)
    if mark is not None:
        yield Draft(mark, text=text)
    elif isinstance(value, str):
        yield from (Draft(d.start, d.end, text or d.text, d.to_end, d.length) for d in read_prose(value))


def _list(value: Sequence[Any], text: str, depth: int) -> Iterator[Draft]:
    """[start, end], [start, end, text], a list of moments, or a list of what `read_records` takes."""
    marks = [mark_of(one) for one in value[:3]]
    if len(value) in (2, 3) and marks[0] is not None and marks[1] is not None:
        last = value[2] if len(value) == 3 else text
        if isinstance(last, str) and (len(value) == 2 or marks[2] is None):
            yield Draft(marks[0], marks[1], last.strip() or text)
            return
    if len(value) == 3 and marks[0] is None and isinstance(value[0], str) and marks[1] and marks[2]:
        yield Draft(marks[1], marks[2], value[0].strip())
        return
    for one in value:
        if isinstance(one, Mapping | list | tuple):
            yield from _read(one, text, depth + 1)
            continue
        mark = mark_of(one)
        if mark is not None:
            yield Draft(mark, text=text)
        elif isinstance(one, str):
            yield from (Draft(d.start, d.end, d.text or text, d.to_end, d.length) for d in read_prose(one))


def read_fields(text: str) -> list[Draft]:
    """The events of "start_time: 00:03, end_time: 00:07, description: ..." in lines, in tags, or in objects that are
    too damaged to be values. Empty where no begin and no end is told in this way."""
    rows: list[dict[str, str]] = [{}]
    for found in _FIELD.finditer(text):
        value = _VALUE.match(text, found.end())
        if value is None:
            continue
        key = _plain(found["key"])
        said = value.group() if key in _TEXTS else re.split(r"[,;|]\s|\s(?=[A-Za-z_ ]{3,20}:)", value.group())[0]
        if key in rows[-1]:
            rows.append({})
        rows[-1][key] = said.strip(" \t\"',*[]")
    drafts = [draft for row in rows if row for draft in _object(row, "", 1)]
    return [replace(d, start=_loose(d.start), end=_loose(d.end), length=_loose(d.length)) for d in drafts]


def mark_of(value: Any) -> Mark | None:
    """The time that a value is, or None."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        if not abs(value) < 10**MOST_DIGITS:  # also not a number
            return None
        return Mark(0, 0, max(0.0, float(value)), "bare")
    return whole_mark(value) if isinstance(value, str) else None
