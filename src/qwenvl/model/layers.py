"""The parts both towers are built from: norms, MLPs, gradient checkpointing. Names are the checkpoint's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qwenvl.kernels.linear import linear
from qwenvl.kernels.rows import add_rms_norm, rms_norm, silu_mul


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the activation of Qwen2-VL's tower (from CLIP)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


@dataclass(frozen=True)
class Recompute:
    """Gradient checkpointing: call a block so that its activations are not kept but computed again for the backward
    pass (Chen et al. 2016). options: those of torch.utils.checkpoint.checkpoint."""

    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, block: nn.Module, *inputs: Any) -> Tensor:
        out = checkpoint(block, *inputs, **{"use_reentrant": False, **self.options})
        assert isinstance(out, Tensor)
        return out


class Linear(nn.Linear):
    """nn.Linear with a quicker product for inference on the CPU (kernels/linear.py). out_dtype: of the result."""

    def forward(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return linear(x, self.weight, self.bias, out_dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension (Zhang & Sennrich 2019), statistics in float32."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def is_watched(module: nn.Module) -> bool:
    """Whether somebody wants to see this module's calls: torch's hooks, or accelerate's, which replace forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def add_norm(norm: nn.Module, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """(x + delta, its norm): where a residual branch ends and the next begins."""
    if type(norm) is RMSNorm and not is_watched(norm):
        return add_rms_norm(x, delta, norm.weight, norm.eps)
    total = x + delta
    return total, norm(total)


def norm_named(kind: str, size: int, eps: float) -> nn.Module:
    """ "rms" or "layer"."""
    return RMSNorm(size, eps) if kind == "rms" else nn.LayerNorm(size, eps)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)): the text model, and the tower of Qwen2.5-VL (there with biases)."""

    def __init__(self, size: int, width: int, act: str, bias: bool) -> None:
        super().__init__()
        self.gate_proj = Linear(size, width, bias=bias)
        self.up_proj = Linear(size, width, bias=bias)
        self.down_proj = Linear(width, size, bias=bias)
        self._act = ACTIVATIONS[act]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(silu_mul(gate, up) if self.is_silu else self._act(gate) * up)

    @property
    def is_silu(self) -> bool:
        return self._act is F.silu


class PlainMLP(nn.Module):
    """fc2(act(fc1(x))): the tower of Qwen2-VL."""

    def __init__(self, size: int, width: int, act: str) -> None:
        super().__init__()
        self.fc1 = Linear(size, width)
        self.fc2 = Linear(width, size)
        self._act = ACTIVATIONS[act]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self._act(self.fc1(x)))
