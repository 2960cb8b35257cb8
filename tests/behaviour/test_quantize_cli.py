"""`qwenvl quantize`: the bundled model in a folder of packed weights, as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path

import pytest

from qwenvl.checkpoint.hub import demo_folder
from qwenvl.demo import lost
from qwenvl.demo.samples import PICTURES

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "qwenvl")
THREE = str(PICTURES / "three-shapes.png")

pytestmark = pytest.mark.skipif(
    not (demo_folder() / "model.safetensors").is_file(), reason="this checkout has no bundled checkpoint"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "int4"
    done = run("quantize", "demo", "--to", "int4", "--out", str(folder), "--check", "10", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert json.loads((folder / "quantize-report.json").read_text()) == {
        name: value for name, value in report.items() if name != "folder"
    }
    assert report["bytes_after"] < 0.5 * report["bytes_before"]
    found = report["lost"]
    assert found["answers"] == 10
    assert 0 < found["mean_divergence"] < 0.02
    assert found["worst_divergence"] >= found["mean_divergence"]
    assert found["same_likeliest_token"] > 0.95
    assert found["same_answers"] <= found["same_meanings"] <= 10
    return folder


@pytest.mark.feature(4)
def test_the_folder_answers(packed: Path) -> None:
    done = run("ask", THREE, "Describe this image.", "--model", str(packed))
    assert all(name in done.stdout for name in ("red circle", "blue square", "green triangle")), done.stderr


def test_what_is_refused(packed: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    refusals = {
        f"{packed} is quantized already (qwenvl)": ("quantize", str(packed), "--to", "int8", "--out", out),
        f"{packed} is there already": ("quantize", "demo", "--to", "int4", "--out", str(packed)),
        "--group 48": ("quantize", "demo", "--to", "int4", "--out", out, "--group", "48"),
        "--keep arms is not known": ("quantize", "demo", "--to", "int4", "--out", out, "--keep", "arms"),
        "--question is about pictures": ("quantize", "demo", "--to", "int4", "--out", out, "--question", "Why?"),
        "has no pictures or videos": ("quantize", "demo", "--to", "int4", "--out", out, "--calibrate", str(tmp_path)),
    }
    for message, arguments in refusals.items():
        done = run(*arguments)
        assert done.returncode == 2, arguments
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not Path(out).exists()


def test_parts_and_groups(tmp_path: Path) -> None:
    options = ("--group", "64", "--keep", "tower", "--keep", "head", "--no-check", "--max-shard-size", "1MB")
    done = run("quantize", "demo", "--to", "int8", "--out", str(tmp_path / "out"), *options)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert {row["group"] for row in said["packed"]} == {64}
    assert all("language_model.layers" in row["names"] for row in said["packed"])
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert "42 linears packed" in done.stdout


def test_the_text_can_be_left(tmp_path: Path) -> None:
    done = run("quantize", "demo", "--to", "int4", "--out", str(tmp_path / "out"), "--keep", "text", "--no-check")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert not any("language_model.layers" in row["names"] for row in said["packed"])


@pytest.mark.slow
def test_calibration_loses_less(tmp_path: Path) -> None:
    plain, calibrated = (
        json.loads(run("quantize", "demo", "--to", "int4", "--out", str(tmp_path / name), "--check", "40", "--json",
                       *more).stdout)
        for name, more in (("plain", ()), ("calibrated", ("--calibrate", str(PICTURES))))
    )  # fmt: skip
    assert calibrated["bytes_after"] == plain["bytes_after"]
    assert calibrated["calibration"]["samples"] >= 8
    assert calibrated["lost"]["mean_divergence"] < 0.8 * plain["lost"]["mean_divergence"]


def test_questions_go_round() -> None:
    asked = lost.about(["a", "b", "c"], ["x", "y"], 10)
    assert [(one.media[0], one.question) for one in asked] == [
        ("a", "x"), ("b", "y"), ("c", "x"), ("a", "y"), ("b", "x"), ("c", "y"),
    ]  # fmt: skip
    assert lost.about(["a", "b", "c"], ["x", "y"], 2) == asked[:2]
