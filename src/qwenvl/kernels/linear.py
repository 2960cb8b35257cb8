"""The product with a weight matrix: nn.Linear's meaning, at the speed of memory for few rows.

Native for bfloat16 on the CPU when no gradient is wanted, with the weight as nn.Linear holds it: nothing is packed or
copied, so weights may lie in mapped files. Everything else is F.linear.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.kernels.native import ADDRESS, LONG, native_function

FEW_ROWS = 16
OUT_DTYPES = {torch.bfloat16: 0, torch.float32: 1}
PLAIN = (Tensor, torch.nn.Parameter)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
    """x @ weight.T + bias: x [..., K], weight [N, K], bias [N] -> [..., N].

    The sums are float32; they are rounded once, to `out_dtype` (default: x.dtype). Native code returns unrounded
    float32 sums where float32 is asked for, as logits want it. The result of a row does not depend on how many rows
    there are as long as they are at most FEW_ROWS, or more than that.
    """
    function, dtype = _product(), out_dtype or x.dtype
    if function is not None and dtype in OUT_DTYPES and native_takes(x, weight, bias) and weight.is_contiguous():
        (N, K), size, step = weight.shape, x.numel(), row_step(x)
        if step and size and N and x.shape[-1] == K and (bias is None or bias.shape == (N,)):
            out = torch.empty((*x.shape[:-1], N), dtype=dtype)
            at = x.data_ptr(), step, weight.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr()
            function(*at, N, OUT_DTYPES[dtype], size // K, N, K, torch.get_num_threads())
            return out
    out = F.linear(x, weight, bias)
    return out if out_dtype is None else out.to(out_dtype)


def native_takes(*tensors: Tensor | None) -> bool:
    """Whether native code may read these: plain bfloat16 tensors on the CPU with the elements of a row side by side,
    and no gradient wanted."""
    wanted = torch.is_grad_enabled()
    for x in tensors:
        if x is not None and (
            x.dtype is not torch.bfloat16
            or not x.is_cpu
            or type(x) not in PLAIN
            or x.stride()[-1:] != (1,)
            or (wanted and x.requires_grad)
        ):
            return False
    return True


def row_step(x: Tensor) -> int:
    """Elements from row to row of x [..., K]; 0 where rows do not lie evenly."""
    if x.ndim == 2:
        return x.stride(0)
    return x.shape[-1] if x.is_contiguous() else 0


@cache
def _product() -> Callable[..., None] | None:
    return native_function("qv_linear_bf16", ADDRESS, LONG, *[ADDRESS] * 3, *[LONG] * 5)
