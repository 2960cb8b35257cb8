"""Decode steps of a text model through one native call (kernels/layers.py), where every module is what it was built as.

A module that somebody replaced, wrapped or put a hook on is run as it is, layer by layer; both ways give the same bits.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qwenvl.kernels.layers import Layer, Layers, Product
from qwenvl.kernels.linear import FEW_ROWS
from qwenvl.kernels.quantized import PackedWeight
from qwenvl.model.attention import Plan, sdpa
from qwenvl.model.kv_cache import CacheView
from qwenvl.model.layers import GatedMLP, Linear, RMSNorm

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


class FewRows:
    """The native form of a text model, made again when one of its tensors was changed for another."""

    def __init__(self) -> None:
        self._seen: list[tuple[Any, str, Any, int]] = []
        self._watched: list[dict[Any, Any]] = []
        self._layers: Layers | None = None

    def __deepcopy__(self, memo: Any) -> FewRows:
        return FewRows()

    def __reduce__(self) -> Any:
        return FewRows, ()

    def run(self, model: Any, x: Tensor, rotation: tuple[Tensor, Tensor], layout: Plan, kv: Any) -> Tensor | None:
        """Hidden states after the last norm [M, D], or None where this way is closed."""
        if len(x) > FEW_ROWS or type(kv) is not CacheView or x.dtype != torch.bfloat16 or torch.is_grad_enabled():
            return None
        if not x.is_cpu or kv.cache.dtype != torch.bfloat16 or rotation[0].dtype != torch.float32:
            return None
        if not self._current() and not self._collect(model):
            return None
        assert self._layers is not None
        cache = kv.cache
        stores = list(chain.from_iterable(zip(cache.keys, cache.values, strict=True)))
        x = x.clone(memory_format=torch.contiguous_format)
        return self._layers.run(x, rotation, stores, np.asarray(kv.places, dtype=np.int64), layout.native(kv))

    def _current(self) -> bool:
        """Whether the table still says what the model is, and nobody watches its modules."""
        if self._layers is None or any(self._watched):
            return False
        for owner, name, found, address in self._seen:
            if owner.get(name) is not found:
                return False
            if address and found.data_ptr() != address:
                return False
        return True

    def _collect(self, model: Any) -> bool:
        self._seen, self._watched, self._layers = [], [], None
        found = [self._layer(layer) for layer in model.layers]
        layers = [layer for layer in found if layer is not None]
        norm, config = self._tensor(model.norm, "weight"), model.config
        self._watch(model.norm)
        if len(layers) < len(found) or type(model.norm) is not RMSNorm or any(self._watched):
            return False
        if any(owner.get(name) is not value for owner, name, value, _ in self._seen):
            return False
        if not Layers.usable(layers, norm, config.head_dim):
            return False
        heads = config.num_attention_heads, config.num_key_value_heads
        self._layers = Layers(layers, norm, model.norm.eps, *heads)
        return True

    def _layer(self, layer: Any) -> Layer | None:
        attn, mlp = layer.self_attn, layer.mlp
        norms = layer.input_layernorm, layer.post_attention_layernorm
        for part in (layer, attn, mlp, *norms):
            self._watch(part)
        if type(mlp) is not GatedMLP or not mlp.is_silu or any(type(norm) is not RMSNorm for norm in norms):
            return None
        if attn.backend is not sdpa:
            return None
        linears = [getattr(part, name) for part, names in zip((attn, mlp), NAMES, strict=True) for name in names]
        products = [self._product(linear) for linear in linears]
        if any(product is None for product in products):
            return None
        for part in (layer, attn, mlp):
            self._seen += [(part._modules, name, module, 0) for name, module in part._modules.items()]
        weights = [self._tensor(norm, "weight") for norm in norms]
        return Layer(weights[0], weights[1], tuple(p for p in products if p is not None), attn.window)

    def _product(self, linear: nn.Module) -> Product | None:
        self._watch(linear)
        bias = None if linear._parameters.get("bias") is None else self._tensor(linear, "bias")
        if type(linear) is Linear:
            return Product(self._tensor(linear, "weight"), bias)
        packed = linear.__dict__.get("packed")
        if not isinstance(packed, PackedWeight):
            return None
        self._seen.append((linear.__dict__, "packed", packed, 0))
        return Product(packed, bias)

    def _tensor(self, module: nn.Module, name: str) -> Tensor:
        found = module._parameters[name]
        assert found is not None
        self._seen.append((module._parameters, name, found, found.data_ptr()))
        return found

    def _watch(self, module: nn.Module) -> None:
        self._watched += [module._forward_hooks, module._forward_pre_hooks]
        self._seen.append((module.__dict__, "forward", None, 0))  # accelerate puts its hooks there
