"""Logits -> tokens, each request by its own parameters and its own random numbers.

Order, for a row: vision tokens banned -> repetition penalty -> temperature -> top-k -> top-p -> min-p ->
draw. One uniform number a token comes from the request's own generator, and rows are computed in groups of
equal width, so that a seeded answer does not depend on which other requests share the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenvl.types import SamplingParams


@dataclass(eq=False)
class SamplerState:
    """What the sampler knows of one request.

    generator: on the CPU, so that a seed means the same on every device; None for greedy requests.
    seen: bool [vocabulary], tokens of prompt and answer; None without a repetition penalty.
    """

    params: SamplingParams
    generator: torch.Generator | None
    seen: Tensor | None


@dataclass(frozen=True)
class Drawn:
    """The token of one row, or why there is none.

    logprob: log-softmax of the model's own logits (before bans, penalty and temperature) at the token, so
    that a plain forward over the answer gives the same number; None unless params.logprobs.
    """

    token: int
    logprob: float | None = None
    error: str | None = None


class Sampler:
    """Draws tokens. banned: ids that are never generated (pictures cannot be written, only shown)."""

    def __init__(self, vocab_size: int, banned: Sequence[int], device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._banned = torch.tensor(sorted(set(banned)), dtype=torch.long, device=device)

    def start(self, prompt_ids: list[int], params: SamplingParams) -> SamplerState:
        """State of a new request. Without a seed, one is drawn from torch's global generator:
        torch.manual_seed makes such answers repeatable too."""
        generator = seen = None
        if params.temperature > 0:
            seed = params.seed if params.seed is not None else int(torch.randint(2**63 - 1, ()))
            generator = torch.Generator().manual_seed(seed)
        if params.repetition_penalty != 1:
            seen = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._banned.device)
            seen[torch.tensor(prompt_ids, device=seen.device)] = True
        return SamplerState(params, generator, seen)

    def sample(self, logits: Tensor, states: Sequence[SamplerState]) -> list[Drawn]:
        """One token for each row of logits, float32 [N, vocabulary]. A row with a value that is not finite
        gives an error for that row alone."""
        if not states:
            return []
        finite = torch.isfinite(logits).all(dim=-1)
        scores = torch.where(finite.unsqueeze(1), logits, 0.0).index_fill_(1, self._banned, float("-inf"))
        _penalise(scores, states)
        tokens = scores.argmax(dim=-1)
        groups: dict[tuple[int, bool], list[int]] = {}
        for row, state in enumerate(states):
            if state.generator is not None:
                key = (min(state.params.top_k, scores.shape[-1]), state.params.top_p < 1)
                groups.setdefault(key, []).append(row)
        for (top_k, nucleus), rows in groups.items():
            index = torch.tensor(rows, device=logits.device)
            tokens[index] = _draw(scores[index], [states[row] for row in rows], top_k, nucleus)
        return self._report(logits, tokens, finite.tolist(), states)

    def _report(
        self, logits: Tensor, tokens: Tensor, finite: list[bool], states: Sequence[SamplerState]
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
            if state.seen is not None:
                state.seen[token] = True
            wanted = logprobs is not None and state.params.logprobs
            drawn.append(Drawn(token, float(logprobs[row]) if wanted and logprobs is not None else None))
        return drawn


def _penalise(scores: Tensor, states: Sequence[SamplerState]) -> None:
    """Repetition penalty, in place, for the rows that have one."""
    rows = [row for row, state in enumerate(states) if state.seen is not None]
    if not rows:
        return
    index = torch.tensor(rows, device=scores.device)
    seen = torch.stack([state.seen for state in states if state.seen is not None])
    factor = _column([states[row].params.repetition_penalty for row in rows], scores)
    part = scores[index]
    scores[index] = torch.where(seen, torch.where(part > 0, part / factor, part * factor), part)


def _draw(scores: Tensor, states: Sequence[SamplerState], top_k: int, nucleus: bool) -> Tensor:
    """Tokens int64 [n] drawn from scores [n, vocabulary], by inversion of the cumulative distribution.

    All states have this top_k (0 = off) and a generator; nucleus: whether they have a top_p below 1.
    """
    params = [state.params for state in states]
    order: Tensor | None = None
    if top_k or nucleus:
        scores, order = scores.topk(top_k or scores.shape[-1], dim=-1)
    scores = scores.double()
    # Relative to the best token: temperatures as low as 1e-6 (the published ones) then cannot overflow.
    scores = scores - scores.max(dim=-1, keepdim=True).values
    probs = (scores / _column([p.temperature for p in params], scores)).softmax(dim=-1)
    if nucleus:
        before = probs.cumsum(dim=-1) - probs
        probs = torch.where(before < _column([p.top_p for p in params], probs), probs, 0.0)
    floor = _column([p.min_p for p in params], probs) * probs.max(dim=-1, keepdim=True).values
    cumulative = torch.where(probs >= floor, probs, 0.0).cumsum(dim=-1)
    uniform = [torch.rand((), dtype=torch.float64, generator=state.generator) for state in states]
    point = torch.stack(uniform).clamp(max=1 - 2**-40).to(scores.device).unsqueeze(1) * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, point, right=True)
    return (picked if order is None else order.gather(1, picked)).squeeze(1)


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
