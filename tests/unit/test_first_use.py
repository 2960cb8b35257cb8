"""What a first user trips over: inputs written over, full and locked folders, videos where pictures are meant."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pdf_files import PdfPage, pdf_bytes
from PIL import Image
from scripted_assistant import ScriptedAssistant
from test_cli import run
from typer.testing import CliRunner

from qwenvl.cli import locate, read
from qwenvl.cli.app import app
from qwenvl.cli.chat import Opener
from qwenvl.cli.chat_session import Session
from qwenvl.cli.sources import Record, each, expand, outputs, spare
from qwenvl.media import VideoOptions
from qwenvl.tasks import extract, read_text, spot_text
from qwenvl.tasks import locate as find
from qwenvl.tasks.chat import Chat
from qwenvl.tasks.parsing import chosen_pages, open_pages, parse, write_files

PLACES = '[{"bbox_2d": [28, 28, 56, 56], "label": "cup"}]'


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (112, 112), "white").save("a.png")
    return Path("a.png")


@pytest.mark.feature(85)
def test_parse_does_not_write_over_the_pdf_that_it_reads(picture: Path) -> None:
    pytest.importorskip("pypdfium2")
    Path("a.pdf").write_bytes(content := pdf_bytes([PdfPage(words=[(40, 300, "text")])]))
    done = run("parse", "a.pdf", "--format", "pdf")
    assert (done.code, done.err) == (
        2, "qwenvl: a.pdf is one of the inputs and would be written over: give --out another folder or name\n"
    )  # fmt: skip
    with open_pages("a.pdf") as file:
        document = parse(ScriptedAssistant(["<p>text</p>"]), file)
        with pytest.raises(ValueError, match=r"a\.pdf is the document itself and would be written over"):
            write_files(document, "a", formats=("md", "pdf"), file=file)
    assert Path("a.pdf").read_bytes() == content


@pytest.mark.parametrize("source", ["a.png", "./a.png", "file://{}/a.png", "link.png"])
def test_no_input_is_written_over(picture: Path, source: str) -> None:
    Path("link.png").symlink_to("a.png")
    with pytest.raises(ValueError, match=r"a\.png is one of the inputs"):
        outputs([source.format(Path.cwd())], "-boxes.png", Path("a.png"))
    spare(["https://example.com/a.png"], [Path("a.png")])


def test_a_name_without_an_ending_is_a_folder(picture: Path) -> None:
    assert outputs(["a.png"], ".txt", Path("labels")) == [Path("labels/a.txt")]
    assert Path("labels").is_dir()
    with pytest.raises(ValueError, match=r"--srt a\.png/x: the folder cannot be made"):
        outputs(["b.png"], ".srt", Path("a.png/x"), "--srt")


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"the current folder, .* cannot be written to: give --out another folder"):
        outputs(["a.png"], "-boxes.png")
    with pytest.raises(ValueError, match=r"--sheet x\.png cannot be written to"):
        outputs(["a.png"], "-events.png", Path("x.png"), "--sheet")


def test_a_full_disk_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    tried: list[str] = []

    def work(source: str) -> Record:
        tried.append(source)
        if source == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        return Record({})

    with pytest.raises(OSError, match="No space"):
        each(["a", "b", "c"], work, as_json=False)
    assert tried == ["a", "b"]
    assert "stopped at input 2 of 3, b" in capsys.readouterr().err


def test_what_an_earlier_run_wrote_is_no_input_of_a_folder(picture: Path) -> None:
    for name in ("a-boxes.png", "a-text.png", "b-boxes.png", "a-pages/x.png", "c-crops/y.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"")
    assert expand(["."]) == ["./a.png", "./b-boxes.png", "./c-crops/y.png"]
    assert expand(["a-boxes.png"]) == ["a-boxes.png"]


def test_label_files_of_two_runs_count_the_same_classes(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([PLACES.replace("cup", "red\\ncup"), PLACES.replace("cup", "jar")])
    monkeypatch.setattr(locate, "start_assistant", lambda *_, **__: ScriptedAssistant([next(said)], max_pixels=12544))
    for thing in ("cup", "jar"):
        assert CliRunner().invoke(app, ["locate", "a.png", thing, "--format", "yolo", "--out", "labels"]).exit_code == 0
    assert Path("labels/classes.txt").read_text() == "red cup\njar\n"
    assert Path("labels/a.txt").read_text().startswith("1 ")


@pytest.mark.feature(87)
def test_reading_nothing_says_so(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "start_assistant", lambda *_, **__: ScriptedAssistant(["[]"]))
    done = CliRunner().invoke(app, ["read", "a.png", "--boxes", "line", "--json", "--out", "drawn"])
    assert done.stderr == "found no text\n"
    row = json.loads(done.stdout)
    assert (row["model"], row["places"], row["drawn"]) == ("demo", [], None)


@pytest.mark.parametrize("given", ["clip.mp4", Path("clip.MOV"), ["a.png"], [], "data:video/mp4;base64,AA=="])
@pytest.mark.parametrize("function", [lambda a, x: find(a, x, "cup"), read_text, spot_text])
def test_one_picture_is_expected(function: Any, given: Any) -> None:
    assistant = ScriptedAssistant([PLACES])
    with pytest.raises(ValueError, match=r"expected (one|a) picture"):
        function(assistant, given)
    assert assistant.asked == []


def test_extracting_from_no_picture() -> None:
    with pytest.raises(ValueError, match="there is no picture to extract from"):
        extract(ScriptedAssistant(["{}"]), [], ["a"])


@pytest.mark.parametrize(("content", "says"), [(b"", "is empty"), (b"hello", "is neither a PDF nor a picture")])
def test_a_file_that_is_no_document_is_no_document(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for source in (tmp_path / "a.png", content):
        with pytest.raises(ValueError, match=says) as caught:
            parse(ScriptedAssistant([""]), source)
        assert "/tmp/qwenvl" not in str(caught.value)


def test_a_damaged_page_is_named_as_the_user_named_it(picture: Path) -> None:
    cut = picture.read_bytes()[:120]
    (page,) = parse(ScriptedAssistant([""]), cut).pages
    assert page.error.startswith("the document is damaged or cut off")


def test_parsing_asks_an_assistant_and_takes_one_number(picture: Path) -> None:
    with pytest.raises(TypeError, match="a str cannot be asked: expected an Assistant, then the document"):
        parse("demo", picture)  # type: ignore[arg-type]
    assert chosen_pages(2, 3) == [2]


def test_a_chat_ends_when_nobody_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(Chat(ScriptedAssistant(["Yes."])), Opener(None, None, VideoOptions()))
    asked: list[str] = []

    def handle(line: str) -> bool:
        asked.append(line)
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(session, "handle", handle)
    with pytest.raises(BrokenPipeError):
        session.run(iter(["Who?", "What?"]))
    assert asked == ["Who?"]
