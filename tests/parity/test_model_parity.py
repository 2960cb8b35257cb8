"""The model against transformers in float32 on random, non-degenerate configs of both families."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwenvl.config import config_from_dict
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

transformers = pytest.importorskip("transformers")

IMAGE, VIDEO, START, END = 60, 61, 58, 59
TEXT = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
    "rope_theta": 1000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}, "initializer_range": 0.2,
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
VISION_25 = {
    "depth": 4, "hidden_size": 32, "intermediate_size": 44, "num_heads": 2, "in_channels": 3, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112,
    "out_hidden_size": 48, "fullatt_block_indexes": [1, 3], "hidden_act": "silu", "initializer_range": 0.2,
}  # fmt: skip
VISION_2 = {
    "depth": 3, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 3, "num_heads": 2, "in_channels": 3, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "hidden_act": "quick_gelu", "initializer_range": 0.2,
}  # fmt: skip
GRIDS = torch.tensor([[1, 18, 10], [1, 8, 8], [1, 4, 26]])  # ragged windows, one full window, wide


def build(family: str, tied: bool, attn: str = "sdpa") -> tuple[Any, Any]:
    """(our model, the oracle) with the same random weights."""
    vision = VISION_25 if family == "qwen2_5_vl" else VISION_2
    data = {**TEXT, "model_type": family, "tie_word_embeddings": tied, "vision_config": vision}
    torch.manual_seed(0)
    if family == "qwen2_5_vl":
        oracle = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**data))
        ours: Any = Qwen2_5_VLForConditionalGeneration(config_from_dict(data), attn_implementation=attn)
    else:
        oracle = transformers.Qwen2VLForConditionalGeneration(transformers.Qwen2VLConfig(**data))
        ours = Qwen2VLForConditionalGeneration(config_from_dict(data), attn_implementation=attn)
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    oracle.config._attn_implementation = "eager"
    ours.load_state_dict(oracle.state_dict())
    return ours.eval(), oracle.eval()


def prompts(grids: torch.Tensor = GRIDS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, mask, pixels): a row with two pictures, a row with one, a row of text, left-padded."""
    counts = (grids.prod(-1) // 4).tolist()

    def picture(i: int) -> list[int]:
        return [START, *[IMAGE] * counts[i], END]

    rows = [[3, 4, *picture(0), 5, 6, 7, *picture(1), 8], [9, *picture(2), 10, 11], [12, 13, 14, 15, 16]]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
    torch.manual_seed(1)
    return ids, mask, torch.randn(int(grids.prod(-1).sum()), 1176)


def relative(ours: torch.Tensor, oracle: torch.Tensor) -> float:
    return float((ours - oracle).abs().max() / oracle.abs().max())


def oracle_forward(
    oracle: Any, ids: torch.Tensor, mask: torch.Tensor, pixels: torch.Tensor, grids: torch.Tensor
) -> Any:
    types = torch.where(ids == IMAGE, 1, 0)
    return oracle(
        input_ids=ids, attention_mask=mask, pixel_values=pixels, image_grid_thw=grids, mm_token_type_ids=types
    )


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_tower_and_logits(family: str, attn: str) -> None:
    ours, oracle = build(family, tied=False, attn=attn)
    ids, mask, pixels = prompts()
    theirs = oracle.model.visual(pixels, grid_thw=GRIDS)
    theirs = getattr(theirs, "pooler_output", theirs)
    assert relative(ours.encode_vision(pixels, GRIDS), theirs) < 1e-4
    logits = ours(ids, mask, pixel_values=pixels, image_grid_thw=GRIDS).logits
    expected = oracle_forward(oracle, ids, mask, pixels, GRIDS).logits
    real = mask.bool()
    assert relative(logits[real], expected[real]) < 1e-4


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
@torch.no_grad()
def test_position_ids_exact(family: str) -> None:
    ours, oracle = build(family, tied=True)
    ids, mask, _ = prompts()
    positions, deltas = ours._positions(ids, mask.bool(), GRIDS, None, None)
    types = torch.where(ids == IMAGE, 1, 0)
    expected, expected_deltas = oracle.model.get_rope_index(
        ids, image_grid_thw=GRIDS, attention_mask=mask, mm_token_type_ids=types
    )
    assert torch.equal(positions, expected[:, mask.bool()])
    assert torch.equal(deltas, expected_deltas)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
@torch.no_grad()
def test_batch_equals_alone(family: str) -> None:
    ours, _ = build(family, tied=True)
    ids, mask, pixels = prompts()
    together = ours(ids, mask, pixel_values=pixels, image_grid_thw=GRIDS).logits
    split = int(GRIDS[:2].prod(-1).sum())
    alone = [
        ours(ids[0][mask[0].bool()][None], pixel_values=pixels[:split], image_grid_thw=GRIDS[:2]).logits[0],
        ours(ids[1][mask[1].bool()][None], pixel_values=pixels[split:], image_grid_thw=GRIDS[2:]).logits[0],
        ours(ids[2][mask[2].bool()][None]).logits[0],
    ]
    for row, expected in enumerate(alone):
        assert relative(together[row][mask[row].bool()], expected) < 1e-5


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
def test_loss_and_gradients(family: str) -> None:
    ours, oracle = build(family, tied=False)
    ids, mask, pixels = prompts()
    labels = torch.where((mask.cumsum(-1) > 1) & (ids < START), ids, -100)  # nothing predicts the first token
    types = torch.where(ids == IMAGE, 1, 0)
    loss = ours(ids, mask, labels=labels, pixel_values=pixels, image_grid_thw=GRIDS).loss
    expected = oracle(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        pixel_values=pixels,
        image_grid_thw=GRIDS,
        mm_token_type_ids=types,
    ).loss
    assert abs(loss.item() - expected.item()) < 1e-4 * expected.item()
    loss.backward()
    expected.backward()
    theirs = dict(oracle.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        if theirs[name].grad.abs().max() > 1e-6:
            assert relative(parameter.grad, theirs[name].grad) < 1e-3, name
