"""Fixtures of the tests of GGUF files, which several modules share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_writer import FAMILIES, Pair, convert, save_checkpoint


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache, out of the way."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("QWENVL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> dict[str, Path]:
    """A tiny checkpoint of each family in the published layout."""
    folder = tmp_path_factory.mktemp("sources")
    return {family: save_checkpoint(folder / family, checkpoint, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def pairs(sources: dict[str, Path]) -> dict[str, Pair]:
    return {family: convert(source) for family, source in sources.items()}


@pytest.fixture
def file(pairs: dict[str, Pair], tmp_path: Path) -> Path:
    """A text file of Qwen2.5-VL with its tower beside it."""
    return pairs["qwen2_5_vl"].write(tmp_path / "pair")
