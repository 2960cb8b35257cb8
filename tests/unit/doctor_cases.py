"""Copies of the bundled model with something wrong in them, for the tests of the doctor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from qwenvl.checkpoint.hub import demo_folder
from qwenvl.doctor import Case, Finding, examine
from qwenvl.doctor.headers import INDEX, SINGLE

LAYER = "model.language_model.layers"
BLOCK = "model.visual.blocks"


def copy_of_the_model(folder: Path) -> Path:
    """The bundled model in a folder of its own, which may be changed."""
    shutil.copytree(demo_folder(), folder, dirs_exist_ok=True)
    return folder


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Save the weights again as `change` leaves them. Names are those of the file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / SINGLE).items()}
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def as_shards(folder: Path, count: int = 3) -> list[Path]:
    """The single file of weights as shards with an index."""
    tensors = load_file(folder / SINGLE)
    names, weight_map = sorted(tensors), {}
    paths = [folder / f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for i, path in enumerate(paths):
        mine = names[i::count]
        save_file({name: tensors[name].clone() for name in mine}, path, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(mine, path.name))
    (folder / SINGLE).unlink()
    size = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}), "utf-8")
    return paths


def exchange(tensors: dict[str, Tensor], one: str, other: str) -> None:
    """Exchange all tensors whose names begin with one and with other."""
    for name in [name for name in tensors if name.startswith(one)]:
        twin = other + name[len(one) :]
        tensors[name], tensors[twin] = tensors[twin], tensors[name]


def named(folder: Path, ending: str) -> str:
    """The one tensor of the file whose name ends so."""
    (found,) = [name for name in load_file(folder / SINGLE) if name.endswith(ending)]
    return found


def findings(folder: Path, names: Iterable[str] | None = None, **options: Any) -> dict[str, Finding]:
    """What the doctor finds in a folder, by check."""
    report = examine(Case(folder, **options), None if names is None else list(names))
    return {finding.check: finding for finding in report.findings}


def finding(folder: Path, name: str, **options: Any) -> Finding:
    return findings(folder, [name], **options)[name]


def assert_fault(found: Finding, *words: str) -> None:
    """It is a fault that names these words and says what to do."""
    assert found.verdict == "fault", found
    assert found.advice
    for word in words:
        assert word in found.found, found.found
