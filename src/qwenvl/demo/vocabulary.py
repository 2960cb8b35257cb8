"""Trains the small vocabulary of the bundled model: byte-level BPE in exactly Qwen2's layout, 960 ids in all.

Ids: 256 bytes, then merges, then Qwen2.5-VL's 22 added tokens in their official order (<|endoftext|> first),
so that everything that reads an official tokenizer folder reads this one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from qwenvl.demo.clips import sample_clip
from qwenvl.demo.happenings import CLIP_KINDS, PAIR_KINDS, sample_comparison, sample_happening
from qwenvl.demo.pairs import sample_pair
from qwenvl.demo.questions import KINDS, Exchange, sample_exchange
from qwenvl.demo.world import sample_foreign, sample_picture
from qwenvl.processing.tokenizer import PIECES

SYSTEM_PROMPT = "You are a helpful assistant."
# (text, special): only special ones are dropped by skip_special_tokens
ADDED_TOKENS: tuple[tuple[str, bool], ...] = (
    ("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True),
    ("<|object_ref_start|>", True), ("<|object_ref_end|>", True),
    ("<|box_start|>", True), ("<|box_end|>", True), ("<|quad_start|>", True), ("<|quad_end|>", True),
    ("<|vision_start|>", True), ("<|vision_end|>", True),
    ("<|vision_pad|>", True), ("<|image_pad|>", True), ("<|video_pad|>", True),
    ("<tool_call>", False), ("</tool_call>", False), ("<|fim_prefix|>", False), ("<|fim_middle|>", False),
    ("<|fim_suffix|>", False), ("<|fim_pad|>", False), ("<|repo_name|>", False), ("<|file_sep|>", False),
)  # fmt: skip


def add_steps(tokenizer: Tokenizer) -> None:
    """The steps of Qwen2's tokenizer around its merges: normalize, split, bytes, and back."""
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)


def train_tokenizer(samples: Iterator[str], size: int = 960) -> Tokenizer:
    """A tokenizer with exactly `size` ids, merges learned on `samples`.

    ValueError when `size` leaves no room for bytes and added tokens, or the samples are too few or too alike.
    """
    merges = size - 256 - len(ADDED_TOKENS)
    if merges < 0:
        raise ValueError(f"size={size}: expected at least {256 + len(ADDED_TOKENS)} (256 bytes and the added tokens)")
    tokenizer = Tokenizer(models.BPE())
    add_steps(tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(ADDED_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(samples, trainer)
    found = tokenizer.get_vocab_size()
    if found != size - len(ADDED_TOKENS):
        raise ValueError(f"the samples gave {found - 256} merges of {merges}: give more, or more varied, samples")
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=special) for text, special in ADDED_TOKENS])
    return tokenizer


def corpus(rng: np.random.Generator, count: int) -> Iterator[str]:
    """Texts of `count` exchanges of all kinds as the model meets them: roles, prompt, questions, answers."""
    kinds = (*KINDS, *CLIP_KINDS, *PAIR_KINDS)
    for i in range(count):
        exchange = _exchange(rng, kinds[i % len(kinds)])
        # as the split sees it between control tokens
        yield f"system\n{SYSTEM_PROMPT}"
        yield f"user\n{exchange.question}"
        yield f"assistant\n{exchange.answer}"


def _exchange(rng: np.random.Generator, kind: str) -> Exchange:
    """A question of the kind about a fresh scene that allows it."""
    while True:
        if kind in PAIR_KINDS:
            return sample_comparison(rng, sample_pair(rng), kind)
        if kind in CLIP_KINDS:
            found = sample_happening(rng, sample_clip(rng), kind)
        else:
            scene = None if kind == "identity" else sample_foreign(rng) if kind == "foreign" else sample_picture(rng)
            found = sample_exchange(rng, scene, kind)
        if found is not None:
            return found


def save_tokenizer(tokenizer: Tokenizer, folder: Path, chat_template: str) -> None:
    """Write tokenizer.json and tokenizer_config.json in the official layout into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    text = json.dumps(tokenizer_config(tokenizer, chat_template), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def tokenizer_config(tokenizer: Tokenizer, chat_template: str) -> dict[str, Any]:
    """The contents of tokenizer_config.json."""
    added = {
        str(tokenizer.token_to_id(text)): {
            "content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": special,
        }
        for text, special in ADDED_TOKENS
    }  # fmt: skip
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [text for text, special in ADDED_TOKENS[1:] if special],
        "bos_token": None,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
