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

from qwenvl.checkpoint.hub import resolve
from qwenvl.checkpoint.load import device_of, load_folder

AnyModel = TypeVar("AnyModel", bound=nn.Module)

# Options of the documents that are not built, or need nothing here, with the values that are fine.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "from_flax": (None, False),
    "from_tf": (None, False),
    "ignore_mismatched_sizes": (None, False),
    "key_mapping": (None,),
    "low_cpu_mem_usage": (None, True, False),
    "max_memory": (None,),
    "mirror": (None,),
    "offload_buffers": (None, False),
    "offload_folder": (None,),
    "offload_state_dict": (None, False),
    "proxies": (None,),
    "quantization_config": (None,),
    "load_in_4bit": (None, False),
    "load_in_8bit": (None, False),
    "resume_download": (None, True, False),
    "force_download": (None, False),
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
    device_map: str | int | torch.device | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    config: Any = None,
    generation_config: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    output_loading_info: bool = False,
    **others: Any,
) -> AnyModel:
    """What `from_pretrained` of a model class does: `model` is a folder, a hub id or "demo".

    dtype and torch_dtype are one option with two names; without it the dtype is the checkpoint's own ("auto").
    device_map: as device_of takes it; None is the CPU. The checkpoint has to be of the class's family: ValueError
    otherwise. config: a configuration, a folder or hub id of one, in place of the file's. output_loading_info: return
    (model, report), in which nothing is missing: what does not fit is an error here. others: fields of the
    configuration to change, such as max_position_embeddings=65536; or options of the documents that ask for nothing
    (trust_remote_code: no code of a checkpoint is ever run; low_cpu_mem_usage: always so).
    """
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise ValueError(f"dtype={dtype!r} and torch_dtype={torch_dtype!r} mean the same: give one")
    device = device_of(device_map)
    changes = _changes(cls, others)
    folder = resolve(model, revision, token, local_files_only, cache_dir)

    def adapt(found: Any) -> Any:
        given = _config(cls, found, config)
        return given.replace(**changes) if changes else given

    attention = "sdpa" if attn_implementation is None else attn_implementation
    loaded = load_folder(cls, folder, dtype or torch_dtype, attention, device, adapt=adapt)
    if generation_config is not None:
        loaded.generation_config = generation_config
    report: dict[str, Any] = {name: [] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")}
    return cast(AnyModel, (loaded, report) if output_loading_info else loaded)


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
