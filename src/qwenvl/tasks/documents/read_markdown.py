"""Markdown, or plain text, as models write it -> typed blocks.

In: text that stands in no HTML element; inline tags and entities in it are understood. Out: blocks in order. Linear; a
fence, formula or LaTeX table that the end cuts off is read as far as it goes.

    # heading     - and 1. lists, nested     | tables |     $$ formulas $$     ``` code     > quotes     ![alt](source)
    \\begin{tabular} ... \\end{tabular}       as later models write tables
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from qwenvl.tasks.documents.blocks import Block, Cell
from qwenvl.tasks.documents.frames import Frame
from qwenvl.tasks.documents.inline import Rich, joined
from qwenvl.tasks.documents.latex_tables import latex_table
from qwenvl.tasks.documents.markdown_inline import rich

_BLANK = re.compile(r"\s*\Z")
_FENCE = re.compile(r" {0,12}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*\Z")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*\Z")
_RULE = re.compile(r" {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})\Z")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*\Z")
_QUOTE = re.compile(r" {0,3}> ?")
_ITEM = re.compile(r"([ \t]*)(?:([-*+•·▪‣◦])|(\d{1,9})[.)])(?:[ \t]+|\Z)")
_TICK = re.compile(r"\[([ xX])\][ \t]+")
_DASHES = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*\Z")
_IMAGE = re.compile(r"\s*!\[([^\]]*)\]\(\s*<?([^()\s<>]*)>?[^()]*\)\s*\Z")
_FORMULA = re.compile(r"\s*(\$\$|\\\[)")
_ENVIRONMENT = re.compile(r"\s*\\begin\{(table|tabular|tabularx|longtable|equation|align|gather|multline|math)(\*?)\}")
_DEEPEST = 12  # quotes in quotes, lists in lists


def read_markdown(source: str, frame: Frame, keep_lines: bool = False, depth: int = 0) -> list[Block]:
    """The blocks of `source`. keep_lines: a line end within a paragraph is one in its text, else a space."""
    reader = _Reader(source, frame, keep_lines, depth)
    reader.read()
    return reader.blocks


class _Reader:
    def __init__(self, source: str, frame: Frame, keep_lines: bool, depth: int) -> None:
        self.lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self.frame = frame
        self.keep_lines = keep_lines
        self.depth = depth
        self.at = 0
        self.blocks: list[Block] = []
        self.paragraph: list[str] = []

    def read(self) -> None:
        steps: tuple[Callable[[str], bool], ...] = (
            self._blank,
            self._code,
            self._heading,
            self._underline,
            self._rule,
            self._formula,
            self._environment,
            self._image,
            self._table,
            self._quote,
            self._list,
        )
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if not any(step(line) for step in steps):
                self.paragraph.append(line)
                self.at += 1
        self._end_paragraph()

    def _add(self, block: Block) -> bool:
        self._end_paragraph()
        self.blocks.append(block)
        return True

    def _end_paragraph(self) -> None:
        lines, self.paragraph = self.paragraph, []
        text = self._rich(lines)
        if text:
            self.blocks.append(Block("paragraph", text.text, text.marks))

    def _rich(self, lines: list[str]) -> Rich:
        if self.keep_lines:
            return joined([part for part in (rich(line) for line in lines) if part])
        return rich("\n".join(lines))

    def _blank(self, line: str) -> bool:
        if not _BLANK.match(line):
            return False
        self._end_paragraph()
        self.at += 1
        return True

    def _code(self, line: str) -> bool:
        fence = _FENCE.match(line)
        if fence is None:
            return False
        closing = re.compile(rf"\s*{re.escape(fence[1][0])}{{{len(fence[1])},}}\s*\Z")
        start = end = self.at + 1
        while end < len(self.lines) and not closing.match(self.lines[end]):
            end += 1
        text = "\n".join(self.lines[start:end]).strip("\n")
        self.at = end + 1
        if text:
            return self._add(Block("code", text, attributes={"language": fence[2]} if fence[2] else {}))
        self._end_paragraph()
        return True

    def _heading(self, line: str) -> bool:
        match = _HEADING.match(line)
        if match is None:
            return False
        self.at += 1
        text = rich(match[2])
        return self._add(Block("heading", text.text, text.marks, level=len(match[1]))) if text else True

    def _underline(self, line: str) -> bool:
        if len(self.paragraph) != 1 or not _UNDERLINE.match(line):
            return False
        text = rich(self.paragraph.pop())
        self.at += 1
        return self._add(Block("heading", text.text, text.marks, level=1 if "=" in line else 2))

    def _rule(self, line: str) -> bool:
        if not _RULE.match(line):
            return False
        self._end_paragraph()
        self.at += 1
        return True

    def _formula(self, line: str) -> bool:
        match = _FORMULA.match(line)
        if match is None:
            return False
        closing = "$$" if match[1] == "$$" else "\\]"
        taken: list[str] = []
        rest = line[match.end() :]
        while True:
            inner, found, after = rest.partition(closing)
            taken.append(inner)
            self.at += 1
            if found or self.at >= len(self.lines) or _BLANK.match(self.lines[self.at]):
                break
            rest = self.lines[self.at]
        latex = "\n".join(part.strip() for part in taken if part.strip())
        if latex:
            self._add(Block("formula", latex))
        if found and after.strip(" \t.,;"):
            self.paragraph.append(after)
        return True

    def _environment(self, line: str) -> bool:
        match = _ENVIRONMENT.match(line)
        if match is None:
            return False
        end = f"\\end{{{match[1]}{match[2]}}}"
        start = self.at
        while self.at < len(self.lines) and end not in self.lines[self.at]:
            self.at += 1
        text = "\n".join(self.lines[start : self.at + 1])
        self.at += 1
        body, found, after = text.partition(end)
        if match[1].startswith(("tab", "long")):
            for block in latex_table(body):
                self._add(block)
        else:
            self._add(Block("formula", (body + found).strip()))
        if after.strip():
            self.paragraph.append(after)
        return True

    def _image(self, line: str) -> bool:
        match = _IMAGE.match(line)
        if match is None:
            return False
        self.at += 1
        said = {"alt": match[1], "src": match[2]}
        return self._add(Block("figure", attributes={key: value for key, value in said.items() if value}))

    def _table(self, line: str) -> bool:
        if "|" not in line:
            return False
        after = self.lines[self.at + 1] if self.at + 1 < len(self.lines) else ""
        ruled = "-" in after and bool(_DASHES.match(after))
        if not ruled and not (line.count("|") > 1 and line.strip().startswith("|") and line.strip().endswith("|")):
            return False
        rows: list[tuple[Cell, ...]] = []
        while self.at < len(self.lines) and "|" in self.lines[self.at]:
            row = self.lines[self.at]
            if not (_DASHES.match(row) and "-" in row):
                first = ruled and not rows
                rows.append(tuple(Cell(text.text, text.marks, header=first) for text in map(rich, _cells(row))))
            self.at += 1
        return self._add(Block("table", rows=tuple(rows))) if rows else True

    def _quote(self, line: str) -> bool:
        if not _QUOTE.match(line) or self.depth >= _DEEPEST:
            return False
        taken: list[str] = []
        while self.at < len(self.lines) and (match := _QUOTE.match(self.lines[self.at])):
            taken.append(self.lines[self.at][match.end() :])
            self.at += 1
        inner = read_markdown("\n".join(taken), self.frame, self.keep_lines, self.depth + 1)
        if not inner:
            return True
        first = inner.pop(0) if inner[0].kind == "paragraph" else Block("paragraph")
        return self._add(Block("quote", first.text, first.marks, children=tuple(inner)))

    def _list(self, line: str) -> bool:
        match = _ITEM.match(line)
        if match is None or self.depth >= _DEEPEST:
            return False
        ordered, start = bool(match[3]), int(match[3] or 1)
        indent = _width(match[1])
        items: list[Block] = []
        while self.at < len(self.lines) and (match := _ITEM.match(self.lines[self.at])):
            if _width(match[1]) < indent or bool(match[3]) != ordered:
                break
            items.append(self._item(match, indent))
        return self._add(Block("list", ordered=ordered, start=start, children=tuple(items)))

    def _item(self, match: re.Match[str], indent: int) -> Block:
        """One item with all lines that belong to it: deeper ones, and text that goes on in the next line."""
        head = self.lines[self.at][match.end() :]
        self.at += 1
        inner: list[str] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            width = _width(line[: len(line) - len(line.lstrip(" \t"))])
            if not line.strip():
                following = self.lines[self.at + 1] if self.at + 1 < len(self.lines) else ""
                if not following.startswith((" ", "\t")) or _width(_margin(following)) <= indent:
                    break
            elif width <= indent and (inner or _begins_a_block(line)):
                break
            elif width <= indent:
                head += "\n" + line
                self.at += 1
                continue
            inner.append(line)
            self.at += 1
        tick = _TICK.match(head)
        if tick:
            head = ("☐ " if tick[1] == " " else "☑ ") + head[tick.end() :]
        text = self._rich(head.split("\n"))
        blocks = read_markdown(_undented(inner), self.frame, self.keep_lines, self.depth + 1) if inner else []
        if blocks and blocks[0].kind == "paragraph" and inner[0].strip():
            first = blocks.pop(0)
            text = joined(
                [part for part in (text, Rich(first.text, first.marks)) if part], "\n" if self.keep_lines else " "
            )
        return replace(Block("item", text.text, text.marks), children=tuple(blocks))


def _begins_a_block(line: str) -> bool:
    patterns = (_ITEM, _HEADING, _FENCE, _RULE, _QUOTE, _FORMULA, _ENVIRONMENT, _IMAGE)
    return any(pattern.match(line) for pattern in patterns) or line.strip().startswith("|")


def _margin(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t"))]


def _width(margin: str) -> int:
    return len(margin.expandtabs(4))


def _undented(lines: list[str]) -> str:
    least = min((_width(_margin(line)) for line in lines if line.strip()), default=0)
    return "\n".join(line.expandtabs(4)[least:] for line in lines)


def _cells(row: str) -> list[str]:
    """The cells of a table's line; "\\|" is a character of its cell."""
    row = row.strip()
    row = row[1:] if row.startswith("|") else row
    row = row[:-1] if row.endswith("|") and not row.endswith("\\|") else row
    return [cell.replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)]
