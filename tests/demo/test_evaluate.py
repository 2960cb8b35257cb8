"""The measuring of the bundled model: a model that knows the truth gets 1, one that guesses does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from qwenvl.demo.evaluate import BATCH, TASKS, evaluate, held_out

COUNT = 40


@dataclass
class Said:
    text: str


class Oracle:
    """Answers from the truth, found by picture and question; with `wrong` it always answers that."""

    def __init__(self, wrong: str | None = None) -> None:
        self.wrong, self.calls = wrong, [0]
        self.truth = {}
        for task in TASKS:
            for i in range(COUNT):
                picture, exchange = held_out(task, 3, i)
                self.truth[picture.image.tobytes() if picture else b"", exchange.question] = exchange.answer

    def __call__(self, questions: Sequence[tuple[Sequence[Image.Image], str]]) -> list[Said]:
        self.calls.append(len(questions))
        keys = [(np.asarray(images[0]).tobytes() if images else b"", text) for images, text in questions]
        return [Said(self.wrong or self.truth[key]) for key in keys]


def test_the_truth_scores_one() -> None:
    oracle, done = Oracle(), []
    report = evaluate(oracle, COUNT, 3, None, done.append)
    assert report.met
    assert report.mistakes == []
    assert {row.value for row in report.rows if row.name != "locate mean IoU"} == {1.0}
    assert 0.8 < next(row.value for row in report.rows if row.name == "locate mean IoU") < 1  # the grid of 10 pixels
    assert {row.name for row in report.rows if row.bar} == {name for t in TASKS.values() for name in t.bars}
    assert max(oracle.calls) == BATCH
    assert sum(done) == COUNT * len(TASKS)
    assert report.to_dict()["met"] is True


def test_a_constant_answer_fails_every_bar() -> None:
    report = evaluate(Oracle(wrong="Yes."), COUNT, 3)
    assert not report.met
    assert [row.name for row in report.rows if row.bar and row.met] == []
    assert {m.task for m in report.mistakes} == set(TASKS)
    first = report.mistakes[0]
    assert first.got == "Yes."
    assert held_out(first.task, first.seed[0], first.seed[2])[1].question == first.question


def test_only_the_tasks_asked_for_and_errors() -> None:
    assert {row.name.split()[0] for row in evaluate(Oracle(), 5, 3, ["count"]).rows} == {"count"}
    with pytest.raises(ValueError, match="task 'counting' is not known: expected one of describe"):
        evaluate(Oracle(), 5, 3, ["counting"])
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(Oracle(), 0, 3)


def test_seeds_give_other_pictures() -> None:
    a, b, c = held_out("describe", 0, 1)[0], held_out("describe", 1, 1)[0], held_out("describe", 0, 2)[0]
    assert a is not None
    assert b is not None
    assert c is not None
    assert len({p.image.tobytes() for p in (a, b, c)}) == 3
