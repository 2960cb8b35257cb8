"""How often two models give the same greedy answer, on fresh pictures of the bundled model's world.

    reference, model = Assistant("demo"), Assistant("demo", quantize="int4")
    wanted = answers(reference.ask_many, 100, tasks=["describe"])
    compare(wanted, answers(model.ask_many, 100, tasks=["describe"]))[-1].by_meaning

The answers of one model are plain texts that can be kept while the other is loaded. The truth plays no part: two models
that make the same mistake agree. `divergence` measures the same models token by token.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from qwenvl.demo.evaluate import AskMany, fresh_answers
from qwenvl.demo.grading import iou, numbers, parse_json, things_named, told_seconds

LEAST_IOU = 0.9  # of boxes that say the same,
GRADED_IOU = 0.5  # and of boxes that are graded alike
MOST_PIXELS = 10.0  # between points that say the same, in resized pixels
MOST_SECONDS = 0.5  # between times that say the same
ALL = "all"
_ITEMS = re.compile(r"[,:.!;]|\band\b")


@dataclass(frozen=True)
class Answered:
    """What one model answered to one question. kind: of the question (questions.KINDS, happenings)."""

    task: str
    kind: str
    question: str
    text: str


@dataclass(frozen=True)
class Agreement:
    """Of a task, or of all: answers compared; the same to the letter, the same by meaning, the same in what grades
    look at. Each includes the one before."""

    task: str
    count: int
    letters: int
    meanings: int
    grades: int

    @property
    def to_the_letter(self) -> float:
        """Share in 0..1."""
        return self.letters / self.count

    @property
    def by_meaning(self) -> float:
        """Share in 0..1."""
        return self.meanings / self.count

    @property
    def by_grade(self) -> float:
        """Share in 0..1."""
        return self.grades / self.count

    def __str__(self) -> str:
        """Example: describe: 0.963 to the letter, 0.963 by meaning, 0.993 by grade, of 300"""
        shares = (
            f"{self.to_the_letter:.3f} to the letter, {self.by_meaning:.3f} by meaning, {self.by_grade:.3f} by grade"
        )
        return f"{self.task}: {shares}, of {self.count}"


def answers(
    ask_many: AskMany,
    pictures: int = 100,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Answered]:
    """The answers of a model to `pictures` fresh questions of every task (evaluate.TASKS; None: all of them).

    ask_many: (pictures or videos, question) pairs -> answers in their order. The same arguments ask the same.
    ValueError for an unknown task or pictures < 1.
    """
    return [
        Answered(told.task, told.exchange.kind, told.exchange.question, told.text)
        for told in fresh_answers(ask_many, pictures, seed, tasks, progress)
    ]


def compare(first: Sequence[Answered], second: Sequence[Answered]) -> list[Agreement]:
    """How often two models agree: a line for every task, and one for all of them at the end.

    ValueError unless both answered the same questions in the same order, and at least one.
    """
    if not first or [(a.task, a.question) for a in first] != [(b.task, b.question) for b in second]:
        raise ValueError("the answers are not to the same questions: give answers() the same arguments for both models")
    count: Counter[str] = Counter()
    letters: Counter[str] = Counter()
    meanings: Counter[str] = Counter()
    grades: Counter[str] = Counter()
    for a, b in zip(first, second, strict=True):
        for name in (a.task, ALL):
            count[name] += 1
            letters[name] += a.text == b.text
            meanings[name] += same_meaning(a.kind, a.text, b.text)
            grades[name] += same_grade(a.kind, a.text, b.text)
    names = [name for name in count if name != ALL] + [ALL]
    return [Agreement(name, count[name], letters[name], meanings[name], grades[name]) for name in names]


def same_meaning(kind: str, first: str, second: str) -> bool:
    """Do two answers to one question of this kind say the same?

    locate: as many boxes, pairs of one label with IoU 0.9 or more. point: the same with points at most 10 pixels apart.
    when: times within half a second. Descriptions: the same things at the same places, in any order, and the same
    number. Others: equal up to case, spaces and punctuation.
    """
    if first == second:
        return True
    if kind in ("locate", "point"):
        return _same_places(kind, parse_json(first), parse_json(second), LEAST_IOU)
    if kind == "when":
        a, b = told_seconds(first), told_seconds(second)
        return a is not None and b is not None and abs(a - b) <= MOST_SECONDS
    if kind == "describe" or kind.startswith("which"):
        return _told(first) == _told(second)
    return _plain(first) == _plain(second)


def same_grade(kind: str, first: str, second: str) -> bool:
    """The same in what `grading.grade` looks at: of descriptions the things that are named, not their places; boxes
    with IoU 0.5 or more. Else as same_meaning."""
    if kind == "locate":
        return first == second or _same_places(kind, parse_json(first), parse_json(second), GRADED_IOU)
    if kind == "describe" or kind.startswith("which"):
        return things_named(first) == things_named(second)
    return same_meaning(kind, first, second)


def _same_places(
    kind: str, first: list[dict[str, Any]] | None, second: list[dict[str, Any]] | None, least: float
) -> bool:
    if first is None or second is None or len(first) != len(second):
        return False
    near = partial(_near_boxes, least=least) if kind == "locate" else _near_points
    left = list(second)
    for row in first:
        label = _plain(str(row.get("label", "")))
        close = [(near(row, other), other) for other in left if _plain(str(other.get("label", ""))) == label]
        best, match = max(close, key=lambda pair: pair[0], default=(-1.0, None))
        if best < 0 or match is None:
            return False
        left.remove(match)
    return True


def _near_boxes(a: dict[str, Any], b: dict[str, Any], least: float) -> float:
    """IoU where it is enough, else -1."""
    first, second = numbers(a, "bbox_2d", 4), numbers(b, "bbox_2d", 4)
    if first is None or second is None:
        return -1.0
    if first == second:  # also without an area
        return 1.0
    overlap = iou((first[0], first[1], first[2], first[3]), (second[0], second[1], second[2], second[3]))
    return overlap if overlap >= least else -1.0


def _near_points(a: dict[str, Any], b: dict[str, Any]) -> float:
    """1 / (1 + distance) where that is small enough, else -1."""
    first, second = numbers(a, "point_2d", 2), numbers(b, "point_2d", 2)
    if first is None or second is None or math.dist(first, second) > MOST_PIXELS:
        return -1.0
    return 1 / (1 + math.dist(first, second))


def _told(text: str) -> Hashable:
    """A description as the multiset of its phrases: "There are two objects: a red circle at the top and ..."."""
    return frozenset(Counter(" ".join(part.split()) for part in _ITEMS.split(text.lower()) if part.strip()).items())


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
