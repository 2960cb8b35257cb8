"""A folder -> its tensors, in whatever format it has them.

Plain safetensors; safetensors that others quantized (published.py); our own packed weights (packed.py); a pair of GGUF
files behind a folder that was made from their metadata (gguf.py). config.json and the files themselves say which.
"""

from __future__ import annotations

from pathlib import Path

from qwenvl.checkpoint.gguf import gguf_tensors
from qwenvl.checkpoint.packed import METHOD, packed_tensors
from qwenvl.checkpoint.published import published_tensors, settings_of
from qwenvl.checkpoint.stored import Stored, entries_of, plain_tensors
from qwenvl.config import read_config


def stored_tensors(folder: Path) -> list[Stored]:
    """Every tensor of a checkpoint. CheckpointError for files that cannot be read and formats that are not known."""
    pair = gguf_tensors(folder)
    if pair is not None:
        return pair
    settings = settings_of(folder, read_config(folder))
    entries = entries_of(folder)
    if settings is None:
        return plain_tensors(entries)
    if settings.get("quant_method") == METHOD:
        return packed_tensors(folder, settings, entries)
    return published_tensors(folder, settings, entries)
