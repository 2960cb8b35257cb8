"""Beam search: the best answers by their summed log-probabilities, over the engine's runner and cache slots.

Each beam is a request with a slot of its own. A prompt is computed once and its keys and values are copied to its
beams; when beams change places, so do the answers' keys and values. Each prompt is searched by itself, so that it is
answered in a batch as it is alone. With a temperature, continuations are drawn without replacement instead of taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qwenvl.model.kv_cache import SlotCache

from .end_ids import vision_ids
from .logits import full_width, warp
from .options import Options
from .request import Request
from .runner import Model, Runner
from .sampler import Sampler, SamplerState
from .scheduler import Chunk

UNLIKELY = -1.0e9  # the sum of a beam that does not exist yet
PREFILL_TOKENS = 8192  # of a prompt in one step
MAX_BEAMS = 32  # computed together; more prompts wait, which changes memory and not answers


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer: its ids with the end token, its score, and the beam that each token came from."""

    score: float
    answer: list[int]
    origins: list[int]


@dataclass(eq=False)
class Search:
    """The search for one prompt. beams: one request each, in slots [first, first + beams). sums: float32 [beams]."""

    beams: list[Request]
    first: int
    generator: torch.Generator | None
    sums: Tensor
    origins: list[list[int]]
    done: list[Hypothesis] = field(default_factory=list)
    over: bool = False
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


