"""Chunks -> one packed batch -> logits. With vision.py the only place of the engine that touches the model."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from qwenvl.model.kv_cache import PagedCache, SlotCache
from qwenvl.model.rope_types import BY_LENGTH
from qwenvl.types import PackedBatch, SeqInfo

from .blocks import PAGE
from .graphs import Graphs, SparedCache
from .request import VisionItem
from .scheduler import Chunk
from .vision import Vision, culprit
from .vision_cache import VisionCache


class Model(Protocol):
    """What the engine needs of a model; a scripted one in tests has the same three calls."""

    @property
    def config(self) -> Any: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def encode_vision(self, pixel_values: Tensor, grid_thw: Tensor, affine: Any = None) -> Tensor:
        """[P, 1176] and int64 [n, 3] -> [V, D]; affine comes with uint8 pixels."""

    def run(self, batch: PackedBatch) -> Tensor:
        """Logits float32 [N, vocabulary] of the rows in batch.logits_index."""


class Runner:
    """Runs chunks on a model. vision: where the embeddings of pictures come from. graphs: decode steps through CUDA
    graphs, where the rotary scaling allows it (graphs.py)."""

    def __init__(
        self, model: Model, cache: VisionCache | None = None, vision_budget: int = 2**40, graphs: bool = False
    ) -> None:
        self._model = model
        self.vision = Vision(model, cache or VisionCache(0), vision_budget)
        self._graphs = Graphs(model) if graphs and not self.depends_on_length else None

    @property
    def depends_on_length(self) -> bool:
        """Whether keys depend on how long the whole prompt is (some rotary scalings), so that prefixes cannot be
        shared."""
        return getattr(self._model.config.text_config, "rope_type", "default") in BY_LENGTH

    def make_pages(self, pages: int) -> PagedCache:
        """An empty cache in pages that fits the model."""
        kind = PagedCache if self._graphs is None else SparedCache
        return kind(self._model.config.text_config, pages, PAGE, self._model.dtype, self._model.device)

    def make_slots(self, slots: int, capacity: int) -> SlotCache:
        """An empty cache in slots that fits the model."""
        return SlotCache(self._model.config.text_config, slots, capacity, self._model.dtype, self._model.device)

    def explain(self, chunks: list[Chunk], cache: PagedCache | SlotCache) -> str:
        """Where logits that are not finite come from, found by computing the chunks once more under watch."""
        return culprit(self._model, partial(self._compute, chunks, cache))

    def run(self, chunks: list[Chunk], cache: PagedCache | SlotCache) -> Tensor:
        """Compute the chunks: keys and values go to the cache, logits [N, vocabulary] come back: for each chunk that
        wants_logits, in order, those behind its last token and behind each token of its draft. vision.ready() must
        have said that each chunk can be computed. The logits are overwritten by the next call."""
        captured = None if self._graphs is None else self._graphs.run(chunks, cache)
        return self._compute(chunks, cache) if captured is None else captured

    def _compute(self, chunks: list[Chunk], cache: PagedCache | SlotCache) -> Tensor:
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
                embeds.append(self.vision.embeds(item)[first - item.start : last - item.start])
                places.extend(range(len(ids) + first - chunk.start, len(ids) + last - chunk.start))
            ids += chunk.request.token_ids(chunk.start, chunk.stop)
            if chunk.wants_logits:
                rows += range(len(ids) - 1, len(ids) + len(chunk.draft))
            ids += chunk.draft
        new, cached = [c.tokens for c in chunks], [c.start for c in chunks]
        batch = PackedBatch(
            token_ids=torch.tensor(ids, device=device),
            positions=_positions(chunks).to(device),
            seq=SeqInfo.from_lengths(new, cached),
            kv=_view(cache, chunks, cached, new),
            vision_embeds=torch.cat(embeds) if embeds else None,
            vision_index=torch.tensor(places, device=device) if embeds else None,
            logits_index=torch.tensor(rows, dtype=torch.long, device=device),
            reach=self._reach(chunks),
        )
        return self._model.run(batch)

    def _reach(self, chunks: list[Chunk]) -> tuple[int, ...] | None:
        """How many positions each prompt takes, for the rotary scalings that go by it."""
        if not self.depends_on_length:
            return None
        return tuple(int(chunk.request.positions.max()) + 1 for chunk in chunks)

    def _given(self, chunk: Chunk, prompt_embeds: Tensor) -> Tensor:
        """The embeddings given for a chunk's prompt tokens, with its pictures put in."""
        part = prompt_embeds[chunk.start : chunk.stop].to(self._model.device, self._model.dtype, copy=True)
        for item in _items_in(chunk):
            first, last = max(item.start, chunk.start), min(item.start + item.tokens, chunk.stop)
            shown = self.vision.embeds(item)[first - item.start : last - item.start]
            part[first - chunk.start : last - chunk.start] = shown.to(part.dtype)
        return part


def _items_in(chunk: Chunk) -> list[VisionItem]:
    """Pictures and videos with at least one token in the chunk."""
    return [i for i in chunk.request.items if i.start < chunk.stop and i.start + i.tokens > chunk.start]


def _positions(chunks: list[Chunk]) -> Tensor:
    """int64 [3, T] of all chunks; those of answers, which count on in all three rows, cost one tensor together."""
    if all(chunk.start >= len(chunk.request.prompt_ids) for chunk in chunks):
        counted = [i + c.request.delta for c in chunks for i in range(c.start, c.start + c.tokens)]
        return torch.tensor(counted).expand(3, -1)
    return torch.cat([c.request.positions_of(c.start, c.start + c.tokens) for c in chunks], dim=1)


def _view(cache: PagedCache | SlotCache, chunks: list[Chunk], cached: list[int], new: list[int]) -> Any:
    if isinstance(cache, PagedCache):
        return cache.view([chunk.request.table for chunk in chunks], cached, new)
    slots = [chunk.request.slot for chunk in chunks]
    return cache.view([slot for slot in slots if slot is not None], cached, new)
