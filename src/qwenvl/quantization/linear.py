"""A linear whose weight is packed, and its place in a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qwenvl.kernels.quantized import PackedWeight, quantized_linear
from qwenvl.quantization.schemes import Scheme

_INSTEAD = "use the model loaded without quantize="


def check_device(device: torch.device) -> None:
    """ValueError for a device on which nothing is computed; a warning for one without a kernel for packed weights."""
    if device.type == "meta":
        raise ValueError(f"quantized weights cannot be made on the device {device}: give one that computes")
    if device.type != "cpu":
        warnings.warn(
            f"quantized weights save memory on {device.type}, and are slow there: every product unpacks its weight "
            f"first; {_INSTEAD} where that fits",
            stacklevel=3,
        )


class QuantizedLinear(nn.Module):
    """x [..., in_features] -> [..., out_features] in x's dtype or `out_dtype`, with a packed weight.

    It takes the place of `linear`, whose bias it has; the weight of `linear` may be on the meta device. dtype: of the
    model. The packed weight is no buffer: its scales keep their dtype when the model changes its own, and it moves with
    the model. Off the CPU it is unpacked to x's dtype for each product. packed_numbers: how many weights it holds; 0
    for a copy of a weight that the model also keeps.
    """

    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, packed: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        assert (packed.out_features, packed.in_features) == (self.out_features, self.in_features)
        self.scheme, self.packed = Scheme(packed.kind, packed.group), packed
        self.packed_numbers = self.out_features * self.in_features
        self._dtype = dtype
        self.register_parameter("bias", linear.bias)
        self.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """The weight as it is now, [out_features, in_features] in the model's dtype, unpacked anew at each access."""
        return self.packed.dequantize(self._dtype)

    def forward(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or self.training):
            raise ValueError(f"weights quantized to {self.scheme.kind} carry no gradients: {_INSTEAD} to train")
        return quantized_linear(x, self.packed, self.bias, out_dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.scheme}, bias={self.bias is not None}"

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight":
            raise ValueError(f"a weight quantized to {self.scheme.kind} cannot be replaced: {_INSTEAD}")
        super().register_parameter(name, param)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        here = self.packed.data.device
        probe = fn(torch.empty(0, dtype=self._dtype, device=here))
        if probe.device != here:
            if probe.device.type != "meta":
                check_device(probe.device)
            self.packed = self.packed.to(probe.device)
        self._dtype = probe.dtype
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._refuse_state(prefix)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self._refuse_state(prefix)

    def _refuse_state(self, prefix: str) -> None:
        raise ValueError(
            f"{prefix.removesuffix('.') or 'the layer'} is quantized to {self.scheme.kind}, and packed weights are not "
            "part of a state: save_pretrained() writes them, from_pretrained() reads them"
        )


def swap(model: nn.Module, name: str, packed: PackedWeight, dtype: torch.dtype) -> QuantizedLinear:
    """Put a QuantizedLinear with `packed` in the place of the linear `name`, whose bias may be loaded later."""
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear), name
    quantized = QuantizedLinear(linear, packed, dtype)
    model.set_submodule(name, quantized)
    return quantized


def pack(weight: Tensor, scheme: Scheme) -> PackedWeight:
    """A weight [out, in] packed by a scheme."""
    return PackedWeight.pack(weight, scheme.kind, scheme.group)
