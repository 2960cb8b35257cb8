"""Parsing runs: pages are asked for together, kept as they are done, and taken up again after any end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pdf_files import PdfPage, pdf_bytes
from PIL import Image
from scripted_assistant import Asked, ScriptedAssistant, ScriptedStream, Written

from qwenvl.tasks.documents import Document, Page
from qwenvl.tasks.parsing import (
    PROMPT,
    SYSTEM,
    ParseSettings,
    PdfLimits,
    agreement,
    counting,
    has_failed,
    open_pages,
    parse,
    write_files,
)  # fmt: skip
from qwenvl.types import LoopRule

pytest.importorskip("pypdfium2")

SETTINGS = ParseSettings(min_pixels=10_000, max_pixels=40_000)
HERE = PdfLimits(isolate=False)
HTML = '```html\n<html><body><h1 data-bbox="28 28 84 56">{}</h1><p data-bbox="28 70 112 98">text</p></body></html>\n```'


def pages_pdf(folder: Path, count: int, blank: int | None = None) -> Path:
    """Pages that differ in their text; page `blank` has none."""
    path = folder / "report.pdf"
    pages = [PdfPage(words=[] if i == blank else [(40, 300, f"number {i}")]) for i in range(1, count + 1)]
    path.write_bytes(pdf_bytes(pages))
    return path


def titles() -> Callable[[Asked], str]:
    """Answers "title 1", "title 2", ... in the order in which they are asked for."""
    asked = iter(range(1, 10_000))
    return lambda _: HTML.format(f"title {next(asked)}")


def texts(document: Document) -> list[str]:
    return [page.blocks[0].text if page.blocks else page.error for page in document.pages]


def test_pages_become_blocks_in_the_pixels_and_points_of_the_page(tmp_path: Path) -> None:
    assistant = ScriptedAssistant(titles())
    document = parse(assistant, pages_pdf(tmp_path, 3), settings=SETTINGS, limits=HERE)
    assert texts(document) == ["title 1", "title 2", "title 3"]
    page = document.pages[1]
    assert (page.number, page.points, page.error) == (2, (300, 400), "")
    assert page.size is not None
    width, height = page.size.width, page.size.height
    assert (page.size.resized_width, page.size.resized_height) == (168, 224)
    assert page.blocks[0].box == pytest.approx((width / 6, height / 8, width / 2, height / 4))
    assert page.metadata["pdf"] == {"box": [0, 0, 300, 400], "rotation": 0}
    assert (document.source, document.metadata["pages"]) == (str(tmp_path / "report.pdf"), 3)


def test_pages_are_asked_for_as_the_model_was_taught(tmp_path: Path) -> None:
    assistant = ScriptedAssistant(["plain"])
    parse(assistant, pages_pdf(tmp_path, 1), limits=HERE)
    (asked,) = assistant.asked
    assert asked.question == PROMPT == "QwenVL HTML "
    assert asked.messages[0] == {"role": "system", "content": SYSTEM}
    item = next(part for part in asked.messages[1]["content"] if part["type"] == "image")
    assert (item["min_pixels"], item["max_pixels"]) == (512 * 784, 2048 * 784)
    assert (asked.sampling.temperature, asked.sampling.stop_loops) == (0, LoopRule())


def test_an_answer_that_is_no_html_is_paragraphs(tmp_path: Path) -> None:
    document = parse(ScriptedAssistant(["There are two circles."]), pages_pdf(tmp_path, 1), limits=HERE)
    assert document.text() == "There are two circles."


def test_pages_are_chosen(tmp_path: Path) -> None:
    path, assistant = pages_pdf(tmp_path, 9), ScriptedAssistant(titles())
    document = parse(assistant, path, pages="2-3,7", settings=SETTINGS, limits=HERE)
    assert [page.number for page in document.pages] == [2, 3, 7]
    with pytest.raises(ValueError, match=r"report.pdf has 9 pages, the limit is 2: choose some with pages="):
        parse(assistant, path, limits=replace(HERE, max_pages=2))


def test_pictures_and_tiff_files_are_documents_too(tmp_path: Path) -> None:
    images = [Image.effect_noise((120, 80), 60) for _ in range(3)]
    images[0].save(tmp_path / "fax.tif", save_all=True, append_images=images[1:])
    assert texts(parse(ScriptedAssistant(titles()), tmp_path / "fax.tif")) == ["title 1", "title 2", "title 3"]
    assert texts(parse(ScriptedAssistant(titles()), images[0])) == ["title 1"]


def test_blank_pages_are_not_asked_about(tmp_path: Path) -> None:
    path, assistant = pages_pdf(tmp_path, 3, blank=2), ScriptedAssistant(titles())
    document = parse(assistant, path, settings=SETTINGS, limits=HERE)
    assert len(assistant.asked) == 2
    assert document.pages[1].metadata["finish_reason"] == "blank"
    assert (document.pages[1].blocks, document.pages[1].error) == ((), "")
    parse(assistant, path, settings=replace(SETTINGS, skip_blank=False), limits=HERE)
    assert len(assistant.asked) == 5


def test_a_page_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    def answer(asked: Asked) -> str:
        if len(assistant.asked) == 2:
            raise FloatingPointError("the model's logits are not finite")
        return HTML.format("fine")

    assistant = ScriptedAssistant(answer)
    pages = [PdfPage(words=[(40, 300, "text")]) for _ in range(4)]
    pages[2].picture = (100_000, 100_000)
    (tmp_path / "bad.pdf").write_bytes(pdf_bytes(pages))
    document = parse(assistant, tmp_path / "bad.pdf", settings=SETTINGS, together=1, limits=HERE)
    assert [has_failed(page) for page in document.pages] == [False, True, True, False]
    assert document.pages[1].error == "FloatingPointError: the model's logits are not finite"
    assert "bad.pdf holds a picture of 100000 x 100000" in document.pages[2].error


# Together


class Turns:
    """Answers whose pieces are counted: how many are under way at the same time, and when each begins."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self.active, self.most, self.steps = lengths, 0, 0, 0
        self.begun: list[int] = []
        self._script = ScriptedAssistant(titles())

    def stream_reply(self, messages: list[dict[str, Any]], sampling: Any = None) -> Any:
        stream = self._script.stream_reply(messages, sampling)
        length = self.lengths[len(self.begun)]
        self.begun.append(self.steps)
        turns = self

        class Counted(ScriptedStream):
            def __iter__(self) -> Iterator[str]:
                turns.active += 1
                turns.most = max(turns.most, turns.active)
                try:
                    for _ in range(length):
                        turns.steps += 1
                        time.sleep(0.001)
                        yield "piece"
                finally:
                    turns.active -= 1

        return Counted(stream.answer)


