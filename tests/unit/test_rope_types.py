"""Rotary scalings by their properties: what stays, what is stretched, and what a request's length decides."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_model

from qwenvl.checkpoint import load_model, save_model
from qwenvl.config import Qwen2_5_VLTextConfig
from qwenvl.model.rope import inverse_frequencies, turn
from qwenvl.model.rope_types import frequencies, packed_rotation

CPU = torch.device("cpu")
SIZE, TRAINED = 16, 64
PARTS = [2, 3, 3]


def config(**scaling: Any) -> Qwen2_5_VLTextConfig:
    """A head of 16 with theta 1000; trained on 64 positions."""
    return Qwen2_5_VLTextConfig(
        hidden_size=4 * SIZE, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1, rope_theta=1000.0,
        max_position_embeddings=TRAINED, rope_scaling={**scaling, "mrope_section": PARTS},
    )  # fmt: skip


def plain() -> torch.Tensor:
    return frequencies(config(type="mrope"), None, CPU)[0]


@pytest.mark.feature(11)
def test_linear_squeezes_positions() -> None:
    """Twice the position with factor 2 is the same turn."""
    at, twice = torch.tensor([[4], [9], [30]]), torch.tensor([[8], [18], [60]])
    for mine, other in zip(
        packed_rotation(twice, config(type="linear", factor=2), [1]),
        packed_rotation(at, config(type="mrope"), [1]),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.feature(11, 78)
def test_yarn_keeps_fast_and_stretches_slow_frequencies() -> None:
    found, scaling = frequencies(config(type="yarn", factor=4), None, CPU)
    turns = TRAINED * plain() / (2 * math.pi)
    assert torch.equal(found[turns < 1][1:], (plain() / 4)[turns < 1][1:])
    assert found[0] == plain()[0]
    assert bool((found <= plain()).all())
    assert scaling == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.feature(11, 78)
def test_scaling_of_cos_and_sin_is_a_temperature() -> None:
    """Products of turned queries and keys grow by its square."""
    positions = torch.tensor([[5, 9], [5, 1], [5, 3]])
    cos, sin = packed_rotation(positions, config(type="yarn", factor=1, attention_factor=1.5), [2])
    other = packed_rotation(positions, config(type="mrope"), [2])
    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, 2.25))
    torch.testing.assert_close(cos, 1.5 * other[0])


@pytest.mark.feature(11)
def test_llama3_bands() -> None:
    scaling = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}
    found, _ = frequencies(config(type="llama3", **scaling), None, CPU)
    turns = TRAINED * plain() / (2 * math.pi)
    assert torch.equal(found[turns > 4], plain()[turns > 4])
    torch.testing.assert_close(found[turns < 1], plain()[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert int(between.sum()) >= 1
    assert bool((found[between] < plain()[between]).all() and (found[between] > plain()[between] / 8).all())


@pytest.mark.feature(11)
def test_longrope_switches_behind_the_trained_length() -> None:
    scaling = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": TRAINED}
    chosen = config(type="longrope", **scaling)
    for length, divisor in ((None, 1), (TRAINED, 1), (TRAINED + 1, 4)):
        torch.testing.assert_close(frequencies(chosen, length, CPU)[0], plain() / divisor)


@pytest.mark.feature(11)
def test_dynamic_grows_with_the_request() -> None:
    chosen = config(type="dynamic", factor=2)
    for length in (None, 1, TRAINED):
        torch.testing.assert_close(frequencies(chosen, length, CPU)[0], plain())
    slower = [float(frequencies(chosen, n * TRAINED, CPU)[0][-1]) for n in (1, 2, 3, 4)]
    assert slower == sorted(slower, reverse=True)
    assert len(set(slower)) == 4
    early = config(type="dynamic", factor=2, original_max_position_embeddings=TRAINED // 2)
    torch.testing.assert_close(frequencies(early, TRAINED, CPU)[0][-1], frequencies(chosen, 2 * TRAINED, CPU)[0][-1])


LONG = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": TRAINED}


@pytest.mark.feature(11)
@pytest.mark.parametrize("scaling", [{"type": "dynamic", "factor": 2}, {"type": "longrope", **LONG}])
def test_a_request_does_not_see_the_length_of_others(scaling: dict[str, Any]) -> None:
    chosen = config(**scaling)
    short, long = torch.arange(5).expand(3, -1), torch.arange(100).expand(3, -1)
    packed = torch.cat((short, long, torch.empty(3, 0, dtype=torch.long)), 1)
    for both, one, other in zip(
        packed_rotation(packed, chosen, [5, 100, 0]),
        packed_rotation(short, chosen, [5]),
        packed_rotation(long, chosen, [100]),
        strict=True,
    ):
        torch.testing.assert_close(both, torch.cat((one, other)))
    plain_cos, _ = turn(short, inverse_frequencies(SIZE, 1000.0, short.device), (2, 3, 3))
    torch.testing.assert_close(packed_rotation(packed, chosen, [5, 100, 0])[0][:5], plain_cos)


@pytest.mark.feature(11)
@pytest.mark.parametrize("scaling", [{"type": "dynamic", "factor": 2}, {"type": "longrope", **LONG}])
def test_a_prompt_in_chunks_turns_as_the_whole(scaling: dict[str, Any]) -> None:
    chosen, positions = config(**scaling), torch.arange(100).expand(3, -1)
    whole = packed_rotation(positions, chosen, [100])
    chunks = [packed_rotation(positions[:, a : a + 50], chosen, [50], reach=[100]) for a in (0, 50)]
    for i in (0, 1):
        torch.testing.assert_close(torch.cat([chunk[i] for chunk in chunks]), whole[i])
    alone = packed_rotation(positions[:, :50], chosen, [50])
    assert not torch.allclose(alone[0], whole[0][:50])


@pytest.mark.feature(78)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_yarn_block_in_a_saved_checkpoint_runs(family: str, tmp_path: Path) -> None:
    """config.json edited by hand as the README says: the model loads, attends anew, and answers past its length."""
    save_model(tiny_model(family, max_position_embeddings=32), tmp_path)
    ids = torch.randint(3, 50, (1, 60), generator=torch.Generator().manual_seed(0))
    before = load_model(tmp_path)(ids).logits
    path = tmp_path / "config.json"
    block = {"type": "yarn", "mrope_section": [2, 2, 2], "factor": 4, "original_max_position_embeddings": 32}
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_scaling": block}))
    model = load_model(tmp_path)
    assert model.config.context_length == 128
    after = model(ids).logits
    assert (after - before).abs().max() > 0.01 * before.abs().max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = model.generate(ids, max_new_tokens=4, eos_token_id=[63])
    assert answer[0, 60] == model(ids, logits_to_keep=1).logits[0, 0, :58].argmax()
