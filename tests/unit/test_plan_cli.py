"""`qwenvl plan`: the table, JSON, and mistakes (speeds are given, so that nothing is measured)."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwenvl.cli.app import app
from qwenvl.demo.samples import PICTURES
from qwenvl.planning import calibration

PICTURE = str(PICTURES / "three-shapes.png")
SPEEDS = calibration.Speeds(**{field.name: 1e-6 for field in fields(calibration.Speeds)})


@pytest.fixture(autouse=True)
def given_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    asked: list[bool] = []

    def speeds(config: object, weights: object, anew: bool = False) -> calibration.Speeds:
        asked.append(anew)
        return SPEEDS

    monkeypatch.setenv("QWENVL_CACHE", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(calibration, "_measured_base", lambda: 250_000_000)
    monkeypatch.setattr(calibration, "speeds", speeds)
    return asked


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.feature(24)
def test_the_table(given_speeds: list[bool]) -> None:
    out = run("demo", PICTURE, "--question", "How many?", "--max-new-tokens", "7", "--memory", "4GB")
    assert "three-shapes.png" in out
    assert "80 tokens" in out
    assert "answer up to 7" in out
    assert "of 4.0 GB: fits" in out
    assert "first token" in out
    assert given_speeds == [False]


def test_json_and_calibrate(given_speeds: list[bool]) -> None:
    told = json.loads(run("demo", PICTURE, "--json", "--calibrate", "--quantize", "int4", "--max-pixels", "40000"))
    assert given_speeds == [True]
    assert told["quantize"] == "int4"
    assert told["items"][0]["tokens"] < 80
    assert told["seconds"]["total"] > 0


def test_what_to_change() -> None:
    out = run("demo", PICTURE, "--memory", "100MB")
    assert "does not fit" in out
    assert "the least is" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--memory", "lots"], "--memory='lots' is not an amount of memory"),
        (["demo", "--quantize", "int2"], "--quantize int2 is not known"),
        (["demo", "--max-pixels", "0"], "--max-pixels 0 is not an area"),
        (["demo", "nothing.png"], "nothing.png"),
        (["no-such-model"], "no-such-model"),
        (["demo", "--max-new-tokens", "0"], "max_new_tokens=0"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises((ValueError, OSError)) as caught:
        CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert message in str(caught.value)
