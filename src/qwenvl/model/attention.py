"""attend(): the one place where training, prefill, chunk and decode differ.

A plan says once per forward how the sequences of a packed batch are laid out for the batched products; every layer
then uses it. Two backends compute a batched attention with the same signature: `eager` (the reference, softmax in
float32) and `sdpa` (torch's fused kernels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.types import KVView, SeqInfo

Backend = Callable[[Tensor, Tensor, Tensor, bool, Tensor | None], Tensor]

PADDING_ALLOWED = 1.3  # sequences share one batched product while padding costs at most this factor in length


def eager(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    """Reference attention. q [B, H, Q, D], k and v [B, H, K, D] -> [B, H, Q, D]; softmax in float32.

    causal: query i sees the keys up to K - Q + i. mask: bool, broadcast to [B, H, Q, K], True = seen.
    """
    scores = (q @ k.transpose(-1, -2)).mul_(q.shape[-1] ** -0.5)  # in place: the product needs no copy of itself
    if causal:
        queries, keys = scores.shape[-2:]
        seen = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        scores = scores.masked_fill_(~seen, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill_(~mask, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    """torch's scaled_dot_product_attention, with eager's signature."""
    queries, keys = q.shape[-2], k.shape[-2]
    if causal and queries != keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        causal = False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def backend_named(name: str) -> Backend:
    """The backend of that name, or a ValueError that lists the names."""
    backends: dict[str, Backend] = {"eager": eager, "sdpa": sdpa}
    if name not in backends:
        raise ValueError(f"attn_implementation={name!r} is not known: expected one of {', '.join(backends)}")
    return backends[name]


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
    """Layout of a packed batch for attention: made once by plan(), used by every layer."""

    seq: SeqInfo
    buckets: tuple[Bucket, ...]
    decode_mask: Tensor | None = None


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
) -> Tensor:
    """Attention of packed sequences, each to itself (and to its cached past).

    q: [T, H, D], k and v: [T, Hkv, D] with H a multiple of Hkv. With kv the new keys and values are written first,
    and each sequence reads all of its keys from there. Returns [T, H, D].
    """
    if kv is not None:
        kv.write(layer, k, v)
    parts, places = [], []
    for bucket in layout.buckets:
        if kv is None:
            out = _grouped(bucket.take(q), bucket.take(k), bucket.take(v), backend, causal, None)
        elif bucket.length == 1:
            keys, values = kv.read_batch(layer, bucket.rows)
            out = _decode(bucket.take(q), keys, values, backend, layout.decode_mask)
        else:
            keys, values = kv.read(layer, bucket.rows[0])
            out = _grouped(bucket.take(q), keys.unsqueeze(0), values.unsqueeze(0), backend, causal, None)
        rows, place = bucket.put(out)
        parts.append(rows)
        places.append(place)
    if len(parts) == 1 and isinstance(places[0], slice):
        return parts[0]
    return _assemble(parts, places, q.shape[0], q.device)


def _assemble(parts: list[Tensor], places: list[Tensor | slice], total: int, device: torch.device) -> Tensor:
    """Rows of all buckets, brought into packed order by one gather (differentiable)."""
    index = [torch.arange(p.start, p.stop, device=device) if isinstance(p, slice) else p for p in places]
    source = torch.empty(total, dtype=torch.long, device=device)
    source[torch.cat(index)] = torch.arange(total, device=device)
    return torch.cat(parts).index_select(0, source)


def _grouped(q: Tensor, k: Tensor, v: Tensor, backend: Backend, causal: bool, mask: Tensor | None) -> Tensor:
    """Grouped-query attention by repeating the key heads: q [B, H, Q, D], k and v [B, Hkv, K, D]."""
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return backend(q, k, v, causal, mask)


def _decode(q: Tensor, k: Tensor, v: Tensor, backend: Backend, mask: Tensor | None) -> Tensor:
    """One query each: the query heads of a group become rows, so that keys are read once and never repeated."""
    folded = q.unflatten(1, (k.shape[1], -1)).squeeze(3)
    return backend(folded, k, v, False, mask).flatten(1, 2).unsqueeze(2)
