"""Which part of a model lies where: device_map and max_memory -> a place for every tensor.

In: a model on the meta device, the bytes that its tensors will have, and what the caller asked for. Out: a Placement.
A place is a device or "disk". Where the model computes on the CPU, "disk" means pages mapped from a file: the kernels
read them where they lie, and the system drops and reads them as memory allows. (Giving the rest memory of its own, so
that it is never dropped, was measured: hardly quicker.) Where it computes on an accelerator, weights on "cpu" and
"disk" are brought to it for each call (dispatch.py).

A word ("auto", "balanced", "balanced_low_0", "sequential") spreads the model by accelerate's planner, which is imported
only when the model does not fit on one device. It plans with a stand-in of bytes in place of the weights, so that
packed weights count as what they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qwenvl.checkpoint.names import module_name
from qwenvl.machine import available_memory, parse_bytes
from qwenvl.model.text import TextLayer
from qwenvl.model.vision import PatchEmbed, PatchMerger, VisionBlock

DISK = "disk"
SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")
LEFT_FREE = 0.9  # of the memory found free: the rest is for the cache and what layers compute
WHOLE = (TextLayer, VisionBlock, PatchEmbed, PatchMerger)  # never divided where weights or inputs have to move
CPU = torch.device("cpu")
LISTED = 5

Place = int | str | torch.device
DeviceMap = str | int | torch.device | Mapping[str, Any] | None


@dataclass(frozen=True)
class Placement:
    """Module (or tensor) name -> its place, as the caller or the planner names them; the longest name counts.

    modules: as `hf_device_map` shows it; {"": place} is one place for all. main: where inputs go and what computes the
    parts that lie on "cpu" and "disk".
    """

    modules: dict[str, Place]
    main: torch.device

    def place_of(self, name: str) -> Place:
        """The place of a tensor or module, by its name in this model."""
        while name not in self.modules:
            assert name, "a placement covers the whole model"
            name = name.rpartition(".")[0]
        return self.modules[name]

    def device_of(self, name: str) -> torch.device:
        """Where the tensor lies when nothing is computed: the CPU for what is on the disk."""
        place = self.place_of(name)
        return CPU if place == DISK else torch.device(place)

    def is_disk(self, name: str) -> bool:
        return self.place_of(name) == DISK

    @property
    def is_spread(self) -> bool:
        """Whether anything lies apart from the main device."""
        return any(place == DISK or torch.device(place) != self.main for place in self.modules.values())

    @property
    def is_hooked(self) -> bool:
        """Whether inputs or weights have to be moved while the model runs."""
        return self.is_spread and self.main.type != "cpu"


def plan_placement(
    model: nn.Module,
    device_map: DeviceMap = None,
    max_memory: Mapping[Any, int | str] | None = None,
    sizes: Mapping[str, int] | None = None,
    dtype: torch.dtype | None = None,
    mapped: Collection[str] = (),
) -> Placement:
    """Where the tensors of `model` (on any device, also meta) go. Raises ValueError for what cannot be honoured.

    device_map: a device ("cpu", "cuda:1", 1), {module name: device or "disk"}, or a word; None is the CPU.
    "auto" and "balanced" share the model out evenly over the GPUs, "balanced_low_0" keeps the first one free where it
    can, "sequential" fills one after the other. Then comes the CPU, then the disk. max_memory: {0: "10GiB", "cpu":
    "3GB"}, the most that each may hold for a word; what is not named is not used; None = what is free now.
    dtype: what the tensors will have, where it is not that of `model`. sizes: bytes of tensors that are packed, by
    their name in the model; a tied head that is named here has a weight of its own. mapped: names of tensors that on
    the CPU stay in their file, and so need no memory there that the system cannot take back.
    """
    if max_memory is not None and not (isinstance(device_map, str) and device_map in SPREADING):
        raise ValueError(
            f"max_memory={dict(max_memory)!r} has no effect with device_map={device_map!r}: give device_map='auto', "
            "or leave max_memory out"
        )
    separate = frozenset(sizes or ())
    if isinstance(device_map, Mapping):
        return _checked(model, {_own_name(model, name): place for name, place in device_map.items()}, separate)
    if not (isinstance(device_map, str) and device_map in SPREADING):
        place = "cpu" if device_map is None else device_map
        return Placement({"": place}, existing(place))
    most = free_memory() if max_memory is None else limits_of(max_memory)
    size, devices = tensor_bytes(model, sizes, dtype), [device for device in most if device != DISK]
    first = next(iter(devices), DISK)
    needs = [n for name, n in size.items() if not (first == "cpu" and max_memory is None and name in mapped)]
    if devices in ([first], [first, "cpu"]) and sum(needs) <= most[first]:
        return Placement({"": first}, existing(first))
    return _checked(model, spread(model, device_map, most, size), separate)


def spread(model: nn.Module, word: str, most: Mapping[Any, int], sizes: Mapping[str, int]) -> dict[str, Place]:
    """The map that accelerate's planner makes for a word of SPREADING; whether the devices exist is not asked.

    most: bytes for each device. sizes: of all tensors, as tensor_bytes gives them. Decoder layers and vision blocks
    stay whole, and tied weights together.
    """
    try:
        from accelerate import infer_auto_device_map
        from accelerate.utils import get_balanced_memory
    except ImportError as error:
        raise ValueError(
            f"device_map={word!r} has to spread the model, which accelerate plans, and it is not installed: "
            "pip install 'qwenvl[train]', give one device, or a map of modules"
        ) from error
    stand_in, limits = _stand_in(model, sizes), dict(most)
    if word != "sequential":
        low = word == "balanced_low_0"
        limits = get_balanced_memory(stand_in, limits, no_split_module_classes=[_Whole.__name__], low_zero=low)
    return dict(infer_auto_device_map(stand_in, limits, no_split_module_classes=[_Whole.__name__]))


def existing(place: Place) -> torch.device:
    """The device of a place. ValueError for one that cannot be used on this machine."""
    try:
        device = torch.device(place)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device {place!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def free_memory() -> dict[Any, int]:
    """Bytes that each device can give now, the first first: numbers of GPUs (or "mps"), then "cpu"; a part is left
    for the cache and what layers compute. Where nothing can be found out, the CPU is taken to have room."""
    free: dict[Any, int] = {}
    for number in range(torch.cuda.device_count()):
        free[number] = int(torch.cuda.mem_get_info(number)[0] * LEFT_FREE)
    there = available_memory()
    room = 2**62 if there is None else int(there * LEFT_FREE)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if not free and accelerator is not None:
        free[accelerator.type] = room  # shares the memory of the CPU, or tells nothing about its own
        return free
    return {**free, "cpu": room}


def limits_of(max_memory: Mapping[Any, int | str]) -> dict[Any, int]:
    """Bytes by device, GPUs first. ValueError for devices that do not exist."""
    for device in max_memory:
        if device != DISK:
            existing(device)
    sizes = {device: parse_bytes(size, f"max_memory[{device!r}]") for device, size in max_memory.items()}
    numbers = sorted(device for device in sizes if isinstance(device, int))
    return {device: sizes[device] for device in [*numbers, *(d for d in sizes if not isinstance(d, int))]}


def tensor_bytes(
    model: nn.Module, sizes: Mapping[str, int] | None = None, dtype: torch.dtype | None = None
) -> dict[str, int]:
    """Bytes of every tensor of a model, as plan_placement takes sizes and dtype; tied ones count once, under the first
    name."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    plain = {name: tensor.numel() * (dtype or tensor.dtype).itemsize for name, tensor in named.items()}
    return {**plain, **(sizes or {})}


