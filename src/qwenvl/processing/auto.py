"""AutoProcessor: the processor class that a checkpoint's files ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwenvl.processing.files import read_json
from qwenvl.processing.processor import Qwen2_5_VLProcessor, Qwen2VLProcessor, processor_folder

CLASSES: dict[str, type[Qwen2_5_VLProcessor]] = {"qwen2_5_vl": Qwen2_5_VLProcessor, "qwen2_vl": Qwen2VLProcessor}


class AutoProcessor:
    """Not built itself: `AutoProcessor.from_pretrained(...)` returns a Qwen2_5_VLProcessor or Qwen2VLProcessor."""

    @staticmethod
    def from_pretrained(model: str | Path, **image_options: Any) -> Qwen2_5_VLProcessor:
        """By model_type of config.json, else by processor_class of preprocessor_config.json or processor_config.json.
        Options as for Qwen2_5_VLProcessor.from_pretrained."""
        folder = processor_folder(model)
        kind = (read_json(folder / "config.json") or {}).get("model_type")
        if kind is None:
            files = [read_json(folder / name) or {} for name in ("preprocessor_config.json", "processor_config.json")]
            named = next((data["processor_class"] for data in files if "processor_class" in data), None)
            kind = "qwen2_vl" if named == "Qwen2VLProcessor" else "qwen2_5_vl"
        if kind not in CLASSES:
            raise ValueError(f"{folder} has model_type {kind!r}: expected one of {', '.join(CLASSES)}")
        return CLASSES[kind].from_pretrained(folder, **image_options)
