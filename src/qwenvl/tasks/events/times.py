"""Times as they stand in texts -> seconds: marks with the characters in which they stand.

Read are 01:02.50, 1:02:03.4, 00:00:03,200 (subtitles), 3.2s, <3.2s>, 3.2 seconds, 1 minute and 20 seconds, 1m20s, two
minutes, 250 ms, "the 5th second", "second 5", frame 12 (where the rate is known), and plain numbers, which only count
where what stands around them says that they are times (see prose.py).

Models that were told 'mm:ss.ff' at times write mm:ss:ff. Where the usual reading of an answer's times lies beyond the
clip and this one does not, this one is meant, for all times of the answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["clock", "unit", "second", "frame", "bare"]

BEYOND = 1.0  # seconds after the end of a clip that a time may lie and still belong to it
MOST_DIGITS = 9
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_NUMBER = rf"\d{{1,{MOST_DIGITS}}}(?:\.\d{{1,{MOST_DIGITS}}})?"
_WORD = (
    rf"(?:(?:{'|'.join(_TENS)})(?:[ -](?:{'|'.join(_ONES[1:10])}))?|{'|'.join(sorted(_ONES, key=len, reverse=True))})"
)
_CLOCK = r"\d{1,4}:\d{1,2}(?::\d{1,2}){0,2}(?:[.,]\d{1,6}(?![\d:]))?"
_MARK = re.compile(
    rf"(?<![\d.])(?P<clock>{_CLOCK})(?!:?\d)(?:\s?s(?:ec(?:ond)?s?)?(?![A-Za-z]))?"
    r"|(?<![\w.])(?P<ordinal>\d{1,6})(?:st|nd|rd|th)[ -](?P<ordinal_of>second|minute|frame)(?![A-Za-z])"
    r"|(?<![A-Za-z])frames?\s(?:number\s|no\.\s?)?#?(?P<frame>\d{1,9})(?![\w.]\d)"
    rf"|(?<![A-Za-z])(?:seconds?\s|t\s?=\s?)(?P<second>{_NUMBER})(?![\d:])(?!\s?(?:seconds?|secs?|s|minutes?|mins?)\b)"
    rf"|(?:(?<![\d.])(?P<number>{_NUMBER})|(?<![A-Za-z])(?P<word>{_WORD}))(?P<gap>[ -]?)"
    r"(?P<unit>hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s|milliseconds?|millisecs?|ms)(?![A-Za-z_])"
    rf"|(?<![\w.#$])(?<!\d:)(?P<bare>{_NUMBER})(?![\w:%]|\.\d)",
    re.IGNORECASE,
)
_JOINED = re.compile(r"[\s,]{0,3}(?:and\s)?", re.IGNORECASE)
_WHOLE = re.compile(r"\s*<?\s*(?P<sign>[-+]?)\s*(?P<rest>[^<>]{1,60}?)\s*>?\s*")


@dataclass(frozen=True)
class Mark:
    """A time in a text. begin, end: its characters. seconds: in the usual reading; unit: how many seconds one of its
    unit has. parts: of a time with colons and no fraction; frame numbers keep their number in `seconds` until the rate
    is known (see settle)."""

    begin: int
    end: int
    seconds: float
    kind: Kind
    unit: float = 1.0
    parts: tuple[int, ...] = ()


def find_marks(text: str) -> list[Mark]:
    """All times of a text in their order, plain numbers among them."""
    marks: list[Mark] = []
    for found in _MARK.finditer(text):
        mark = _mark(found)
        last = marks[-1] if marks else None
        if (
            last is not None
            and last.kind == mark.kind == "unit"
            and mark.unit < last.unit
            and _JOINED.fullmatch(text, last.end, mark.begin)
        ):
            marks[-1] = replace(last, end=mark.end, seconds=last.seconds + mark.seconds, unit=mark.unit)
        else:
            marks.append(mark)
    # "5 m" alone are metres as likely as minutes
    return [m if not _metres(text, m) else replace(m, kind="bare", unit=1.0, seconds=m.seconds / 60) for m in marks]


def _metres(text: str, mark: Mark) -> bool:
    return (
        mark.kind == "unit" and mark.unit == 60.0 and text[mark.end - 1] == "m" and text[mark.end - 2] in "0123456789 "
    )


def _mark(found: re.Match[str]) -> Mark:
    begin, end = found.span()
    if found["clock"]:
        seconds, parts = clock(found["clock"])
        return Mark(begin, end, seconds, "clock", parts=parts)
    if found["ordinal"]:
        of = found["ordinal_of"].lower()
        unit = 60.0 if of == "minute" else 1.0
        return Mark(begin, end, float(found["ordinal"]) * unit, "frame" if of == "frame" else "second", unit)
    if found["frame"]:
        return Mark(begin, end, float(found["frame"]), "frame")
    if found["second"]:
        return Mark(begin, end, float(found["second"]), "second")
    if found["unit"]:
        name = found["unit"].lower()
        unit = _UNITS["ms" if name.startswith(("milli", "ms")) else name[0]]
        value = float(found["number"]) if found["number"] else float(_spelt(found["word"].lower()))
        return Mark(begin, end, value * unit, "unit", unit)
    return Mark(begin, end, float(found["bare"]), "bare")


def clock(text: str) -> tuple[float, tuple[int, ...]]:
    """Seconds of 1:02.5, 1:02:03 or 1:02:03:12 (whose last part, frames of a timecode, is left out), and its whole
    parts where nothing stands behind a point."""
    whole, point, fraction = text.replace(",", ".").partition(".")
    parts = tuple(int(part) for part in whole.split(":"))
    seconds = 0.0
    for part in parts[:3]:
        seconds = seconds * 60 + part
    return (seconds + float("0." + fraction), ()) if point else (seconds, parts)


def _spelt(word: str) -> int:
    """twenty-five -> 25."""
    tens, _, ones = word.replace(" ", "-").partition("-")
    if tens in _TENS:
        return 20 + 10 * _TENS.index(tens) + (_ONES.index(ones) if ones else 0)
    return _ONES.index(tens)


def settle(marks: Sequence[Mark], duration: float | None, fps: float | None) -> list[float | None]:
    """Seconds of the marks of one answer with what only the clip can tell: frame numbers (None without fps), and
    mm:ss:ff or ss:ff where the usual reading lies beyond the clip."""
    whole = [m for m in marks if m.parts]
    latest = math.inf if duration is None else duration + BEYOND
    hundredths = any(m.seconds > latest for m in whole) and all(_hundredths(m.parts) <= latest for m in whole)

    def seconds(mark: Mark) -> float | None:
        if mark.kind == "frame":
            return mark.seconds / fps if fps else None
        return _hundredths(mark.parts) if hundredths and mark.parts else mark.seconds

    return [seconds(mark) for mark in marks]


def _hundredths(parts: Sequence[int]) -> float:
    """Seconds when the last part counts hundredths."""
    seconds = 0.0
    for part in parts[:-1]:
        seconds = seconds * 60 + part
    return seconds + parts[-1] / 100


def parse_time(value: Any) -> float | None:
    """Seconds of one time: a number (seconds), "00:03.20", "3.2s", "<3.2s>", "1 minute 5 seconds", "3.2"; None for what
    is none. Never negative; a time that is not finite is none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return max(0.0, float(value)) if abs(value) < 10**MOST_DIGITS and math.isfinite(value) else None
    mark = whole_mark(value) if isinstance(value, str) else None
    return None if mark is None or mark.kind == "frame" else mark.seconds


def whole_mark(text: str) -> Mark | None:
    """The mark that a text consists of, or None."""
    shape = _WHOLE.fullmatch(text)
    if shape is None:
        return None
    marks = find_marks(shape["rest"])
    if len(marks) != 1 or marks[0].end - marks[0].begin < len(shape["rest"].strip(" ~≈.")):
        return None
    return replace(marks[0], seconds=0.0, parts=()) if shape["sign"] == "-" else marks[0]


def written(seconds: float, comma: str = ".", digits: int = 3, hours: bool = True) -> str:
    """00:01:02.500; with comma="," as SRT has it, with hours=False and digits=2 the 'mm:ss.ff' of the prompt."""
    scale = 10**digits
    ticks = round(max(0.0, seconds) * scale)
    rest, fraction = divmod(ticks, scale)
    minutes, whole = divmod(rest, 60)
    if not hours:
        return f"{minutes:02d}:{whole:02d}{comma}{fraction:0{digits}d}"
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{whole:02d}{comma}{fraction:0{digits}d}"
