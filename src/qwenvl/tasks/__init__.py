"""Room tasks: a picture and a wish in, typed objects in ORIGINAL pixels out.

In: text and sizes of answers, or a callable that answers. Out: boxes, points, annotated pictures.
Does not know how an answer is made: only ask.py touches the engine, to give shell and Python one place that loads
a model once and asks it often.
"""

from __future__ import annotations

from qwenvl.tasks.answer import Answer, AnswerStream
from qwenvl.tasks.answers import parse_boxes
from qwenvl.tasks.ask import Assistant
from qwenvl.tasks.calls import CallStream, ToolCall, parse_calls
from qwenvl.tasks.draw import draw_boxes
from qwenvl.tasks.events.answers import parse_events
from qwenvl.tasks.events.event import Event
from qwenvl.tasks.exports import to_coco, to_detections, to_yolo
from qwenvl.tasks.extraction import Extraction, classify, extract
from qwenvl.tasks.grounding import locate, places_of
from qwenvl.tasks.places import Box, Point, places_to_dicts
from qwenvl.tasks.reading import read_text, spot_text

__all__ = [
    "Answer",
    "AnswerStream",
    "Assistant",
    "Box",
    "CallStream",
    "Event",
    "Extraction",
    "Point",
    "ToolCall",
    "classify",
    "draw_boxes",
    "extract",
    "locate",
    "parse_boxes",
    "parse_calls",
    "parse_events",
    "places_of",
    "places_to_dicts",
    "read_text",
    "spot_text",
    "to_coco",
    "to_detections",
    "to_yolo",
]
