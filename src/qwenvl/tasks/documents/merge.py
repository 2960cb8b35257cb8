"""Paragraphs and tables that go on over the page.

In: a Document as it was read, page by page. Out: the Document with such blocks whole, on the page where they begin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from qwenvl.tasks.documents.blocks import Block, Document, Page
from qwenvl.tasks.documents.inline import Rich, joined
from qwenvl.tasks.documents.tables import columns

_PAGE_NUMBER = re.compile(
    r"\W*(?:page|seite|p\.|第)?\s*\d{1,4}\s*(?:(?:of|von|/|\|)\s*\d{1,4})?\s*页?\W*\Z", re.IGNORECASE
)
# A sentence or line that is over, also with the full-width signs of Chinese, and quotes or brackets behind them.
_ENDED = re.compile("[.!?:;\u3002\uff01\uff1f\uff1a\uff1b\u2026][\"'\u201d\u2019\u00bb)\\]]*\\Z")
_MARGIN_CLASSES = re.compile(r"\b(?:header|footer|page[-_ ]?number)\b")


def merge_pages(document: Document) -> Document:
    """The document with paragraphs and tables that a page break cuts joined on the page where they begin.

    A paragraph goes on if it does not end like a sentence and what follows begins with a small letter; a table, if the
    next page begins with one of as many columns, without a head or with the same one (which is then left out). Page
    numbers, and lines at the top of a page that stand at the top of the one before too, are passed over. The joined
    block keeps its box, and attributes["until_page"] says where it ends.
    """
    blocks = [list(page.blocks) for page in document.pages]
    open_at: tuple[int, int] | None = None  # (page, block) that may go on
    for number, page in enumerate(document.pages):
        before = document.pages[number - 1] if number else None
        content = list(_content(page, before))
        if page.error or (before is not None and page.number != before.number + 1):
            open_at = None
        if not content:
            open_at = None
            continue
        first = content[0]
        whole = None
        if open_at is not None:
            whole = _whole(blocks[open_at[0]][open_at[1]], page.blocks[first], page.number)
        if open_at is not None and whole is not None:
            blocks[open_at[0]][open_at[1]] = whole
            blocks[number][first] = Block("remark")  # taken out below
        if whole is None or len(content) > 1:
            open_at = (number, content[-1])
    pages = [
        replace(page, blocks=tuple(block for block in kept if block != Block("remark")))
        for page, kept in zip(document.pages, blocks, strict=True)
    ]
    return replace(document, pages=tuple(pages))


def _content(page: Page, before: Page | None) -> Iterator[int]:
    """Indexes of the blocks that are the page's own: no remarks, page numbers, repeated headers."""
    tops = {block.plain_text() for block in before.blocks[:2]} if before is not None else set()
    for at, block in enumerate(page.blocks):
        margin = _MARGIN_CLASSES.search(block.attributes.get("class", "").lower())
        repeated = at < 2 and block.kind in ("paragraph", "heading") and block.plain_text() in tops
        if block.kind != "remark" and not margin and not repeated and not _PAGE_NUMBER.match(block.plain_text()):
            yield at


def _whole(one: Block, two: Block, page: int) -> Block | None:
    """Both as one block, if the second goes on with the first."""
    until = {**one.attributes, "until_page": str(page)}
    if any(child.box is not None for child in two.children):
        return None  # it lies on its own page
    if one.kind == two.kind == "paragraph" and not one.children:
        goes_on = two.text[:1].islower() or (_without_spaces(one.text[-1:]) and _without_spaces(two.text[:1]))
        if not goes_on or _ENDED.search(one.text):
            return None
        text = _sentence(Rich(one.text, one.marks), Rich(two.text, two.marks))
        return replace(one, text=text.text, marks=text.marks, children=two.children, attributes=until)
    if one.kind == two.kind == "table" and one.rows and two.rows and not two.children:
        if columns(one) != columns(two):
            return None
        head = [cell.text for cell in two.rows[0]]
        repeated = head == [cell.text for cell in one.rows[0]]
        if all(cell.header for cell in two.rows[0]) and not repeated:
            return None
        return replace(one, rows=one.rows + two.rows[repeated:], attributes=until)
    return None


def _sentence(one: Rich, two: Rich) -> Rich:
    """Both halves; a word that a hyphen divides is one word again, scripts without spaces get none."""
    if re.search(r"[^\W\d_]-\Z", one.text) and two.text[:1].islower():
        return joined([one.cut(0, len(one.text) - 1), two], "")
    return joined([one, two], "" if _without_spaces(one.text[-1:]) else " ")


def _without_spaces(letter: str) -> bool:
    return "\u2e80" <= letter <= "\u9fff" if letter else False
