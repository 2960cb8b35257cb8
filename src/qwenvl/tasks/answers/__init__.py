"""Answers as text -> the places in them: one front door for every form that models write.

In: the text of an answer, the ImageSize of the picture it speaks of, and which frame its numbers are in, where the form
does not say. Out: Box and Point in ORIGINAL pixels, in the order written; with `find_places` also where in the
text they stand. Does not know models, nor who asked.

Forms (Qwen2-VL and Qwen2.5-VL technical reports and the cookbooks beside them; each module tells its own):
    objects.py    JSON and Python, whole or damaged             pixels of the RESIZED picture (frame="resized")
    tagged.py     XML points and boxes                          the same
                  <|box_start|>(x1,y1),(x2,y2)<|box_end|>       thousandths of its sides (frame="thousandths")
    markup.py     data-bbox of QwenVL HTML                      pixels of the resized picture
    literals.py   what stands below objects.py: text -> values, with repair; for whoever reads JSON of a model
    confidence.py how sure the model was of a place

Numbers of JSON that all lie between 0 and 1 are shares of the sides. Every complete item is read, also from a text that
was cut off; an item is complete when each field that was begun is whole. What is not a place is passed over; no text is
an error. Exactly repeated items stay: `locate` drops them.

Example: in a 200 x 100 picture that the model saw as 224 x 112,
    parse_boxes('[{"bbox_2d": [56, 28, 112, 56], "label": "cup"}]', ImageSize(200, 100, 224, 112))
    -> [Box("cup", 50.0, 25.0, 100.0, 50.0, resized=(56, 28, 112, 56))]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwenvl.tasks.answers.confidence import confidence_of
from qwenvl.tasks.answers.literals import read, read_values
from qwenvl.tasks.answers.markup import html_places
from qwenvl.tasks.answers.objects import key_pattern, written_places
from qwenvl.tasks.answers.tagged import bracketed_places, tagged_places
from qwenvl.tasks.answers.written import Written, numbers_within
from qwenvl.tasks.places import FRAMES, Frame, Place, frame_sides, make_place
from qwenvl.types import ImageSize

__all__ = ["Found", "confidence_of", "find_places", "parse_boxes", "read_values", "with_confidence"]

_SLACK = 1.02  # how far numbers that nothing marks as a place may lie beyond the picture


@dataclass(frozen=True)
class Found:
    """A place and where it is written."""

    place: Place
    written: Written


def parse_boxes(text: str, size: ImageSize, frame: Frame = "auto") -> list[Place]:
    """The boxes and points written in `text`, in the order written, in pixels of the original picture.

    Corners are ordered and clamped to the picture; a box with no area within it is left out.
    frame: what the numbers mean, in place of what their form says; ValueError for a word that is none.
    """
    return [found.place for found in find_places(text, size, frame)]


def find_places(text: str, size: ImageSize, frame: Frame = "auto") -> list[Found]:
    """As `parse_boxes`, each with the characters that wrote it."""
    if frame not in FRAMES:
        raise ValueError(f"frame={frame!r} is not known: expected one of {', '.join(FRAMES)}")
    objects = written_places(text, read(text, key_pattern()))
    written = _outermost(objects, tagged_places(text), html_places(text))
    for candidates in (
        [one for one in written if one.sure],
        [one for one in written if not one.sure],
        bracketed_places(text),
        _whole_answer(text),
    ):
        found = _places(candidates, size, frame)
        if found:
            return found
    return []


def with_confidence(
    found: Sequence[Found], offsets: Sequence[tuple[int, int]], logprobs: Sequence[float] | None
) -> list[Place]:
    """The places with their `confidence`. offsets: the characters of the text that each token wrote; logprobs: of the
    tokens, or None, which leaves all unknown."""
    if logprobs is None:
        return [one.place for one in found]
    return [replace(one.place, confidence=confidence_of(one.written.numbers, offsets, logprobs)) for one in found]


def _places(written: Sequence[Written], size: ImageSize, frame: Frame) -> list[Found]:
    shares = frame == "auto" and _are_shares(written)
    found = []
    for one in written:
        own = frame if frame != "auto" else "shares" if shares and one.frame == "resized" else one.frame
        if one.sure or _fits(one.values, size, own):
            try:
                found.append(Found(make_place(one.label, one.values, size, own, one.extra), one))
            except ValueError:  # no area within the picture, or a number without an end
                continue
    return found


def _are_shares(written: Sequence[Written]) -> bool:
    """Whether numbers that should be pixels are shares of the sides: all from 0 to 1, and not all 0 or 1."""
    values = [value for one in written if one.frame == "resized" for value in one.values]
    return all(0 <= value <= 1 for value in values) and any(0 < value < 1 for value in values)


def _fits(values: Sequence[float], size: ImageSize, frame: Frame) -> bool:
    """Whether numbers that nothing says are a place could be one."""
    wide, high = frame_sides(size, frame)
    inside = all(0 <= x <= wide * _SLACK for x in values[0::2]) and all(0 <= y <= high * _SLACK for y in values[1::2])
    return inside and (len(values) != 4 or (values[0] < values[2] and values[1] < values[3]))


def _outermost(*forms: list[Written]) -> list[Written]:
    """Places of several forms in the order of the text. What stands within one of another form is a part of that one: a
    tag within a label, or numbers in brackets between tags."""
    every = [(one, form) for form, written in enumerate(forms) for one in written]
    every.sort(key=lambda pair: (pair[0].start, -pair[0].end))
    reach = [0] * len(forms)  # how far the places of each form reach
    kept = []
    for one, form in every:
        if all(one.at >= far for other, far in enumerate(reach) if other != form):
            kept.append(one)
            reach[form] = max(reach[form], one.end)
    return sorted(kept, key=lambda one: one.at)


def _whole_answer(text: str) -> list[Written]:
    """[x, y] or (x, y), where the answer is nothing else."""
    start, end = len(text) - len(text.lstrip("` \n\tjson")), len(text.rstrip("` \n\t."))
    if end - start < 5 or text[start] not in "[(" or text[end - 1] not in "])":
        return []
    numbers = numbers_within(text, start, end)
    if numbers is None or len(numbers) not in (2, 4):
        return []
    return [Written("", tuple(numbers), "resized", start, end, sure=False)]
