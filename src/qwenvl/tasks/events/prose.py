"""Sentences, lists, subtitles and tables that tell times -> drafts of events.

A draft is what stands written, in the order of the text: which times belong together and what they are said of. What
they mean in seconds of a clip is settled in answers.py, over the whole answer.

    The event occurs between 2.0 and 5.5 seconds.     2.0 to 5.5
    [00:03 - 00:07] A man opens the door.             0:03 to 0:07, "A man opens the door."
    The red circle appears at 2.5 seconds.            the moment 2.5
    It is there from the start.                       from the begin of the clip
    It starts at 3s and lasts for 4 seconds.          3 to 7
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwenvl.tasks.events.times import Mark, find_marks

_NEAR = 48  # characters around a time that are looked at
_DASH = r"(?:-{1,2}>?|\u2013|\u2014|\u2212|~|→|=>|\.{2,3}|…)"
# between the two times of a range; "and" and "," only count after a word or bracket that opens one
_RANGE = re.compile(
    rf"[\s\"'*`)\]>]*(?:{_DASH}|to|until|till|til|through|thru|up\sto)(?:\s(?:the|about|around|approximately|second|t=))?"
    r"[\s\"'*`(\[<~]*",
    re.IGNORECASE,
)
_LOOSE = re.compile(r"[\s\"'*`>\])]*(?:,|;|&|\||and|>\s?<)[\s\"'*`<\[(]*(?:the\s)?", re.IGNORECASE)
_OPEN = re.compile(r"(?:between(?:\sthe|\sseconds?|\sabout|\sframes?)*|[\[(<{])[\s\"'*`~]*$", re.IGNORECASE)
_FROM = re.compile(
    r"(?:\b(?:from|between|during|within)(?:\sthe|\sseconds?|\sabout|\saround)*|[\[(<{:|])[\s\"'*`~]*$", re.IGNORECASE
)
_BAND = re.compile(r"^[\s|]*\|")  # a row of a table
_END_WORD = re.compile(
    r"\b(?:end(?:s|ed|ing)?(?:[_ ]?(?:time|at|timestamp))*|finish(?:es|ed)?|stop(?:s|ped)?|disappears?|vanish(?:es)?|"
    r"until|lasts?\suntil|conclud(?:es|ing))\b",
    re.IGNORECASE,
)
_START_WORD = re.compile(
    r"\b(?:start(?:s|ed|ing)?|begin(?:s|ning)?|began|then|next|another|again)\b|\n\s*\n", re.IGNORECASE
)
_DURATION = re.compile(
    r"\b(?:for|lasts?|lasting|duration(?:\sof|\sis|:)?|takes?|over\sa\speriod\sof)(?:\s(?:about|around|approximately|a|"
    r"another|the\snext))?[\s\"'*`]*$",
    re.IGNORECASE,
)
_LENGTH_BEFORE = re.compile(
    r"\b(?:video|clip|footage)(?:\sitself)?\s(?:is|lasts|runs|has\sa\s(?:length|duration)\sof)\s*$", re.IGNORECASE
)
_LENGTH_AFTER = re.compile(
    r"[\s-]*(?:long\b|(?:video|clip|footage|mark\b.{0,3}long)\b|in\s(?:length|total)\b)", re.IGNORECASE
)
_AT = re.compile(
    r"\b(?:at|around|about|approximately|near|starts?|time(?:stamp)?s?|seconds?|is|appears|=|:)[\s\"'*`(\[<~≈:]*$",
    re.IGNORECASE,
)
_UNTIL = re.compile(
    r"\b(?:until|till|up\sto|before)(?:\sthe|\sabout|\saround|\sapproximately)*[\s\"'*`]*$", re.IGNORECASE
)
_PART = re.compile(r"\b(?:first|initial|opening|last|final)\s(?:about\s)?$", re.IGNORECASE)
_ONWARDS = re.compile(
    r"[\s\"'*`,)\]]*(?:on\b|onwards?\b|and\s(?:on(?:wards?)?|later|after)\b|"
    rf"(?:(?:to|until|till|{_DASH})\s*(?:the\s)?(?:very\s)?(?:end\b|finish\b|video\sends\b|clip\sends\b)))",
    re.IGNORECASE,
)
_FROM_START = re.compile(
    r"\b(?:from|since)\s(?:the\s)?(?:very\s)?(?:start|beginning|outset)\b"
    r"|\b(?:at|in)\sthe\s(?:very\s)?(?:start|beginning)\sof\sthe\s(?:video|clip)\b"
    r"|\b(?P<whole>throughout\b|(?:the\s|during\sthe\s|for\sthe\s)(?:entire|whole)\s(?:video|clip|duration)\b)",
    re.IGNORECASE,
)
_TO_END = re.compile(
    rf"[\s\"'*`,]*(?:and\s)?(?:to|until|till|{_DASH})\s*(?:the\s)?(?:very\s)?(?:end\b|finish\b)", re.IGNORECASE
)
_BULLET = re.compile(r"^[\s>#|]*(?:[-*•\u2013]\s+|\d{1,3}[.)]\s+|\*{1,2})?[\s*_`\"'|(\[<]*")
_LABEL = re.compile(
    r"(?:event|scene|segment|step|time(?:stamp)?s?|clip|activity|start|range|when|it\sis|the)?\s*#?\d{0,3}\s*[:.)\-\u2013\u2014]{0,2}"
    r"[\s*_`\"'(\[<]*(?:from|at|between|in|during|until|the)?[\s*_`\"'(\[<|]*",
    re.IGNORECASE,
)
_STOP = re.compile(r"[.!?][\"')\]*]*\s|\n")
_BRACKET = re.compile(r"\s*(?:[(\[<|:\u2013\u2014]|\s-)[\s*_`\"']*$")
_LETTERS = re.compile(r"[^\W\d_]{2}")
_BETWEEN = re.compile(
    r"\b(?:and|between|from|to|the|at|until|then|also|in|on|again|or|seconds?|it|is)\b", re.IGNORECASE
)
_LONGEST = 400  # characters of a sentence
_AROUND = " \t\r*_`\"'|()[]<>{}-\u2013\u2014:;,~→"


@dataclass(frozen=True)
class Draft:
    """An event as it is written. start None: the begin of the clip. end None: the moment `start`, unless to_end.
    length: how long it lasts, where that is told in place of an end, or of a begin. begin: where in the text it
    stands."""

    start: Mark | None
    end: Mark | None = None
    text: str = ""
    to_end: bool = False
    length: Mark | None = None
    begin: int = 0


def read_prose(text: str) -> list[Draft]:
    """The events that a text tells, in its order."""
    marks = find_marks(text)
    found: list[tuple[Draft, int]] = []  # with the character where its times end
    i = 0
    while i < len(marks):
        mark, before = marks[i], text[max(0, marks[i].begin - _NEAR) : marks[i].begin]
        following = marks[i + 1] if i + 1 < len(marks) else None
        if _is_length(text, mark, before):
            i += 1
        elif mark.kind != "bare" and (part := _PART.search(before)):
            last = part.group().lower().startswith(("last", "final"))
            draft = Draft(None, None if last else mark, "", last, mark if last else None, mark.begin)
            found.append((draft, mark.end))
            i += 1
        elif found and mark.kind != "bare" and _DURATION.search(before):
            draft, end = found[-1]
            if draft.end is None and not draft.to_end:
                found[-1] = (replace(draft, length=mark), max(end, mark.end))
            i += 1
        elif _DURATION.search(before):
            i += 1
        elif following is not None and _is_range(text, mark, following, before):
            start = _like(mark, following)
            found.append((Draft(start, _like(following, mark), begin=mark.begin), following.end))
            i += 2
        elif mark.kind == "bare" and not _is_moment(text, mark, before):
            i += 1
        else:
            draft = Draft(mark, begin=mark.begin)
            if _UNTIL.search(before) or _since_start(text, mark):
                draft = replace(draft, start=None, end=mark)
            onwards = _ONWARDS.match(text, mark.end)
            if onwards:
                draft = replace(draft, to_end=True)
            found.append((draft, onwards.end() if onwards else mark.end))
            i += 1
    found += _edges(text, found)
    found.sort(key=lambda one: one[0].begin)
    return [replace(draft, text=_said(text, found, k)) for k, (draft, _) in enumerate(found)]


def _is_length(text: str, mark: Mark, before: str) -> bool:
    """Whether it is the length of the video that is told."""
    return bool(mark.kind != "bare" and (_LENGTH_BEFORE.search(before) or _LENGTH_AFTER.match(text, mark.end)))


def _is_range(text: str, first: Mark, second: Mark, before: str) -> bool:
    """Whether two times that follow each other are the begin and the end of one thing."""
    kinds = {first.kind, second.kind}
    if second.begin - first.end > _NEAR or kinds == {"bare", "clock"}:
        return False
    gap = text[first.end : second.begin]
    both_bare = first.kind == second.kind == "bare"
    if _RANGE.fullmatch(gap):
        pointed = all("." in text[mark.begin : mark.end] for mark in (first, second))
        return not both_bare or pointed or _FROM.search(before) is not None or _alone(text)
    if _LOOSE.fullmatch(gap):
        line = text[max(0, first.begin - _LONGEST) : first.begin].rpartition("\n")[2]
        opened = _OPEN.search(before) is not None or _BAND.match(line) is not None
        return opened or (both_bare and _alone(text))
    if both_bare:
        return _alone(text) and not gap.strip()
    ends = _END_WORD.search(gap)
    return ends is not None and not _START_WORD.search(gap, ends.end())


def _alone(text: str) -> bool:
    """Whether the whole answer is numbers."""
    return len(text) <= _NEAR and not re.search(r"[A-Za-z]{2}", text)


def _is_moment(text: str, mark: Mark, before: str) -> bool:
    """Whether a plain number is a time: "at 3.5." and an answer that is a number are, "3 dogs" is not."""
    rest = text[mark.end : mark.end + 3].strip(" \"'*`)]>")
    return _alone(text) or (bool(_AT.search(before)) and not rest[:1].isalpha())


def _like(mark: Mark, other: Mark) -> Mark:
    """A plain number beside a time with a unit counts in that unit: "3 to 7 minutes", "frames 30 to 60"."""
    if mark.kind != "bare" or other.kind not in ("unit", "frame"):
        return mark
    if other.kind == "frame":
        return replace(mark, kind="frame")
    return replace(mark, seconds=mark.seconds * other.unit, kind="unit", unit=other.unit)


def _since_start(text: str, mark: Mark) -> bool:
    """Whether "from the start to" stands before a time."""
    before = text[max(0, mark.begin - _NEAR) : mark.begin]
    return any(_RANGE.fullmatch(before, start.end()) for start in _FROM_START.finditer(before))


def _edges(text: str, found: Sequence[tuple[Draft, int]]) -> list[tuple[Draft, int]]:
    """Events that are told by the begin and the end of the clip alone."""
    edges: list[tuple[Draft, int]] = []
    begins = [draft.begin for draft, _ in found]
    for start in _FROM_START.finditer(text):
        end = _TO_END.match(text, start.end())
        if start["whole"]:
            if not found:
                edges.append((Draft(None, to_end=True, begin=start.start()), start.end()))
        elif end:
            edges.append((Draft(None, to_end=True, begin=start.start()), end.end()))
        elif not _told_by(found, bisect_left(begins, start.end()), start.end()):
            edges.append((Draft(None, begin=start.start()), start.end()))
    return edges


def _told_by(found: Sequence[tuple[Draft, int]], k: int, end: int) -> bool:
    """Whether the next time is the end of what was there from the start."""
    return k < len(found) and found[k][0].start is None and found[k][0].begin - end <= _NEAR


def _said(text: str, found: Sequence[tuple[Draft, int]], k: int) -> str:
    """What the k-th event is said to be: the rest of a line that its times begin, the line below them, what stands
    before their brackets, or the sentence that they are part of."""
    draft, end = found[k]
    low = found[k - 1][1] if k else 0
    high = found[k + 1][0].begin if k + 1 < len(found) else len(text)
    line_end = _position(text.find("\n", end, high), len(text))
    head = text[max(low, text.rfind("\n", low, draft.begin) + 1) : draft.begin]
    if _LABEL.fullmatch(_BULLET.sub("", head, count=1)):
        tail = text[end : min(line_end, high)]
        if high < line_end:  # another event begins in this line: its own sentence is not ours
            stops = [m.end() for m in _STOP.finditer(tail)]
            tail = tail[: stops[-1]] if stops else tail
        if line_end < high and not _LETTERS.search(tail):  # the times have a line of their own
            tail = text[line_end:high].strip().split("\n")[0]
        return _clean(tail) if _LETTERS.search(tail) else ""
    first = max([m.end() for m in _STOP.finditer(text, max(0, draft.begin - _LONGEST), draft.begin)], default=0)
    first = max(first, draft.begin - _LONGEST)
    stop = _STOP.search(text, end, end + _LONGEST)
    last = stop.start() + 1 if stop else min(len(text), end + _LONGEST)
    if _BRACKET.search(text, first, draft.begin) and not _LETTERS.search(text, end, min(last, high)):
        return _clean(_BRACKET.sub("", text[max(first, low) : draft.begin]))
    return _clean(text[first:last])


def _position(found: int, otherwise: int) -> int:
    return otherwise if found < 0 else found


def _clean(text: str) -> str:
    """Without signs around it; empty where nothing but times and the words between them is left."""
    text = " ".join(_BULLET.sub("", text, count=1).strip(_AROUND).split())
    rest = text
    for mark in reversed(find_marks(text)):
        rest = rest[: mark.begin] + rest[mark.end :]
    return text if _LETTERS.search(_BETWEEN.sub(" ", rest)) else ""
