"""The KV cache in contiguous slots: one slot a sequence, keys and values are views, nothing is gathered.

Worked example, 2 slots of capacity 8. Sequence A (5 cached tokens) lives in slot 0 and decodes one token, sequence B
is new in slot 1 with a prompt of 3: `cache.view(slots=[0, 1], cached=[5, 0], new=[1, 3])` writes the packed keys
[T=4] to (slot 0, place 5) and (slot 1, places 0..2); sequence A then reads 6 keys, B reads 3.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from qwenvl.config import Qwen2_5_VLTextConfig, Qwen2VLTextConfig


class SlotCache:
    """Keys and values of `slots` sequences with room for `capacity` tokens each.

    Storage: per layer two tensors [slots, kv heads, capacity, D]. The cache does not know lengths: its caller does.
    """

    def __init__(
        self,
        config: Qwen2_5_VLTextConfig | Qwen2VLTextConfig,
        slots: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (slots, config.num_key_value_heads, capacity, config.head_dim)
        self._config = config
        self.slots, self.capacity = slots, capacity
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]

    @staticmethod
    def bytes_per_token(config: Qwen2_5_VLTextConfig | Qwen2VLTextConfig, dtype: torch.dtype) -> int:
        """Bytes that one token of one sequence takes in all layers."""
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize

    def view(self, slots: list[int], cached: list[int], new: list[int]) -> SlotView:
        """The part of the cache that a packed batch uses: sequence i has cached[i] tokens in slot slots[i] and brings
        new[i] more. Raises ValueError when one does not fit."""
        for slot, have, more in zip(slots, cached, new, strict=True):
            if not 0 <= slot < self.slots:
                raise ValueError(f"slot {slot} does not exist: the cache has {self.slots}")
            if have + more > self.capacity:
                raise ValueError(f"{have} cached + {more} new tokens do not fit a slot of {self.capacity}")
        return SlotView(self, slots, cached, new)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot into another (several answers to one prompt)."""
        for store in (*self.keys, *self.values):
            store[target, :, :length] = store[source, :, :length]

    def resized(self, slots: int, capacity: int) -> SlotCache:
        """A cache with at least as many slots and as much room, that holds the same."""
        return SlotCache(self._config, slots, capacity, self.keys[0].dtype, self.keys[0].device).filled(self)

    def filled(self, old: SlotCache) -> SlotCache:
        """Itself, with the content of a cache that has no more slots and no more room."""
        for source, target in zip((*old.keys, *old.values), (*self.keys, *self.values), strict=True):
            target[: old.slots, :, : old.capacity] = source
        return self

    def selected(self, slots: Tensor) -> SlotCache:
        """A cache with the content of `slots`, int64 [n], in that order."""
        new = copy(self)
        new.slots = len(slots)
        new.keys = [store.index_select(0, slots) for store in self.keys]
        new.values = [store.index_select(0, slots) for store in self.values]
        return new


class SlotView:
    """A KVView (see types.py) of SlotCache for one packed batch."""

    def __init__(self, cache: SlotCache, slots: list[int], cached: list[int], new: list[int]) -> None:
        device = cache.keys[0].device
        self._cache, self._slots = cache, slots
        self._ends = [a + b for a, b in zip(cached, new, strict=True)]
        self._token_slots = torch.tensor([s for s, n in zip(slots, new, strict=True) for _ in range(n)], device=device)
        places = [c + i for c, n in zip(cached, new, strict=True) for i in range(n)]
        self._token_places = torch.tensor(places, device=device)

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        cache = self._cache
        cache.keys[layer][self._token_slots, :, self._token_places] = key.to(cache.keys[layer].dtype)
        cache.values[layer][self._token_slots, :, self._token_places] = value.to(cache.values[layer].dtype)

    def read(self, layer: int, index: int) -> tuple[Tensor, Tensor]:
        slot, end = self._slots[index], self._ends[index]
        return self._cache.keys[layer][slot, :, :end], self._cache.values[layer][slot, :, :end]

    def read_batch(self, layer: int, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        slots = [self._slots[i] for i in rows]
        end = max(self._ends[i] for i in rows)
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        first = slots[0]
        if slots == list(range(first, first + len(slots))):
            return keys[first : first + len(slots), :, :end], values[first : first + len(slots), :, :end]
        index = torch.tensor(slots, device=keys.device)
        return keys[:, :, :end].index_select(0, index), values[:, :, :end].index_select(0, index)
