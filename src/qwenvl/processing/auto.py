"""AutoProcessor and its parts: the class that a checkpoint's files ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwenvl.gguf_folder import resolve
from qwenvl.processing.files import read_json
from qwenvl.processing.image_processor import Qwen2VLImageProcessor
from qwenvl.processing.processor import Qwen2_5_VLProcessor, Qwen2VLProcessor
from qwenvl.processing.tokenizer import Tokenizer
from qwenvl.processing.video_processor import Qwen2VLVideoProcessor

CLASSES: dict[str, type[Qwen2_5_VLProcessor]] = {"qwen2_5_vl": Qwen2_5_VLProcessor, "qwen2_vl": Qwen2VLProcessor}


class AutoProcessor:
    """Not built itself: `AutoProcessor.from_pretrained(...)` returns a Qwen2_5_VLProcessor or Qwen2VLProcessor."""

    @staticmethod
    def from_pretrained(
        model: str | Path, *, revision: str | None = None, token: str | bool | None = None,
        local_files_only: bool = False, cache_dir: str | Path | None = None, **options: Any,
    ) -> Qwen2_5_VLProcessor:  # fmt: skip
        """By model_type of config.json, else by processor_class of preprocessor_config.json or processor_config.json.
        Options as for Qwen2_5_VLProcessor.from_pretrained."""
        folder = resolve(model, revision, token, local_files_only, cache_dir)
        kind = (read_json(folder / "config.json") or {}).get("model_type")
        if kind is None:
            files = [read_json(folder / name) or {} for name in ("preprocessor_config.json", "processor_config.json")]
            named = next((data["processor_class"] for data in files if "processor_class" in data), None)
            kind = "qwen2_vl" if named == "Qwen2VLProcessor" else "qwen2_5_vl"
        if kind not in CLASSES:
            raise ValueError(f"{folder} has model_type {kind!r}: expected one of {', '.join(CLASSES)}")
        return CLASSES[kind].from_pretrained(folder, **options)


class AutoTokenizer:
    """Not built itself: `AutoTokenizer.from_pretrained(...)` returns a Tokenizer."""

    @staticmethod
    def from_pretrained(
        model: str | Path, *, revision: str | None = None, token: str | bool | None = None,
        local_files_only: bool = False, cache_dir: str | Path | None = None, padding_side: str | None = None,
        use_fast: bool = True, trust_remote_code: bool = False,
    ) -> Tokenizer:  # fmt: skip
        """The tokenizer of a checkpoint's folder or hub id. use_fast and trust_remote_code have no effect: there is one
        tokenizer, and no code of a checkpoint is ever run."""
        tokenizer = Tokenizer.from_pretrained(resolve(model, revision, token, local_files_only, cache_dir))
        tokenizer.padding_side = padding_side or tokenizer.padding_side
        return tokenizer


class AutoImageProcessor:
    """Not built itself: `AutoImageProcessor.from_pretrained(...)` returns a Qwen2VLImageProcessor."""

    from_pretrained = staticmethod(Qwen2VLImageProcessor.from_pretrained)


class AutoVideoProcessor:
    """Not built itself: `AutoVideoProcessor.from_pretrained(...)` returns a Qwen2VLVideoProcessor."""

    from_pretrained = staticmethod(Qwen2VLVideoProcessor.from_pretrained)
