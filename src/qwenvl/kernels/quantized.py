"""Weights of 8 or 4 bits in groups along the input features, and the product with them.

    int8: w = scale * (q - 128)       int4: w = scale * q + minimum, q in 0..15

One scale (and minimum) in float16 for `group` neighbouring inputs of an output. Native for bfloat16 activations on the
CPU: they are rounded to 8 bits too, with one scale for a row's group, and the sums are integers; the result of a row
does not depend on how many rows there are. Everywhere else the weights are turned into x's dtype for the product:
slower, and without the rounding of x. The packed form is the same in both cases (csrc/linear_quantized.c draws it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.kernels.linear import OUT_DTYPES, native_takes, row_step
from qwenvl.kernels.native import ADDRESS, LONG, native_function

Kind = Literal["int8", "int4"]
PANEL = 32
GROUPS: dict[str, int] = {"int8": 128, "int4": 32}
LONGEST_GROUP = 1024
SHRINKS = 10  # ranges tried for 4 bits
CHUNK = 2**19  # weights packed at a time: what that needs goes back to the system, and the heap stays whole


@dataclass(frozen=True)
class PackedWeight:
    """A weight [out_features, in_features] in integers.

    data: uint8 [panels, depth, 128], panels of 32 outputs; depth covers 4 inputs (int8) or 8 (int4).
    scales, minima: float16 [panels, groups, 32]; minima is None for int8. Outputs and inputs that fill up the last
    panel and the last group are 0.
    """

    kind: Kind
    group: int
    out_features: int
    in_features: int
    data: Tensor
    scales: Tensor
    minima: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.data.nbytes + self.scales.nbytes + (0 if self.minima is None else self.minima.nbytes)

    @classmethod
    def pack(cls, weight: Tensor, kind: Kind, group: int | None = None) -> PackedWeight:
        """Chooses integers for weight [N, K], of any floating dtype. group: a multiple of 32 up to 1024; the default is
        128 for int8 and 32 for int4. int8 spans the largest weight; int4 takes the range of least squared error."""
        group = _checked(kind, GROUPS.get(kind, 0) if group is None else group)
        if weight.ndim != 2 or not weight.numel():
            raise ValueError(f"cannot pack a weight of shape {list(weight.shape)}: expected [N, K], not empty")
        (N, K), panels = weight.shape, -(-weight.shape[0] // PANEL)
        step = max(CHUNK // K // PANEL, 1) * PANEL
        whole: list[Tensor | None] = []
        for start in range(0, N, step):  # some rows at a time, into tensors that are there from the start
            part = cls.from_values(*_choose(weight[start : start + step].detach(), kind, group), group, K)
            pieces = (part.data, part.scales, part.minima)
            if not start:
                whole = [None if x is None else x.new_empty(panels, *x.shape[1:]) for x in pieces]
            for target, piece in zip(whole, pieces, strict=True):
                if target is not None and piece is not None:
                    target[start // PANEL : start // PANEL + len(piece)] = piece
        data, scales, minima = whole
        assert data is not None
        assert scales is not None
        return cls(kind, group, N, K, data, scales, minima)

    @classmethod
    def from_values(
        cls, q: Tensor, scales: Tensor, minima: Tensor | None, group: int, in_features: int | None = None
    ) -> PackedWeight:
        """Packs integers that were chosen elsewhere: q [N, K] in 0..255 with scales [N, groups] (int8), or in 0..15
        with scales and minima (int4). Scales and minima are rounded to float16. in_features: K without the zeros that
        fill up the last group, where q has them."""
        kind: Kind = "int8" if minima is None else "int4"
        _checked(kind, group)
        N, K = q.shape
        groups, most = -(-K // group), 255 if minima is None else 15
        for name, x in (("scales", scales), ("minima", minima)):
            if x is not None and x.shape != (N, groups):
                raise ValueError(f"{name} have the shape {list(x.shape)}: expected {[N, groups]} for q {[N, K]}")
            if x is not None and not x.to(torch.float16).isfinite().all():
                raise ValueError(f"{name} reach {float(x.abs().max()):g}: expected finite values within float16")
        if int(q.min()) < 0 or int(q.max()) > most:
            raise ValueError(f"q reaches from {int(q.min())} to {int(q.max())}: expected 0..{most} for {kind}")
        values = F.pad(q.to(torch.uint8), (0, groups * group - K, 0, -N % PANEL))
        packed_minima = None if minima is None else _by_panel(minima)
        return cls(kind, group, N, in_features or K, _interleave(values, kind), _by_panel(scales), packed_minima)

    def values(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What from_values took: q uint8 [N, K], scales and minima float16 [N, groups]."""
        q = _separate(self.data, self.kind)[: self.out_features, : self.in_features]
        minima = None if self.minima is None else self._by_row(self.minima)
        return q, self._by_row(self.scales), minima

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [N, K] that the integers stand for."""
        q, scales, minima = self.values()
        full = F.pad(q, (0, -self.in_features % self.group)).view(self.out_features, -1, self.group).float()
        w = (full - 128).mul_(scales[..., None].float()) if minima is None else full.mul_(scales[..., None].float())
        if minima is not None:
            w.add_(minima[..., None].float())
        return w.view(self.out_features, -1)[:, : self.in_features].to(dtype)

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
    data, scales, minima = packed.data, packed.scales, packed.minima
    if function is not None and dtype in OUT_DTYPES and native_takes(x, bias) and data.is_cpu:
        step = row_step(x)
        if step and size and (bias is None or bias.shape == (N,)):
            out = torch.empty((*x.shape[:-1], N), dtype=dtype)
            at = data.data_ptr(), scales.data_ptr(), 0 if minima is None else minima.data_ptr()
            more = 0 if bias is None else bias.data_ptr(), out.data_ptr(), N, OUT_DTYPES[dtype], size // K, N, K
            function(x.data_ptr(), step, *at, *more, packed.group, torch.get_num_threads())
            return out
    return F.linear(x, packed.dequantize(x.dtype), bias).to(dtype)


@cache
def product() -> Callable[..., None] | None:
    """The native product; None without a library."""
    return native_function("qv_linear_quantized", ADDRESS, LONG, *[ADDRESS] * 5, *[LONG] * 6)


def _checked(kind: str, group: int) -> int:
    if kind not in GROUPS:
        raise ValueError(f"kind {kind!r}: expected int8 or int4")
    if group < PANEL or group % PANEL or group > LONGEST_GROUP:
        raise ValueError(f"group {group}: expected a multiple of {PANEL} up to {LONGEST_GROUP}")
    return group


def _by_panel(x: Tensor) -> Tensor:
    """[N, groups] -> float16 [panels, groups, 32]."""
    x = F.pad(x.to(torch.float16), (0, 0, 0, -x.shape[0] % PANEL))
    return x.view(-1, PANEL, x.shape[1]).transpose(1, 2).contiguous()


def _interleave(q: Tensor, kind: Kind) -> Tensor:
    """Plain values [N, K] -> data, N a multiple of 32 and K of 32: fours of a feature side by side."""
    fours = q.contiguous().view(torch.int32).view(-1, PANEL, q.shape[1] // 4).transpose(1, 2).contiguous()
    lines = fours.view(torch.uint8).view(fours.shape[0], -1, 128)
    return lines if kind == "int8" else lines[:, ::2] | (lines[:, 1::2] << 4)


def _separate(data: Tensor, kind: Kind) -> Tensor:
    """The reverse of _interleave."""
    lines = data if kind == "int8" else torch.stack((data & 15, data >> 4), 2).view(data.shape[0], -1, 128)
    fours = lines.contiguous().view(torch.int32).transpose(1, 2).contiguous()
    return fours.view(torch.uint8).view(data.shape[0] * PANEL, -1)


def _choose(weight: Tensor, kind: Kind, group: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """weight [N, K] -> q uint8 [N, groups * group], scales and minima float16 [N, groups]."""
    if not weight.sum(dtype=torch.float32).isfinite():
        raise ValueError("the weight has values that are not finite: load it again, or leave it in its own dtype")
    function = native_function("qv_quantize", ADDRESS, LONG, *[ADDRESS] * 3, *[LONG] * 3)
    if function is None or not weight.is_cpu:
        return _choose_by_torch(weight, kind, group)
    weight = (weight if weight.dtype in OUT_DTYPES else weight.float()).contiguous()
    (N, K), groups = weight.shape, -(-weight.shape[1] // group)
    q, scales = torch.empty(N, groups * group, dtype=torch.uint8), torch.empty(N, groups, dtype=torch.float16)
    minima = torch.empty_like(scales) if kind == "int4" else None
    addresses = q.data_ptr(), scales.data_ptr(), 0 if minima is None else minima.data_ptr()
    function(weight.data_ptr(), OUT_DTYPES[weight.dtype], *addresses, N, K, group, torch.get_num_threads())
    return q, scales, minima


def _choose_by_torch(weight: Tensor, kind: Kind, group: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same by torch's operators."""
    N, K = weight.shape
    w = F.pad(weight.float(), (0, -K % group)).view(N, -1, group)
    inside = (torch.arange(w.shape[1] * group, device=w.device) < K).view(-1, group)
    if kind == "int8":
        exact = w.abs().amax(-1) / 127
        scales = exact.to(torch.float16)
        short = (scales.float() < exact).to(torch.int16)
        scales = (scales.view(torch.int16) + short).view(torch.float16)  # up: nothing is cut off
        q = _nearest(w, scales.float()[..., None] * -128, scales.float()[..., None], 255)
        return (q * inside).to(torch.uint8).view(N, -1), scales, None
    scale, low = _least_error(w, inside)
    scales, minima = scale.to(torch.float16), low.to(torch.float16)
    q = _nearest(w, minima.float()[..., None], scales.float()[..., None], 15)
    return (q * inside).to(torch.uint8).view(N, -1), scales, minima


