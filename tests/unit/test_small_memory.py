"""Loading and answering under a limit of memory, in a control group."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qwenvl.bench.checkpoint import checkpoint

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.feature(25)
def test_a_slice_in_int4_runs_in_half_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2.2 GB of bfloat16, packed while it is loaded, in a group of 1.5 GiB. One of 0.1 GiB holds not even torch."""
    monkeypatch.syspath_prepend(BENCH)
    small_memory = pytest.importorskip("small_memory")
    if sys.platform != "linux":
        pytest.skip("needs control groups")
    try:
        with small_memory.group(2**30):
            pass
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    folder = checkpoint("3b-slice", tmp_path)
    options = ["--quantize", "int4", "--tokens", "3"]
    done = small_memory.measure(folder, 3 * 2**29, options)
    assert not done["killed"]
    assert done["tokens"] == 3
    assert done["ask"]["own"] < 3 * 2**29
    assert small_memory.measure(folder, 100 * 2**20, options)["killed"]
