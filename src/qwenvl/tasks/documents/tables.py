"""A table's element -> rows of cells, and what can be said about their shape.

In: the node of a <table>, and a function that turns what a cell holds into blocks. Out: a Block with rows; captions are
its children. Cells without a row get one, and text between cells becomes a cell: nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from qwenvl.tasks.documents.blocks import Block, Cell
from qwenvl.tasks.documents.frames import Frame
from qwenvl.tasks.documents.inline import Rich, joined
from qwenvl.tasks.documents.tree import CELLS, Node, Text

Flow = Callable[[Sequence[Node | Text]], list[Block]]

_WIDEST = 1000  # columns or rows that a cell may cover, as in HTML
_SKIPPED = ("col", "colgroup")


def table_block(node: Node, flow: Flow, frame: Frame) -> Block:
    """The table, its rows in order, its captions as children."""
    reader = _Rows(flow, frame)
    reader.read(node.children, header=False)
    reader.end_row()
    rows = tuple(tuple(row) for row in reader.rows)
    box, resized = frame.boxes(node.attributes)
    return Block("table", rows=rows, children=tuple(reader.captions), box=box, resized=resized)


class _Rows:
    def __init__(self, flow: Flow, frame: Frame) -> None:
        self.flow = flow
        self.frame = frame
        self.rows: list[list[Cell]] = []
        self.captions: list[Block] = []
        self.row: list[Cell] = []  # of cells that stand in no <tr>
        self.stray: list[Node | Text] = []  # what stands in no cell

    def read(self, nodes: Sequence[Node | Text], header: bool) -> None:
        for node in nodes:
            name = node.name if isinstance(node, Node) else ""
            if name in CELLS:
                self._end_stray()
                assert isinstance(node, Node)
                self.row.append(self._cell(node, header))
            elif isinstance(node, Node) and name in ("tr", "thead", "tbody", "tfoot"):
                self.end_row()
                self.read(node.children, header or name == "thead")
                self.end_row()
            elif isinstance(node, Node) and name == "caption":
                self._end_stray()
                self.captions.extend(self._caption(node))
            elif name not in _SKIPPED:
                self.stray.append(node)
        self._end_stray()

    def end_row(self) -> None:
        self._end_stray()
        if self.row:
            self.rows.append(self.row)
            self.row = []

    def _end_stray(self) -> None:
        held, self.stray = self.stray, []
        if any(isinstance(node, Node) or node.text.strip() for node in held):
            cell = _filled(Cell(), self.flow(held))
            if cell.text or cell.children:
                self.row.append(cell)

    def _caption(self, node: Node) -> list[Block]:
        box, resized = self.frame.boxes(node.attributes)
        blocks = [
            replace(block, kind="caption") if block.kind == "paragraph" else block for block in self.flow(node.children)
        ]
        if blocks and blocks[0].resized is None:
            blocks[0] = replace(blocks[0], box=box, resized=resized)
        return blocks

    def _cell(self, node: Node, header: bool) -> Cell:
        box, resized = self.frame.boxes(node.attributes)
        cell = Cell(
            header=header or node.name == "th",
            rowspan=_span(node.attributes.get("rowspan", "")),
            colspan=_span(node.attributes.get("colspan", "")),
            box=box,
            resized=resized,
        )
        return _filled(cell, self.flow(node.children))


def _filled(cell: Cell, blocks: list[Block]) -> Cell:
    """The cell with what it holds: paragraphs alone are its text, a line each; else the first is its text."""
    if all(_bare(block) for block in blocks):
        text = joined([Rich(block.text, block.marks) for block in blocks])
        return replace(cell, text=text.text, marks=text.marks)
    first, rest = blocks[0], tuple(blocks[1:])
    if first.kind != "paragraph" or first.children:
        return replace(cell, children=tuple(blocks))
    if first.resized is None or first.resized == cell.resized:
        return replace(cell, text=first.text, marks=first.marks, children=rest)
    if cell.resized is None and not rest:
        return replace(cell, text=first.text, marks=first.marks, box=first.box, resized=first.resized)
    return replace(cell, children=tuple(blocks))


def _bare(block: Block) -> bool:
    return block.kind == "paragraph" and block.resized is None and not block.children


def _span(value: str) -> int:
    return min(max(int(value), 1), _WIDEST) if value.isascii() and value.isdigit() and len(value) < 9 else 1


def is_plain(block: Block) -> bool:
    """Can a GitHub table say it? Its cells cover one row and column each and hold only text."""
    cells = [cell for row in block.rows for cell in row]
    if any(cell.rowspan > 1 or cell.colspan > 1 or cell.children for cell in cells):
        return False
    widest = max((len(row) for row in block.rows), default=0)
    return widest * len(block.rows) <= 4 * len(cells) + 64


def columns(block: Block) -> int:
    """How many columns the widest row covers, cells that reach down from above counted."""
    widest = reaching = 0
    ends = [0] * (len(block.rows) + 1)  # columns that stop reaching down before this row
    for at, row in enumerate(block.rows):
        reaching -= ends[at]
        widest = max(widest, reaching + sum(cell.colspan for cell in row))
        for cell in row:
            if cell.rowspan > 1:
                reaching += cell.colspan
                ends[min(at + cell.rowspan, len(block.rows))] += cell.colspan
    return widest
