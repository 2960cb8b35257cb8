"""The caller's own functions of generate() -> the hooks of one row's request.

They see what they expect: the row as it was given, padding included, with the answer so far behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .request import Hooks

Processor = Callable[[Tensor, Tensor], Tensor]
Criterion = Callable[[Tensor, Any], Any]
PrefixAllowed = Callable[[int, Tensor], Sequence[int]]


def row_hooks(
    prompt: Tensor,
    row: int,
    processors: Iterable[Processor] | Processor | None,
    criteria: Iterable[Criterion] | Criterion | None,
    prefix_allowed: PrefixAllowed | None,
    deadline: float | None,
) -> Hooks:
    """Hooks for row number `row`, whose prompt is int64 [S]. deadline: on the clock of time.monotonic, None = none."""
    processes, stops = _listed("logits_processor", processors), _listed("stopping_criteria", criteria)
    if prefix_allowed is not None:
        processes = [_Prefix(row, prefix_allowed), *processes]

    def process(answer: list[int], scores: Tensor) -> Tensor:
        ids, scores = _behind(prompt, answer), scores.unsqueeze(0)
        for one in processes:
            scores = one(ids, scores)
        return scores[0]

    def stop(answer: list[int], kept: list[Tensor]) -> bool:
        if deadline is not None and time.monotonic() > deadline:
            return True
        ids = _behind(prompt, answer)
        scores = tuple(score.unsqueeze(0) for score in kept) or None
        return any(_truth(one(ids, scores)) for one in stops)

    return Hooks(process if processes else None, stop if stops or deadline is not None else None)


class _Prefix:
    """prefix_allowed_tokens_fn as a processor."""

    def __init__(self, row: int, allowed: PrefixAllowed) -> None:
        self._row, self._allowed = row, allowed

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        allowed = list(self._allowed(self._row, ids[0]))
        if not allowed:
            raise ValueError(f"prefix_allowed_tokens_fn allows no token for row {self._row}: return at least one id")
        masked = torch.full_like(scores, float("-inf"))
        masked[:, allowed] = scores[:, allowed]
        return masked


def _behind(prompt: Tensor, answer: list[int]) -> Tensor:
    return torch.cat((prompt, torch.tensor(answer, dtype=prompt.dtype, device=prompt.device))).unsqueeze(0)


def _truth(value: Any) -> bool:
    return bool(value.any()) if isinstance(value, Tensor) else bool(value)


def _listed(name: str, given: Any) -> list[Any]:
    listed = [] if given is None else list(given) if isinstance(given, Iterable) else [given]
    for one in listed:
        if not callable(one):
            raise ValueError(f"{name} holds a {type(one).__name__}: expected functions")
    return listed
