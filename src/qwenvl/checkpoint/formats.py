"""A folder -> its tensors, in whatever format it has them.

Plain safetensors; safetensors that others quantized (published.py); our own packed weights (packed.py); a pair of GGUF
files behind a folder that was made from their metadata (gguf.py). config.json and the files themselves say which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwenvl.checkpoint.stored import CheckpointError, Stored, entries_of, plain_tensors
from qwenvl.config import CONFIG_NAME, read_config


def stored_tensors(folder: Path) -> list[Stored]:
    """Every tensor of a checkpoint. CheckpointError for files that cannot be read and formats that are not known."""
    settings = quantization_settings(folder)
    if settings is None:
        return plain_tensors(entries_of(folder))
    raise CheckpointError(
        f"{folder} is quantized ({settings.get('quant_method')}), which is not supported: give the full weights"
    )


def quantization_settings(folder: Path) -> dict[str, Any] | None:
    """What config.json says about quantized weights; None for plain ones."""
    settings = read_config(folder).get("quantization_config")
    if settings is not None and not isinstance(settings, dict):
        raise CheckpointError(f"{folder / CONFIG_NAME}: quantization_config is {settings!r}: expected an object")
    return settings