def _nearest(w: Tensor, low: Tensor, scale: Tensor, last: int) -> Tensor:
    return ((w - low) * torch.where(scale > 0, 1 / scale, 0)).round_().clamp_(0, last)


def _least_error(w: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """w [N, groups, group] -> scale, minimum [N, groups] of 4 bits: the range is shrunk step by step, each time with
    the best line through what it gives."""
    count = inside.sum(-1)
    least, most = w.where(inside, torch.inf).amin(-1), w.where(inside, -torch.inf).amax(-1)
    mean, spread = w.sum(-1) / count, most - least
    scale, low, best = spread / 15, least, torch.full_like(least, -1)
    for step in range(SHRINKS):
        kept = 1 - 0.04 * step
        first = least + 0.5 * (1 - kept) * spread
        q = _nearest(w, first[..., None], (kept * spread / 15)[..., None], 15) * inside
        total, product = q.sum(-1), (q * (w - mean[..., None])).sum(-1)
        variance = (q * q).sum(-1) - total * total / count
        slope = torch.where(variance > 0.01, product / variance, 0)
        better = (product * slope > best) & (slope > 0)
        best = torch.where(better, product * slope, best)
        scale, low = torch.where(better, slope, scale), torch.where(better, mean - slope * total / count, low)
    return scale, low
