"""A parsed document -> the files that people asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl.media.policy import MediaError
from qwenvl.tasks.documents import (
    Document,
    Page,
    crop_blocks,
    merge_pages,
    overlay,
    searchable_pdf,
    to_html,
    to_json,
    to_markdown,
    to_text,
)
from qwenvl.tasks.parsing.pages import Budget, PageFile, PageImage
from qwenvl.types import ImageSize
from qwenvl.whole_file import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = {"md": ".md", "json": ".json", "html": ".html", "text": ".txt", "pdf": ".pdf"}
FORMATS = tuple(ENDINGS)
FINE = Budget(min_pixels=1, max_pixels=2**24, dpi=200)  # for people, who look closer than a model
QUALITY = 60  # of the JPEG pictures in a PDF: 0.4 MB for a page of dense text


def write_files(
    document: Document,
    base: str | Path,
    *,
    formats: Collection[str] = ("md", "json"),
    file: PageFile | None = None,
    overlays: bool = False,
    crops: bool = False,
    merge: bool = False,
) -> list[Path]:
    """Write BASE.md, BASE.json, BASE.html, BASE.txt and BASE.pdf as `formats` say; which files there are now.

    The PDF is the page pictures with the text behind them, to be searched. overlays: BASE-overlay/page-0001.png, the
    blocks outlined and numbered. crops: BASE-crops/, tables, formulas and figures, to which Markdown and HTML then
    link. merge: paragraphs and tables that go on over the page are joined, on the page where they begin (merge_pages);
    not in the PDF, the overlays and the crops, which show what stands on each page. These three need the pictures:
    `file` is what the pages were read from; they are drawn again, finer, one by one. Raises ValueError for an unknown
    format, pictures that are asked for without a file, and a name at which `file` itself stands.
    """
    unknown = [name for name in formats if name not in ENDINGS]
    if unknown:
        raise ValueError(f"the format {unknown[0]!r} is not known: expected some of {', '.join(FORMATS)}")
    pictured = overlays or crops or "pdf" in formats
    if pictured and file is None:
        raise ValueError("a PDF, overlays and crops need the pages' pictures: give file=, as open_pages gives it")
    base = Path(base)
    base.parent.mkdir(parents=True, exist_ok=True)
    if file is not None:
        _spare(file, (base.parent / f"{base.name}{ENDINGS[name]}" for name in formats))
    folder = f"{base.name}-crops" if crops else None
    whole = merge_pages(document) if merge else document
    texts: dict[str, Callable[[], str]] = {
        "md": lambda: to_markdown(whole, crops=folder, page_breaks=len(whole.pages) > 1),
        "json": lambda: to_json(whole),
        "html": lambda: to_html(whole, crops=folder),
        "text": lambda: to_text(whole),
    }
    written: list[Path] = []
    for name, make in texts.items():
        if name in formats:
            path = base.parent / f"{base.name}{ENDINGS[name]}"
            write_whole(path, (make().rstrip("\n") + "\n").encode("utf-8", "replace"))
            written.append(path)
    if pictured:
        assert file is not None
        written += _pictures(document, base, file, "pdf" in formats, overlays, crops)
    return written


def _spare(file: PageFile, paths: Iterable[Path]) -> None:
    """ValueError when one of the paths is the document that was read, told by content: PDF files come out as PDF files,
    often beside where they came from."""
    for path in paths:
        if not path.is_file():
            continue
        with path.open("rb") as there:
            same = hashlib.file_digest(there, "sha256").hexdigest() == file.digest
        if same:
            raise ValueError(f"{path} is the document itself and would be written over: give another name or folder")


def _pictures(document: Document, base: Path, file: PageFile, pdf: bool, overlays: bool, crops: bool) -> list[Path]:
    """What is made of the pages' pictures, in one pass over them."""
    written: list[Path] = []

    def each() -> Iterator[tuple[Image, Page]]:
        for page in document.pages:
            try:
                drawn = file.page(page.number, FINE)
            except MediaError:
                continue  # such a page has an error that says so
            sized = page if page.size is not None else replace(page, size=_size(drawn), points=_points(drawn))
            if overlays:
                path = base.parent / f"{base.name}-overlay" / f"page-{page.number:04d}.png"
                path.parent.mkdir(exist_ok=True)
                overlay(drawn.image, sized).save(path)
                written.append(path)
            if crops:
                written.extend(crop_blocks(drawn.image, sized, base.parent / f"{base.name}-crops"))
            yield drawn.image, sized

    if not pdf:
        for _ in each():
            pass
        return written
    path = base.parent / f"{base.name}{ENDINGS['pdf']}"
    searchable_pdf(each(), path, title=Path(document.source.split("?")[0]).stem, quality=QUALITY)
    return [*written, path]


def _size(drawn: PageImage) -> ImageSize:
    return ImageSize(*drawn.image.size, *drawn.image.size)


def _points(drawn: PageImage) -> tuple[float, float] | None:
    return None if drawn.place is None else drawn.place.points
