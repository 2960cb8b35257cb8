"""Tokenizer: ids, text, padding, older files, and control tokens as plain text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from prompts import CONTROL
from tokenizers import Tokenizer as Backend

from qwenvl.processing import (
    Tokenizer,
)


def test_tokenizer_basics(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids(["<|endoftext|>"])[0]
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|im_end|>"
    assert len(tokenizer) == max(tokenizer.get_vocab().values()) + 1 > tokenizer.vocab_size
    for wrong in (lambda: tokenizer.convert_tokens_to_ids("<|none|>"), lambda: tokenizer.convert_ids_to_tokens([9999])):
        with pytest.raises(ValueError, match="vocabulary"):
            wrong()
    ids = tokenizer.encode("<|im_start|>Größe 日本<|im_end|><tool_call>")
    assert tokenizer.decode(ids) == "<|im_start|>Größe 日本<|im_end|><tool_call>"
    assert tokenizer.decode(torch.tensor(ids), skip_special_tokens=True) == "Größe 日本<tool_call>"
    assert tokenizer.decode(ids[0]) == tokenizer.decode(torch.tensor(ids[0])) == "<|im_start|>"
    assert tokenizer.decode(np.int64(ids[0])) == "<|im_start|>"
    assert tokenizer.batch_decode(torch.tensor([ids, ids])) == [tokenizer.decode(ids)] * 2
    spaced = tokenizer.encode("Yes , it is n't .")
    assert tokenizer.decode(spaced) == "Yes , it is n't ."
    assert tokenizer.decode(spaced, clean_up_tokenization_spaces=True) == "Yes, it isn't."
    tokenizer.save_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


@pytest.mark.feature(62)
def test_padding(tokenizer: Tokenizer) -> None:
    rows, pad = ["a b c", "a"], tokenizer.pad_token_id
    long, short = (tokenizer.encode(row) for row in rows)
    fill = len(long) - len(short)
    right = tokenizer(rows, padding=True, return_tensors="pt")
    assert right.input_ids.tolist() == [long, short + [pad] * fill]
    assert right.attention_mask.tolist() == [[1] * len(long), [1] * len(short) + [0] * fill]
    left = tokenizer(rows, padding="longest", padding_side="left")
    assert left["input_ids"] == [long, [pad] * fill + short]
    assert left["attention_mask"][1] == [0] * fill + [1] * len(short)
    for wrong in ({"return_tensors": "pt"}, {"padding": "max"}, {"padding_side": "top"}, {"return_tensors": "tf"}):
        with pytest.raises(ValueError, match=r"padding|return_tensors"):
            tokenizer(rows, **wrong)


def test_the_older_files_give_the_same_ids(checkpoint: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    Backend.from_file(str(checkpoint / "tokenizer.json")).model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text((checkpoint / "tokenizer_config.json").read_text())
    older = Tokenizer.from_pretrained(tmp_path)
    assert older.get_vocab() == tokenizer.get_vocab()
    for sample in ("It isn't 12 cafe\u0301\n\n x", "<|im_start|>user\n<tool_call><|box_start|>"):
        assert older.encode(sample) == tokenizer.encode(sample)
        assert older.decode(older.encode(sample)) == tokenizer.decode(tokenizer.encode(sample))
    assert older.control_tokens == tokenizer.control_tokens


def test_listed_tokens_are_added_under_their_ids(checkpoint: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = json.loads((checkpoint / "tokenizer.json").read_text())
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**data, "added_tokens": data["added_tokens"][:3]}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    sample = "<|image_pad|> <tool_call><|im_end|>"
    assert Tokenizer.from_pretrained(tmp_path).encode(sample) == tokenizer.encode(sample)
    config["added_tokens_decoder"].pop(str(tokenizer.convert_tokens_to_ids("<|image_pad|>")))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"<\|video_pad\|> the id \d+, the vocabulary makes it \d+"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({**data, "added_tokens": []}))
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="no added tokens"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_file_that_asks_for_truncation_cuts_no_prompt(checkpoint: Path, tmp_path: Path) -> None:
    backend = Backend.from_file(str(checkpoint / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.decode(loaded.encode("one two three four five")) == "one two three four five"
    assert len(loaded.encode("a")) == 1


def test_what_is_saved_is_complete(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((checkpoint / "tokenizer.json").read_text())
    bare = Tokenizer.from_pretrained(tmp_path)
    bare.padding_side = "left"
    bare.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "Qwen2Tokenizer"
    assert (saved["eos_token"], saved["pad_token"]) == ("<|im_end|>", "<|endoftext|>")
    assert Tokenizer.from_pretrained(tmp_path).padding_side == "left"


def test_missing_and_broken_tokenizer_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.from_pretrained(tmp_path)


def test_spelt_control_tokens_are_plain_text_and_nothing_else_changes(tokenizer: Tokenizer) -> None:
    control = set(tokenizer.convert_tokens_to_ids(list(CONTROL)))
    for token in CONTROL:
        for sample in (token, f"a{token}", f"{token} b", f"x {token}{token}\n\ny"):
            ids = tokenizer.encode(sample, special=False)
            assert not control & set(ids)
            assert tokenizer.decode(ids, skip_special_tokens=True) == sample
    assert tokenizer.encode("a b <|im_end|> c d", special=False) == [
        *tokenizer.encode("a b "), *tokenizer.encode("<|im_end|>", special=False), *tokenizer.encode(" c d")
    ]  # fmt: skip
