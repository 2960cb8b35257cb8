"""A built model -> the same model with its linears packed, and the report of what was done."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from qwenvl.kernels.native import library, reason
from qwenvl.quantization.linear import QuantizedLinear, check_device, pack, swap
from qwenvl.quantization.schemes import HEAD, TEXT, TOWER, QuantizeOptions, Scheme, choose, options_of, part_of

if TYPE_CHECKING:
    from qwenvl.model.base import PreTrained


@dataclass(frozen=True)
class Quantization:
    """What was done to a model. schemes: of every packed linear, by the name of its module in the whole model. Bytes of
    all weights: as they were in the model's dtype, and as they are; a tied head counts when it has a packed copy."""

    schemes: dict[str, Scheme] = field(repr=False)
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        """Example: text int4 group 128, tower int4 group 128, head as it was: 7.5 MiB -> 3.0 MiB"""
        found: dict[str, Counter[str]] = {part: Counter() for part in (TEXT, TOWER, HEAD)}
        for name, scheme in self.schemes.items():
            found[part_of(name) or TEXT][str(scheme)] += 1
        said = ", ".join(f"{part} {_mixture(schemes)}" for part, schemes in found.items())
        return f"{said}: {self.bytes_before / 2**20:,.1f} MiB -> {self.bytes_after / 2**20:,.1f} MiB"


def _mixture(schemes: Counter[str]) -> str:
    if len(schemes) < 2:
        return next(iter(schemes), "as it was")
    return " and ".join(f"{scheme} ({count} linears)" for scheme, count in schemes.most_common())


def finish(model: PreTrained, bytes_before: int) -> None:
    """What a model with packed linears still needs: gradients off, and the report of what was done."""
    if library() is None:
        said = f"quantized weights are slower than others here, as there is no native code: {reason()}"
        warnings.warn(said, stacklevel=3)
    model.requires_grad_(False)
    packed = {name: part for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}
    done = {model.weights_prefix + name: part.scheme for name, part in packed.items()}
    model.quantization = Quantization(done, bytes_before, weight_bytes(model))


def quantize_model(model: PreTrained, quantize: str | QuantizeOptions) -> PreTrained:
    """Pack the linears of `model` in place, freeing each weight when it is packed, and return it.

    ValueError for a model that is quantized already or has no numbers yet (meta).
    """
    options = options_of(quantize)
    if model.quantization is not None:
        raise ValueError(f"the model is quantized already ({model.quantization}): load it again")
    check_device(model.device)
    shapes = {model.weights_prefix + name: tensor.shape for name, tensor in model.state_dict().items()}
    bytes_before = weight_bytes(model)
    for whole, scheme in choose(shapes, options).items():
        name = whole.removeprefix(model.weights_prefix)
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear), name
        quantized = swap(model, name, pack(linear.weight.detach(), scheme), model.dtype)
        if linear.weight is model.text.embed_tokens.weight:
            quantized.packed_numbers = 0
    finish(model, bytes_before)
    return model


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights of a model, packed or not; shared ones count once."""
    packed = sum(part.packed.nbytes for part in model.modules() if isinstance(part, QuantizedLinear))
    return packed + sum(parameter.nbytes for parameter in model.parameters())
