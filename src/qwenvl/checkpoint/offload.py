"""Tensors on their way to their place: what loading calls for each of them.

On the disk means mapped from a file, privately: reading brings pages in, the system drops them when memory is short,
and writing to them does not change the file. A tensor that its file holds as the model wants it is mapped from there.
Others (another dtype, packed weights) are written once into the offload folder, a file each, and mapped from that.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from qwenvl.checkpoint.placement import Placement
from qwenvl.checkpoint.stored import Plain, Stored
from qwenvl.kernels.quantized import PackedWeight
from qwenvl.machine import shown


class Keeper:
    """Puts tensors where a placement wants them. folder: for what has to be written; None where nothing has.

    Names are those of the model that is loaded.
    """

    def __init__(self, placement: Placement, folder: str | Path | None = None) -> None:
        self.placement, self._folder = placement, None if folder is None else Path(folder)

    def check(self, tensors: Mapping[str, Stored], dtype: torch.dtype, packed: Iterable[str] = ()) -> None:
        """ValueError where tensors have to be written and there is no folder. packed: names of weights that are
        packed while they are loaded."""
        other = {*packed, *(name for name, stored in tensors.items() if not fits(stored, dtype))}
        written = sorted(name for name in other if self.placement.is_disk(name))
        if written and self._folder is None:
            size = shown(sum(tensors[name].nbytes for name in written if name in tensors))
            raise ValueError(
                f"the placement puts {len(written)} tensors on the disk that the checkpoint holds in another form "
                f"({written[0]}, ...; {size} in its files): give offload_folder=..., a folder where they can be written"
            )

    def tensor(self, name: str, stored: Stored, dtype: torch.dtype) -> Tensor:
        """A tensor of the checkpoint, in `dtype` and at its place."""
        if self.placement.is_disk(name) and not fits(stored, dtype):
            return self._written(name, stored.plain(dtype))
        return stored.load(dtype, self.placement.device_of(name))

    def packed(self, name: str, weight: PackedWeight, is_mapped: bool = False) -> PackedWeight:
        """A packed weight (of the linear whose tensor is `name`) at its place. is_mapped: its tensors are pages of a
        file already."""
        if self.placement.is_disk(name):
            return weight if is_mapped else each_tensor(weight, lambda part, x: self._written(f"{name}.{part}", x))
        device = self.placement.device_of(name)
        return weight if device.type == "cpu" else each_tensor(weight, lambda _, x: x.to(device))

    def _written(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as a file of the folder, mapped. The file appears whole; one of an earlier run is replaced, and
        whoever has that one mapped keeps it."""
        assert self._folder is not None, "check() comes first"
        if not tensor.numel():
            return tensor
        target = self._folder / f"{name}.bin"
        part = ""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=self._folder)
            with os.fdopen(handle, "wb") as file:
                cast(Any, tensor.contiguous().flatten().view(torch.uint8).numpy()).tofile(file)
            os.replace(part, target)
        except OSError as error:
            if part:
                Path(part).unlink(missing_ok=True)
            raise ValueError(f"{name} cannot be written into offload_folder={self._folder}: {error}") from error
        mapped = torch.from_file(str(target), shared=False, size=tensor.nbytes, dtype=torch.uint8)
        return mapped.view(tensor.dtype).view(tensor.shape)


def fits(stored: Stored, dtype: torch.dtype) -> bool:
    """Whether the file holds the tensor as the model wants it, so that it can stay mapped from there."""
    return isinstance(stored, Plain) and stored.dtype == dtype


def each_tensor(weight: PackedWeight, change: Callable[[str, Tensor], Tensor]) -> PackedWeight:
    """The same weight with each of its tensors changed: change(field's name, tensor)."""
    values: dict[str, Any] = {item.name: getattr(weight, item.name) for item in fields(weight)}
    changed: dict[str, Any] = {name: change(name, x) for name, x in values.items() if isinstance(x, Tensor)}
    return replace(weight, **changed)
