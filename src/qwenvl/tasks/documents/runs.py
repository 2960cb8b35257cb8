"""Text and marks -> well nested pieces, for writers of markup.

In: text with marks, which may overlap. Out: openings, texts and closings; a mark that another one cuts is opened again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from qwenvl.tasks.documents.blocks import Mark


class Run(NamedTuple):
    """kind "text": its text. "open" and "close": the mark, with start and end of the stretch that is marked here."""

    kind: Literal["open", "text", "close"]
    text: str = ""
    mark: Mark | None = None


def runs(text: str, marks: Sequence[Mark]) -> Iterator[Run]:
    """`text` in order, with openings and closings between its pieces."""
    within = [mark for mark in marks if 0 <= mark.start < mark.end <= len(text)]
    within.sort(key=lambda mark: (mark.start, -mark.end))
    opened: list[Mark] = []
    at = upcoming = 0
    while at < len(text) or opened:
        while opened and min(mark.end for mark in opened) <= at:  # innermost first; those it cuts open again
            again = []
            while opened and any(mark.end <= at for mark in opened):
                mark = opened.pop()
                yield Run("close", mark=mark)
                if mark.end > at:
                    again.append(mark)
            for mark in reversed(again):
                opened.append(mark)
                yield Run("open", mark=mark)
        while upcoming < len(within) and within[upcoming].start <= at:
            opened.append(within[upcoming])
            yield Run("open", mark=within[upcoming])
            upcoming += 1
        ends = [mark.end for mark in opened]
        if upcoming < len(within):
            ends.append(within[upcoming].start)
        end = min(ends, default=len(text))
        if end > at:
            yield Run("text", text=text[at:end])
        at = max(end, at)
