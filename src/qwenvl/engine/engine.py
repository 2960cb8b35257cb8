"""The engine: add requests, step, read events. `step()` is the diagram: look, schedule, run, draw, tell.

Errors stay with the request that caused them: a prompt that does not fit, a picture that cannot be encoded,
logits that are not finite. A request that fails has a finish_reason "error" and says why; the others go on.
An interrupt (KeyboardInterrupt, or what a caller's hook raises) may leave any method at any point. The next call then
mends the engine: requests whose token was just being drawn end with "abort", the others wait and catch up.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from qwenvl.model.kv_cache import KVCache
from qwenvl.types import FinishReason

from .admission import Admission, check_numbers, reserve, too_long
from .answering import Answering
from .blocks import PAGE, PagePool
from .detokenizer import Decoder, TextStream
from .end_ids import default_eos_ids, vision_ids
from .events import EngineStats, StreamEvent, described
from .grammar import Grammars
from .intake import Intake
from .lookup import Drafts
from .request import Request, RequestState
from .runner import Model, Runner
from .sampler import Drawn, Sampler
from .scheduler import Chunk, Scheduler
from .vision_cache import VisionCache, tower_fingerprint

MAX_RUNNING = 32
AHEAD = 4  # waiting requests whose pictures are encoded before it is their turn
THOUSANDTHS = (1000, 1000)  # sides of every picture in the numbers that Qwen2-VL writes; Qwen2.5-VL writes pixels
KEEP_BYTES = 2**30  # the cache rather grows to this size than forgets a prefix


class Engine(Answering):
    """Continuous batching over one model. Not thread-safe: one thread adds, steps and aborts.

    tokenizer: for text and stop strings; None = ids only. max_running: requests computed together (32). capacity:
    most tokens (prompt and answer) of one request; cache_tokens: of all together; None = as long as memory lasts.
    memory: what the process (or a GPU's part in it) may have, bytes or such as "4GB"; the cache gets what is left, and
    a request that can never fit fails alone (admission.py). None = no limit.
    token_budget: most tokens in one step; longer prompts come in chunks. prompt_budget: most prompt tokens in a step
    that also goes on with answers. prefix_cache: find the beginning of a prompt among what was computed before.
    vision_budget: patches that are encoded in one step, as far as items can be divided. vision_cache_bytes: embeddings
    kept after their requests have ended; vision_folder: a folder that keeps them for other processes. draft_tokens:
    most tokens that are guessed from the prompt and checked together (lookup.py); 0 = none. graphs: decode steps
    through CUDA graphs (graphs.py); None = on a CUDA device. workers: threads that prepare what is given to submit();
    None = as many as suit the machine. eos_token_ids: None = those of the model's generation_config, else of its
    config. skip_special_tokens: False keeps control tokens such as <|box_start|> in the text.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Decoder | None = None,
        *,
        max_running: int | None = None,
        capacity: int | None = None,
        cache_tokens: int | None = None,
        memory: int | str | None = None,
        token_budget: int = 2048,
        prompt_budget: int = 1024,
        prefix_cache: bool = True,
        vision_budget: int = 4096,
        vision_cache_bytes: int = 2**28,
        vision_folder: str | Path | None = None,
        draft_tokens: int = 0,
        graphs: bool | None = None,
        workers: int | None = None,
        eos_token_ids: Sequence[int] | None = None,
        skip_special_tokens: bool = True,
    ) -> None:
        super().__init__()
        max_running = min(MAX_RUNNING, token_budget) if max_running is None else max_running
        check_numbers(
            token_budget, max_running, {"draft_tokens": draft_tokens, "vision_cache_bytes": vision_cache_bytes},
            capacity=capacity, cache_tokens=cache_tokens, workers=workers, prompt_budget=prompt_budget,
            vision_budget=vision_budget,
        )  # fmt: skip
        config = model.config
        self._tokenizer, self._skip_special = tokenizer, skip_special_tokens
        self._eos = frozenset(default_eos_ids(model) if eos_token_ids is None else eos_token_ids)
        self._context = int(config.text_config.context_length)
        self._capacity, self._vision_budget, self._drafts = capacity, vision_budget, Drafts(draft_tokens)
        sides = THOUSANDTHS if getattr(config, "model_type", "") == "qwen2_vl" else None
        self._grammars = Grammars(tokenizer, config.text_config.vocab_size, self._eos, sides)
        self._patch = getattr(config.vision_config, "patch_size", 14)
        folder = None if vision_folder is None else Path(vision_folder)
        fingerprint = "" if folder is None else tower_fingerprint(model)
        if graphs is None:  # not for a model on several devices
            graphs = model.device.type == "cuda" and getattr(model, "main_device", None) is None
        self._admission: Admission | None = None
        if memory is not None:
            shares = self._admission = Admission.of(model, memory, token_budget, vision_budget, vision_cache_bytes)
            vision_cache_bytes, cache_tokens = shares.kept, min(cache_tokens or shares.tokens, shares.tokens)
        vision_cache = VisionCache(vision_cache_bytes, folder, fingerprint=fingerprint, device=model.device)
        self._runner = Runner(model, vision_cache, vision_budget, graphs)
        keep = KEEP_BYTES // KVCache.bytes_per_token(config.text_config, model.dtype)
        self._pool = PagePool(self._runner.make_pages, cache_tokens, keep)
        if self._admission is not None:
            reserve(self._pool)
        share = prefix_cache and not self._runner.depends_on_length
        self._scheduler = Scheduler(self._pool, token_budget, prompt_budget, max_running, share)
        self._sampler = Sampler(config.text_config.vocab_size, vision_ids(config), model.device, self._eos)
        self._intake: Intake | None = None
        self._workers, self._preparing = workers, dict[str, None]()
        self._live: dict[str, Request] = {}
        self._texts: dict[str, TextStream] = {}
        self._arrivals = 0
        self._torn: list[Request] | None = None  # within a change: the requests that end if it is not finished
        self._unwanted: list[Request | str] = []  # to be aborted

    def add(self, request: Request) -> str:
        """Queue a request; returns its id (given here when it has none).

        A prompt that can never fit fails at once, as an event of the next step. Raises ValueError for a
        request that was added before, an id in use, or stop strings without a tokenizer.
        """
        if request.state is not RequestState.NEW:
            raise ValueError(f"request {request.id!r} was added before ({request.state.value}): make a new one")
        self._mend()
        self._check(request)
        self._torn = [request]
        self._enter(request)
        self._torn = None
        return request.id

    def _check(self, request: Request) -> None:
        """ValueError for what cannot be asked; else the request gets its id, and its guide through a grammar."""
        if request.params.stop and self._tokenizer is None:
            raise ValueError(f"stop={request.params.stop!r} needs text: give the engine a tokenizer")
        request.id = self._new_id(request.id)
        request.guide = self._grammars.guide(request, self._patch)

    def _enter(self, request: Request) -> None:
        if self._tokenizer is not None:
            self._texts[request.id] = TextStream(self._tokenizer, request.params.stop, self._skip_special)
        self._drafts.start(request)
        request.arrival, self._arrivals = self._arrivals, self._arrivals + 1
        process, guide = request.hooks.process, request.guide
        request.sampling = self._sampler.start(request.known_ids, request.params, process, guide)
        limits = [n for n in (self._capacity, self._pool.most_tokens) if n is not None]
        length, room = len(request.prompt_ids), min(limits, default=None)
        most = request.params.max_new_tokens
        request.limit = most if room is None else min(most, room - length + 1)
        self._live[request.id] = request
        self._scheduler.add(request)
        fault = None if self._admission is None else self._admission.refusal(request)
        if fault is None and room is not None and length > room:
            fault = too_long(length, room)
        if fault is not None:
            self._fail(request, fault)

    def submit(self, prepare: Callable[[], Request], *, id: str = "", priority: int = 0) -> str:
        """Queue a request that is still to be made: prepare() fetches, decodes and resizes pictures in a worker thread
        while the engine computes. Returns its id, under which the request made will run. What prepare() raises becomes
        the error of this request alone."""
        self._mend()
        if self._intake is None:
            self._intake = Intake(self._workers)
        id = self._new_id(id)
        self._intake.submit(prepare, id, priority)
        self._preparing[id] = None
        self._arrivals += 1
        return id

    def abort(self, request_id: str) -> bool:
        """End a request now; its pages are free at once. False when no live request has this id."""
        self._mend()
        return self._abort(request_id)

    def _abort(self, request_id: str) -> bool:
        self._torn = []
        if request_id in self._preparing:
            assert self._intake is not None
            self._intake.cancel(request_id)
            del self._preparing[request_id]
            self._tell(StreamEvent(request_id, finish_reason="abort"))
            self._torn = None
            return True
        request = self._live.get(request_id)
        if request is not None:
            self._torn = [request]
            self._finish(request, "abort")
        self._torn = None
        return request is not None

    def _give_up(self, requests: Sequence[Request | str]) -> None:
        """Abort those of these requests that live, or are prepared under these ids; also when this is interrupted, by
        the next call then."""
        self._unwanted += requests
        self._mend()

    def close(self) -> None:
        """Abort everything and end the worker threads."""
        for request_id in [*self._preparing, *self._live]:
            self.abort(request_id)
        if self._intake is not None:
            self._intake.close()
            self._intake = None

    @property
    def has_work(self) -> bool:
        """Whether step() has something to do or to tell."""
        return bool(self._live or self._events or self._preparing or self._torn is not None or self._unwanted)

    @property
    def stats(self) -> EngineStats:
        """The engine in numbers, as it is now."""
        scheduler, pool, vision = self._scheduler, self._pool, self._runner.vision.cache
        return EngineStats(
            len(self._preparing), len(scheduler.waiting), len(scheduler.running), scheduler.preemptions,
            pool.tokens, pool.used * PAGE, pool.counts.asked, pool.counts.found,
            vision.hits, vision.misses, vision.nbytes, self._drafts.drafted, self._drafts.accepted,
        )  # fmt: skip

    @torch.inference_mode()
    def step(self) -> list[StreamEvent]:
        """Compute one packed batch and draw a token (with drafts: some tokens) for each request that has caught up.
        Returns what happened since the last step, in order."""
        self._mend()
        self._torn = []
        self._take_in()
        self._look()
        chunks = self._schedule()
        if chunks:
            self._advance(chunks)
        self._torn = None
        events, self._events = self._events, []
        return events

    def _take_in(self) -> None:
        """Queue what the workers have prepared; with nothing else to do, wait for them a moment."""
        if not self._preparing:
            return
        assert self._intake is not None
        if not self._live and not self._events:
            self._intake.wait(0.05)
        most = max(1, 2 * AHEAD - len(self._scheduler.waiting))  # the rest keeps others from being prepared too soon
        for request_id, made in self._intake.ready(most):
            if request_id not in self._preparing:
                continue
            del self._preparing[request_id]
            try:
                if isinstance(made, Exception):
                    raise made
                made.id = request_id
                self._check(made)
                self._torn = [made]
                self._enter(made)
            except Exception as error:
                if isinstance(made, Request):
                    made.exception = error
                self._tell(StreamEvent(request_id, finish_reason="error", error=described(error)))
            self._torn = []

    def _look(self) -> None:
        """Encode pictures for the prompts that come next, the most urgent first, within the vision budget."""
        vision, left = self._runner.vision, self._vision_budget
        full = self._admission is not None and vision.cache.nbytes > self._admission.kept
        upcoming = self._scheduler.upcoming(1 if full else AHEAD)
        for request in upcoming:
            if not request.items:
                continue
            have = max(request.computed, self._scheduler.matched(request) if request.computed == 0 else 0)
            for item in request.items:
                while item.start + item.tokens > have and left > 0 and not vision.has(item, request):
                    try:
                        left -= vision.advance(request, item)
                    except Exception as error:
                        self._fail(request, error)
                        break
                if request.finished or left <= 0:
                    break
        if vision.has_parts:
            vision.forget_parts({item.content_hash for r in self._live.values() for item in r.items})

    def _schedule(self) -> list[Chunk]:
        """The scheduler's chunks; a request that can never be held fails."""
        while True:
            self._drafts.begin(len(self._scheduler.running))
            try:
                return self._scheduler.schedule(self._runner.vision.ready, self._drafts.draft)
            except MemoryError as error:
                request = getattr(error, "request", None)
                if request is None:
                    raise
                self._fail(request, error)

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
        for chunk in chunks:
            chunk.request.computed = chunk.stop
            if not chunk.wants_logits:
                self._scheduler.publish(chunk.request)
        self._draw(chunks, logits)

    def _draw(self, chunks: list[Chunk], logits: Tensor) -> None:
        """Draw the next token of each request that has caught up, and go on along its draft while that is right."""
        live, before = [], {}
        row = 0
        for chunk in chunks:
            if chunk.wants_logits:
                live.append((chunk.request, row, chunk.draft))
                before[chunk.request.id] = len(chunk.request.output_ids)
                row += 1 + len(chunk.draft)
        self._torn = [request for request, _, _ in live]
        depth, wanted = 0, live
        while live:
            states = [request.sampling for request, _, _ in live if request.sampling is not None]
            solid = depth == 0 and row == len(live)
            rows = logits if solid else logits[[first + depth for _, first, _ in live]]
            draws = self._sampler.sample(rows, states)
            damaged = any(drawn.error and drawn.damaged for drawn in draws)
            where = self._runner.explain(chunks, self._pool.cache) if damaged else ""
            following = []
            for (request, first, draft), drawn in zip(live, draws, strict=True):
                if drawn.error is not None:
                    fault = FloatingPointError(drawn.error + where) if drawn.damaged else ValueError(drawn.error)
                    self._fail(request, fault)
                    continue
                self._take(request, drawn)
                if request.state is RequestState.RUNNING and depth < len(draft) and drawn.token == draft[depth]:
                    request.computed += 1
                    following.append((request, first, draft))
            live, depth = following, depth + 1
        for request, _, draft in wanted:
            if not request.finished:
                self._scheduler.publish(request)
            self._drafts.learn(request, draft, request.output_ids[before[request.id] :])
        self._torn = []

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
        reason = reason or request.ended()
        if reason is not None:
            self._finish(request, reason, text, drawn)
            return
        request.text += text
        self._tell(StreamEvent(request.id, text, drawn.token, logprob=drawn.logprob))

    def _fail(self, request: Request, error: Exception) -> None:
        request.exception = error
        request.error = described(error)
        self._finish(request, "error")

    def _finish(self, request: Request, reason: FinishReason, text: str = "", drawn: Drawn | None = None) -> None:
        """End a request: pages, embeddings and text state are released, the last event is told."""
        stream = self._texts.pop(request.id, None)
        if stream is not None:
            text += stream.flush()
        request.text += text
        if reason == "loop" and self._tokenizer is not None:
            request.text = self._tokenizer.decode(request.kept_ids, skip_special_tokens=self._skip_special)
        request.finish_reason = reason
        if reason != "error" and request.state is RequestState.RUNNING:
            self._scheduler.publish(request)
        self._scheduler.remove(request)
        token, logprob = (None, None) if drawn is None else (drawn.token, drawn.logprob)
        self._leave(request, StreamEvent(request.id, text, token, reason, logprob, request.error))

    def _leave(self, request: Request, last: StreamEvent | None) -> None:
        """Forget a request that holds no pages any more, and tell its last event."""
        self._runner.vision.release(request.id)
        self._drafts.forget(request)
        request.sampling = None
        if last is not None:
            self._tell(last)
        del self._live[request.id]

    def _mend(self) -> None:
        """Finish what an exception has left in the middle, and abort what nobody wants any more.

        Then nothing is believed but what one assignment has written: which requests there are, their tokens, and which
        pages have which content. May itself be interrupted, and is then done again.
        """
        if self._torn is not None:
            self._pool.restart()
            told = {event.request_id for event in self._events if event.finish_reason is not None}
            ended = [r for r in self._live.values() if r in self._torn or r.exception is not None or r.id in told]
            self._scheduler.restart([request for request in self._live.values() if request not in ended])
            self._runner.vision.restart()
            for request in ended:
                self._leave_torn(request, request.id in told)
            self._texts = {i: text for i, text in self._texts.items() if i in self._live}
            self._drafts.keep(self._live)
            for request_id in [i for i in self._preparing if self._intake is None or not self._intake.knows(i)]:
                self._tell(StreamEvent(request_id, finish_reason="abort"))
                del self._preparing[request_id]
            self._torn = None
        while self._unwanted:
            one = self._unwanted[-1]
            if isinstance(one, str) or self._live.get(one.id) is one:
                self._abort(one if isinstance(one, str) else one.id)
            self._unwanted.pop()

    def _leave_torn(self, request: Request, told: bool) -> None:
        """End a request of which some books are closed and others are not."""
        self._texts.pop(request.id, None)
        request.reset()
        request.state = RequestState.FINISHED
        if told:
            self._leave(request, None)
            return
        if request.exception is not None:
            request.error = described(request.exception)
        request.finish_reason = "abort" if request.exception is None else "error"
        self._leave(request, StreamEvent(request.id, finish_reason=request.finish_reason, error=request.error))

    def _new_id(self, wanted: str) -> str:
        """An id that no live request has. ValueError for one in use."""
        new = wanted or f"request-{self._arrivals}"
        if new in self._live or new in self._preparing:
            raise ValueError(f"request id {new!r} is in use: give each live request its own")
        return new
