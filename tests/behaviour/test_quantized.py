"""The bundled model with its weights packed: the program answers as before, and little is lost."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path

import pytest

from qwenvl.checkpoint.hub import demo_folder
from qwenvl.demo.agreement import ALL, Answered, answers, compare
from qwenvl.demo.divergence import divergence
from qwenvl.demo.evaluate import BATCH, TASKS, held_out, media_of, use_sizes_of_the_world
from qwenvl.demo.samples import PICTURES
from qwenvl.engine import Request
from qwenvl.tasks import Assistant

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "qwenvl")
THREE = str(PICTURES / "three-shapes.png")
# Mean divergence in nats and share of equal likeliest tokens, about twice as far from perfect as measured.
BARS = {"int8": (0.001, 0.99), "int4": (0.004, 0.98)}
# Share of greedy answers that are graded as those of bfloat16 are: of descriptions of a picture, and of all questions.
AGREE = {"int8": (0.99, 0.98), "int4": (0.95, 0.95)}

pytestmark = pytest.mark.skipif(
    not (demo_folder() / "model.safetensors").is_file(), reason="this checkout has no bundled checkpoint"
)


def qwenvl(*arguments: str, cwd: Path | None = None) -> str:
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, cwd=cwd, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("word", BARS)
def test_the_program_answers(word: str, tmp_path: Path) -> None:
    answer = qwenvl("ask", THREE, "Describe this image.", "--quantize", word)
    assert all(name in answer for name in ("red circle", "blue square", "green triangle"))
    report = json.loads(qwenvl("locate", THREE, "red circle", "--quantize", word, "--json", cwd=tmp_path))
    assert len(report["places"]) == 1
    rows = json.loads(
        qwenvl("eval", "demo", "--pictures", "16", "--task", "count", "--quantize", word, "--json")
    )["rows"]  # fmt: skip
    assert rows[0]["value"] > 0.75


@pytest.fixture(scope="module")
def answered() -> tuple[Assistant, list[Request]]:
    """The model as it is, and requests of every task that it has answered."""
    reference = Assistant("demo", max_running=16)
    use_sizes_of_the_world(reference.processor)
    asked = [held_out(task, 5, index) for task in TASKS for index in range(3)]
    requests = [reference.prepare(media_of(scene), exchange.question)[0] for scene, exchange in asked]
    reference.engine.run(requests)
    return reference, requests


@pytest.mark.parametrize("word", BARS)
def test_little_is_lost(word: str, answered: tuple[Assistant, list[Request]]) -> None:
    reference, requests = answered
    found = divergence(Assistant("demo", quantize=word).model, reference.model, requests)
    most, least = BARS[word]
    assert found.tokens > 300
    assert 0 < found.mean < most
    assert found.agreement > least


@pytest.fixture(scope="module")
def told() -> dict[str, list[Answered]]:
    """What the model as it is answers: descriptions of 300 fresh pictures, and a thousand questions of all tasks."""
    model = Assistant("demo", max_running=BATCH)
    describe = answers(model.ask_many, 300, seed=11, tasks=["describe"])
    return {"describe": describe, ALL: answers(model.ask_many, 100, seed=11)}


@pytest.mark.slow
@pytest.mark.parametrize("word", AGREE)
def test_answers_stay_the_same(word: str, told: dict[str, list[Answered]]) -> None:
    model = Assistant("demo", max_running=BATCH, quantize=word)
    found = answers(model.ask_many, 300, seed=11, tasks=["describe"]), answers(model.ask_many, 100, seed=11)
    for wanted, again, least in zip(told.values(), found, AGREE[word], strict=True):
        whole = compare(wanted, again)[-1]
        assert whole.count == len(wanted)
        assert whole.grades / whole.count >= least, str(whole)