def test_pages_are_answered_in_turn_and_the_next_begins_when_one_ends(tmp_path: Path) -> None:
    turns = Turns([300, 5, 5, 5, 5, 5])
    told: list[int] = []
    document = parse(
        turns, pages_pdf(tmp_path, 6), settings=SETTINGS, together=2, limits=HERE,
        on_page=lambda page, resumed: told.append(page.number),
    )  # fmt: skip
    assert turns.most == 2
    assert told == [2, 3, 4, 5, 6, 1]  # the long one is the last, and nobody waits for it
    assert texts(document) == [f"title {i}" for i in range(1, 7)]


def test_a_run_that_is_interrupted_ends_its_streams(tmp_path: Path) -> None:
    turns = Turns([100, 5, 5])

    def stop(page: Page, resumed: bool) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parse(turns, pages_pdf(tmp_path, 3), settings=SETTINGS, together=2, limits=HERE, on_page=stop)
    assert turns.active == 0


# Kept and taken up again


def test_a_second_run_asks_for_nothing(tmp_path: Path) -> None:
    path, assistant = pages_pdf(tmp_path, 4), ScriptedAssistant(titles())
    told: list[tuple[int, bool]] = []
    run: dict[str, Any] = {"settings": SETTINGS, "limits": HERE, "out": tmp_path / "kept", "model": "m"}
    first = parse(assistant, path, **run)
    again = parse(assistant, path, **run, on_page=lambda page, resumed: told.append((page.number, resumed)))
    assert again == first
    assert told == [(1, True), (2, True), (3, True), (4, True)]
    assert len(assistant.asked) == 4


@pytest.mark.parametrize("change", ["prompt", "max_new_tokens", "model", "source", "resume", "damaged"])
def test_what_was_made_otherwise_is_not_taken(tmp_path: Path, change: str) -> None:
    path, assistant = pages_pdf(tmp_path, 2), ScriptedAssistant(titles())
    run: dict[str, Any] = {"settings": SETTINGS, "limits": HERE, "out": tmp_path / "kept", "model": "m"}
    parse(assistant, path, **run)
    if change == "prompt":
        run["settings"] = replace(SETTINGS, prompt="Read all the text in the image.")
    elif change == "max_new_tokens":
        run["settings"] = replace(SETTINGS, max_new_tokens=100)
    elif change == "source":
        path.write_bytes(path.read_bytes().replace(b"number 1", b"number 7"))
    elif change == "damaged":
        for file in (tmp_path / "kept").iterdir():
            file.write_text(file.read_text()[:-20])
    else:
        run[change] = {"model": "other", "resume": False}[change]
    document = parse(assistant, path, **run)
    assert texts(document) == ["title 3", "title 4"]


