"""The verbs `locate` and `read`, with a scripted model in place of a real one (inventory rows 86, 87, 95)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scripted_assistant import Asked, ScriptedAssistant
from typer.testing import CliRunner, Result

from qwenvl.cli.app import app

LIMIT = 300 * 300  # below 1,024 tokens, so that sizes stay as they are


def answer(asked: Asked) -> str:
    if asked.question.startswith("Read"):
        return "NO ENTRY\nexcept bicycles"
    if asked.question.startswith("Spotting"):
        return (
            '[{"bbox_2d": [28, 56, 84, 84], "text_content": "low"}, {"bbox_2d": [28, 0, 84, 28], "text_content": "up"}]'
        )
    if asked.question.startswith("Point"):
        return '[{"point_2d": [28, 56], "label": "cup"}]'
    if "ghost" in asked.question:
        return "[]"
    label = "cup" if "cup" in asked.question else "jar"
    return json.dumps([{"bbox_2d": [0, 28, 56, 84], "label": label}])


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScriptedAssistant:
    """An assistant that both verbs get; the current folder has a.png and b.png in shots/, and broken.png."""
    assistant = ScriptedAssistant(answer, max_pixels=LIMIT)
    started: list[Any] = []

    def start(*arguments: Any, **options: Any) -> ScriptedAssistant:
        started.append((arguments, options))
        assert len(started) == 1, "the model is loaded once"
        return assistant

    for verb in ("locate", "read"):
        monkeypatch.setattr(f"qwenvl.cli.{verb}.start_assistant", start)
    (tmp_path / "shots").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (112, 112), "white").save(tmp_path / "shots" / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    return assistant


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.feature(86)
def test_locate_one_picture(scripted: ScriptedAssistant) -> None:
    done = run("locate", "shots/a.png", "the cup")
    assert (done.exit_code, done.stdout) == (0, "cup\t0.0\t28.0\t56.0\t84.0\n")
    assert done.stderr == "drawn in a-boxes.png\n"
    with Image.open("a-boxes.png") as drawn:
        assert drawn.size == (112, 112)


def test_locate_nothing_draws_nothing(scripted: ScriptedAssistant) -> None:
    done = run("locate", "shots/a.png", "ghost")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "found no ghost\n")
    assert not Path("a-boxes.png").exists()


@pytest.mark.feature(86)
def test_locate_in_a_folder_and_a_broken_file(scripted: ScriptedAssistant) -> None:
    done = run("locate", "shots", "broken.png", "cup", "--also", "jar", "--json", "--out", "marked")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 1
    assert [row["source"] for row in rows] == ["shots/a.png", "shots/b.png", "broken.png"]
    assert [place["label"] for place in rows[0]["places"]] == ["cup", "jar"]
    assert rows[1]["places"][0] == {
        "label": "cup",
        "box": [0, 28, 56, 84],
        "resized": [0, 28, 56, 84],
        "confidence": 0.5,
    }
    assert rows[1]["drawn"] == "marked/b-boxes.png"
    assert "error" in rows[2]
    assert sorted(path.name for path in Path("marked").iterdir()) == ["a-boxes.png", "b-boxes.png"]


def test_locate_with_its_options(scripted: ScriptedAssistant) -> None:
    assert run("locate", "shots/a.png", "cup", "--points", "--confidence").stdout == "cup\t28.0\t56.0\t0.500\n"
    assert len(scripted.asked) == 1


def test_locate_a_second_time(scripted: ScriptedAssistant) -> None:
    Image.new("RGB", (280, 280)).save("large.png")
    assert run("locate", "large.png", "cup", "--refine").exit_code == 0
    assert len(scripted.asked) == 2
    assert scripted.asked[1].media[0].width < 280


@pytest.mark.feature(95)
def test_locate_for_other_tools(scripted: ScriptedAssistant) -> None:
    done = run("locate", "shots", "cup", "--also", "jar", "--format", "coco", "--out", "marked")
    data = json.loads(done.stdout)
    assert [image["file_name"] for image in data["images"]] == ["shots/a.png", "shots/b.png"]
    assert [a["bbox"] for a in data["annotations"]] == [[0, 28, 56, 56]] * 4


@pytest.mark.feature(95)
def test_locate_for_yolo(scripted: ScriptedAssistant) -> None:
    done = run("locate", "shots", "jar", "--also", "cup", "--format", "yolo", "--out", "labels")
    assert done.stdout == "shots/a.png\tlabels/a.txt\t2\nshots/b.png\tlabels/b.txt\t2\n"
    assert Path("labels/classes.txt").read_text() == "jar\ncup\n"
    assert Path("labels/b.txt").read_text().splitlines()[1] == "1 0.250000 0.500000 0.500000 0.500000"
    assert not list(Path("labels").glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["locate", "shots/a.png", "shots/b.png"], "what to locate is missing"),
        (["locate", "cup"], "no picture"),
        (["locate", "shots/a.png", " "], "empty"),
        (["locate", "shots/a.png", "cup", "--also", ""], "empty"),
        (["locate", "shots/a.png", "cup", "--format", "xml"], "--format xml is not known: expected one of table"),
        (["locate", "shots/a.png", "cup", "--format", "coco", "--json"], "two forms of output"),
        (["locate", "shots/a.png", "cup", "--format", "yolo", "--points"], "leave --points out"),
        (["locate", "shots/a.png", "cup", "--min-tokens", "-1"], "--min-tokens -1"),
        (["locate", "shots/a.png", "cup", "--min-tokens", "9", "--min-pixels", "9"], "say the same twice"),
        (["locate", "shots/a.png", "cup", "--out", "marked.xyz"], "--out marked.xyz is no name"),
        (["locate", "shots/a.png", "cup", "--out", "no/marked.png"], "does not exist"),
        (["locate", "broken.png", "cup"], "broken.png"),
        (["read", "shots/a.png", "--boxes", "page"], "--boxes page is not known: expected line or word"),
        (["read", "shots/a.png", "--out", "x.png"], "--out is for boxes"),
        (["read", "shots/a.png", "--in-order"], "--in-order is for boxes"),
        (["read", "nowhere.png"], "does not exist"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(
    scripted: ScriptedAssistant, arguments: list[str], says: str
) -> None:
    done = run(*arguments)
    assert isinstance(done.exception, ValueError | OSError)
    assert says in str(done.exception)
    assert scripted.asked == []


@pytest.mark.feature(87)
def test_read(scripted: ScriptedAssistant) -> None:
    done = run("read", "shots/a.png")
    assert (done.exit_code, done.stdout) == (0, "NO ENTRY\nexcept bicycles\n")


@pytest.mark.feature(87)
def test_read_a_folder(scripted: ScriptedAssistant) -> None:
    done = run("read", "shots")
    assert done.stdout == "".join(f"shots/{name}.png:\nNO ENTRY\nexcept bicycles\n" for name in "ab")


def test_read_in_json(scripted: ScriptedAssistant) -> None:
    (row,) = [json.loads(line) for line in run("read", "shots/a.png", "--json").stdout.splitlines()]
    assert row == {
        "source": "shots/a.png",
        "model": "demo",
        "width": 112,
        "height": 112,
        "text": "NO ENTRY\nexcept bicycles",
    }


@pytest.mark.feature(87)
def test_read_with_boxes(scripted: ScriptedAssistant) -> None:
    done = run("read", "shots/a.png", "--boxes", "word", "--in-order", "--out", "words.png")
    assert done.stdout == "up\t28.0\t0.0\t84.0\t28.0\nlow\t28.0\t56.0\t84.0\t84.0\n"
    assert "word-level" in scripted.asked[0].question
    assert Path("words.png").is_file()
