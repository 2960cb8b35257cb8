"""Grades for answers about cards: how far a reading is from the text, lines that are spotted, fields that are right."""

from __future__ import annotations

import json
import re
from typing import Any

from qwenvl.demo.cards import Card
from qwenvl.demo.grading import iou, numbers, parse_json
from qwenvl.demo.questions import Exchange
from qwenvl.demo.reading import resized_line

MOST_SECONDS = 0.5  # between times of events that count as the same
_STAMP = re.compile(r"(\d+):(\d+(?:\.\d+)?)")


def mark(exchange: Exchange, card: Card | None, text: str) -> dict[str, float] | None:
    """Scores in 0..1 of an answer about a card or about events; None for other kinds (see grading.grade).

    read: {"read"} 1 when all is right, {"errors"} the edit distance in characters, {"letters"} of the right answer.
    spot: {"spot"} share of the lines whose text is right and whose box has IoU 0.5 or more; 0 with rows too many.
    extract: {"extract"} share of the fields that are right to the letter, {"fields"} how many were asked for.
    events: {"events"} 1 when exactly the right events are told, with times within half a second.
    """
    if exchange.kind == "read":
        errors = distance(text.strip(), exchange.answer)
        return {"read": float(errors == 0), "errors": float(errors), "letters": float(len(exchange.answer))}
    if exchange.kind == "spot" and card is not None:
        return {"spot": _spotted(card, parse_json(text))}
    if exchange.kind == "extract":
        wanted, got = json.loads(exchange.answer), fields(text)
        right = sum(got.get(name) == value for name, value in wanted.items())
        return {"extract": right / len(wanted), "fields": float(len(wanted))}
    if exchange.kind == "events":
        return {"events": float(_same_events(parse_json(exchange.answer), parse_json(text)))}
    return None


def distance(a: str, b: str) -> int:
    """Letters to insert, drop or replace to make `a` of `b` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def fields(text: str) -> dict[str, Any]:
    """The object of a JSON answer, fenced or not; {} when there is none."""
    rows = parse_json(text)
    return rows[0] if rows else {}


def _spotted(card: Card, rows: list[dict[str, Any]] | None) -> float:
    if rows is None or len(rows) > len(card.lines):
        return 0.0
    found = 0
    for line in card.lines:
        for row in rows:
            box = numbers(row, "bbox_2d", 4)
            if box and row.get("text_content") == line.text:
                x1, y1, x2, y2 = box
                found += iou((x1, y1, x2, y2), resized_line(card, line)) >= 0.5
                break
    return found / len(card.lines)


def _same_events(wanted: list[dict[str, Any]] | None, got: list[dict[str, Any]] | None) -> bool:
    if wanted is None or got is None or len(wanted) != len(got):
        return False
    left = list(got)
    for row in wanted:
        match = next((other for other in left if _same_event(row, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same_event(a: dict[str, Any], b: dict[str, Any]) -> bool:
    for key in ("start_time", "end_time"):
        first, second = _seconds(a.get(key)), _seconds(b.get(key))
        if first is None or second is None or abs(first - second) > MOST_SECONDS:
            return False
    return a.get("description") == b.get("description")


def _seconds(stamp: object) -> float | None:
    """Seconds of 'mm:ss.ff'."""
    found = _STAMP.fullmatch(stamp) if isinstance(stamp, str) else None
    return None if found is None else 60 * int(found.group(1)) + float(found.group(2))
