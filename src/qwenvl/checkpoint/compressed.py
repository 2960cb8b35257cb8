"""Linears as compressed-tensors writes them (llm-compressor and its like): 4 or 8 bits.

pack-quantized   weight_packed int32 [N, K * bits / 32]: a word holds neighbouring inputs of an output, the lowest bits
                 first, each with the middle (8 or 128) added. weight_shape int64 [2] is [N, K].
int-quantized,   weight int8 [N, K]: W8A8, whose activations are rounded to 8 bits by our kernels too.
naive-quantized

weight_scale [N, G] (group), [N, 1] or [N] (channel), [1] (tensor). weight_zero_point, where it is not symmetric, has
the shape of weight_scale in int8; pack-quantized packs it along the outputs, int32 [N * bits / 32, G], with the middle
added, except in early files. weight_g_idx int32 [K], where inputs are ordered by activation. Scales and zeros of
activations that were found by calibration (input_scale and its like) are not used: ours are found anew for every row.

Source: the library's compressors (github.com/vllm-project/compressed-tensors).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qwenvl.checkpoint.gptq import order_of
from qwenvl.checkpoint.integers import IntegerWeight, matrix, middle, unless_middle, unpacked
from qwenvl.checkpoint.stored import CheckpointError, Entry

LEAVES = frozenset({"weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"})
UNUSED = frozenset(
    f"{side}_{what}" for side in ("input", "output", "k", "v", "q") for what in ("scale", "zero_point", "global_scale")
)
FLOATS = "F16", "BF16", "F32"


class CompressedWeight(IntegerWeight):
    """A weight of `bits` 4 or 8 in groups of `group` (-1: the whole row). symmetric: without zeros."""

    def __init__(self, module: str, parts: dict[str, Entry], bits: int, group: int, symmetric: bool) -> None:
        self.words = "weight_packed" in parts
        main = "weight_packed" if self.words else "weight"
        n, columns = matrix(parts[main])
        super().__init__(module, parts, main, (n, self._inputs(parts, columns, bits)))
        self.symmetric = symmetric
        self.take(bits if self.words else 8, group, "weight_scale")  # int8 holds fewer bits too
        bits = self.bits
        self.expect(main, (n, -(-self.shape[1] * bits // 32) if self.words else columns), "I32" if self.words else "I8")
        one = parts["weight_scale"].shape in ((), (1,), (1, 1), (n,)) and self.groups == 1
        self.expect("weight_scale", parts["weight_scale"].shape if one else (n, self.groups), *FLOATS)
        if not symmetric:
            is_int32 = self.part("weight_zero_point").kind == "I32"
            shape = (-(-n * bits // 32), self.groups) if is_int32 else parts["weight_scale"].shape
            self.expect("weight_zero_point", shape, "I32", "I8")
        if "weight_g_idx" in parts:
            self.expect("weight_g_idx", (self.shape[1],), "I32", "I64")

    def integers(self) -> Callable[[int, int], Tensor]:
        entry = self.parts["weight_packed" if self.words else "weight"]

        def rows(start: int, stop: int) -> Tensor:
            stored = entry.file.rows(entry.key, start, stop)
            return unpacked(stored, self.bits)[:, : self.shape[1]] if self.words else stored.view(torch.uint8) ^ 128

        return rows

    def scales(self) -> Tensor:
        return self._each(self.finite("weight_scale"))

    def zeros(self) -> Tensor | None:
        if self.symmetric:
            return None
        stored = self.parts["weight_zero_point"].alone()
        if stored.dtype == torch.int8:
            return unless_middle(self._each(stored).to(torch.int16) + middle(self.bits), self.bits)
        return unless_middle(unpacked(stored.t(), self.bits)[:, : self.shape[0]].t().contiguous(), self.bits)

    def order(self) -> Tensor | None:
        if "weight_g_idx" not in self.parts:
            return None
        index = self.parts["weight_g_idx"].alone().long()
        if (index == -1).all():
            return None  # as it is made; it says nothing then
        natural = torch.arange(self.shape[1]) // self.group
        return order_of(index, natural, f"{self.parts['weight_g_idx'].key} of {self.path}")

    def _inputs(self, parts: dict[str, Entry], columns: int, bits: int) -> int:
        """K: what weight_shape says, where the words leave it open."""
        if not self.words:
            return columns
        if "weight_shape" not in parts:
            return columns * 32 // bits
        said = [int(size) for size in parts["weight_shape"].alone().flatten()]
        n = parts["weight_packed"].shape[0]
        if len(said) != 2 or said[0] != n or not (columns - 1) * 32 < said[1] * bits <= columns * 32:
            entry = parts["weight_shape"]
            raise CheckpointError(
                f"{entry.key} of {entry.file.path} says {said}: expected [{n}, about {columns * 32 // bits}], as "
                f"{parts['weight_packed'].key} has"
            )
        return said[1]

    def _each(self, values: Tensor) -> Tensor:
        """Scales or zeros of any granularity -> [N, G]."""
        return values.reshape(-1, self.groups).expand(self.shape[0], -1)
