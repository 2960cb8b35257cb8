"""Answers: what a model wrote about pictures and videos, with their sizes and times.

In: a Completion of the engine, and what the question was about. Out: Answer, whole or piece by piece; which token wrote
which characters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from qwenvl.tasks.grounding import places_of
from qwenvl.tasks.places import Box, Frame, Point, places_to_dicts
from qwenvl.types import Completion, ImageSize

if TYPE_CHECKING:
    from qwenvl.engine import Request
    from qwenvl.engine.detokenizer import Decoder


@dataclass
class Answer:
    """An answer and what it is about. sizes: of the pictures, in order; video_sizes and video_times (seconds
    of the frames in their file) of the videos.

    seconds: from the question to the last token; first_token_seconds: to the first one. Loading is not counted.
    frame: what the model's coordinates count (places.Frame).
    """

    completion: Completion
    sizes: list[ImageSize] = field(default_factory=list)
    video_sizes: list[ImageSize] = field(default_factory=list)
    video_times: list[tuple[float, ...]] = field(default_factory=list)
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    frame: Frame = "auto"
    tokenizer: Decoder | None = field(default=None, repr=False, compare=False)

    @property
    def text(self) -> str:
        return self.completion.text

    @cached_property
    def raw(self) -> str:
        """The text with its control tokens, such as the <|box_start|> of Qwen2-VL, which `text` leaves out; the same
        text where no tokenizer is known."""
        if self.tokenizer is None:
            return self.text
        return self.tokenizer.decode(self.completion.token_ids, skip_special_tokens=False)

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """For every token id of the completion the characters [start, end) of `raw` that it wrote; tokens that share a
        character all have it. ValueError without a tokenizer."""
        if self.tokenizer is None:
            raise ValueError("this answer does not know its tokenizer: ask through an Assistant")
        return token_offsets(self.tokenizer, self.completion.token_ids)

    def places(self, picture: int = 0) -> list[Box | Point]:
        """Boxes and points of the text, in original pixels of the picture of this index; with their confidence where
        log-probabilities were asked for."""
        return places_of(self, picture, self.frame)

    def to_dict(self) -> dict[str, Any]:
        """For JSON. "places" is there when there is one picture, so that it is clear which one they lie in."""
        report: dict[str, Any] = {
            "answer": self.text,
            "finish_reason": self.completion.finish_reason,
            "prompt_tokens": self.completion.prompt_tokens,
            "answer_tokens": len(self.completion.token_ids),
            "seconds": round(self.seconds, 3),
            "first_token_seconds": round(self.first_token_seconds, 3),
            "sizes": [_size(s) for s in self.sizes],
        }
        if self.video_sizes:
            times = zip(self.video_sizes, self.video_times, strict=True)
            report["videos"] = [{**_size(s), "seconds": [round(t, 3) for t in moments]} for s, moments in times]
        if len(self.sizes) == 1:
            report["places"] = places_to_dicts(self.places())
        return report


def _size(size: ImageSize) -> dict[str, Any]:
    return {"width": size.width, "height": size.height, "resized": [size.resized_width, size.resized_height]}


@dataclass(frozen=True)
class Seen:
    """Sizes and times of what a question is about and how places in it are written, as in Answer."""

    sizes: list[ImageSize]
    video_sizes: list[ImageSize]
    video_times: list[tuple[float, ...]]
    frame: Frame = "auto"


class Stream(Protocol):
    """An answer piece by piece, and whole once all pieces are read."""

    def __iter__(self) -> Iterator[str]: ...

    @property
    def answer(self) -> Answer: ...


class AnswerStream:
    """Pieces of text as they are written; `answer` is there once they have all been read."""

    def __init__(
        self, pieces: Iterator[str], request: Request, seen: Seen, started: float, tokenizer: Decoder | None = None
    ) -> None:
        self._pieces, self._request, self._seen, self._started = pieces, request, seen, started
        self._tokenizer = tokenizer
        self._first: float | None = None

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if self._first is None:
                self._first = time.perf_counter() - self._started
            yield piece
        self._seconds = time.perf_counter() - self._started

    @property
    def answer(self) -> Answer:
        """The whole answer. ValueError while pieces are left to read."""
        completion = self._request.completion()
        return answer_about(self._seen, completion, self._seconds, self._first or self._seconds, self._tokenizer)


def answer_about(
    seen: Seen, completion: Completion, seconds: float, first: float, tokenizer: Decoder | None = None
) -> Answer:
    """The answer that a completion is to a question about `seen`."""
    return Answer(completion, seen.sizes, seen.video_sizes, seen.video_times, seconds, first, seen.frame, tokenizer)


def token_offsets(tokenizer: Decoder, ids: Sequence[int]) -> list[tuple[int, int]]:
    """The characters [start, end) of the decoded text that each id wrote, control tokens included."""
    from qwenvl.engine.detokenizer import Detokenizer

    decoder, offsets, end = Detokenizer(tokenizer, skip_special_tokens=False), list[tuple[int, int]](), 0
    waiting = 0  # ids whose bytes are not yet a whole character
    for place, token in enumerate(ids):
        piece = decoder.push(token)
        if place == len(ids) - 1:
            piece += decoder.flush()
        waiting += 1
        if piece:
            offsets += [(end, end + len(piece))] * waiting
            end, waiting = end + len(piece), 0
    return offsets + [(end, end)] * waiting
