"""Quantized weights: a built model -> the same model with its linears packed in int8 or int4.

What is packed is chosen by the names of the tensors: every linear of the text layers, of the tower's blocks and
merger, and the head. Embedding, patch embedding, norms and biases stay as they are, and so do activations between
layers; each linear rounds its input to int8 by itself (kernels/quantized.py). A head that is tied to the embedding
gets a packed copy, and the embedding goes on serving lookups.

Loading packs each weight as it is read (checkpoint/load.py); quantize_model() does the same to a model in memory:

    model = load_model("Qwen2.5-VL-3B-Instruct", quantize="int4")
    print(model.quantization)

Knows neither files nor requests. Runs on the CPU only; a quantized model answers, it is neither trained nor saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from qwenvl.kernels.native import library, reason
from qwenvl.kernels.quantized import PANEL, PackedWeight, quantized_linear

if TYPE_CHECKING:
    from qwenvl.model.base import PreTrained

Kind = Literal["int8", "int4"]
TEXT, TOWER, HEAD = "text", "tower", "head"
_PARTS = {
    "model.language_model.layers.": TEXT,
    "model.visual.blocks.": TOWER,
    "model.visual.merger.": TOWER,
    "lm_head.": HEAD,
}
_INSTEAD = "use the model loaded without quantize="


@dataclass(frozen=True)
class Scheme:
    """How one linear is packed: the kind, and how many weights of a row share a scale."""

    kind: Kind
    group: int

    def __str__(self) -> str:
        return f"{self.kind} group {self.group}"


INT8, INT4 = Scheme("int8", 128), Scheme("int4", 32)


@dataclass(frozen=True)
class QuantizeOptions:
    """The scheme of every part of a model; None leaves the part as it is."""

    text: Scheme | None
    tower: Scheme | None = INT8
    head: Scheme | None = INT8


WORDS = {"int8": QuantizeOptions(INT8), "int4": QuantizeOptions(INT4, head=INT4)}


def options_of(quantize: str | QuantizeOptions) -> QuantizeOptions:
    """The options behind a word: "int8", or "int4" (the text layers and the head; the tower in int8). ValueError for
    another word."""
    if isinstance(quantize, QuantizeOptions):
        return quantize
    if quantize not in WORDS:
        raise ValueError(f"quantize={quantize!r} is not known: expected one of {', '.join(WORDS)}, or QuantizeOptions")
    return WORDS[quantize]


def check_device(device: torch.device) -> None:
    """ValueError unless quantized weights run on this device."""
    if device.type != "cpu":
        raise ValueError(f"quantized weights run on the CPU only, for now: got device {device}; {_INSTEAD} there")


def choose(shapes: Mapping[str, Sequence[int]], options: QuantizeOptions) -> dict[str, Scheme]:
    """Module name -> scheme, of every linear that `options` packs.

    shapes: of the tensors of a model, under the names they have in the whole one
    ("model.visual.blocks.0.attn.qkv.weight"). Matrices in the parts above are weights of linears.
    """
    chosen = {}
    for name, shape in shapes.items():
        part = next((part for beginning, part in _PARTS.items() if name.startswith(beginning)), None)
        scheme = None if part is None else getattr(options, part)
        if scheme is not None and name.endswith(".weight") and len(shape) == 2:
            chosen[name.removesuffix(".weight")] = scheme
    return chosen


@dataclass(frozen=True)
class Quantization:
    """What was done to a model. schemes: of every packed linear, by the name of its module in the whole model. Bytes of
    all weights: as they were in the model's dtype, and as they are; a tied head counts when it has a packed copy."""

    options: QuantizeOptions
    schemes: dict[str, Scheme] = field(repr=False)
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        """Example: text int4 group 32, tower int8 group 128, head int4 group 32: 7.5 MiB -> 3.4 MiB"""
        parts = {part: getattr(self.options, part) for part in (TEXT, TOWER, HEAD)}
        said = ", ".join(f"{part} {scheme or 'as it was'}" for part, scheme in parts.items())
        return f"{said}: {self.bytes_before / 2**20:,.1f} MiB -> {self.bytes_after / 2**20:,.1f} MiB"


