"""Folder -> folder with packed weights, one weight at a time: read, packed, written, dropped.

The new folder appears when it is whole. Until then everything lies in its neighbour NAME.part, which an interrupted run
leaves behind and the next one starts over. What is needed beside the program is the largest weight, plain and packed.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwenvl.checkpoint.formats import stored_tensors
from qwenvl.checkpoint.load import dtype_named
from qwenvl.checkpoint.names import EMBEDDING, HEAD
from qwenvl.checkpoint.packed import (
    METHOD,
    QUANTIZATION,
    Form,
    Item,
    config_with,
    describe,
    packed_item,
    plain_item,
    write_files,
)
from qwenvl.checkpoint.stored import INDEX_NAME, CheckpointError, Stored
from qwenvl.config import CONFIG_NAME, load_config, read_config
from qwenvl.gguf_folder import PAIR_NAME
from qwenvl.hub import PROCESSOR_FILES
from qwenvl.kernels.quantized import PackedWeight
from qwenvl.quantization import QuantizeOptions, Scheme, choose, pack

PART, MARK = ".part", ".quantizing"
REPORT_NAME = "quantize-report.json"
SPARE = 2**20  # bytes for what is small: config.json, headers, the tokenizer
_COPIED = (*PROCESSOR_FILES, "LICENSE*", "NOTICE*")
# They tell of the weights that they lie beside.
_OF_THE_WEIGHTS = (CONFIG_NAME, INDEX_NAME, PAIR_NAME, REPORT_NAME, "scores.json")


@dataclass(frozen=True)
class Source:
    """A checkpoint that is to be packed. stored: its tensors by their names in the whole model, in the files' order.
    schemes: of the linears that are packed. dtype: of all else."""

    folder: Path
    config: Any
    stored: dict[str, Stored]
    schemes: dict[str, Scheme]
    dtype: torch.dtype

    @property
    def bytes_before(self) -> int:
        """Bytes of the weights in `dtype`."""
        return sum(torch.Size(one.shape).numel() for one in self.stored.values()) * self.dtype.itemsize


@dataclass(frozen=True)
class Written:
    """What was written. Bytes of the weights: as they were in the model's dtype, and in the new files."""

    folder: Path
    bytes_before: int
    bytes_after: int
    linears: int


def open_source(folder: Path, options: QuantizeOptions, dtype: str = "auto") -> Source:
    """Read the headers of a checkpoint. dtype: of what is not packed; "auto": the checkpoint's own. CheckpointError for
    one that cannot be read or is quantized already, ValueError for options that pack nothing in it."""
    config, stored = load_config(folder), {}
    for one in sorted(stored_tensors(folder), key=lambda one: one.path):
        if one.is_packed:
            method = (read_config(folder).get(QUANTIZATION) or {}).get("quant_method", "another program")
            raise CheckpointError(
                f"{folder} is quantized already ({method}): give the full weights, whose numbers are still there"
            )
        if one.name is not None:
            stored[one.name] = one
    if config.tie_word_embeddings:
        stored.pop(HEAD, None)
    shapes = {name: one.shape for name, one in stored.items()}
    if config.tie_word_embeddings and EMBEDDING in shapes:
        shapes[HEAD] = shapes[EMBEDDING]
    schemes = choose(shapes, options)
    if not schemes:
        raise ValueError(f"nothing of {folder} would be packed with {options}: name a part to pack")
    kinds = Counter(one.dtype for one in stored.values())
    own = config.dtype or str(kinds.most_common(1)[0][0])
    return Source(folder, config, stored, schemes, dtype_named(own if dtype == "auto" else dtype))


