"""Recorded-style document answers, and blocks as lines that people can read and write.

A case is a text file: a line "size: WxH seen as WxH", the answer after "--- answer", the blocks after "--- blocks".
A block is one line, what lies within it is indented by two spaces:

    heading 2 [20 30 120 50] Results            level, box in whole original pixels, text; line ends are written as ¶
    paragraph Water is H2O. {sub 10-11}         marks: kind and the characters they cover
    table [0 0 100 50]
      | !Name | Age 2x1                         cells: ! a header, rowsxcolumns where it covers more than one of each
    item - list + figure                        a cell with blocks in it: "+" and their kinds
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qwenvl.tasks.documents import Block, Cell
from qwenvl.types import ImageSize

FOLDER = Path(__file__).parent / "documents"


@dataclass(frozen=True)
class Case:
    name: str
    size: ImageSize
    answer: str
    blocks: str


def cases() -> list[Case]:
    return [read_case(path) for path in sorted(FOLDER.glob("*.txt"))]


def read_case(path: Path) -> Case:
    head, _, rest = path.read_text(encoding="utf-8").partition("\n--- answer\n")
    answer, _, blocks = rest.partition("\n--- blocks\n")
    width, height, seen_width, seen_height = map(int, re.findall(r"\d+", head))
    return Case(path.stem, ImageSize(width, height, seen_width, seen_height), answer, blocks.strip("\n"))


def outline(blocks: list[Block]) -> str:
    return "\n".join(line for block in blocks for line in _lines(block, ""))


def _lines(block: Block, margin: str) -> Iterator[str]:
    words = [block.kind]
    if block.kind == "heading":
        words.append(str(block.level))
    if block.kind == "list" and block.ordered:
        words.append(f"from {block.start}")
    if block.handwritten:
        words.append("by hand")
    if block.box is not None:
        words.append(f"[{' '.join(str(round(n)) for n in block.box)}]")
    if block.image_box is not None:
        words.append(f"picture [{' '.join(str(round(n)) for n in block.image_box)}]")
    if block.polygon:
        words.append(f"polygon [{' '.join(f'{round(x)},{round(y)}' for x, y in block.polygon)}]")
    words.extend(f"{key}={block.attributes[key]}" for key in ("alt", "language") if key in block.attributes)
    words.append(_text(block))
    yield margin + " ".join(word for word in words if word)
    for row in block.rows:
        yield f"{margin}  | " + " | ".join(map(_cell, row))
    for child in block.children:
        yield from _lines(child, margin + "  ")


def _cell(cell: Cell) -> str:
    words = [("!" if cell.header else "") + _text(cell)]
    if (cell.rowspan, cell.colspan) != (1, 1):
        words.append(f"{cell.rowspan}x{cell.colspan}")
    if cell.box is not None:
        words.append(f"[{' '.join(str(round(n)) for n in cell.box)}]")
    words.extend(f"+ {child.kind} {_text(child)}".rstrip() for child in cell.children)
    return " ".join(word for word in words if word)


def _text(part: Block | Cell) -> str:
    marks = [
        f"{{{mark.kind} {mark.start}-{mark.end}{' ' + mark.target if mark.target else ''}}}" for mark in part.marks
    ]
    return " ".join([part.text.replace("\n", "¶"), *marks]).strip()
