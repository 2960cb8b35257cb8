"""The KV cache: one storage and one view, two ways to share it out.

Storage: per layer two tensors [kv heads, tokens, D]. A sequence owns runs of token places (start, length), in order;
what lies in one run is read as a view, nothing is gathered. SlotCache gives each sequence one run of fixed length (a
slot); PagedCache gives it pages, of which neighbours join to one run, so that sequences can share the pages of a common
prefix.

Worked example, pages of 4 places. Sequence A owns the pages [0, 1, 5] and has 9 cached tokens: its runs are (0, 8) and
(20, 2) when one more token comes, which is written to place 21. In slots of capacity 12 the same sequence in slot 1 has
the run (12, 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from qwenvl.config import Qwen2_5_VLTextConfig, Qwen2VLTextConfig

    TextConfig = Qwen2_5_VLTextConfig | Qwen2VLTextConfig

Run = tuple[int, int]  # first place, how many


class KVCache:
    """Keys and values with room for `tokens` tokens in all. It does not know lengths or owners: its caller does.

    On the CPU the memory is taken from the system page by page as it is first written.
    """

    def __init__(self, config: TextConfig, tokens: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self._config, self.tokens = config, tokens
        shape = (config.num_key_value_heads, tokens, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [_zeros(shape, dtype, torch.device(device)) for _ in layers]
        self.values = [_zeros(shape, dtype, torch.device(device)) for _ in layers]

    def move(self, layer: int, device: torch.device) -> None:
        """Let a layer's keys and values lie on another device from now on: where the layer is computed."""
        self.keys[layer], self.values[layer] = self.keys[layer].to(device), self.values[layer].to(device)

    def follow(self, other: KVCache) -> None:
        """Let every layer lie where it does in another cache."""
        for layer, store in enumerate(other.keys):
            if store.device != self.keys[layer].device:
                self.move(layer, store.device)

    @staticmethod
    def bytes_per_token(config: TextConfig, dtype: torch.dtype) -> int:
        """Bytes that one token of one sequence takes in all layers."""
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize

    @property
    def dtype(self) -> torch.dtype:
        return self.keys[0].dtype

    @property
    def device(self) -> torch.device:
        return self.keys[0].device


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, since 0 * nan in places that a mask hides would reach the sum. numpy leaves fresh memory untouched."""
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    count = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(count, dtype=np.uint8)).view(dtype).view(shape)


class SlotCache(KVCache):
    """`slots` sequences with room for `capacity` tokens each."""

    def __init__(
        self,
        config: TextConfig,
        slots: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(config, slots * capacity, dtype, device)
        self.slots, self.capacity = slots, capacity

    def view(self, slots: Sequence[int], cached: list[int], new: list[int]) -> CacheView:
        """The part of the cache that a packed batch uses: sequence i has cached[i] tokens in slot slots[i] and brings
        new[i] more. Raises ValueError when one does not fit."""
        return CacheView(self, self.runs(slots, cached, new), cached, new)

    def runs(self, slots: Sequence[int], cached: list[int], new: list[int]) -> list[list[Run]]:
        """One run a sequence, of its cached and new tokens."""
        for slot, have, more in zip(slots, cached, new, strict=True):
            if not 0 <= slot < self.slots:
                raise ValueError(f"slot {slot} does not exist: the cache has {self.slots}")
            if have + more > self.capacity:
                raise ValueError(f"{have} cached + {more} new tokens do not fit a slot of {self.capacity}")
        return [[(s * self.capacity, have + more)] for s, have, more in zip(slots, cached, new, strict=True)]

    def by_slot(self, store: Tensor) -> Tensor:
        """A layer's keys or values as a view [slots, kv heads, capacity, D]."""
        return store.unflatten(1, (self.slots, self.capacity)).transpose(0, 1)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot into another (several answers to one prompt)."""
        a, b = source * self.capacity, target * self.capacity
        for store in (*self.keys, *self.values):
            store[:, b : b + length] = store[:, a : a + length]

    def resized(self, slots: int, capacity: int) -> SlotCache:
        """A cache with at least as many slots and as much room, that holds the same."""
        new = SlotCache(self._config, slots, capacity, self.dtype, self.device)
        new.follow(self)
        if self.tokens:
            for source, target in zip((*self.keys, *self.values), (*new.keys, *new.values), strict=True):
                new.by_slot(target)[: self.slots, :, : self.capacity] = self.by_slot(source)
        return new

    def selected(self, slots: Tensor) -> SlotCache:
        """A cache with the content of `slots`, int64 [n], in that order."""
        new = copy(self)
        new.slots, new.tokens = len(slots), len(slots) * self.capacity
        for name in ("keys", "values"):
            stores = [x.unflatten(1, (self.slots, self.capacity)) for x in getattr(self, name)]
            setattr(new, name, [x.index_select(1, slots.to(x.device)).flatten(1, 2) for x in stores])
        return new


class PagedCache(KVCache):
    """`pages` pages of `page` tokens; which page is whose is the caller's affair (engine/blocks.py)."""

    def __init__(
        self,
        config: TextConfig,
        pages: int,
        page: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(config, pages * page, dtype, device)
        self.pages, self.page = pages, page

    def view(self, tables: Sequence[PageTable], cached: list[int], new: list[int]) -> CacheView:
        """The part of the cache that a packed batch uses: sequence i owns the pages tables[i], has cached[i] tokens
        and brings new[i] more. Raises ValueError when its pages do not hold them."""
        runs = []
        for table, have, more in zip(tables, cached, new, strict=True):
            if have + more > len(table) * self.page:
                raise ValueError(f"{have} cached + {more} new tokens do not fit {len(table)} pages of {self.page}")
            runs.append(table.runs(self.page, have + more))
        return CacheView(self, runs, cached, new)

    def grown(self, pages: int) -> Self:
        """A cache of so many pages that holds the same."""
        new = type(self)(self._config, pages, self.page, self.dtype, self.device)
        new.follow(self)
        for source, target in zip((*self.keys, *self.values), (*new.keys, *new.values), strict=True):
            target[:, : self.tokens] = source
        return new


class PageTable:
    """The pages of one sequence in order, and the runs of neighbours among them."""

    def __init__(self) -> None:
        self.pages: list[int] = []
        self._extents: list[list[int]] = []  # [first page, how many]

    def __len__(self) -> int:
        return len(self.pages)

    def append(self, page: int) -> None:
        """One more page behind the others."""
        if self._extents and sum(self._extents[-1]) == page:
            self._extents[-1][1] += 1
        else:
            self._extents.append([page, 1])
        self.pages.append(page)

    def runs(self, page: int, length: int) -> list[Run]:
        """Runs of the first `length` tokens, for pages of `page` tokens."""
        out: list[Run] = []
        for first, count in self._extents:
            if length <= 0:
                break
            out.append((first * page, min(count * page, length)))
            length -= count * page
        return out or [(0, 0)]


class CacheView:
    """A KVView (see types.py) for one packed batch. runs: those of each sequence, cached and new tokens."""

    def __init__(self, cache: KVCache, runs: list[list[Run]], cached: list[int], new: list[int]) -> None:
        self.cache, self.runs = cache, runs
        self._ends = [a + b for a, b in zip(cached, new, strict=True)]
        self.places: list[int] = []  # of the new tokens
        for sequence, start, end in zip(runs, cached, self._ends, strict=True):
            self.places += _places(sequence, start, end)
        places = self.places
        solid = bool(places) and places[-1] - places[0] == len(places) - 1
        self._target: slice | Tensor = (
            slice(places[0], places[-1] + 1)
            if solid and all(b - a == 1 for a, b in pairwise(places))
            else torch.tensor(places, dtype=torch.long, device=cache.device)
        )

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        if self.cache.keys[layer].device != key.device:
            self.cache.move(layer, key.device)
        target = self._target if isinstance(self._target, slice) else self._target.to(key.device)
        for store, new in ((self.cache.keys[layer], key), (self.cache.values[layer], value)):
            store[:, target] = new.transpose(0, 1).to(store.dtype)

    def storage(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.cache.keys[layer], self.cache.values[layer]

    def read(self, layer: int, index: int) -> tuple[Tensor, Tensor]:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return _read(keys, self.runs[index]), _read(values, self.runs[index])

    def read_batch(self, layer: int, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        stores = self.cache.keys[layer], self.cache.values[layer]
        longest = max(self._ends[i] for i in rows)
        runs = [self.runs[i] for i in rows]
        starts = [sequence[0][0] for sequence in runs]
        step = starts[1] - starts[0] if len(starts) > 1 else longest
        even = all(b - a == step for a, b in pairwise(starts))
        fits = starts[-1] + longest <= self.cache.tokens
        if even and fits and step >= 0 and all(len(sequence) == 1 for sequence in runs):
            views = [_evenly(store, starts[0], step, len(rows), longest) for store in stores]
            return views[0], views[1]
        index = [_places(sequence, 0, end) for sequence, end in zip(runs, (self._ends[i] for i in rows), strict=True)]
        padded = torch.tensor([x + [x[0]] * (longest - len(x)) for x in index], device=stores[0].device)
        gathered = [store.index_select(1, padded.flatten()).unflatten(1, padded.shape) for store in stores]
        return gathered[0].transpose(0, 1), gathered[1].transpose(0, 1)


def _places(runs: list[Run], start: int, end: int) -> list[int]:
    """Places of the tokens [start, end) of a sequence."""
    out: list[int] = []
    first = 0
    for at, length in runs:
        a, b = max(start - first, 0), min(end - first, length)
        if a < b:
            out += range(at + a, at + b)
        first += length
    return out


def _read(store: Tensor, runs: list[Run]) -> Tensor:
    """[kv heads, k_len, D]; a view where there is one run."""
    parts = [store[:, at : at + length] for at, length in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _evenly(store: Tensor, start: int, step: int, count: int, length: int) -> Tensor:
    """A view [count, kv heads, length, D] of runs that begin `step` places after each other."""
    heads, _, size = store.shape
    head, token, one = store.stride()
    offset = store.storage_offset() + start * token
    return store.as_strided((count, heads, length, size), (step * token, head, token, one), offset)
