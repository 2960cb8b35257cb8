"""Our own packed weights in files: the tensors of the kernels as they are, so that loading only maps them.

A linear that is packed has these tensors in place of its weight:

    model.language_model.layers.0.mlp.up_proj.packed.data     uint8, as kernels/quantized.py draws it
    model.language_model.layers.0.mlp.up_proj.packed.scales   float16
    model.language_model.layers.0.mlp.up_proj.packed.zeros    float16, where there are any
    model.language_model.layers.0.mlp.up_proj.packed.order    int64, where there is one

and config.json says what they stand for, with equal layers in one line:

    "quantization_config": {"quant_method": "qwenvl", "version": 1, "calibration": null, "packed": [
        {"names": "model.language_model.layers.{0-35}.mlp.up_proj", "kind": "int4", "group": 32,
         "shape": [11008, 2048], "exponent": -16}, ...]}

The head of a model whose head is tied to the embedding has a packed copy like any other linear. All else lies there as
in any checkpoint. In each file the packed tensors begin at multiples of 64 bytes (ALIGNMENT), so that the kernels read
whole cache lines of the mapping.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwenvl.checkpoint.stored import INDEX_NAME, KINDS, SINGLE_NAME, CheckpointError, Entry, Stored, plain_tensors, some
from qwenvl.kernels.quantized import PANEL, PackedWeight

QUANTIZATION, METHOD, VERSION = "quantization_config", "qwenvl", 1
ALIGNMENT = 64
LEAVES = ("data", "scales", "zeros", "order")
_NAMES = {dtype: name for name, dtype in KINDS.items()}
_KEY = re.compile(r"(.+)\.packed\.(data|scales|zeros|order)")
_NUMBERED = re.compile(r"(.*\.)(\d+)(\..*)")
_RANGES = re.compile(r"(.*)\{([0-9,-]+)\}(.*)")

Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Form:
    """What the packed tensors of a linear stand for. shape: [out, in] of the weight. exponent: as PackedWeight has it,
    which chooses it with the numbers."""

    kind: str
    group: int
    shape: tuple[int, int]
    exponent: int = 0

    @classmethod
    def of(cls, packed: PackedWeight) -> Form:
        return cls(packed.kind, packed.group, (packed.out_features, packed.in_features), packed.exponent)

    def tensors(self, zeros: bool, order: bool = False) -> Shapes:
        """Leaf -> dtype and shape of what lies in the file."""
        N, K = self.shape
        panels, groups = -(-N // PANEL), -(-K // self.group)
        small = (torch.float16, (panels, groups, PANEL))
        lines = groups * self.group // (4 if self.kind == "int8" else 8)
        found: Shapes = {"data": (torch.uint8, (panels, lines, 4 * PANEL)), "scales": small}
        if zeros:
            found["zeros"] = small
        if order:
            found["order"] = (torch.int64, (K,))
        return found


@dataclass(frozen=True)
class Item:
    """One tensor of the model on its way into a file. shapes: of its parts by their keys; make() gives the tensor, or
    the packed weight whose parts they are, when its turn has come."""

    name: str
    shapes: Shapes
    make: Callable[[], Tensor | PackedWeight]

    @property
    def nbytes(self) -> int:
        return sum(_bytes(dtype, shape) for dtype, shape in self.shapes.values())


def plain_item(key: str, dtype: torch.dtype, shape: Sequence[int], make: Callable[[], Tensor]) -> Item:
    """A tensor that is written as it is, under `key`."""
    return Item(key, {key: (dtype, tuple(shape))}, make)


def packed_item(module: str, form: Form, zeros: bool, order: bool, make: Callable[[], PackedWeight]) -> Item:
    """The weight of a linear, packed."""
    return Item(module, {f"{module}.packed.{k}": v for k, v in form.tensors(zeros, order).items()}, make)


def describe(forms: Mapping[str, Form], calibration: Any = None) -> dict[str, Any]:
    """quantization_config for linears of these forms. calibration: what the numbers were chosen with, or None."""
    rows: dict[tuple[str, Form], list[str]] = {}
    for name, form in forms.items():
        found = _NUMBERED.fullmatch(name)
        pattern = f"{found[1]}#{found[3]}" if found else name
        rows.setdefault((pattern, form), []).append(found[2] if found else "")
    listed = [
        {"names": pattern.replace("#", _written(numbers)), **asdict(form)} for (pattern, form), numbers in rows.items()
    ]
    return {"quant_method": METHOD, "version": VERSION, "calibration": calibration, "packed": listed}


def config_with(config: Any, quantization: Mapping[str, Any] | None) -> Any:
    """The configuration that says this of the weights beside it, and nothing else about quantization."""
    values = config.to_dict()
    values.pop(QUANTIZATION, None)
    return type(config).from_dict(values | ({} if quantization is None else {QUANTIZATION: dict(quantization)}))


def forms_in(settings: Mapping[str, Any]) -> dict[str, Form]:
    """What describe() was given: module -> form. CheckpointError for what it never writes."""
    if settings.get("version") != VERSION:
        raise CheckpointError(
            f"the packed weights are of version {settings.get('version')!r}, this program reads {VERSION}: "
            "use the program that wrote them, or a newer one"
        )
    try:
        return {
            name: Form(str(row["kind"]), row["group"], (row["shape"][0], row["shape"][1]), row["exponent"])
            for row in settings["packed"]
            for name in _read(row["names"])
        }
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"quantization_config is damaged ({error!r}): fetch or quantize it again") from error


class Packed(Stored):
    """A weight that lies in a file as the kernels take it."""

    is_packed = True

    def __init__(self, module: str, form: Form, parts: Mapping[str, Entry]) -> None:
        self.module, self.form, self.parts = module, form, dict(parts)
        self.key, self.path, self.shape = f"{module}.weight", parts["data"].file.path, form.shape
        self.nbytes, self.dtype = sum(entry.nbytes for entry in parts.values()), torch.bfloat16

    def plain(self, dtype: torch.dtype) -> Tensor:
        return self._weight({leaf: entry.alone() for leaf, entry in self.parts.items()}).dequantize(dtype)

    def packed(self) -> PackedWeight:
        """Mapped from the file."""
        return self._weight({leaf: entry.file.kept(entry.key) for leaf, entry in self.parts.items()})

    def _weight(self, tensors: Mapping[str, Tensor]) -> PackedWeight:
        form = self.form
        kind: Any = form.kind
        zeros, order = tensors.get("zeros"), tensors.get("order")
        return PackedWeight(
            kind, form.group, *form.shape, tensors["data"], tensors["scales"], zeros, order, form.exponent
        )


def packed_tensors(folder: Path, settings: Mapping[str, Any], entries: Sequence[Entry]) -> list[Stored]:
    """Every tensor of a folder that write_files() and describe() made. CheckpointError when the two differ."""
    forms = forms_in(settings)
    parts: dict[str, dict[str, Entry]] = {}
    plain = []
    for entry in entries:
        found = _KEY.fullmatch(entry.key)
        if found is None:
            plain.append(entry)
        else:
            parts.setdefault(found[1], {})[found[2]] = entry
    strange = sorted(set(forms) ^ set(parts))
    if strange:
        raise CheckpointError(
            f"{folder}: config.json and the files do not name the same packed weights: {some(strange)}; "
            "fetch or quantize it again"
        )
    stored: list[Stored] = []
    for module, form in forms.items():
        here = parts[module]
        wanted = form.tensors("zeros" in here or form.kind == "int4", "order" in here)
        wrong = [
            f"{module}.packed.{leaf}"
            for leaf in {**wanted, **here}
            if leaf not in here or leaf not in wanted or (here[leaf].dtype, here[leaf].shape) != wanted[leaf]
        ]
        if wrong:
            raise CheckpointError(f"{folder} has packed tensors that are not as config.json says: {some(wrong)}")
        stored.append(Packed(module, form, here))
    return stored + (plain_tensors(plain) if plain else [])


def write_files(
    folder: Path, items: Sequence[Item], limit: int, on_progress: Callable[[int, int], None] | None = None
) -> tuple[set[str], dict[str, int]]:
    """Write safetensors files of at most `limit` bytes (an item is never split), with an index where there are several.

    Each item is made when its turn comes and dropped when it is written; each file appears when it is whole.
    on_progress(bytes written, bytes in all). Returns the names of the files, and the exponents of packed weights.
    """
    shards = _shards(items, limit)
    written, weight_map, exponents, total = set(), {}, {}, sum(item.nbytes for item in items)
    done = 0
    for number, shard in enumerate(shards, 1):
        name = SINGLE_NAME if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        ordered = sorted(shard, key=lambda item: item.nbytes % ALIGNMENT > 0)  # those that keep the alignment first
        with (folder / f"{name}.tmp").open("wb") as file:
            file.write(_header(ordered))
            for item in ordered:
                made = item.make()
                if isinstance(made, PackedWeight):
                    exponents[item.name] = made.exponent
                _put(file, item, made)
                del made
                done += item.nbytes
                if on_progress is not None:
                    on_progress(done, total)
        os.replace(folder / f"{name}.tmp", folder / name)
        written.add(name)
        weight_map.update({key: name for item in shard for key in item.shapes})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / INDEX_NAME, index)
        written.add(INDEX_NAME)
    return written, exponents


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """The file appears whole or not at all."""
    part = path.with_name(f"{path.name}.tmp")
    part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _bytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _shards(items: Sequence[Item], limit: int) -> list[list[Item]]:
    """In order; a new file when the next item would pass the limit."""
    shards: list[list[Item]] = [[]]
    size = 0
    for item in items:
        if shards[-1] and size + item.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.nbytes
    return shards


def _header(items: Sequence[Item]) -> bytes:
    """Of a safetensors file: 8 bytes with the length of what follows, and where every tensor lies. Spaces, which the
    format allows, bring the first tensor to a multiple of ALIGNMENT."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for key, (dtype, shape) in ((k, v) for item in items for k, v in item.shapes.items()):
        size = _bytes(dtype, shape)
        header[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _put(file: Any, item: Item, made: Tensor | PackedWeight) -> None:
    """The bytes of an item, after its header said what they would be."""
    if isinstance(made, PackedWeight):
        leaves = {leaf: getattr(made, leaf) for leaf in LEAVES}
        tensors = [tensor for tensor in leaves.values() if tensor is not None]
    else:
        tensors = [made]
    assert [(x.dtype, tuple(x.shape)) for x in tensors] == list(item.shapes.values()), item.name
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        file.write(memoryview(flat.view(torch.uint8).numpy()))


def _written(numbers: Sequence[str]) -> str:
    """["0", "1", "2", "5"] -> "{0-2,5}"."""
    if numbers == [""]:
        return ""
    runs: list[list[int]] = []
    for number in sorted(map(int, numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "}"


def _read(names: str) -> list[str]:
    """The names behind "layers.{0-2,5}.q_proj"."""
    found = _RANGES.fullmatch(names)
    if found is None:
        return [names]
    numbers: list[int] = []
    for run in found[2].split(","):
        first, _, last = run.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return [f"{found[1]}{number}{found[3]}" for number in numbers]
