"""past_key_values of the documented forward(): a KV cache that knows its rows.

Worked example, rows [pad, A, B] and [C, D, E]: after the first forward the cache has 3 columns, of which row 0 has
seen two; its slot holds two tokens, for padding is never stored. A next forward with one token a row (and an
attention_mask of 4 columns) reads 3 keys for row 0 and 4 for row 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qwenvl.model.kv_cache import CacheView, SlotCache
from qwenvl.model.text import TextConfig
from qwenvl.types import KVView

STEP = 128  # a slot's capacity is a multiple of this, and grows by half at least: decoding copies seldom


class PastKeyValues:
    """Keys and values of B rows, with the padding and the positions they were computed for.

    forward(use_cache=True) makes one, forward(past_key_values=...) extends it in place and returns it. Treat it as
    opaque but for the methods here. copy.deepcopy gives one that goes its own way.
    """

    def __init__(self, config: TextConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self._config = config
        self._cache = SlotCache(config, rows, 0, dtype, device)
        self.seen = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        self._next = torch.zeros(rows, 0, dtype=torch.long, device=device)

    @property
    def rope_deltas(self) -> Tensor:
        """int64 [B, 1]: the position of each row's next token - the tokens it holds."""
        if not self.seen.shape[1]:
            return torch.zeros(len(self.seen), 1, dtype=torch.long, device=self.seen.device)
        return self._next[:, -1:] - self.seen.sum(-1, keepdim=True)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns cached so far, padding included; the same in every layer."""
        return self.seen.shape[1]

    def view(self, new: list[int]) -> KVView:
        """Where a packed batch with new[i] tokens of row i writes and reads; makes room as needed."""
        cached = self.seen.sum(-1).tolist()
        needed = max((a + b for a, b in zip(cached, new, strict=True)), default=0)
        if needed > self._cache.capacity:
            wanted = max(needed, self._cache.capacity * 3 // 2)
            self._cache = self._cache.resized(self._cache.slots, -(-wanted // STEP) * STEP)
        return RecordingView(self._cache, list(range(len(cached))), cached, new)

    def advance(self, mask: Tensor, following: Tensor) -> None:
        """Count the new tokens of mask [B, S] as cached; following: int64 [B, S], position of a token behind each."""
        self.seen = torch.cat((self.seen, mask), 1)
        self._next = torch.cat((self._next, following), 1)

    def select(self, rows: Tensor | list[int]) -> None:
        """Keep `rows`, int64 [n], in that order; a row may be named twice."""
        index = torch.as_tensor(rows, device=self.seen.device)
        if index.ndim != 1 or not len(index) or int(index.min()) < 0 or int(index.max()) >= len(self.seen):
            raise ValueError(f"rows {index.tolist()} are not valid: expected some of 0 to {len(self.seen) - 1}")
        self._cache = self._cache.selected(index)
        self.seen, self._next = self.seen[index], self._next[index]

    def reorder(self, beam_idx: Tensor) -> None:
        """Beam search: row i goes on from what was row beam_idx[i]."""
        self.select(beam_idx)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """reorder() by its documented name."""
        self.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, copies side by side."""
        self.select(torch.arange(len(self.seen)).repeat_interleave(repeats))

    def crop(self, max_length: int) -> None:
        """Keep the first max_length columns; a negative number is how many columns to drop."""
        length = max(0, self.get_seq_length() + max_length) if max_length < 0 else max_length
        self.seen, self._next = self.seen[:, :length], self._next[:, :length]

    def __len__(self) -> int:
        return self._config.num_hidden_layers

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [B, kv heads, columns, D], zero at padding."""
        return self._columns(self._cache.keys[layer]), self._columns(self._cache.values[layer])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[layer] for layer in range(len(self)))

    def to_legacy_cache(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """The tuple of tuples that older programs read: keys and values of each layer, as self[layer] has them."""
        return tuple(self)

    def _columns(self, store: Tensor) -> Tensor:
        store = self._cache.by_slot(store)
        place = (self.seen.long().cumsum(-1) - 1).clamp(min=0)
        index = place.view(len(place), 1, -1, 1).expand(-1, store.shape[1], -1, store.shape[3])
        return store.gather(2, index) * self.seen.view(len(place), 1, -1, 1)


class RecordingView(CacheView):
    """A view through which gradients reach the new keys and values; what was cached before is a constant."""

    def __init__(self, cache: SlotCache, slots: list[int], cached: list[int], new: list[int]) -> None:
        super().__init__(cache, cache.runs(slots, cached, new), cached, new)
        self._starts = cached
        self._firsts = [sum(new[:i]) for i in range(len(new))]
        self._fresh: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        super().write(layer, key.detach(), value.detach())
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            self._fresh[layer] = (key, value)

    def read(self, layer: int, index: int) -> tuple[Tensor, Tensor]:
        keys, values = super().read(layer, index)
        if layer not in self._fresh:
            return keys, values
        start = self._starts[index]
        first, length = self._firsts[index], keys.shape[1] - start
        key, value = (x[first : first + length].transpose(0, 1) for x in self._fresh[layer])
        return torch.cat((keys[:, :start], key), 1), torch.cat((values[:, :start], value), 1)

    def read_batch(self, layer: int, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        keys, values = super().read_batch(layer, rows)
        if layer not in self._fresh:
            return keys, values
        key, value = (x[[self._firsts[row] for row in rows]] for x in self._fresh[layer])
        keys, values = keys.clone(), values.clone()  # the cache itself is no part of the graph
        each, last = torch.arange(len(rows)), torch.tensor([self._starts[row] for row in rows])
        keys[each, :, last], values[each, :, last] = key.to(keys.dtype), value.to(values.dtype)
        return keys, values
