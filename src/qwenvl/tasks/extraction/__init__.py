"""Extraction: a picture and a schema in, an object that fits the schema out.

In: something that answers (Assistant), pictures, and a pydantic model class, a JSON Schema or names of fields. Out:
Extraction (the object, places in ORIGINAL pixels, a confidence for each field), one of several words, and grammars for
other tasks. Does not know the engine: it asks with SamplingParams(grammar=...).
"""

from __future__ import annotations

from qwenvl.tasks.extraction.extract import Extraction, ExtractionError, classify, extract, extract_many
from qwenvl.tasks.extraction.grammars import choice_grammar, labels_grammar, tool_call_grammar
from qwenvl.tasks.extraction.places import BBox2D, Point2D
from qwenvl.tasks.extraction.schemas import Wanted, wanted

__all__ = [
    "BBox2D",
    "Extraction",
    "ExtractionError",
    "Point2D",
    "Wanted",
    "choice_grammar",
    "classify",
    "extract",
    "extract_many",
    "labels_grammar",
    "tool_call_grammar",
    "wanted",
]
