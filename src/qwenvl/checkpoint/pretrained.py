"""from_pretrained of the documented model classes: a name and the documented options -> a loaded model.

An option that is not built is an error that names it, unless its value asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from qwenvl.checkpoint.fill import LoadOptions
from qwenvl.checkpoint.hub import resolve
from qwenvl.checkpoint.load import load_folder
from qwenvl.checkpoint.placement import DeviceMap
from qwenvl.quantization import QuantizeOptions, options_of_config

AnyModel = TypeVar("AnyModel", bound=nn.Module)

# Options of the documents that are not built, or need nothing here, with the values that are fine.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "from_flax": (None, False),
    "from_tf": (None, False),
    "ignore_mismatched_sizes": (None, False),
    "key_mapping": (None,),
    "low_cpu_mem_usage": (None, True, False),
    "mirror": (None,),
    "offload_buffers": (None, True, False),
    "offload_state_dict": (None, True, False),
    "proxies": (None,),
    "resume_download": (None, True, False),
    "state_dict": (None,),
    "subfolder": (None, ""),
    "tp_plan": (None,),
    "trust_remote_code": (None, True, False),
    "use_safetensors": (None, True),
    "variant": (None,),
    "weights_only": (None, True, False),
}


def load_pretrained(
    cls: type[AnyModel],
    model: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    device_map: DeviceMap = None,
    max_memory: Mapping[Any, int | str] | None = None,
    offload_folder: str | Path | None = None,
    attn_implementation: str | None = None,
    config: Any = None,
    generation_config: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    output_loading_info: bool = False,
    quantize: str | QuantizeOptions | None = None,
    load_in_8bit: bool | None = None,
    load_in_4bit: bool | None = None,
    quantization_config: Any = None,
    **others: Any,
) -> AnyModel:
    """What `from_pretrained` of a model class does: `model` is a folder, a hub id or "demo".

    dtype and torch_dtype are one option with two names; without it the dtype is the checkpoint's own ("auto").
    device_map, max_memory, offload_folder: as LoadOptions describes them; None is the CPU. The checkpoint has to be of
    the class's family: ValueError otherwise. config: a configuration, a folder or hub id of one, in place of the
    file's. output_loading_info: return (model, report), in which nothing is missing: what does not fit is an error
    here. quantize: as load_model takes it; load_in_8bit is "int8" and load_in_4bit "int4". quantization_config:
    TorchAoConfig or BitsAndBytesConfig. others: fields of the configuration to change, such as
    max_position_embeddings=65536; or options of the documents that ask for nothing (trust_remote_code: no code of a
    checkpoint is ever run; low_cpu_mem_usage: always so).
    """
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise ValueError(f"dtype={dtype!r} and torch_dtype={torch_dtype!r} mean the same: give one")
    wanted = _quantize(quantize, load_in_8bit, load_in_4bit, quantization_config)
    changes = _changes(cls, others)
    folder = resolve(model, revision, token, local_files_only, cache_dir, force_download=force_download)

    def adapt(found: Any) -> Any:
        given = _config(cls, found, config)
        return given.replace(**changes) if changes else given

    attention = "sdpa" if attn_implementation is None else attn_implementation
    options = LoadOptions(dtype or torch_dtype, attention, device_map, max_memory, offload_folder, wanted)
    loaded = load_folder(cls, folder, options, adapt=adapt)
    if generation_config is not None:
        loaded.generation_config = generation_config
    report: dict[str, Any] = {name: [] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")}
    return cast(AnyModel, (loaded, report) if output_loading_info else loaded)


def _quantize(
    quantize: str | QuantizeOptions | None, eight: bool | None, four: bool | None, config: Any
) -> str | QuantizeOptions | None:
    """The one thing that the options about quantization ask for. ValueError when they ask for several, or for what is
    not built."""
    words = {"load_in_8bit": "int8" if eight else None, "load_in_4bit": "int4" if four else None}
    given: dict[str, str | QuantizeOptions | None] = {"quantize": quantize, **words}
    given["quantization_config"] = None if config is None else options_of_config(config)
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} are all given: one of them says it all")
    return next(iter(asked.values()), None)


def _changes(cls: Any, others: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration's fields among the options. ValueError for what is neither a field nor neutral."""
    known = _field_names(cls.config_class)
    changes = {}
    for name, value in others.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise ValueError(f"from_pretrained({name}=...) is not supported yet: leave it out (got {value!r})")
        elif name in known:
            changes[name] = value
        else:
            raise ValueError(f"from_pretrained() does not know the option {name!r}: leave it out")
    return changes


def _field_names(config_class: Any) -> set[str]:
    """Names that a configuration of this class may be changed by, those of its text part included."""
    text = getattr(config_class, "_text_class", None)
    names = {item.name for item in fields(config_class)} - {"extra", "dtype"} | {"rope_parameters"}
    return names | (_field_names(text) if text else set())


def _config(cls: Any, found: Any, given: Any) -> Any:
    """The configuration to build from: the one given (object, mapping, folder or hub id), else the folder's."""
    if given is None or isinstance(given, cls.config_class):
        return found if given is None else given
    if isinstance(given, Mapping):
        return cls.config_class.from_dict(given)
    if isinstance(given, str | Path):
        return cls.config_class.from_pretrained(resolve(given))
    raise ValueError(f"config is a {type(given).__name__}: expected a {cls.config_class.__name__}")
