"""Pictures and videos of requests -> embeddings, at most once for equal content, and a piece at a time.

A long video is encoded some time steps at a call (attention never crosses a step), so that answers that are being
written are not held up for all of it. What a live request shows is kept as long as it lives; what nobody shows any more
stays in the cache while there is room.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qwenvl.model.finite import first_non_finite

from .request import Request, VisionItem
from .vision_cache import VisionCache, split_item


class Vision:
    """The tower with its cache. budget: patches of one call, where an item can be divided."""

    def __init__(self, model: Any, cache: VisionCache, budget: int) -> None:
        self._model, self.cache, self._budget = model, cache, budget
        self._parts: dict[str, list[Tensor]] = {}  # of items that are encoded in part

    def has(self, item: VisionItem, request: Request) -> bool:
        """Whether an item's embeddings are there; they then stay until release(request.id)."""
        return self.cache.get(item.content_hash, request.id) is not None

    def embeds(self, item: VisionItem) -> Tensor:
        """Embeddings [V, D] of an item that has() is true for."""
        found = self.cache.peek(item.content_hash)
        assert found is not None, "pinned embeddings stay"
        return found

    def ready(self, request: Request) -> int:
        """Up to which token the request can be computed: the first of an item that is still to be encoded."""
        for item in request.items:
            if item.start + item.tokens > request.computed and not self.has(item, request):
                return item.start
        return request.num_tokens

    def advance(self, request: Request, item: VisionItem) -> int:
        """Encode the next piece of an item; returns how many patches that were."""
        pieces = split_item(item.grid, self._budget)
        parts = self._parts.setdefault(item.content_hash, [])
        first, steps = pieces[len(parts)]
        _, h, w = item.grid
        patches = item.patches[first * h * w : (first + steps) * h * w].to(self._model.device)
        grid = torch.tensor([[steps, h, w]], device=self._model.device)
        affine = () if item.affine is None else (item.affine,)
        try:
            parts.append(self._finite(partial(self._model.encode_vision, patches, grid, *affine)))
        except Exception:
            del self._parts[item.content_hash]
            raise
        if len(parts) == len(pieces):
            del self._parts[item.content_hash]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            assert whole.shape[0] == item.tokens, (whole.shape, item.tokens)
            self.cache.put(item.content_hash, whole, request.id)
        return steps * h * w

    def encode(self, request: Request) -> None:
        """Encode all that a request still needs."""
        for item in request.items:
            while item.start + item.tokens > request.computed and not self.has(item, request):
                self.advance(request, item)

    def release(self, owner: str) -> None:
        """This request shows nothing any more."""
        self.cache.release(owner)

    def forget_parts(self, wanted: set[str]) -> None:
        """Drop what was encoded in part of items that nobody wants any more."""
        for key in [key for key in self._parts if key not in wanted]:
            del self._parts[key]

    def restart(self) -> None:
        """Nobody shows anything now, and what is encoded in part is begun anew: the caller was interrupted."""
        self._parts.clear()
        self.cache.restart()

    @property
    def has_parts(self) -> bool:
        return bool(self._parts)

    def _finite(self, encode: Callable[[], Tensor]) -> Tensor:
        embeds = encode()
        if not bool(torch.isfinite(embeds).all()):
            raise FloatingPointError(f"the vision tower's output is not finite{culprit(self._model, encode)}")
        return embeds


def culprit(model: Any, compute: Callable[[], Tensor]) -> str:
    """Which layer made the first number that is not finite, found by computing once more under watch."""
    name = first_non_finite(model, compute) if isinstance(model, nn.Module) else None
    return f", first at {name}: load the model in bfloat16 or float32" if name else ""
