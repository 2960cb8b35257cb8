"""Events: a video and a wish in, what happens and when in seconds of the FILE out.

In: a video and something that answers questions about it; or the text of an answer. Out: Event objects; JSON,
subtitles, clips, a contact sheet.
Does not know how an answer is made, nor what a model is: times.py, prose.py, records.py and answers.py read answers,
film.py shows the video a stretch at a time, asking.py and search.py ask.
"""

from __future__ import annotations

from qwenvl.tasks.events.answers import Span, parse_events
from qwenvl.tasks.events.cut import cut_clips
from qwenvl.tasks.events.event import Event, merge_overlaps
from qwenvl.tasks.events.find import events
from qwenvl.tasks.events.sheet import contact_sheet
from qwenvl.tasks.events.subtitles import to_json, to_srt, to_vtt

__all__ = [
    "Event",
    "Span",
    "contact_sheet",
    "cut_clips",
    "events",
    "merge_overlaps",
    "parse_events",
    "to_json",
    "to_srt",
    "to_vtt",
]
