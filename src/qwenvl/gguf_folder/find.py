"""From what a user calls a model to its folder, where that is a GGUF file too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwenvl import hub
from qwenvl.gguf_folder.unfold import unfold
from qwenvl.hub import PROCESSOR_FILES


def resolve(
    model: str | Path | None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    patterns: Sequence[str] = PROCESSOR_FILES,
    *,
    force_download: bool = False,
) -> Path:
    """As `qwenvl.hub.resolve`, but a GGUF file becomes the folder that `unfold` makes of it."""
    found = hub.resolve(model, revision, token, local_files_only, cache_dir, patterns, force_download=force_download)
    return unfold(found) if found.is_file() else found
