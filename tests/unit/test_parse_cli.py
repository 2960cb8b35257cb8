"""`qwenvl parse`: files, formats, one line or one JSON object a document, and what goes wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pdf_files import PdfPage, pdf_bytes
from PIL import Image
from scripted_assistant import Asked, ScriptedAssistant, Written
from typer.testing import CliRunner

from qwenvl.cli import parse as verb
from qwenvl.cli.app import app

pytest.importorskip("pypdfium2")

Run = Callable[..., tuple[int, str, str]]
ANSWER = '<h1 data-bbox="28 28 84 56">Title</h1><table data-bbox="28 70 112 98"><tr><td>1</td></tr></table>'


@pytest.fixture
def assistant(monkeypatch: pytest.MonkeyPatch) -> ScriptedAssistant:
    """What the verb asks in place of a model; `loads` counts how often it was loaded."""
    stand_in = ScriptedAssistant([ANSWER])
    stand_in.loads = []  # type: ignore[attr-defined]

    def start(*arguments: Any, **options: Any) -> ScriptedAssistant:
        stand_in.loads.append(options)  # type: ignore[attr-defined]
        return stand_in

    monkeypatch.setattr(verb, "start_assistant", start)
    return stand_in


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the verb in a folder with two.pdf, a.png and sub/b.pdf."""
    (tmp_path / "two.pdf").write_bytes(pdf_bytes([PdfPage(words=[(40, 300, f"number {i}")]) for i in (1, 2)]))
    Image.effect_noise((80, 60), 60).save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.pdf").write_bytes(pdf_bytes([PdfPage(words=[(40, 300, "text")])]))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        limits = ["--min-pixels", "10000", "--max-pixels", "40000"]
        result = CliRunner().invoke(app, ["parse", *arguments, *limits], catch_exceptions=False)
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.mark.feature(88)
def test_what_goes_on_over_the_page_is_joined(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --merge; the pages that are kept are as they were read, so that the next run may do without it."""
    table = '<table data-bbox="28 56 112 84"><tr><td>{}</td><td>{}</td></tr></table>'
    box = 'data-bbox="28 28 112 50"'
    answers = [f'<p {box}>It goes on</p>{table.format("a", 1)}',
               f'{table.format("b", 2)}<div class="image" {box}><img {box} /></div><p>and on to the</p>',
               '<p>end.</p>']  # fmt: skip
    monkeypatch.setattr(verb, "start_assistant", lambda *_, **__: ScriptedAssistant(answers))
    (tmp_path / "three.pdf").write_bytes(pdf_bytes([PdfPage(words=[(40, 300, f"{i}")]) for i in (1, 2, 3)]))
    common = ("three.pdf", "--together", "1", "--crops", "--format", "md,json,pdf,text", "--overlay", "--out", "out")
    assert run(*common)[0] == 0
    apart = (tmp_path / "out" / "three.md").read_text()
    assert "and on to the\n\n<!-- page 3 -->\n\nend." in apart
    shutil.rmtree(tmp_path / "out" / "three-crops")
    assert run(*common, "--merge")[0] == 0
    whole = (tmp_path / "out" / "three.md").read_text()
    assert "and on to the end." in whole
    rows = [line for line in whole.splitlines() if line.startswith("|")]
    assert [row for row in rows if "a" in row or "b" in row] == ["| a | 1 |", "| b | 2 |"]
    for text in (apart, whole):
        for name in re.findall(r"\((three-crops/[^)]+)\)", text):
            assert (tmp_path / "out" / name).is_file(), name
    assert len(re.findall("three-crops/", whole)) >= 1
    pages = json.loads((tmp_path / "out" / "three.json").read_text())["pages"]
    assert [len(page["blocks"]) for page in pages] == [2, 2, 0]
    assert run(*common)[0] == 0
    assert (tmp_path / "out" / "three.md").read_text() == apart, "the pages are found, and as they were"


def test_a_document_becomes_markdown_and_json(run: Run, assistant: ScriptedAssistant, tmp_path: Path) -> None:
    assert run("two.pdf") == (0, "two.pdf: 2 pages, 4 blocks -> two.md, two.json\n", "")
    assert (tmp_path / "two.md").read_text().startswith("# Title\n")
    assert json.loads((tmp_path / "two.json").read_text())["source"] == "two.pdf"
    assert sorted(path.name for path in (tmp_path / "two-pages").iterdir()) == ["page-0001.json", "page-0002.json"]


def test_a_second_run_loads_no_model(run: Run, assistant: ScriptedAssistant, tmp_path: Path) -> None:
    run("two.pdf", "--out", "o")
    code, said, _ = run("two.pdf", "--out", "o", "--format", "text,html")
    assert (code, said) == (0, "two.pdf: 2 pages, 4 blocks (2 done before) -> o/two.html, o/two.txt\n")
    assert len(assistant.loads) == 1  # type: ignore[attr-defined]
    run("two.pdf", "--out", "o", "--no-resume")
    assert len(assistant.asked) == 4


def test_folders_and_formats(run: Run, assistant: ScriptedAssistant, tmp_path: Path) -> None:
    code, said, _ = run(".", "--out", "o", "--format", "md,text", "--overlay", "--crops")
    assert code == 0
    assert [line.split(":")[0] for line in said.splitlines()] == ["./a.png", "./sub/b.pdf", "./two.pdf"]
    assert "1 page, 2 blocks -> o/a.md, o/a.txt and 2 pictures" in said
    names = sorted(path.relative_to(tmp_path / "o").as_posix() for path in (tmp_path / "o").rglob("*.*"))
    assert [name for name in names if name.startswith("b")] == [
        "b-crops/page-0001-table-01.png", "b-overlay/page-0001.png", "b-pages/page-0001.json", "b.md", "b.txt",
    ]  # fmt: skip
    assert len(assistant.loads) == 1  # type: ignore[attr-defined]


def test_a_searchable_pdf(run: Run, assistant: ScriptedAssistant, tmp_path: Path) -> None:
    import pypdfium2

    assert run("two.pdf", "--format", "pdf", "--out", "o")[0] == 0
    with pypdfium2.PdfDocument(tmp_path / "o" / "two.pdf") as pdf:
        assert len(pdf) == 2
        assert pdf[1].get_size() == pytest.approx((300, 400), abs=1)
        assert "Title" in pdf[1].get_textpage().get_text_bounded()


def test_one_json_object_a_document(run: Run, assistant: ScriptedAssistant) -> None:
    code, said, _ = run("two.pdf", "a.png", "--json", "--pages", "1", "--text-layer")
    first, second = map(json.loads, said.splitlines())
    assert code == 0
    assert (first["source"], first["files"], first["resumed"], first["failed"]) == (
        "two.pdf", ["two.md", "two.json"], 0, [],
    )  # fmt: skip
    (page,) = first["pages"]
    assert (page["number"], page["blocks"], page["error"], page["finish_reason"]) == (1, 2, None, "stop")
    assert page["text_layer"] == {"words": 2, "found": 0.5, "true": 0.5}
    assert second["pages"][0]["text_layer"] is None


def test_pages_that_fail_are_told_and_the_code_is_1(run: Run, assistant: ScriptedAssistant) -> None:
    def answer(asked: Asked) -> Written:
        if len(assistant.asked) == 1:
            raise MemoryError("no room")
        return Written(ANSWER, "loop")

    assistant.answers = answer
    code, said, told = run("two.pdf", "--together", "1", "--retries", "0")
    assert code == 1
    assert "(1 failed, 1 not whole)" in said
    assert told.splitlines() == [
        "qwenvl: page 1 of two.pdf: MemoryError: no room",
        "qwenvl: page 2 of two.pdf: the answer repeated itself without end: it was cut behind the first copy, and what "
        "follows is missing",
    ]


def test_a_document_that_fails_lets_the_others_go_on(run: Run, assistant: ScriptedAssistant, tmp_path: Path) -> None:
    (tmp_path / "sub" / "bad.pdf").write_bytes(b"%PDF-1.4\nnothing")
    code, said, told = run("sub")
    assert code == 1
    assert said.startswith("sub/b.pdf: 1 page")
    assert "qwenvl: sub/bad.pdf is damaged, cut off or no PDF at all" in told


def test_plain_text_is_said_to_be_plain(run: Run, assistant: ScriptedAssistant) -> None:
    assistant.answers = ["There is a table."]
    assert "1 page, 1 block (1 without layout: the model wrote plain text)" in run("a.png")[1]


def test_options_reach_the_questions(run: Run, assistant: ScriptedAssistant) -> None:
    run("a.png", "--prompt", "Read it.", "--max-new-tokens", "77", "--together", "3")
    (asked,) = assistant.asked
    assert (asked.question, asked.sampling.max_new_tokens) == ("Read it.", 77)
    item = next(part for part in asked.messages[1]["content"] if part["type"] == "image")
    assert (item["min_pixels"], item["max_pixels"]) == (10_000, 40_000)
    assert assistant.loads[0]["max_running"] == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.pdf"], "nothing.pdf does not exist: expected a PDF or picture"),
        (["two.pdf", "--format", "docx"], "--format docx is not known: expected some of md,json"),
        (["two.pdf", "--pages", "5"], "page 5 is not there: the document has 2 pages"),
        (["two.pdf", "--together", "0"], "--together 0 is not valid"),
        (["two.pdf", "--retries", "-1"], "retries=-1 is not valid"),
        (["two.pdf", "--max-new-tokens", "0"], "max_new_tokens=0 is not valid"),
        (["two.pdf", "--out", "a.png"], "--out a.png is a file: expected a folder"),
    ],
)
def test_mistakes(run: Run, assistant: ScriptedAssistant, arguments: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run(*arguments)
    assert not assistant.asked


def test_mistakes_are_found_without_torch(run: Run, tmp_path: Path) -> None:
    program = str(Path(sysconfig.get_path("scripts")) / "qwenvl")
    code = (
        "import sys; sys.argv = ['qwenvl', 'parse', 'two.pdf', '--pages', '9']\nfrom qwenvl.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    python = str(Path(program).parent / "python")
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "2 False\n"
    assert done.stderr == "qwenvl: page 9 is not there: the document has 2 pages\n"
