"""The engine: add requests, step, read events. `step()` is the diagram: schedule, run, sample, tell.

Errors stay with the request that caused them: a prompt that does not fit, a picture that cannot be encoded,
logits that are not finite. A request that fails has a finish_reason "error" and says why; the others go on.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qwenvl.types import Completion, FinishReason

from .blocks import SlotPool
from .detokenizer import Decoder, TextStream
from .request import Request, RequestState
from .runner import Model, Runner
from .sampler import Drawn, Sampler
from .scheduler import Chunk, Scheduler


@dataclass(frozen=True)
class StreamEvent:
    """What one step did to one request.

    text: new text that will not change any more, often "". token_id: the token drawn, stop tokens included;
    None when the request ended without one. finish_reason: None while the answer goes on. logprob: when asked
    for.
    """

    request_id: str
    text: str = ""
    token_id: int | None = None
    finish_reason: FinishReason | None = None
    logprob: float | None = None
    error: str | None = None


class Engine:
    """Continuous batching over one model. Not thread-safe: one thread adds, steps and aborts.

    tokenizer: for text and stop strings; None = ids only. max_running: requests computed together. capacity:
    most tokens (prompt and answer) of one request; None = as long as memory lasts. The cache is allocated for
    what the requests need. token_budget: most tokens in one step; longer prompts come in chunks.
    eos_token_ids: None = those of the model's generation_config, else of its config. skip_special_tokens:
    False keeps control tokens such as <|box_start|> in the text.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Decoder | None = None,
        *,
        max_running: int = 8,
        capacity: int | None = None,
        token_budget: int = 8192,
        eos_token_ids: Sequence[int] | None = None,
        skip_special_tokens: bool = True,
    ) -> None:
        for name, value in (("max_running", max_running), ("capacity", 1 if capacity is None else capacity)):
            if value < 1:
                raise ValueError(f"{name}={value} is not valid: expected at least 1")
        if token_budget < max_running:
            raise ValueError(
                f"token_budget={token_budget} is below max_running={max_running}: each running request needs "
                "one token a step"
            )
        config = model.config
        banned = vision_ids(config)
        self._tokenizer, self._skip_special = tokenizer, skip_special_tokens
        self._eos = frozenset(default_eos_ids(model) if eos_token_ids is None else eos_token_ids)
        self._context = int(config.text_config.context_length)
        self._runner = Runner(model)
        self._pool = SlotPool(self._runner.make_cache, max_running, capacity)
        self._scheduler = Scheduler(self._pool, token_budget)
        self._sampler = Sampler(config.text_config.vocab_size, banned, model.device, self._eos)
        self._live: dict[str, Request] = {}
        self._texts: dict[str, TextStream] = {}
        self._followed: dict[str, deque[StreamEvent]] = {}
        self._events: list[StreamEvent] = []
        self._arrivals = 0

    def add(self, request: Request) -> str:
        """Queue a request; returns its id (given here when it has none).

        A prompt that can never fit fails at once, as an event of the next step. Raises ValueError for a
        request that was added before, an id in use, or stop strings without a tokenizer.
        """
        if request.state is not RequestState.NEW:
            raise ValueError(f"request {request.id!r} was added before ({request.state.value}): make a new one")
        request.id = request.id or f"request-{self._arrivals}"
        if request.id in self._live:
            raise ValueError(f"request id {request.id!r} is in use: give each live request its own")
        if request.params.stop and self._tokenizer is None:
            raise ValueError(f"stop={request.params.stop!r} needs text: give the engine a tokenizer")
        if self._tokenizer is not None:
            self._texts[request.id] = TextStream(self._tokenizer, request.params.stop, self._skip_special)
        request.arrival, self._arrivals = self._arrivals, self._arrivals + 1
        request.sampling = self._sampler.start(request.known_ids, request.params, request.hooks.process)
        self._live[request.id] = request
        length, capacity = len(request.prompt_ids), self._pool.max_capacity
        room = request.params.max_new_tokens if capacity is None else capacity - length + 1
        request.limit = min(request.params.max_new_tokens, room)
        self._scheduler.add(request)
        if capacity is not None and length > capacity:
            self._fail(
                request,
                ValueError(
                    f"the prompt has {length} tokens, but a request may have at most {capacity} (the "
                    "engine's capacity): shorten it, lower max_pixels, or raise the capacity"
                ),
            )
        return request.id

    def abort(self, request_id: str) -> bool:
        """End a request now; its slot is free at once. False when no live request has this id."""
        request = self._live.get(request_id)
        if request is None:
            return False
        self._finish(request, "abort")
        return True

    @property
    def has_work(self) -> bool:
        """Whether step() has something to do or to tell."""
        return bool(self._live or self._events)

    @torch.inference_mode()
    def step(self) -> list[StreamEvent]:
        """Compute one packed batch and draw one token for each request that has caught up. Returns what
        happened since the last step, in order."""
        self._reserve()
        ready = []
        for chunk in self._scheduler.schedule():
            try:
                self._runner.encode(chunk)
            except Exception as error:
                self._fail(chunk.request, error)
            else:
                ready.append(chunk)
        if ready:
            self._advance(ready)
        events, self._events = self._events, []
        return events

    def run(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all; completions in the order of the requests. One that failed has finish_reason "error".
        When this call is interrupted, the requests that are not finished are aborted."""
        added: list[str] = []
        try:
            for request in requests:
                added.append(self.add(request))
            while not all(request.finished for request in requests):
                self.step()
        finally:
            for request_id in added:
                self.abort(request_id)
        return [request.completion() for request in requests]

    def stream(self, request: Request) -> Iterator[StreamEvent]:
        """Add a request and yield its events as they happen; the last one has a finish_reason.

        Each event that is waited for steps the engine, so several streams may be read in turn. A stream that
        is closed early aborts its request.
        """
        request_id = self.add(request)
        self._followed[request_id] = deque(e for e in self._events if e.request_id == request_id)
        return self._follow(request_id)

    def _follow(self, request_id: str) -> Iterator[StreamEvent]:
        events = self._followed[request_id]
        try:
            while True:
                while not events:
                    self.step()
                event = events.popleft()
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            self.abort(request_id)
            del self._followed[request_id]

    def _reserve(self) -> None:
        """Room in the cache for who may be admitted. Where memory does not allow it, the largest one
        fails."""
        while self._scheduler.waiting:
            try:
                self._scheduler.reserve()
                return
            except (RuntimeError, MemoryError) as error:
                candidates = self._scheduler.candidates()
                largest = max(candidates, key=lambda request: request.slot_tokens)
                reason = MemoryError(
                    f"no memory for a cache of {largest.slot_tokens} tokens beside {len(candidates) - 1} "
                    f"waiting and {len(self._scheduler.running)} running requests ({error}): lower "
                    "max_new_tokens, max_pixels or max_running"
                )
                self._fail(largest, reason)

    def _advance(self, chunks: list[Chunk]) -> None:
        """Run chunks and draw tokens. When the model raises, each is run alone, so that only the one at fault
        fails: keys and values written twice are the same."""
        try:
            logits = self._runner.run(chunks, self._pool.cache)
        except Exception as error:
            if len(chunks) == 1:
                self._fail(chunks[0].request, error)
                return
            for chunk in chunks:
                self._advance([chunk])
            return
        wanted = [chunk.request for chunk in chunks if chunk.wants_logits]
        for chunk in chunks:
            chunk.request.computed = chunk.stop
        states = [request.sampling for request in wanted if request.sampling is not None]
        draws = self._sampler.sample(logits, states)
        damaged = any(drawn.error and drawn.damaged for drawn in draws)
        where = self._runner.explain(chunks, self._pool.cache) if damaged else ""
        for request, drawn in zip(wanted, draws, strict=True):
            if drawn.error is not None:
                fault = FloatingPointError(drawn.error + where) if drawn.damaged else ValueError(drawn.error)
                self._fail(request, fault)
            else:
                self._take(request, drawn)

    def _take(self, request: Request, drawn: Drawn) -> None:
        """Append a drawn token to its request, and tell."""
        request.output_ids.append(drawn.token)
        if drawn.logprob is not None:
            request.output_logprobs.append(drawn.logprob)
        if drawn.scores is not None:
            request.output_scores.append(drawn.scores)
        if drawn.logits is not None:
            request.output_logits.append(drawn.logits)
        if request.num_tokens + request.delta == self._context + 1:
            warnings.warn(
                f"an answer goes past the {self._context} positions that the configuration is made for: it is less "
                "reliable from here on; raise max_position_embeddings for a model that was trained on more",
                stacklevel=2,
            )
        params = request.params
        is_eos = drawn.token in self._eos and not params.ignore_eos
        text = ""
        reason: FinishReason | None = None
        if is_eos or drawn.token in params.stop_token_ids:
            request.stopped_by_token = True
            reason = "stop"
        elif request.id in self._texts:
            text, stopped = self._texts[request.id].push(drawn.token)
            reason = "stop" if stopped else None
        stop = request.hooks.stop
        if reason is None and stop is not None and stop(request.output_ids, request.output_scores):
            reason = "stop"
        if reason is None and len(request.output_ids) >= request.limit:
            reason = "length"
        if reason is not None:
            self._finish(request, reason, text, drawn)
            return
        request.text += text
        self._tell(StreamEvent(request.id, text, drawn.token, logprob=drawn.logprob))

    def _fail(self, request: Request, error: Exception) -> None:
        request.exception = error
        request.error = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        self._finish(request, "error")

    def _finish(self, request: Request, reason: FinishReason, text: str = "", drawn: Drawn | None = None) -> None:
        """End a request: slot, embeddings and text state are released, the last event is told."""
        stream = self._texts.pop(request.id, None)
        if stream is not None:
            text += stream.flush()
        request.text += text
        request.finish_reason = reason
        self._scheduler.remove(request)
        self._runner.release(request.id)
        del self._live[request.id]
        request.sampling = None
        token, logprob = (None, None) if drawn is None else (drawn.token, drawn.logprob)
        self._tell(StreamEvent(request.id, text, token, reason, logprob, request.error))

    def _tell(self, event: StreamEvent) -> None:
        self._events.append(event)
        if event.request_id in self._followed:
            self._followed[event.request_id].append(event)


def vision_ids(config: Any) -> tuple[int, ...]:
    """Ids that are never generated: pictures cannot be written, only shown."""
    return (
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    )


def default_eos_ids(model: Any) -> tuple[int, ...]:
    """End-of-answer ids of a model: those of its generation_config (object or dict), else of its config."""
    settings = getattr(model, "generation_config", None)
    ids = settings.get("eos_token_id") if isinstance(settings, dict) else getattr(settings, "eos_token_id", None)
    if ids is None:
        ids = getattr(model.config, "eos_token_id", None)
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)
