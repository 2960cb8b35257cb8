"""A document's pages, answered together and one by one: `parse`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qwenvl.media.policy import DEFAULT_POLICY, MediaPolicy
from qwenvl.tasks.documents import Document, Page
from qwenvl.tasks.parsing.ahead import Ahead
from qwenvl.tasks.parsing.answering import Replies, answer_page, failed_page, has_failed
from qwenvl.tasks.parsing.pages import PageFile, PictureFile, chosen_pages, open_pages
from qwenvl.tasks.parsing.pdf import PdfFile, PdfLimits
from qwenvl.tasks.parsing.settings import ParseSettings
from qwenvl.tasks.parsing.store import PageStore

if TYPE_CHECKING:
    from qwenvl.tasks.parsing.pages import Source

TOGETHER = 8  # pages answered at the same time


def parse(
    assistant: Replies,
    source: Source | PageFile,
    *,
    pages: str | int | Iterable[int] | None = None,
    settings: ParseSettings | None = None,
    out: str | Path | None = None,
    model: str = "",
    resume: bool = True,
    together: int = TOGETHER,
    password: str | None = None,
    policy: MediaPolicy = DEFAULT_POLICY,
    limits: PdfLimits | None = None,
    on_page: Callable[[Page, bool], None] | None = None,
) -> Document:
    """A document as the model reads it: a PDF, a picture, or the pictures of a TIFF file, page by page.

    source: as `open_pages` takes it, or what it gives. pages: "1-3,7", numbers from 1, or one; None = all. `together`
    pages are answered at the same time, in turn, and pages are drawn a few ahead, so that memory does not grow with
    their number. out: a folder for the pages that are done (store.py); with `resume`, those that are there under the
    same content, model and settings are taken from it, and only the others are asked for. `model` names the model for
    that; it must be given then. on_page(page, taken from the folder) is called as each page is done, in any order.
    A page that cannot be had or answered has an `error` and no blocks, and the others go on; one that is not whole has
    both. Raises MediaError (a ValueError) for a source that cannot be opened, and ValueError for wrong arguments.
    """
    settings = settings or ParseSettings()
    if not hasattr(assistant, "stream_reply"):  # else it would be an error of every single page
        raise TypeError(f"a {type(assistant).__name__} cannot be asked: expected an Assistant, then the document")
    if together < 1:
        raise ValueError(f"together={together} is not valid: expected at least 1")
    if out is not None and not model:
        raise ValueError(
            "out= keeps pages for the next run, which must know what read them: give model=, a name for it"
        )
    with ExitStack() as stack:
        if isinstance(source, PdfFile | PictureFile):
            file: PageFile = source
        else:
            given = cast("Source", source)
            file = stack.enter_context(open_pages(given, password=password, policy=policy, limits=limits))
        numbers = chosen_pages(pages, file.count)
        most = (limits or PdfLimits()).max_pages
        if len(numbers) > most:
            raise ValueError(f"{file.name} has {len(numbers)} pages, the limit is {most}: choose some with pages=")
        about = {"source": file.digest, "model": model, "settings": settings.to_dict()}
        store = None if out is None else PageStore(Path(out), about)
        done: dict[int, Page] = {}
        for number in numbers if store is not None and resume else ():
            assert store is not None
            if (page := store.load(number)) is not None:
                done[number] = page
                if on_page is not None:
                    on_page(page, True)
        for page in _answered(assistant, file, [n for n in numbers if n not in done], settings, together):
            done[page.number] = page
            if store is not None:
                store.save(page, has_failed(page))
            if on_page is not None:
                on_page(page, False)
        return Document(file.name, tuple(done[number] for number in numbers), {**about, "pages": file.count})


def _answered(
    assistant: Replies, file: PageFile, numbers: Sequence[int], settings: ParseSettings, together: int
) -> Iterator[Page]:
    """The pages of these numbers as they are done."""
    jobs: dict[int, Generator[None, None, Page]] = {}
    try:
        with Ahead(lambda number: file.page(number, settings.budget), numbers) as ahead:
            while jobs or len(ahead):
                while len(ahead) and len(jobs) < together and (ahead.ready or not jobs):
                    number, drawn = ahead.take()
                    if isinstance(drawn, Exception):
                        yield failed_page(number, drawn)
                    else:
                        jobs[number] = answer_page(assistant, drawn, settings)
                for number in list(jobs):
                    if (page := _step(number, jobs[number])) is not None:
                        del jobs[number]
                        yield page
    finally:
        for job in jobs.values():
            job.close()


def _step(number: int, job: Generator[None, None, Page]) -> Page | None:
    """Go on with a page until there is a new piece of its text; the page when it is done."""
    try:
        next(job)
    except StopIteration as end:
        page: Any = end.value
        assert isinstance(page, Page)
        return page
    except Exception as error:  # of this page alone
        return failed_page(number, error)
    return None
