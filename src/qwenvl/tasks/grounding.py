"""Places in an answer: text and sizes -> boxes and points in ORIGINAL pixels.

In: the text of an answer and the ImageSize of the picture it speaks of. Out: Box and Point objects.
Does not know models or engines: `locate` takes a callable that answers.

Written forms that are read (Qwen2.5-VL and Qwen2-VL technical reports and the cookbooks beside them):
    [{"bbox_2d": [x1, y1, x2, y2], "label": "red circle"}]     pixels of the RESIZED picture
    [{"point_2d": [x, y], "label": "red circle"}]              the same, points
    <points x1="3" y1="4" x2="5" y2="6" alt="dot">dot</points> the same, points on request
    <|object_ref_start|>cat<|object_ref_end|><|box_start|>(10,20),(300,400)<|box_end|>   thousandths (Qwen2-VL)
Models also write them with fences, as one object, with trailing commas, with Python's quotes, and cut off at the
token limit: every complete item is read, and what is not a place is passed over.

Example: in a 200 x 100 picture that the model saw as 224 x 112,
    parse_boxes('[{"bbox_2d": [56, 28, 112, 56], "label": "cup"}]', ImageSize(200, 100, 224, 112))
    -> [Box("cup", 50.0, 25.0, 100.0, 50.0, resized=(56, 28, 112, 56))]
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from qwenvl.types import ImageSize

# The wording of the official cookbook; the bundled model learned it too.
LOCATE_PROMPT = "Outline the position of each {what} and output all the coordinates in JSON format."

_BOX_KEYS = ("bbox_2d", "bbox")
_POINT_KEYS = ("point_2d", "point")
_LABEL_KEYS = ("label", "text_content")
_DEEPEST = 8  # brackets within brackets; a list of places needs three
_ARTICLE = re.compile(r"^(?:the|an?|all|each|every)\s+(?=\S)", re.IGNORECASE)
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_RELATIVE = re.compile(
    r"(?:<\|object_ref_start\|>(?P<label>[^<]*)<\|object_ref_end\|>|(?P<bare>[^\n()<>{}\[\]]{0,80}))"
    rf"(?:<\|box_start\|>)?\({_NUMBER},{_NUMBER}\),\s*\({_NUMBER},{_NUMBER}\)"
)
_POINTS = re.compile(r"<points?\s(?P<attributes>[^<>]*)>(?P<phrase>[^<]*)(?:</points?>)?")
_ATTRIBUTE = re.compile(r"(\w+)\s*=\s*[\"']([^\"']*)[\"']")


@dataclass(frozen=True)
class Box:
    """A rectangle: x1 < x2 and y1 < y2 in pixels of the original, upright picture, within its borders.

    resized: the four numbers as the model wrote them. extra: further fields of the item (sub_label, ...).
    """

    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    resized: tuple[float, float, float, float]
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Point:
    """A point in pixels of the original, upright picture. resized, extra: as in Box."""

    label: str
    x: float
    y: float
    resized: tuple[float, float]
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)


class Answered(Protocol):
    """What `locate` needs of an answer: its text, and the sizes of the pictures asked about."""

    @property
    def text(self) -> str: ...
    @property
    def sizes(self) -> list[ImageSize]: ...


PictureT = TypeVar("PictureT")


def locate(ask: Callable[[list[PictureT], str], Answered], image: PictureT, what: str) -> list[Box | Point]:
    """Every `what` in the picture, as boxes (or points) in its original pixels; an empty list if there is none.

    what: a thing in the singular, such as "red circle"; a leading "the" or "all" is dropped.
    ask(pictures, question) answers; `Assistant.ask` is one. image: whatever `ask` takes as a picture.
    """
    if not what.strip():
        raise ValueError("what to locate is empty: name a thing, for example 'red circle'")
    answer = ask([image], LOCATE_PROMPT.format(what=_ARTICLE.sub("", what.strip().rstrip(".?!"))))
    return parse_boxes(answer.text, answer.sizes[0])


def parse_boxes(text: str, size: ImageSize) -> list[Box | Point]:
    """The boxes and points written in `text`, in the order written, in pixels of the original picture.

    Corners are ordered and clamped to the picture; a box with no area within it is left out.
    """
    found: list[Box | Point] = []
    for item in _items(text):
        place = _place(item, size)
        if place is not None:
            found.append(place)
    found.extend(_xml_points(text, size))
    if not found:
        found.extend(_relative_boxes(text, size))
    return found


def places_to_dicts(places: Sequence[Box | Point]) -> list[dict[str, Any]]:
    """Places as plain dicts for JSON: label, and "box" [x1, y1, x2, y2] or "point" [x, y] in original pixels (to a
    hundredth), "resized": the numbers as the model wrote them, and "extra" where there is something."""
    rows = []
    for place in places:
        row: dict[str, Any] = {"label": place.label}
        if isinstance(place, Box):
            row["box"] = [round(number, 2) for number in (place.x1, place.y1, place.x2, place.y2)]
        else:
            row["point"] = [round(number, 2) for number in (place.x, place.y)]
        row["resized"] = list(place.resized)
        if place.extra:
            row["extra"] = dict(place.extra)
        rows.append(row)
    return rows


def _place(item: dict[str, Any], size: ImageSize) -> Box | Point | None:
    label = next((str(item[key]) for key in _LABEL_KEYS if item.get(key) is not None), "")
    extra = {k: v for k, v in item.items() if k not in _BOX_KEYS + _POINT_KEYS and k != "label"}
    for key in _BOX_KEYS:
        corners = _numbers(item.get(key), 4)
        if corners is not None:
            return _box(label, corners, size, size.resized_width, size.resized_height, extra)
    for key in _POINT_KEYS:
        spot = _numbers(item.get(key), 2)
        if spot is not None:
            return _point(label, spot, size, extra)
    return None


def _box(
    label: str, corners: list[float], size: ImageSize, width: float, height: float, extra: Mapping[str, Any]
) -> Box | None:
    """Box from corners in a frame of width x height (the resized picture, or thousandths)."""
    x1, x2 = sorted(_clamp(x / width) * size.width for x in corners[0::2])
    y1, y2 = sorted(_clamp(y / height) * size.height for y in corners[1::2])
    if x1 >= x2 or y1 >= y2:
        return None
    a, b, c, d = corners
    return Box(label, x1, y1, x2, y2, (a, b, c, d), extra)


def _point(label: str, spot: list[float], size: ImageSize, extra: Mapping[str, Any]) -> Point:
    x = _clamp(spot[0] / size.resized_width) * size.width
    y = _clamp(spot[1] / size.resized_height) * size.height
    return Point(label, x, y, (spot[0], spot[1]), extra)


def _clamp(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _numbers(value: Any, count: int) -> list[float] | None:
    """`value` as `count` finite numbers; None if it is anything else."""
    if not isinstance(value, list | tuple) or len(value) != count:
        return None
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
        return None
    try:
        numbers = [float(v) for v in value]
    except OverflowError:  # an integer of hundreds of digits
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _items(text: str) -> Iterator[dict[str, Any]]:
    """Every dict written in the text as JSON or Python, outermost readable ones first, nested ones unfolded."""
    done = 0
    for start, end in _spans(text):
        if start < done:
            continue  # inside an object that was read already
        value = _read(text[start:end])
        if isinstance(value, dict):
            done = end
            yield from _unfold(value)


def _unfold(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if any(key in value for key in _BOX_KEYS + _POINT_KEYS):
            yield value
            return
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _unfold(inner)


def _spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of every closed {...} in the text, by start. One pass; brackets within strings do not count.

    A quote left open ends at its line's end (JSON strings have no raw line ends), a bracket left open is ignored:
    so one broken or cut item does not take its neighbours along.
    """
    spans: list[tuple[int, int]] = []
    stack: list[list[Any]] = []  # [bracket, start, depth of what it holds]
    quote = ""
    escaped = False
    for at, char in enumerate(text):
        if quote:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == quote or char == "\n":
                quote = ""
        elif stack and (char == '"' or (char == "'" and not text[at - 1].isalnum())):
            quote = char  # the apostrophe of a word opens no string
        elif char in "{[":
            stack.append([char, at, 1])
        elif char in "}]":
            opener = "{" if char == "}" else "["
            while stack and stack[-1][0] != opener:
                stack.pop()
            if stack:
                _, start, depth = stack.pop()
                if stack:
                    stack[-1][2] = max(stack[-1][2], depth + 1)
                if opener == "{" and depth <= _DEEPEST:
                    spans.append((start, at + 1))
    return sorted(spans)


