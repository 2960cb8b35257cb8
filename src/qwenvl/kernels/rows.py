"""Work on rows of activations: norms, gated activations, rotary turns.

Native for bfloat16 on the CPU when no gradient is wanted: one pass over memory, float32 inside. Everything else runs
on torch's operators, with the same meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.kernels.native import ADDRESS, FLOAT, INT, LONG, native_function

BF16 = torch.bfloat16


@dataclass(frozen=True)
class _Native:
    """The functions of csrc/rows.c; the last argument of each is the number of threads."""

    rms_norm: Callable[..., None]
    silu_mul: Callable[..., None]
    rotate: Callable[..., None]


@cache
def _native() -> _Native | None:
    rms_norm = native_function("qv_rms_norm", *[ADDRESS] * 5, *[LONG] * 4, FLOAT)
    silu_mul = native_function("qv_silu_mul", *[ADDRESS] * 3, *[LONG] * 5)
    rotate = native_function("qv_rotate", *[ADDRESS] * 4, *[LONG] * 7, INT)
    return _Native(rms_norm, silu_mul, rotate) if rms_norm and silu_mul and rotate else None


def _fits(x: Tensor) -> bool:
    """Whether native code may take x: bfloat16 on the CPU, no gradient wanted."""
    return x.dtype is BF16 and x.is_cpu and not (x.requires_grad and torch.is_grad_enabled())


def _step(x: Tensor) -> int:
    """Elements from row to row of x [..., size], 0 where native code may not take it: see _fits(), and rows must lie
    evenly with their elements side by side."""
    if not _fits(x):
        return 0
    if x.is_contiguous():
        return x.shape[-1]
    strides = x.stride()
    return strides[0] if len(strides) == 2 and strides[1] == 1 else 0


def _new(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * (x / rms(x)) over the last dimension: x [..., size], weight [size]; contiguous.

    Statistics in float32; in a narrow dtype the quotient is rounded before the product with the weight, as the
    published models were run.
    """
    native = _native()
    size = weight.shape[0]
    if native is not None and (step := _step(x)) and _step(weight) and x.shape[-1] == size:
        out = _new(x)
        pointers = x.data_ptr(), 0, weight.data_ptr(), 0, out.data_ptr()
        native.rms_norm(*pointers, x.numel() // size, size, step, 0, eps, torch.get_num_threads())
        return out
    if x.dtype == torch.float32:
        return F.rms_norm(x, weight.shape, weight, eps)
    return weight * F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + delta, its rms_norm); x and delta [..., size], weight [size]. The sum is rounded before the norm."""
    native = _native()
    shape, size = x.shape, weight.shape[0]
    alike = shape == delta.shape and shape[-1] == size
    if native is not None and alike and (step := _step(x)) and (delta_step := _step(delta)) and _step(weight):
        total, out = _new(x), _new(x)
        pointers = x.data_ptr(), delta.data_ptr(), weight.data_ptr(), total.data_ptr(), out.data_ptr()
        native.rms_norm(*pointers, x.numel() // size, size, step, delta_step, eps, torch.get_num_threads())
        return total, out
    total = x + delta
    return total, rms_norm(total, weight, eps)


def silu_mul(gate: Tensor, up: Tensor, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up, both [..., size]; silu is rounded to the dtype before the product. out: where to write, gate
    and up allowed (no gradients then); None: a new tensor."""
    native = _native()
    if native is not None and (step := _step(gate)) and (up_step := _step(up)) and gate.shape == up.shape:
        target = _new(gate) if out is None else out
        if target.shape == gate.shape and (out_step := _step(target)):
            size, pointers = gate.shape[-1], (gate.data_ptr(), up.data_ptr(), target.data_ptr())
            steps = step, up_step, out_step
            native.silu_mul(*pointers, gate.numel() // size, size, *steps, torch.get_num_threads())
            return target
    result = F.silu(gate) * up
    return result if out is None else out.copy_(result)


def rotate_rows(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of x [T, H, D] by the angles of each token: cos and sin [T, 1, D/2].

    Native code computes in float32 and rounds once; torch's operators compute in the widest dtype given. out: where
    to write, x allowed (no gradients then); None: a new tensor, contiguous.
    """
    native = _native()
    if native is not None and _fits(x) and _angles_fit(x, cos, sin):
        target = _new(x) if out is None else out
        strides, steps = x.stride(), target.stride()
        if strides[2] == 1 == steps[2] and target.shape == x.shape and _fits(target):
            (tokens, heads, size), wide = x.shape, cos.dtype is torch.float32
            pointers = x.data_ptr(), target.data_ptr(), cos.data_ptr(), sin.data_ptr()
            moves = *strides[:2], *steps[:2]
            native.rotate(*pointers, tokens, heads, size // 2, *moves, wide, torch.get_num_threads())
            return target
    first, second = x.chunk(2, dim=-1)
    result = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return result if out is None else out.copy_(result)


def _angles_fit(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether native code can read these angles for x."""
    if cos.dtype is not sin.dtype or cos.dtype not in (torch.float32, BF16) or not cos.is_cpu:
        return False
    expected = (x.shape[0], 1, x.shape[2] // 2)
    plain = cos.shape == expected == sin.shape and cos.is_contiguous() and sin.is_contiguous()
    return plain and not ((cos.requires_grad or sin.requires_grad) and torch.is_grad_enabled())
