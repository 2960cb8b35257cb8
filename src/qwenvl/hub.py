"""From what a user calls a model to the folder it lies in. Knows no torch and no other room."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

DEMO = "demo"
PROCESSOR_FILES = ("*.json", "*.txt", "*.jinja")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def demo_folder() -> Path:
    """The checkpoint that is part of this package."""
    return Path(str(files("qwenvl"))) / "demo" / "checkpoint"


def resolve(
    model: str | Path | None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    patterns: Sequence[str] = PROCESSOR_FILES,
) -> Path:
    """The folder of a model: an existing folder, "demo" or None (the bundled one; a folder of that name is ./demo),
    or the owner/name of a model on the Hugging Face hub, of which the files that match `patterns` are fetched into
    its cache.

    revision, token, local_files_only (only what is in the cache) and cache_dir are for the hub; HF_ENDPOINT and
    HF_HOME are obeyed. Raises ValueError, in one line, when there is no such folder and no such model.
    """
    if model is None or model == DEMO:
        return _existing(demo_folder(), "the bundled model is not part of this installation")
    folder = Path(model).expanduser()
    if model != "" and folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for models on the hub, but {folder} is a local folder")
        return folder
    if folder.is_file():
        raise ValueError(f"{str(model)!r} is a file: give the folder that holds config.json and the weights")
    if not isinstance(model, str) or not _HUB_ID.fullmatch(model):
        raise ValueError(
            f"{str(model)!r} is not a folder, nor of the form owner/name: give a folder, owner/name or demo"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                token=token,
                local_files_only=local_files_only,
                cache_dir=cache_dir,
                allow_patterns=list(patterns),
            )
        )
    except Exception as error:  # several libraries' errors: no network, no such model, no access, no disk space
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].removeprefix("Got: ")
        raise ValueError(
            f"{model!r} is not a local folder, and could not be found on the hub: {reason}; give a folder or owner/name"
        ) from error


def _existing(folder: Path, otherwise: str) -> Path:
    if not folder.is_dir():
        raise ValueError(f"{otherwise} ({folder} does not exist): give --model a folder or owner/name")
    return folder
