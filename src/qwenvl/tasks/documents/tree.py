"""Tokens -> a tree of elements, repaired: what is not closed is closed where its place ends.

In: an answer's text. Out: Node and Text objects; every text token stands in the tree exactly once.
Does not know what elements mean, beyond which may stand in which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from qwenvl.tasks.documents.tags import Token, scan

INLINE = frozenset(
    """
    a abbr b big br button cite code del dfn em font i input ins kbd label mark option q s samp select
    small span strike strong sub sup time tt u var wbr
    """.split()  # noqa: SIM905
)
HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
CELLS = frozenset({"td", "th"})
_VOID = frozenset({"br", "col", "hr", "img", "input", "link", "meta", "path", "source", "wbr"})
_FRAMES = frozenset({"html", "body", "head"})
_ROW_PARTS = frozenset({"thead", "tbody", "tfoot"})
_TABLE_PARTS = CELLS | _ROW_PARTS | {"tr", "caption", "colgroup", "col"}
_NO_BLOCKS = HEADINGS | {"p", "dt"}  # a block that begins ends them
_DEEPEST = 60  # elements in elements; what lies deeper keeps its text and loses its tag
# What the beginning of one element ends, and the element beyond which it ends nothing.
_ENDS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "li": (frozenset({"li"}), frozenset({"ol", "ul", *CELLS})),
    "dt": (frozenset({"dt", "dd"}), frozenset({"dl", *CELLS})),
    "dd": (frozenset({"dt", "dd"}), frozenset({"dl", *CELLS})),
    "tr": (frozenset({"tr", "caption"}) | CELLS, frozenset({"table"})),
    "td": (CELLS | {"caption"}, frozenset({"table", "tr"})),
    "th": (CELLS | {"caption"}, frozenset({"table", "tr"})),
    "caption": (CELLS | _ROW_PARTS | {"tr", "caption"}, frozenset({"table"})),
    **{name: (CELLS | _ROW_PARTS | {"tr", "caption"}, frozenset({"table"})) for name in _ROW_PARTS},
    "option": (frozenset({"option"}), frozenset({"select"})),
}
# Where the search for the element that an end tag ends stops.
_STAYS_IN_CELL = INLINE | HEADINGS | {"p", "li", "pre", "blockquote", "dt", "dd", "figcaption"}
# Later models write places beside Markdown: <!-- Image (x1, y1, x2, y2) -->
LAYOUT_COMMENT = re.compile(r"\s*([A-Za-z][\w /-]{0,30}?)\s*[:=]?\s*[(\[]\s*(-?\d[^()\[\]]{0,80})[)\]]\s*\Z")
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(slots=True)
class Text:
    """Text at source[start:end], entities resolved."""

    text: str
    start: int
    end: int


@dataclass(slots=True)
class Node:
    """An element, or a comment (name "#comment", text its content). holds_blocks: not all within is inline."""

    name: str
    start: int
    end: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    children: list[Node | Text] = field(default_factory=list)
    text: str = ""
    holds_blocks: bool = False


def build(source: str) -> Node:
    """The tree of `source`, under a node named "#top"."""
    builder = _Builder(len(source))
    for token in scan(source):
        builder.take(token)
    return builder.top


class _Builder:
    def __init__(self, length: int) -> None:
        self.top = Node("#top", 0, length)
        self.open = [self.top]

    def take(self, token: Token) -> None:
        if token.kind == "text":
            self.open[-1].children.append(Text(token.text, token.start, token.end))
        elif token.kind == "comment":
            if LAYOUT_COMMENT.match(token.text):
                self._add(Node("#comment", token.start, token.end, text=token.text))
        elif token.name in _FRAMES:
            del self.open[1:]
            self._add(Node(f"#{token.kind}-{token.name}", token.start, token.end))
        elif token.kind == "open":
            self._begin(token)
        elif token.name == "br":
            self._add(Node("br", token.start, token.end))
        else:
            self._finish(token.name)

    def _add(self, node: Node) -> None:
        self.open[-1].children.append(node)
        if node.name not in INLINE:
            for outer in reversed(self.open):
                if outer.holds_blocks:
                    break
                outer.holds_blocks = True

    def _begin(self, token: Token) -> None:
        name = token.name
        if name in _ENDS:
            self._end_up_to(*_ENDS[name])
        elif name == "table":
            self._end_half_a_table()
        if name not in INLINE:
            self._end_up_to(_NO_BLOCKS, CELLS | {"li", "div", "table"})
        self._end_what_lies_elsewhere(token)
        node = Node(name, token.start, token.end, token.attributes)
        self._add(node)
        if name not in _VOID and not token.closed and len(self.open) < _DEEPEST:
            self.open.append(node)

    def _finish(self, name: str) -> None:
        """End the innermost element of that name and what is open within it; an end tag alone means nothing."""
        names = HEADINGS if name in HEADINGS else {name}
        for depth in range(len(self.open) - 1, 0, -1):
            current = self.open[depth].name
            if current in names:
                del self.open[depth:]
                return
            if current in CELLS and name in _STAYS_IN_CELL:
                return
            if current == "table" and name in _TABLE_PARTS:
                return
            if current in ("ol", "ul") and name == "li":
                return

    def _end_up_to(self, names: frozenset[str], limit: frozenset[str]) -> None:
        """End the outermost open element among `names`, looking no further out than `limit`."""
        found = 0
        for depth in range(len(self.open) - 1, 0, -1):
            if self.open[depth].name in names:
                found = depth
            if self.open[depth].name in limit:
                break
        if found:
            del self.open[found:]

    def _end_half_a_table(self) -> None:
        """A table that begins in another one, but in none of its cells: the other was never closed."""
        for depth in range(len(self.open) - 1, 0, -1):
            if self.open[depth].name in CELLS or self.open[depth].name == "caption":
                return
            if self.open[depth].name == "table":
                del self.open[depth:]
                return

    def _end_what_lies_elsewhere(self, token: Token) -> None:
        """A block with a box wholly outside that of the open table: the table's end is missing."""
        if token.name in INLINE or token.name in _TABLE_PARTS or token.name in ("li", "img"):
            return
        inner = box_of(token.attributes)
        if inner is None:
            return
        for depth in range(1, len(self.open)):
            if self.open[depth].name == "table":
                outer = box_of(self.open[depth].attributes)
                if outer is not None and _apart(inner, outer):
                    del self.open[depth:]
                    return


