"""Blocks -> Markdown and plain text.

In: a Document. Out: GitHub's Markdown; what it cannot say (cells over several columns, raised letters) is HTML in it.
Characters of the page that would be read as signs are escaped, so that the page says the same after as before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from qwenvl.tasks.documents.blocks import Block, Cell, Document, Mark, Page
from qwenvl.tasks.documents.pictures import crop_names
from qwenvl.tasks.documents.runs import runs
from qwenvl.tasks.documents.tables import is_plain
from qwenvl.tasks.documents.write_html import HtmlWriter

_SIGNS = {"bold": "**", "italic": "*", "strike": "~~", "code": "`", "formula": "$"}
_TAGS = {"bold": "b", "italic": "i", "strike": "s", "underline": "u", "sub": "sub", "sup": "sup", "code": "code"}
_LIKE_A_TAG = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w{1,31};)")
# Pairs that a reader of Markdown would take for emphasis, code or links. "**" is left: a model that writes it means it.
_LIKE_SIGNS = re.compile(
    r"`(?=[^`\n]+`)|(?<=`)`|(?<![\w*\\])\*(?=[^\s*][^*\n]*\*(?![\w*]))|(?<![\w_\\])_(?=[^\s_][^_\n]*_(?![\w_]))"
    r"|~(?=~)|\](?=\([^()\s]*\))"
)
_LIKE_A_START = re.compile(r"(?m)^([ \t]*)(?=(?:#{1,6}|[-+*•])(?:[ \t]|$)|>|[-=]{2,}[ \t]*$|\|)")
_LIKE_A_NUMBER = re.compile(r"(?m)^([ \t]*\d{1,9})(?=[.)](?:[ \t]|$))")


def to_markdown(document: Document, *, crops: str | None = None, page_breaks: bool = False) -> str:
    """Markdown; tables, formulas, figures as it can say them; the model's remarks are left out.

    crops: folder, as written in links, of the files of `crop_blocks`; without it there are no links to pictures.
    page_breaks: a line `<!-- page 2 -->` before every page but the first.
    """
    pages = []
    for page in document.pages:
        names = {id(block): f"{crops}/{name}" for block, name in crop_names(page)} if crops is not None else {}
        text = _page(page, names)
        if page_breaks and page.number > 1:
            text = f"<!-- page {page.number} -->\n\n{text}".rstrip()
        if text:
            pages.append(text)
    return "\n\n".join(pages) + "\n" if pages else ""


def to_text(document: Document) -> str:
    """Plain text: blocks separated by an empty line, pages by a form feed."""
    return "\f".join(page.text() + "\n" for page in document.pages)


def _page(page: Page, names: Mapping[int, str]) -> str:
    parts = [f"<!-- page {page.number}: {page.error.replace('--', '- -')} -->"] if page.error else []
    return "\n\n".join([*parts, *_blocks(page.blocks, names)])


def _blocks(blocks: Iterable[Block], names: Mapping[int, str]) -> list[str]:
    written: list[str] = []
    before: Block | None = None
    for block in blocks:
        text = _block(block, names)
        if text and before is not None and before.kind == block.kind == "list" and before.ordered == block.ordered:
            written.append("<!-- -->")  # or both would be read as one list
        if text:
            written.append(text)
            before = block
    return written


def _block(block: Block, names: Mapping[int, str]) -> str:
    kind = block.kind
    if kind == "remark":
        return ""
    if kind == "list":
        return _list(block, names)
    if kind == "table":
        return _table(block, names)
    picture = [f"![{_alt(block)}]({names[id(block)]})"] if id(block) in names and kind != "formula" else []
    parts = [*picture, *_own(block), *_blocks(block.children, names)]
    if kind == "figure" and not parts:
        said = block.attributes.get("alt", "").replace("--", "- -")
        parts = [f"<!-- figure: {said} -->" if said else "<!-- figure -->"]
    text = "\n\n".join(part for part in parts if part)
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n")) if kind == "quote" else text


def _own(block: Block) -> list[str]:
    """What the block itself says, without its children."""
    if not block.text:
        return []
    if block.kind == "heading":
        text = inline_markdown(block.text, block.marks).replace("\n", " ")
        return [f"{'#' * min(max(block.level, 1), 6)} {text}"]
    if block.kind == "formula":
        return [f"$$\n{block.text}\n$$"]
    if block.kind == "chemistry":
        return [f"`{block.text}`"]
    if block.kind in ("code", "music"):
        ticks = max((len(ticks) for ticks in re.findall(r"`+", block.text)), default=0)
        fence = "`" * max(3, ticks + 1)
        return [
            f"{fence}{'abc' if block.kind == 'music' else block.attributes.get('language', '')}\n{block.text}\n{fence}"
        ]
    return [_lines(block.text, block.marks)]


def _lines(text: str, marks: Sequence[Mark]) -> str:
    """Running text as a paragraph: line ends kept, beginnings that look like a list or heading escaped."""
    written = inline_markdown(text, marks)
    written = _LIKE_A_START.sub(r"\1\\", written)
    return _LIKE_A_NUMBER.sub(r"\1\\", written).replace("\n", "  \n")


def _list(block: Block, names: Mapping[int, str]) -> str:
    lines = []
    for at, item in enumerate(block.children):
        marker = f"{block.start + at}. " if block.ordered else "- "
        inner = _lines(item.text, item.marks) if item.kind == "item" else _block(item, names)
        margin = " " * len(marker)
        for child in item.children if item.kind == "item" else ():
            between = "\n" if child.kind == "list" else "\n\n"
            text = _block(child, names)
            inner = f"{inner}{between}{text}" if inner and text else inner or text
        lines.append(marker + inner.replace("\n", f"\n{margin}").replace(f"\n{margin}\n", "\n\n"))
    return "\n".join(lines)


def _table(block: Block, names: Mapping[int, str]) -> str:
    captions = _blocks(block.children, names)
    if not block.rows:
        picture = [f"![table]({names[id(block)]})"] if id(block) in names else []
        return "\n\n".join([*captions, *picture])
    if not is_plain(block):
        whole = HtmlWriter(names=names).table(Block("table", rows=block.rows))
        return "\n\n".join([*captions, whole])
    width = max(len(row) for row in block.rows)
    rows = [[_cell(cell) for cell in row] + [""] * (width - len(row)) for row in block.rows]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|{' --- |' * width}")
    return "\n\n".join([*captions, "\n".join(lines)])


def _cell(cell: Cell) -> str:
    return inline_markdown(cell.text, cell.marks).replace("|", "\\|").replace("\n", "<br>")


def _alt(block: Block) -> str:
    said = block.attributes.get("alt") or block.kind
    return re.sub(r"[\[\]\n]", " ", said)


def inline_markdown(text: str, marks: Iterable[Mark]) -> str:
    """Running text with its marks as signs, or as tags where signs would not be understood."""
    pieces = []
    exact = 0  # how many marks are open within which nothing is escaped
    for kind, piece, mark in runs(text, tuple(marks)):
        if mark is None:
            pieces.append(piece if exact else escaped(piece))
            continue
        if mark.kind in ("code", "formula"):
            exact += 1 if kind == "open" else -1
        pieces.append(_sign(text, mark, kind == "open"))
    return "".join(pieces)


def escaped(text: str) -> str:
    """`text` so that a reader of Markdown shows it as it is."""
    text = _LIKE_SIGNS.sub(lambda match: f"\\{match[0]}", text)
    return _LIKE_A_TAG.sub(lambda match: "&lt;" if match[0] == "<" else "&amp;", text)


def _sign(text: str, mark: Mark, opens: bool) -> str:
    if mark.kind == "link":
        return "[" if opens else f"]({mark.target})"
    if mark.kind in ("code", "formula") and _SIGNS[mark.kind] not in text[mark.start : mark.end]:
        return _SIGNS[mark.kind]
    if mark.kind == "formula":
        return "\\(" if opens else "\\)"
    if mark.kind in _SIGNS and mark.kind != "code" and _stands_free(text, mark):
        return _SIGNS[mark.kind]
    return f"<{'' if opens else '/'}{_TAGS[mark.kind]}>"


def _stands_free(text: str, mark: Mark) -> bool:
    """Would signs around the mark be read as such? They are not beside a letter outside and punctuation inside."""
    before, after = text[: mark.start][-1:], text[mark.end :][:1]
    first, last = text[mark.start], text[mark.end - 1]
    inner = not first.isspace() and not last.isspace() and "\n" not in text[mark.start : mark.end]
    return inner and (not before.isalnum()) and (not after.isalnum())
