"""A loaded model and its placement -> the model ready to run, also where its parts lie on several devices.

Where the main device is the CPU there is nothing to do: what is on the disk is mapped memory. Else every block gets two
hooks: one that brings its inputs (and, for "cpu" and "disk", its weights) to where it computes, one that takes the
weights away again and brings its output to the main device. Decoder layers hand their output to the next one as it is.
Weights keep their place between calls, so that they can be read, saved and counted as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qwenvl.checkpoint.offload import each_tensor
from qwenvl.checkpoint.placement import WHOLE, Placement
from qwenvl.kernels.quantized import PackedWeight
from qwenvl.model.base import PreTrained
from qwenvl.model.text import TextLayer
from qwenvl.quantization import QuantizedLinear


def dispatch(model: PreTrained, placement: Placement) -> None:
    """Make a loaded model run as it is placed: `model.device` is the main device, `model.hf_device_map` the map."""
    model.hf_device_map = dict(placement.modules)
    if not placement.is_hooked:
        return
    model.main_device = placement.main
    last = model.text.layers[-1]
    for name, unit in _units(model, ""):
        place = placement.device_of(name)
        computes = placement.main if place.type == "cpu" else place
        back = None if isinstance(unit, TextLayer) and unit is not last else placement.main
        _Mover(unit, computes, back, brings=place != computes)


def _units(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The parts that are computed in one piece: blocks, and whatever else has tensors of its own."""
    own = (*module._parameters.values(), *module._buffers.values())
    if isinstance(module, (*WHOLE, QuantizedLinear)) or any(tensor is not None for tensor in own):
        yield name, module
        return
    for leaf, child in module.named_children():
        yield from _units(child, f"{name}.{leaf}".lstrip("."))


class _Mover:
    """The hooks of one part. device: where it computes; back: where its output goes (None: it stays); brings: its
    weights lie elsewhere and are there only while it is computed."""

    def __init__(self, unit: nn.Module, device: torch.device, back: torch.device | None, brings: bool) -> None:
        self._device, self._back, self._brings = device, back, brings
        self._away: list[tuple[dict[str, Any], str, Any]] = []
        unit.register_forward_pre_hook(self._before, with_kwargs=True)
        unit.register_forward_hook(self._after, always_call=True)

    def _before(self, unit: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._brings:
            self._restore()
            for owner, name, found in _tensors(unit):
                self._away.append((owner, name, found))
                owner[name] = moved(found, self._device)
        moved_kwargs = {name: moved(value, self._device) for name, value in kwargs.items()}
        return tuple(moved(value, self._device) for value in args), moved_kwargs

    def _after(self, unit: nn.Module, args: Any, output: Any) -> Any:
        self._restore()
        return output if self._back is None else moved(output, self._back)

    def _restore(self) -> None:
        while self._away:
            owner, name, found = self._away.pop()
            owner[name] = found


def _tensors(unit: nn.Module) -> list[tuple[dict[str, Any], str, Any]]:
    """(dictionary, name, value) of everything in a part that holds weights, packed ones too."""
    out: list[tuple[dict[str, Any], str, Any]] = []
    for part in unit.modules():
        for owner in (part._parameters, part._buffers):
            out += [(owner, name, tensor) for name, tensor in owner.items() if tensor is not None]
        if isinstance(part, QuantizedLinear):
            out.append((part.__dict__, "packed", part.packed))
    return out


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, a tuple, a packed weight, or what has a method to(device), on `device`; anything else, lists that
    are there to be filled among it, is itself."""
    if isinstance(value, tuple):
        return tuple(moved(item, device) for item in value)
    if isinstance(value, Tensor) or hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, PackedWeight):
        return each_tensor(value, lambda _, x: x.to(device))
    return value
