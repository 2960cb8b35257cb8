"""A random model of either family, small enough for tests of the documented classes."""

from __future__ import annotations

from typing import Any

import torch

from qwenvl.config import config_from_dict
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

FAMILIES = ["qwen2_5_vl", "qwen2_vl"]
IMAGE, VIDEO, START, END = 60, 61, 58, 59
GRID = torch.tensor([[1, 6, 4]])  # 6 tokens, 3 rows of 2
VISION: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "depth": 2, "hidden_size": 32, "intermediate_size": 44, "num_heads": 2, "patch_size": 14, "window_size": 112,
        "out_hidden_size": 48, "fullatt_block_indexes": [1], "tokens_per_second": 2,
    },
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2, "num_heads": 2, "patch_size": 14},
}  # fmt: skip


def tiny_config(family: str = "qwen2_5_vl", **changes: Any) -> Any:
    text = {
        "model_type": family, "vocab_size": 64, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 1000.0, "tie_word_embeddings": True,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}, "initializer_range": 0.2,
        "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END,
    }  # fmt: skip
    return config_from_dict({**text, "vision_config": VISION[family], **changes})


def tiny_model(family: str = "qwen2_5_vl", **changes: Any) -> Any:
    """In eval mode, always with the same weights."""
    torch.manual_seed(0)
    kinds: dict[str, Any] = {
        "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
        "qwen2_vl": Qwen2VLForConditionalGeneration,
    }
    return kinds[family](tiny_config(family, **changes)).eval()


def padded_batch() -> dict[str, torch.Tensor]:
    """A row of text, and a longer one with a picture; padded on the left."""
    long = [3, START, *[IMAGE] * 6, END, 4, 5]
    ids = torch.tensor([[0] * 7 + [7, 8, 9, 10], long])
    mask = torch.tensor([[0] * 7 + [1] * 4, [1] * 11])
    pixels = torch.randn(24, 1176, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "image_grid_thw": GRID}
