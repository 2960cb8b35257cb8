"""Weights of 8 or 4 bits in groups along the input features, and the product with them.

    w = 2^exponent * scale * (q - zero)     q in 0..255 (int8) or 0..15 (int4)

A group is so many neighbouring inputs of an output; it has one scale and one zero, float16 and any real number. int8
may leave the zeros out: they are 128 then. All checkpoints that were quantized by others come to this form, and the
weight that it stands for is theirs to the last bit where their scales are float16 or bfloat16.

Native for bfloat16 activations on the CPU: they are rounded to 8 bits too, with one scale for a row's group, and the
sums are integers; the result of a row does not depend on how many rows there are. Everywhere else the weights are
turned into x's dtype for the product: slower, and without the rounding of x. The packed form is the same in both cases
(csrc/linear_quantized.c draws it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.kernels.linear import OUT_DTYPES, native_takes, row_step
from qwenvl.kernels.native import ADDRESS, LONG, native_function
from qwenvl.kernels.rounding import choose, counts_of, exponent_of

Kind = Literal["int8", "int4"]
PANEL = 32
GROUPS: dict[str, int] = {"int8": 128, "int4": 32}
GROUP_STEP, LONGEST_GROUP = 16, 1024
CHUNK = 2**19  # weights packed at a time: what that needs goes back to the system, and the heap stays whole


@dataclass(frozen=True)
class PackedWeight:
    """A weight [out_features, in_features] in integers.

    data: uint8 [panels, depth, 128], panels of 32 outputs; depth covers 4 inputs (int8) or 8 (int4).
    scales, zeros: float16 [panels, groups, 32]; zeros None: 128, for int8 only. Outputs and inputs that fill up the
    last panel and the last group are 0. order: int64 [in_features], where the packed columns are not in the order of
    x's features: column k is feature order[k]. exponent: of two, for the whole weight.
    """

    kind: Kind
    group: int
    out_features: int
    in_features: int
    data: Tensor
    scales: Tensor
    zeros: Tensor | None
    order: Tensor | None = None
    exponent: int = 0

    @property
    def bits(self) -> int:
        return 8 if self.kind == "int8" else 4

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.nbytes for x in (self.data, self.scales, self.zeros, self.order) if x is not None)

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same on another device."""
        data, scales = self.data.to(device), self.scales.to(device)
        zeros, order = (None if x is None else x.to(device) for x in (self.zeros, self.order))
        return replace(self, data=data, scales=scales, zeros=zeros, order=order)

    @classmethod
    def pack(
        cls, weight: Tensor, kind: Kind, group: int | None = None, importance: Tensor | None = None
    ) -> PackedWeight:
        """Chooses integers for weight [N, K], of any floating dtype. group: a multiple of 16 up to 1024; the default is
        128 for int8 and 32 for int4. importance [K], 0 or more: how much the squared error at each input counts, such
        as the mean square of what comes in there. int8 spans the largest weight, unless importance speaks for less;
        int4 takes the range of least squared error."""
        group = _checked(kind, GROUPS.get(kind, 0) if group is None else group)
        if weight.ndim != 2 or not weight.numel():
            raise ValueError(f"cannot pack a weight of shape {list(weight.shape)}: expected [N, K], not empty")
        (N, K), panels, weight = weight.shape, -(-weight.shape[0] // PANEL), weight.detach()
        largest = max(abs(float(end)) for end in weight.aminmax())
        if not math.isfinite(largest):
            raise ValueError("the weight has values that are not finite: load it again, or leave it in its own dtype")
        exponent, counts, bits = exponent_of(largest), counts_of(importance, K, group), 8 if kind == "int8" else 4
        step = max(CHUNK // K // PANEL, 1) * PANEL
        whole: list[Tensor | None] = []
        for start in range(0, N, step):  # some rows at a time, into tensors that are there from the start
            part = weight[start : start + step]
            q, scales, zeros = choose(part, bits, group, exponent, counts, importance is not None)
            values = F.pad(q, (0, 0, 0, -len(q) % PANEL))
            pieces = _interleave(values, kind), _by_panel(scales), None if zeros is None else _by_panel(zeros)
            if not start:
                whole = [None if x is None else x.new_empty(panels, *x.shape[1:]) for x in pieces]
            for target, piece in zip(whole, pieces, strict=True):
                if target is not None and piece is not None:
                    target[start // PANEL : start // PANEL + len(piece)] = piece
        data, packed_scales, packed_zeros = whole
        assert data is not None
        assert packed_scales is not None
        return cls(kind, group, N, K, data, packed_scales, packed_zeros, None, exponent)

    @classmethod
    def from_values(
        cls,
        q: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        *,
        kind: Kind,
        group: int,
        in_features: int | None = None,
        order: Tensor | None = None,
    ) -> PackedWeight:
        """Packs integers that were chosen elsewhere: q [N, K] in 0..255 (int8) or 0..15 (int4), with scales and zeros
        [N, groups]; zeros None: 128 (int8 only). in_features: K without what fills up the last group, where q has that.
        order: as above.

        float16 scales stay as they are. Others that float16 cannot hold, or only with fewer bits, are taken times a
        power of two, which is `exponent`; then they are rounded to float16's 11 bits.
        """
        _checked(kind, group)
        (N, width), most = q.shape, 255 if kind == "int8" else 15
        K, groups = in_features or width, -(-width // group)
        if kind == "int4" and zeros is None:
            raise ValueError("zeros are None: expected those of int4, which has none of its own")
        if not 0 <= width - K < group:
            raise ValueError(f"in_features is {K}: expected no more than the {width} columns of q, in the same groups")
        for name, x in (("scales", scales), ("zeros", zeros)):
            if x is not None and x.shape != (N, groups):
                raise ValueError(f"{name} have the shape {list(x.shape)}: expected {[N, groups]} for q {[N, width]}")
            if x is not None and not x.isfinite().all():
                raise ValueError(f"{name} are not all finite: the file is damaged, or was read in a wrong way")
        farthest = 0.0 if zeros is None else float(zeros.float().abs().max())
        if farthest > torch.finfo(torch.float16).max:
            raise ValueError(f"zeros reach {farthest:g}: expected no more than float16 holds")
        if int(q.min()) < 0 or int(q.max()) > most:
            raise ValueError(f"q reaches from {int(q.min())} to {int(q.max())}: expected 0..{most} for {kind}")
        if order is not None and not torch.equal(order.sort().values, torch.arange(K, device=order.device)):
            raise ValueError(f"order is no order of {K} features: expected each of them once")
        halves, exponent = to_halves(scales)
        values = F.pad(q.to(torch.uint8), (0, groups * group - width, 0, -N % PANEL))
        packed = _interleave(values, kind), _by_panel(halves), None if zeros is None else _by_panel(zeros)
        return cls(kind, group, N, K, *packed, None if order is None else order.to(torch.int64), exponent)

    def values(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What from_values took: q uint8 [N, K], scales and zeros float16 [N, groups]; in the packed order of columns,
        scales without the exponent."""
        q = _separate(self.data, self.kind)[: self.out_features, : self.in_features]
        return q, self._by_row(self.scales), None if self.zeros is None else self._by_row(self.zeros)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [N, K] that the integers stand for, its columns in the order of x's features."""
        N, K = self.out_features, self.in_features
        out = torch.empty(N, K, dtype=dtype, device=self.data.device)
        step = max(CHUNK // K // PANEL, 1)
        back = None if self.order is None else self.order.argsort()
        for first in range(0, len(self.data), step):  # some rows at a time: float32 of all would be large
            span, rows = slice(first, first + step), min(step * PANEL, N - first * PANEL)
            zeros = None if self.zeros is None else self.zeros[span]
            part = replace(self, out_features=rows, data=self.data[span], scales=self.scales[span], zeros=zeros)
            w = part._dequantized()
            out[first * PANEL : first * PANEL + rows] = w if back is None else w[:, back]
        return out

    def _dequantized(self) -> Tensor:
        q, scales, zeros = self.values()
        full = F.pad(q, (0, -self.in_features % self.group)).view(self.out_features, -1, self.group).float()
        full -= 128 if zeros is None else zeros[..., None].float()
        full *= torch.ldexp(scales.float(), torch.tensor(self.exponent))[..., None]
        return full.view(self.out_features, -1)[:, : self.in_features]

    def _by_row(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(-1, x.shape[1])[: self.out_features]


def quantized_linear(
    x: Tensor, packed: PackedWeight, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """x @ w.T + bias: x [..., K] -> [..., N] in `out_dtype` (default: x.dtype)."""
    N, K = packed.out_features, packed.in_features
    if x.shape[-1] != K:
        raise ValueError(f"x has {x.shape[-1]} features: expected {K}")
    function, dtype, size = product(), out_dtype or x.dtype, x.numel()
    if not size:  # a piece of a prompt that wants no logits: nothing is unpacked for it
        return x.new_empty((*x.shape[:-1], N), dtype=dtype)
    data, scales, zeros = packed.data, packed.scales, packed.zeros
    if function is not None and dtype in OUT_DTYPES and native_takes(x, bias) and data.is_cpu:
        rows = x if packed.order is None else x.index_select(-1, packed.order)
        step = row_step(rows)
        if step and (bias is None or bias.shape == (N,)):
            out = torch.empty((*x.shape[:-1], N), dtype=dtype)
            at = data.data_ptr(), scales.data_ptr(), 0 if zeros is None else zeros.data_ptr()
            more = 0 if bias is None else bias.data_ptr(), out.data_ptr(), N, OUT_DTYPES[dtype], size // K, N, K
            form = packed.group, packed.bits, packed.exponent
            function(rows.data_ptr(), step, *at, *more, *form, torch.get_num_threads())
            return out
    return F.linear(x, packed.dequantize(x.dtype), bias).to(dtype)


@cache
def product() -> Callable[..., None] | None:
    """The native product; None without a library."""
    return native_function("qv_linear_quantized", ADDRESS, LONG, *[ADDRESS] * 5, *[LONG] * 8)


def _checked(kind: str, group: int) -> int:
    if kind not in GROUPS:
        raise ValueError(f"kind {kind!r}: expected int8 or int4")
    if group < GROUP_STEP or group % GROUP_STEP or group > LONGEST_GROUP:
        raise ValueError(f"group {group}: expected a multiple of {GROUP_STEP} up to {LONGEST_GROUP}")
    return group


def to_halves(scales: Tensor) -> tuple[Tensor, int]:
    """Scales as float16 and the exponent that they are without."""
    halves, exact = scales.to(torch.float16), scales.float()
    few_bits = (exact.abs() < torch.finfo(torch.float16).smallest_normal) & (halves.float() != exact)
    if halves.isfinite().all() and not few_bits.any():
        return halves, 0
    exponent = exponent_of(float(exact.abs().max()))
    return torch.ldexp(exact, torch.tensor(-exponent)).to(torch.float16), exponent


def _by_panel(x: Tensor) -> Tensor:
    """[N, groups] -> float16 [panels, groups, 32]."""
    x = F.pad(x.to(torch.float16), (0, 0, 0, -x.shape[0] % PANEL))
    return x.view(-1, PANEL, x.shape[1]).transpose(1, 2).contiguous()


def _interleave(q: Tensor, kind: Kind) -> Tensor:
    """Plain values [N, K] -> data, N a multiple of 32 and K of 16: fours of a feature side by side."""
    fours = q.contiguous().view(torch.int32).view(-1, PANEL, q.shape[1] // 4).transpose(1, 2).contiguous()
    lines = fours.view(torch.uint8).view(fours.shape[0], -1, 128)
    return lines if kind == "int8" else lines[:, ::2] | (lines[:, 1::2] << 4)


def _separate(data: Tensor, kind: Kind) -> Tensor:
    """The reverse of _interleave."""
    lines = data if kind == "int8" else torch.stack((data & 15, data >> 4), 2).view(data.shape[0], -1, 128)
    fours = lines.contiguous().view(torch.int32).transpose(1, 2).contiguous()
    return fours.view(torch.uint8).view(data.shape[0] * PANEL, -1)
