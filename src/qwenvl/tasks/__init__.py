"""Room tasks: a picture and a wish in, typed objects in ORIGINAL pixels out.

In: text and sizes of answers, or a callable that answers. Out: boxes, points, annotated pictures.
Does not know how an answer is made: only ask.py touches the engine, to give shell and Python one place that loads
a model once and asks it often.
"""

from __future__ import annotations

from qwenvl.tasks.answer import Answer, AnswerStream
from qwenvl.tasks.ask import Assistant
from qwenvl.tasks.draw import draw_boxes
from qwenvl.tasks.grounding import Box, Point, locate, parse_boxes, places_to_dicts

__all__ = [
    "Answer",
    "AnswerStream",
    "Assistant",
    "Box",
    "Point",
    "draw_boxes",
    "locate",
    "parse_boxes",
    "places_to_dicts",
]
