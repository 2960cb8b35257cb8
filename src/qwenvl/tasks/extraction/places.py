"""Places among extracted fields: from what the model writes (pixels of the picture as it sees it, or thousandths of
its sides) to pixels of the original.

In: data as the model wrote it, the schema, sizes of the pictures. Out: the same data with other numbers.

BBox2D and Point2D are types for fields of a pydantic model: what comes in them is in ORIGINAL pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qwenvl.tasks.extraction.schemas import BOX, POINT, Wanted
from qwenvl.tasks.places import Frame, frame_sides
from qwenvl.types import ImageSize


class BBox2D(NamedTuple):
    """A box in pixels of the original, upright picture: x1 < x2, y1 < y2."""

    x1: float
    y1: float
    x2: float
    y2: float

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return _tuple_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "array", "format": BOX, "items": {"type": "number"}, "minItems": 4, "maxItems": 4}


class Point2D(NamedTuple):
    """A point in pixels of the original, upright picture."""

    x: float
    y: float

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return _tuple_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "array", "format": POINT, "items": {"type": "number"}, "minItems": 2, "maxItems": 2}


def _tuple_schema(place: type[BBox2D] | type[Point2D]) -> Any:
    from pydantic_core import core_schema

    numbers = core_schema.list_schema(
        core_schema.float_schema(), min_length=len(place._fields), max_length=len(place._fields)
    )
    return core_schema.no_info_after_validator_function(lambda values: place(*values), numbers)


def to_original(
    wanted: Wanted, data: Any, sizes: Sequence[ImageSize], frame: Frame = "auto", schema: Any = None
) -> Any:
    """The data with its places in original pixels: whole numbers where the schema wants integers (rounded so that a box
    keeps all that it had), else to a hundredth. frame: what the numbers count; "auto" = pixels as the model sees
    them."""
    branches = list(wanted.branches(wanted.schema if schema is None else schema))
    for branch in branches:
        form = branch.get("format")
        if form in (BOX, POINT) and isinstance(data, list) and len(data) == (4 if form == BOX else 2):
            return _place(data, size_of(branch, sizes), frame, _whole(wanted, branch))
    if isinstance(data, Mapping):
        return {key: to_original(wanted, value, sizes, frame, _property(branches, key)) for key, value in data.items()}
    if isinstance(data, list):
        return [to_original(wanted, value, sizes, frame, _item(branches, i)) for i, value in enumerate(data)]
    return data


def size_of(place: Mapping[str, Any], sizes: Sequence[ImageSize]) -> ImageSize:
    """The size of the picture that a place lies in: "picture" says which, or there is one size only. (The grammar has
    asked the same before, in engine/grammar_schema.py.) ValueError where it is not clear."""
    at = place.get("picture", 0)
    if (
        not isinstance(at, int)
        or not -len(sizes) <= at < len(sizes)
        or ("picture" not in place and len(set(sizes)) > 1)
    ):
        raise ValueError(f'a place needs its picture, and there are {len(sizes)}: give its schema "picture": 0, 1, ...')
    return sizes[at]


def _property(branches: Sequence[Mapping[str, Any]], key: str) -> Any:
    named = [b["properties"][key] for b in branches if key in b.get("properties", {})]
    others = [b["additionalProperties"] for b in branches if isinstance(b.get("additionalProperties"), Mapping)]
    return {"anyOf": named or others}


def _item(branches: Sequence[Mapping[str, Any]], index: int) -> Any:
    first = [b["prefixItems"][index] for b in branches if index < len(b.get("prefixItems", ()))]
    return {"anyOf": first or [b["items"] for b in branches if isinstance(b.get("items"), Mapping)]}


def _whole(wanted: Wanted, place: Mapping[str, Any]) -> bool:
    return any(branch.get("type") == "integer" for branch in wanted.branches(place.get("items", {})))


def _place(numbers: Sequence[float], size: ImageSize, frame: Frame, whole: bool) -> list[float]:
    limits = (size.width, size.height) * 2
    wide, high = frame_sides(size, "resized" if frame == "auto" else frame)
    scales = (size.width / wide, size.height / high) * 2
    placed = [min(max(n * s, 0.0), limit) for n, s, limit in zip(numbers, scales, limits, strict=False)]
    if not whole:
        return [round(value, 2) for value in placed]
    if len(placed) == 2:
        return [min(math.floor(value), limit - 1) for value, limit in zip(placed, limits, strict=False)]
    return [math.floor(placed[0]), math.floor(placed[1]), math.ceil(placed[2]), math.ceil(placed[3])]
