"""Linears in the layouts of AutoAWQ: 4 bits, with a zero of its own for every group.

gemm  qweight int32 [K, N / 8], qzeros int32 [G, N / 8], scales [G, N]. A word holds 8 neighbouring outputs of an
      input, the lowest 4 bits first, in the order 0, 2, 4, 6, 1, 3, 5, 7.
gemv  qweight int32 [N, K / 8], qzeros int32 [N, Z], scales [N, 8 Z]. A word holds 8 neighbouring inputs of an output,
      in their order. Z: words for G zeros, and for groups of 64 or 32 a multiple of 2 or 4; beyond G it is empty.

In both w = scale * (q - zero), and nothing is subtracted from the zeros. Source of the layouts: AutoAWQ's
WQLinear_GEMM and WQLinear_GEMV (github.com/casper-hansen/AutoAWQ), by their packing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qwenvl.checkpoint.integers import IntegerWeight, matrix, nibbles, octets, transposed, unless_middle
from qwenvl.checkpoint.stored import Entry

LEAVES = frozenset({"qweight", "qzeros", "scales"})
LOW, HIGH = (0, 4, 1, 5), (2, 6, 3, 7)  # the outputs that the low and the high halves of a gemm word's 4 bytes hold


class AwqWeight(IntegerWeight):
    """A weight in the gemm layout."""

    def __init__(self, module: str, parts: dict[str, Entry], group: int) -> None:
        k, words = matrix(parts["qweight"])
        super().__init__(module, parts, "qweight", (words * 8, k))
        self.take(4, group, "scales")
        self.expect("qweight", (k, words), "I32")
        self.expect("qzeros", (self.groups, words), "I32")
        self.expect("scales", (self.groups, words * 8), "F16", "BF16", "F32")

    def integers(self) -> Callable[[int, int], Tensor]:
        words = transposed(self.parts["qweight"])
        return lambda start, stop: interleaved(words[start // 8 : stop // 8])

    def scales(self) -> Tensor:
        return self.finite("scales").t().contiguous()

    def zeros(self) -> Tensor | None:
        return unless_middle(interleaved(self.parts["qzeros"].alone().t()), 4)


class AwqVectorWeight(IntegerWeight):
    """A weight in the gemv layout."""

    def __init__(self, module: str, parts: dict[str, Entry], group: int) -> None:
        n, words = matrix(parts["qweight"])
        super().__init__(module, parts, "qweight", (n, words * 8))
        self.take(4, group, "scales")
        multiple = max(1, 128 // self.group)
        width = -(-self.groups // (8 * multiple)) * multiple
        self.expect("qweight", (n, words), "I32")
        self.expect("qzeros", (n, width), "I32")
        self.expect("scales", (n, width * 8), "F16", "BF16", "F32")

    def integers(self) -> Callable[[int, int], Tensor]:
        entry = self.parts["qweight"]
        return lambda start, stop: nibbles(entry.file.rows(entry.key, start, stop))

    def scales(self) -> Tensor:
        return self.finite("scales")[:, : self.groups]

    def zeros(self) -> Tensor | None:
        return unless_middle(nibbles(self.parts["qzeros"].alone())[:, : self.groups], 4)


def interleaved(words: Tensor) -> Tensor:
    """int32 [N / 8, C], as a gemm word holds outputs -> uint8 [N, C]."""
    data = octets(words).view(*words.shape, 4)
    out = torch.empty(words.shape[0], 8, words.shape[1], dtype=torch.uint8)
    for byte, (low, high) in enumerate(zip(LOW, HIGH, strict=True)):
        torch.bitwise_and(data[..., byte], 15, out=out[:, low])
        torch.bitwise_right_shift(data[..., byte], 4, out=out[:, high])
    return out.view(-1, words.shape[1])
