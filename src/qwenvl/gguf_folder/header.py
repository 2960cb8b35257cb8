"""A GGUF file's header: metadata, and where which tensor lies. No weights are read.

Format (versions 2 and 3, little endian): "GGUF", version u32, tensors u64, pairs u64; the pairs (key, type u32, value);
the tensors (name, dimensions u32, sizes u64 with the fastest first, type u32, offset u64 from the first tensor); then
the tensors' bytes, aligned. Strings are their length u64 and UTF-8. A split model is several such files; the first has
the metadata, every one has some tensors.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

ALIGNMENT = 32
MOST_DIMENSIONS = 4
NEWEST, BIG_ENDIAN_NEWEST = 3, 3 << 24
# By the number in the file: name, weights of a block, bytes of a block.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
REPACKED = {31, 32, 33, 36, 37, 38}  # Q4_0 and IQ4_NL arranged for one processor; llama.cpp dropped them too
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file. shape: slowest dimension first, as torch has it. kind: F32, Q4_K, ... start: in bytes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    path: Path
    start: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of all that one index of the first dimension covers."""
        return self.nbytes // self.shape[0]


@dataclass(frozen=True)
class Gguf:
    """What a file, or the files of a split model, announce. tensors: by name. paths: all files."""

    path: Path
    paths: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @cached_property
    def architecture(self) -> str:
        """general.architecture; "" where there is none."""
        return str(self.metadata.get("general.architecture", ""))

    def need(self, key: str) -> Any:
        """The value of a key; ValueError without one. Of values for each layer that are all the same: that one."""
        if key not in self.metadata:
            raise ValueError(
                f"{self.path} has no {key}, which a {self.architecture} file needs: fetch or convert it again"
            )
        value = self.metadata[key]
        if isinstance(value, list) and value and len(set(value)) == 1:
            return value[0]
        return value

    def natural(self, key: str) -> int:
        """A whole number, 1 or more."""
        value = self.need(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{self.path}: {key} is {value!r}: expected a whole number, 1 or more")
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; ValueError without one."""
        if name not in self.tensors:
            raise ValueError(f"{self.path} has no tensor {name}: fetch or convert it again")
        return self.tensors[name].shape


def read_gguf(path: Path) -> Gguf:
    """The header of a file, with those of its other parts where it is one of a split model.

    ValueError for a file that is no GGUF file, is cut short, is big endian or of a version that is not known, and for
    parts that are missing.
    """
    paths = split_paths(path)
    first = _read(paths[0])
    parts = [first, *map(_read, paths[1:])]
    said = first.metadata.get("split.count", 0)
    if said > 1 and said != len(parts):
        raise ValueError(
            f"{path} is part of {said} files, and its name says {len(parts)}: keep the names they came with"
        )
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    if len(tensors) != sum(len(part.tensors) for part in parts):
        raise ValueError(f"{path}: its parts give a tensor twice: they are not of one model")
    return replace(first, paths=paths, tensors=tensors)


def split_paths(path: Path) -> tuple[Path, ...]:
    """The files of a split model, first to last, from the name of one of them; the file alone where it is not split."""
    found = _SPLIT.search(path.name)
    if found is None:
        return (path,)
    start, total = path.name[: found.start()], int(found[2])
    paths = tuple(path.with_name(f"{start}-{number:05}-of-{total:05}.gguf") for number in range(1, total + 1))
    missing = [one.name for one in paths if not one.is_file()]
    if missing:
        raise ValueError(f"{path} is one of {total} parts, of which {', '.join(missing)} cannot be found beside it")
    return paths


def _read(path: Path) -> Gguf:
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 24 or file.read(4) != b"GGUF":
                raise ValueError(f"{path} is no GGUF file, or empty: give a *.gguf file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).read()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


class _Reader:
    """Reads one header from start to end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), 4

    def read(self) -> Gguf:
        version = self.scalar("I")
        if version in (1 << 24, 2 << 24, BIG_ENDIAN_NEWEST):
            raise ValueError(f"{self.path} is big endian: convert it to little endian (gguf-convert-endian)")
        if not 2 <= version <= NEWEST:
            raise ValueError(f"{self.path} is GGUF of version {version}: expected 2 or 3; convert the model anew")
        tensors, pairs = self.scalar("Q"), self.scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.string()
            metadata[key] = self.value(self.scalar("I"))
        infos = [self.info() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            self.broken(f"general.alignment is {alignment!r}")
        base = -(-self.at // alignment) * alignment
        found = [self.tensor(*info, base) for info in infos]
        return Gguf(self.path, (self.path,), metadata, {one.name: one for one in found})

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, number of the type, offset."""
        name = self.string()
        dimensions = self.scalar("I")
        if dimensions > MOST_DIMENSIONS:
            self.broken(f"tensor {name} has {dimensions} dimensions")
        sizes = self.scalars("Q", dimensions)
        return name, tuple(reversed(sizes)), self.scalar("I"), self.scalar("Q")

    def tensor(self, name: str, shape: tuple[int, ...], number: int, offset: int, base: int) -> GgufTensor:
        if number in REPACKED:
            raise ValueError(
                f"{self.path}: {name} is rearranged for one processor (type {number}): take a plain Q4_0 file"
            )
        if number not in TYPES:
            raise ValueError(
                f"{self.path}: {name} is of type {number}, which is not known: expected one of GGUF's types"
            )
        kind, block, size = TYPES[number]
        if not shape or min(shape) < 1 or shape[-1] % block:
            self.broken(f"tensor {name} has the shape {list(shape)}, of which {kind} makes no blocks of {block}")
        nbytes, start = math.prod(shape) // block * size, base + offset
        if start + nbytes > self.size:
            raise ValueError(f"{self.path} has {self.size} bytes, and {name} ends at {start + nbytes}: fetch it again")
        return GgufTensor(name, shape, kind, self.path, start, nbytes)

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(self.letter(kind))
        inner, count = self.scalar("I"), self.scalar("Q")
        return self.strings(count) if inner == _STRING else list(self.scalars(self.letter(inner), count))

    def letter(self, kind: int) -> str:
        if kind not in _SCALARS:
            self.broken(f"a value is of type {kind}")
        return _SCALARS[kind]

    def scalar(self, letter: str) -> Any:
        return self.scalars(letter, 1)[0]

    def scalars(self, letter: str, count: int) -> tuple[Any, ...]:
        at, self.at = self.at, self.at + struct.calcsize(f"<{letter}") * count
        if self.at > self.size:
            self.broken("the header ends too early")
        return struct.unpack_from(f"<{count}{letter}", self.data, at)

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """A loop of its own: a vocabulary is a list of 150,000 of them, its merges another."""
        data, size, at, out = self.data, self.size, self.at, []
        for _ in range(count):
            begin = at + 8
            at = begin + int.from_bytes(data[at:begin], "little")
            if at > size or begin > size:
                self.broken("a text is longer than the file")
            out.append(data[begin:at])
        self.at = at
        try:
            return [text.decode("utf-8") for text in out]
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is damaged (a text is not UTF-8): fetch it again") from error

    def broken(self, what: str) -> NoReturn:
        raise ValueError(f"{self.path} is cut short or damaged ({what}): fetch it again")
