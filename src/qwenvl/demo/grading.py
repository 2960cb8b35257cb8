"""Grades for answers about the bundled model's world: by meaning, against the truth of the picture."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from qwenvl.demo.drawing import COLOURS, SHAPES
from qwenvl.demo.phrases import NUMBERS
from qwenvl.demo.world import Picture, Thing
from qwenvl.tasks.places import iou

if TYPE_CHECKING:
    from qwenvl.demo.questions import Exchange

_THING = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:e?s)?\b")
_ROW = re.compile(r"\{[^{}]*\}")
_SECONDS = re.compile(r"(\d+(?:\.\d+)?) ?s(?:ec|\b)")
FROM_START = "from the start"
MISSED = 5.0  # seconds of error that an answer without a time counts as


def grade(exchange: Exchange, picture: Picture | None, answer_text: str) -> dict[str, float]:
    """Scores in 0..1 of an answer; the keys depend on the kind of the exchange.

    describe: {"describe"} 1 when exactly the right colour-and-shape multiset is named. count: {"count"}.
    locate: {"recall", "precision"} at IoU 0.5 with the right label, and {"iou"}, the mean IoU of the things
    found (absent when nothing was to be found, or nothing was). point: {"point"} inside the drawn shape, with
    the right label and no extra points. when: {"when"} within half a second, and {"error"} in seconds. which first,
    which second: {kind} as describe. Others: {kind}, exact up to case, spaces and punctuation.
    """
    if exchange.kind == "when":
        wanted, got = told_seconds(exchange.answer), told_seconds(answer_text)
        error = MISSED if wanted is None or got is None else abs(wanted - got)
        return {"when": float(error <= 0.5), "error": error}
    if exchange.kind == "describe" or exchange.kind.startswith("which"):
        true = Counter(t.name for t in exchange.targets)
        return {exchange.kind: float(things_named(answer_text) == true and _says_number(exchange, answer_text))}
    if exchange.kind == "count":
        return {"count": float(_number(answer_text) == len(exchange.targets))}
    if exchange.kind == "locate" and picture is not None:
        return _grade_boxes(exchange.targets, picture, parse_json(answer_text))
    if exchange.kind == "point" and picture is not None:
        return {"point": _grade_points(exchange.targets, picture, parse_json(answer_text))}
    return {exchange.kind: float(_plain(answer_text) == _plain(exchange.answer))}


def things_named(text: str) -> Counter[str]:
    """How often a description names each kind of thing: "red circle", "blue star" ..."""
    return Counter(" ".join(found) for found in _THING.findall(text.lower()))


def told_seconds(text: str) -> float | None:
    """The seconds that an answer tells: "... at 2.5 seconds", "... from the start" (0); None when it tells none."""
    found = _SECONDS.search(text.lower())
    if found:
        return float(found.group(1))
    return 0.0 if FROM_START in text.lower() else None


def parse_json(text: str) -> list[dict[str, Any]] | None:
    """The objects of a fenced, bare or truncated JSON answer (whole objects only), or None."""
    body = re.sub(r"```(?:json)?", "", text).strip()
    try:
        value = json.loads(body)
    except ValueError:
        rows = []
        for found in _ROW.findall(body):
            try:
                rows.append(json.loads(found))
            except ValueError:
                continue
        return rows or None
    if isinstance(value, dict):
        value = [value]
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else None


def numbers(row: dict[str, Any], key: str, count: int) -> list[float] | None:
    """The `count` finite numbers under `key`, or None."""
    value = row.get(key)
    if not isinstance(value, list) or len(value) != count:
        return None
    return [float(v) for v in value] if all(isinstance(v, (int, float)) for v in value) else None


def _grade_boxes(targets: tuple[Thing, ...], picture: Picture, rows: list[dict[str, Any]] | None) -> dict[str, float]:
    if rows is None:
        return {"recall": 0.0, "precision": 0.0}
    if not targets:
        return {"recall": float(not rows), "precision": float(not rows)}
    guesses = []
    for row in rows:
        box = numbers(row, "bbox_2d", 4)
        if box and box[2] > box[0] and box[3] > box[1]:
            guesses.append(((box[0], box[1], box[2], box[3]), str(row.get("label", ""))))
    pairs = sorted(
        (
            (iou(box, picture.resized_box(t)), i, j)
            for i, t in enumerate(targets)
            for j, (box, label) in enumerate(guesses)
            if _plain(label) == t.name
        ),
        reverse=True,
    )
    taken_t: set[int] = set()
    taken_g: set[int] = set()
    found = []
    for overlap, i, j in pairs:
        if overlap >= 0.5 and i not in taken_t and j not in taken_g:
            taken_t.add(i)
            taken_g.add(j)
            found.append(overlap)
    scores = {"recall": len(found) / len(targets), "precision": len(found) / len(rows) if rows else 0.0}
    if found:
        scores["iou"] = sum(found) / len(found)
    return scores


def _grade_points(targets: tuple[Thing, ...], picture: Picture, rows: list[dict[str, Any]] | None) -> float:
    if rows is None or len(rows) != len(targets):
        return 0.0
    if not targets:
        return 1.0
    open_targets = list(targets)
    for row in rows:
        point = numbers(row, "point_2d", 2)
        if point is None:
            return 0.0
        x, y = picture.to_original(*point)
        hit = [t for t in open_targets if _plain(str(row.get("label", ""))) == t.name and t.contains(x, y)]
        if not hit:
            return 0.0
        open_targets.remove(hit[0])
    return 1.0


def _number(text: str) -> int | None:
    """The first number in the text, as digits or as a word."""
    for word in re.findall(r"\d+|[a-z]+", text.lower()):
        if word.isdigit():
            return int(word)
        if word in NUMBERS:
            return NUMBERS.index(word)
    return None


def _says_number(exchange: Exchange, text: str) -> bool:
    """Does a description name the right number of objects (or 'nothing')?"""
    if not exchange.targets:
        return "nothing" in text.lower()
    return _number(text) == len(exchange.targets)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