def _read(text: str) -> Any:
    """The value of a JSON or Python literal, trailing commas allowed; None if it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(re.sub(r"\b(true|false|null)\b", _python_name, text))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _python_name(match: re.Match[str]) -> str:
    return {"true": "True", "false": "False", "null": "None"}[match[0]]


def _xml_points(text: str, size: ImageSize) -> Iterator[Point]:
    for tag in _POINTS.finditer(text):
        attributes = dict(_ATTRIBUTE.findall(tag["attributes"]))
        label = tag["phrase"].strip() or attributes.get("alt", "")
        for suffix in ["", *map(str, range(1, 1 + len(attributes)))]:
            try:
                spot = [float(attributes[f"x{suffix}"]), float(attributes[f"y{suffix}"])]
            except (KeyError, ValueError):
                continue
            if all(map(math.isfinite, spot)):
                yield _point(label, spot, size, {})


def _relative_boxes(text: str, size: ImageSize) -> Iterator[Box]:
    """Qwen2-VL's boxes, in thousandths of the picture; the control tokens may have been skipped in decoding."""
    for match in _RELATIVE.finditer(text):
        label = (match["label"] or match["bare"] or "").strip(" ,;:\t")
        corners = [float(number) for number in match.groups()[2:]]
        box = _box(label, corners, size, 1000.0, 1000.0, {})
        if box is not None:
            yield box
