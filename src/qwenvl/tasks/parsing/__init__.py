"""Parsing runs: PDF files and pictures -> documents, page by page, resumable.

In: a path, an address, bytes or a picture, and something that answers (Assistant). Out: a Document of tasks/documents,
its pages kept in files while they come, and the files that people asked for (Markdown, JSON, HTML, text, a searchable
PDF, crops, overlays).
Does not know how an answer is read or written down (tasks/documents), nor how it is computed.

    assistant = Assistant("Qwen/Qwen2.5-VL-7B-Instruct")
    document = parse(assistant, "report.pdf", pages="1-10", out="report-pages", model="Qwen2.5-VL-7B")
    write_files(document, "report", formats=("md", "json"))
"""

from __future__ import annotations

from qwenvl.tasks.parsing.agreement import agreement, counting
from qwenvl.tasks.parsing.answering import has_failed
from qwenvl.tasks.parsing.files import FORMATS, write_files
from qwenvl.tasks.parsing.pages import Budget, PageFile, PageImage, PdfPlace, chosen_pages, open_pages
from qwenvl.tasks.parsing.pdf import PdfLimits
from qwenvl.tasks.parsing.run import parse
from qwenvl.tasks.parsing.settings import PROMPT, SYSTEM, ParseSettings

__all__ = [
    "FORMATS",
    "PROMPT",
    "SYSTEM",
    "Budget",
    "PageFile",
    "PageImage",
    "ParseSettings",
    "PdfLimits",
    "PdfPlace",
    "agreement",
    "chosen_pages",
    "counting",
    "has_failed",
    "open_pages",
    "parse",
    "write_files",
]
