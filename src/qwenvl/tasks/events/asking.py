"""One look at a film -> events in seconds of the file: the prompt, the question, and how sure the answer is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qwenvl.tasks.events.answers import Span, parse_events
from qwenvl.tasks.events.film import Look

if TYPE_CHECKING:
    from qwenvl.tasks.answer import Answer
    from qwenvl.types import SamplingParams

# The wordings of the official cookbook; the bundled model learned them too.
QUERY_PROMPT = "Give the query: '{query}', when does the described content occur in the video?"
EVENTS_PROMPT = (
    "Localize a series of activity events in the video, output the start and end timestamp for each event, and "
    "describe each event with sentences. Provide the result in json format with 'mm:ss.ff' format for time depiction."
)
QUERY_TOKENS, EVENTS_TOKENS = 256, 2048  # longest answers
TOGETHER = 8  # looks that are asked about in one call

Progress = Callable[[int, int], None]


class Answers(Protocol):
    """What answers: Assistant, or anything with this method."""

    def ask_many(
        self, questions: Sequence[tuple[Sequence[Any], str]], sampling: SamplingParams | None = None
    ) -> list[Answer]: ...


@dataclass(frozen=True)
class Told:
    """An event that an answer tells of, in seconds of the file. from_start, to_end: it reaches over the begin or the
    end of what was looked at, so that this edge is not its own. look: the number of the look."""

    start: float
    end: float
    text: str
    confidence: float | None
    from_start: bool
    to_end: bool
    look: int = 0


def prompt_of(query: str | None, prompt: str | None) -> str:
    """The question. prompt: a wording in place of the cookbook's, with {query} where the query goes. ValueError for an
    empty query, and for a query that has no place in the prompt."""
    if query is None:
        if prompt is not None and "{query}" in prompt:
            raise ValueError(f"prompt={prompt!r} has a place for a query, and there is none: give query")
        return prompt or EVENTS_PROMPT
    words = " ".join(query.split())
    if not words:
        raise ValueError('the query is empty: say what happens, such as "a man opens the door"')
    text = prompt or QUERY_PROMPT
    if "{query}" not in text:
        raise ValueError(f"prompt={prompt!r} has no place for the query: write {{query}} into it")
    return text.replace("{query}", words)


class Asker:
    """Asks one question about look after look, and counts. query: what the events are called where the question is
    about one thing; None where the answer names them."""

    def __init__(
        self,
        assistant: Answers,
        question: str,
        query: str | None,
        sampling: SamplingParams | None,
        most_calls: int,
        on_progress: Progress | None,
    ) -> None:
        from qwenvl.types import SamplingParams

        self._assistant, self._question, self._query = assistant, question, query
        tokens = EVENTS_TOKENS if query is None else QUERY_TOKENS
        self._sampling = sampling or SamplingParams(max_new_tokens=tokens, logprobs=True)
        self._on_progress = on_progress
        self.most_calls, self.calls, self.planned = most_calls, 0, 0

    @property
    def left(self) -> int:
        """How many looks may still be asked about."""
        return self.most_calls - self.calls

    def plan(self, more: int) -> None:
        """So many looks are coming."""
        self.planned = min(self.most_calls, self.calls + more)
        self._tell()

    def ask(self, looks: Iterator[Look] | Sequence[Look]) -> Iterator[tuple[Look, list[Told]]]:
        """The looks with what the answers tell of each, some at a time, until no calls are left."""
        waiting: list[Look] = []
        for look in looks:
            waiting.append(look)
            if len(waiting) == min(TOGETHER, self.left):
                yield from self._ask(waiting)
                waiting = []
            if not self.left:
                return
        yield from self._ask(waiting)

    def _ask(self, looks: list[Look]) -> Iterator[tuple[Look, list[Told]]]:
        if not looks:
            return
        answers = self._assistant.ask_many([([look.video], self._question) for look in looks], self._sampling)
        first = self.calls
        self.calls += len(looks)
        self.planned = max(self.planned, self.calls)
        self._tell()
        for k, (look, answer) in enumerate(zip(looks, answers, strict=True)):
            yield look, told(look, answer, self._query, first + k)

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.calls, self.planned)


def told(look: Look, answer: Answer, query: str | None, number: int = 0) -> list[Told]:
    """The events of an answer about a look, in seconds of the file."""
    near = 1.0 / look.video.fps  # one frame of the clip
    events = []
    for span in parse_events(answer.text, look.seconds, look.video.fps):
        start, end = look.file_seconds(span.start), look.file_seconds(span.end)
        text = " ".join((query if query is not None else span.text).split())
        from_start = span.from_start or (span.end > span.start and span.start < near / 2)
        to_end = span.to_end or (span.end > span.start and span.end > look.seconds - 1.5 * near)
        events.append(Told(start, end, text, confidence(answer, span), from_start, to_end, number))
    return events


def confidence(answer: Answer, span: Span) -> float | None:
    """The geometric mean of the probabilities of the tokens that wrote the times of an event; of the whole answer where
    its times are told without a number; None where the answer has no probabilities."""
    chances = answer.completion.logprobs
    if not chances:
        return None
    shift = answer.raw.find(answer.text)
    if not span.places or shift < 0:
        return math.exp(sum(chances) / len(chances))
    written = [
        chance
        for (start, end), chance in zip(answer.offsets, chances, strict=False)
        if any(start < last + shift and first + shift < end for first, last in span.places)
    ]
    return math.exp(sum(written) / len(written)) if written else None
