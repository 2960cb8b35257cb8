"""Sliding-window layers against transformers, and against themselves through the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import END, FAMILIES, IMAGE, START, VIDEO, batch, build, mixed, relative, types

from qwenvl.engine.generate import generate
from qwenvl.model import attention

WINDOW = 9
SLIDING: dict[str, Any] = {"use_sliding_window": True, "sliding_window": WINDOW}
MIXES = {  # of 3 layers
    "the first is full": {"max_window_layers": 1},
    "all slide": {"max_window_layers": 0},
    "by name": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "max_window_layers": 3},
}


@pytest.fixture(autouse=True)
def narrow_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these short prompts take several."""
    monkeypatch.setattr(attention, "BAND", 4)


@pytest.mark.feature(10)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@torch.no_grad()
def test_logits(family: str, attn: str, mix: dict[str, Any]) -> None:
    ours, oracle = build(family, attn=attn, **SLIDING, **mix)
    full, _ = build(family, attn=attn)
    inputs: dict[str, Any] = mixed()
    logits = ours(**inputs).logits
    expected = oracle(**inputs, mm_token_type_ids=types(inputs["input_ids"])).logits
    real = inputs["attention_mask"].bool()
    assert relative(logits[real], expected[real]) < 1e-4
    assert relative(logits[real], full(**inputs).logits[real]) > 1e-2  # the window is felt


@pytest.mark.feature(10)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_attention_probabilities(family: str) -> None:
    ours, oracle = build(family, **SLIDING, max_window_layers=1)
    ids, mask = batch([list(range(3, 33)), [12, 13, 14]])
    found = ours(ids, mask, output_attentions=True).attentions
    expected = oracle(ids, mask, output_attentions=True).attentions
    assert len(found) == 3
    for mine, theirs in zip(found, expected, strict=True):
        assert relative(mine[0], theirs[0]) < 1e-4
        assert relative(mine[1][:, -3:, -3:], theirs[1][:, -3:, -3:]) < 1e-4
    assert int((found[0][0, 0, -1] > 0).sum()) == 30
    assert int((found[1][0, 0, -1] > 0).sum()) == WINDOW


@pytest.mark.feature(10)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_cached_equals_whole(family: str, attn: str) -> None:
    """A padded batch: prompts, then a chunk, then single tokens."""
    ours, oracle = build(family, attn=attn, **SLIDING, max_window_layers=1)
    ids, mask = batch([list(range(3, 35)), list(range(20, 46)), [12, 13, 14, 15, 16, 17]])
    whole = ours(ids, mask).logits
    expected = oracle(ids, mask).logits
    real = mask.bool()
    assert relative(whole[real], expected[real]) < 1e-4
    ends, past, parts, start = [27, 30, 31, 32], None, [], 0
    for end in ends:
        done = ours(ids[:, start:end], mask[:, :end], past_key_values=past, use_cache=True)
        parts.append(done.logits)
        past, start = done.past_key_values, end
    assert relative(torch.cat(parts, 1)[real], whole[real]) < 1e-5


@pytest.mark.feature(10, 41)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_generated_ids(family: str) -> None:
    """The engine's slots and the oracle's trimmed cache of sliding layers write the same answer."""
    ours, oracle = build(family, **SLIDING, max_window_layers=1)
    ids, mask = batch([list(range(3, 23)), [12, 13, 14]])
    options: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": [57], "pad_token_id": 0}
    expected = oracle.generate(
        input_ids=ids, attention_mask=mask, suppress_tokens=[START, END, IMAGE, VIDEO], **options
    )
    assert torch.equal(generate(ours, ids, attention_mask=mask, **options), expected)
