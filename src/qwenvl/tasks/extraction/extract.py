"""A picture and a schema -> an object that the schema allows.

In: something that answers, pictures, what is wanted. Out: Extraction. Does not know the engine: that the answer keeps
to the schema is asked for with SamplingParams(grammar=...).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from qwenvl.tasks.ask import question_messages
from qwenvl.tasks.extraction.grammars import choice_grammar
from qwenvl.tasks.extraction.places import to_original
from qwenvl.tasks.extraction.prompts import question
from qwenvl.tasks.extraction.schemas import Schema, Wanted, wanted
from qwenvl.tasks.extraction.written import confidences, read
from qwenvl.types import Grammar, SamplingParams

if TYPE_CHECKING:
    from qwenvl.tasks.answer import Answer

MAX_NEW_TOKENS = 2048
TOGETHER = 8  # pictures that are extracted from at the same time


class Asks(Protocol):
    """What answers: Assistant, or a stand-in."""

    def ask(
        self,
        media: Sequence[Any],
        question: str,
        sampling: SamplingParams | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Answer: ...


class RepliesEach(Protocol):
    """What answers many at once: Assistant, or a stand-in."""

    def reply_each(
        self, conversations: Sequence[list[dict[str, Any]]], sampling: SamplingParams | None = None
    ) -> Sequence[Answer | Exception]: ...


class ExtractionError(ValueError):
    """An answer from which nothing valid can be made. text: what the model wrote."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text


@dataclass(frozen=True)
class Extraction:
    """What was extracted. value: an instance of the model class, or the data itself. data: plain JSON values, boxes and
    points in ORIGINAL pixels. text: the JSON as the model wrote it (places in pixels as it sees the picture; in
    thousandths of its sides with Qwen2-VL).

    confidence: by path ("items[0].price") the geometric mean of the model's own probabilities of the tokens that wrote
    the value; compare fields with each other, it says nothing of fields that are not in the picture.
    complete: whether the model came to its end. cut: paths of the fields that it did not finish, because max_new_tokens
    was reached; what stands there was closed in the shortest way that the schema allows.
    """

    value: Any
    data: Any
    text: str
    confidence: Mapping[str, float] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    complete: bool = True
    answer: Answer | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        sure = {path: round(value, 4) for path, value in self.confidence.items()}
        return {"data": self.data, "confidence": sure, "complete": self.complete, "cut": list(self.cut)}


