"""How the bundled model is trained: its configuration, its processor, and the trainer that joins lessons and losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from qwenvl.config import Qwen2_5_VLConfig
from qwenvl.demo.clips import CLIP_MAX_PIXELS, CLIP_MIN_PIXELS
from qwenvl.demo.lessons import World
from qwenvl.demo.looking import Looking
from qwenvl.demo.vocabulary import corpus, tokenizer_config, train_tokenizer
from qwenvl.demo.world import MAX_PIXELS, MIN_PIXELS
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration
from qwenvl.processing import (
    ChatTemplate,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Tokenizer,
)
from qwenvl.training.data import Encoder
from qwenvl.training.trainer import Trainer, TrainSettings

SENTENCES = 20_000  # from which the vocabulary is learned

TEXT = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "max_window_layers": 8, "rms_norm_eps": 1e-6,
    "rope_theta": 1000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 6, 16]}, "tie_word_embeddings": True,
    "use_sliding_window": False, "initializer_range": 0.03,
}  # fmt: skip
VISION = {
    "depth": 4, "hidden_size": 128, "intermediate_size": 344, "num_heads": 4, "in_channels": 3, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112,
    "out_hidden_size": 192, "fullatt_block_indexes": [1, 3], "hidden_act": "silu", "initializer_range": 0.03,
}  # fmt: skip


def demo_config(tokenizer: Tokenizer) -> Qwen2_5_VLConfig:
    """Config of the bundled model for its vocabulary."""
    name = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        vision_config=VISION,
        image_token_id=name("<|image_pad|>"),
        video_token_id=name("<|video_pad|>"),
        vision_start_token_id=name("<|vision_start|>"),
        vision_end_token_id=name("<|vision_end|>"),
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        torch_dtype="bfloat16",
    )


def demo_processor() -> Qwen2_5_VLProcessor:
    """The processor of the bundled model: its limits, and a vocabulary learned from the world's own sentences."""
    backend = train_tokenizer(corpus(np.random.default_rng(0), SENTENCES))
    template = ChatTemplate()
    tokenizer = Tokenizer(backend, tokenizer_config(backend, template.text))
    pictures = Qwen2VLImageProcessor(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    videos = Qwen2VLVideoProcessor(min_pixels=CLIP_MIN_PIXELS, max_pixels=CLIP_MAX_PIXELS, max_frames=12)
    return Qwen2_5_VLProcessor(pictures, tokenizer, videos, template)


def demo_trainer(settings: TrainSettings, folder: Path, seed: int) -> Trainer:
    """The trainer of `qwenvl train demo`: everything from scratch, or from the state in `folder`."""
    processor = demo_processor()
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(demo_config(processor.tokenizer), attn_implementation="eager")
    eos, pad = processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id
    model.generation_config = {"do_sample": False, "eos_token_id": eos, "pad_token_id": pad, "bos_token_id": pad}
    return Trainer(
        model, processor, World(Encoder(processor), seed), settings, folder, Looking(model, model.config.text_config)
    )
