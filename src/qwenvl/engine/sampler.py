"""Logits -> tokens, each request by its own parameters and its own random numbers.

For a row: vision tokens banned -> what its grammar forbids banned -> what logits.py says of its parameters -> draw. One
uniform number a token comes from the request's own generator, and rows are computed in groups of equal width, so that a
seeded answer does not depend on which other requests share the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qwenvl.types import SamplingParams

from .grammar import Guide
from .logits import banned_next, column, forced_next, full_width, penalise, restrict, restricts, warp

Process = Callable[[list[int], Tensor], Tensor]


@dataclass(eq=False)
class SamplerState:
    """What the sampler knows of one request.

    generator: on the CPU, so that a seed means the same on every device; None for greedy requests.
    seen: bool [vocabulary], tokens of prompt and answer; None without a repetition penalty.
    prompt, answer: the ids so far. process: the caller's own (answer ids, scores [vocabulary]) -> scores.
    guide: where the answer is in its grammar.
    """

    params: SamplingParams
    generator: torch.Generator | None
    seen: Tensor | None
    prompt: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    process: Process | None = None
    guide: Guide | None = None


@dataclass(frozen=True)
class Drawn:
    """The token of one row, or why there is none.

    logprob: log-softmax of the model's own logits (before bans, penalty and temperature) at the token, so
    that a plain forward over the answer gives the same number; None unless params.logprobs. error: why there is no
    token; damaged: whether the model's numbers are at fault, and not what was asked. scores: the row that the
    token was chosen from, -inf for what was cut off; logits: the model's own row; float32 [vocabulary], None unless
    params.keep_scores and keep_logits.
    """

    token: int
    logprob: float | None = None
    error: str | None = None
    damaged: bool = True
    scores: Tensor | None = None
    logits: Tensor | None = None


class Sampler:
    """Draws tokens. banned: ids that are never generated (pictures cannot be written, only shown). ends: ids that end
    an answer, for requests that do not ignore them."""

    def __init__(
        self, vocab_size: int, banned: Sequence[int], device: torch.device, ends: Collection[int] = ()
    ) -> None:
        self._vocab_size = vocab_size
        self._banned = torch.tensor(sorted(i for i in set(banned) if i < vocab_size), dtype=torch.long, device=device)
        self._ends = frozenset(ends)

    def start(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        process: Process | None = None,
        guide: Guide | None = None,
    ) -> SamplerState:
        """State of a new request. Without a seed, one is drawn from torch's global generator:
        torch.manual_seed makes such answers repeatable too."""
        generator = None
        if params.temperature > 0:
            seed = params.seed if params.seed is not None else int(torch.randint(2**63 - 1, ()))
            generator = torch.Generator().manual_seed(seed)
        return SamplerState(params, generator, self.seen(prompt_ids, params), prompt_ids, [], process, guide)

    def seen(self, ids: Sequence[int], params: SamplingParams) -> Tensor | None:
        """bool [vocabulary]: the ids that a repetition penalty is for; None without one."""
        if params.repetition_penalty == 1:
            return None
        seen = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._banned.device)
        seen[torch.tensor(ids, dtype=torch.long, device=seen.device)] = True
        return seen

    def process(self, scores: Tensor, states: Sequence[SamplerState]) -> Tensor:
        """Scores [n, vocabulary] after grammars, bans, penalties and the callers' processors, before temperature. What
        is given is overwritten."""
        scores.index_fill_(1, self._banned, float("-inf"))
        for row, state in enumerate(states):
            if state.guide is not None:
                scores[row].masked_fill_(torch.from_numpy(state.guide.banned()).to(scores.device), float("-inf"))
        rows = [row for row, state in enumerate(states) if state.seen is not None]
        if rows:
            index = torch.tensor(rows, device=scores.device)
            seen = torch.stack([state.seen for state in states if state.seen is not None])
            factor = column([states[row].params.repetition_penalty for row in rows], scores)
            scores[index] = penalise(scores[index], seen, factor)
        for row, state in enumerate(states):
            params = state.params
            if restricts(params):
                ends = {*params.stop_token_ids, *(() if params.ignore_eos else self._ends)}
                banned = banned_next(state.prompt, state.answer, params, ends)
                scores[row] = restrict(scores[row], banned, forced_next(state.answer, params))
            if state.process is not None:
                scores[row] = state.process(state.answer, scores[row].clone())
        return scores

    def sample(self, logits: Tensor, states: Sequence[SamplerState]) -> list[Drawn]:
        """One token for each row of logits, float32 [N, vocabulary], which may be overwritten. A row with a value that
        is not finite gives an error for that row alone."""
        if not states:
            return []
        low, high = logits.aminmax(dim=-1)  # NaN wins both
        finite = torch.isfinite(low) & torch.isfinite(high)
        kept = any(state.params.logprobs or state.params.keep_logits for state in states)
        damaged = not bool(finite.all())
        scores = logits.clone() if kept or damaged else logits
        scores = self.process(scores.masked_fill_(~finite.unsqueeze(1), 0.0) if damaged else scores, states)
        best, tokens = scores.max(dim=-1)
        usable = [True] * len(states)
        if any(state.process is not None or state.guide is not None or restricts(state.params) for state in states):
            some_left = best > float("-inf")  # False for NaN too, which only a caller's processor makes
            usable = some_left.tolist()
            if not all(usable):
                scores = torch.where(some_left.unsqueeze(1), scores, 0.0)
        groups: dict[tuple[int, bool], list[int]] = {}
        for row, state in enumerate(states):
            if state.generator is not None:
                key = (min(state.params.top_k, scores.shape[-1]), state.params.top_p < 1)
                groups.setdefault(key, []).append(row)
        for (top_k, nucleus), rows in groups.items():
            index = torch.tensor(rows, device=logits.device)
            group = [states[row] for row in rows]
            warped = warp(scores[index], [state.params for state in group], top_k, nucleus)
            tokens[index] = _draw(warped.probs, warped.order, group)
            if any(state.params.keep_scores for state in group):
                scores[index] = full_width(warped, scores.shape[-1])
        return self._report(logits, scores, tokens, finite.tolist(), usable, states)

    def _report(
        self,
        logits: Tensor,
        scores: Tensor,
        tokens: Tensor,
        finite: list[bool],
        usable: list[bool],
        states: Sequence[SamplerState],
    ) -> list[Drawn]:
        logprobs: Tensor | None = None
        if any(state.params.logprobs for state in states):
            logprobs = logits.gather(1, tokens.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=-1)
        drawn = []
        for row, (token, state) in enumerate(zip(tokens.tolist(), states, strict=True)):
            if not finite[row]:
                bad = int((~torch.isfinite(logits[row])).sum())
                drawn.append(
                    Drawn(
                        -1,
                        error=f"the model's logits are not finite ({bad} of {logits.shape[-1]}): "
                        "the weights are damaged, or numbers overflowed (in float16: use bfloat16)",
                    )
                )
                continue
            if not usable[row]:
                reason = "no token may come next: the options and processors ban all of them, or one gave NaN"
                if state.guide is not None:
                    reason = state.guide.fault or f"{reason} (of those that the grammar allows)"
                drawn.append(Drawn(-1, error=reason, damaged=False))
                continue
            if state.seen is not None:
                state.seen[token] = True
            state.answer.append(token)
            if state.guide is not None:
                state.guide.take(token)
            drawn.append(
                Drawn(
                    token,
                    float(logprobs[row]) if logprobs is not None and state.params.logprobs else None,
                    scores=scores[row].clone() if state.params.keep_scores else None,
                    logits=logits[row].clone() if state.params.keep_logits else None,
                )
            )
        return drawn


def _draw(probs: Tensor, order: Tensor | None, states: Sequence[SamplerState]) -> Tensor:
    """Tokens int64 [n] drawn from probabilities [n, k] of the ids in order, by inversion of the cumulative
    distribution. All states have a generator."""
    cumulative = probs.cumsum(dim=-1)
    uniform = [torch.rand((), dtype=torch.float64, generator=state.generator) for state in states]
    point = torch.stack(uniform).clamp(max=1 - 2**-40).to(probs.device).unsqueeze(1) * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, point, right=True)
    return (picked if order is None else order.gather(1, picked)).squeeze(1)
