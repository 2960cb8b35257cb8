"""Where an attentive reader looks: which things each word of a question and of its answer is about.

Training uses it to guide a few attention heads (recipe.py); it says nothing about how to answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwenvl.demo.questions import Exchange
from qwenvl.demo.world import Thing

_ROW = re.compile(r"(?<=\[)\d[^}]*")
_EVENT = re.compile(r"\{[^}]*")


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a text, and the things that they are about (never none)."""

    start: int
    end: int
    things: tuple[Thing, ...]


def question_spans(exchange: Exchange) -> Iterator[Span]:
    """The words of the question that name things."""
    text, begin = exchange.question.lower(), 0
    for words, things in exchange.mentions:
        found = text.find(words.lower(), begin)
        if found < 0:  # asked about in the other order
            found = text.find(words.lower())
        if found >= 0 and things:
            begin = found + len(words)
            yield Span(found, begin, things)


def answer_spans(exchange: Exchange) -> Iterator[Span]:
    """The parts of the answer: each thing's own where it speaks of them one by one, else the whole."""
    text, things = exchange.answer, exchange.targets
    if not things:
        return
    if exchange.kind in ("locate", "point"):
        parts = [match.span() for match in _ROW.finditer(text)]
    elif exchange.kind == "events":
        parts = [match.span() for match in _EVENT.finditer(text)]
    elif exchange.kind == "describe":
        parts = list(_named(text, things))
    else:
        yield Span(0, len(text), things)
        return
    for (start, end), thing in zip(parts, things, strict=True):
        yield Span(start, end, (thing,))


def _named(text: str, things: Sequence[Thing]) -> Iterator[tuple[int, int]]:
    """Where each thing is spoken of in a description: from its colour to the name of the next."""
    starts, begin = [], 0
    for thing in things:
        begin = text.index(thing.name, begin)
        starts.append(begin)
        begin += len(thing.name)
    return zip(starts, [*starts[1:], len(text)], strict=True)
