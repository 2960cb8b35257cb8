"""Blocks of a quantized GGUF tensor -> integers with scales, and the weights that they stand for.

Every type that is unpacked here says w = scale * q - low, q a small integer, one scale (and low) for a group of
neighbouring inputs. The steps are done in float32, in the order in which the library `gguf` does them: the weights are
the same to the last bit. Types whose groups share tables of vectors (IQ1, IQ2, IQ3) and rare ones are that library's.

Legend: B blocks, G groups of a block, L weights of a group. The layouts are those of ggml's block_q4_0, block_q4_K, ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

K_SCALES = 12  # bytes with 8 scales and 8 minima, or 16 scales, of 6 bits
FOUR_BIT_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # of IQ4_NL and IQ4_XS
FOUR_BIT_FLOATS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # of MXFP4, doubled


@dataclass(frozen=True)
class Blocks:
    """w = scale * q - low. q: int8 [B, G, L]. scale, low: float32 [B, G]; low is None where it is 0."""

    q: Tensor
    scale: Tensor
    low: Tensor | None = None

    def weights(self) -> Tensor:
        """float32 [B, G * L]."""
        w = self.q.float().mul_(self.scale[..., None])
        return (w if self.low is None else w.sub_(self.low[..., None])).flatten(1)


def unpack(kind: str, data: Tensor) -> Blocks:
    """data: uint8 [B, bytes of a block] of a type in UNPACK."""
    return UNPACK[kind](data)


def half(data: Tensor, at: int) -> Tensor:
    """The float16 at a byte of every block: float32 [B, 1]."""
    return data[:, at : at + 2].contiguous().view(torch.float16).float()


def nibbles(data: Tensor, width: int) -> Tensor:
    """uint8 [B, n * width] -> [B, 2 * n * width]: of every `width` bytes first the low halves, then the high ones."""
    parts = data.reshape(len(data), -1, width)
    return torch.stack((parts & 15, parts >> 4), 2).flatten(1)


def pairs(data: Tensor, width: int) -> Tensor:
    """uint8 [B, n * width] -> [B, 4 * n * width]: of every `width` bytes the lowest two bits first."""
    parts = data.reshape(len(data), -1, width)
    return torch.stack([(parts >> shift) & 3 for shift in (0, 2, 4, 6)], 2).flatten(1)


def bits(data: Tensor, width: int) -> Tensor:
    """uint8 [B, n * width] -> [B, 8 * n * width]: of every `width` bytes the lowest bit first."""
    parts = data.reshape(len(data), -1, width)
    return torch.stack([(parts >> shift) & 1 for shift in range(8)], 2).flatten(1)


def signed(values: Tensor, offset: int, groups: int) -> Tensor:
    """uint8 [B, n] -> int8 [B, groups, n / groups], less `offset`."""
    return (values.view(torch.int8) - offset).view(len(values), groups, -1)


def looked_up(places: Tensor, table: tuple[int, ...]) -> Tensor:
    """uint8 -> int8: the table's values at these places."""
    return torch.tensor(table, dtype=torch.int8)[places.int()]


def _q4_0(data: Tensor) -> Blocks:
    return Blocks(signed(nibbles(data[:, 2:], 16), 8, 1), half(data, 0))


def _q4_1(data: Tensor) -> Blocks:
    return Blocks(signed(nibbles(data[:, 4:], 16), 0, 1), half(data, 0), -half(data, 2))


def _fifth(data: Tensor) -> Tensor:
    """4 bytes with a fifth bit for each of 32 weights -> 0 or 16."""
    return bits(data.reshape(-1, 1), 1).view(len(data), 32) << 4


def _q5_0(data: Tensor) -> Blocks:
    return Blocks(signed(nibbles(data[:, 6:], 16) | _fifth(data[:, 2:6]), 16, 1), half(data, 0))


def _q5_1(data: Tensor) -> Blocks:
    return Blocks(signed(nibbles(data[:, 8:], 16) | _fifth(data[:, 4:8]), 0, 1), half(data, 0), -half(data, 2))


def _q8_0(data: Tensor) -> Blocks:
    return Blocks(data[:, None, 2:].view(torch.int8), half(data, 0))


def _q2_k(data: Tensor) -> Blocks:
    scales = data[:, :16]
    scale, low = half(data, 80) * (scales & 15).float(), half(data, 82) * (scales >> 4).float()
    return Blocks(signed(pairs(data[:, 16:80], 32), 0, 16), scale, low)


