"""What every documented model class can do beside its forward()."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, padded_batch, tiny_config, tiny_model
from torch import nn

import qwenvl
from qwenvl.model.base import PreTrained

NAMES = {
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel", "Qwen2_5_VLTextModel"),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLModel", "Qwen2VLTextModel"),
}


@pytest.mark.feature(12, 14, 15)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_gives_random_weights(family: str) -> None:
    config = tiny_config(family)
    whole, bare, text = (getattr(qwenvl, name) for name in NAMES[family])
    for kind, taken in ((whole, config), (bare, config), (text, config.text_config)):
        model = kind(taken)
        assert model.config is taken
        assert isinstance(model, nn.Module)
        table = model.get_input_embeddings().weight
        assert abs(float(table.detach().std()) - 0.2) < 0.02
        assert not torch.equal(table, kind(taken).get_input_embeddings().weight)
    assert text(config).config == config.text_config  # as the documents also write it
    other = tiny_config(FAMILIES[family == FAMILIES[0]])
    with pytest.raises(ValueError, match=f"{whole.__name__} is built from a"):
        whole(other)


@pytest.mark.feature(15)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_bare_models_are_parts_of_the_whole(family: str, tmp_path: Path) -> None:
    """Loaded from the whole's folder, and saved and loaded on their own."""
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "whole")
    inputs = padded_batch()
    expected = model.model(**inputs).last_hidden_state
    row = inputs["input_ids"][:1, 7:]
    for name, part, given, hidden in (
        (NAMES[family][1], model.model, inputs, expected),
        (NAMES[family][2], model.language_model, {"input_ids": row}, expected[:1, 7:]),
    ):
        kind = getattr(qwenvl, name)
        loaded = kind.from_pretrained(tmp_path / "whole")
        assert list(loaded.state_dict()) == list(part.state_dict())
        torch.testing.assert_close(loaded(**given).last_hidden_state, hidden)
        loaded.save_pretrained(tmp_path / name)
        again = kind.from_pretrained(tmp_path / name)
        assert torch.equal(again(**given).last_hidden_state, loaded(**given).last_hidden_state)
        assert again.config == loaded.config
    other = getattr(qwenvl, NAMES[FAMILIES[family == FAMILIES[0]]][2])
    with pytest.raises(ValueError, match=f"not for {other.__name__}"):
        other.from_pretrained(tmp_path / "whole")


def gradients(model: Any, **options: Any) -> tuple[dict[str, torch.Tensor], int]:
    """(gradients, bytes that the forward keeps for the backward pass)."""
    inputs, kept = padded_batch(), 0

    def count(x: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += 0 if isinstance(x, nn.Parameter) else x.nbytes
        return x

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        loss = model(**inputs, labels=inputs["input_ids"], **options).loss
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, kept


@pytest.mark.feature(17)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_saves_memory_and_changes_nothing(family: str) -> None:
    model = tiny_model(family).train()
    expected, kept = gradients(model)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    found, less = gradients(model)
    assert less < kept / 2
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    assert gradients(model.eval())[1] > less  # in training only
    model.train()
    with pytest.warns(UserWarning, match="use_cache=True has no effect"):
        assert model(**padded_batch(), use_cache=True).past_key_values is None
    model.gradient_checkpointing_disable()
    assert gradients(model)[1] == kept
    with pytest.raises(ValueError, match="has reentrant: expected some of use_reentrant"):
        model.gradient_checkpointing_enable({"reentrant": True})


@pytest.mark.feature(17)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # the frozen tower: as it should be
def test_frozen_embeddings_let_reentrant_checkpointing_through() -> None:
    model = tiny_model(tie_word_embeddings=False).train()
    model.get_input_embeddings().weight.requires_grad_(False)
    model.visual.requires_grad_(False)
    expected, _ = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    found, _ = gradients(model)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    model.disable_input_require_grads()
    assert not model.get_input_embeddings()(torch.tensor([1])).requires_grad


@pytest.mark.feature(17)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_embeddings_are_resized(family: str, tied: bool, tmp_path: Path) -> None:
    model, inputs = tiny_model(family, tie_word_embeddings=tied), padded_batch()
    before = model(**inputs).logits
    old = model.get_input_embeddings().weight.clone()
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    table = model.resize_token_embeddings(70, pad_to_multiple_of=8)
    assert table is model.get_input_embeddings()
    assert table.weight.shape == model.get_output_embeddings().weight.shape == (72, 48)
    assert (model.lm_head.weight is table.weight) == tied
    assert (
        model.config.vocab_size == model.config.text_config.vocab_size == model.language_model.config.vocab_size == 72
    )
    assert (table.num_embeddings, model.lm_head.out_features) == (72, 72)
    torch.testing.assert_close(model(**inputs).logits[..., :64], before)
    torch.testing.assert_close(table.weight[64:], old.mean(0).expand(8, -1), rtol=0, atol=1e-3)
    assert not torch.equal(table.weight[64], table.weight[65])
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(**inputs).logits, model(**inputs).logits)
    model.resize_token_embeddings(64)
    assert torch.equal(model.get_input_embeddings().weight, old)
    model.resize_token_embeddings(300, mean_resizing=False)
    assert abs(float(model.get_input_embeddings().weight[64:].std()) - 0.2) < 0.02
    for wrong in ({"new_num_tokens": 0}, {"pad_to_multiple_of": 0}):
        with pytest.raises(ValueError, match="expected 1 or more"):
            model.resize_token_embeddings(**wrong)


@pytest.mark.feature(17)
def test_embeddings_are_replaced_and_parameters_counted() -> None:
    tied, untied = tiny_model(), tiny_model(tie_word_embeddings=False)
    assert untied.num_parameters() - tied.num_parameters() == 64 * 48
    assert tied.num_parameters(exclude_embeddings=True) == tied.num_parameters() - 64 * 48
    tied.visual.requires_grad_(False)
    frozen = sum(p.numel() for p in tied.visual.parameters())
    assert tied.num_parameters(only_trainable=True) == tied.num_parameters() - frozen
    table = nn.Embedding(64, 48)
    tied.set_input_embeddings(table)
    assert tied.get_input_embeddings() is table
    assert tied.get_output_embeddings().weight is table.weight
    head = nn.Linear(48, 64, bias=False)
    untied.set_output_embeddings(head)
    assert untied.get_output_embeddings() is untied.lm_head is head
    assert untied.model.get_output_embeddings() is None
    with pytest.raises(ValueError, match="has no output embeddings"):
        untied.model.set_output_embeddings(head)


@pytest.mark.feature(17)
def test_heads_cannot_be_pruned_and_the_reason_is_said() -> None:
    model = tiny_model()
    assert isinstance(model, PreTrained)
    with pytest.raises(NotImplementedError, match="equal groups"):
        model.prune_heads({0: [1]})


@pytest.mark.feature(16)
def test_key_heads_are_as_many_as_the_config_says() -> None:
    """As many as query heads is multi-head attention (what no number means), one is multi-query, else grouped."""
    for given, heads in ((4, 4), (1, 1), (2, 2), (None, 4)):
        model = tiny_model(num_key_value_heads=given)
        assert model.language_model.layers[0].self_attn.k_proj.out_features == heads * 12
    with pytest.raises(ValueError, match="num_key_value_heads=3"):
        tiny_config(num_key_value_heads=3)
