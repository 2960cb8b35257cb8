"""Which layer first gives a value that is not finite: half precision overflows, and the answer must say where."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


def first_non_finite(model: nn.Module, compute: Callable[[], object]) -> str | None:
    """Run `compute` under watch and name the first part of `model` whose output holds NaN or infinity.

    Example: "model.visual.blocks.31.mlp.down_proj". None when every output is finite.
    """
    found: list[str] = []

    def watch(name: str, module: nn.Module, inputs: object, output: object) -> None:
        if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            found.append(name)

    handles = [part.register_forward_hook(partial(watch, name)) for name, part in model.named_modules() if name]
    try:
        compute()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
