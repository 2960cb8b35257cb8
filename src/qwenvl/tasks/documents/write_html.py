"""Blocks -> clean HTML, in the same vocabulary as QwenVL HTML, so that `read_answer` reads it again.

In: a Document. Out: HTML without styles, scripts or colours; every text escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qwenvl.tasks.documents.blocks import Bbox, Block, Cell, Document, Mark, Page
from qwenvl.tasks.documents.pictures import crop_names
from qwenvl.tasks.documents.runs import runs

_TAGS = {
    "bold": "b",
    "italic": "i",
    "underline": "u",
    "strike": "s",
    "code": "code",
    "sub": "sub",
    "sup": "sup",
}
_CLASSES = {"music": "music sheet", "chemistry": "chemical formula", "chart": "chart"}
_FORMATS = {"music": "abc notation", "chemistry": "smile"}


def to_html(document: Document, *, boxes: bool = False, contents: bool = True, crops: str | None = None) -> str:
    """A whole HTML document: a <section> for each page; the model's remarks are left out.

    boxes: keep data-bbox and data-polygon, in ORIGINAL pixels. contents=False: picture captions, charts, chemistry and
    music are emptied, as the official cookbook does. crops: folder, as written in links, of the files of `crop_blocks`.
    """
    pages = []
    for page in document.pages:
        names = {id(block): f"{crops}/{name}" for block, name in crop_names(page)} if crops is not None else {}
        writer = HtmlWriter(boxes, contents, names)
        pages.append(f'<section data-page="{page.number}">\n{_page(writer, page)}</section>\n')
    head = f'<head><meta charset="utf-8"/><title>{html.escape(document.source)}</title></head>'
    return f"<!DOCTYPE html>\n<html>\n{head}\n<body>\n{''.join(pages)}</body>\n</html>\n"


def _page(writer: HtmlWriter, page: Page) -> str:
    error = f"<!-- page {page.number}: {_comment(page.error)} -->\n" if page.error else ""
    return error + "".join(f"{text}\n" for text in map(writer.block, page.blocks) if text)


@dataclass(frozen=True)
class HtmlWriter:
    """Writes single blocks. names: id(block) -> where its crop is."""

    boxes: bool = False
    contents: bool = True
    names: Mapping[int, str] = field(default_factory=dict)

    def block(self, block: Block) -> str:
        kind = block.kind
        if kind == "remark":
            return ""
        if kind in ("music", "chemistry", "chart"):
            return self._described(block)
        if kind == "figure":
            return self._figure(block)
        if kind == "formula":
            named = "formula.handwritten" if self.boxes and block.handwritten else "formula"
            picture = self._picture(block) if block.image_box or id(block) in self.names else ""
            return self._element("div", f"{picture}{html.escape(block.text, quote=False)}", block, named)
        if kind == "table":
            return self.table(block)
        if kind == "list":
            start = {"start": str(block.start)} if block.ordered and block.start != 1 else {}
            items = "".join(f"\n{self.block(item)}" for item in block.children)
            return self._element("ol" if block.ordered else "ul", items + "\n", block, **start)
        if kind == "code":
            language = block.attributes.get("language", "")
            classed = f' class="language-{html.escape(language)}"' if language else ""
            return self._element("pre", f"<code{classed}>{html.escape(block.text, quote=False)}</code>", block)
        tags = {"heading": f"h{min(max(block.level, 1), 6)}", "item": "li", "quote": "blockquote", "group": "div"}
        return self._text(tags.get(kind, "p"), block)

    def _text(self, tag: str, block: Block) -> str:
        """Running text. A paragraph cannot hold blocks: they follow it."""
        text = inline_html(block.text, block.marks)
        named = (
            "caption" if block.kind == "caption" else block.attributes.get("class", "") if tag in ("p", "div") else ""
        )
        inner = self._all(block.children)
        if tag in ("li", "blockquote", "div"):
            wrapped = f"<p>{text}</p>" if text and inner and tag != "li" else text
            return self._element(tag, wrapped + inner, block, named)
        return self._element(tag, text, block, named) + inner

    def _all(self, blocks: Iterable[Block]) -> str:
        return "".join(f"\n{text}" for text in map(self.block, blocks) if text)

    def _described(self, block: Block) -> str:
        """A picture with its content in another notation."""
        if not self.contents:
            return self._element("div", "", block, _CLASSES[block.kind])
        inner = self._all(block.children)
        if block.kind == "music":
            inner = f"<pre>{html.escape(block.text, quote=False)}</pre>" + inner
        elif block.text:
            inner = f"<div>{html.escape(block.text, quote=False)}</div>" + inner
        form = block.attributes.get("format", _FORMATS.get(block.kind, ""))
        return self._element("div", self._picture(block) + inner, block, _CLASSES[block.kind], format=form)

    def _figure(self, block: Block) -> str:
        text = inline_html(block.text, block.marks)
        if not self.contents and block.children and not text:
            return self._element("div", "", block, "image")
        named = "image ocr" if text else "image caption" if block.children else "image"
        inner = f"<p>{text}</p>" if text else ""
        return self._element("div", self._picture(block) + inner + self._all(block.children), block, named)

    def _picture(self, block: Block) -> str:
        said = {"src": self.names.get(id(block), ""), "alt": block.attributes.get("alt", "")}
        if self.boxes:
            said["data-bbox"] = _numbers(block.image_box or block.box)
        return f"<img{_attributes(said)}/>"

    def table(self, block: Block) -> str:
        """Rows whose cells are all headers are the head, if they come first."""
        captions = "".join(map(self._caption, block.children))
        heads = 0
        while heads < len(block.rows) and all(cell.header for cell in block.rows[heads]):
            heads += 1
        rows = [f"<tr>{''.join(map(self._cell, row))}</tr>\n" for row in block.rows]
        head = f"<thead>\n{''.join(rows[:heads])}</thead>\n" if heads else ""
        body = f"<tbody>\n{''.join(rows[heads:])}</tbody>\n" if rows[heads:] else ""
        return self._element("table", f"\n{captions}{head}{body}", block)

    def _caption(self, block: Block) -> str:
        if block.kind not in ("caption", "paragraph"):
            return f"<caption>{self.block(block)}</caption>"
        inner = inline_html(block.text, block.marks) + self._all(block.children)
        return self._element("caption", inner, block) if inner else ""

    def _cell(self, cell: Cell) -> str:
        said = {
            "rowspan": str(cell.rowspan) if cell.rowspan > 1 else "",
            "colspan": str(cell.colspan) if cell.colspan > 1 else "",
            "data-bbox": _numbers(cell.box) if self.boxes else "",
        }
        tag = "th" if cell.header else "td"
        inner = inline_html(cell.text, cell.marks) + "".join(map(self.block, cell.children))
        return f"<{tag}{_attributes(said)}>{inner}</{tag}>"

    def _element(self, tag: str, inner: str, block: Block, named: str = "", **more: str) -> str:
        said = {"class": named, **more}
        if self.boxes:
            said["data-bbox"] = _numbers(block.box)
            said["data-polygon"] = " ".join(_number(n) for corner in block.polygon for n in corner)
        return f"<{tag}{_attributes(said)}>{inner}</{tag}>"


def inline_html(text: str, marks: Iterable[Mark]) -> str:
    """Running text with its marks as tags, line ends as <br/>."""
    pieces = []
    for kind, piece, mark in runs(text, tuple(marks)):
        if mark is None:
            pieces.append(html.escape(piece, quote=False).replace("\n", "<br/>"))
        elif mark.kind == "link":
            pieces.append(f'<a href="{html.escape(mark.target)}">' if kind == "open" else "</a>")
        elif mark.kind == "formula":
            pieces.append('<span class="formula">' if kind == "open" else "</span>")
        else:
            pieces.append(f"<{'/' if kind == 'close' else ''}{_TAGS[mark.kind]}>")
    return "".join(pieces)


def _attributes(said: Mapping[str, str]) -> str:
    return "".join(f' {key}="{html.escape(value)}"' for key, value in said.items() if value)


def _numbers(box: Bbox | None) -> str:
    return " ".join(map(_number, box)) if box is not None else ""


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _comment(text: str) -> str:
    return text.replace("--", "- -")
