"""The small vocabulary: Qwen2's layout, 960 ids, every text comes back, and the official reader reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from qwenvl.demo.vocabulary import ADDED_TOKENS, SYSTEM_PROMPT, corpus, save_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(corpus(np.random.default_rng(0), 1100))


def test_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 960
    assert [tokenizer.token_to_id(text) for text, _ in ADDED_TOKENS] == list(range(938, 960))
    assert sorted(tokenizer.get_vocab().values()) == list(range(960))
    # official numbers, 151643 + place
    names = [text for text, _ in ADDED_TOKENS]
    assert names[0] == "<|endoftext|>"
    assert [names.index(n) for n in ("<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>")] == [
        2,
        9,
        12,
        13,
    ]


@pytest.mark.parametrize(
    "text",
    [
        "There are two objects: a red circle at the top left and a blue square in the center.",
        '```json\n[\n\t{"bbox_2d": [12, 30, 80, 99], "label": "red circle"}\n]\n```',
        "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 猫が好き 🙂\r\n\t x",
    ],
)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_world_words_are_short_and_digits_single(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n").ids) <= 11
    assert len(tokenizer.encode("<|im_start|>assistant\n").ids) == 3
    assert tokenizer.encode("[112, 30").tokens == ["[", "1", "1", "2", ",", "Ġ", "3", "0"]
    for word in (" red", " circle", " purple", " objects", " There"):
        assert len(tokenizer.encode(word).ids) <= 2


def test_deterministic(tokenizer: Tokenizer) -> None:
    again = train_tokenizer(corpus(np.random.default_rng(0), 1100))
    assert again.to_str() == tokenizer.to_str()


def test_official_reader_agrees(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    save_tokenizer(tokenizer, tmp_path, template)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == 960
    assert theirs.eos_token == "<|im_end|>"
    assert theirs.pad_token == "<|endoftext|>"
    text = "<|im_start|>user\nIs there a red circle?<|im_end|>\n<tool_call>12</tool_call>"
    ids = tokenizer.encode(text).ids
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == template
    assert [v["special"] for v in config["added_tokens_decoder"].values()] == [s for _, s in ADDED_TOKENS]
    assert config["additional_special_tokens"][-1] == "<|video_pad|>"


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least 278"):
        train_tokenizer(iter(["a"]), 200)
    with pytest.raises(ValueError, match="the samples gave"):
        train_tokenizer(iter(["one text"]))
