"""The documented forward(): dtypes, options, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwenvl.config import config_from_dict
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration
from qwenvl.types import PackedBatch, SeqInfo

IMAGE = 60
CONFIG: dict[str, Any] = {
    "model_type": "qwen2_5_vl", "vocab_size": 64, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 1000.0, "tie_word_embeddings": True,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}, "image_token_id": IMAGE, "video_token_id": 61,
    "vision_start_token_id": 58, "vision_end_token_id": 59,
    "vision_config": {
        "depth": 2, "hidden_size": 32, "intermediate_size": 44, "num_heads": 2, "patch_size": 14, "window_size": 112,
        "out_hidden_size": 48, "fullatt_block_indexes": [1], "tokens_per_second": 2,
    },
}  # fmt: skip
GRID = torch.tensor([[1, 10, 6]])
IDS = torch.tensor([[3, 58, *[IMAGE] * 15, 59, 4, 5]])


@pytest.fixture
def model() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config_from_dict(CONFIG)).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(60, 1176, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@torch.no_grad()
def test_half_precisions_stay_near_float32(
    model: Qwen2_5_VLForConditionalGeneration, pixels: torch.Tensor, dtype: torch.dtype, bound: float
) -> None:
    exact = model(IDS, pixel_values=pixels, image_grid_thw=GRID).logits
    half = model.to(dtype)(IDS, pixel_values=pixels, image_grid_thw=GRID).logits
    assert model.dtype == dtype
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < bound * exact.abs().max()


@pytest.mark.feature(37)
@torch.no_grad()
def test_logits_to_keep(model: Qwen2_5_VLForConditionalGeneration, pixels: torch.Tensor) -> None:
    inputs = {"pixel_values": pixels, "image_grid_thw": GRID}
    whole = model(IDS, **inputs).logits
    torch.testing.assert_close(model(IDS, logits_to_keep=2, **inputs).logits, whole[:, -2:])
    chosen = torch.tensor([0, 7])
    torch.testing.assert_close(model(IDS, logits_to_keep=chosen, **inputs).logits, whole[:, chosen])


@pytest.mark.feature(35, 39)
@torch.no_grad()
def test_tuple_and_fields(model: Qwen2_5_VLForConditionalGeneration, pixels: torch.Tensor) -> None:
    output = model(IDS, labels=IDS, pixel_values=pixels, image_grid_thw=GRID)
    as_tuple = model(IDS, labels=IDS, pixel_values=pixels, image_grid_thw=GRID, return_dict=False)
    assert torch.equal(output.loss, as_tuple[0])
    assert torch.equal(output["logits"], as_tuple[1])
    assert output.rope_deltas.tolist() == [[2 + 5 + 3 - IDS.shape[1]]]  # 2 of text, 5 rows high, 3 of text


@pytest.mark.feature(27)
@torch.no_grad()
def test_right_and_left_padding_agree(model: Qwen2_5_VLForConditionalGeneration) -> None:
    row = torch.tensor([5, 6, 7])
    for left in (True, False):
        pad = torch.zeros(4, dtype=torch.long)
        ids = torch.cat([pad, row] if left else [row, pad])[None]
        mask = torch.cat([pad, torch.ones_like(row)] if left else [torch.ones_like(row), pad])[None]
        logits = model(ids, mask).logits
        torch.testing.assert_close(logits[mask.bool()], model(row[None]).logits[0])
        assert not logits[~mask.bool()].any()


def test_tied_head_is_one_tensor(model: Qwen2_5_VLForConditionalGeneration) -> None:
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


@torch.no_grad()
def test_run_gives_only_the_rows_asked_for(model: Qwen2_5_VLForConditionalGeneration) -> None:
    ids = torch.tensor([5, 6, 7, 8, 9])
    positions = torch.tensor([[0, 1, 2, 0, 1]] * 3)
    batch = PackedBatch(ids, positions, SeqInfo.from_lengths([3, 2]), logits_index=torch.tensor([2, 4]))
    rows = model.run(batch)
    torch.testing.assert_close(rows[0], model(ids[None, :3]).logits[0, -1])
    torch.testing.assert_close(rows[1], model(ids[None, 3:]).logits[0, -1])


@pytest.mark.feature(32, 34)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input_ids": None}, "input_ids is None"),
        ({"input_ids": IDS[0]}, "expected .batch, length."),
        ({"attention_mask": torch.zeros_like(IDS)}, "no token among the 1 x 20 new columns"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask has shape .1, 3.: expected .1, 20., one value a token"),
        ({"inputs_embeds": torch.zeros(1, 4, 48)}, "inputs_embeds has shape"),
        ({"image_grid_thw": None}, "given without image_grid_thw"),
        ({"pixel_values": None}, "given without pixel_values"),
        (
            {"image_grid_thw": torch.tensor([[1, 8, 6]])},
            "15 placeholder tokens, but rows 0 to 1 .exclusive. of image_grid_thw account for 12",
        ),
        (
            {"image_grid_thw": torch.tensor([[1, 10, 6], [1, 2, 2]])},
            "has 2 rows, but the prompts have placeholders for 1",
        ),
        ({"pixel_values": torch.zeros(59, 1176)}, "need 60 rows"),
    ],
)
def test_what_does_not_agree_is_refused(
    model: Qwen2_5_VLForConditionalGeneration, pixels: torch.Tensor, change: dict[str, Any], said: str
) -> None:
    inputs: dict[str, Any] = {"input_ids": IDS, "pixel_values": pixels, "image_grid_thw": GRID}
    with pytest.raises(ValueError, match=said):
        model(**{**inputs, **change})
