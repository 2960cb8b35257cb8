"""Events in an answer: its text -> spans in seconds of the clip that the model saw.

In: the text, and where they are known the clip's length and rate. Out: Span objects in order, within the clip.
Does not know files or models: clock.py turns a clip's seconds into those of the file.

Seconds, not frames: the model tells time by the positions of its frames, so a plain number in an answer is seconds.
Only what is called a frame ("frame 12", "start_frame") counts sampled frames, and needs `fps`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl.tasks.answers.literals import read
from qwenvl.tasks.events.prose import Draft, read_prose
from qwenvl.tasks.events.records import read_fields, read_records
from qwenvl.tasks.events.times import BEYOND, Mark, find_marks, settle

_FENCE = re.compile(r"```\w*")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_WORD = re.compile(r"[A-Za-z]{3}|\d:\d")
_AHEAD = 64  # times among which the next one of an event is looked for


@dataclass(frozen=True)
class Span:
    """An event as an answer tells it: 0 <= start <= end in seconds from the clip's first frame; equal for a moment.

    from_start: the answer says that it was there already when the clip began. to_end: that it lasts until its end.
    places: the characters [begin, end) of the answer in which its times stand.
    """

    start: float
    end: float
    text: str = ""
    from_start: bool = False
    to_end: bool = False
    places: tuple[tuple[int, int], ...] = ()


def parse_events(text: str, duration: float | None = None, fps: float | None = None) -> list[Span]:
    """The events that an answer tells, earliest first; what tells none gives none, and nothing raises.

    duration: seconds of the clip; what begins more than a second behind its end is left out, the rest is cut to it.
    fps: frames a second of the clip, for answers that count frames. Begin and end in the wrong order are swapped; an
    event that is told twice counts once.

    Example: parse_events('[{"start_time": "00:03.20", "end_time": "00:07.00", "description": "A man sits down."}]')
    == [Span(3.2, 7.0, "A man sits down.", places=((16, 24), (40, 48)))].
    """
    drafts = read_drafts(text)
    times = [mark for draft in drafts for mark in (draft.start, draft.end, draft.length) if mark is not None]
    known = {id(mark): seconds for mark, seconds in zip(times, settle(times, duration, fps), strict=True)}
    spans: list[Span] = []
    places = _Places(text)
    for draft in drafts:
        seconds = [None if m is None else known[id(m)] for m in (draft.start, draft.end, draft.length)]
        if any(m is not None and s is None for m, s in zip((draft.start, draft.end), seconds, strict=False)):
            continue  # frames at an unknown rate
        span = _span(draft, seconds, duration, places)
        if span is not None:
            spans.append(span)
    unique = {(s.start, s.end, s.text): s for s in reversed(spans)}
    return sorted(unique.values(), key=lambda s: (s.start, s.end))


def read_drafts(text: str) -> list[Draft]:
    """The events as they are written, in the order of the text: values first, then fields, then sentences."""
    drafts: list[Draft] = []
    if "{" in text or _is_list(text):
        drafts = [draft for node in read(text) for draft in read_records(node)]
    return drafts or read_fields(text) or read_prose(text)


def _is_list(text: str) -> bool:
    """Whether a text is nothing but a list of values. "[3.2, 7] A man sits." is not, nor is "[00:03 - 00:07]"."""
    body = _FENCE.sub("", text).strip()
    return body.startswith(("[", "(")) and not _WORD.search(_QUOTED.sub("", body))


def _span(draft: Draft, seconds: Sequence[float | None], duration: float | None, places: _Places) -> Span | None:
    start, end, length = seconds
    last = float("inf") if duration is None else duration
    begin = 0.0 if start is None else start
    stop = end if end is not None else begin + (length or 0.0)
    if draft.to_end and duration is not None:
        begin = max(0.0, duration - length) if start is None and length else begin
        stop = max(duration, begin)
    elif draft.to_end and start is None and length:
        return None  # the last seconds of who knows how many
    begin, stop = min(begin, stop), max(begin, stop)
    if begin > last + BEYOND:
        return None
    where = places.of(draft)
    return Span(
        min(begin, last),
        min(stop, last),
        " ".join(draft.text.split()),
        draft.start is None and begin == 0,
        draft.to_end,
        where,
    )


class _Places:
    """Where in a text the times of its events stand; events come in the order of the text."""

    def __init__(self, text: str) -> None:
        self._marks = find_marks(text)
        self._next = 0

    def of(self, draft: Draft) -> tuple[tuple[int, int], ...]:
        """The characters of the draft's times, as far as they are found."""
        found: list[tuple[int, int]] = []
        for mark in (draft.start, draft.end, draft.length):
            if mark is None:
                continue
            if mark.end > mark.begin:
                found.append((mark.begin, mark.end))
                continue
            last = min(len(self._marks), self._next + _AHEAD)
            same = (k for k in range(self._next, last) if _same(self._marks[k], mark))
            k = next(same, None)
            if k is not None:
                found.append((self._marks[k].begin, self._marks[k].end))
                self._next = k + 1
        return tuple(found)


def _same(one: Mark, other: Mark) -> bool:
    return one.kind == other.kind and abs(one.seconds - other.seconds) < 1e-9
