"""The decoder of a text model for a few rows in one native call: the same kernels in the same order as layer by layer,
the same numbers to the last bit, without a dozen calls from Python a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qwenvl.kernels.attention import NO_WINDOW, Layout
from qwenvl.kernels.linear import FEW_ROWS
from qwenvl.kernels.native import ADDRESS, FLOAT, LONG, native_function
from qwenvl.kernels.quantized import PackedWeight

TYPES = (ADDRESS, LONG, ADDRESS, FLOAT, *[ADDRESS] * 7, *[LONG] * 5, FLOAT)


@dataclass(frozen=True)
class Product:
    """One linear: a plain weight bfloat16 [N, K] or a packed one, and a bias bfloat16 [N]."""

    weight: Tensor | PackedWeight
    bias: Tensor | None

    def fits(self) -> bool:
        """Whether native code can read it."""
        plain = [x for x in (self.weight, self.bias) if isinstance(x, Tensor)]
        if isinstance(self.weight, PackedWeight) and (not self.weight.data.is_cpu or self.weight.order is not None):
            return False
        return all(x.dtype == torch.bfloat16 and x.is_cpu and x.is_contiguous() for x in plain)

    def numbers(self) -> list[int]:
        """As `weight` of csrc/layers.c lists it."""
        w, bias = self.weight, 0 if self.bias is None else self.bias.data_ptr()
        if isinstance(w, Tensor):
            return [w.data_ptr(), 0, 0, bias, *w.shape, 0, 0, 0]
        zeros, shape = 0 if w.zeros is None else w.zeros.data_ptr(), (w.out_features, w.in_features)
        return [w.data.data_ptr(), w.scales.data_ptr(), zeros, bias, *shape, w.group, w.bits, w.exponent]


@dataclass(frozen=True)
class Layer:
    """A decoder layer: two norm weights, the products q, k, v, o, gate, up, down, and its window (None = all keys)."""

    input_norm: Tensor
    post_norm: Tensor
    products: tuple[Product, ...]
    window: int | None

    def numbers(self) -> list[int]:
        window = NO_WINDOW if self.window is None else self.window
        norms = [self.input_norm.data_ptr(), self.post_norm.data_ptr()]
        return [*norms, *(n for product in self.products for n in product.numbers()), window]


class Layers:
    """All layers of a decoder with its last norm, as native code reads them. It holds the tensors that it was made of;
    when the model has others, make a new one."""

    def __init__(self, layers: Sequence[Layer], last_norm: Tensor, eps: float, heads: int, kv_heads: int) -> None:
        self._held, self._norm, self._eps = tuple(layers), last_norm, eps
        self._heads, self._kv_heads = heads, kv_heads
        self._table = np.asarray([layer.numbers() for layer in layers], dtype=np.int64)
        self._function = native_function("qv_few_rows", *TYPES)

    @staticmethod
    def usable(layers: Sequence[Layer], last_norm: Tensor, head_size: int) -> bool:
        """Whether native code is there and can read all of these."""
        norms = [last_norm, *(x for layer in layers for x in (layer.input_norm, layer.post_norm))]
        plain = all(x.dtype == torch.bfloat16 and x.is_cpu and x.is_contiguous() for x in norms)
        fits = plain and all(product.fits() for layer in layers for product in layer.products)
        return fits and bool(layers) and head_size % 2 == 0 and native_function("qv_few_rows", *TYPES) is not None

    def run(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        stores: Sequence[Tensor],
        places: np.ndarray,
        layout: Layout,
    ) -> Tensor:
        """x [M, D] bfloat16, M <= FEW_ROWS, is overwritten; returns the hidden states after the last norm [M, D].

        rotation: cos and sin, float32 [M, 1, head size / 2]. stores: keys and values [kv heads, room, D] of each layer
        in turn, contiguous bfloat16. places: int64 [M], where the new keys go. layout: of a cache, causal.
        """
        M = len(x)
        assert M <= FEW_ROWS, M
        assert layout.in_cache, "keys come from a cache"
        assert layout.tokens == M == len(places), (layout.tokens, M, len(places))
        out = torch.empty_like(x)
        cos, sin = (angles.contiguous() for angles in rotation)
        size, room = stores[0].shape[2], stores[0].shape[1]
        pointers = np.asarray([store.data_ptr() for store in stores], dtype=np.int64)
        assert self._function is not None
        self._function(
            self._table.ctypes.data, len(self._held), self._norm.data_ptr(), self._eps, x.data_ptr(), out.data_ptr(),
            pointers.ctypes.data, places.ctypes.data, layout.address, cos.data_ptr(), sin.data_ptr(), M, self._heads,
            self._kv_heads, size, room, size**-0.5, torch.get_num_threads(),
        )  # fmt: skip
        return out
