"""Checkpoints: a model id or a folder in, a model with its weights out, and back.

hub    resolve(name) -> the folder: one given, the bundled model ("demo"), or one fetched from the hub
names  the keys of both published layouts <-> the names of our modules
load   load_model(folder) -> the model on its device, weights streamed in, nothing left out
pretrained  from_pretrained of the model classes; auto picks the class by the checkpoint's model_type
generation_config  GenerationConfig, the defaults of generate() that a checkpoint has
save   save_model(model, folder) -> safetensors, index, config.json, generation_config.json

In: folders with config.json and *.safetensors. Out: a model of model/, in eval mode. Errors: CheckpointError (a
ValueError) with what is wrong, where, and what to do. Does not know: the engine, messages, pictures, tokenizers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenvl.checkpoint.auto import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForVision2Seq,
    )
    from qwenvl.checkpoint.generation_config import GenerationConfig
    from qwenvl.checkpoint.hub import resolve
    from qwenvl.checkpoint.load import CheckpointError, load_model
    from qwenvl.checkpoint.pretrained import load_pretrained
    from qwenvl.checkpoint.save import save_model

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForVision2Seq",
    "CheckpointError",
    "GenerationConfig",
    "load_model",
    "load_pretrained",
    "resolve",
    "save_model",
]

_FILE_OF = {"resolve": "hub", "save_model": "save", "load_pretrained": "pretrained"}
_FILE_OF |= {"GenerationConfig": "generation_config"} | {name: "auto" for name in __all__ if name.startswith("Auto")}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: a wrong model name is told before torch is imported."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF.get(name, 'load')}"), name)