def extract(
    assistant: Asks,
    images: Any,
    schema: Schema,
    *,
    instructions: str | None = None,
    sampling: SamplingParams | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Extraction:
    """What the schema asks for, read from one picture or a list of pictures.

    schema: a pydantic model class, a JSON Schema, or names of fields (whose values are strings). Arrays called bbox_2d
    and point_2d, those with such a "format", and fields of the types BBox2D and Point2D are places in the picture.
    instructions: words to add to the question. sampling: greedy with 2048 new tokens unless given; its grammar is set
    here.

    The result always fits the schema. When the tokens are used up before the end, what is open is closed as shortly as
    the schema allows: `complete` is then False and `cut` names the fields. Raises ValueError for a schema that no
    grammar can keep to (with what it is); ExtractionError for an answer that the model class itself refuses.
    """
    want = wanted(schema)
    sampling = _sampling(want, sampling)
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    answer = assistant.ask(_pictures(images), question(want, instructions), sampling, **limits)
    return extraction_of(want, answer)


def extract_many(
    assistant: RepliesEach,
    pictures: Iterable[Any],
    schema: Schema,
    *,
    instructions: str | None = None,
    sampling: SamplingParams | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    together: int = TOGETHER,
) -> Iterator[Extraction | Exception]:
    """As `extract`, for many: each of `pictures` is one picture, or a list of those that are asked about together.

    The results come in order, `together` of them at a time, which are computed together; what follows is not opened
    before they are taken, so that memory does not grow with the number of pictures. One that fails fails alone: in its
    place comes the error. What is wrong for all of them (the schema, the sampling) is raised at once.
    """
    if together < 1:
        raise ValueError(f"together={together} is not valid: expected at least 1")
    want = wanted(schema)
    sampling, asked = _sampling(want, sampling), question(want, instructions)

    def batches() -> Iterator[Extraction | Exception]:
        every = iter(pictures)
        while batch := list(islice(every, together)):
            yield from _batch(assistant, want, [_asking(one, asked, min_pixels, max_pixels) for one in batch], sampling)

    return batches()


def _batch(
    assistant: RepliesEach, want: Wanted, asked: Sequence[list[dict[str, Any]] | Exception], sampling: SamplingParams
) -> Iterator[Extraction | Exception]:
    answers = iter(assistant.reply_each([one for one in asked if not isinstance(one, Exception)], sampling))
    for one in asked:
        answer = one if isinstance(one, Exception) else next(answers)
        if isinstance(answer, Exception):
            yield answer
            continue
        try:
            result = extraction_of(want, answer)
        except ExtractionError as error:
            yield error
        else:
            yield result


def _asking(
    images: Any, asked: str, min_pixels: int | None, max_pixels: int | None
) -> list[dict[str, Any]] | ValueError:
    """The conversation that asks about one of many; what is wrong with it alone is returned."""
    try:
        return question_messages(_pictures(images), asked, None, min_pixels, max_pixels)
    except ValueError as error:
        return error


def _sampling(want: Wanted, sampling: SamplingParams | None) -> SamplingParams:
    """The sampling under the schema's grammar."""
    sampling = sampling or SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    if sampling.grammar is not None:
        raise ValueError("sampling has a grammar, and extract makes its own of the schema: leave it out")
    if sampling.stop or sampling.stop_token_ids:
        raise ValueError("sampling has stop strings or tokens, which would cut the JSON: leave them out")
    return replace(sampling, grammar=Grammar.json_schema(want.schema), logprobs=True)


def _pictures(images: Any) -> list[Any]:
    pictures = list(images) if isinstance(images, list | tuple) else [images]
    if not pictures:
        raise ValueError("there is no picture to extract from: give one, or a list of them")
    return pictures


def extraction_of(want: Wanted, answer: Answer) -> Extraction:
    """The extraction that an answer is. ExtractionError where it is none."""
    completion = answer.completion
    cut = completion.finish_reason in ("length", "loop")
    text = completion.closed if cut and completion.closed is not None else answer.text
    try:
        data, spans = read(text)
        want.valid(data)
        placed = to_original(want, data, answer.sizes, answer.frame)
        value = want.check(placed)
    except ValueError as error:
        more = "; raise max_new_tokens" if cut else ""
        reason = " ".join(str(error).split())
        raise ExtractionError(f"the answer does not fit the schema: {reason}{more}", answer.text) from error
    sure: dict[str, float] = {}
    if completion.logprobs is not None:
        sure = confidences(spans, answer.offsets, completion.logprobs)
    written = len(answer.text.rstrip("\N{REPLACEMENT CHARACTER}"))
    open_ones = tuple(span.path for span in spans if cut and span.end > written)
    return Extraction(value, placed, text, sure, open_ones, not cut, answer)


def classify(
    assistant: Asks,
    image: Any,
    choices: Sequence[str],
    *,
    instructions: str | None = None,
    sampling: SamplingParams | None = None,
) -> str:
    """The one of `choices` that the model says the picture is; it can say nothing else. instructions: the question, in
    place of "What is in the picture?"; the choices are named behind it."""
    grammar = choice_grammar(choices)
    names = ", ".join(choices)
    asked = f"{instructions or 'What is in the picture?'} Answer with one of: {names}."
    sampling = replace(sampling or SamplingParams(max_new_tokens=256), grammar=grammar)
    answer = assistant.ask([image], asked, sampling)
    found = answer.completion.closed or answer.text
    if found not in choices:
        raise ExtractionError(f"the answer {found!r} is none of {', '.join(choices)}", answer.text)
    return found


def row(extraction: Extraction, columns: Sequence[str]) -> list[Any]:
    """The values of a table's line: those of the top level's fields; lists, objects and truth values as JSON, nothing
    for null."""
    values = [extraction.data.get(name) for name in columns]
    return [
        "" if v is None else json.dumps(v, ensure_ascii=False) if isinstance(v, dict | list | bool) else v
        for v in values
    ]
