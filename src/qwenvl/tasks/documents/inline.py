"""Running text: characters without markup, and marks that say which of them are bold, raised, a link ...

In: nodes of the tree that hold no blocks. Out: Rich text, white space as a page shows it: runs of it are one space,
<br> is a line end. raw_text() keeps line ends, for formulas and code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from qwenvl.tasks.documents.blocks import Mark, MarkKind
from qwenvl.tasks.documents.tree import Node, Text

_MARKS: dict[str, MarkKind] = {
    "b": "bold",
    "strong": "bold",
    "i": "italic",
    "em": "italic",
    "cite": "italic",
    "var": "italic",
    "u": "underline",
    "ins": "underline",
    "s": "strike",
    "strike": "strike",
    "del": "strike",
    "code": "code",
    "kbd": "code",
    "samp": "code",
    "tt": "code",
    "sub": "sub",
    "sup": "sup",
    "formula": "formula",
    "math": "formula",
}
_SAFE_LINK = re.compile(r"(?:https?://|mailto:|tel:|#|/|\./)[^\s\"'<>]*\Z", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\r\n\f\v\xa0]+")
_LINE = "\ufdd0"  # stands for <br> while white space is gathered; not a character, so that no page has it


@dataclass(frozen=True)
class Rich:
    """Text and its marks, in order of their beginning."""

    text: str = ""
    marks: tuple[Mark, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text)

    def cut(self, start: int, end: int) -> Rich:
        """The part from `start` to `end`; marks that reach beyond it are cut too."""
        kept = [
            replace(mark, start=max(mark.start, start) - start, end=min(mark.end, end) - start)
            for mark in self.marks
            if mark.start < end and mark.end > start
        ]
        return Rich(self.text[start:end], tuple(kept))


def joined(parts: Sequence[Rich], between: str = "\n") -> Rich:
    """One text out of several."""
    marks: list[Mark] = []
    at = 0
    for part in parts:
        marks.extend(replace(mark, start=mark.start + at, end=mark.end + at) for mark in part.marks)
        at += len(part.text) + len(between)
    return Rich(between.join(part.text for part in parts), tuple(marks))


def inline(nodes: Iterable[Node | Text]) -> Rich:
    """The running text of `nodes`."""
    pieces: list[str] = []
    marks: list[Mark] = []
    _gather(nodes, pieces, marks, 0)
    return _settled("".join(pieces), marks)


def _gather(nodes: Iterable[Node | Text], pieces: list[str], marks: list[Mark], at: int) -> int:
    """Append texts and marks; `at` characters stand before. Gives how many stand there after."""
    for node in nodes:
        if isinstance(node, Text):
            piece = node.text.replace(_LINE, " ")
        elif node.name == "br":
            piece = _LINE
        elif node.name == "input":
            piece = _field(node)
        elif node.name.startswith("#"):
            continue
        else:
            end = _gather(node.children, pieces, marks, at)
            mark = _mark(node, at, end)
            if mark is not None and end > at:
                marks.append(mark)
            at = end
            continue
        pieces.append(piece)
        at += len(piece)
    return at


def _mark(node: Node, start: int, end: int) -> Mark | None:
    if node.name == "a":
        target = node.attributes.get("href", "")
        return Mark("link", start, end, target) if _SAFE_LINK.match(target) else None
    if node.name == "span" and "formula" in node.attributes.get("class", "").lower():
        return Mark("formula", start, end)
    kind = _MARKS.get(node.name)
    return Mark(kind, start, end) if kind is not None else None


def _field(node: Node) -> str:
    """What an <input> shows: the state of a box to tick, or what is written in it."""
    if node.attributes.get("type", "").lower() in ("checkbox", "radio"):
        return "☑ " if "checked" in node.attributes else "☐ "
    return node.attributes.get("value", "")


def _settled(raw: str, marks: Sequence[Mark]) -> Rich:
    """White space gathered and stripped, marks moved along; marks over nothing are left out."""
    pieces: list[str] = []
    moved: list[int] = []  # place in raw -> place in the result
    length = 0
    at = 0
    for space in re.finditer(rf"[ \t\r\n\f\v\xa0{_LINE}]+", raw):
        moved.extend(range(length, length + space.start() - at))
        length += space.start() - at
        pieces.append(raw[at : space.start()])
        shown = "\n" * space[0].count(_LINE) or " "
        if length == 0 or space.end() == len(raw):
            shown = ""
        moved.extend([length] * len(space[0]))
        pieces.append(shown)
        length += len(shown)
        at = space.end()
    pieces.append(raw[at:])
    moved.extend(range(length, length + len(raw) - at + 1))
    text = "".join(pieces)
    kept = []
    for mark in marks:
        start, end = moved[mark.start], min(moved[mark.end], len(text))
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        if start < end:
            kept.append(replace(mark, start=start, end=end))
    return Rich(text, tuple(sorted(kept, key=lambda mark: (mark.start, -mark.end))))


def raw_text(node: Node, script: bool = False) -> str:
    """The text within `node` with its line ends, without empty lines at its ends and spaces at the ends of lines.

    script: <sup> and <sub> are written as LaTeX, ^{...} and _{...}.
    """
    pieces: list[str] = []
    _gather_raw(node, pieces, script)
    lines = [line.rstrip() for line in "".join(pieces).replace("\xa0", " ").splitlines()]
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines)


def _gather_raw(node: Node, pieces: list[str], script: bool) -> None:
    for child in node.children:
        if isinstance(child, Text):
            pieces.append(child.text)
        elif child.name == "br":
            pieces.append("\n")
        elif child.name in ("sub", "sup") and script:
            pieces.append("_{" if child.name == "sub" else "^{")
            _gather_raw(child, pieces, script)
            pieces.append("}")
        else:
            if child.name in ("p", "div", "li", "tr") and pieces and not pieces[-1].endswith("\n"):
                pieces.append("\n")
            _gather_raw(child, pieces, script)


def one_line(text: str) -> str:
    """`text` with every run of white space as one space."""
    return _SPACE.sub(" ", text).strip()