class _Whole(nn.Module):
    """Stands for a part that is not divided; the planner goes by the name of the class."""


def _stand_in(model: nn.Module, sizes: Mapping[str, int]) -> nn.Module:
    """Modules of the same names, with meta tensors of as many bytes; tied ones are one tensor again."""
    root, made = nn.Module(), dict[int, nn.Parameter]()
    for name, module in model.named_modules():
        node = root
        if name:
            parent, _, leaf = name.rpartition(".")
            node = _Whole() if isinstance(module, TextLayer | VisionBlock) else nn.Module()
            root.get_submodule(parent).add_module(leaf, node)
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            whole = f"{name}.{leaf}".lstrip(".")
            if tensor is None:
                continue
            if whole in sizes:
                made[id(tensor)] = nn.Parameter(torch.empty(sizes[whole], dtype=torch.uint8, device="meta"), False)
            node.register_parameter(leaf, made[id(tensor)])
    return root


def _own_name(model: nn.Module, name: str) -> str:
    """A name of a device_map as this model has it: those of older layouts ("visual", "model.layers.0") are known."""
    modules = dict(model.named_modules())
    if name in modules or not name:
        return name
    prefix = getattr(model, "weights_prefix", "")
    found = (module_name(f"{name}.weight") or "").removeprefix(prefix).removesuffix(".weight")
    return found if found in modules else name


def _checked(model: nn.Module, places: dict[str, Any], separate: frozenset[str] = frozenset()) -> Placement:
    """The placement of a map. ValueError for names and devices that are not there, tensors without a place, tied
    tensors in two places, and blocks that are divided where that cannot be run."""
    tensors = model.state_dict(keep_vars=True)
    known = [*(name for name, _ in model.named_modules()), *tensors]
    for name in places:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "see model.named_modules()"
            raise ValueError(f"device_map has a place for {name!r}, which the model does not have: {hint}")
    bare = [name for name in tensors if not _covered(name, places)]
    if bare:
        more = f" and {len(bare) - LISTED} more" if len(bare) > LISTED else ""
        raise ValueError(
            f"device_map has no place for {', '.join(bare[:LISTED])}{more}: name them, or give the rest a place with ''"
        )
    devices = {name: CPU if place == DISK else existing(place) for name, place in places.items()}
    placement = Placement(places, next((d for d in devices.values() if d.type != "cpu"), CPU))
    _check_ties(tensors, placement, separate)
    if placement.is_hooked:
        _check_whole(model, placement)
    return placement


def _covered(name: str, places: Mapping[str, Any]) -> bool:
    while name and name not in places:
        name = name.rpartition(".")[0]
    return name in places


def _check_ties(tensors: Mapping[str, torch.Tensor], placement: Placement, separate: frozenset[str]) -> None:
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        other = first.setdefault(id(tensor), name)
        one, two = placement.place_of(other), placement.place_of(name)
        if one != two and name not in separate:
            raise ValueError(
                f"device_map puts {other} on {one!r} and {name} on {two!r}, but they are one tensor (the head is tied "
                "to the embedding): give both the same place"
            )


def _check_whole(model: nn.Module, placement: Placement) -> None:
    for name, module in model.named_modules():
        inside = [key for key in placement.modules if key.startswith(f"{name}.")]
        if isinstance(module, WHOLE) and inside:
            raise ValueError(
                f"device_map divides {name} (it names {inside[0]}), which is computed in one piece: give it one place"
            )
