"""Measures a model on fresh pictures, pairs and clips of the bundled model's world, and compares with its bars.

They come from a stream of random numbers that training never draws from; a seed and an index give one
scene and one question for ever, so that every mistake can be looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from qwenvl.demo.cards import Card, sample_receipt, sample_sign
from qwenvl.demo.clips import CLIP_MAX_PIXELS, CLIP_MIN_PIXELS, Clip, clip_video, sample_clip
from qwenvl.demo.grading import grade
from qwenvl.demo.happenings import CLIP_KINDS, sample_comparison, sample_happening
from qwenvl.demo.marking import mark
from qwenvl.demo.pairs import Pair, sample_pair
from qwenvl.demo.questions import Exchange, sample_exchange
from qwenvl.demo.reading import sample_reading
from qwenvl.demo.world import MAX_PIXELS, MIN_PIXELS, Picture, sample_foreign, sample_picture
from qwenvl.media.videos import Video

if TYPE_CHECKING:
    from qwenvl.processing import Qwen2_5_VLProcessor

BATCH = 16  # questions asked together
WHEN_ERROR = "when: mean error, s"
READ_ERROR = "read: CER"
ERRORS = (WHEN_ERROR, READ_ERROR)  # the smaller, the better
HELD_OUT = 77_000_001  # first word of every seed here; training seeds have other, smaller first words


class HasText(Protocol):
    """An answer: its text."""

    @property
    def text(self) -> str: ...


Scene = Picture | Pair | Clip | None
AskMany = Callable[[Sequence[tuple[Sequence[Image.Image | Video], str]]], Sequence[HasText]]


@dataclass(frozen=True)
class Task:
    """Question kinds asked in equal shares, and the bar of each measure: the least score, or the most error."""

    kinds: tuple[str, ...]
    bars: dict[str, float]


TASKS: dict[str, Task] = {
    "describe": Task(("describe",), {"describe": 0.90}),
    "attributes": Task(("colour", "shape", "exists", "where", "relation"), {"attributes": 0.92}),
    "count": Task(("count",), {"count": 0.90}),
    "locate": Task(("locate",), {"locate recall": 0.88, "locate mean IoU": 0.75}),
    "point": Task(("point",), {"point": 0.92}),
    "text": Task(("identity", "foreign"), {"text": 0.90}),
    "motion": Task(("happens", "moves", "direction"), {"motion": 0.90}),
    "when": Task(("when",), {WHEN_ERROR: 0.5}),
    "difference": Task(("differs",), {"difference": 0.80}),
    "one of two": Task(("which",), {}),
    "read": Task(("read",), {READ_ERROR: 0.12}),
    "spot": Task(("spot",), {}),
    "extract": Task(("extract",), {"extract": 0.60}),
    "events": Task(("query", "events"), {}),
}


@dataclass(frozen=True)
class Row:
    """One number. bar: what it must reach (an error: not exceed), None = for information. count: answers (or things)
    behind it."""

    name: str
    value: float
    count: int
    bar: float | None = None

    @property
    def met(self) -> bool:
        return self.bar is None or (self.value <= self.bar if self.name in ERRORS else self.value >= self.bar)


@dataclass(frozen=True)
class Mistake:
    """A wrong answer. seed: (seed, number of the task, index); see `held_out`."""

    task: str
    seed: tuple[int, int, int]
    question: str
    wanted: str
    got: str


@dataclass
class Report:
    """What `evaluate` found."""

    rows: list[Row] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Is every bar met?"""
        return all(row.met for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: {"met", "rows": [{"name", "value", "count", "bar", "met"}], "mistakes": how many}."""
        rows = [
            {"name": r.name, "value": round(r.value, 4), "count": r.count, "bar": r.bar, "met": r.met}
            for r in self.rows
        ]
        return {"met": self.met, "rows": rows, "mistakes": len(self.mistakes)}


def held_out(task: str, seed: int, index: int) -> tuple[Scene, Exchange]:
    """Scene and question number `index` of a task: always the same for the same arguments."""
    names = list(TASKS)
    rng = np.random.default_rng([HELD_OUT, seed, names.index(task), index])
    kind = TASKS[task].kinds[index % len(TASKS[task].kinds)]
    while True:
        scene, exchange = _ask(rng, kind)
        if exchange is not None:
            return scene, exchange


def _ask(rng: np.random.Generator, kind: str) -> tuple[Scene, Exchange | None]:
    if kind == "identity":
        return None, sample_exchange(rng, None, kind)
    if kind in ("differs", "which"):
        pair = sample_pair(rng)
        return pair, sample_comparison(rng, pair, kind)
    if kind in ("read", "spot"):
        sign = sample_sign(rng, training=False)
        return sign, sample_reading(rng, sign, kind)
    if kind == "extract":
        receipt = sample_receipt(rng, training=False)
        return receipt, sample_reading(rng, receipt, kind)
    if kind in CLIP_KINDS:
        clip = sample_clip(rng)
        return clip, sample_happening(rng, clip, kind)
    picture = sample_foreign(rng, training=False) if kind == "foreign" else sample_picture(rng, training=False)
    return picture, sample_exchange(rng, picture, kind)


def use_sizes_of_the_world(processor: Qwen2_5_VLProcessor) -> None:
    """Boxes are graded in resized pixels: any checkpoint has to see pictures and clips at the sizes of this world."""
    pictures, videos = processor.image_processor, processor.video_processor
    processor.image_processor = pictures.changed(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    processor.video_processor = videos.changed(min_pixels=CLIP_MIN_PIXELS, max_pixels=CLIP_MAX_PIXELS)


def media_of(scene: Scene) -> list[Image.Image | Video]:
    """What is shown with a question about the scene."""
    if isinstance(scene, Clip):
        return [clip_video(scene)]
    pictures = () if scene is None else scene.pictures if isinstance(scene, Pair) else (scene,)
    return [Image.fromarray(picture.image) for picture in pictures]


def evaluate(
    ask_many: AskMany,
    pictures: int = 500,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Ask `pictures` questions of every task, each on its own scene, and grade the answers.

    ask_many: (pictures or videos, question) pairs -> answers in their order. progress: told how many more are answered.
    ValueError for an unknown task or pictures < 1.
    """
    report, graded = Report(), dict[str, list[tuple[Exchange, dict[str, float]]]]()
    for told in fresh_answers(ask_many, pictures, seed, tasks, progress):
        scene, exchange = told.scene, told.exchange
        scores = mark(exchange, scene if isinstance(scene, Card) else None, told.text)
        if scores is None:
            scores = grade(exchange, scene if isinstance(scene, Picture) else None, told.text)
        graded.setdefault(told.task, []).append((exchange, scores))
        if min(scores.get(name, 1.0) for name in ("recall", "precision", exchange.kind)) < 1:
            place = (seed, list(TASKS).index(told.task), told.index)
            report.mistakes.append(Mistake(told.task, place, exchange.question, exchange.answer, told.text))
    for name, rows in graded.items():
        report.rows += _rows(name, rows)
    return report


@dataclass(frozen=True)
class Told:
    """What a model answered to the held-out question number `index` of a task."""

    task: str
    index: int
    scene: Scene
    exchange: Exchange
    text: str


def fresh_answers(
    ask_many: AskMany,
    pictures: int,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Told]:
    """Ask `pictures` held-out questions of every task (None: of all), BATCH at a time; the answers in their order.

    progress: told how many more are answered. ValueError for an unknown task or pictures < 1.
    """
    chosen = list(TASKS) if tasks is None else list(tasks)
    unknown = [name for name in chosen if name not in TASKS]
    if unknown:
        raise ValueError(f"task {unknown[0]!r} is not known: expected one of {', '.join(TASKS)}")
    if pictures < 1:
        raise ValueError(f"pictures={pictures}: expected at least 1")
    for name in chosen:
        for first in range(0, pictures, BATCH):
            indices = range(first, min(first + BATCH, pictures))
            asked = [held_out(name, seed, i) for i in indices]
            answers = ask_many([(media_of(scene), exchange.question) for scene, exchange in asked])
            for i, (scene, exchange), answer in zip(indices, asked, answers, strict=True):
                yield Told(name, i, scene, exchange, answer.text)
            if progress:
                progress(len(indices))


def _rows(name: str, graded: list[tuple[Exchange, dict[str, float]]]) -> list[Row]:
    """The measures of one task; those of its single kinds follow for information."""
    task = TASKS[name]
    if name == "locate":
        return _locate_rows(task, graded)
    if name == "when":
        errors = [values["error"] for _, values in graded]
        right = [values["when"] for _, values in graded]
        return [
            Row(WHEN_ERROR, float(np.mean(errors)), len(errors), task.bars[WHEN_ERROR]),
            Row("  within 0.5 s", float(np.mean(right)), len(right)),
        ]
    if name == "read":
        letters = int(sum(values["letters"] for _, values in graded))
        wrong = sum(values["errors"] for _, values in graded)
        return [
            Row(READ_ERROR, wrong / letters, letters, task.bars[READ_ERROR]),
            Row("  all of it right", float(np.mean([values["read"] for _, values in graded])), len(graded)),
        ]
    if name == "extract":
        asked = [values["fields"] for _, values in graded]
        right = [values["extract"] for _, values in graded]
        return [
            Row(name, float(np.average(right, weights=asked)), int(sum(asked)), task.bars[name]),
            Row("  all fields right", float(np.mean([share == 1 for share in right])), len(right)),
        ]
    scores = [(exchange.kind, values[exchange.kind]) for exchange, values in graded]
    rows = [Row(name, float(np.mean([s for _, s in scores])), len(scores), task.bars.get(name))]
    for kind in task.kinds if len(task.kinds) > 1 else ():
        mine = [s for k, s in scores if k == kind]
        if mine:
            rows.append(Row(f"  {kind}", float(np.mean(mine)), len(mine)))
    return rows


def _locate_rows(task: Task, graded: list[tuple[Exchange, dict[str, float]]]) -> list[Row]:
    """Recall over all things looked for, and mean IoU of those found; precision as the mean over answers.

    A question whose right answer is the empty list counts in "locate nothing" and in precision only.
    """
    sought = [(len(e.targets), s) for e, s in graded if e.targets]
    nothing = [s["recall"] for e, s in graded if not e.targets]
    found = [(n * s["recall"], s["iou"]) for n, s in sought if "iou" in s]
    things, hits = sum(n for n, _ in sought), sum(n for n, _ in found)
    rows = []
    if things:
        recall, overlap = hits / things, sum(n * iou for n, iou in found) / hits if hits else 0.0
        rows.append(Row("locate recall", recall, things, task.bars["locate recall"]))
        rows.append(Row("locate mean IoU", overlap, round(hits), task.bars["locate mean IoU"]))
    rows.append(Row("  precision", float(np.mean([s["precision"] for _, s in graded])), len(graded)))
    if nothing:
        rows.append(Row("  nothing there", float(np.mean(nothing)), len(nothing)))
    return rows
