"""Rotary scalings against transformers: frequencies and attention scaling of every type, then logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import FAMILIES, IMAGE, START, VIDEO, batch, build, item, mixed, relative, transformers, types
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qwenvl.config import Qwen2_5_VLTextConfig
from qwenvl.model.rope import _grid_positions
from qwenvl.model.rope_types import frequencies

CPU = torch.device("cpu")
README = {
    "type": "yarn",
    "mrope_section": [16, 24, 24],
    "factor": 4,
    "original_max_position_embeddings": 32768,
}
SHORT = [1.0 + 0.01 * i for i in range(64)]
LONG = [1.5 + 0.5 * i for i in range(64)]
SCALINGS: dict[str, dict[str, Any]] = {
    "mrope": {"type": "mrope"},
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn of the README": README,
    "yarn": {"rope_type": "yarn", "factor": 8.0},
    "yarn, betas": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    "yarn, attention": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25},
    "yarn, mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.8, "mscale_all_dim": 1.5},
    "longrope": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG},
    "longrope, grown": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 4096,
    },
    "longrope, factor": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 8.0},
    "longrope, attention": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "attention_factor": 1.5,
        "original_max_position_embeddings": 4096,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


@pytest.mark.feature(11, 78)
@pytest.mark.parametrize("length", [None, 100, 5000, 40000, 200000])
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_frequencies(scaling: dict[str, Any], length: int | None) -> None:
    ours = Qwen2_5_VLTextConfig(rope_scaling=scaling)
    theirs = transformers.Qwen2_5_VLTextConfig(rope_scaling=dict(scaling))
    kind = theirs.rope_parameters["rope_type"]
    if kind == "default":
        rotary = transformers.models.qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VLRotaryEmbedding
        expected, factor = rotary.compute_default_rope_parameters(theirs)
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[kind](theirs, CPU, seq_len=length)
    found, found_factor = frequencies(ours, length, CPU)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    assert found_factor == pytest.approx(factor, rel=1e-12)


def small(scaling: dict[str, Any]) -> dict[str, Any]:
    """The same kind of scaling for a head of 6 frequencies with 32 trained positions."""
    out = {**scaling, "mrope_section": [2, 2, 2]}
    if "short_factor" in out:
        out |= {"short_factor": SHORT[:6], "long_factor": LONG[:6]}
    if out.get("rope_type", out.get("type")) in ("yarn", "longrope", "llama3"):
        out["original_max_position_embeddings"] = 32
    return out


@pytest.mark.feature(11, 78)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scaling", [v for k, v in SCALINGS.items() if k != "default"], ids=lambda s: str(s)[:40])
@torch.no_grad()
def test_logits(family: str, scaling: dict[str, Any]) -> None:
    """Pictures, a video and text in one batch, each row beyond the trained 32 positions or all within them."""
    given = small(scaling)
    ours, oracle = build(family, rope_scaling=given, max_position_embeddings=96)
    plain, _ = build(family)
    inputs: dict[str, Any] = mixed()
    positions, _ = ours.get_rope_index(
        inputs["input_ids"], inputs["image_grid_thw"], inputs["video_grid_thw"], None, inputs["attention_mask"]
    )
    real = inputs["attention_mask"].bool()
    if given.get("rope_type") in ("dynamic", "longrope"):  # the oracle knows one length for the whole batch
        inputs = {"input_ids": torch.randint(3, 50, (2, 120)), "attention_mask": torch.ones(2, 120)}
        positions = torch.arange(120).expand(3, 2, 120)
        real = inputs["attention_mask"].bool()
    logits = ours(**inputs).logits
    expected = oracle(**inputs, position_ids=positions).logits
    assert relative(logits[real], expected[real]) < 1e-4
    assert given.get("type") == "mrope" or relative(logits[real], plain(**inputs).logits[real]) > 1e-3


@pytest.mark.feature(11)
@pytest.mark.parametrize("kind", ["dynamic", "longrope, grown"])
@torch.no_grad()
def test_each_row_has_its_own_length(kind: str) -> None:
    """A short row beside a long one comes out as alone; the oracle, asked row by row, agrees."""
    scaling = small(SCALINGS[kind])
    ours, oracle = build("qwen2_5_vl", rope_scaling=scaling, max_position_embeddings=40)
    torch.manual_seed(2)
    rows = [torch.randint(3, 50, (n,)).tolist() for n in (70, 12, 41)]
    ids, mask = batch(rows)
    together = ours(ids, mask).logits
    for i in (1, 2, 0):  # the oracle remembers the longest it has seen
        alone = torch.tensor([rows[i]])
        assert relative(together[i][mask[i].bool()], oracle(alone).logits[0]) < 1e-4
        assert relative(together[i][mask[i].bool()], ours(alone).logits[0]) < 1e-5


@pytest.mark.feature(11, 78)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_decoding_with_yarn(family: str) -> None:
    """Prompt and steps through the cache equal one forward, here and in the oracle."""
    ours, oracle = build(family, rope_scaling=small(README), max_position_embeddings=32)
    row = [3, START, *item(IMAGE, torch.tensor([1, 4, 6]))[1:], *range(3, 43)]
    ids = torch.tensor([row])
    torch.manual_seed(3)
    inputs = {"pixel_values": torch.randn(24, 1176), "image_grid_thw": torch.tensor([[1, 4, 6]])}
    whole = ours(ids, **inputs).logits
    expected = oracle(ids, **inputs, mm_token_type_ids=types(ids)).logits
    assert relative(whole, expected) < 1e-4
    done = ours(ids[:, :30], **inputs, use_cache=True)
    for i in range(30, ids.shape[1]):
        done = ours(ids[:, i : i + 1], past_key_values=done.past_key_values, use_cache=True)
        assert relative(done.logits[:, -1], whole[:, i]) < 1e-4


@pytest.mark.feature(28, 36)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seconds", [0.25, 0.5, 1.0, 1.5, 2.0, 8.0])
def test_time_of_a_video_here_and_there(family: str, seconds: float) -> None:
    """Inside a video and before it both agree. Behind it the oracle counts on from the larger side of the grid, we
    from the largest position of all, time included, as the reports and the training code do."""
    ours, oracle = build(family)
    grid = torch.tensor([[4, 4, 6]])
    ids, mask = batch([[3, 4, *item(VIDEO, grid[0]), 8, 9]])
    found, delta = ours.get_rope_index(ids, None, grid, [seconds], mask)
    named: dict[str, Any] = {"mm_token_type_ids": types(ids), "video_grid_thw": grid, "attention_mask": mask}
    if family == "qwen2_5_vl":
        named["second_per_grid_ts"] = torch.tensor([seconds])
    expected, expected_delta = oracle.model.get_rope_index(ids, **named)
    behind = 3 + 24  # two words, the start token and the video: the end token is the first one behind
    assert torch.equal(found[..., :behind], expected[..., :behind])
    last = int(3 * seconds * 2) if family == "qwen2_5_vl" else 3  # the time of the last of 4 steps
    assert found[0, 0, 3:behind].max() == 3 + last
    assert found[:, 0, behind:].tolist() == [[3 + max(last, 2) + n for n in (1, 2, 3)]] * 3
    assert expected[:, 0, behind:].tolist() == [[3 + 2 + n for n in (1, 2, 3)]] * 3
    assert int(delta) == 3 + max(last, 2) + 4 - ids.shape[1]
    assert int(expected_delta) == max(3 + last, 8) + 1 - ids.shape[1]


@pytest.mark.feature(36)
@pytest.mark.parametrize("as_tensor", [True, False])
def test_times_of_many_rates(as_tensor: bool) -> None:
    """768 frames at every rate from 0.1 to 30 a second: the floor falls on the same side."""
    ours, oracle = build("qwen2_5_vl")
    for fps in [n / 10 for n in range(1, 301)]:
        seconds: Any = torch.tensor([2 / fps]) if as_tensor else [2 / fps]
        mine = _grid_positions([384, 2, 2], 2, 2 * float(seconds[0]))
        theirs = oracle.model.get_vision_position_ids(0, torch.tensor([384, 2, 2]), 1, 2, 2 * seconds[0])
        assert torch.equal(mine, theirs), fps
    assert ours.config.vision_config.tokens_per_second == 2
