"""Decode steps in one native call: the same bits as layer by layer, and only where the modules are what they were."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_engine_model import TEXT, VISION, batch

from qwenvl.config import config_from_dict
from qwenvl.engine import Engine, Request
from qwenvl.engine.inputs import split_batch
from qwenvl.kernels.native import library
from qwenvl.kernels.quantized import PackedWeight
from qwenvl.model.few_rows import FewRows
from qwenvl.model.layers import Linear
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration
from qwenvl.quantization import quantize_model
from qwenvl.types import SamplingParams

pytestmark = pytest.mark.skipif(library() is None, reason="there is no native library here")


def model_of(**changes: Any) -> Any:
    data = {**TEXT, **changes, "model_type": "qwen2_5_vl", "vision_config": VISION["qwen2_5_vl"]}
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config_from_dict(data)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3 if weight.ndim > 1 else 0.5)
    return model.to(torch.bfloat16)


def answers(model: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[int]], list[torch.Tensor], int]:
    """Ids and logits of four prompts answered together, and how often the native call was taken."""
    taken = 0
    run = FewRows.run

    def counted(self: FewRows, *arguments: Any) -> torch.Tensor | None:
        nonlocal taken
        out = run(self, *arguments)
        taken += out is not None
        return out

    monkeypatch.setattr(FewRows, "run", counted)
    params = SamplingParams(max_new_tokens=8, ignore_eos=True, keep_logits=True)
    asked = [Request.from_inputs(row, model.config, params) for row in split_batch(model.config, **batch())]
    done = Engine(model, draft_tokens=2).run(asked)
    monkeypatch.undo()
    return [one.token_ids for one in done], [torch.stack(request.output_logits) for request in asked], taken


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_one_call_gives_the_bits_of_many(window: int | None, kind: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {}
    if window is not None:
        changes = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    model = model_of(**changes)
    if kind is not None:
        quantize_model(model, kind)
    ids, logits, taken = answers(model, monkeypatch)
    assert taken >= 4
    watched = model.text.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)
    by_layer = answers(model, monkeypatch)
    assert by_layer[2] == 0
    watched.remove()
    assert ids == by_layer[0]
    assert all(torch.equal(one, other) for one, other in zip(logits, by_layer[1], strict=True))


def test_what_was_changed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    before = answers(model, monkeypatch)
    layer = model.text.layers[2]
    with torch.no_grad():
        layer.mlp.down_proj.weight.mul_(-1)  # in place
    negated = answers(model, monkeypatch)
    assert negated[2] > 0
    assert not torch.equal(negated[1][0], before[1][0])
    layer.mlp.down_proj.weight.data = -layer.mlp.down_proj.weight.data  # other memory under the same parameter
    assert torch.equal(answers(model, monkeypatch)[1][0], before[1][0])
    layer.self_attn.q_proj = Doubled(layer.self_attn.q_proj)
    doubled = answers(model, monkeypatch)
    assert doubled[2] == 0, "a module of another kind is run as it is"
    assert not torch.equal(doubled[1][0], before[1][0])
    assert answers(copy.deepcopy(model), monkeypatch)[2] == 0


def test_columns_in_another_order_are_run_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native call does not sort x: a product that needs it is run as a module of its own, and means the same."""
    model = model_of()
    quantize_model(model, "int8")
    before = answers(model, monkeypatch)
    linear = model.text.layers[1].mlp.down_proj
    given, packed = linear.packed.values(), linear.packed
    order = torch.randperm(packed.in_features, generator=torch.Generator().manual_seed(0))
    q = given[0] if packed.group >= packed.in_features else None
    assert q is not None, "columns stay in the one group that there is"
    sorted_form = {"kind": packed.kind, "group": packed.group, "order": order}
    linear.packed = PackedWeight.from_values(q[:, order], *given[1:], **sorted_form)
    linear.packed = replace(linear.packed, exponent=packed.exponent)
    assert torch.equal(linear.packed.dequantize(), packed.dequantize())
    after = answers(model, monkeypatch)
    assert before[2] > 0
    assert after[2] == 0
    assert after[0] == before[0]
    assert all(torch.equal(one, other) for one, other in zip(after[1], before[1], strict=True))


class Doubled(torch.nn.Module):
    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.linear(x)


def test_embeddings_of_the_caller_are_not_written_to() -> None:
    model = model_of()
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        past = model(ids, use_cache=True).past_key_values
        embeds = model.get_input_embeddings()(torch.tensor([[6]]))
        kept = embeds.clone()
        model(inputs_embeds=embeds, past_key_values=past)
    assert torch.equal(embeds, kept)