def _q3_k(data: Tensor) -> Blocks:
    high, packed = bits(data[:, :32], 32), data[:, 96:108]
    scales = nibbles(packed[:, :8], 8) | (pairs(packed[:, 8:], 4) << 4)
    q = pairs(data[:, 32:96], 32) | (high << 2)  # a bit that is not set takes 4 off
    return Blocks(signed(q, 4, 16), half(data, 108) * (scales.view(torch.int8) - 32).float())


def _scales_and_lows(data: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: d and dmin, then 8 scales and 8 lows of 6 bits: float32 [B, 8] each, multiplied out."""
    first, second, rest = data[:, 4:8], data[:, 8:12], data[:, 12:16]
    scales = torch.cat((first & 63, (rest & 15) | ((first >> 2) & 48)), 1)
    lows = torch.cat((second & 63, (rest >> 4) | ((second >> 2) & 48)), 1)
    return half(data, 0) * scales.float(), half(data, 2) * lows.float()


def _q4_k(data: Tensor) -> Blocks:
    return Blocks(signed(nibbles(data[:, 16:], 32), 0, 8), *_scales_and_lows(data))


def _q5_k(data: Tensor) -> Blocks:
    q = nibbles(data[:, 48:], 32) | (bits(data[:, 16:48], 32) << 4)
    return Blocks(signed(q, 0, 8), *_scales_and_lows(data))


def _q6_k(data: Tensor) -> Blocks:
    q = nibbles(data[:, :128], 64) | (pairs(data[:, 128:192], 32) << 4)
    scales = data[:, 192:208].view(torch.int8).float()
    return Blocks(signed(q, 32, 16), half(data, 208) * scales)


def _iq4_nl(data: Tensor) -> Blocks:
    return Blocks(looked_up(nibbles(data[:, 2:], 16), FOUR_BIT_VALUES)[:, None], half(data, 0))


def _iq4_xs(data: Tensor) -> Blocks:
    low = data[:, 4:8]
    low = torch.stack((low & 15, low >> 4), 2).flatten(1)  # neighbours here, not halves
    high = data[:, 2:4]
    high = torch.stack([(high >> shift) & 3 for shift in (0, 2, 4, 6)], 2).flatten(1)
    scales = (low | (high << 4)).view(torch.int8) - 32
    q = looked_up(nibbles(data[:, 8:], 16), FOUR_BIT_VALUES).view(len(data), 8, 32)
    return Blocks(q, half(data, 0) * scales.float())


def _mxfp4(data: Tensor) -> Blocks:
    exponent = data[:, :1].int()
    half_power = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    return Blocks(looked_up(nibbles(data[:, 1:], 16), FOUR_BIT_FLOATS)[:, None], half_power.view(torch.float32))


UNPACK: dict[str, Callable[[Tensor], Blocks]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4,
}  # fmt: skip
# Types that fit into 4 bits, and what makes their q 0..15.
FOUR_BITS = {"Q2_K": 0, "Q3_K": 4, "Q4_0": 8, "Q4_1": 0, "Q4_K": 0}
GROUPS = {"Q2_K": 16, "Q3_K": 16, "Q6_K": 16}  # the others' are 32
LARGEST = 65504.0  # of float16


def kernel_integers(kind: str, blocks: Blocks) -> tuple[Tensor, Tensor, Tensor | None]:
    """Blocks as the kernels take them, w = scale * (q - zero): q uint8 [B, G, L], scale and zero float16 [B, G]; zero
    None: 128. 4 bits where FOUR_BITS says so, else 8.

    The zero is that of the scale before it is rounded, so that rounding it changes all weights of a group by the same
    factor. Groups of one value only, whose scale is 0 or nothing beside their low, keep that value.
    """
    scale = blocks.scale.to(torch.float16)
    if blocks.low is None:
        if kind not in FOUR_BITS:
            return blocks.q.view(torch.uint8) ^ 128, scale, None
        return (blocks.q + FOUR_BITS[kind]).view(torch.uint8), scale, torch.full_like(scale, FOUR_BITS[kind])
    zero = blocks.low / blocks.scale
    flat = (scale == 0) | (zero.abs() > LARGEST)
    q = blocks.q.view(torch.uint8).masked_fill(flat[..., None], 0)
    scale = torch.where(flat, blocks.low.abs(), blocks.scale).to(torch.float16)
    return q, scale, torch.where(flat, blocks.low.sign(), zero).to(torch.float16)
