"""Model with its weights -> folder, in the published file layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl.checkpoint.generation_config import GenerationConfig
from qwenvl.checkpoint.names import HEAD, Layout, file_key
from qwenvl.checkpoint.packed import (
    Form,
    Item,
    config_with,
    describe,
    packed_item,
    plain_item,
    write_files,
)
from qwenvl.checkpoint.stored import INDEX_NAME
from qwenvl.quantization import QuantizedLinear

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
    A bare model's tensors have the names of the whole. A head that is tied to the embedding is left out. What is packed
    stays packed, in the form of packed.py: such a folder loads here only, and without packing again. Each file appears
    whole or not at all, and weight files of an earlier save go away, so saving into the folder a model came from is
    safe.
    """
    limit = shard_limit(max_shard_size)
    items, forms = _items(model, layout)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written, _ = write_files(folder, items, limit)
    for path in folder.iterdir():
        if _WEIGHTS.fullmatch(path.name) and path.name not in written:
            path.unlink()
    quantization = describe(forms, getattr(model.quantization, "calibration", None)) if forms else None
    config_with(model.config.replace(dtype=model.dtype), quantization).save_pretrained(folder)
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


def _items(model: Any, layout: Layout) -> tuple[list[Item], dict[str, Form]]:
    """What is written, in the model's order, and the form of what is packed; under the names of the file."""
    packed = {name: part.packed for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}
    plain = dict(model.named_parameters(remove_duplicate=False))
    tied, prefix = model.config.tie_word_embeddings, model.weights_prefix
    empty = [name for name, tensor in plain.items() if tensor.is_meta]
    if empty:
        raise ValueError(f"the model has no weights to save: {empty[0]} is on the meta device")
    items: list[Item] = []
    forms: dict[str, Form] = {}
    for name, weight in packed.items():
        key = file_key(prefix + name, layout)
        forms[key] = Form.of(weight)
        parts = weight.zeros is not None, weight.order is not None
        items.append(packed_item(key, forms[key], *parts, partial(_same, weight)))
    for name, tensor in plain.items():
        if not (tied and prefix + name == HEAD):
            key = file_key(prefix + name, layout)
            items.append(plain_item(key, tensor.dtype, tensor.shape, partial(_same, tensor)))
    return items, forms


def _same(value: Any) -> Any:
    return value


def shard_limit(given: int | str) -> int:
    found = _SIZE.fullmatch(given.strip().upper()) if isinstance(given, str) else None
    size = int(float(found[1]) * _UNITS[found[2]]) if found else given
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"max_shard_size={given!r} is not valid: expected bytes, or text such as '5GB' or '500MB'")
    return size
