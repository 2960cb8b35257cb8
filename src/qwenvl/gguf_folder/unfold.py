"""A GGUF text model and its mmproj file -> a folder in the official layout, made once and kept in the user's cache.

The folder holds what every other checkpoint's folder holds but the weights, and gguf.json, which names the files that
have them. Its name ends in a digest of the files' paths, sizes and times: a changed file makes a new folder. It is put
in place whole, by one rename. The cache is QWENVL_CACHE, else qwenvl in XDG_CACHE_HOME, else ~/.cache/qwenvl.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qwenvl.gguf_folder.configs import family_of, generation_config, model_config, preprocessor_config
from qwenvl.gguf_folder.header import Gguf, read_gguf, split_paths
from qwenvl.gguf_folder.names import MERGER_OUT, UNUSED, targets
from qwenvl.gguf_folder.vocabulary import tokenizer_files

PAIR_NAME = "gguf.json"
LAYOUT = 1  # of the folder: folders that an older program made are made anew
PRECISIONS = ("f16", "q8_0", "bf16", "f32")  # of several towers of one model: what most of them ship first
_WORD = re.compile(r"[a-z0-9]+")


def unfold(file: str | Path, mmproj: str | Path | None = None) -> Path:
    """The folder for a GGUF text model; an existing one where the files are as they were.

    file: any part of it, where it is split. mmproj: its vision tower; left out, the mmproj*.gguf beside it. ValueError
    for files that cannot be read, that are of other models or do not belong together, and where there is no tower.
    """
    text = split_paths(_there(Path(file)))[0]
    towers = [_there(Path(mmproj))] if mmproj is not None else _towers_beside(text)
    files = [*split_paths(text), *towers]
    folder = cache_folder() / "gguf" / f"{text.stem}-{_digest(files)}"
    if (folder / PAIR_NAME).is_file():
        return folder
    header = read_gguf(text)
    if header.architecture == "clip":
        raise ValueError(f"{text} is the vision tower: give the file of the text model that lies beside it")
    if not towers:
        raise ValueError(f"{text} has no mmproj*.gguf beside it, so no vision tower: put the one of this model there")
    tower = read_gguf(towers[0]) if mmproj is not None else find_mmproj(header, towers)
    pair = {"text": str(text), "mmproj": str(tower.path), "files": list(map(str, files)), "digest": _digest(files)}
    _put(folder, {**_contents(header, tower), PAIR_NAME: pair})
    return folder


def find_mmproj(text: Gguf, towers: Sequence[Path]) -> Gguf:
    """Of several towers the one of this model: one that fits its width, whose name has most words in common with the
    text model's, and of these by precision."""
    words = set(_WORD.findall(text.path.stem.lower()))

    def rank(tower: Gguf) -> tuple[int, int, str]:
        name = tower.path.stem.lower()
        precision = next((i for i, one in enumerate(PRECISIONS) if re.search(rf"(?<![a-z]){one}(?!\w)", name)), 99)
        return -len(words & set(_WORD.findall(name)) - set(PRECISIONS)), precision, name

    found = sorted(map(read_gguf, towers), key=rank)
    width = text.metadata.get(f"{text.architecture}.embedding_length")
    fitting = [one for one in found if MERGER_OUT in one.tensors and one.shape(MERGER_OUT)[0] == width]
    return (fitting or found)[0]


def pair_of(folder: Path) -> tuple[Gguf, Gguf] | None:
    """The headers of the files that a folder was made of (text model, tower); None for a folder of another kind.
    ValueError when the files are gone or were changed."""
    try:
        names = json.loads((folder / PAIR_NAME).read_text(encoding="utf-8"))
        text, tower = Path(names["text"]), Path(names["mmproj"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / PAIR_NAME} cannot be read ({error}): remove {folder}") from error
    for path in (text, tower):
        if not path.is_file():
            raise ValueError(f"{folder} was made of {path}, which is not there any more: give the *.gguf file anew")
    return read_gguf(text), read_gguf(tower)


def cache_folder() -> Path:
    """Where what can be made again is kept."""
    given = os.environ.get("QWENVL_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwenvl"


def _there(path: Path) -> Path:
    """Absolute, and not resolved: in a cache of the hub the name is a link to a file that has none."""
    path = path.expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"{path} is not there: give a *.gguf file")
    return path


def _towers_beside(text: Path) -> list[Path]:
    """mmproj*.gguf in the folder of the text model, or in the one above: repositories with a folder for each
    quantization have it there."""
    for folder in (text.parent, text.parent.parent):
        found = [
            one for one in sorted(folder.glob("*.[gG][gG][uU][fF]")) if "mmproj" in one.name.lower() and one != text
        ]
        if found:
            return found
    return []


def _digest(paths: Sequence[Path]) -> str:
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([LAYOUT, stats]).encode()).hexdigest()[:16]


def _contents(text: Gguf, tower: Gguf) -> dict[str, Any]:
    """The folder's files, by name."""
    config, family = model_config(text, tower), family_of(tower)
    _check_whole(text, tower, config.to_dict())
    return {
        "config.json": config.to_dict(),
        "generation_config.json": generation_config(text, family),
        "preprocessor_config.json": preprocessor_config(tower, family),
        **tokenizer_files(text, family),
    }


def _check_whole(text: Gguf, tower: Gguf, config: dict[str, Any]) -> None:
    """ValueError unless the blocks that the metadata count are all there, and no others."""
    keys = {target.key for target in targets(text, tower)}
    counted = (
        ("model.layers", config["num_hidden_layers"], text),
        ("visual.blocks", config["vision_config"]["depth"], tower),
    )
    for beginning, count, file in counted:
        ends: dict[str, set[int]] = {}
        for key in keys:
            if key.startswith(f"{beginning}."):
                number, _, end = key[len(beginning) + 1 :].partition(".")
                ends.setdefault(end, set()).add(int(number))
        wrong = {end: set(range(count)) ^ found for end, found in ends.items() if found != set(range(count))}
        if wrong or not ends:
            end, blocks = next(iter(sorted(wrong.items())), ("every tensor", set(range(count))))
            raise ValueError(
                f"{file.path} announces {count} blocks, and {end} does not fit in {sorted(blocks)}: fetch it again"
            )
    strange = [n for file in (text, tower) for n in file.tensors if n in keys and n not in UNUSED]
    if strange:
        raise ValueError(f"{text.path} and its tower have tensors that are not known: {', '.join(strange[:5])}")


def _put(folder: Path, contents: dict[str, Any]) -> None:
    """Write the files beside the place, then rename. Who loses a race against another process leaves its folder."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ValueError(
            f"{folder.parent} cannot be written ({error.strerror}): set QWENVL_CACHE to a folder that can"
        ) from error
    try:
        made.chmod(0o755)
        for name, content in contents.items():
            indent = None if name == "tokenizer.json" else 2  # which is large, and slow to write prettily
            (made / name).write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
        _clear_stale(folder)
        made.rename(folder)
    except OSError as error:
        if not (folder / PAIR_NAME).is_file():
            raise ValueError(
                f"{folder} cannot be made ({error.strerror}): set QWENVL_CACHE to another folder"
            ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _clear_stale(folder: Path) -> None:
    """Remove folders of the same name whose files have changed."""
    for other in folder.parent.glob(f"{glob.escape(folder.name.rpartition('-')[0])}-*"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            names = json.loads((other / PAIR_NAME).read_text(encoding="utf-8"))
            if other != folder and names["digest"] != _digest([Path(one) for one in names["files"]]):
                shutil.rmtree(other, ignore_errors=True)
