"""bench/gpu.py where there is no GPU: its options, the shape that it measures, and that it refuses in one line."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PATH = Path(__file__).parents[2] / "bench" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("bench_gpu", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_gpu", module)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_and_ends_with_2(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 2
    told = capsys.readouterr()
    assert told.err == "bench/gpu.py needs a CUDA device, and torch finds none: nothing was measured\n"
    assert told.out == ""
    assert not (tmp_path / "gpu.json").exists()


def test_options(gpu: Any) -> None:
    asked = gpu.parsed([])
    assert (asked.rounds, asked.answer, asked.layers, asked.transformers, asked.json) == (5, 128, 28, True, None)
    asked = gpu.parsed(["--rounds", "2", "--answer", "9", "--layers", "4", "--no-transformers", "--json", "a/b.json"])
    assert (asked.rounds, asked.answer, asked.layers, asked.transformers) == (2, 9, 4, False)
    assert asked.json == Path("a/b.json")


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--answer", "-1"], ["--layers", "x"], ["--fast"]])
def test_wrong_options_end_with_2(gpu: Any, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.parsed(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
