"""Rotary fields of the configurations: every spelling and type is read, and written back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_config import nested, published

from qwenvl.config import Qwen2_5_VLConfig, Qwen2VLConfig, config_from_dict, load_config


@pytest.mark.feature(11)
def test_rope_spellings() -> None:
    plain = {"rope_type": "default", "mrope_section": [16, 24, 24]}
    for given in (
        {"type": "mrope", "mrope_section": [16, 24, 24]},
        {"rope_type": "mrope", "mrope_section": (16, 24, 24)},
        {"rope_type": "default", "type": "mrope"},
        {"rope_type": "default", "type": "default", "mrope_section": [16, 24, 24]},
        {"mrope_section": [16, 24, 24]},
    ):
        assert Qwen2_5_VLConfig(rope_scaling=given).rope_scaling == plain
        theta = Qwen2_5_VLConfig(rope_parameters={**given, "rope_theta": 5e5})
        assert (theta.rope_scaling, theta.rope_theta) == (plain, 5e5)
        assert theta.rope_parameters == {**plain, "rope_theta": 5e5}
    yarn = {
        "type": "yarn",
        "mrope_section": [16, 24, 24],
        "factor": 4,
        "original_max_position_embeddings": 32768,
    }
    config = Qwen2_5_VLConfig(rope_scaling=yarn)
    assert (config.rope_type, config.rope_scaling["factor"]) == ("yarn", 4)
    assert config.to_dict()["rope_scaling"] == yarn
    filled = Qwen2_5_VLConfig(rope_scaling={"type": "yarn", "factor": 4}, max_position_embeddings=4096)
    assert filled.rope_scaling["original_max_position_embeddings"] == 4096
    longrope = {"type": "longrope", "short_factor": [1.0] * 64, "long_factor": (2.0,) * 64, "factor": None}
    assert Qwen2_5_VLConfig(rope_scaling=longrope).rope_type == "longrope"


@pytest.mark.feature(11, 78)
@pytest.mark.parametrize(
    "scaling",
    [
        {"factor": 4.0, "rope_type": "linear"},
        {"factor": 4.0, "rope_type": "dynamic", "partial_rotary_factor": 1.0},
        {"factor": 4.0, "rope_type": "dynamic", "original_max_position_embeddings": 1024},
        {"factor": 4.0, "rope_type": "yarn", "beta_fast": 32, "beta_slow": 1, "mscale": 1, "mscale_all_dim": 0.5},
        {"factor": 4.0, "rope_type": "yarn", "attention_factor": 1.2, "truncate": False},
        {"rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
    ids=str,
)
def test_every_rope_type_is_read_and_written(scaling: dict[str, Any], tmp_path: Path) -> None:
    config = Qwen2VLConfig(rope_scaling=scaling)
    config.save_pretrained(tmp_path)
    assert load_config(tmp_path) == config
    assert Qwen2VLConfig(rope_parameters={**scaling, "rope_theta": 1e6}) == config
    kept = {key: value for key, value in scaling.items() if key != "partial_rotary_factor"}
    assert {key: config.rope_parameters[key] for key in kept} == kept


@pytest.mark.feature(78)
@pytest.mark.parametrize("name", ["qwen2_vl 7B", "qwen2_5_vl 7B"])
@pytest.mark.parametrize("place", ["in rope_scaling", "beside the other keys", "beside, nested"])
def test_the_yarn_block_of_the_readme(name: str, place: str) -> None:
    """Its lines as the README shows them, wherever in config.json they were put."""
    block = {"type": "yarn", "mrope_section": [16, 24, 24], "factor": 4, "original_max_position_embeddings": 32768}
    values = nested(name) if place.endswith("nested") else published(name)
    values = {**values, "rope_scaling": block} if place == "in rope_scaling" else {**values, **block}
    config = config_from_dict(values)
    assert config.rope_scaling == {"rope_type": "yarn", **{key: block[key] for key in block if key != "type"}}
    assert config.context_length == 131072
    assert config.extra.get("type") is None
    assert config_from_dict(config.to_dict()) == config


@pytest.mark.feature(77)
def test_a_longer_context_by_its_number() -> None:
    config = config_from_dict(published("qwen2_vl 2B"))
    assert config.context_length == 32768
    longer = config.replace(max_position_embeddings=65536)
    assert (longer.context_length, longer.rope_scaling) == (65536, config.rope_scaling)
    assert config_from_dict({**published("qwen2_vl 2B"), "max_position_embeddings": 65536}) == longer
