"""`qwenvl chat` with the bundled model: turns build on each other, and cost what is new in them."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from terminal import CTRL_D, Terminal

from qwenvl.checkpoint.hub import demo_folder
from qwenvl.demo.samples import CLIP, PICTURES
from qwenvl.tasks import Assistant
from qwenvl.tasks.chat import Chat, TooLongError
from qwenvl.types import SamplingParams

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "qwenvl")
THREE = str(PICTURES / "three-shapes.png")
PAGE = 16  # tokens that the engine keeps together

pytestmark = pytest.mark.skipif(
    not (demo_folder() / "model.safetensors").is_file(), reason="this checkout has no bundled checkpoint"
)


def converse(*arguments: str, lines: list[str], cwd: Path, code: int = 0) -> tuple[str, str]:
    done = subprocess.run(
        [PROGRAM, "chat", *arguments], input="\n".join(lines), capture_output=True, text=True, cwd=cwd, timeout=100,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_a_later_turn_computes_what_is_new(tmp_path: Path) -> None:
    questions = ["Describe this image.", "How many circles are there?", "What colour is the square?"]
    out, _ = converse(THREE, "--json", lines=questions, cwd=tmp_path)
    turns = [json.loads(line) for line in out.splitlines()]
    assert [turn["question"] for turn in turns] == questions
    assert turns[0]["found_tokens"] == 0
    for before, turn in pairwise(turns):
        known = before["prompt_tokens"] + before["answer_tokens"]
        new = turn["prompt_tokens"] - known
        assert turn["prompt_tokens"] - turn["found_tokens"] <= new + PAGE


def test_pictures_of_a_conversation_are_encoded_once(tmp_path: Path) -> None:
    assistant = Assistant("demo")
    chat = Chat.of(assistant)
    chat.attach("image", THREE, Image.open(THREE))
    for question in ("Describe this image.", "How many circles are there?", "Is there a star?"):
        "".join(chat.stream(question))
    assert assistant.engine.stats.vision_misses == 1


def test_a_stopped_answer_leaves_the_engine_free() -> None:
    assistant = Assistant("demo")
    chat = Chat.of(assistant)
    chat.attach("image", THREE, Image.open(THREE))
    whole = "".join(chat.stream("Describe this image."))
    chat.undo()
    with closing(chat.stream("Describe this image.")) as pieces:
        said = next(pieces) + next(pieces) + next(pieces)
    assert whole.startswith(said)
    assert chat.turns[-1].answer == said
    stats = assistant.engine.stats
    assert (stats.running, stats.used_tokens) == (0, 0)
    assert "".join(chat.stream("How many circles are there?"))


def test_the_context_of_the_model_is_kept() -> None:
    """The bundled model is made for 4096 positions: a chat that fills them says so, and goes on without the oldest."""
    assistant = Assistant("demo")
    chat = Chat.of(assistant, SamplingParams(max_new_tokens=32))
    assert chat.limit == 4096
    long = "word " * 550
    "".join(chat.stream(long))
    "".join(chat.stream(long))
    before = list(chat.turns)
    with pytest.raises(TooLongError, match="it goes on without the oldest turn") as caught:
        "".join(chat.stream("word " * 1000))
    assert chat.turns == before
    chat.drop(caught.value.oldest)
    "".join(chat.stream("word " * 1000))
    assert len(chat.turns) == 2


def test_conversations_go_through_files(tmp_path: Path) -> None:
    first = ["Describe this image.", "/save talk.json"]
    converse(THREE, lines=first, cwd=tmp_path)
    lines = ["/load talk.json", "How many circles are there?", f"/video {PICTURES / CLIP}", "What happens?"]
    out, _ = converse("--json", lines=lines, cwd=tmp_path)
    counted, seen = map(json.loads, out.splitlines())
    assert "circle" in counted["answer"]
    assert len(counted["sizes"]) == 1
    assert len(seen["videos"]) == 1


def test_boxes_of_an_answer_are_drawn(tmp_path: Path) -> None:
    lines = ["Outline the position of each blue square and output all the coordinates in JSON format.", "/boxes"]
    out, err = converse(THREE, lines=lines, cwd=tmp_path)
    label, *corners = out.splitlines()[-1].split("\t")
    assert label == "blue square"
    assert all(0 <= float(number) <= 280 for number in corners)
    assert "drawn in three-shapes-boxes.png" in err
    assert (tmp_path / "three-shapes-boxes.png").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
def test_on_a_terminal() -> None:
    with Terminal([PROGRAM, "chat", THREE]) as terminal:
        terminal.wait_for("three-shapes.png (280 x 210). /help lists the commands, Ctrl-D ends.\n> ")
        terminal.type("How many circles are there?\r")
        terminal.wait_for("There ")
        terminal.wait_for(".\n> ")
        terminal.type("/info\r")
        terminal.wait_for("turns: 1, pictures: 1, videos: 0")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gone.png"], "gone.png does not exist"),
        (["-"], "stdin has the questions"),
        ([THREE, "--temperature", "-1"], "temperature=-1.0 is not valid"),
        ([THREE, "--model", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path: Path, arguments: list[str], says: str) -> None:
    out, err = converse(*arguments, lines=["Hi"], cwd=tmp_path, code=2)
    assert (out, len(err.splitlines())) == ("", 1)
    assert says in err
