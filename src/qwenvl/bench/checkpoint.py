"""Checkpoints of the real shapes with random weights, in the published file layout, so that every peer loads them.

"3b-slice": layers, widths and vocabulary of Qwen2.5-VL-3B, 8 of its 36 text layers and 8 of its 32 vision layers, of
which the last attends to whole frames; bfloat16, 2.2 GB. "300m": the same in smaller, 0.65 GB. "tiny": for tests. Only
times mean something here.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qwenvl.bench.vocabulary import BASE, full_tokenizer
from qwenvl.bench.workload import FOLLOW_UP, PROMPT
from qwenvl.checkpoint.names import HEAD, file_key
from qwenvl.config import Qwen2_5_VLConfig
from qwenvl.demo.vocabulary import ADDED_TOKENS, SYSTEM_PROMPT, save_tokenizer
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration
from qwenvl.processing import ChatTemplate, Qwen2VLImageProcessor

STD = 0.02
MARKER = "bench.json"  # written last: a folder with it is whole
VERSION = 1


@dataclass(frozen=True)
class Size:
    """Shapes that a checkpoint is made of. base: ids before the added tokens; vocabulary: rows of the embedding."""

    text: dict[str, Any]
    vision: dict[str, Any]
    base: int
    vocabulary: int


SIZES = {
    "3b-slice": Size(
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 8, "num_attention_heads": 16,
         "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        {"hidden_size": 1280, "intermediate_size": 3420, "depth": 8, "num_heads": 16, "out_hidden_size": 2048,
         "fullatt_block_indexes": [7]},
        BASE, 151936,
    ),
    "300m": Size(
        {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 10, "num_attention_heads": 8,
         "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        {"hidden_size": 640, "intermediate_size": 1712, "depth": 10, "num_heads": 8, "out_hidden_size": 1024,
         "fullatt_block_indexes": [4, 9]},
        BASE, 151936,
    ),
    "tiny": Size(
        {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
        {"hidden_size": 32, "intermediate_size": 44, "depth": 2, "num_heads": 2, "out_hidden_size": 64,
         "fullatt_block_indexes": [1]},
        2000, 2048,
    ),
}  # fmt: skip


def checkpoint(name: str, folder: Path) -> Path:
    """The folder of a size's checkpoint below `folder`, made when it is not there. ValueError for an unknown name."""
    if name not in SIZES:
        raise ValueError(f"--size {name} is not known: expected one of {', '.join(SIZES)}")
    target = folder / f"{name}-{VERSION}"
    if not (target / MARKER).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            build(SIZES[name], Path(part) / "made")
            os.replace(Path(part) / "made", target)
    return target


def build(size: Size, folder: Path, seed: int = 0) -> None:
    """Write a checkpoint of this size into `folder`; the same bytes for the same seed."""
    folder.mkdir(parents=True)
    words = list(dict.fromkeys(f"system user assistant {SYSTEM_PROMPT} {PROMPT} {FOLLOW_UP}".split()))
    tokenizer = full_tokenizer([word.strip(",.:?") for word in words], size.base)
    template = ChatTemplate().text
    save_tokenizer(tokenizer, folder, template)
    _write(folder / "chat_template.json", {"chat_template": template})
    config = _config(size)
    config.save_pretrained(folder)
    ends = [size.base + 2, size.base]
    _write(
        folder / "generation_config.json",
        {"bos_token_id": size.base, "pad_token_id": size.base, "eos_token_id": ends, "do_sample": False},
    )
    Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12845056).save_pretrained(folder)
    save_file(_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / MARKER, {"version": VERSION, "seed": seed, "std": STD})


def _config(size: Size) -> Qwen2_5_VLConfig:
    numbers = {text: size.base + i for i, (text, _) in enumerate(ADDED_TOKENS)}
    text = {
        "vocab_size": size.vocabulary, "max_position_embeddings": 128000, "max_window_layers": 70, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "use_sliding_window": False, "sliding_window": 32768, "initializer_range": STD,
        "tie_word_embeddings": True, **size.text,
    }  # fmt: skip
    vision = {
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112,
        "in_channels": 3, "hidden_act": "silu", "initializer_range": STD, **size.vision,
    }  # fmt: skip
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=numbers["<|image_pad|>"],
        video_token_id=numbers["<|video_pad|>"],
        vision_start_token_id=numbers["<|vision_start|>"],
        vision_end_token_id=numbers["<|vision_end|>"],
        bos_token_id=numbers["<|endoftext|>"],
        eos_token_id=numbers["<|im_end|>"],
        tie_word_embeddings=True,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        torch_dtype="bfloat16",
    )


def _weights(config: Qwen2_5_VLConfig, seed: int) -> dict[str, torch.Tensor]:
    """Matrices and biases normal with STD, norms at one: hidden states of random weights stay of the order of one."""
    with torch.device("meta"):
        shapes = Qwen2_5_VLForConditionalGeneration(config).state_dict()
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        if name == HEAD:
            continue  # tied
        key = file_key(name, "original")
        if "norm" in name or "ln_q" in name:
            made[key] = torch.ones(shape.shape, dtype=torch.bfloat16)
        else:
            made[key] = torch.empty(shape.shape, dtype=torch.bfloat16).normal_(0, STD, generator=draw)
    return made


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
