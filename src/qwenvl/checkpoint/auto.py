"""The documented Auto classes of models and configurations: the class that a checkpoint's model_type asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NoReturn

from qwenvl.config import Qwen2_5_VLConfig, Qwen2VLConfig, config_from_dict, load_config, read_config
from qwenvl.gguf_folder import resolve
from qwenvl.hub import PROCESSOR_FILES

AnyConfig = Qwen2_5_VLConfig | Qwen2VLConfig
_HUB_OPTIONS = ("revision", "token", "local_files_only", "cache_dir")


class AutoConfig:
    """Not built itself: `AutoConfig.from_pretrained(...)` returns a Qwen2_5_VLConfig or Qwen2VLConfig."""

    @staticmethod
    def from_pretrained(
        model: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        trust_remote_code: bool = False,
        **changes: Any,
    ) -> AnyConfig:
        """The configuration of a folder, hub id or "demo", without its weights; `changes` to fields win over the file.
        trust_remote_code has no effect: no code of a checkpoint is ever run."""
        found = load_config(resolve(model, revision, token, local_files_only, cache_dir, PROCESSOR_FILES))
        return found.replace(**changes) if changes else found

    @staticmethod
    def for_model(model_type: str, **values: Any) -> AnyConfig:
        """A configuration of this model_type with the documented defaults and `values`."""
        return config_from_dict({**values, "model_type": model_type})


class _AutoModel:
    """Picks a model class by model_type; not built itself."""

    _classes: ClassVar[dict[str, str]]
    _room: ClassVar[str]

    def __init__(self, *given: Any, **options: Any) -> None:
        name = type(self).__name__
        raise ValueError(f"{name} is not built itself: use {name}.from_pretrained(...) or {name}.from_config(...)")

    @classmethod
    def _class_of(cls, model_type: Any) -> Any:
        from importlib import import_module

        if model_type not in cls._classes:
            raise ValueError(f"model_type={model_type!r} is not known: expected one of {', '.join(cls._classes)}")
        return getattr(import_module(cls._room), cls._classes[model_type])

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> Any:
        """The model of a folder, hub id or "demo" with its weights; options as from_pretrained of the classes takes
        them. Raises ValueError for a model_type that is not run here."""
        where = {name: options[name] for name in _HUB_OPTIONS if options.get(name) is not None}
        found = read_config(resolve(model, **where, patterns=PROCESSOR_FILES))
        return cls._class_of(found.get("model_type")).from_pretrained(model, **options)

    @classmethod
    def from_config(
        cls, config: AnyConfig, *, attn_implementation: str | None = None, dtype: Any = None, torch_dtype: Any = None
    ) -> Any:
        """The model of a configuration, with random weights, in dtype (torch_dtype; None = float32)."""
        chosen = dtype if dtype is not None else torch_dtype
        kind = cls._class_of(getattr(config, "model_type", None))
        model = kind(config, **({} if attn_implementation is None else {"attn_implementation": attn_implementation}))
        if chosen in (None, "auto"):
            return model
        from qwenvl.checkpoint.load import dtype_named

        return model.to(dtype_named(chosen))


class AutoModelForImageTextToText(_AutoModel):
    """`AutoModelForImageTextToText.from_pretrained(...)` returns a Qwen2_5_VLForConditionalGeneration or
    Qwen2VLForConditionalGeneration."""

    _room = "qwenvl.model.qwen_vl"
    _classes: ClassVar[dict[str, str]] = {
        "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
        "qwen2_vl": "Qwen2VLForConditionalGeneration",
    }


class AutoModelForVision2Seq(AutoModelForImageTextToText):
    """The older name of AutoModelForImageTextToText."""


class AutoModel(_AutoModel):
    """`AutoModel.from_pretrained(...)` returns the bare model, Qwen2_5_VLModel or Qwen2VLModel."""

    _room = "qwenvl.model.bare"
    _classes: ClassVar[dict[str, str]] = {"qwen2_5_vl": "Qwen2_5_VLModel", "qwen2_vl": "Qwen2VLModel"}


class AutoModelForCausalLM:
    """Not for these models, here as in the documents: its methods say which class to use."""

    @staticmethod
    def from_pretrained(*given: Any, **options: Any) -> NoReturn:
        """Always a ValueError."""
        raise ValueError(
            "AutoModelForCausalLM is for models of text alone: use AutoModelForImageTextToText.from_pretrained(...)"
        )

    from_config = from_pretrained
