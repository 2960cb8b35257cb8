"""A model's own layers at small depth, with weights that mean nothing: what a calibration runs.

Weights are filled by copying one small block, as drawing numbers would take longer than the measurement; packed weights
get any integers. Products take as long as with real ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qwenvl.kernels.quantized import PANEL, PackedWeight, quantized_linear
from qwenvl.model.attention import sdpa
from qwenvl.model.layers import Linear
from qwenvl.model.text import TextModel
from qwenvl.model.vision import VisionBlock
from qwenvl.planning.memory import Config
from qwenvl.quantization import Scheme

LARGEST = 256_000_000  # weights of a layer; of a larger one a part is measured
VOCABULARY = 16


class PackedLinear(nn.Module):
    """A linear with any packed weight, which decode steps take for a quantized one (model/few_rows.py)."""

    def __init__(self, linear: nn.Linear, scheme: Scheme, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = any_packed(linear.out_features, linear.in_features, scheme)
        self.register_parameter("bias", None if linear.bias is None else _parameter(linear.bias.shape, dtype))

    def forward(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        bias = self.bias
        assert bias is None or isinstance(bias, Tensor)
        return quantized_linear(x, self.packed, bias, out_dtype)


def any_packed(rows: int, columns: int, scheme: Scheme) -> PackedWeight:
    """A packed weight [rows, columns] of arbitrary small values: one panel that was packed, over and over."""
    one = PackedWeight.pack(filled((PANEL, columns), torch.float32), scheme.kind, scheme.group)
    panels = -(-rows // PANEL)
    tensors = {name: x for name, x in vars(one).items() if isinstance(x, Tensor)}
    wide: dict[str, Any] = {name: x.repeat(panels, *[1] * (x.ndim - 1)) for name, x in tensors.items()}
    return replace(one, out_features=rows, **wide)


def filled(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
    """A tensor of arbitrary small values, written at the speed of memory."""
    out = torch.empty(shape, dtype=dtype)
    flat = out.view(-1)
    draw = torch.Generator().manual_seed(0)
    block = torch.randint(0, 256, (2**16,), dtype=torch.uint8, generator=draw)
    values = ((block.float() - 127.5) / 4000).to(dtype)
    whole = len(flat) // len(values) * len(values)
    flat[:whole].view(-1, len(values)).copy_(values.expand(whole // len(values), -1))
    flat[whole:] = values[: len(flat) - whole]
    return out


def _parameter(shape: torch.Size, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(filled(shape, dtype), requires_grad=False)


def _materialize(module: nn.Module, scheme: Scheme | None, dtype: torch.dtype) -> None:
    """Give a module on the meta device weights: its linears as `scheme` packs them."""
    for name, part in list(module.named_modules()):
        if isinstance(part, Linear) and scheme is not None:
            module.set_submodule(name, PackedLinear(part, scheme, dtype))
        else:
            for leaf, parameter in list(part.named_parameters(recurse=False)):
                setattr(part, leaf, _parameter(parameter.shape, dtype))


def tower_block(config: Config, scheme: Scheme | None, dtype: torch.dtype) -> VisionBlock:
    """One block of the tower."""
    with torch.device("meta"):
        block = VisionBlock(config.vision_config, sdpa)
    _materialize(block, scheme, dtype)
    return block.eval()


def layer_weights(text: Any) -> int:
    """Weights of one layer of the decoder."""
    heads, shared = text.num_attention_heads * text.head_dim, 2 * text.num_key_value_heads * text.head_dim
    return int(text.hidden_size * (2 * heads + shared) + 3 * text.hidden_size * text.intermediate_size)


def decoder(config: Config, layers: int, scheme: Scheme | None, dtype: torch.dtype) -> tuple[TextModel, float]:
    """(a decoder of so many layers and a vocabulary of VOCABULARY, how many weights a real layer has for one of it)."""
    text, whole = config.text_config, layer_weights(config.text_config)
    width = text.intermediate_size
    while width > 2048 and layer_weights(text.replace(intermediate_size=width)) > LARGEST:
        width //= 2
    kinds = list(text.layer_types[:layers])
    changes = {"num_hidden_layers": layers, "vocab_size": VOCABULARY, "intermediate_size": width, "layer_types": kinds}
    small = text.replace(**changes)
    with torch.device("meta"):
        model = TextModel(small, sdpa)
    _materialize(model, scheme, dtype)
    return model.eval(), whole / layer_weights(small)
