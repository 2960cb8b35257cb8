"""Measures a model on fresh pictures of the bundled model's world, and compares with the bars it has to meet.

The pictures come from a stream of random numbers that training never draws from; a seed and an index give one
picture and one question for ever, so that every mistake can be looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from qwenvl.demo.grading import grade
from qwenvl.demo.questions import Exchange, sample_exchange
from qwenvl.demo.world import Picture, sample_foreign, sample_picture

BATCH = 16  # questions asked together
HELD_OUT = 77_000_001  # first word of every seed here; training seeds have other, smaller first words


class HasText(Protocol):
    """An answer: its text."""

    @property
    def text(self) -> str: ...


AskMany = Callable[[Sequence[tuple[Sequence[Image.Image], str]]], Sequence[HasText]]


@dataclass(frozen=True)
class Task:
    """Question kinds asked in equal shares, and the least acceptable score for each measure."""

    kinds: tuple[str, ...]
    bars: dict[str, float]


TASKS: dict[str, Task] = {
    "describe": Task(("describe",), {"describe": 0.90}),
    "attributes": Task(("colour", "shape", "exists", "where", "relation"), {"attributes": 0.92}),
    "count": Task(("count",), {"count": 0.90}),
    "locate": Task(("locate",), {"locate recall": 0.88, "locate mean IoU": 0.75}),
    "point": Task(("point",), {"point": 0.92}),
    "text": Task(("identity", "foreign"), {"text": 0.90}),
}


@dataclass(frozen=True)
class Row:
    """One number. bar: what it must reach, None = for information. count: answers (or things) behind it."""

    name: str
    value: float
    count: int
    bar: float | None = None

    @property
    def met(self) -> bool:
        return self.bar is None or self.value >= self.bar


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


def held_out(task: str, seed: int, index: int) -> tuple[Picture | None, Exchange]:
    """Picture and question number `index` of a task: always the same for the same arguments."""
    names = list(TASKS)
    rng = np.random.default_rng([HELD_OUT, seed, names.index(task), index])
    kind = TASKS[task].kinds[index % len(TASKS[task].kinds)]
    while True:
        picture = None if kind == "identity" else _picture(rng, kind)
        exchange = sample_exchange(rng, picture, kind)
        if exchange is not None:
            return picture, exchange


def _picture(rng: np.random.Generator, kind: str) -> Picture:
    if kind == "foreign":
        return sample_foreign(rng, training=False)
    return sample_picture(rng, training=False)


def evaluate(
    ask_many: AskMany,
    pictures: int = 500,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Ask `pictures` questions of every task, each on its own picture, and grade the answers.

    ask_many: (pictures, question) pairs -> answers in their order. progress: told how many more are answered.
    ValueError for an unknown task or pictures < 1.
    """
    chosen = list(TASKS) if tasks is None else list(tasks)
    unknown = [name for name in chosen if name not in TASKS]
    if unknown:
        raise ValueError(f"task {unknown[0]!r} is not known: expected one of {', '.join(TASKS)}")
    if pictures < 1:
        raise ValueError(f"pictures={pictures}: expected at least 1")
    report = Report()
    for name in chosen:
        graded: list[tuple[Exchange, dict[str, float]]] = []
        for first in range(0, pictures, BATCH):
            indices = range(first, min(first + BATCH, pictures))
            asked = [held_out(name, seed, i) for i in indices]
            answers = ask_many([([Image.fromarray(p.image)] if p else [], e.question) for p, e in asked])
            for i, (picture, exchange), answer in zip(indices, asked, answers, strict=True):
                scores = grade(exchange, picture, answer.text)
                graded.append((exchange, scores))
                if (
                    min(
                        scores.get("recall", 1.0),
                        scores.get("precision", 1.0),
                        scores.get(exchange.kind, 1.0),
                    )
                    < 1
                ):
                    place = (seed, list(TASKS).index(name), i)
                    report.mistakes.append(Mistake(name, place, exchange.question, exchange.answer, answer.text))
            if progress:
                progress(len(indices))
        report.rows += _rows(name, graded)
    return report


def _rows(name: str, graded: list[tuple[Exchange, dict[str, float]]]) -> list[Row]:
    """The measures of one task; those of its single kinds follow for information."""
    task = TASKS[name]
    if name == "locate":
        return _locate_rows(task, graded)
    scores = [(exchange.kind, values[exchange.kind]) for exchange, values in graded]
    rows = [Row(name, float(np.mean([s for _, s in scores])), len(scores), task.bars[name])]
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
