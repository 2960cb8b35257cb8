"""past_key_values, hidden states and attentions against transformers (its DynamicCache, its eager attention)."""

from __future__ import annotations

import pytest
import torch
from oracle import FAMILIES, batch, build, mixed, relative, types

CHUNKS = ([20, 21, 22, 23], [24], [25])  # what follows each prompt


@pytest.mark.feature(29, 35)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_prompt_then_chunk_then_single_tokens(family: str, attn: str) -> None:
    ours, oracle = build(family, attn=attn)
    inputs = mixed()
    mask = inputs["attention_mask"]
    mine = ours(**inputs, use_cache=True)
    theirs = oracle(**inputs, use_cache=True, mm_token_type_ids=types(inputs["input_ids"]))
    deltas = oracle.model.rope_deltas
    assert torch.equal(mine.rope_deltas, deltas)
    for chunk in CHUNKS:
        ids = torch.tensor([chunk] * 3)
        mask = torch.cat((mask, torch.ones_like(ids)), 1)
        positions = (mask.cumsum(-1) - 1 + deltas)[:, -len(chunk) :].expand(3, -1, -1)
        mine = ours(ids, mask, past_key_values=mine.past_key_values)
        theirs = oracle(ids, mask, position_ids=positions, past_key_values=theirs.past_key_values)
        assert mine.logits.shape == (3, len(chunk), 64)
        assert relative(mine.logits, theirs.logits) < 1e-4
        assert mine.past_key_values.get_seq_length() == theirs.past_key_values.get_seq_length() == mask.shape[1]
    real = mask.bool()
    for layer, (keys, values) in enumerate(mine.past_key_values):
        for found, expected in (
            (keys, theirs.past_key_values.layers[layer].keys),
            (values, theirs.past_key_values.layers[layer].values),
        ):
            assert found.shape == expected.shape
            assert relative(found.transpose(1, 2)[real], expected.transpose(1, 2)[real]) < 1e-4


@pytest.mark.feature(39, 40)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hidden_states(family: str) -> None:
    ours, oracle = build(family)
    inputs = mixed()
    mine = ours(**inputs, output_hidden_states=True).hidden_states
    theirs = oracle(**inputs, mm_token_type_ids=types(inputs["input_ids"]), output_hidden_states=True).hidden_states
    assert len(mine) == len(theirs) == 4
    real = inputs["attention_mask"].bool()
    for found, expected in zip(mine, theirs, strict=True):
        assert found.shape == expected.shape
        assert relative(found[real], expected[real]) < 1e-4
    assert mine[0][~real].abs().sum() == 0


@pytest.mark.feature(39)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_attentions(family: str, attn: str) -> None:
    """Of a prompt and of a chunk behind it, for either implementation of attention."""
    ours, oracle = build(family, attn=attn)
    ids, mask = batch([[3, 4, 5, 6, 7, 8], [12, 13, 14]])
    more = torch.tensor([[20, 21], [22, 23]])
    whole = torch.cat((mask, torch.ones_like(more)), 1)
    mine = ours(ids, mask, output_attentions=True, use_cache=True)
    # The oracle counts padding when it is not told the positions of text.
    positions = (whole.cumsum(-1) - 1).clamp(min=0)
    theirs = oracle(ids, mask, positions[:, :6].expand(3, -1, -1), output_attentions=True, use_cache=True)
    _same_attentions(mine.attentions, theirs.attentions, mask.bool())
    mine = ours(more, whole, past_key_values=mine.past_key_values, output_attentions=True)
    theirs = oracle(
        more,
        whole,
        positions[:, 6:].expand(3, -1, -1),
        past_key_values=theirs.past_key_values,
        output_attentions=True,
    )
    assert mine.attentions[0].shape == (2, 4, 2, 8)
    _same_attentions(mine.attentions, theirs.attentions, torch.ones_like(more).bool())
    logits = ours(more, whole, past_key_values=ours(ids, mask, use_cache=True).past_key_values).logits
    assert relative(mine.logits, logits) < 1e-5


def _same_attentions(mine: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...], real: torch.Tensor) -> None:
    assert len(mine) == len(theirs) == 3
    for found, expected in zip(mine, theirs, strict=True):
        assert found.shape == expected.shape
        assert relative(found.transpose(1, 2)[real], expected.transpose(1, 2)[real]) < 1e-4


@pytest.mark.feature(28)
@torch.no_grad()
def test_documents_packed_into_one_row() -> None:
    """[4, 1, S]: the first row of positions tells where a document begins; without a mask they do not see each
    other."""
    ours, oracle = build("qwen2_5_vl")
    ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9]])
    counts = torch.tensor([[[0, 1, 2, 0, 1, 2, 3]]]).expand(4, 1, 7)
    packed = ours(ids, position_ids=counts)
    expected = oracle(ids, position_ids=counts, use_cache=False).logits
    assert relative(packed.logits, expected) < 1e-4
    assert relative(packed.logits[:, 3:], ours(ids[:, 3:]).logits) < 1e-5
    assert packed.past_key_values is None
    with pytest.raises(ValueError, match="several packed documents"):
        ours(ids, position_ids=counts, use_cache=True)
