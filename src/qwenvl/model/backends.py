"""The attention backends behind `attn_implementation`: eager (the reference), sdpa (torch's fused kernels) and
flash_attention_2 (a variable-length kernel on a GPU, for float16 and bfloat16).

The first two compute one batched product with the same signature. The third takes packed sequences as they are, so
nothing is padded; its decode steps go through sdpa, which reads the cached keys in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("eager", "sdpa", "flash_attention_2")
FLASH_DTYPES = (torch.float16, torch.bfloat16)

Backend = Callable[[Tensor, Tensor, Tensor, bool, Tensor | None], Tensor]


def seen(queries: int, keys: int, device: torch.device, window: int | None = None) -> Tensor:
    """bool [queries, keys]: which keys each query sees; the last query stands at the last key. window: only the last
    so many, its own included."""
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


def eager(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    """Reference attention. q [B, H, Q, D], k and v [B, H, K, D] -> [B, H, Q, D]; softmax in float32.

    causal: query i sees the keys up to K - Q + i. mask: bool, broadcast to [B, H, Q, K], True = seen.
    """
    scores = (q @ k.transpose(-1, -2)).mul_(q.shape[-1] ** -0.5)  # in place: the product needs no copy of itself
    if causal:
        scores = scores.masked_fill_(~seen(q.shape[-2], k.shape[-2], q.device), float("-inf"))
    if mask is not None:
        scores = scores.masked_fill_(~mask, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    """torch's scaled_dot_product_attention, with eager's signature."""
    queries, keys = q.shape[-2], k.shape[-2]
    if causal and queries != keys:
        mask = seen(queries, keys, q.device)
        causal = False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


class Varlen(Protocol):
    """Attention of packed sequences, each to itself: q [Tq, H, D], k and v [Tk, Hkv, D] -> [Tq, H, D].

    cu_q, cu_k: int32 [n + 1], where sequences begin. The last query of a sequence stands at its last key. window: how
    many keys a query sees, its own included (None: all before it); only with causal.
    """

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        causal: bool,
        window: int | None,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Flash:
    """flash_attention_2. varlen: the kernel. dtypes and devices: what it can compute, checked at every call."""

    varlen: Varlen
    dtypes: tuple[torch.dtype, ...] = FLASH_DTYPES
    devices: tuple[str, ...] = ("cuda",)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
        """A batched product that is no packed one: a decode step."""
        self.check(q)
        return sdpa(q, k, v, causal, mask)

    def check(self, q: Tensor) -> None:
        """ValueError when q is not what the kernel computes."""
        require_flash(q.dtype, q.device, self.dtypes, self.devices)


def require_flash(
    dtype: torch.dtype,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...] = FLASH_DTYPES,
    devices: tuple[str, ...] = ("cuda",),
) -> None:
    """ValueError unless a model of this dtype on this device can use flash_attention_2; says what to do."""
    problem = ""
    if dtype not in dtypes:
        problem = f"computes in float16 and bfloat16, not in {str(dtype).removeprefix('torch.')}: load the model with "
        problem += "dtype=torch.bfloat16"
    if device.type not in devices:
        problem = f"runs on a GPU, and the model is on {device.type}: load it with device_map='cuda'"
    if problem:
        raise ValueError(f"attn_implementation='flash_attention_2' {problem}, or use attn_implementation='sdpa'")


def flash_kernel() -> Varlen:
    """The kernel of the package flash-attn where it is installed, else the one that comes with torch.

    Neither has run here: both need a GPU. Tests hold the calls to the documented signatures with a stand-in.
    """
    if find_spec("flash_attn") is not None:
        return flash_attn_kernel()
    return torch_kernel()


def flash_attn_kernel() -> Varlen:
    """flash_attn_varlen_func of the package flash-attn (2.1 or newer, which aligns the last query with the last
    key)."""
    kernel = import_module("flash_attn").flash_attn_varlen_func

    def varlen(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        causal: bool,
        window: int | None,
    ) -> Tensor:
        left = -1 if window is None else window - 1  # the query's own key is not counted there
        right = -1 if window is None else 0
        out = kernel(q, k, v, cu_q, cu_k, max_q, max_k, causal=causal, window_size=(left, right))
        return cast(Tensor, out)

    return varlen


def torch_kernel() -> Varlen:
    """varlen_attn of torch (2.11 or newer), in which the window also says whether attention is causal."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise ValueError(
            "attn_implementation='flash_attention_2' needs the package flash-attn or torch 2.11 and newer: "
            "pip install flash-attn --no-build-isolation, or use attn_implementation='sdpa'"
        ) from error

    def varlen(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        causal: bool,
        window: int | None,
    ) -> Tensor:
        left = -1 if window is None else window - 1
        grouped = q.shape[1] != k.shape[1]
        out = varlen_attn(
            q, k, v, cu_q, cu_k, max_q, max_k, window_size=(left, 0 if causal else -1), enable_gqa=grouped
        )
        return cast(Tensor, out)

    return varlen


def backend_named(name: Any) -> Backend:
    """The backend of that name, or a ValueError that lists the names."""
    if name == "flash_attention_2":
        return Flash(flash_kernel())
    backends: dict[str, Backend] = {"eager": eager, "sdpa": sdpa}
    if not isinstance(name, str) or name not in backends:
        raise ValueError(f"attn_implementation={name!r} is not known: expected one of {', '.join(NAMES)}")
    return backends[name]
