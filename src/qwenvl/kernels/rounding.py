"""Which integers, scales and zeros stand for a weight: native (csrc/quantize.c), or by torch's operators.

    w ~ 2^exponent * scale * (q - zero)

The exponent is one for the whole weight and puts its largest value near the top of float16, so that scales keep all
their bits however small the weights are.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.kernels.linear import OUT_DTYPES
from qwenvl.kernels.native import ADDRESS, LONG, native_function

Chosen = tuple[Tensor, Tensor, Tensor | None]
CUTS, CUT, REFINED = 4, 0.05, 2  # 4 bits: so much of a range is cut off at an end, 0 to CUTS - 1 times
RANGES, STEP = 10, 0.04  # 8 bits: each range is so much of the whole smaller than the one before
SMALLEST = 2.0**-24  # float16 above 0
TOP = 14  # 2^14 <= the largest weight < 2^15, in units of 2^exponent
FARTHEST = 100  # exponents beyond say nothing that float32 can hold


def exponent_of(largest: float) -> int:
    """The exponent by which `largest` comes near the top of float16."""
    return max(-FARTHEST, min(math.frexp(largest)[1] - 1 - TOP, FARTHEST)) if largest else 0


def counts_of(importance: Tensor | None, width: int, group: int) -> Tensor:
    """How much the error of each input counts: float32 [groups * group], 0 beyond `width` inputs, 1 on average
    in a group."""
    inside = torch.ones(width)
    given = inside if importance is None else importance.detach().float().cpu()
    if given.shape != (width,) or not bool((given >= 0).all()) or not bool(given.isfinite().all()):
        raise ValueError(
            f"importance has the shape {list(given.shape)}: expected {[width]}, finite values of 0 or more"
        )
    rows, ones = (F.pad(x, (0, -width % group)).view(-1, group) for x in (given, inside))
    mean = rows.sum(-1, keepdim=True) / ones.sum(-1, keepdim=True)
    return torch.where(mean > 0, rows / mean.clamp(min=torch.finfo().tiny), ones).flatten().contiguous()


def choose(weight: Tensor, bits: int, group: int, exponent: int, counts: Tensor, search: bool) -> Chosen:
    """weight [N, K] of any floating dtype -> q uint8 [N, groups * group], scales float16 [N, groups], and zeros
    likewise for 4 bits; None for 8, where they are 128. search: whether 8 bits look at `counts`."""
    types = (ADDRESS, LONG, ADDRESS, LONG, *[ADDRESS] * 3, *[LONG] * 4)
    function = native_function("qv_quantize", *types)
    if function is None or not weight.is_cpu:
        return _by_torch(weight, bits, group, exponent, counts.to(weight.device), search)
    weight = (weight if weight.dtype in OUT_DTYPES else weight.float()).contiguous()
    (N, K), groups = weight.shape, -(-weight.shape[1] // group)
    q, scales = torch.empty(N, groups * group, dtype=torch.uint8), torch.empty(N, groups, dtype=torch.float16)
    zeros = torch.empty_like(scales) if bits == 4 else None
    out = q.data_ptr(), scales.data_ptr(), 0 if zeros is None else zeros.data_ptr()
    given = weight.data_ptr(), OUT_DTYPES[weight.dtype], counts.data_ptr(), int(search)
    function(*given, *out, N, K, group, exponent, torch.get_num_threads())
    return q, scales, zeros


def _by_torch(weight: Tensor, bits: int, group: int, exponent: int, counts: Tensor, search: bool) -> Chosen:
    N, K = weight.shape
    w = F.pad(torch.ldexp(weight.float(), torch.tensor(-exponent)), (0, -K % group)).view(N, -1, group)
    inside = (torch.arange(w.shape[1] * group, device=w.device) < K).view(-1, group)
    least, most = w.where(inside, torch.inf).amin(-1), w.where(inside, -torch.inf).amax(-1)
    counts = counts.view(-1, group)
    scale, zero = _choose_8(w, least, most, counts, search) if bits == 8 else _choose_4(w, least, most, counts)
    q = _nearest(w, scale, zero, 2**bits - 1) * inside * (scale > 0)[..., None]
    return q.to(torch.uint8).view(N, -1), scale.to(torch.float16), zero.to(torch.float16) if bits == 4 else None


def _nearest(w: Tensor, scale: Tensor, zero: Tensor, last: int) -> Tensor:
    inverse = torch.where(scale > 0, 1 / scale, 0)
    return (w * inverse[..., None] + zero[..., None]).round_().clamp_(0, last)


def _error(w: Tensor, scale: Tensor, zero: Tensor, last: int, counts: Tensor) -> Tensor:
    """Squared error of the nearest integers."""
    missed = w - (_nearest(w, scale, zero, last) - zero[..., None]) * scale[..., None]
    return (missed.square_() * counts).sum(-1)


def _half(x: Tensor) -> Tensor:
    return x.to(torch.float16).float()


def _choose_8(w: Tensor, least: Tensor, most: Tensor, counts: Tensor, search: bool) -> tuple[Tensor, Tensor]:
    """Nothing is cut off, unless that pays because some values count more than others."""
    largest, zero = torch.maximum(-least, most), torch.full_like(least, 128)
    best, error = torch.zeros_like(largest), torch.zeros_like(largest)
    for step in range(RANGES if search else 1):
        exact = largest * ((1 - STEP * step) / 127)
        rounded = exact.clamp(min=SMALLEST).to(torch.float16)
        short = (rounded.float() < exact).to(torch.int16)
        scale = torch.where(largest > 0, (rounded.view(torch.int16) + short).view(torch.float16).float(), 0)
        found = _error(w, scale, zero, 255, counts) if search else error
        better = (found < error) if step else torch.ones_like(error, dtype=torch.bool)
        best, error = torch.where(better, scale, best), torch.where(better, found, error)
    return best, zero


def _choose_4(w: Tensor, least: Tensor, most: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges with more or less cut off at both ends, each time with the best line through what it gives; the best of
    these is rounded to anew, and the line found again. What float16 cannot tell apart is added to the range at both
    ends: a zero far away is rounded to steps of many."""
    slack = torch.maximum(-least, most) * 2.0**-11
    first, spread = least - slack, most - least + 2 * slack
    mean = (w * counts).sum(-1) / counts.sum(-1)
    centred = w - mean[..., None]
    slope, middle, best = torch.zeros_like(mean), torch.zeros_like(mean), torch.full_like(mean, -1)
    for cut in range(CUTS * CUTS + REFINED):
        if cut < CUTS * CUTS:
            below, above = CUT * (cut // CUTS), CUT * (cut % CUTS)
            scale = (1 - below - above) * spread / 15
            start = torch.where(scale > 0, (mean - first - below * spread) / scale, 0)
        else:
            scale, start = slope, middle
        gain, found, at = _line(centred, scale, start, counts)
        better = (gain > best) & (found > 0)
        best, slope = torch.where(better, gain, best), torch.where(better, found, slope)
        middle = torch.where(better, at, middle)
    wide = torch.where(spread > 0, _half((spread / 15).clamp(min=SMALLEST)), 0)
    narrow = torch.where(best >= 0, _half(slope.clamp(min=SMALLEST)), wide)
    zeros = [_half(torch.where(s > 0, at, 0)) for s, at in ((wide, -first / wide), (narrow, middle - mean / slope))]
    choices = [(s, z, _error(w, s, z, 15, counts)) for s, z in zip((wide, narrow), zeros, strict=True)]
    better = (choices[1][2] < choices[0][2]) & (best >= 0)
    return torch.where(better, narrow, wide), torch.where(better, zeros[1], zeros[0])


def _line(w: Tensor, scale: Tensor, start: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared error that the best line through (q, w) takes away, with its slope and zero; w has the mean 0."""
    q = _nearest(w, scale, start, 15)
    weighted = q * counts
    count, total, product = counts.sum(-1), weighted.sum(-1), (weighted * w).sum(-1)
    variance = (weighted * q).sum(-1) - total * total / count
    slope = torch.where(variance > 0.01, product / variance, 0)
    return product * slope, slope, total / count
