"""Which files of a repository make one quantized model: names in, names out.

A repository of GGUF files holds one text model in several quantizations, each a file or several
("-00001-of-00003.gguf"), sometimes in a folder of its own, and the vision tower as mmproj*.gguf in one or several
precisions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

PRECISIONS = ("F16", "Q8_0", "BF16", "F32")  # of the vision tower, the best first: F16 is what most of them ship
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
_LABEL = re.compile(r"(?<![A-Za-z0-9])((?:UD-|i1-)?(?:I?Q\d|TQ\d|BF16|F16|F32|FP16|MXFP4)\w*)(?=\.|-|$)", re.IGNORECASE)


def choose(repo: str, names: Sequence[str], part: str) -> list[str]:
    """The files of the quantization (or file) `part`: the text model's, in order, then the vision tower's.

    Case does not matter. ValueError when there is none, when several fit, when a piece of a split file is missing, or
    when the repository has no vision tower.
    """
    models = _text_models(names)
    found = _named(models, part) if part.lower().endswith(".gguf") else _quantized(models, part)
    if len(found) != 1:
        what = f"none of the GGUF files of {repo!r} is" if not found else f"{len(found)} models of {repo!r} are"
        there = ", ".join(found) if found else _there(models)
        raise ValueError(f"{what} {part!r}: give {repo}: and one of {there}")
    pieces = models[found[0]]
    _check_pieces(repo, pieces)
    return [*pieces, _vision_tower(repo, names, pieces[0])]


def refuse_only_gguf(repo: str, names: Sequence[str]) -> None:
    """ValueError with the quantizations there are, for a repository that has no other weights."""
    models = _text_models(names)
    if models and not any(name.endswith((".safetensors", ".bin", ".pth")) for name in names):
        raise ValueError(f"{repo!r} holds GGUF files only: say which, as {repo}: and one of {_there(models)}")


def label(name: str) -> str:
    """How a file's quantization is called: "Q4_K_M" of "model-Q4_K_M-00001-of-00002.gguf"; else the file's name."""
    file = _SPLIT.sub("", PurePosixPath(name).name)
    labels: list[str] = _LABEL.findall(file.removesuffix(".gguf"))
    return labels[-1] if labels else file


def _text_models(names: Sequence[str]) -> dict[str, list[str]]:
    """{the name without the piece's number: its pieces in order}, without vision towers and tables of importance."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        file = PurePosixPath(name).name.lower()
        if file.endswith(".gguf") and "mmproj" not in file and "imatrix" not in file:
            models.setdefault(_SPLIT.sub("", name), []).append(name)
    return models


def _named(models: dict[str, list[str]], file: str) -> list[str]:
    """The models one of whose pieces has that path, or that name in whatever folder."""
    file = file.lower()
    by_path = [m for m, pieces in models.items() if file in (m.lower(), *(piece.lower() for piece in pieces))]
    return by_path or [
        m for m, pieces in models.items() if file in (PurePosixPath(p).name.lower() for p in (m, *pieces))
    ]


def _quantized(models: dict[str, list[str]], quantization: str) -> list[str]:
    """The models of a quantization; those of exactly that label before those that only contain the word."""
    exact = [model for model in models if label(model).lower() == quantization.lower()]
    return exact or [model for model in models if _has_word(PurePosixPath(model).name, quantization)]


def _has_word(text: str, word: str) -> bool:
    """Whether a word stands in a name, and is not a piece of a longer one: F16 is not in BF16, Q4_K not in Q4_K_M."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9_])", text, re.IGNORECASE) is not None


def _there(models: dict[str, list[str]]) -> str:
    """What a user can choose from: labels, or names of files where labels do not tell them apart."""
    labels = [label(model) for model in models]
    return ", ".join(sorted(set(labels)) if len(set(labels)) == len(labels) else sorted(models)) or "(there is none)"


def _check_pieces(repo: str, pieces: list[str]) -> None:
    split = _SPLIT.search(pieces[0])
    if split is None:
        return
    here, total = {int(found[1]) for piece in pieces if (found := _SPLIT.search(piece))}, int(split[2])
    if missing := sorted(set(range(1, total + 1)) - here):
        raise ValueError(f"{repo!r} lacks piece {missing[0]} of {total} of {_SPLIT.sub('', pieces[0])}: choose another")


def _vision_tower(repo: str, names: Sequence[str], text: str) -> str:
    """The mmproj file for a text model: one in its own folder before others, then by precision."""
    towers = [n for n in names if n.lower().endswith(".gguf") and "mmproj" in PurePosixPath(n).name.lower()]
    if not towers:
        raise ValueError(f"{repo!r} has no mmproj*.gguf, so no vision tower: choose a repository that has one")
    folder = PurePosixPath(text).parent

    def rank(name: str) -> tuple[bool, int, str]:
        precision = next((i for i, p in enumerate(PRECISIONS) if _has_word(PurePosixPath(name).name, p)), 99)
        return PurePosixPath(name).parent != folder, precision, name

    return min(towers, key=rank)
