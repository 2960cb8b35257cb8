"""The measuring of the bundled model: a model that knows the truth gets 1, one that guesses does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from qwenvl.demo.clips import Clip
from qwenvl.demo.evaluate import BATCH, ERRORS, TASKS, evaluate, held_out, media_of, use_sizes_of_the_world
from qwenvl.demo.world import Picture
from qwenvl.media import Video
from qwenvl.processing import Qwen2_5_VLProcessor

COUNT = 40


@dataclass
class Said:
    text: str


def shown(media: Sequence[Image.Image | Video]) -> bytes:
    """The bytes of all that is shown."""
    return b"".join((x.frames if isinstance(x, Video) else np.asarray(x)).tobytes() for x in media)


class Oracle:
    """Answers from the truth, found by what is shown and question; with `wrong` it always answers that."""

    def __init__(self, wrong: str | None = None) -> None:
        self.wrong, self.calls = wrong, [0]
        self.truth = {}
        for task in TASKS:
            for i in range(COUNT):
                scene, exchange = held_out(task, 3, i)
                self.truth[shown(media_of(scene)), exchange.question] = exchange.answer

    def __call__(self, questions: Sequence[tuple[Sequence[Image.Image | Video], str]]) -> list[Said]:
        self.calls.append(len(questions))
        keys = [(shown(media), text) for media, text in questions]
        return [Said(self.wrong or self.truth[key]) for key in keys]


def test_the_truth_scores_one() -> None:
    oracle, done = Oracle(), []
    report = evaluate(oracle, COUNT, 3, None, done.append)
    assert report.met
    assert report.mistakes == []
    errors = {"locate mean IoU", *ERRORS}
    assert {row.value for row in report.rows if row.name not in errors} == {1.0}
    assert {row.value for row in report.rows if row.name in ERRORS} == {0.0}
    assert 0.9 < next(row.value for row in report.rows if row.name == "locate mean IoU") < 1  # the grid of 5 pixels
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
    for task in ("describe", "motion", "difference"):
        scenes = [held_out(task, seed, index)[0] for seed, index in ((0, 1), (1, 1), (0, 2))]
        assert len({shown(media_of(scene)) for scene in scenes}) == 3


def test_any_checkpoint_sees_the_sizes_of_the_world() -> None:
    processor = Qwen2_5_VLProcessor.from_pretrained("demo", min_pixels=28 * 28, max_pixels=28 * 28)
    use_sizes_of_the_world(processor)
    for task in ("describe", "motion"):
        scene = held_out(task, 0, 0)[0]
        assert isinstance(scene, Picture | Clip)
        seen = processor.image_processor if isinstance(scene, Picture) else processor.video_processor
        assert seen.target_size(scene.height, scene.width) == (scene.resized_height, scene.resized_width)
