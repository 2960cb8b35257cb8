"""From what a user calls a model to the folder it lies in, weights included."""

from __future__ import annotations

from functools import partial

from qwenvl import gguf_folder
from qwenvl.hub import DEMO, PROCESSOR_FILES, demo_folder

PATTERNS = (*PROCESSOR_FILES, "*.safetensors")
resolve = partial(gguf_folder.resolve, patterns=PATTERNS)

__all__ = ["DEMO", "PATTERNS", "demo_folder", "resolve"]
