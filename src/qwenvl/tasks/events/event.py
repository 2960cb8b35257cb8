"""Event: something that happens in a video, in seconds of the FILE; lists of them joined and put in order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

SAME_WORDS = 0.6  # share of words by which two descriptions tell of one event
SAME_TIME = 0.5  # intersection over union of their times


@dataclass(frozen=True)
class Event:
    """start <= end in seconds of the file, from its first frame; equal for a moment. confidence: the geometric mean of
    the probabilities of the tokens that wrote its times, 0 to 1; None where they are not known."""

    start: float
    end: float
    text: str
    confidence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, milliseconds at the most."""
        report: dict[str, Any] = {"start": round(self.start, 3), "end": round(self.end, 3), "text": self.text}
        if self.confidence is not None:
            report["confidence"] = round(self.confidence, 4)
        return report


def in_order(events: Sequence[Event]) -> list[Event]:
    """Earliest first; of several with the same times and text, the surest."""
    best: dict[tuple[float, float, str], Event] = {}
    for event in events:
        key = (round(event.start, 3), round(event.end, 3), event.text)
        best[key] = surer(best[key], event) if key in best else event
    return sorted(best.values(), key=lambda e: (e.start, e.end))


def surer(one: Event, other: Event) -> Event:
    """The event of higher confidence; the first when they are alike."""
    return other if (other.confidence or 0.0) > (one.confidence or 0.0) else one


def join(one: Event, other: Event) -> Event:
    """Both as one event: the text of the longer one, and its confidence the higher."""
    longer = one if one.end - one.start >= other.end - other.start else other
    sure = surer(one, other).confidence
    return Event(min(one.start, other.start), max(one.end, other.end), longer.text, sure)


def merge_overlaps(events: Sequence[Event], gap: float = 0.0) -> list[Event]:
    """Events that overlap, or are at most `gap` seconds apart, as one each, with both texts where they differ.

    Example: merge_overlaps([Event(0, 3, "a"), Event(2, 5, "b")]) == [Event(0, 5, "a; b")].
    """
    if gap < 0:
        raise ValueError(f"gap={gap}: expected seconds, 0 or more")
    merged: list[Event] = []
    texts: list[dict[str, None]] = []
    for event in in_order(events):
        if merged and event.start <= merged[-1].end + gap:
            texts[-1].setdefault(event.text)
            merged[-1] = replace(join(merged[-1], event), text="; ".join(text for text in texts[-1] if text))
        else:
            merged.append(event)
            texts.append({event.text: None})
    return merged


def merge_same(events: Sequence[Event], gap: float = 0.0) -> list[Event]:
    """Events that two windows of a film told of both, as one each: alike in words, and either at the same time or one
    going on where the other ends (at most `gap` seconds apart)."""
    merged: list[Event] = []
    for event in in_order(events):
        k = next(
            (k for k in range(len(merged) - 1, max(-1, len(merged) - 5), -1) if _same(merged[k], event, gap)), None
        )
        if k is None:
            merged.append(event)
        else:
            merged[k] = join(merged[k], event)
    return in_order(merged)


def _same(one: Event, other: Event, gap: float) -> bool:
    if other.start > one.end + gap or not _alike(one.text, other.text):
        return False
    if one.text.lower() == other.text.lower():
        return True
    union = max(one.end, other.end) - min(one.start, other.start)
    both = min(one.end, other.end) - max(one.start, other.start)
    return union <= gap or both >= SAME_TIME * union or abs(other.start - one.end) <= gap


def _alike(one: str, other: str) -> bool:
    words = [set(re.findall(r"\w+", text.lower())) for text in (one, other)]
    union = words[0] | words[1]
    return not union or len(words[0] & words[1]) >= SAME_WORDS * len(union)