def quantize_folder(
    source: Source,
    target: Path,
    *,
    limit: int = 5 * 10**9,
    force: bool = False,
    calibrated: Iterator[tuple[str, PackedWeight]] | None = None,
    calibration: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write the packed checkpoint to `target`, in files of at most `limit` bytes.

    calibrated: weights that were packed elsewhere (quantization.calibrate.packed_layers), with the module of each; the
    others are packed here. calibration: what is said of that in config.json. force: replace a folder that was packed
    before. on_progress(bytes written, bytes in all). ValueError for a target that may not be replaced, OSError when the
    disk has no room.
    """
    check_target(source.folder, target, force)
    items, forms = _items(source, calibrated)
    total = sum(item.nbytes for item in items)
    part = _part_of(target)
    _check_room(part.parent, total)
    part.mkdir(parents=True)
    (part / MARK).touch()
    _, exponents = write_files(part, items, limit, on_progress)
    for path in sorted({path for pattern in _COPIED for path in source.folder.glob(pattern)}):
        if path.is_file() and path.name not in _OF_THE_WEIGHTS and not path.name.endswith(".index.json"):
            shutil.copyfile(path, part / path.name)
    done = {name: replace(form, exponent=exponents[name]) for name, form in forms.items()}
    config = source.config.replace(dtype=source.dtype)
    config_with(config, describe(done, calibration)).save_pretrained(part)
    (part / MARK).unlink()
    _put_in_place(part, target)
    return Written(target, source.bytes_before, total, len(forms))


def check_target(source: Path, target: Path, force: bool) -> None:
    """ValueError unless `target` may be written: it is not there or empty, or holds what was packed before and `force`
    is set; and what an interrupted run left beside it may go."""
    here = target.resolve()
    if here == source.resolve() or here in source.resolve().parents:
        raise ValueError(f"{target} holds the checkpoint that is to be quantized: give another folder")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        if not force:
            raise ValueError(f"{target} is there already: give another folder, or --force to replace it")
        if not target.is_dir() or not _is_ours(target):
            raise ValueError(f"{target} is no folder of quantized weights, so it is not replaced: give another folder")
    part = _part_name(target)
    if part.exists() and not (part / MARK).exists():
        raise ValueError(f"{part} is in the way and not from an interrupted run: move it")


def _is_ours(folder: Path) -> bool:
    if not (folder / CONFIG_NAME).is_file():
        return False
    said = read_config(folder).get(QUANTIZATION)
    return isinstance(said, dict) and said.get("quant_method") == METHOD


def _part_name(target: Path) -> Path:
    return target.resolve().with_name(target.resolve().name + PART)


def _part_of(target: Path) -> Path:
    """The folder to write into, without what an interrupted run left there."""
    part = _part_name(target)
    if part.exists():
        shutil.rmtree(part)
    part.parent.mkdir(parents=True, exist_ok=True)
    return part


def _check_room(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted + SPARE:
        raise OSError(
            f"{folder} has {free / 1e9:.2f} GB free, the packed weights take {(wanted + SPARE) / 1e9:.2f} GB: "
            "make room, or give another folder"
        )


def _put_in_place(part: Path, target: Path) -> None:
    """One renaming, after the old folder went aside."""
    old = target.resolve().with_name(f"{target.resolve().name}.old")
    if target.exists():
        if any(target.iterdir()):
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        else:
            target.rmdir()
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _items(source: Source, calibrated: Iterator[tuple[str, PackedWeight]] | None) -> tuple[list[Item], dict[str, Form]]:
    """What is written, in the order in which it is made, and the forms of what is packed."""
    forms, items = {}, []
    for module, scheme in source.schemes.items():
        one = source.stored.get(f"{module}.weight") or source.stored[EMBEDDING]
        N, K = one.shape
        forms[module] = Form(scheme.kind, scheme.group, (N, K))
    ready = _Ready(calibrated)
    for name, one in source.stored.items():
        module = name.removesuffix(".weight")
        if module in forms:
            make: Callable[[], Any] = partial(ready.get, module, partial(_packed, one, source.schemes[module]))
            items.append(packed_item(module, forms[module], forms[module].kind == "int4", False, make))
        else:
            items.append(plain_item(name, source.dtype, one.shape, partial(_plain, one, source.dtype)))
        if name == EMBEDDING and HEAD not in source.stored and "lm_head" in forms:
            make = partial(ready.get, "lm_head", partial(_packed, one, source.schemes["lm_head"]))
            items.append(packed_item("lm_head", forms["lm_head"], forms["lm_head"].kind == "int4", False, make))
    if calibrated is not None:  # what is waited for comes in the order in which it is calibrated
        items.sort(key=_place)
    return items, forms


def _place(item: Item) -> tuple[int, int]:
    """The order of the model: plain tensors and the tower, text layers by their numbers, the head."""
    words = item.name.split(".")
    layer = int(words[3]) if item.name.startswith("model.language_model.layers.") else -1
    return (2, 0) if words[0] == "lm_head" else (1, layer) if layer >= 0 else (0, 0)


class _Ready:
    """Weights that come packed, kept until they are asked for."""

    def __init__(self, coming: Iterator[tuple[str, PackedWeight]] | None) -> None:
        self._coming, self._kept = coming, dict[str, PackedWeight]()

    def get(self, module: str, otherwise: Callable[[], PackedWeight]) -> PackedWeight:
        if self._coming is None or module.startswith("model.visual."):
            return otherwise()
        while module not in self._kept:
            name, packed = next(self._coming)
            self._kept[name] = packed
        return self._kept.pop(module)


def _packed(one: Stored, scheme: Scheme) -> PackedWeight:
    return pack(one.passing(), scheme)


def _plain(one: Stored, dtype: torch.dtype) -> Tensor:
    return one.passing() if one.dtype == dtype else one.plain(dtype)
