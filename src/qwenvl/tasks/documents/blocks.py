"""What a parsed document is made of: blocks in reading order on pages.

In: nothing. Out: frozen dataclasses that the readers build and the writers take apart.
Does not know tags, Markdown, files or pictures.

Boxes are (x1, y1, x2, y2) in pixels of the ORIGINAL, upright page picture, x1 < x2 and y1 < y2, within its borders;
`resized` keeps the four numbers as the model wrote them.

Text stands in `text` without any markup; `marks` says which of its characters are bold, raised, a link... A block that
holds further blocks (a list its items, an item its nested list, a chart its table) has them in `children`, which come
after `text` in reading order.

    Block("heading", "Invoice", level=1, box=(40.0, 20.0, 300.0, 60.0))
    Block("list", ordered=True, children=(Block("item", "first"), Block("item", "second")))
    Block("table", rows=((Cell("Name", header=True), Cell("Age", header=True)), (Cell("Ada"), Cell("36"))))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from qwenvl.types import ImageSize

Bbox = tuple[float, float, float, float]

BlockKind = Literal[
    "heading",  # level 1 to 6
    "paragraph",
    "list",  # children: items
    "item",
    "table",  # rows; children: its caption
    "formula",  # text is LaTeX without delimiters
    "figure",  # text: what is written in the picture; children: its caption
    "caption",
    "chart",  # children: the table of what it shows
    "chemistry",  # text is SMILES
    "music",  # text is ABC notation, with its line ends
    "code",  # text with its line ends; attributes["language"]
    "quote",
    "group",  # a part with a box of its own that holds several blocks
    "remark",  # what the model said about the page, not what stands on it
]
KINDS: tuple[str, ...] = get_args(BlockKind)

MarkKind = Literal["bold", "italic", "underline", "strike", "code", "sub", "sup", "formula", "link"]


@dataclass(frozen=True)
class Mark:
    """text[start:end] is bold, ...; target: where a link goes."""

    kind: MarkKind
    start: int
    end: int
    target: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell of a table; it covers `rowspan` rows and `colspan` columns. children: lists, tables ... within it."""

    text: str = ""
    marks: tuple[Mark, ...] = ()
    header: bool = False
    rowspan: int = 1
    colspan: int = 1
    children: tuple[Block, ...] = ()
    box: Bbox | None = None
    resized: Bbox | None = None

    def plain_text(self) -> str:
        """All text of the cell; further blocks on lines of their own."""
        return _joined([self.text, *(child.plain_text() for child in self.children)])


@dataclass(frozen=True)
class Block:
    """A part of a page. Fields beyond the first ones have a meaning for some kinds only (see BlockKind).

    polygon: corners in original pixels, where the model drew more than a box. image_box: of the picture in a figure,
    chart, formula ..., where it is not `box`. start: number of the first item of an ordered list. attributes: what else
    the tag said.
    """

    kind: BlockKind
    text: str = ""
    marks: tuple[Mark, ...] = ()
    box: Bbox | None = None
    resized: Bbox | None = None
    level: int = 0
    ordered: bool = False
    start: int = 1
    handwritten: bool = False
    rows: tuple[tuple[Cell, ...], ...] = ()
    children: tuple[Block, ...] = ()
    polygon: tuple[tuple[float, float], ...] = ()
    image_box: Bbox | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    def plain_text(self) -> str:
        """All text in reading order: children on lines of their own, rows of a table with tabs between cells."""
        rows = ("\t".join(_on_a_line(cell.plain_text()) for cell in row) for row in self.rows)
        inner = [child.plain_text() for child in self.children]
        if self.kind == "table":  # a table's caption stands above it
            return _joined([*inner, self.text, *rows])
        return _joined([self.text, *rows, *inner])

    def walk(self) -> Iterator[Block]:
        """This block and all within it, also those in cells, in reading order."""
        yield self
        if self.kind != "table":
            yield from _walk_cells(self)
        for child in self.children:
            yield from child.walk()
        if self.kind == "table":
            yield from _walk_cells(self)


@dataclass(frozen=True)
class Page:
    """One page. number: from 1. size: of its picture (None where it could not be made). answer: the model's own text.

    points: size of the PDF page in points (1/72 inch), where it came from a PDF. error: why the page is missing or
    not whole.
    """

    number: int
    size: ImageSize | None
    blocks: tuple[Block, ...] = ()
    answer: str = ""
    points: tuple[float, float] | None = None
    error: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The page's text, blocks separated by an empty line, without the model's remarks."""
        return "\n\n".join(text for text in (b.plain_text() for b in self.blocks if b.kind != "remark") if text)

    def walk(self) -> Iterator[Block]:
        for block in self.blocks:
            yield from block.walk()


@dataclass(frozen=True)
class Document:
    """Pages in order. source: the file or address it was read from. metadata: anything that JSON can hold."""

    source: str
    pages: tuple[Page, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        return "\n\n".join(text for text in (page.text() for page in self.pages) if text)


def _walk_cells(block: Block) -> Iterator[Block]:
    for row in block.rows:
        for cell in row:
            for child in cell.children:
                yield from child.walk()


def _joined(parts: list[str]) -> str:
    return "\n".join(part for part in parts if part)


def _on_a_line(text: str) -> str:
    return " ".join(text.split())
