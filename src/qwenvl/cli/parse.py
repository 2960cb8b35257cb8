"""`qwenvl parse FILE|FOLDER|PATTERN... --out DIR`: PDF files and pictures of pages -> Markdown, JSON, HTML, PDF."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenvl.cli.inputs import (
    DeviceOption,
    DtypeOption,
    JsonLinesOption,
    MaxPixelsOption,
    MemoryOption,
    MinPixelsOption,
    ModelOption,
    QuantizeOption,
    check_limits,
    check_load,
    check_memory,
    find_model,
    start_assistant,
)
from qwenvl.cli.sources import Record, each, expand, outputs, spare

if TYPE_CHECKING:
    from qwenvl.cli.model_files import ModelFiles
    from qwenvl.tasks import Assistant
    from qwenvl.tasks.answer import AnswerStream
    from qwenvl.tasks.documents import Document, Page
    from qwenvl.tasks.parsing import ParseSettings
    from qwenvl.types import SamplingParams


def parse(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="PDF files, pictures, folders, patterns or addresses; - reads their names from stdin.",
            show_default=False,
        ),
    ],
    model: ModelOption = "demo",
    out: Annotated[Path, typer.Option(help="Folder for what is written; made if it is not there.")] = Path(),
    formats: Annotated[str, typer.Option("--format", help="Some of md, json, html, pdf, text.")] = "md,json",
    pages: Annotated[str | None, typer.Option(help="Such as 1-3,7 or 5-; all when not given.")] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Pictures of the pages with their blocks drawn in.")
    ] = False,
    crops: Annotated[bool, typer.Option("--crops", help="Tables, formulas and figures as picture files.")] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Join paragraphs and tables that go on over the page.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Take pages that an earlier run has done.")] = True,
    password: Annotated[str | None, typer.Option(help="Of an encrypted PDF.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The question, in place of the documented 'QwenVL HTML '.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Stop a page after so many tokens.")] = None,
    retries: Annotated[int | None, typer.Option(help="How often to go on behind an answer's loop.")] = None,
    text_layer: Annotated[
        bool, typer.Option("--text-layer", help="Tell what share of the PDF's own words each page has.")
    ] = False,
    dpi: Annotated[float | None, typer.Option(help="Draw PDF pages so; 300 within the limits when not given.")] = None,
    together: Annotated[int, typer.Option(help="Pages that are answered at the same time.")] = 8,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
    memory: MemoryOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Read documents: writes NAME.md, NAME.json ... for each, and prints one line a document.

    Every page is kept in NAME-pages as soon as it is done; a run that was stopped goes on there. A page that cannot be
    read is told on stderr and the others go on (exit code 1 at the end).
    """
    from qwenvl.tasks.parsing import FORMATS
    from qwenvl.tasks.parsing.files import ENDINGS

    wanted = [name.strip() for name in formats.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown or not wanted:
        raise ValueError(f"--format {formats} is not known: expected some of {','.join(FORMATS)}")
    if together < 1:
        raise ValueError(f"--together {together} is not valid: expected at least 1")
    check_limits(min_pixels, max_pixels)
    check_load(dtype, device, quantize)
    check_memory(memory)
    given: dict[str, Any] = {
        "prompt": prompt, "max_new_tokens": max_new_tokens, "retries": retries, "dpi": dpi,
        "text_layer": text_layer or None, **_limits(min_pixels, max_pixels),
    }  # fmt: skip
    found = find_model(model)
    settings = _settings(given, found)
    files = expand(sources, ("pdf", "image"))
    _make_folder(out)
    bases = dict(zip(files, outputs(files, "", out), strict=True))
    spare(files, (base.with_name(base.name + ENDINGS[name]) for base in bases.values() for name in wanted))
    name = _identity(found, dtype, quantize)
    assistant = _Lazy(
        lambda: start_assistant(found, dtype, device, max_running=together, quantize=quantize, memory=memory)
    )

    def work(source: str) -> Record:
        from qwenvl.tasks.parsing import open_pages, write_files
        from qwenvl.tasks.parsing import parse as run

        started, base = time.perf_counter(), bases[source]
        with open_pages(source, password=password) as file:
            numbers = _chosen(pages, file.count)
            with _page_bar(file.name, len(numbers)) as tell:
                document = run(
                    assistant, file, pages=numbers, settings=settings, out=base.parent / f"{base.name}-pages",
                    model=name, resume=resume, together=together, on_page=tell,
                )  # fmt: skip
            written = write_files(document, base, formats=wanted, file=file, overlays=overlay, crops=crops, merge=merge)
        return _record(model, document, written, tell.resumed, time.perf_counter() - started, failures)

    failures: list[int] = []
    code = each(files, work, as_json, headings=False, progress=False)
    if code or failures:
        raise typer.Exit(1)


def _settings(given: dict[str, Any], found: ModelFiles) -> ParseSettings:
    """Of the options that were given; Qwen2-VL writes coordinates in thousandths."""
    from qwenvl.tasks.parsing import ParseSettings

    chosen = {name: value for name, value in given.items() if value is not None}
    thousandths = found.config.model_type == "qwen2_vl"
    return ParseSettings(frame="thousandths" if thousandths else "resized", **chosen)


def _limits(min_pixels: int | None, max_pixels: int | None) -> dict[str, int | None]:
    """Both limits where one is given: the other's default must not stand in its way."""
    from qwenvl.tasks.parsing import ParseSettings

    default = ParseSettings()
    if max_pixels is not None and min_pixels is None and max_pixels < default.min_pixels:
        min_pixels = max_pixels
    if min_pixels is not None and max_pixels is None and min_pixels > default.max_pixels:
        max_pixels = min_pixels
    return {"min_pixels": min_pixels, "max_pixels": max_pixels}


def _chosen(pages: str | None, count: int) -> list[int]:
    from qwenvl.tasks.parsing import chosen_pages

    return chosen_pages(pages, count)


def _make_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: expected a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: the folder cannot be made: {error.strerror}") from None


def _identity(found: ModelFiles, dtype: str, quantize: str | None) -> str:
    """What pages are known again by: the model's files, and how they are loaded."""
    names = sorted(name for name in found.files if name.endswith((".safetensors", ".gguf", ".json")))
    stamps = [(name, found.files[name], (found.folder / name).stat().st_mtime_ns) for name in names]
    known = json.dumps([stamps, dtype, quantize])
    return f"{found.folder.name}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"


class _Lazy:
    """An assistant that is loaded when it is first asked: not for wrong files, nor for pages that are all done."""

    def __init__(self, load: Callable[[], Assistant]) -> None:
        self._load = load
        self._loaded: Assistant | None = None

    def stream_reply(self, messages: list[dict[str, Any]], sampling: SamplingParams | None = None) -> AnswerStream:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded.stream_reply(messages, sampling)


class _Tell:
    """Counts pages as they are done, and says on stderr what is wrong with them."""

    def __init__(self, name: str, show: Callable[[], None], write: Callable[[str], None]) -> None:
        self._name, self._show, self._write = name, show, write
        self.resumed = 0

    def __call__(self, page: Page, resumed: bool) -> None:
        self.resumed += resumed
        if page.error:
            place = f"page {page.number} of {self._name}"
            self._write(f"qwenvl: {page.error if page.error.startswith(place) else f'{place}: {page.error}'}")
        self._show()


@contextmanager
def _page_bar(name: str, total: int) -> Iterator[_Tell]:
    """A bar with pages and the time left on stderr, on terminals only, gone when done."""

    def write(line: str) -> None:
        print(line, file=sys.stderr)

    if not sys.stderr.isatty() or total < 2:
        yield _Tell(name, lambda: None, write)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    sys.stderr.write("\r\x1b[K")  # the line of a run over several documents
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        line = bar.add_task(name[-40:].replace("[", "("), total=total)
        yield _Tell(
            name,
            lambda: bar.advance(line),
            lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
        )


def _record(
    model: str, document: Document, written: list[Path], resumed: int, seconds: float, failures: list[int]
) -> Record:
    """What is said of a document that is done. Its pages that failed are added to `failures`."""
    from qwenvl.tasks.parsing import has_failed

    failed = [page.number for page in document.pages if has_failed(page)]
    damaged = [page.number for page in document.pages if page.error and not has_failed(page)]
    failures += failed
    plain = [page.number for page in document.pages if page.answer and "<" not in page.answer]
    blocks = sum(len(page.blocks) for page in document.pages)
    notes = [f"{resumed} done before"] if resumed else []
    notes += [f"{len(failed)} failed"] if failed else []
    notes += [f"{len(damaged)} not whole"] if damaged else []
    notes += [f"{len(plain)} without layout: the model wrote plain text"] if plain else []
    count = len(document.pages)
    text = f"{document.source}: {count} page{'s' if count != 1 else ''}, {blocks} block{'s' if blocks != 1 else ''}"
    text += f" ({', '.join(notes)})" if notes else ""
    files = [path for path in written if path.suffix != ".png"]
    pictures = len(written) - len(files)
    text += " -> " + ", ".join(map(str, files))
    text += f" and {pictures} picture{'s' if pictures != 1 else ''}" if pictures else ""
    pages: list[dict[str, Any]] = [
        {"number": page.number, "blocks": len(page.blocks), "error": page.error or None,
         **{k: v for k, v in page.metadata.items() if k in ("finish_reason", "answer_tokens", "loops", "text_layer")}}
        for page in document.pages
    ]  # fmt: skip
    data = {"model": model, "pages": pages, "resumed": resumed, "failed": failed,
            "files": [str(path) for path in written], "seconds": round(seconds, 3)}  # fmt: skip
    return Record(data, text)