def box_of(attributes: Mapping[str, str]) -> tuple[float, float, float, float] | None:
    """The four numbers of data-bbox as written, or the frame around data-polygon; None where neither can be read."""
    if not attributes:
        return None
    for key in ("data-bbox", "bbox", "data_bbox"):
        found = numbers_of(attributes.get(key, ""))
        if len(found) == 4:
            return found[0], found[1], found[2], found[3]
        if len(found) == 8:
            return around(found)
    corners = numbers_of(attributes.get("data-polygon", ""))
    return around(corners) if len(corners) >= 6 and len(corners) % 2 == 0 else None


def around(corners: list[float]) -> tuple[float, float, float, float]:
    """The frame around x1 y1 x2 y2 x3 y3 ..."""
    return min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2])


def numbers_of(value: str) -> list[float]:
    """The numbers in an attribute; none where one is beyond any picture or there are hundreds of them."""
    found = _NUMBERS.findall(value[:4000]) if value else []
    return [float(number) for number in found] if all(len(number) <= 12 for number in found) else []


def _apart(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    left, right = sorted((one[0], one[2])), sorted((other[0], other[2]))
    top, bottom = sorted((one[1], one[3])), sorted((other[1], other[3]))
    return left[0] >= right[1] or left[1] <= right[0] or top[0] >= bottom[1] or top[1] <= bottom[0]
