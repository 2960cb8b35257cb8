"""A checkpoint's folder as its headers tell it: no weights are read, and torch is imported only for folders whose
weights are quantized.

In: a folder, or a GGUF file. Out: its configuration, its tensors' names, shapes and dtypes, and its files. Errors:
ValueError for a folder without config.json or weights, for shards that the index lists and the folder lacks, and for
files cut short.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl.config import Qwen2_5_VLConfig, Qwen2VLConfig, load_config
from qwenvl.gguf_folder import pair_of, targets, unfold

INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
MOST_HEADER = 100 * 2**20  # what the safetensors format allows


@dataclass(frozen=True)
class TensorHeader:
    """One tensor as its file announces it. dtype: in the file's words (BF16, F32, I32, Q4_K, ...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelFiles:
    """What lies in a checkpoint's folder. tensors: of the model, those that are quantized with the shape that they have
    unpacked and with quant_method as their dtype. files: name -> bytes. quantization: what config.json says of it."""

    folder: Path
    config: Qwen2_5_VLConfig | Qwen2VLConfig
    tensors: tuple[TensorHeader, ...]
    files: dict[str, int]
    quantization: dict[str, Any] | None = None

    @property
    def parameters(self) -> int:
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def parameters_by_part(self) -> dict[str, int]:
        """Parameters of tower, decoder and head; a tied head is counted with the decoder, once."""
        parts = Counter({"vision tower": 0, "decoder": 0, "head": 0})
        for tensor in self.tensors:
            part = "vision tower" if "visual." in tensor.name else "head" if "lm_head" in tensor.name else "decoder"
            parts[part] += tensor.numel
        return dict(parts)

    @property
    def dtypes(self) -> dict[str, int]:
        """Parameters of each dtype, the most frequent first."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors:
            counts[tensor.dtype] += tensor.numel
        return dict(counts.most_common())

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder; {} when there is none. ValueError when it is no JSON object."""
        return read_json(self.folder / name) if name in self.files else {}

    @property
    def chat_template(self) -> str | None:
        """Where the chat template lies, or None."""
        for name in ("chat_template.jinja", "chat_template.json"):
            if name in self.files:
                return name
        return "tokenizer_config.json" if "chat_template" in self.read_json("tokenizer_config.json") else None


def look(folder: Path) -> ModelFiles:
    """Read configuration and headers of a checkpoint, and check that its weights are all there. Of a GGUF file it is
    the folder that is made of it, with the tensors of the published layout that its tensors make."""
    folder = unfold(folder) if folder.is_file() else folder
    config = load_config(folder)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    pair = pair_of(folder)
    if pair is not None:
        found = tuple(TensorHeader(one.key, one.kind, one.shape) for one in targets(*pair))
        return ModelFiles(folder, config, found, files | {p.name: p.stat().st_size for g in pair for p in g.paths})
    names = sorted(weight_files(folder, files))
    tensors = tuple(tensor for name in names for tensor in read_header(folder / name))
    if any(tensor.dtype not in FLOATS for tensor in tensors):
        return ModelFiles(folder, config, *_unpacked(folder, config.tie_word_embeddings, files))
    return ModelFiles(folder, config, tensors, files)


def _unpacked(
    folder: Path, tied: bool, files: dict[str, int]
) -> tuple[tuple[TensorHeader, ...], dict[str, int], dict[str, Any] | None]:
    """Tensors (a packed copy of a tied head left out), files and settings of a folder with quantized weights."""
    from qwenvl.checkpoint.formats import stored_tensors
    from qwenvl.checkpoint.published import settings_of
    from qwenvl.checkpoint.stored import KINDS
    from qwenvl.config import read_config

    settings = settings_of(folder, read_config(folder))
    method = str((settings or {}).get("quant_method"))
    stored = [one for one in stored_tensors(folder) if not (tied and one.name == "lm_head.weight")]
    plain = {dtype: name for name, dtype in KINDS.items()}
    kinds = [method if one.is_packed else plain.get(one.dtype, str(one.dtype)) for one in stored]
    headers = (TensorHeader(one.key, kind, one.shape) for one, kind in zip(stored, kinds, strict=True))
    return tuple(headers), files, settings


def weight_files(folder: Path, files: dict[str, int]) -> set[str]:
    """The names of the files with weights, by the index where there is one. ValueError if some are missing."""
    if INDEX in files:
        listed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise ValueError(f"{folder / INDEX} has no weight_map of tensor to file names: download it again")
        wanted = set(listed.values())
        missing = sorted(wanted - set(files))
        if missing:
            raise ValueError(
                f"{folder} lacks {len(missing)} of the {len(wanted)} weight files that {INDEX} lists: "
                f"{', '.join(missing)}; download them again"
            )
        return wanted
    wanted = {name for name in files if name.endswith(".safetensors")}
    if not wanted:
        raise ValueError(f"{folder} holds no weights: expected model.safetensors, or shards with {INDEX}")
    return wanted


def read_header(path: Path) -> list[TensorHeader]:
    """The tensors that a safetensors file announces. ValueError when it is not one, or is cut short.

    Format: 8 bytes with the header's length N (little endian), N bytes of JSON, then the tensors' bytes.
    """
    broken = ValueError(f"{path} is damaged or no safetensors file: download it again")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MOST_HEADER, size - 8):
            raise broken
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            tensors = [TensorHeader(n, str(e["dtype"]), tuple(map(int, e["shape"]))) for n, e in entries.items()]
            end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise broken from error
    if size < 8 + length + end:
        raise ValueError(f"{path} has {size} bytes of {8 + length + end}: download it again")
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError with the path for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}: expected a JSON object")
    return value
