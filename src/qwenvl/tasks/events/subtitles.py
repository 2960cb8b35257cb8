"""Events -> JSON, SRT and WebVTT texts."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from qwenvl.tasks.events.event import Event
from qwenvl.tasks.events.times import written

SHOWN = 2.0  # seconds that the subtitle of a moment, or of something shorter, stands


def to_json(events: Sequence[Event]) -> str:
    """A list of {"start", "end" (seconds), "text", "confidence" (where known)}."""
    return json.dumps([event.to_dict() for event in events], ensure_ascii=False, indent=2)


def to_srt(events: Sequence[Event], shown: float = SHOWN) -> str:
    """SubRip: numbered, 00:00:01,000 --> 00:00:03,200. shown: the least seconds that a subtitle stands."""
    cues = []
    for number, event in enumerate(events, 1):
        begin, end = written(event.start, ","), written(_until(event, shown), ",")
        cues.append(f"{number}\n{begin} --> {end}\n{_line(event)}\n")
    return "\n".join(cues)


def to_vtt(events: Sequence[Event], shown: float = SHOWN) -> str:
    """WebVTT, for <track> of web pages. shown: as in to_srt."""
    cues = ["WEBVTT\n"]
    for event in events:
        begin, end = written(event.start), written(_until(event, shown))
        cues.append(f"{begin} --> {end}\n{html.escape(_line(event), quote=False)}\n")
    return "\n".join(cues)


def _until(event: Event, shown: float) -> float:
    return max(event.end, event.start + shown)


def _line(event: Event) -> str:
    """The text on one line (an empty one would end the subtitle); an arrow in it would begin another."""
    return " ".join(event.text.split()).replace("-->", "->") or "(no description)"
