"""Our model and transformers' with the same random weights: tiny, but with several windows, ragged borders and
grouped heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwenvl.config import config_from_dict
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

transformers = pytest.importorskip("transformers")

FAMILIES = ["qwen2_5_vl", "qwen2_vl"]
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
IMAGES = torch.tensor([[1, 18, 10], [1, 8, 8], [1, 4, 26]])  # ragged windows, one full window, wide
VIDEOS = torch.tensor([[3, 10, 12]])


def build(family: str, tied: bool = False, attn: str = "sdpa", **changes: Any) -> tuple[Any, Any]:
    """(our model, the oracle) with the same random weights; `changes` to the text configuration."""
    vision = VISION_25 if family == "qwen2_5_vl" else VISION_2
    data = {**TEXT, "model_type": family, "tie_word_embeddings": tied, "vision_config": vision, **changes}
    torch.manual_seed(0)
    if family == "qwen2_5_vl":
        oracle = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**data))
        ours: Any = Qwen2_5_VLForConditionalGeneration(config_from_dict(data), attn_implementation=attn)
    else:
        oracle = transformers.Qwen2VLForConditionalGeneration(transformers.Qwen2VLConfig(**data))
        ours = Qwen2VLForConditionalGeneration(config_from_dict(data), attn_implementation=attn)
    for name, parameter in oracle.named_parameters():
        norm = "norm" in name or "ln_q" in name
        torch.nn.init.normal_(parameter, mean=1.0 if norm and name.endswith("weight") else 0.0, std=0.15)
    oracle.set_attn_implementation("eager")
    ours.load_state_dict(oracle.state_dict())
    return ours.eval(), oracle.eval()


def item(token: int, grid: torch.Tensor) -> list[int]:
    """The tokens of a picture or video."""
    return [START, *[token] * int(grid.prod() // 4), END]


def batch(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), left-padded."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


def prompts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, mask, pixels): a row with two pictures, a row with one, a row of text."""
    first, second, third = (item(IMAGE, grid) for grid in IMAGES)
    ids, mask = batch([[3, 4, *first, 5, 6, 7, *second, 8], [9, *third, 10, 11], [12, 13, 14, 15, 16]])
    torch.manual_seed(1)
    return ids, mask, torch.randn(int(IMAGES.prod(-1).sum()), 1176)


def pictures() -> dict[str, torch.Tensor]:
    """prompts() by the documented names."""
    ids, mask, pixels = prompts()
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "image_grid_thw": IMAGES}


def mixed() -> dict[str, torch.Tensor]:
    """A row with a picture and a video, a row of text, a row with a picture."""
    images = IMAGES[1:]
    ids, mask = batch(
        [[3, *item(IMAGE, images[0]), 5, *item(VIDEO, VIDEOS[0]), 8, 9], [12, 13, 14], [4, *item(IMAGE, images[1]), 7]]
    )
    torch.manual_seed(1)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.randn(int(images.prod(-1).sum()), 1176),
        "image_grid_thw": images,
        "pixel_values_videos": torch.randn(int(VIDEOS.prod(-1).sum()), 1176),
        "video_grid_thw": VIDEOS,
    }


def types(ids: torch.Tensor) -> torch.Tensor:
    """mm_token_type_ids, which the oracle needs to see pictures at all."""
    return (ids == IMAGE).long() + 2 * (ids == VIDEO).long()


def relative(ours: torch.Tensor, oracle: torch.Tensor) -> float:
    """The largest difference, in units of the oracle's largest value."""
    return float((ours - oracle).abs().max() / oracle.abs().max())
