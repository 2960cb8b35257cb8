"""The repaired tree of an answer -> typed blocks, in the order written.

In: Node and Text of `tree.py`. Out: Block objects. All text of the tree comes out; styles and colours do not.
What tags and classes mean is from the QwenVL HTML format (Qwen2.5-VL technical report, section 2.2.1; its cookbook):

    <p data-bbox="x1 y1 x2 y2"> and <h1> ... <h6>, <ol>, <ul>, <li>, <table>
    <div class="image">, "image caption", "image ocr", "chart", "formula" (also "formula.machine_printed" and
    "formula.handwritten"), "music sheet" (format="abc notation"), "chemical formula" (format="smile"): an <img> with
    the picture's own box, then the content as text or as a table
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from qwenvl.tasks.documents.blocks import Block, BlockKind
from qwenvl.tasks.documents.frames import Frame
from qwenvl.tasks.documents.inline import Rich, inline, joined, one_line, raw_text
from qwenvl.tasks.documents.read_markdown import read_markdown
from qwenvl.tasks.documents.tables import Flow, table_block
from qwenvl.tasks.documents.tree import CELLS, HEADINGS, INLINE, LAYOUT_COMMENT, Node, Text, build, numbers_of

_ROWS = CELLS | {"tr", "thead", "tbody", "tfoot", "colgroup", "col"}
_NOTHING = frozenset({"hr", "col", "colgroup", "meta", "link", "path", "source", "style", "script"})
_PARAGRAPHS = frozenset({"p", "dt", "dd", "address", "legend", "summary", "textarea"})
_KEPT = ("class", "id", "format", "alt", "src", "title", "lang")  # attributes that say something about the content
_DELIMITERS = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"))


def read_html(source: str, frame: Frame, keep_lines: bool = False) -> list[Block]:
    """The blocks of `source`; text that stands in no element is read as Markdown, its line ends kept if asked."""
    reader = _Reader(source, frame, keep_lines)
    return reader.top(build(source))


class _Reader:
    def __init__(self, source: str, frame: Frame, keep_lines: bool) -> None:
        self.source = source
        self.frame = frame
        self.keep_lines = keep_lines

    def top(self, top: Node) -> list[Block]:
        """Blocks of the whole answer. What stands before <html> or after </html> is a remark."""
        blocks: list[Block] = []
        loose: list[Node | Text] = []
        outside = False
        for node in [*top.children, Node("#close-html", top.end, top.end)]:
            if isinstance(node, Text) or not node.name.startswith("#") or node.name == "#comment":
                loose.append(node)
                continue
            before = node.name == "#open-html" and all(map(_runs, loose))
            blocks.extend(self._remarks(loose) if outside or before else self.flow(loose, top=True))
            loose = []
            outside = node.name in ("#close-html", "#close-body")
        return blocks

    def _remarks(self, nodes: Sequence[Node | Text]) -> list[Block]:
        """Text outside of the page as remarks; elements as what they are."""
        blocks: list[Block] = []
        for run, node in _runs_and_elements(nodes):
            text = inline(run)
            blocks.extend([Block("remark", text.text, text.marks)] if text else [])
            blocks.extend(self.element(node) if node is not None else [])
        return blocks

    def flow(self, nodes: Sequence[Node | Text], top: bool = False) -> list[Block]:
        """Blocks of what stands side by side: elements, and runs of text between them."""
        blocks: list[Block] = []
        named: Block | None = None  # what a comment said about the block that follows it
        for run, node in _runs_and_elements(_grouped(nodes)):
            found = self._run(run, top)
            found.extend(self.element(node) if node is not None else [])
            if named is not None and found:
                found[0] = _boxed(found[0], named)
                named = None
            blocks.extend(found)
            if node is not None and node.name == "#comment" and not self.element(node):
                named = self._comment(node)
        return blocks

    def _run(self, run: Sequence[Node | Text], top: bool) -> list[Block]:
        if not run:
            return []
        if top:
            return read_markdown(self.source[run[0].start : _end(run[-1])], self.frame, self.keep_lines)
        text = inline(run)
        return [Block("paragraph", text.text, text.marks)] if text else []

    def _comment(self, node: Node) -> Block:
        match = LAYOUT_COMMENT.match(node.text)
        assert match is not None
        numbers = numbers_of(match[2])
        written = (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None
        named = match[1].lower()
        kind: BlockKind = "figure" if re.search(r"image|figure|picture|chart|photo", named) else "group"
        return Block(kind, box=self.frame.box(written), resized=written)

    def element(self, node: Node) -> list[Block]:
        name = node.name
        if name == "#comment":
            comment = self._comment(node)
            return [comment] if comment.kind == "figure" else []
        if name in _NOTHING or name.startswith("#"):
            return []
        if name in HEADINGS:
            return self._heading(node)
        if name in ("ol", "ul"):
            return self._list(node)
        if name == "table":
            return self._table(node)
        if name == "img":
            return [self._made("figure", node)]
        if name == "pre":
            return self._code(node)
        if name == "blockquote":
            return self._leading("quote", node)
        if name == "title":
            text = inline(node.children)
            return [Block("remark", text.text, text.marks)] if text else []
        kind = "caption" if name in ("figcaption", "caption") else "figure" if name == "figure" else class_kind(node)
        if kind == "figure":
            return self._figure(node)
        if kind == "chart":
            return self._chart(node)
        if kind in ("formula", "chemistry", "music"):
            return self._notation(kind, node)
        if kind == "caption" or name in _PARAGRAPHS:
            return self._paragraph("caption" if kind == "caption" else "paragraph", node)
        return self._container(node)

    def _made(self, kind: BlockKind, node: Node, **fields: object) -> Block:
        """A block with the box, polygon and attributes of its tag."""
        kept = {key: node.attributes[key] for key in _KEPT if node.attributes.get(key)}
        box, resized = self.frame.boxes(node.attributes)
        block = Block(kind, box=box, resized=resized, polygon=self.frame.polygon(node.attributes), attributes=kept)
        return replace(block, **fields)  # type: ignore[arg-type]

    def _heading(self, node: Node) -> list[Block]:
        level = int(node.name[1])
        blocks = self._paragraph("heading", node)
        return [replace(block, level=level) if block.kind == "heading" else block for block in blocks]

    def _paragraph(self, kind: BlockKind, node: Node) -> list[Block]:
        """Running text of one kind; what is not text within it follows it, or takes its box if it is alone."""
        if not node.holds_blocks:
            text = inline(node.children)
            return [self._made(kind, node, text=text.text, marks=text.marks)] if text else []
        blocks = self.flow(node.children)
        if not blocks:
            return []
        own = self._made(kind, node)
        at = next((i for i, block in enumerate(blocks) if block.kind == "paragraph"), None)
        if at is not None:
            blocks[at] = replace(
                _boxed(blocks[at], own), kind=kind, attributes={**own.attributes, **blocks[at].attributes}
            )
        elif len(blocks) == 1:
            blocks[0] = _boxed(blocks[0], own)
        return blocks

    def _container(self, node: Node) -> list[Block]:
        """A part without a meaning of its own: its blocks; its box goes to a block that is alone in it."""
        blocks = self.flow(node.children)
        own = self._made("group", node)
        if not blocks or (own.resized is None and len(blocks) > 1):
            return blocks
        if len(blocks) == 1:
            block = blocks[0]
            if own.resized is None or block.resized in (None, own.resized):
                return [replace(_boxed(block, own), attributes={**own.attributes, **block.attributes})]
        return [replace(own, children=tuple(blocks))]

    def _leading(self, kind: BlockKind, node: Node) -> list[Block]:
        """A block whose text is its first paragraph; the rest are its children."""
        blocks = self.flow(node.children)
        own = self._made(kind, node)
        if (
            blocks
            and blocks[0].kind == "paragraph"
            and (own.resized is None or blocks[0].resized in (None, own.resized))
        ):
            first = blocks.pop(0)
            own = replace(_boxed(own, first), text=first.text, marks=first.marks, children=first.children)
        own = replace(own, children=(*own.children, *blocks))
        return [own] if own.text or own.children else []

    def _list(self, node: Node) -> list[Block]:
        items: list[Block] = []
        for run, child in _runs_and_elements(node.children):
            text = inline(run)
            if text:
                items.append(Block("item", text.text, text.marks))
            if child is None:
                continue
            if child.name == "li":
                items.extend(self._leading("item", child))
                continue
            blocks = self.element(child)
            if not blocks:
                continue
            if items and child.name in ("ol", "ul"):  # a nested list beside its item instead of within it
                items[-1] = replace(items[-1], children=(*items[-1].children, *blocks))
            else:
                items.append(Block("item", children=tuple(blocks)))
        if not items:
            return []
        start = node.attributes.get("start", "")
        number = int(start) if re.fullmatch(r"-?\d{1,9}", start) else 1
        return [self._made("list", node, ordered=node.name == "ol", start=number, children=tuple(items))]

    def _table(self, node: Node) -> list[Block]:
        flow: Flow = self.flow
        table = table_block(node, flow, self.frame)
        if not table.rows and not table.children and table.resized is None:
            return []
        return [replace(self._made("table", node), rows=table.rows, children=table.children)]

    def _figure(self, node: Node) -> list[Block]:
        own, inner = self._with_picture("figure", node)
        if "ocr" in node.attributes.get("class", "").lower() and all(_plain(block) for block in inner):
            text = joined([inline_of(block) for block in inner])
            return [replace(own, text=text.text, marks=text.marks)]
        captions = [replace(block, kind="caption") if block.kind == "paragraph" else block for block in inner]
        return [replace(own, children=tuple(captions))]

    def _chart(self, node: Node) -> list[Block]:
        own, inner = self._with_picture("chart", node)
        return [replace(own, children=tuple(inner))]

    def _with_picture(self, kind: BlockKind, node: Node) -> tuple[Block, list[Block]]:
        """(the block with the first picture within taken into it, the other blocks within)."""
        inner = self.flow(node.children)
        own = self._made(kind, node)
        for at, block in enumerate(inner):
            if block.kind == "figure" and not block.text and not block.children:
                del inner[at]
                attributes = {**block.attributes, **own.attributes}
                moved = block.box if block.box != own.box and own.resized is not None else None
                own = replace(_boxed(own, block), attributes=attributes, image_box=moved)
                break
        return own, inner

    def _notation(self, kind: BlockKind, node: Node) -> list[Block]:
        """A formula, a molecule, music: the text is a language of its own, so its line ends are kept."""
        text = raw_text(node, script=kind == "formula")
        own = self._made(kind, node)
        for picture in _pictures(node):
            found = self._made("figure", picture)
            moved = found.box if found.box != own.box and own.resized is not None else None
            own = replace(_boxed(own, found), image_box=moved)
            break
        if kind == "formula":
            text = latex_alone(text)
            own = replace(own, handwritten="handwritten" in node.attributes.get("class", "").lower())
        elif kind == "chemistry":
            text = one_line(text)
        return [replace(own, text=text)] if text or own.resized is not None else []

    def _code(self, node: Node) -> list[Block]:
        text = raw_text(node)
        block = self._made("code", node, text=text)
        classes = [child.attributes.get("class", "") for child in node.children if isinstance(child, Node)]
        for named in [node.attributes.get("class", ""), *classes]:
            language = re.search(r"lang(?:uage)?-([\w+#-]+)", named)
            if language:
                block = replace(block, attributes={"language": language[1]})
                break
        return [block] if text else []


def class_kind(node: Node) -> BlockKind | None:
    """What the class of an element says that it is; None where it says nothing that we know."""
    words = set(re.split(r"[\s._]+", node.attributes.get("class", "").lower()))
    if words & {"title", "header", "footer", "number"}:
        return None
    if words & {"chemical", "smiles", "smile", "molecule"}:
        return "chemistry"
    if "music" in words:
        return "music"
    if words & {"formula", "equation"} or node.name in ("formula", "math"):
        return "formula"
    if "chart" in words or node.name == "chart":
        return "chart"
    if "caption" in words and (node.name == "p" or ("image" not in words and not any(True for _ in _pictures(node)))):
        return "caption"
    if words & {"image", "figure", "picture", "img"}:
        return "figure"
    return None


def latex_alone(text: str) -> str:
    """LaTeX without the delimiters around it."""
    text = text.strip()
    for opening, closing in _DELIMITERS:
        inner = text[len(opening) : len(text) - len(closing)]
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            return text if closing in inner else inner.strip()
    return text


def inline_of(block: Block) -> Rich:
    return Rich(block.text, block.marks)


def _plain(block: Block) -> bool:
    return block.kind == "paragraph" and not block.children


def _boxed(block: Block, other: Block) -> Block:
    """`block`, with the box of `other` where it has none."""
    if block.resized is not None or other.resized is None:
        return block
    return replace(block, box=other.box, resized=other.resized, polygon=block.polygon or other.polygon)


def _pictures(node: Node) -> Iterator[Node]:
    for child in node.children:
        if isinstance(child, Node):
            if child.name == "img":
                yield child
            yield from _pictures(child)


def _runs(node: Node | Text) -> bool:
    """Is it running text, rather than a block?"""
    return isinstance(node, Text) or (node.name in INLINE and not node.holds_blocks)


def _end(node: Node | Text) -> int:
    """Where the source of a node ends, as far as is known: an element's own end tag is not counted."""
    while isinstance(node, Node) and node.children:
        node = node.children[-1]
    return node.end


def _runs_and_elements(nodes: Iterable[Node | Text]) -> Iterator[tuple[list[Node | Text], Node | None]]:
    """Pairs of a run of text and the element after it; an element without text before it has an empty run."""
    run: list[Node | Text] = []
    for node in nodes:
        if isinstance(node, Text) or _runs(node):
            run.append(node)
        else:
            yield run, node
            run = []
    yield run, None


def _grouped(nodes: Sequence[Node | Text]) -> Iterator[Node | Text]:
    """Rows, cells and items that stand outside of any table or list are put into one."""
    held: Node | None = None
    for node in nodes:
        name = node.name if isinstance(node, Node) else ""
        around = "table" if name in _ROWS else "ul" if name == "li" else ""
        blank = isinstance(node, Text) and not node.text.strip()
        if held is not None and not blank and around != held.name:
            yield held
            held = None
        if around:
            if held is None:
                held = Node(around, node.start, node.end, holds_blocks=True)
            held.children.append(node)
        elif held is None:
            yield node
    if held is not None:
        yield held
