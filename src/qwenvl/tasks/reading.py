"""Reading: a picture -> its text, whole, or line by line (word by word) with boxes in ORIGINAL pixels.

In: an assistant and a picture. Out: text, or Boxes whose label is what stands there. For layout (headings, tables,
formulas) see `tasks/parsing/`; this is for signs, screens, receipts and single pages of plain text.
Does not know engines.

    read_text(assistant, "sign.jpg")                       "NO ENTRY\nexcept bicycles"
    spot_text(assistant, "sign.jpg", level="word")         [Box("NO", ...), Box("ENTRY", ...), ...]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from qwenvl.tasks.grounding import LOOP, Answered, check_one_picture, frame_of, least_pixels, places_of
from qwenvl.tasks.places import Box, reading_order, without_repeats
from qwenvl.types import LoopRule, SamplingParams

# The wording of the official cookbook.
READ_PROMPT = "Read all the text in the image."
SPOT_PROMPT = "Spotting all the text in the image with {level}-level, and output in JSON format."
MIN_TOKENS = 1024
MAX_NEW_TOKENS = 8192

Level = Literal["line", "word"]
_FENCE = re.compile(r"\s*```\w*\n(.*?)\n?```\s*", re.DOTALL)


class Reader(Protocol):
    """What reading needs of an Assistant."""

    def ask(
        self,
        media: Sequence[Any],
        question: str,
        sampling: SamplingParams | None = None,
        *,
        min_pixels: int | None = None,
    ) -> Answered: ...


def read_text(
    assistant: Reader, image: Any, *, min_tokens: int | None = MIN_TOKENS, sampling: SamplingParams | None = None
) -> str:
    """All the text of the picture in reading order, lines as they stand; "" where the model writes nothing.

    A fence around the whole answer is taken off. min_tokens: as in `locate`. sampling: greedy unless given, up to
    8,192 tokens; text that is longer ends there. Raises ValueError for a video or several pictures.
    """
    check_one_picture(image)
    sampling = sampling or SamplingParams(max_new_tokens=MAX_NEW_TOKENS, stop_loops=LoopRule())
    answer = assistant.ask([image], READ_PROMPT, sampling, min_pixels=least_pixels(assistant, min_tokens))
    fenced = _FENCE.fullmatch(answer.text)
    return (fenced[1] if fenced else answer.text).strip()


def spot_text(
    assistant: Reader,
    image: Any,
    level: Level = "line",
    *,
    in_reading_order: bool = False,
    min_tokens: int | None = MIN_TOKENS,
    confidence: bool = True,
    sampling: SamplingParams | None = None,
) -> list[Box]:
    """Every line (or word) of text with its box; the label is the text.

    in_reading_order: line by line from the top, in place of the model's own order, which knows columns. The rest as in
    `locate`; an item without text is left out. Raises ValueError for another level.
    """
    check_one_picture(image)
    if level not in ("line", "word"):
        raise ValueError(f"level={level!r} is not known: expected 'line' or 'word'")
    sampling = sampling or SamplingParams(max_new_tokens=MAX_NEW_TOKENS, stop_loops=LOOP)
    if confidence and not sampling.logprobs:
        sampling = replace(sampling, logprobs=True)
    question = SPOT_PROMPT.format(level=level)
    answer = assistant.ask([image], question, sampling, min_pixels=least_pixels(assistant, min_tokens))
    places = places_of(answer, 0, frame_of(assistant))
    boxes = [place for place in places if isinstance(place, Box) and place.label]
    if not confidence:
        boxes = [replace(box, confidence=None) for box in boxes]
    boxes = list(without_repeats(boxes))
    return reading_order(boxes) if in_reading_order else boxes
