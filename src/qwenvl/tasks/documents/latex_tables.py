"""LaTeX tables, as later models write them -> table blocks.

In: LaTeX from \\begin{table} or \\begin{tabular} on, without its end. Out: a table block, its caption a child.

    \\begin{tabular}{lc} Name & Age \\\\ \\hline Ada & 36 \\\\   ->  rows (Name, Age), (Ada, 36)
"""

from __future__ import annotations

import re
from dataclasses import replace

from qwenvl.tasks.documents.blocks import Block, Cell
from qwenvl.tasks.documents.inline import one_line
from qwenvl.tasks.documents.markdown_inline import rich

_BEGIN = re.compile(r"\\begin\{(?:tabular|tabularx|longtable)\*?\}")
_LINES = re.compile(
    r"\\(?:hline|toprule|midrule|bottomrule|centering|small|footnotesize|noalign|endhead|endfirsthead|endfoot)\b"
    r"|\\c(?:line|midrule)(?:\([a-z]*\))?\{[^{}]*\}|\\(?:begin|end)\{[a-z]+\*?\}(?:\[[^\]]*\])?|\\label\{[^{}]*\}"
)
_SPAN = re.compile(
    r"\s*\\multi(column|row)\s*(?:\[[^\]]*\])?\{\s*(\d{1,3})\s*\}\s*(?:\[[^\]]*\])?\{[^{}]*\}\s*(?:\[[^\]]*\])?\{"
)
_WRAPPED = re.compile(r"\\(?:text(bf|it|tt|rm|sf)?|makecell|mathrm|underline|emph)\*?(?:\[[a-z]\])?\{([^{}]*)\}")
_SIGNS = {"bf": "**", "it": "*"}
_WIDEST = 1000


def latex_table(source: str) -> list[Block]:
    """The table in `source`, or its text as a paragraph where there is no tabular in it."""
    caption = re.search(r"\\caption\*?\{([^{}]*(?:\{[^{}]*\}[^{}]*){0,20})\}", source)
    captions: tuple[Block, ...] = ()
    if caption is not None:
        text = rich(_plain(caption[1]))
        captions = (Block("caption", text.text, text.marks),) if text else ()
        source = source[: caption.start()] + source[caption.end() :]
    begin = _BEGIN.search(source)
    body = _after_columns(source[begin.end() :]) if begin is not None else source
    rows = [row for row in (_row(line) for line in re.split(r"\\\\(?:\[[^\]\n]*\])?", _LINES.sub(" ", body))) if row]
    covered = _without_covered(rows)
    if not covered:
        return list(captions)
    return [Block("table", rows=tuple(tuple(row) for row in covered), children=captions)]


def _after_columns(source: str) -> str:
    """What follows the argument {|l|p{3cm}|}."""
    depth = 0
    for at, char in enumerate(source[:2000]):
        depth += (char == "{") - (char == "}")
        if depth == 0 and char == "}" and not source[at + 1 :].lstrip().startswith("{"):
            return source[at + 1 :]
        if depth == 0 and not char.isspace() and char not in "{}":
            return source[at:]
    return source


def _row(line: str) -> list[Cell]:
    if not line.strip():
        return []
    return [_cell(part) for part in re.split(r"(?<!\\)&(?!amp;|lt;|gt;|#)", line)]


def _cell(source: str) -> Cell:
    spans = {"column": 1, "row": 1}
    for _ in range(2):  # a multirow in a multicolumn
        match = _SPAN.match(source)
        if match is None:
            break
        spans[match[1]] = min(max(int(match[2]), 1), _WIDEST)
        source = source[match.end() :].rstrip()
        source = source[:-1] if source.endswith("}") else source
    text = rich(_plain(source))
    return Cell(text.text, text.marks, rowspan=spans["row"], colspan=spans["column"])


def _plain(source: str) -> str:
    """LaTeX's wrappers and escapes as Markdown and characters; formulas stay."""
    for _ in range(3):
        source = _WRAPPED.sub(lambda m: f"{_SIGNS.get(m[1], '')}{m[2]}{_SIGNS.get(m[1], '')}" if m[2] else "", source)
    source = re.sub(r"\\([%&#_{}])", lambda m: "\\_" if m[1] == "_" else m[1], source)
    return one_line(source.replace("\\newline", "<br>").replace("~", " "))


def _without_covered(rows: list[list[Cell]]) -> list[list[Cell]]:
    """Rows without the empty cells that stand under a multirow: such a cell covers them already."""
    kept: list[list[Cell]] = []
    below: dict[int, int] = {}  # column -> rows that are covered from above
    for row in rows:
        column = 0
        cells: list[Cell] = []
        for cell in row:
            if below.get(column, 0) > 0 and not cell.text:
                below[column] -= 1
                column += cell.colspan
                continue
            if cell.rowspan > 1:
                below[column] = cell.rowspan - 1
            cells.append(cell)
            column += cell.colspan
        if cells:
            kept.append(cells)
        elif kept:  # a row that is covered as a whole
            kept[-1] = [replace(cell, rowspan=max(1, cell.rowspan - 1)) for cell in kept[-1]]
    return kept