def test_pages_that_failed_are_tried_again(tmp_path: Path) -> None:
    path = pages_pdf(tmp_path, 2)
    run: dict[str, Any] = {"settings": SETTINGS, "limits": HERE, "out": tmp_path / "kept", "model": "m"}
    broken = ScriptedAssistant([HTML.format("one"), MemoryError("no room")])
    assert texts(parse(broken, path, together=1, **run)) == ["one", "MemoryError: no room"]
    assert texts(parse(ScriptedAssistant([HTML.format("two")]), path, **run)) == ["one", "two"]


def test_keeping_pages_needs_the_models_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give model=, a name for it"):
        parse(ScriptedAssistant(["a"]), pages_pdf(tmp_path, 1), out=tmp_path)


RUN = """
import os, sys, time
sys.path[:0] = [{tests!r}]
from scripted_assistant import ScriptedAssistant
from qwenvl.tasks.parsing import ParseSettings, PdfLimits, parse

def answer(asked):
    picture = asked.media[0]
    number = round(picture.width / 2) - 60  # pages differ in their width
    with open({log!r}, "a") as log:
        log.write(f"{{number}}\\n")
    time.sleep(0.01)
    return f"<p>page {{number}} " + "word " * 20 + "</p>"

parse(
    ScriptedAssistant(answer), {path!r}, out={out!r}, model="m", together=3, limits=PdfLimits(isolate=False),
    settings=ParseSettings(min_pixels=100, max_pixels=10**6, dpi=144, skip_blank=False),
    on_page=lambda page, resumed: os.write(1, f"{{page.number}} {{resumed:d}}\\n".encode()),
)
os.write(1, b"end\\n")
"""


@pytest.mark.feature(85)
def test_no_page_is_lost_or_doubled_by_kill_9(tmp_path: Path) -> None:
    count, random = 24, Random(5)
    path, log, out = tmp_path / "long.pdf", tmp_path / "asked", tmp_path / "kept"
    pages = [PdfPage(box=(0, 0, 60 + i, 60)) for i in range(1, count + 1)]
    path.write_bytes(pdf_bytes(pages))
    code = RUN.format(tests=str(Path(__file__).parent), log=str(log), path=str(path), out=str(out))
    told: set[int] = set()
    kills = 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        fresh, enough = 0, random.randint(3, 8)
        ended = False
        for line in process.stdout:
            if line == b"end\n":
                ended = True
                break
            number, resumed = map(int, line.split())
            assert (number in told) == bool(resumed)  # what was told is there, and nothing else
            told.add(number)
            fresh += not resumed
            if fresh == enough:
                time.sleep(random.random() * 0.02)  # also in the middle of a file
                os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if ended:
            break
        kills += 1
        # What was written between the last line and the end counts as told: it is there.
        told |= {json.loads(file.read_text())["page"]["number"] for file in out.glob("page-*.json")}
    assert kills >= 2
    assert told == set(range(1, count + 1))
    asked = [int(line) for line in log.read_text().split()]
    assert set(asked) == told
    assert len(asked) - count <= 3 * kills  # those that were under way when it ended
    assert sorted(file.name for file in out.glob("page-*.json")) == [f"page-{i:04d}.json" for i in range(1, count + 1)]


# Answers that do not end


def test_a_loop_is_gone_on_with_from_behind_its_first_copy(tmp_path: Path) -> None:
    script = [
        Written("<p>one</p><p>again</p>", "loop"),
        Written("<p>two</p>", "length"),
        Written("<p>three</p>", "stop"),
    ]
    assistant = ScriptedAssistant(script)
    document = parse(assistant, pages_pdf(tmp_path, 1), limits=HERE, settings=replace(SETTINGS, max_new_tokens=1000))
    assert [block.text for block in document.pages[0].blocks] == ["one", "again", "two", "three"]
    assert (document.pages[0].error, document.pages[0].metadata["loops"]) == ("", 1)
    first, nudge, rest = assistant.asked
    assert nudge.messages[-1] == {"role": "assistant", "content": "<p>one</p><p>again</p>"}
    assert (nudge.sampling.temperature, nudge.sampling.max_new_tokens) == (0.7, 64)
    assert rest.messages[-1] == {"role": "assistant", "content": "<p>one</p><p>again</p><p>two</p>"}
    assert (first.sampling.temperature, rest.sampling.temperature) == (0, 0)
    assert rest.sampling.max_new_tokens == 1000 - len("<p>one</p><p>again</p><p>two</p>")


def test_a_nudge_may_end_the_answer(tmp_path: Path) -> None:
    assistant = ScriptedAssistant([Written("<p>one</p>", "loop"), Written("</body>", "stop")])
    document = parse(assistant, pages_pdf(tmp_path, 1), limits=HERE, settings=SETTINGS)
    assert (len(assistant.asked), document.pages[0].error) == (2, "")


