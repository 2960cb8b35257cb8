"""A model's name -> its folder, or its GGUF file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

DEMO = "demo"
PROCESSOR_FILES = ("*.json", "*.txt", "*.jinja")
USE_MODELSCOPE = "QWENVL_USE_MODELSCOPE"
_NAME = re.compile(
    r"(?P<modelscope>modelscope://)?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<part>[\w./-]+))?"
)

# From the names of a repository's files to those that are wanted, the one to return first if it is a file.
Choose = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class FetchOptions:
    """How to fetch; the fields are the parameters of `resolve`."""

    revision: str | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    cache_dir: str | Path | None = None
    force_download: bool = False


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
    *,
    force_download: bool = False,
) -> Path:
    """Where a model lies, fetched first if need be. The model is one of

    - an existing folder, or a file that ends in .gguf: returned as it is
    - "demo" or None: the bundled model (a folder of that name is ./demo)
    - owner/name on the Hugging Face hub: the folder, with the files that match `patterns`
    - owner/name:Q4_K_M or owner/name:file.gguf: from a repository of GGUF files, that quantization, whole if it is
      split, with the repository's mmproj file: the path of the (first) text file
    - modelscope://owner/name, with or without a part: from ModelScope. QWENVL_USE_MODELSCOPE=1 does that for names
      without the prefix (other programs' variables are not read: what they say is meant for them)

    revision: a branch, tag or commit (ModelScope: master if left out). token: a string, False for none, None for the
    one that the hub's library keeps. local_files_only: no network, only what is in the cache, as HF_HUB_OFFLINE=1
    does. cache_dir: in place of the library's cache. force_download: fetch again what is there. HF_ENDPOINT and
    HF_HOME, or MODELSCOPE_ENDPOINT and MODELSCOPE_CACHE, are obeyed.

    What is fetched is checked against the hub's hashes, once; QWENVL_HUB_VERIFY=0 leaves out the check of files that
    others put into the cache. Raises ValueError, in one line, when there is no such model, or it cannot be had whole.
    """
    if model is None or model == DEMO:
        return _existing(demo_folder(), "the bundled model is not part of this installation")
    path = Path(model).expanduser()
    if model != "" and (path.is_dir() or (path.is_file() and path.suffix.lower() == ".gguf")):
        if revision is not None or force_download:
            given = f"revision={revision!r}" if revision is not None else "force_download=True"
            kind = "folder" if path.is_dir() else "file"
            raise ValueError(f"{given} is for models on the hub, but {path} is a local {kind}")
        return path
    if path.is_file():
        raise ValueError(f"{str(model)!r} is a file: give the folder that holds config.json and the weights")
    name = _NAME.fullmatch(model) if isinstance(model, str) else None
    if name is None:
        raise ValueError(
            f"{str(model)!r} is not a folder, nor of the form owner/name: give a folder, owner/name or demo"
        )
    options = FetchOptions(revision, token, local_files_only, cache_dir, force_download)
    part: str | None = name["part"]
    folder, wanted = _fetch(bool(name["modelscope"]), name["repo"], options, _chooser(name["repo"], part, patterns))
    return folder if part is None else folder / wanted[0]


def _fetch(modelscope: bool, repo: str, options: FetchOptions, choose: Choose) -> tuple[Path, list[str]]:
    """From the hub that is asked for -> (folder, the names of the wanted files in it)."""
    if modelscope or os.environ.get(USE_MODELSCOPE, "").lower() in ("1", "true", "yes", "on"):
        from qwenvl.hub.modelscope import fetch
    else:
        from qwenvl.hub.huggingface import fetch
    return fetch(repo, options, choose)


def _chooser(repo: str, part: str | None, patterns: Sequence[str]) -> Choose:
    """Which of a repository's files are wanted."""
    from qwenvl.hub import gguf

    def choose(names: Sequence[str]) -> list[str]:
        if part is not None:
            return gguf.choose(repo, names, part)
        gguf.refuse_only_gguf(repo, names)
        return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]

    return choose


def _existing(folder: Path, otherwise: str) -> Path:
    if not folder.is_dir():
        raise ValueError(f"{otherwise} ({folder} does not exist): give --model a folder or owner/name")
    return folder
