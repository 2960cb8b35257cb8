"""Which tokens may come next, and how likely: what the documented options do to a row of scores.

Everything here is a function of one row's own history, so that an answer does not depend on its batch mates. Order,
as the documents' users expect it: repetition penalty -> bans (n-grams, bad words, minimum length, suppressed ids) ->
forced end -> the caller's own processors -> temperature -> top-k -> top-p -> min-p -> typical-p.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qwenvl.types import SamplingParams


def penalise(scores: Tensor, seen: Tensor, factor: Tensor) -> Tensor:
    """Repetition penalty: scores [n, vocabulary], seen bool [n, vocabulary], factor [n, 1]."""
    return torch.where(seen, torch.where(scores > 0, scores / factor, scores * factor), scores)


def restricts(params: SamplingParams) -> bool:
    """Whether banned_next or forced_next may have something to say for a request with these parameters."""
    return bool(
        params.no_repeat_ngram_size
        or params.min_new_tokens
        or params.bad_words
        or params.suppress_tokens
        or params.begin_suppress_tokens
        or params.forced_eos
    )


def banned_next(
    prompt: Sequence[int], answer: Sequence[int], params: SamplingParams, ends: Collection[int]
) -> set[int]:
    """Ids that may not come behind prompt and answer. ends: the ids that end an answer.

    Example: no_repeat_ngram_size 2 behind 5 6 7 5 bans 6; bad_words ((7, 8),) behind ... 7 bans 8.
    """
    banned = set(params.suppress_tokens)
    if not answer:
        banned.update(params.begin_suppress_tokens)
    if len(answer) < params.min_new_tokens:
        banned.update(ends)
    history = [*prompt, *answer] if params.no_repeat_ngram_size or params.bad_words else []
    size = params.no_repeat_ngram_size
    if size:
        tail = history[len(history) - size + 1 :]
        banned.update(
            history[i + size - 1] for i in range(len(history) - size + 1) if history[i : i + size - 1] == tail
        )
    for word in params.bad_words:
        begin = list(word[:-1])
        follows = len(begin) <= len(history) and history[len(history) - len(begin) :] == begin
        if follows and (begin or word[0] not in ends):
            banned.add(word[-1])
    return banned


def forced_next(answer: Sequence[int], params: SamplingParams) -> tuple[int, ...]:
    """The only ids that may come now; empty where any may."""
    return params.forced_eos if len(answer) == params.max_new_tokens - 1 else ()


def restrict(scores: Tensor, banned: Collection[int], forced: Sequence[int]) -> Tensor:
    """Scores [vocabulary] without the banned ids; where ids are forced, these have 0 and all others -inf."""
    if forced:
        scores = torch.full_like(scores, float("-inf"))
        scores[list(forced)] = 0.0
    elif banned:
        inside = [token for token in banned if 0 <= token < scores.shape[-1]]
        scores = scores.index_fill(0, torch.tensor(inside, dtype=torch.long, device=scores.device), float("-inf"))
    return scores


class Warped(NamedTuple):
    """Candidates of n rows: scores / temperature float64 [n, k], their ids [n, k] (None = all, in order), which are
    kept [n, k], and probabilities [n, k], 0 for those cut off and not normalised again."""

    scores: Tensor
    order: Tensor | None
    kept: Tensor
    probs: Tensor


def warp(scores: Tensor, params: Sequence[SamplingParams], top_k: int, nucleus: bool, least: int = 1) -> Warped:
    """What sampling draws from, of scores [n, vocabulary].

    All rows have this top_k (0 = off); nucleus: whether they have a top_p below 1. least: how many of the best tokens
    stay in any case (beam search needs some).
    """
    order: Tensor | None = None
    if top_k or nucleus:
        scores, order = scores.topk(min(max(top_k, least), scores.shape[-1]) if top_k else scores.shape[-1], dim=-1)
    elif least > 1:
        scores, order = scores.sort(dim=-1, descending=True)
    scores = scores.double()
    warmth = column([p.temperature for p in params], scores)
    # Relative to the best token: temperatures as low as 1e-6 (the published ones) then cannot overflow.
    best = scores.max(dim=-1, keepdim=True).values
    probs = ((scores - best) / warmth).softmax(dim=-1)
    kept = torch.isfinite(scores)
    if nucleus:
        before = probs.cumsum(dim=-1) - probs
        kept = kept & (before < column([p.top_p for p in params], probs))
    kept = kept & (probs >= column([p.min_p for p in params], probs) * probs.max(dim=-1, keepdim=True).values)
    for row, one in enumerate(params):
        if one.typical_p < 1:
            kept[row] &= _typical(torch.where(kept[row], probs[row], 0.0), one.typical_p)
    if least > 1:
        kept[:, :least] = torch.isfinite(scores[:, :least])
    return Warped(scores / warmth, order, kept, torch.where(kept, probs, 0.0))


def _typical(probs: Tensor, mass: float) -> Tensor:
    """bool [k]: the tokens whose surprise is nearest to the expected one, until their mass is reached."""
    probs = probs / probs.sum()
    surprise = -probs.log()
    entropy = torch.where(probs > 0, probs * surprise, 0.0).sum()
    away = torch.where(probs > 0, (surprise - entropy).abs(), float("inf"))
    ranked, order = away.sort()
    last = int((probs[order].cumsum(0) < mass).sum().clamp(max=len(probs) - 1))
    return away <= ranked[last]


def full_width(warped: Warped, vocabulary: int) -> Tensor:
    """The warped scores as float32 [n, vocabulary], -inf for all that is cut off."""
    kept = torch.where(warped.kept, warped.scores, float("-inf")).float()
    if warped.order is None:
        return kept
    return kept.new_full((kept.shape[0], vocabulary), float("-inf")).scatter_(1, warped.order, kept)


def column(values: list[float], like: Tensor) -> Tensor:
    """One number a row, [n, 1], in dtype and on device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