@pytest.mark.parametrize(("retries", "asked"), [(0, 1), (1, 2), (3, 4)])
def test_a_loop_that_stays_is_cut_and_told(tmp_path: Path, retries: int, asked: int) -> None:
    assistant = ScriptedAssistant([Written("<p>one</p>", "loop")])
    document = parse(assistant, pages_pdf(tmp_path, 1), limits=HERE, settings=replace(SETTINGS, retries=retries))
    assert len(assistant.asked) == asked
    assert len(document.pages[0].blocks) == asked
    assert "repeated itself without end" in document.pages[0].error
    assert not has_failed(document.pages[0])


def test_an_answer_that_is_cut_off_is_told(tmp_path: Path) -> None:
    path = pages_pdf(tmp_path, 1)
    long = "<ul>" + "".join(f"<li>{word}</li>" for word in ("the", "board", "thanks", "all", "who", "worked"))
    document = parse(ScriptedAssistant([Written(long, "length")]), path, limits=HERE)
    assert document.pages[0].error == f"the answer was cut off after {len(long)} tokens: raise max_new_tokens"
    counted = "<ol>" + "".join(f"<li>Item {i}</li>" for i in range(1, 200))
    document = parse(ScriptedAssistant([Written(counted, "length")]), path, limits=HERE)
    assert "went on counting" in document.pages[0].error
    assert "Item #" in document.pages[0].error
    assert "199" in document.text()  # nothing of it is taken away


def test_counting_is_told_from_tables() -> None:
    rows = "".join(f"<tr><td>{i}</td><td>{name}</td></tr>" for i, name in enumerate(("Ann", "Ben", "Cy") * 60))
    assert counting(rows) != ""
    honest = "".join(f"<tr><td>{i}</td><td>{chr(97 + i % 26)}{chr(97 + i // 26)}</td></tr>" for i in range(300))
    assert counting(honest) == ""
    assert counting("<p>words</p>" * 100) == ""  # nothing counts here: the guard's part
    start = time.perf_counter()
    counting("<li>1</li>" * 100_000)
    assert time.perf_counter() - start < 1


def test_agreement_with_the_pages_own_text(tmp_path: Path) -> None:
    assert agreement("The Water-\nworks deliver 4 800 m³.", "the waterworks deliver 4 800 m3") == {
        "words": 6, "found": 1.0, "true": 1.0,
    }  # fmt: skip
    assert agreement("one two two", "two two two three") == {"words": 4, "found": 0.5, "true": 0.6667}
    assert agreement("東京タワー", "東京") == {"words": 2, "found": 1.0, "true": 0.4}
    assert agreement("anything", " \n ") is None
    assert agreement("", "words") == {"words": 1, "found": 0.0, "true": 0.0}
    assistant = ScriptedAssistant(["number one"])
    settings = replace(SETTINGS, text_layer=True)
    document = parse(assistant, pages_pdf(tmp_path, 1), limits=HERE, settings=settings)
    assert document.pages[0].metadata["text_layer"] == {"words": 2, "found": 0.5, "true": 0.5}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": " "}, "prompt=' ' is not valid"),
        ({"min_pixels": 50_000}, "min_pixels=50000 is not valid: expected 1 to max_pixels"),
        ({"dpi": 0}, "dpi=0 is not valid"),
        ({"retries": -1}, "retries=-1 is not valid"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 is not valid"),
        ({"frame": "pixels"}, "frame='pixels' is not valid: expected resized or thousandths"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(SETTINGS, **change)


# Files


def test_the_files_of_a_document(tmp_path: Path) -> None:
    answer = '<h1 data-bbox="28 28 84 56">Title</h1><table data-bbox="28 70 112 98"><tr><td>1</td></tr></table>'
    path = pages_pdf(tmp_path, 2)
    with open_pages(path, limits=HERE) as file:
        document = parse(ScriptedAssistant([answer]), file, settings=SETTINGS)
        written = write_files(
            document, tmp_path / "out" / "report", formats=("md", "json", "html", "text"), file=file, overlays=True,
            crops=True,
        )  # fmt: skip
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in written)
    assert names == [
        "report-crops/page-0001-table-01.png", "report-crops/page-0002-table-01.png",
        "report-overlay/page-0001.png", "report-overlay/page-0002.png",
        "report.html", "report.json", "report.md", "report.txt",
    ]  # fmt: skip
    assert all(path.stat().st_size for path in written)
    assert "# Title" in (tmp_path / "out/report.md").read_text()
    with Image.open(tmp_path / "out/report-crops/page-0001-table-01.png") as crop:
        assert crop.width > 84  # finer than what the model saw
    with pytest.raises(ValueError, match="the format 'docx' is not known: expected some of md, json"):
        write_files(document, tmp_path / "x", formats=("docx",))
    with pytest.raises(ValueError, match="need the pages' pictures: give file="):
        write_files(document, tmp_path / "x", crops=True)
