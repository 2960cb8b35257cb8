"""Do two answers say the same? By hand, and on the bundled model against itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwenvl.demo.agreement import Answered, answers, compare, same_grade, same_meaning


def boxes(*rows: tuple[list[int], str]) -> str:
    return "```json\n[" + ", ".join(f'{{"bbox_2d": {box}, "label": "{label}"}}' for box, label in rows) + "]\n```"


def points(*rows: tuple[list[int], str]) -> str:
    return "[" + ", ".join(f'{{"point_2d": {at}, "label": "{label}"}}' for at, label in rows) + "]"


A, B = ([0, 0, 100, 100], "red circle"), ([100, 100, 200, 200], "blue star")


@pytest.mark.parametrize(
    ("kind", "first", "second", "same"),
    [
        ("count", "There are 3.", "there are 3", True),
        ("count", "3", "4", False),
        ("when", "at 2.5 seconds", "At 3.0 s", True),
        ("when", "at 2.5 seconds", "at 3.1 seconds", False),
        ("when", "at 2.5 seconds", "never", False),
        ("describe", "There are two objects: a red circle at the top left and a blue star in the center.",
         "There are two objects: a blue star in the center and a red circle at the top left.", True),
        ("describe", "There is one object: a red circle at the top left.",
         "There is one object: a red circle at the top.", False),
        ("describe", "There are two objects: a red circle at the top and a red circle at the top.",
         "There are two objects: a red circle at the top.", False),
        ("which first", "The first: a red circle.", "the first: a red circle", True),
        ("locate", boxes(A, B), boxes(B, A), True),
        ("locate", boxes(A), boxes(([0, 0, 100, 94], "red circle")), True),
        ("locate", boxes(A), boxes(([0, 0, 100, 89], "red circle")), False),
        ("locate", boxes(A), boxes((A[0], "red star")), False),
        ("locate", boxes(A), boxes(A, B), False),
        ("locate", boxes(A, A), boxes(A, B), False),
        ("locate", "```json\n[]\n```", "[]", True),
        ("locate", "```json\n[]\n```", "no", False),
        ("locate", boxes(([5, 5, 5, 5], "red circle")), boxes(([5, 5, 5, 5], "red circle")) + " ", True),
        ("point", points(([10, 10], "red circle")), points(([16, 18], "red circle")), True),
        ("point", points(([10, 10], "red circle")), points(([16, 19], "red circle")), False),
        ("point", points(([10, 10], "red circle")), points(([10, 10], "red star")), False),
    ],
)  # fmt: skip
def test_same_meaning(kind: str, first: str, second: str, same: bool) -> None:
    assert same_meaning(kind, first, second) is same
    assert same_meaning(kind, second, first) is same


def test_grades_look_at_less() -> None:
    first = "There is one object: a red circle at the top left."
    assert same_grade("describe", first, first.replace("left", "right"))
    assert not same_grade("describe", first, first.replace("red", "blue"))
    half = boxes(([0, 0, 100, 51], "red circle"))
    assert same_grade("locate", boxes(A), half)
    assert not same_meaning("locate", boxes(A), half)
    assert not same_grade("locate", boxes(A), boxes(([0, 0, 100, 49], "red circle")))
    assert not same_grade("count", "3", "4")


def test_compare_counts_by_task() -> None:
    first = [Answered("count", "count", "How many?", "3"), Answered("locate", "locate", "Where?", boxes(A, B))]
    second = [replace(first[0], text="4"), replace(first[1], text=boxes(B, A))]
    count, locate, everything = compare(first, second)
    assert (count.task, count.count, count.letters, count.meanings) == ("count", 1, 0, 0)
    assert (locate.task, locate.to_the_letter, locate.by_meaning) == ("locate", 0, 1)
    assert str(everything) == "all: 0.000 to the letter, 0.500 by meaning, 0.500 by grade, of 2"
    with pytest.raises(ValueError, match="not to the same questions"):
        compare(first, second[:1])
    with pytest.raises(ValueError, match="not to the same questions"):
        compare([], [])


def test_answers_of_the_bundled_model_agree_with_themselves() -> None:
    from qwenvl.tasks import Assistant

    assistant = Assistant("demo", max_running=16)
    told: list[int] = []
    first = answers(assistant.ask_many, 3, seed=3, tasks=["describe", "locate"], progress=told.append)
    second = answers(lambda many: [assistant.ask(*one) for one in many], 3, seed=3, tasks=["describe", "locate"])
    assert told == [3, 3]
    assert len({a.question for a in first}) > 1
    assert all(a.text for a in first)
    assert compare(first, second)[-1].meanings >= 5
    other = answers(assistant.ask_many, 3, seed=4, tasks=["describe", "locate"])
    with pytest.raises(ValueError, match="same questions"):
        compare(first, other)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="'weather' is not known"):
        answers(lambda many: [], 1, tasks=["weather"])
    with pytest.raises(ValueError, match="at least 1"):
        answers(lambda many: [], 0)
