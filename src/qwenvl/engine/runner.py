"""Chunks -> one packed batch -> logits. The only place of the engine that touches the model.

A picture is encoded when the first chunk that holds one of its tokens is run, and its embeddings are kept
under its content hash for as long as a request that shows it lives: two names of one picture cost one
encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qwenvl.model.finite import first_non_finite
from qwenvl.model.kv_cache import SlotCache
from qwenvl.model.rope_types import BY_LENGTH
from qwenvl.types import PackedBatch, SeqInfo

from .request import VisionItem
from .scheduler import Chunk


class Model(Protocol):
    """What the engine needs of a model; a scripted one in tests has the same three calls."""

    @property
    def config(self) -> Any: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def encode_vision(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """[P, 1176] and int64 [n, 3] -> [V, D]."""

    def run(self, batch: PackedBatch) -> Tensor:
        """Logits float32 [N, vocabulary] of the rows in batch.logits_index."""


class Runner:
    """Runs chunks on a model, and keeps the vision embeddings of live requests."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._embeds: dict[str, Tensor] = {}
        self._users: dict[str, set[str]] = {}

    def make_cache(self, slots: int, capacity: int) -> SlotCache:
        """An empty KV cache that fits the model."""
        model = self._model
        return SlotCache(model.config.text_config, slots, capacity, model.dtype, model.device)

    def encode(self, chunk: Chunk) -> None:
        """Encode the pictures and videos that this chunk is the first to need.

        One item a call: an answer does not depend on whose pictures came along, a bad picture fails alone,
        and the tower's memory is that of one picture.
        """
        for item in _items_in(chunk):
            if item.content_hash not in self._embeds:
                grid = torch.tensor([item.grid], device=self._model.device)
                encode = partial(self._model.encode_vision, item.patches.to(self._model.device), grid)
                embeds = encode()
                if not bool(torch.isfinite(embeds).all()):
                    raise FloatingPointError(f"the vision tower's output is not finite{self._culprit(encode)}")
                assert embeds.shape[0] == item.tokens, (embeds.shape, item.tokens)
                self._embeds[item.content_hash] = embeds
            self._users.setdefault(item.content_hash, set()).add(chunk.request.id)

    def explain(self, chunks: list[Chunk], cache: SlotCache) -> str:
        """Where logits that are not finite come from, found by computing the chunks once more under watch."""
        return self._culprit(partial(self.run, chunks, cache))

    def _culprit(self, compute: Callable[[], Tensor]) -> str:
        name = first_non_finite(self._model, compute) if isinstance(self._model, nn.Module) else None
        return f", first at {name}: load the model in bfloat16 or float32" if name else ""

    def release(self, request_id: str) -> None:
        """Forget the embeddings that only this request needed."""
        for key, users in list(self._users.items()):
            users.discard(request_id)
            if not users:
                del self._users[key], self._embeds[key]

    @property
    def kept(self) -> int:
        """How many pictures' embeddings are held."""
        return len(self._embeds)

    def run(self, chunks: list[Chunk], cache: SlotCache) -> Tensor:
        """Compute the chunks: keys and values go to the cache, logits [N, vocabulary] come back, one row for
        each chunk that wants_logits, in order. encode() must have been called for each chunk."""
        device = self._model.device
        ids: list[int] = []
        rows: list[int] = []
        embeds: list[Tensor] = []
        places: list[int] = []
        for chunk in chunks:
            given = chunk.request.prompt_embeds
            if given is not None and chunk.start < len(given):
                part, at = self._given(chunk, given), len(ids)
                embeds.append(part)
                places.extend(range(at, at + len(part)))
            for item in _items_in(chunk) if given is None else ():
                first, last = max(item.start, chunk.start), min(item.start + item.tokens, chunk.stop)
                embeds.append(self._embeds[item.content_hash][first - item.start : last - item.start])
                places.extend(range(len(ids) + first - chunk.start, len(ids) + last - chunk.start))
            ids.extend(chunk.request.token_ids(chunk.start, chunk.stop))
            if chunk.wants_logits:
                rows.append(len(ids) - 1)
        new, cached = [c.stop - c.start for c in chunks], [c.start for c in chunks]
        slots = [_slot(chunk) for chunk in chunks]
        batch = PackedBatch(
            token_ids=torch.tensor(ids, device=device),
            positions=torch.cat([c.request.positions_of(c.start, c.stop) for c in chunks], dim=1).to(device),
            seq=SeqInfo.from_lengths(new, cached),
            kv=cache.view(slots, cached, new),
            vision_embeds=torch.cat(embeds) if embeds else None,
            vision_index=torch.tensor(places, device=device) if embeds else None,
            logits_index=torch.tensor(rows, dtype=torch.long, device=device),
            reach=self._reach(chunks),
        )
        return self._model.run(batch)

    def _reach(self, chunks: list[Chunk]) -> tuple[int, ...] | None:
        """How many positions each prompt takes, for the rotary scalings that go by it."""
        if getattr(self._model.config.text_config, "rope_type", "default") not in BY_LENGTH:
            return None
        return tuple(int(chunk.request.positions.max()) + 1 for chunk in chunks)

    def _given(self, chunk: Chunk, prompt_embeds: Tensor) -> Tensor:
        """The embeddings given for a chunk's prompt tokens, with its pictures put in."""
        part = prompt_embeds[chunk.start : chunk.stop].to(self._model.device, self._model.dtype, copy=True)
        for item in _items_in(chunk):
            first, last = max(item.start, chunk.start), min(item.start + item.tokens, chunk.stop)
            shown = self._embeds[item.content_hash][first - item.start : last - item.start]
            part[first - chunk.start : last - chunk.start] = shown.to(part.dtype)
        return part


def _items_in(chunk: Chunk) -> list[VisionItem]:
    """Pictures and videos with at least one token in the chunk."""
    return [i for i in chunk.request.items if i.start < chunk.stop and i.start + i.tokens > chunk.start]


def _slot(chunk: Chunk) -> int:
    assert chunk.request.slot is not None, "a chunk belongs to a request that holds a slot"
    return chunk.request.slot
