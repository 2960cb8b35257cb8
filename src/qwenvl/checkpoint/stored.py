"""Tensors of a model as files hold them: what loading asks of each, whatever the format.

In: a folder's safetensors files, their headers read first. Out: a Stored for every tensor of the model. Most are plain;
other formats (checkpoints that others quantized, our own packed weights, GGUF) have their own kinds of Stored in files
of their own, made of the same entries.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qwenvl.checkpoint.names import module_name
from qwenvl.kernels.quantized import PackedWeight

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
COPY_BYTES = 16 * 2**20
LISTED = 20
KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

FLOATING = {name for name, dtype in KINDS.items() if dtype.is_floating_point}


class CheckpointError(ValueError):
    """A folder that cannot be loaded; the message says what is wrong with which file."""


class SafeFile:
    """A safetensors file. CheckpointError when it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _handle(self) -> Any:
        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise _damaged(self.path, error) from error

    def entries(self) -> Iterator[Entry]:
        """What the header says of every tensor."""
        try:
            for key in self._handle.keys():  # noqa: SIM118 - not a dict
                part = self._handle.get_slice(key)
                yield Entry(self, key, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise _damaged(self.path, error) from error

    def kept(self, key: str) -> Tensor:
        """A tensor mapped from the file, privately: writing to it does not change the file."""
        return cast(Tensor, self._handle.get_tensor(key))

    def alone(self, key: str) -> Tensor:
        """A tensor in a mapping of its own, which ends with it: its pages count as ours only until then."""
        with safe_open(self.path, framework="pt") as file:
            return cast(Tensor, file.get_tensor(key))

    def rows(self, key: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor, in a mapping of their own."""
        with safe_open(self.path, framework="pt") as file:
            return cast(Tensor, file.get_slice(key)[start:stop])


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: where it lies, and what the header says of it. kind: the header's name of the dtype."""

    file: SafeFile
    key: str
    shape: tuple[int, ...]
    kind: str

    @property
    def dtype(self) -> torch.dtype:
        """CheckpointError for a kind that is not known."""
        if self.kind not in KINDS:
            raise CheckpointError(f"{self.key} of {self.file.path} is of the kind {self.kind}, which is not supported")
        return KINDS[self.kind]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def alone(self) -> Tensor:
        return self.file.alone(self.key)


class Stored(ABC):
    """One tensor of the model.

    key: what the file calls it, for messages; name: what the whole model calls it, None for what is computed and not
    loaded. shape: of the plain tensor. nbytes: in the file. dtype: of its plain form, where nobody asks for another.
    is_packed: whether packed() gives what the kernels take; is_mapped: whether that is then mapped from the file.
    """

    key: str
    path: Path
    shape: tuple[int, ...]
    nbytes: int
    dtype: torch.dtype
    is_packed: bool = False
    is_mapped: bool = False

    @property
    def name(self) -> str | None:
        return module_name(self.key)

    @abstractmethod
    def plain(self, dtype: torch.dtype) -> Tensor:
        """The tensor on the CPU in `dtype`, in memory of its own."""

    def load(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The tensor as a parameter is to hold it."""
        return self.plain(dtype).to(device)

    def passing(self) -> Tensor:
        """The tensor on the CPU in its own dtype, for a reader who keeps nothing of it."""
        return self.plain(self.dtype)

    def packed(self) -> PackedWeight:
        """The weight in the form of the kernels."""
        raise NotImplementedError(f"{self.key} is not packed")


class Plain(Stored):
    """A tensor that lies in a file as it is."""

    def __init__(self, entry: Entry) -> None:
        self.entry, self.key, self.path = entry, entry.key, entry.file.path
        self.shape, self.nbytes, self.dtype = entry.shape, entry.nbytes, entry.dtype

    def plain(self, dtype: torch.dtype) -> Tensor:
        return self._copied(dtype, torch.device("cpu"))

    def load(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """On the CPU in the file's dtype it stays mapped. Else it is copied some rows at a time, and the file opened
        anew for each piece, as mapped pages that were read count as ours until it is closed."""
        if device.type == "cpu" and self.dtype == dtype:
            return self.entry.file.kept(self.key)
        return self._copied(dtype, device)

    def passing(self) -> Tensor:
        return self.entry.alone()

    def _copied(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        out = torch.empty(self.shape, dtype=dtype, device=device)
        rows = self.shape[0] if self.shape else 1
        step = max(1, rows * COPY_BYTES // max(1, self.nbytes))
        if step >= rows:
            return out.copy_(self.entry.alone())
        for start in range(0, rows, step):
            out[start : start + step] = self.entry.file.rows(self.key, start, start + step)
        return out


def plain_tensors(entries: Sequence[Entry]) -> list[Stored]:
    """Entries that are tensors of the model as they are. CheckpointError for those that are not floating point."""
    odd = [f"{entry.key} ({entry.kind})" for entry in entries if entry.kind not in FLOATING]
    if odd:
        raise CheckpointError(f"{entries[0].file.path.parent} has tensors that are not supported: {some(odd)}")
    return [Plain(entry) for entry in entries]


def entries_of(folder: Path) -> list[Entry]:
    """Every tensor of every safetensors file of a checkpoint, from the headers alone."""
    return [entry for path in _files(folder) for entry in SafeFile(path).entries()]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint's folder."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}: expected an object of keys")
    return values


def some(names: list[str]) -> str:
    """A list for a message, not too long."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or no safetensors file ({error}): fetch it again")


def _files(folder: Path) -> list[Path]:
    """The weight files: those that the index names, or the single one, or (repacks) all there are."""
    if (folder / INDEX_NAME).is_file():
        weights = read_object(folder / INDEX_NAME).get("weight_map")
        if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
            raise CheckpointError(f"{folder / INDEX_NAME} has no weight_map of tensors to files")
        names = sorted(set(weights.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {some(missing)}, {len(missing)} of the {len(names)} files that {INDEX_NAME} names: "
                "fetch the checkpoint again"
            )
        return [folder / name for name in names]
    single = folder / SINGLE_NAME
    found = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not found:
        others = "; *.bin files are not read" if any(folder.glob("*.bin")) else ""
        raise CheckpointError(f"{folder} has no weights: expected {SINGLE_NAME} or {INDEX_NAME} with its files{others}")
    return found
