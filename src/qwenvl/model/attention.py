"""attend(): the one place where training, prefill, chunk and decode differ.

A plan says once per forward how the sequences of a packed batch are laid out for the batched products; every layer
then uses it, with one of the backends of backends.py.

A sliding window of w lets query i see the keys j <= i with i - j < w, counted in tokens of its sequence. Nothing is
ever masked that lies wholly outside: a decode step reads the last w keys, and a prompt is computed in bands of
queries with the keys that their windows reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qwenvl.kernels import attention as native
from qwenvl.model.backends import Backend, Flash, backend_named, eager, sdpa, seen
from qwenvl.types import KVView, SeqInfo

__all__ = ["Backend", "Bucket", "Plan", "attend", "backend_named", "eager", "plan", "sdpa"]

PADDING_ALLOWED = 1.3  # sequences share one batched product while padding costs at most this factor in length
BAND = 512  # least number of queries computed at once under a sliding window


@dataclass(frozen=True)
class Bucket:
    """Sequences that one batched product computes, right-padded to `length` queries.

    rows: which sequences. gather: int64 [n * length] into the packed tokens; None when the tokens are already one
    contiguous block [start, start + n * length). scatter: int64, the places in the padded block that hold real
    tokens, and targets: the packed token each belongs to (None without padding).
    """

    rows: tuple[int, ...]
    start: int
    length: int
    gather: Tensor | None
    scatter: Tensor | None
    targets: Tensor | None

    def to(self, device: torch.device) -> Bucket:
        index = [None if x is None else x.to(device) for x in (self.gather, self.scatter, self.targets)]
        return Bucket(self.rows, self.start, self.length, *index)

    def take(self, x: Tensor) -> Tensor:
        """[T, H, D] -> [n, H, length, D]."""
        size = len(self.rows) * self.length
        block = x[self.start : self.start + size] if self.gather is None else x.index_select(0, self.gather)
        return block.unflatten(0, (len(self.rows), self.length)).transpose(1, 2)

    def put(self, out: Tensor) -> tuple[Tensor, Tensor | slice]:
        """[n, H, length, D] -> (rows [tokens, H, D], where they belong in the packed tokens)."""
        flat = out.transpose(1, 2).flatten(0, 1)
        if self.gather is None:
            return flat, slice(self.start, self.start + flat.shape[0])
        assert self.scatter is not None
        assert self.targets is not None
        return flat.index_select(0, self.scatter), self.targets


@dataclass(frozen=True)
class Plan:
    """Layout of a packed batch for attention: made once by plan(), used by every layer. memo: what only some layers
    or backends need, made when the first of them asks."""

    seq: SeqInfo
    buckets: tuple[Bucket, ...]
    decode_mask: Tensor | None = None
    memo: dict[int, tuple[int, Tensor | None]] = field(default_factory=dict, repr=False, compare=False)
    starts: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False, compare=False)
    natives: list[native.Layout] = field(default_factory=list, repr=False, compare=False)
    elsewhere: dict[torch.device, Plan] = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: torch.device) -> Plan:
        """The same layout for layers that compute on another device; made once."""
        if device not in self.elsewhere:
            buckets = tuple(bucket.to(device) for bucket in self.buckets)
            mask = None if self.decode_mask is None else self.decode_mask.to(device)
            self.elsewhere[device] = Plan(self.seq, buckets, mask)
        return self.elsewhere[device]

    def native(self, kv: KVView | None) -> native.Layout:
        """The same layout as native code reads it."""
        if not self.natives:
            cu_q = self.seq.cu_q
            self.natives.append(native.Layout.packed(cu_q) if kv is None else native.Layout.cached(cu_q, kv.runs))
        return self.natives[0]

    def decode_window(self, rows: tuple[int, ...], window: int, device: torch.device) -> tuple[int, Tensor | None]:
        """(first key that any row's window reaches, bool mask [n, 1, 1, keys from there on] or None)."""
        if window not in self.memo:
            ends = [self.seq.k_lens[i] for i in rows]
            first, last = max(min(ends) - window, 0), max(ends)
            mask = None
            if min(ends) < last:
                place = torch.arange(first, last, device=device)
                end = torch.tensor(ends, device=device).view(-1, 1, 1, 1)
                mask = (place < end) & (place >= end - window)
            self.memo[window] = (first, mask)
        return self.memo[window]

    def cumulative(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """seq's cu_q and cu_k, int32 [n + 1] on `device`."""
        if not self.starts:
            cu_q, cu_k = (torch.tensor(x, dtype=torch.int32, device=device) for x in (self.seq.cu_q, self.seq.cu_k))
            self.starts.append((cu_q, cu_k))
        return self.starts[0]


def plan(seq: SeqInfo, device: torch.device, cached: bool = False, pad: bool = True) -> Plan:
    """Group the sequences of `seq` for attend().

    Without a cache, sequences of similar length share a bucket (pad=False: only equal lengths, as bidirectional
    attention needs). With a cache, all single-token sequences (decode) make one bucket and the others one each.
    """
    lengths, order = seq.q_lens, range(len(seq.q_lens))
    groups: list[list[int]] = []
    if cached:
        decode = [i for i in order if lengths[i] == 1]
        groups = ([decode] if decode else []) + [[i] for i in order if lengths[i] > 1]
        keys = torch.tensor([seq.k_lens[i] for i in decode], device=device)
        widest = max((seq.k_lens[i] for i in decode), default=0)
        mask = torch.arange(widest, device=device) < keys.unsqueeze(1)
        decode_mask = None if bool(mask.all()) else mask.view(len(decode), 1, 1, widest)
    else:
        decode_mask = None
        limit = PADDING_ALLOWED if pad else 1.0
        for i in sorted(order, key=lambda i: (lengths[i], i)):
            if groups and lengths[i] <= limit * lengths[groups[-1][0]]:
                groups[-1].append(i)
            elif lengths[i]:
                groups.append([i])
    return Plan(seq, tuple(_bucket(rows, seq, device) for rows in groups), decode_mask)


def _bucket(rows: list[int], seq: SeqInfo, device: torch.device) -> Bucket:
    rows = sorted(rows)
    lengths = torch.tensor([seq.q_lens[i] for i in rows])
    starts = torch.tensor([seq.cu_q[i] for i in rows])
    longest = int(lengths.max())
    contiguous = bool((lengths == longest).all()) and bool((starts.diff() == longest).all())
    if contiguous:
        return Bucket(tuple(rows), int(starts[0]), longest, None, None, None)
    place = torch.arange(longest)
    real = place < lengths.unsqueeze(1)
    index = torch.where(real, starts.unsqueeze(1) + place, starts.unsqueeze(1)).flatten().to(device)
    scatter = real.flatten().nonzero().squeeze(1).to(device)
    return Bucket(tuple(rows), 0, longest, index, scatter, index[scatter])


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Plan,
    backend: Backend,
    *,
    causal: bool,
    kv: KVView | None = None,
    layer: int = 0,
    window: int | None = None,
    weights: list[Tensor] | None = None,
) -> Tensor:
    """Attention of packed sequences, each to itself (and to its cached past).

    q: [T, H, D], k and v: [T, Hkv, D] with H a multiple of Hkv. With kv the new keys and values are written first,
    and each sequence reads all of its keys from there. window: how many keys a query sees, its own included (None:
    all before it); only with causal. Returns [T, H, D].

    weights: a list that gets the probabilities of every sequence in packed order, each [H, q_len, k_len] in the
    dtype of q. They are computed beside the output, the eager way: asking for them changes no output.
    """
    assert causal or window is None, "a window needs causal attention"
    if kv is not None:
        kv.write(layer, k, v)
    if backend is sdpa:
        keys, values = (k, v) if kv is None else kv.storage(layer)
        if native.usable(q, keys, values):
            if weights is not None:
                weights.extend(_probabilities(q, k, layout.seq, kv, layer, causal, window))
            return native.attention(q, keys, values, layout.native(kv), causal=causal, window=window)
    if weights is not None:
        weights.extend(_probabilities(q, k, layout.seq, kv, layer, causal, window))
    if isinstance(backend, Flash) and kv is None:
        backend.check(q)
        seq = layout.seq
        return backend.varlen(q, k, v, *layout.cumulative(q.device), seq.max_q, seq.max_k, causal, window)
    parts, places = [], []
    for bucket in layout.buckets:
        queries = bucket.take(q)
        if kv is None:
            out = _grouped(queries, bucket.take(k), bucket.take(v), backend, causal, window)
        elif bucket.length == 1:
            keys, values = kv.read_batch(layer, bucket.rows)
            first, mask = 0, layout.decode_mask
            if window is not None:
                first, mask = layout.decode_window(bucket.rows, window, q.device)
            out = _decode(queries, keys[:, :, first:], values[:, :, first:], backend, mask)
        else:
            keys, values = kv.read(layer, bucket.rows[0])
            out = _grouped(queries, keys.unsqueeze(0), values.unsqueeze(0), backend, causal, window)
        rows, place = bucket.put(out)
        parts.append(rows)
        places.append(place)
    if len(parts) == 1 and isinstance(places[0], slice):
        return parts[0]
    return _assemble(parts, places, q.shape[0], q.device)


def _probabilities(
    q: Tensor, k: Tensor, seq: SeqInfo, kv: KVView | None, layer: int, causal: bool, window: int | None
) -> Iterator[Tensor]:
    """For each sequence [H, q_len, k_len]."""
    for i, length in enumerate(seq.q_lens):
        start = seq.cu_q[i]
        queries = q[start : start + length].transpose(0, 1)
        keys = k[start : start + length].transpose(0, 1) if kv is None else kv.read(layer, i)[0]
        keys = keys.to(q.dtype).repeat_interleave(q.shape[1] // keys.shape[0], dim=0)
        scores = (queries @ keys.transpose(-1, -2)).mul(q.shape[-1] ** -0.5)
        if causal:
            scores = scores.masked_fill(~seen(length, keys.shape[1], q.device, window), float("-inf"))
        yield scores.softmax(-1, dtype=torch.float32).to(q.dtype)


def _assemble(parts: list[Tensor], places: list[Tensor | slice], total: int, device: torch.device) -> Tensor:
    """Rows of all buckets, brought into packed order by one gather (differentiable)."""
    index = [torch.arange(p.start, p.stop, device=device) if isinstance(p, slice) else p for p in places]
    source = torch.empty(total, dtype=torch.long, device=device)
    source[torch.cat(index)] = torch.arange(total, device=device)
    return torch.cat(parts).index_select(0, source)


def _grouped(q: Tensor, k: Tensor, v: Tensor, backend: Backend, causal: bool, window: int | None) -> Tensor:
    """Grouped-query attention: q [B, H, Q, D], k and v [B, Hkv, K, D] -> [B, H, Q, D]."""
    if isinstance(backend, Flash):
        return _flash_one(q, k, v, backend, causal, window)
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    if window is None or window >= k.shape[2]:
        return backend(q, k, v, causal, None)
    return _bands(q, k, v, backend, window)


def _bands(q: Tensor, k: Tensor, v: Tensor, backend: Backend, window: int) -> Tensor:
    """Causal attention under a sliding window: memory is that of one band, whatever the length."""
    queries, keys = q.shape[2], k.shape[2]
    size, offset, parts = max(window, BAND), keys - queries, []
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        first, last = max(offset + start - window + 1, 0), offset + stop
        mask = seen(stop - start, last - first, q.device, window)
        parts.append(backend(q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last], False, mask))
    return torch.cat(parts, dim=2)


def _flash_one(q: Tensor, k: Tensor, v: Tensor, backend: Flash, causal: bool, window: int | None) -> Tensor:
    """The packed kernel on one sequence [1, H, L, D], whose cached keys it reads where they lie."""
    backend.check(q)
    queries, keys = q.shape[2], k.shape[2]
    cu_q, cu_k = (torch.tensor([0, length], dtype=torch.int32, device=q.device) for length in (queries, keys))
    packed_q, packed_k, packed_v = (x[0].transpose(0, 1) for x in (q, k.to(q.dtype), v.to(q.dtype)))
    out = backend.varlen(packed_q, packed_k, packed_v, cu_q, cu_k, queries, keys, causal, window)
    return out.transpose(0, 1).unsqueeze(0)


def _decode(q: Tensor, k: Tensor, v: Tensor, backend: Backend, mask: Tensor | None) -> Tensor:
    """One query each: the query heads of a group become rows, so that keys are read once and never repeated."""
    folded = q.unflatten(1, (k.shape[1], -1)).squeeze(3)
    return backend(folded, k, v, False, mask).flatten(1, 2).unsqueeze(2)
