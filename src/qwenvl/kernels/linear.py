"""The product with a weight matrix: nn.Linear's meaning, at the speed of memory for few rows.

Native for bfloat16 on the CPU when no gradient is wanted, with the weight as nn.Linear holds it: nothing is packed or
copied, so weights may lie in mapped files. Everything else is F.linear.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.kernels.native import library

ADDRESS, LONG, INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
FEW_ROWS = 16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
    """x @ weight.T + bias: x [..., K], weight [N, K], bias [N] -> [..., N].

    The sums are float32; they are rounded once, to `out_dtype` (default: x.dtype). Native code returns unrounded
    float32 sums where float32 is asked for, as logits want it. The result of a row does not depend on how many rows
    there are as long as they are at most FEW_ROWS, or more than that.
    """
    step = row_step(x) if takes(x, bias) and _plain(weight) and weight.ndim == 2 else None
    function = native_function("qv_linear_bf16", *[ADDRESS, LONG, *[ADDRESS] * 3, *[LONG] * 5]) if step else None
    if function is not None and step is not None and x.shape[-1] == weight.shape[1] and weight.is_contiguous():
        (N, K), dtype = weight.shape, out_dtype or x.dtype
        M = x.numel() // K
        if M and N and dtype in OUT_DTYPES and (bias is None or bias.shape == (N,)):
            out = torch.empty(*x.shape[:-1], N, dtype=dtype)
            addresses = weight.data_ptr(), bias.data_ptr() if bias is not None else 0, out.data_ptr()
            function(x.data_ptr(), step, *addresses, N, OUT_DTYPES[dtype], M, N, K, torch.get_num_threads())
            return out
    out = F.linear(x, weight, bias)
    return out if out_dtype is None else out.to(out_dtype)


OUT_DTYPES = {torch.bfloat16: 0, torch.float32: 1}


@cache
def native_function(name: str, *types: type) -> Callable[..., None] | None:
    """The native function of that name, its last argument the number of threads; None without a library."""
    loaded = library()
    if loaded is None:
        return None
    function = getattr(loaded, name)
    function.argtypes, function.restype = [*types, INT], None
    return function


def takes(x: Tensor, bias: Tensor | None) -> bool:
    """Whether native code may read x and bias: bfloat16 on the CPU, elements side by side, no gradient wanted."""
    return _plain(x) and x.ndim > 0 and x.stride(-1) == 1 and (bias is None or (_plain(bias) and bias.is_contiguous()))


def row_step(x: Tensor) -> int | None:
    """Elements from row to row of x [..., K]; None where rows do not lie evenly or there are none."""
    if x.ndim == 2:
        return x.stride(0) or None
    return x.shape[-1] or None if x.is_contiguous() else None


def _plain(x: Tensor) -> bool:
    if x.dtype != torch.bfloat16 or not x.is_cpu or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    return not (x.requires_grad and torch.is_grad_enabled())
