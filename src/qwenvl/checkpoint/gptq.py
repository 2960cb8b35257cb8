"""Linears in the layout of GPTQ, as AutoGPTQ, Optimum and GPTQModel write it: 4 or 8 bits.

qweight int32 [K * bits / 32, N]: a word holds 8 or 4 neighbouring inputs of an output, the lowest bits first.
qzeros int32 [G, N * bits / 32]: a word holds the zeros of 8 or 4 neighbouring outputs less one, unless
checkpoint_format is "gptq_v2". What becomes of a zero of 0 depends on the writer: AutoGPTQ counts every zero around by
itself (0 is stored with all bits set), GPTQModel subtracts from the whole word, so that it borrows from its neighbour.
Symmetric weights have the zero 8 or 128 whatever the format says: files that are said to be "gptq" hold it both ways.
scales [G, N]. g_idx int32 [K]: the group of every input.

Files made with desc_act (act-order) have their groups mixed over the inputs by g_idx; each group still has as many
inputs as all others, so that sorted by group the weight is an ordinary one, and the order goes with it. Source:
AutoGPTQ's and GPTQModel's packing (github.com/ModelCloud/GPTQModel); of the two kinds of symmetric files,
github.com/vllm-project/vllm/pull/38966.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenvl.checkpoint.integers import IntegerWeight, matrix, middle, transposed, unless_middle, unpacked
from qwenvl.checkpoint.stored import CheckpointError, Entry

LEAVES = frozenset({"qweight", "qzeros", "scales", "g_idx"})


@dataclass(frozen=True)
class Settings:
    """What config.json says of a linear. group: -1 is the whole row. desc_act: g_idx has to be there. less_one and
    borrows: how zeros are stored."""

    bits: int
    group: int
    desc_act: bool
    symmetric: bool
    less_one: bool
    borrows: bool


class GptqWeight(IntegerWeight):
    """A weight of 4 or 8 bits."""

    def __init__(self, module: str, parts: dict[str, Entry], settings: Settings) -> None:
        (words, n), bits = matrix(parts["qweight"]), settings.bits
        k = words * 32 // bits
        super().__init__(module, parts, "qweight", (n, k))
        self.settings = settings
        self.take(bits, settings.group, "scales")
        self.expect("qweight", (words, n), "I32")
        self.expect("qzeros", (self.groups, -(-n * bits // 32)), "I32")
        self.expect("scales", (self.groups, n), "F16", "BF16", "F32")
        if settings.desc_act or "g_idx" in parts:
            self.expect("g_idx", (k,), "I32", "I64")

    def integers(self) -> Callable[[int, int], Tensor]:
        words = transposed(self.parts["qweight"])
        return lambda start, stop: unpacked(words[start:stop], self.bits)

    def scales(self) -> Tensor:
        return self.finite("scales").t().contiguous()

    def zeros(self) -> Tensor | None:
        words, n, half = self.parts["qzeros"].alone(), self.shape[0], middle(self.bits)
        stored = unpacked(words, self.bits)[:, :n]
        if self.settings.symmetric and any(bool((stored == zero).all()) for zero in (half - 1, half)):
            return None
        last = 2 * half - 1
        if self.settings.less_one and self.settings.borrows:
            stored = unpacked(words + 0xFFFFFFFF // last, self.bits)[:, :n]  # one more in every place of a word
        elif self.settings.less_one:
            stored = (stored + 1) & last
        return unless_middle(stored.t().contiguous(), self.bits)

    def order(self) -> Tensor | None:
        k = self.shape[1]
        if "g_idx" not in self.parts:
            return None
        index = self.parts["g_idx"].alone().long()
        natural = torch.arange(k) // self.group
        if not self.settings.desc_act and not index.any():
            return None  # some writers leave it at 0 where it says nothing
        return order_of(index, natural, f"{self.parts['g_idx'].key} of {self.path}")


def order_of(index: Tensor, natural: Tensor, where: str) -> Tensor | None:
    """g_idx and what it would be in the inputs' own order, both int64 [K] -> the inputs sorted by group; None where
    they are. CheckpointError for groups out of range, or of another length than they have to be."""
    if torch.equal(index, natural):
        return None
    last = int(natural[-1])
    if int(index.min()) < 0 or int(index.max()) > last:
        raise CheckpointError(
            f"{where} is damaged: it names groups from {int(index.min())} to {int(index.max())}, expected 0 to {last}; "
            "fetch the checkpoint again"
        )
    order = index.argsort(stable=True)
    if not torch.equal(index[order], natural):
        have, want = index.bincount(minlength=last + 1), natural.bincount()
        odd = int((have != want).nonzero()[0])
        raise CheckpointError(
            f"{where} is damaged: it gives group {odd} {int(have[odd])} inputs, expected {int(want[odd])}; fetch the "
            "checkpoint again"
        )
    return order