class QuantizedLinear(nn.Module):
    """x [..., in_features] -> [..., out_features] in x's dtype or `out_dtype`, with a packed weight.

    It takes the place of `linear`, whose bias it has and whose `weight` [out_features, in_features] it packs; that of
    `linear` itself may be on the meta device. dtype: of the model. The packed weight is no buffer: its scales keep
    their dtype when the model changes its own, and the kernels know where it lies. packed_numbers: how many weights
    were packed; 0 for a copy of a weight that the model also keeps.
    """

    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, weight: Tensor, scheme: Scheme, dtype: torch.dtype) -> None:
        super().__init__()
        assert weight.shape == (linear.out_features, linear.in_features)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scheme, self.packed = scheme, PackedWeight.pack(weight, scheme.kind, scheme.group)
        self.packed_numbers = weight.numel()
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
        probe = fn(torch.empty(0, dtype=self._dtype))
        check_device(probe.device)
        self._dtype = probe.dtype
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._refuse_state(prefix)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self._refuse_state(prefix)

    def _refuse_state(self, prefix: str) -> None:
        raise ValueError(
            f"{prefix.removesuffix('.') or 'the layer'} is quantized to {self.scheme.kind}, and quantized weights are "
            f"neither saved nor loaded from a state yet: {_INSTEAD} to save it, and quantize when loading"
        )


def swap(model: nn.Module, name: str, weight: Tensor, scheme: Scheme, dtype: torch.dtype) -> QuantizedLinear:
    """Put a QuantizedLinear with `weight` in the place of the linear `name`, whose bias may be loaded later."""
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear), name
    quantized = QuantizedLinear(linear, weight, scheme, dtype)
    model.set_submodule(name, quantized)
    return quantized


def finish(model: PreTrained, options: QuantizeOptions, schemes: dict[str, Scheme], bytes_before: int) -> None:
    """Pack what is not packed yet (a tied head after loading, everything in a built model), turn gradients off, and
    leave the report on the model."""
    for whole, scheme in schemes.items():
        name = whole.removeprefix(model.weights_prefix)
        linear = model.get_submodule(name)
        if isinstance(linear, nn.Linear):
            quantized = swap(model, name, linear.weight.detach(), scheme, model.dtype)
            if linear.weight is model.text.embed_tokens.weight:
                quantized.packed_numbers = 0
    if library() is None:
        said = f"quantized weights are slower than others here, as there is no native code: {reason()}"
        warnings.warn(said, stacklevel=3)
    model.requires_grad_(False)
    model.quantization = Quantization(options, schemes, bytes_before, weight_bytes(model))


def quantize_model(model: PreTrained, quantize: str | QuantizeOptions) -> PreTrained:
    """Pack the linears of `model` in place, freeing each weight when it is packed, and return it.

    ValueError for a model that is quantized already or is not on the CPU.
    """
    options = options_of(quantize)
    if model.quantization is not None:
        raise ValueError(f"the model is quantized already ({model.quantization}): load it again")
    check_device(model.device)
    shapes = {model.weights_prefix + name: tensor.shape for name, tensor in model.state_dict().items()}
    finish(model, options, choose(shapes, options), weight_bytes(model))
    return model


def packed_bytes(shape: Sequence[int], scheme: Scheme) -> int:
    """PackedWeight.nbytes of a weight [out, in], without packing one."""
    rows, groups = -(-shape[0] // PANEL) * PANEL, -(-shape[1] // scheme.group)
    # A scale in float16 for each group; with 4 bits, a minimum too.
    return rows * groups * (scheme.group + 2 if scheme.kind == "int8" else scheme.group // 2 + 4)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights of a model, packed or not; shared ones count once."""
    packed = sum(part.packed.nbytes for part in model.modules() if isinstance(part, QuantizedLinear))
    return packed + sum(parameter.nbytes for parameter in model.parameters())
