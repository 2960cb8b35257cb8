"""Attention of packed sequences in bfloat16, for inference on the CPU: native code only.

`usable()` says whether the tensors fit; where they do not, the caller has its own path. Keys and values are read where
they lie: packed beside the queries, or in runs of a cache's storage. Softmax in float32, probabilities rounded to
bfloat16 for the product with the values.

The result of a query depends on itself and its keys alone, to the last bit: not on the other sequences of the batch,
on whether it comes alone or among others of its sequence, on where in the storage its keys lie, nor on threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from qwenvl.kernels.native import ADDRESS, FLOAT, LONG, native_function, reason

LARGEST_HEAD, LARGEST_GROUP = 256, 64
NO_WINDOW = 2**31 - 1


@cache
def _function() -> Callable[..., None] | None:
    return native_function("qv_attention", *[ADDRESS] * 5, *[LONG] * 11, FLOAT)


@dataclass(frozen=True)
class Layout:
    """Where the queries of each sequence lie among the packed ones, and where its keys lie: made once per forward and
    used by every layer. Made by `packed` or `cached`.

    tokens: how many queries in all. reach: how many places k and v need at least. in_cache: k and v are a cache's
    storage [Hkv, places, D], else packed [T, Hkv, D].
    """

    tokens: int
    reach: int
    in_cache: bool
    ordered: bool  # no sequence has more queries than keys, as causal attention needs
    table: np.ndarray = field(repr=False)
    address: int = field(repr=False)

    @classmethod
    def packed(cls, cu: Sequence[int]) -> Layout:
        """Keys beside the queries: sequence i is the tokens [cu[i], cu[i + 1])."""
        return cls._of(cu, [[(a, b - a)] for a, b in pairwise(cu)], in_cache=False)

    @classmethod
    def cached(cls, cu_q: Sequence[int], runs: Sequence[Sequence[tuple[int, int]]]) -> Layout:
        """Keys in a cache: sequence i reads the runs (first place, how many) runs[i], in order. Its last query stands
        at its last key."""
        if len(runs) != len(cu_q) - 1:
            raise ValueError(f"{len(cu_q) - 1} sequences of queries have runs for {len(runs)}: expected one list each")
        return cls._of(cu_q, runs, in_cache=True)

    @classmethod
    def _of(cls, cu_q: Sequence[int], runs: Sequence[Sequence[tuple[int, int]]], in_cache: bool) -> Layout:
        starts = np.asarray(cu_q, dtype=np.int64)
        flat = np.asarray([run for sequence in runs for run in sequence], dtype=np.int64).reshape(-1, 2)
        counts = np.cumsum([0, *(len(sequence) for sequence in runs)])
        ends = np.concatenate(([0], np.cumsum(flat[:, 1])))[counts]
        keys, queries = np.diff(ends), np.diff(starts)
        if len(starts) == 0 or starts[0] != 0 or (queries < 0).any() or (flat < 0).any():
            raise ValueError(f"sequences begin at {list(cu_q)}: expected 0 first, never falling, and no run below 0")
        if ((queries > 0) & (keys == 0)).any():
            raise ValueError(f"sequences have {keys.tolist()} keys: expected at least one where there are queries")
        table = np.concatenate(([len(queries)], starts, keys, counts, flat.ravel())).astype(np.int64)
        reach = int(flat.sum(1).max(initial=0))
        return cls(int(starts[-1]), reach, in_cache, bool((queries <= keys).all()), table, table.ctypes.data)


def usable(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether attention() can take these: bfloat16 on the CPU, elements of a head side by side, head size even and at
    most 256, no gradient wanted, and native code there."""
    return not _hindrance(q, k, v)


def _hindrance(q: Tensor, k: Tensor, v: Tensor) -> str:
    """What keeps native code from these tensors, "" = nothing."""
    if _function() is None:
        return f"there is no native code: {reason()}"
    size = q.shape[-1]
    for x in (q, k, v):
        if x.dtype is not torch.bfloat16 or not x.is_cpu:
            return f"a tensor is {x.dtype} on {x.device}: expected torch.bfloat16 on the CPU"
        if x.requires_grad and torch.is_grad_enabled():
            return "a gradient is wanted: call it under torch.no_grad()"
        if x.ndim != 3 or x.shape[2] != size or x.stride()[2] != 1:
            shape = f"shape {tuple(x.shape)} and strides {x.stride()}"
            return f"a tensor has {shape}: expected [*, *, {size}], the last dimension side by side"
    if size % 2 or not 0 < size <= LARGEST_HEAD:
        return f"heads have size {size}: expected an even number of at most {LARGEST_HEAD}"
    return ""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    causal: bool,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of packed sequences, each to its own keys.

    q: [T, H, D]; k and v: [T, Hkv, D], or a cache's storage [Hkv, places, D], as `layout` says; H a multiple of Hkv,
    any strides but in D. causal: query i sees the keys j <= i, counted in its sequence, whose last query stands at its
    last key. window: with causal, only those with i - j < window. scale: of the products, D ** -0.5 unless given.
    Returns [T, H, D], contiguous. Raises ValueError where it cannot.
    """
    if hindrance := _hindrance(q, k, v):
        raise ValueError(f"native attention cannot run: {hindrance}")
    tokens, heads, size = q.shape
    kv_heads, places = (k.shape[0], k.shape[1]) if layout.in_cache else (k.shape[1], k.shape[0])
    group = _group(heads, kv_heads)
    if v.shape != k.shape or tokens != layout.tokens or places < layout.reach:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit their layout: expected "
            f"{layout.tokens} queries and at least {layout.reach} places for keys and for values"
        )
    if (causal and not layout.ordered) or (window is not None and (window < 1 or not causal)):
        raise ValueError(
            f"causal={causal}, window={window}: causal attention needs at least as many keys as queries in every "
            "sequence, and a window of at least 1 needs causal attention"
        )
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    function = _function()
    assert function is not None
    (k_token, k_head), (v_token, v_head) = k.stride()[:2], v.stride()[:2]
    if layout.in_cache:
        k_token, k_head, v_token, v_head = k_head, k_token, v_head, v_token
    function(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), layout.address,
        group, kv_heads, size, *q.stride()[:2], k_token, k_head, v_token, v_head,
        causal, NO_WINDOW if window is None else min(window, NO_WINDOW),
        size**-0.5 if scale is None else scale, torch.get_num_threads(),
    )  # fmt: skip
    return out


def _group(heads: int, kv_heads: int) -> int:
    """Query heads of a kv head."""
    if not kv_heads or heads % kv_heads or heads // kv_heads > LARGEST_GROUP:
        raise ValueError(
            f"{heads} query heads on {kv_heads}: expected a multiple, with groups of at most {LARGEST_GROUP}"
        )
    return heads // kv_heads
