"""Documents: what a model wrote about a page -> typed blocks -> Markdown, JSON, HTML, text, a searchable PDF, crops.

In: the text of an answer (QwenVL HTML, Markdown, or plain text) with the ImageSize of its page; for crops and PDF, the
page as a PIL picture too. Out: Block, Page, Document with boxes in ORIGINAL pixels, and files written from them.
Does not know models, engines or where pages come from (`tasks/parsing/` does).

    blocks = read_answer(answer.text, answer.sizes[0])              # never raises, loses no text
    page = Page(1, answer.sizes[0], tuple(blocks), answer=answer.text)
    print(to_markdown(Document("scan.png", (page,))))
"""

from __future__ import annotations

from qwenvl.tasks.documents.blocks import KINDS, Bbox, Block, Cell, Document, Mark, Page
from qwenvl.tasks.documents.merge import merge_pages
from qwenvl.tasks.documents.pdf import searchable_pdf
from qwenvl.tasks.documents.pictures import crop_blocks, crop_names, overlay
from qwenvl.tasks.documents.read import read_answer
from qwenvl.tasks.documents.write_html import to_html
from qwenvl.tasks.documents.write_json import from_json, page_from_dict, page_to_dict, to_json
from qwenvl.tasks.documents.write_markdown import to_markdown, to_text

__all__ = [
    "KINDS",
    "Bbox",
    "Block",
    "Cell",
    "Document",
    "Mark",
    "Page",
    "crop_blocks",
    "crop_names",
    "from_json",
    "merge_pages",
    "overlay",
    "page_from_dict",
    "page_to_dict",
    "read_answer",
    "searchable_pdf",
    "to_html",
    "to_json",
    "to_markdown",
    "to_text",
]
