"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from qwenvl.processing import Qwen2_5_VLProcessor, Tokenizer

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKS = tuple(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad", "vision") for end in ("start", "end"))
PADS = ("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
TAGS = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|repo_name|>")
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAMPLES = (
    "system\nYou are a helpful assistant.",
    "user\nDescribe the picture: where is the red cat, and what's on the table? It's 3 o'clock, isn't it?",
    'assistant\n```json\n[{"bbox_2d": [120, 44, 988, 620], "label": "the red cat"}]\n```',
    "Größe, naïve café, 日本語の文, кошка на столе; tabs\tand   spaces \n\n end image start pad im",
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small byte-level BPE tokenizer, special tokens and preprocessor_config.json as Qwen2.5-VL's
    files have them; no weights and no chat template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(list(SAMPLES) * 2, trainer)
    special = (*CONTROL, *MARKS, *PADS)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=t in special) for t in (*special, *TAGS)])
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(number): {"content": token.content, "special": token.special, "normalized": False,
                      "lstrip": False, "rstrip": False, "single_word": False}
        for number, token in tokenizer.get_added_tokens_decoder().items()
    }  # fmt: skip
    _write(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": added,
            "additional_special_tokens": [t for t in special if t != CONTROL[0]],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    _write(
        folder / "preprocessor_config.json",
        {
            "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2_5_VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
        },
    )  # fmt: skip
    _write(folder / "config.json", {"model_type": "qwen2_5_vl"})
    return folder


@pytest.fixture(scope="session")
def processor(checkpoint: Path) -> Qwen2_5_VLProcessor:
    """The processor of `checkpoint`; tests leave it as it is."""
    from qwenvl.processing import Qwen2_5_VLProcessor

    return Qwen2_5_VLProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def tokenizer(processor: Qwen2_5_VLProcessor) -> Tokenizer:
    """The tokenizer of `checkpoint`; tests leave it as it is."""
    return processor.tokenizer


def _write(path: Path, data: dict[str, object]) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2), "utf-8")
