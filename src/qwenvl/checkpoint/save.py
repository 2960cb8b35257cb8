"""Model with its weights -> folder, in the published file layout."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from qwenvl.checkpoint.generation_config import GenerationConfig
from qwenvl.checkpoint.names import HEAD, Layout, file_key
from qwenvl.checkpoint.stored import INDEX_NAME, SINGLE_NAME

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B)")
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|" + re.escape(INDEX_NAME))

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "push_to_hub": (None, False),
    "safe_serialization": (None, True),
    "save_original_format": (None, True, False),
    "save_peft_format": (None, True, False),
    "state_dict": (None,),
    "token": (None,),
    "variant": (None,),
}
_INSTEAD = {
    "push_to_hub": "save into a folder, then upload it with huggingface_hub.upload_folder",
    "safe_serialization": "weights are only written as safetensors",
}


def save_model(model: Any, folder: str | Path, max_shard_size: int | str = "5GB", layout: Layout = "modules") -> None:
    """Write `model` (of model/) into `folder`: weights, config.json, and generation_config.json if it has one.

    max_shard_size: bytes, or text such as "5GB", "500MB", "1GiB"; a tensor is never split, so one file may be larger.
    layout: "modules" (model.visual.*, model.language_model.*), or "original" (visual.*, model.*) for older readers.
    A bare model's tensors have the names of the whole. A head that is tied to the embedding is left out. Each file
    appears whole or not at all, and weight files of an earlier save go away, so saving into the folder a model came
    from is safe.
    """
    limit = _bytes(max_shard_size)
    tensors = {file_key(name, layout): tensor for name, tensor in _weights(model).items()}
    shards = _shards(tensors, limit)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    count, written, weight_map = len(shards), set(), {}
    for number, keys in enumerate(shards, 1):
        name = SINGLE_NAME if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        part = {key: tensors[key].detach().cpu().contiguous() for key in keys}
        save_file(part, folder / f"{name}.tmp", metadata={"format": "pt"})
        os.replace(folder / f"{name}.tmp", folder / name)
        written.add(name)
        weight_map.update(dict.fromkeys(keys, name))
    if count > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        _write(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
        written.add(INDEX_NAME)
    for path in folder.iterdir():
        if _WEIGHTS.fullmatch(path.name) and path.name not in written:
            path.unlink()
    model.config.replace(dtype=model.dtype).save_pretrained(folder)
    settings = model.generation_config
    if isinstance(settings, Mapping):
        settings = GenerationConfig.from_dict(settings)
    if settings is not None and settings.to_dict():
        settings.save_pretrained(folder)


def save_pretrained(
    model: Any,
    folder: str | Path,
    *,
    max_shard_size: int | str = "5GB",
    layout: Layout = "modules",
    is_main_process: bool = True,
    **neutral: Any,
) -> None:
    """What `save_pretrained` of a model class does: save_model with the documented options.

    is_main_process=False writes nothing, as in runs of several processes. safe_serialization=True is always so;
    options of the documents that are not built, such as push_to_hub, are ValueErrors that name them.
    """
    for name, value in neutral.items():
        if name not in _NEUTRAL:
            raise ValueError(f"save_pretrained() does not know the option {name!r}: leave it out")
        if value not in _NEUTRAL[name]:
            raise ValueError(
                f"save_pretrained({name}={value!r}) is not supported: {_INSTEAD.get(name, 'leave it out')}"
            )
    if is_main_process:
        save_model(model, folder, max_shard_size, layout)


def _weights(model: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {model.weights_prefix + name: tensor for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop(HEAD, None)
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise ValueError(f"the model has no weights to save: {empty[0]} is on the meta device")
    return tensors


def _shards(tensors: dict[str, Tensor], limit: int) -> list[list[str]]:
    """Keys of each file: in order, a new file when the next tensor would pass the limit."""
    shards: list[list[str]] = [[]]
    size = 0
    for key, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += tensor.nbytes
    return shards


def _bytes(given: int | str) -> int:
    found = _SIZE.fullmatch(given.strip().upper()) if isinstance(given, str) else None
    size = int(float(found[1]) * _UNITS[found[2]]) if found else given
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"max_shard_size={given!r} is not valid: expected bytes, or text such as '5GB' or '500MB'")
    return size


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
