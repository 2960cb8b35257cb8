"""The bundled model in every format, through the same verbs: asked, told about, planned, examined, quantized."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf_writer import convert
from packers import layouts, save_published

from qwenvl.checkpoint import load_model, save_model
from qwenvl.checkpoint.hub import demo_folder
from qwenvl.demo.samples import PICTURES

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "qwenvl")
PICTURE = str(PICTURES / "three-shapes.png")
THREE = ("red circle", "blue square", "green triangle")
PARAMETERS = 3_930_816

pytestmark = [
    pytest.mark.skipif(
        not (demo_folder() / "model.safetensors").is_file(), reason="this checkout has no bundled checkpoint"
    )
]


def qwenvl(*arguments: object, code: int = 0) -> str:
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout if code == 0 else done.stderr


def published(folder: Path) -> Path:
    """The bundled checkpoint with the names of tensors that published ones have."""
    shutil.copytree(demo_folder(), folder)
    save_model(load_model(demo_folder()), folder, layout="original")
    return folder


def in_integers(folder: Path, layout: str) -> Path:
    """The same in a layout of others: every linear of the text layers in 8 bits."""
    shutil.copytree(demo_folder(), folder)
    save_published(load_model(demo_folder()), folder, layouts(group=64)[layout], dtype=torch.bfloat16)
    return folder


def gguf(folder: Path) -> Path:
    source = published(folder / "source")
    pair = convert(source, lambda name: "F16" if "down" in name or "embd" in name else "Q8_0")
    pair.write(folder)
    return next(path for path in folder.glob("*.gguf") if "mmproj" not in path.name)


def plain_gguf(folder: Path) -> Path:
    convert(published(folder / "source"), "BF16", tower_kind="BF16").write(folder)
    return next(path for path in folder.glob("*.gguf") if "mmproj" not in path.name)


def packed(folder: Path) -> Path:
    qwenvl("quantize", "demo", "--to", "int8", "--out", folder, "--no-check")
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QWENVL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.feature(21)
@pytest.mark.parametrize(
    "make", [gguf, lambda folder: in_integers(folder, "gptq-int8"), packed], ids=["gguf", "gptq-int8", "packed"]
)
def test_every_format_through_every_verb(make: Callable[[Path], Path], tmp_path: Path) -> None:
    model = make(tmp_path / "model")
    answer = qwenvl("ask", "--model", model, PICTURE, "Describe this image.", "--max-pixels", 112896)
    assert all(name in answer for name in THREE)
    assert json.loads(qwenvl("info", model, "--json"))["parameters"] == PARAMETERS
    plan = json.loads(qwenvl("plan", model, PICTURE, "--max-pixels", 112896, "--json"))
    assert plan["items"][0]["tokens"] == 80
    checks = {
        one["check"]: one for one in json.loads(qwenvl("doctor", model, "--json"))["findings"]
    }  # exit code 0: no fault
    assert checks["values"]["verdict"] == checks["scales"]["verdict"] == "ok"
    refused = qwenvl("quantize", model, "--to", "int4", "--out", tmp_path / "again", code=2)
    assert "is quantized already" in refused
    assert "is quantized already" in qwenvl("ask", "-m", model, PICTURE, "Hi", "--quantize", "int4", code=2)


def test_a_plain_pair_is_quantized_into_a_folder_of_its_own(tmp_path: Path) -> None:
    pair = plain_gguf(tmp_path / "pair")
    qwenvl("quantize", pair, "--to", "int8", "--out", tmp_path / "int8", "--no-check")
    shutil.rmtree(tmp_path / "pair")
    answer = qwenvl("ask", "--model", tmp_path / "int8", PICTURE, "Describe this image.", "--max-pixels", 112896)
    assert all(name in answer for name in THREE)
