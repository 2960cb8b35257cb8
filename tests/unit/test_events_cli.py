"""`qwenvl events` as the shell sees it: arguments, files, mistakes (no model is run here)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from films import SQUARE, Shape, is_red, write_film
from scripted_assistant import Asked, ScriptedAssistant
from test_cli import MOST_SECONDS, run
from typer.testing import CliRunner

import qwenvl.cli.events as verb
from qwenvl.cli.app import app
from qwenvl.cli.events import split_query, table
from qwenvl.tasks.events import Event

pytestmark = pytest.mark.feature(88)


def answer(asked: Asked) -> str:
    video = asked.media[0]
    red = [is_red(frame) for frame in video.frames]
    return f"It appears at {red.index(True) / video.fps:g} seconds." if any(red) and not red[0] else "It does not."


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_film(folder / "a.mp4", 6, [SQUARE, Shape(3, 6)])
    write_film(folder / "b.mp4", 6, [SQUARE])
    (folder / "c.mp4").write_bytes(b"no video")
    return folder


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(verb, "start_assistant", lambda *_, **__: ScriptedAssistant(answer))
    return CliRunner().invoke(app, ["events", *arguments])


@pytest.mark.parametrize(
    ("arguments", "given", "expected"),
    [
        (["a.mp4", "a dog"], None, (["a.mp4"], "a dog")),
        (["a.mp4", "b.mov"], None, (["a.mp4", "b.mov"], None)),
        (["a.mp4"], "a dog", (["a.mp4"], "a dog")),
        (["*.mp4"], None, (["*.mp4"], None)),
        (["films/*"], "x", (["films/*"], "x")),
        (["a.mp4", "is it [red]?"], None, (["a.mp4"], "is it [red]?")),
        (["https://example.org/x"], None, (["https://example.org/x"], None)),
        (["-", "goal"], None, (["-"], "goal")),
        (["-"], None, (["-"], None)),
    ],
)
def test_the_last_argument_is_the_query_unless_it_names_videos(
    arguments: list[str], given: str | None, expected: tuple[list[str], str | None]
) -> None:
    assert split_query(arguments, given) == expected


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        (["a dog"], None, "no video"),
        (["a.mp4", "a dog"], "a cat", "leave one of them out"),
        (["a.mp4", " "], None, "the query is empty"),
        (["a.mp4"], "", "the query is empty"),
    ],
)
def test_queries_that_cannot_be(arguments: list[str], given: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_query(arguments, given)


def test_a_folder_is_no_query(tmp_path: Path) -> None:
    assert split_query([str(tmp_path)], None) == ([str(tmp_path)], None)


def test_lines() -> None:
    assert (
        table([Event(1, 3725.5, "a\tb\nc"), Event(4, 4, "")])
        == "0:00:01.000\t1:02:05.500\ta b c\n0:00:04.000\t0:00:04.000\t"
    )


def test_several_videos(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One record each, in order; one that fails is told and the others go on."""
    monkeypatch.chdir(tmp_path)
    done = invoke(
        monkeypatch, str(films), "red circle", "--json", "--srt", "s", "--clips", "c", "--sheet", "p", "--fps", "5"
    )
    assert done.exit_code == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(row["source"]).name for row in rows] == ["a.mp4", "b.mp4", "c.mp4"]
    (event,) = rows[0]["events"]
    assert event["start"] == event["end"] == pytest.approx(3, abs=0.21)
    assert rows[0]["clips"] == ["c/a-001.mp4"]
    assert rows[1]["events"] == []
    assert "sheet" not in rows[1]
    assert "is not a video" in rows[2]["error"]
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert names == ["c/a-001.mp4", "p/a-events.png", "s/a.srt", "s/b.srt"]


def test_lines_for_people(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = invoke(monkeypatch, str(films / "a.mp4"), "red circle", "--fps", "5", "--start", "1")
    assert done.exit_code == 0
    begin, end, text = done.stdout.rstrip("\n").split("\t")
    assert begin == end
    assert begin.startswith(("0:00:03.0", "0:00:03.2"))
    assert text == "red circle"
    done = invoke(monkeypatch, str(films / "b.mp4"), "red circle")
    assert (done.stdout, done.exit_code) == ("", 0)
    assert 'found nothing for "red circle"' in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.mp4"], "none.mp4 does not exist"),
        (["a dog"], "no video"),
        (["a.mp4", "--fps", "0"], "fps=0"),
        (["a.mp4", "--start", "9"], "leave nothing of a video from 0.00 to 6.00 s"),
        (["a.mp4", "--max-calls", "0"], "max_calls=0"),
        (["a.mp4", "--margin", "1"], "--margin is for clips"),
        (["a.mp4", "--clips", "x", "--margin", "-1"], "--margin -1"),
        (["a.mp4", "--sheet", "x.pdf"], "--sheet x.pdf is no picture's name"),
        (["a.mp4", "--clips", "a.mp4"], "--clips a.mp4 is a file"),
        (["a.mp4", "--srt", "nowhere/x.srt"], "the folder nowhere does not exist"),
        (["a.mp4", "--prompt", "When {query}?"], "has a place for a query"),
        (["c.mp4"], "c.mp4 is not a video"),
    ],
)
def test_mistakes_end_before_the_model_is_loaded(
    films: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(films)
    monkeypatch.setattr(verb, "start_assistant", lambda *_, **__: pytest.fail("the model was loaded"))
    done = CliRunner().invoke(app, ["events", *arguments])
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)


def test_a_mistake_is_one_line_and_code_2(films: Path) -> None:
    done = run("events", "c.mp4", "x", cwd=films)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert done.peak < 300 * 2**20  # no torch
    assert done.seconds < 5 * MOST_SECONDS