class BeamSearch:
    """Beam search of several prompts on one model. stops(text ids) -> whether a stop string is in their text."""

    def __init__(self, model: Model, options: Options, stops: Callable[[list[int]], bool] | None = None) -> None:
        self._options, self._stops = options, stops
        self._runner = Runner(model)
        config, self._device = model.config, model.device
        self._sampler = Sampler(config.text_config.vocab_size, vision_ids(config), model.device, options.eos_ids)

    @torch.inference_mode()
    def run(self, requests: Sequence[Request]) -> list[Search]:
        """Search for each request (none of which is in an engine); `done` of each holds num_beams answers, best
        first. Raises what computing a prompt raises, and FloatingPointError for logits that are not finite."""
        together = max(1, MAX_BEAMS // self._options.num_beams)
        return [search for i in range(0, len(requests), together) for search in self._wave(requests[i : i + together])]

    def _wave(self, requests: Sequence[Request]) -> list[Search]:
        count = self._options.num_beams
        longest = max(len(request.prompt_ids) for request in requests)
        cache = self._runner.make_slots(len(requests) * count, longest + self._options.params.max_new_tokens)
        searches = [self._start(request, i * count, cache) for i, request in enumerate(requests)]
        while running := [search for search in searches if not search.over]:
            chunks = [Chunk(beam, beam.num_tokens - 1, beam.num_tokens) for search in running for beam in search.beams]
            logits = self._finite(chunks, cache)
            for search, rows in zip(running, logits.split(count), strict=True):
                self._advance(search, rows, cache)
        return searches

    def _start(self, request: Request, first: int, cache: SlotCache) -> Search:
        """Compute a prompt, share it out to its beams, and take the first step."""
        count = self._options.num_beams
        beams = [replace(request, id=f"{first + i}") for i in range(count)]
        for i, beam in enumerate(beams):
            beam.slot = first + i
        length = len(request.prompt_ids)
        logits = torch.empty(0)
        for start in range(0, length, PREFILL_TOKENS):
            chunk = Chunk(beams[0], start, min(start + PREFILL_TOKENS, length))
            self._runner.vision.encode(beams[0])
            logits = self._finite([chunk], cache)
        self._runner.vision.release(beams[0].id)
        for beam in beams[1:]:
            assert beam.slot is not None
            cache.copy(first, beam.slot, length)
        sums = torch.full((count,), UNLIKELY, device=self._device)
        sums[0] = 0.0  # all beams are the same now: only one may give the continuations
        generator = self._sampler.start([], request.params).generator
        search = Search(beams, first, generator, sums, [[] for _ in beams])
        self._advance(search, logits.expand(count, -1), cache)
        return search

    def _finite(self, chunks: list[Chunk], cache: SlotCache) -> Tensor:
        logits = self._runner.run(chunks, cache)
        if not bool(torch.isfinite(logits).all()):
            raise FloatingPointError(f"the model's logits are not finite{self._runner.explain(chunks, cache)}")
        return logits

    def _advance(self, search: Search, logits: Tensor, cache: SlotCache) -> None:
        """One step of one search. logits [beams, vocabulary] behind each beam."""
        options, count = self._options, self._options.num_beams
        scores = self._scores(search, logits)
        if options.params.keep_scores:
            search.scores.append(scores.clone())
        if options.params.keep_logits:
            search.logits.append(logits.clone())
        totals = (scores + search.sums.unsqueeze(1)).flatten()
        wanted = min(max(2, 1 + len(options.eos_ids)) * count, len(totals))
        ranked = totals if search.generator is None else totals + self._noise(totals, search.generator)
        places = ranked.topk(wanted).indices
        sums = totals[places]
        parents, tokens = (places // scores.shape[1]).tolist(), (places % scores.shape[1]).tolist()
        answers = [[*search.beams[p].output_ids, t] for p, t in zip(parents, tokens, strict=True)]
        origins = [[*search.origins[p], search.first + p] for p in parents]
        ended = [self._ends(search, answer) for answer in answers]
        self._finish(search, sums, answers, origins, ended)
        stopped = torch.tensor(ended, device=self._device)
        going_on, chosen = (sums + stopped.float() * UNLIKELY).topk(count)
        kept = chosen.tolist()
        self._reorder(search, [parents[i] for i in kept], cache)
        for beam, i in zip(search.beams, kept, strict=True):
            beam.output_ids = answers[i]
        search.sums, search.origins = going_on, [origins[i] for i in kept]
        search.over = all(ended) or self._settled(search)

    def _scores(self, search: Search, logits: Tensor) -> Tensor:
        """Processed log-probabilities [beams, vocabulary]."""
        params = search.beams[0].params
        states = []
        for beam in search.beams:
            seen = self._sampler.seen([*beam.known_ids, *beam.output_ids], params)
            states.append(SamplerState(params, None, seen, beam.known_ids, beam.output_ids, beam.hooks.process))
        scores = self._sampler.process(logits.log_softmax(dim=-1), states)
        if search.generator is not None:
            least = len(self._options.eos_ids) + 1
            top_k = min(params.top_k, scores.shape[-1])
            warped = warp(scores, [params] * len(scores), top_k, params.top_p < 1, least)
            scores = full_width(warped, scores.shape[-1])
        return scores.log_softmax(dim=-1) if self._options.renormalize else scores

    def _noise(self, totals: Tensor, generator: torch.Generator) -> Tensor:
        """Gumbel noise: the highest sums with it are a draw without replacement."""
        uniform = torch.rand(totals.shape, generator=generator, dtype=torch.float64).clamp(min=1e-300)
        return -torch.log(-torch.log(uniform)).to(totals.device, totals.dtype)

    def _ends(self, search: Search, answer: list[int]) -> bool:
        params, hooks = self._options.params, search.beams[0].hooks
        return (
            answer[-1] in self._options.eos_ids
            or len(answer) >= params.max_new_tokens
            or (self._stops is not None and self._stops(answer))
            or (hooks.stop is not None and hooks.stop(answer, []))
        )

    def _finish(
        self, search: Search, sums: Tensor, answers: list[list[int]], origins: list[list[int]], ended: list[bool]
    ) -> None:
        """Keep the best num_beams finished answers; only the first num_beams continuations may become one."""
        count = self._options.num_beams
        if self._options.early_stopping is True and len(search.done) == count:
            return
        scores = (sums / len(answers[0]) ** self._options.length_penalty).tolist()
        new = [Hypothesis(scores[i], answers[i], origins[i]) for i in range(min(count, len(ended))) if ended[i]]
        search.done = sorted([*search.done, *new], key=lambda one: -one.score)[:count]

    def _settled(self, search: Search) -> bool:
        """Whether no running beam is expected to enter the finished ones. That is a guess where longer answers are
        preferred; early_stopping "never" leaves the guess out, True ends as soon as there are enough."""
        options = self._options
        if len(search.done) < options.num_beams:
            return False
        if options.early_stopping is True:
            return True
        never = options.early_stopping == "never" and options.length_penalty > 0
        length = options.params.max_new_tokens if never else len(search.beams[0].output_ids)
        return float(search.sums[0] / length**options.length_penalty) <= search.done[-1].score

    def _reorder(self, search: Search, parents: list[int], cache: SlotCache) -> None:
        """Beam i goes on from where beam parents[i] is: the keys and values of the answers move, prompts are alike."""
        count, beam = len(parents), search.beams[0]
        start, stop = len(beam.prompt_ids), beam.num_tokens
        if parents == list(range(count)) or start == stop:
            return
        index = torch.tensor(parents, device=self._device)
        for store in (*cache.keys, *cache.values):
            mine = cache.by_slot(store)[search.first : search.first + count, :, start:stop]
            mine.copy_(mine.index_select(0, index))
