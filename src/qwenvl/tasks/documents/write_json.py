"""Documents <-> JSON.

In: a Document. Out: JSON text, and the equal Document back. What is not said has its default: a plain paragraph is
{"kind": "paragraph", "text": "...", "box": [...], "resized": [...]}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from qwenvl.tasks.documents.blocks import KINDS, Bbox, Block, BlockKind, Cell, Document, Mark, MarkKind, Page
from qwenvl.types import ImageSize

FORMAT = "qwenvl-document"
VERSION = 1

_BLOCK_KEYS = frozenset(Block.__dataclass_fields__)
_CELL_KEYS = frozenset(Cell.__dataclass_fields__)
_PAGE_KEYS = frozenset(Page.__dataclass_fields__)
_MARK_KINDS = get_args(MarkKind)


def to_json(document: Document, *, indent: int | None = 2) -> str:
    """The whole document as JSON; `from_json` gives an equal one back.

    metadata of document and pages must be what JSON can hold: a TypeError names what is not.
    """
    value = {
        "format": FORMAT,
        "version": VERSION,
        "source": document.source,
        "metadata": dict(document.metadata),
        "pages": [page_to_dict(page) for page in document.pages],
    }
    return json.dumps(value, ensure_ascii=False, indent=indent)


def from_json(text: str) -> Document:
    """The document that `to_json` wrote. ValueError, with what is wrong, for anything else."""
    value = json.loads(text)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f'this JSON is no parsed document: expected an object with "format": "{FORMAT}"')
    if value.get("version") != VERSION:
        raise ValueError(f"this document has version {value.get('version')!r}; this program reads version {VERSION}")
    pages = _list(value, "pages", "the document")
    return Document(
        source=_string(value, "source", "the document"),
        pages=tuple(page_from_dict(page) for page in pages),
        metadata=_mapping(value, "metadata", "the document"),
    )


def page_to_dict(page: Page) -> dict[str, Any]:
    """One page for JSON; `page_from_dict` gives an equal one back."""
    value: dict[str, Any] = {"number": page.number, "size": _size_to_dict(page.size)}
    if page.points is not None:
        value["points"] = list(page.points)
    if page.error:
        value["error"] = page.error
    if page.metadata:
        value["metadata"] = dict(page.metadata)
    value["blocks"] = [block_to_dict(block) for block in page.blocks]
    if page.answer:
        value["answer"] = page.answer
    return value


def page_from_dict(value: Any) -> Page:
    """The page that `page_to_dict` wrote. ValueError, with what is wrong, for anything else."""
    where = "a page"
    _known(value, _PAGE_KEYS, where)
    number = value.get("number")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f'"number" of a page is {number!r}; expected a whole number from 1 on')
    where = f"page {number}"
    points = _numbers(value, "points", where)
    if points is not None and len(points) != 2:
        raise ValueError(f'"points" of {where} has {len(points)} numbers; expected width and height')
    return Page(
        number=number,
        size=_size_from_dict(value.get("size"), where),
        blocks=tuple(block_from_dict(block, where) for block in _list(value, "blocks", where)),
        answer=_string(value, "answer", where),
        points=(points[0], points[1]) if points is not None else None,
        error=_string(value, "error", where),
        metadata=_mapping(value, "metadata", where),
    )


def block_to_dict(block: Block) -> dict[str, Any]:
    """One block for JSON, fields with their default left out."""
    value: dict[str, Any] = {"kind": block.kind}
    if block.level:
        value["level"] = block.level
    if block.kind == "list":
        value["ordered"] = block.ordered
    elif block.ordered:
        value["ordered"] = True
    if block.start != 1:
        value["start"] = block.start
    if block.handwritten:
        value["handwritten"] = True
    value.update(_common(block))
    if block.polygon:
        value["polygon"] = [list(corner) for corner in block.polygon]
    if block.image_box is not None:
        value["image_box"] = list(block.image_box)
    if block.attributes:
        value["attributes"] = dict(block.attributes)
    if block.rows:
        value["rows"] = [[_cell_to_dict(cell) for cell in row] for row in block.rows]
    if block.children:
        value["children"] = [block_to_dict(child) for child in block.children]
    return value


def block_from_dict(value: Any, where: str) -> Block:
    _known(value, _BLOCK_KEYS, f"a block of {where}")
    kind = value.get("kind")
    if kind not in KINDS:
        raise ValueError(f'"kind" of a block of {where} is {kind!r}; expected one of {", ".join(KINDS)}')
    where = f"a {kind} of {where}" if " of " not in where else where
    rows = _list(value, "rows", where)
    polygon = _list(value, "polygon", where)
    return Block(
        kind=cast(BlockKind, kind),
        text=_string(value, "text", where),
        marks=_marks(value, where),
        box=_box(value, "box", where),
        resized=_box(value, "resized", where),
        level=_whole(value, "level", 0, where),
        ordered=bool(value.get("ordered", False)),
        start=_whole(value, "start", 1, where),
        handwritten=bool(value.get("handwritten", False)),
        rows=tuple(tuple(_cell_from_dict(cell, where) for cell in _sequence(row, "a row", where)) for row in rows),
        children=tuple(block_from_dict(child, where) for child in _list(value, "children", where)),
        polygon=tuple(_corner(corner, where) for corner in polygon),
        image_box=_box(value, "image_box", where),
        attributes={str(k): str(v) for k, v in _mapping(value, "attributes", where).items()},
    )


def _common(part: Block | Cell) -> dict[str, Any]:
    value: dict[str, Any] = {}
    if part.text:
        value["text"] = part.text
    if part.marks:
        value["marks"] = [
            [mark.kind, mark.start, mark.end, mark.target] if mark.target else [mark.kind, mark.start, mark.end]
            for mark in part.marks
        ]
    if part.box is not None:
        value["box"] = list(part.box)
    if part.resized is not None:
        value["resized"] = list(part.resized)
    return value


def _cell_to_dict(cell: Cell) -> dict[str, Any]:
    value = _common(cell)
    if cell.header:
        value["header"] = True
    if cell.rowspan != 1:
        value["rowspan"] = cell.rowspan
    if cell.colspan != 1:
        value["colspan"] = cell.colspan
    if cell.children:
        value["children"] = [block_to_dict(child) for child in cell.children]
    return value


def _cell_from_dict(value: Any, where: str) -> Cell:
    _known(value, _CELL_KEYS, f"a cell of {where}")
    return Cell(
        text=_string(value, "text", where),
        marks=_marks(value, where),
        header=bool(value.get("header", False)),
        rowspan=_whole(value, "rowspan", 1, where),
        colspan=_whole(value, "colspan", 1, where),
        children=tuple(block_from_dict(child, where) for child in _list(value, "children", where)),
        box=_box(value, "box", where),
        resized=_box(value, "resized", where),
    )


def _size_to_dict(size: ImageSize | None) -> dict[str, Any] | None:
    if size is None:
        return None
    return {"width": size.width, "height": size.height, "resized": [size.resized_width, size.resized_height]}


def _size_from_dict(value: Any, where: str) -> ImageSize | None:
    if value is None:
        return None
    try:
        return ImageSize(int(value["width"]), int(value["height"]), *map(int, value["resized"]))
    except (TypeError, KeyError, ValueError) as reason:
        raise ValueError(
            f'"size" of {where} is {value!r}; expected width, height and resized [width, height]'
        ) from reason


def _known(value: Any, keys: frozenset[str], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {type(value).__name__}; expected an object")
    unknown = sorted(set(value) - keys)
    if unknown:
        raise ValueError(f"{where} has unknown fields {', '.join(unknown)}; known are {', '.join(sorted(keys))}")


def _string(value: Mapping[str, Any], key: str, where: str) -> str:
    found = value.get(key, "")
    if not isinstance(found, str):
        raise ValueError(f'"{key}" of {where} is {found!r}; expected text')
    return found


def _whole(value: Mapping[str, Any], key: str, default: int, where: str) -> int:
    found = value.get(key, default)
    if not isinstance(found, int) or isinstance(found, bool):
        raise ValueError(f'"{key}" of {where} is {found!r}; expected a whole number')
    return found


def _mapping(value: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = value.get(key, {})
    if not isinstance(found, dict):
        raise ValueError(f'"{key}" of {where} is {found!r}; expected an object')
    return found


def _list(value: Mapping[str, Any], key: str, where: str) -> Sequence[Any]:
    return _sequence(value.get(key, []), f'"{key}"', where)


def _sequence(found: Any, key: str, where: str) -> Sequence[Any]:
    if not isinstance(found, list):
        raise ValueError(f"{key} of {where} is {found!r}; expected a list")
    return found


def _numbers(value: Mapping[str, Any], key: str, where: str) -> list[float] | None:
    found = value.get(key)
    if found is None:
        return None
    if not isinstance(found, list) or any(isinstance(n, bool) or not isinstance(n, int | float) for n in found):
        raise ValueError(f'"{key}" of {where} is {found!r}; expected a list of numbers')
    return [float(number) for number in found]


def _box(value: Mapping[str, Any], key: str, where: str) -> Bbox | None:
    found = _numbers(value, key, where)
    if found is None:
        return None
    if len(found) != 4:
        raise ValueError(f'"{key}" of {where} has {len(found)} numbers; expected x1, y1, x2, y2')
    return found[0], found[1], found[2], found[3]


def _corner(value: Any, where: str) -> tuple[float, float]:
    found = _numbers({"corner": value}, "corner", where)
    if found is None or len(found) != 2:
        raise ValueError(f"a corner of a polygon of {where} is {value!r}; expected x and y")
    return found[0], found[1]


def _marks(value: Mapping[str, Any], where: str) -> tuple[Mark, ...]:
    marks = []
    for found in _list(value, "marks", where):
        fits = isinstance(found, list) and len(found) in (3, 4) and found[0] in _MARK_KINDS
        if not fits or not all(isinstance(at, int) for at in found[1:3]):
            raise ValueError(
                f"a mark of {where} is {found!r}; expected [kind, start, end] or [kind, start, end, target]"
            )
        marks.append(Mark(found[0], found[1], found[2], str(found[3]) if len(found) == 4 else ""))
    return tuple(marks)
