"""safetensors files as their headers announce them. No weights are read.

Format: 8 bytes with the header's length N (little endian), N bytes of JSON (name -> dtype, shape, data_offsets), then
the tensors' bytes, without gaps.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl.doctor.finding import Unavailable

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MOST_HEADER = 100 * 2**20  # what the format allows


@dataclass(frozen=True)
class Stored:
    """One tensor of a file. kind: its dtype in the file's words (BF16, F32, I32, ...). nbytes: as announced."""

    file: str
    key: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Header:
    """tensors in the order of the file; expected: the bytes that the whole file must have; size: those it has."""

    tensors: tuple[Stored, ...]
    expected: int
    size: int


def read_header(path: Path) -> Header:
    """ValueError when the header cannot be read or contradicts itself."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MOST_HEADER, size - 8):
            raise ValueError(f"{path.name} is no safetensors file, or is cut within its header ({size} bytes)")
        try:
            entries: dict[str, Any] = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            spans = sorted((int(e["data_offsets"][0]), int(e["data_offsets"][1])) for e in entries.values())
            tensors = tuple(
                Stored(path.name, key, str(e["dtype"]), tuple(map(int, e["shape"])), e["data_offsets"][1] - start)
                for key, e in entries.items()
                for start in [e["data_offsets"][0]]
            )
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(f"the header of {path.name} is damaged") from error
    ends = [0, *(end for _, end in spans)]
    if any(start != end for (start, _), end in zip(spans, ends, strict=False)):
        raise ValueError(f"the header of {path.name} is damaged: its tensors overlap or leave gaps")
    return Header(tensors, 8 + length + ends[-1], size)


def read_index(folder: Path) -> dict[str, Any] | None:
    """The index: {"weight_map": tensor -> file, "metadata": ...}; None where there is none. ValueError for one that is
    not like that."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        listed = index["weight_map"]
        good = isinstance(listed, dict) and all(isinstance(name, str) for name in listed.values())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{INDEX} cannot be read as an index: it has no weight_map of tensors to files") from error
    if not good:
        raise ValueError(f"{INDEX} has no weight_map of tensors to files")
    return dict(index)


def weight_files(folder: Path) -> list[Path]:
    """The files with weights that are there: those of the index, or the single one, or all."""
    index = read_index(folder)
    if index is not None:
        named = [folder / name for name in sorted(set(index["weight_map"].values()))]
        return [path for path in named if path.is_file()]
    single = folder / SINGLE
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def sound_tensors(folder: Path) -> list[Stored]:
    """Every tensor of every weight file. Unavailable where a file is not whole: its tensors cannot be looked at."""
    out: list[Stored] = []
    try:
        for path in weight_files(folder):
            header = read_header(path)
            if header.size != header.expected:
                raise ValueError(f"{path.name} is not whole")
            out += header.tensors
    except (ValueError, OSError) as error:
        raise Unavailable(f"the weight files are damaged: {error}") from error
    if not out:
        raise Unavailable("there are no weights in safetensors files")
    return out
