"""Models under accelerate's own hooks, which replace forward and bring weights in for each call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_few_rows import model_of
from tiny import padded_batch, tiny_model

from qwenvl.kernels.native import library

accelerate = pytest.importorskip("accelerate")
LAYERS = "model.language_model.layers"
BLOCKS = ["TextLayer", "VisionBlock", "PatchEmbed", "PatchMerger"]  # read weights of their parts themselves
PLACES = {
    "model.visual": "disk", "model.language_model.embed_tokens": "cpu", f"{LAYERS}.0": "disk", f"{LAYERS}.1": "cpu",
    "model.language_model.norm": "cpu", "lm_head": "cpu",
}  # fmt: skip


def answers(model: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    batch = {**padded_batch(), "pixel_values": padded_batch()["pixel_values"].to(dtype)}
    with torch.no_grad():
        logits = model(**batch).logits
    return logits, model.generate(**batch, max_new_tokens=6, do_sample=False)


@pytest.mark.feature(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_under_its_hooks(dtype: torch.dtype, tmp_path: Path) -> None:
    options = {"tie_word_embeddings": False}
    wanted = answers(tiny_model(**options).to(dtype), dtype)
    model = tiny_model(**options).to(dtype)
    accelerate.dispatch_model(model, PLACES, offload_dir=tmp_path, preload_module_classes=BLOCKS)
    got = answers(model, dtype)
    assert model.get_submodule(f"{LAYERS}.0").mlp.up_proj.weight.is_meta  # it was really taken away
    for one, other in zip(wanted, got, strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(library() is None, reason="needs the native kernels")
def test_hooks_put_on_later_are_seen(tmp_path: Path) -> None:
    """Decode steps in one native call keep the addresses of weights: they must notice."""
    model = model_of()
    prompt = torch.arange(3, 12).unsqueeze(0)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    wanted = model.generate(input_ids=prompt, **options)
    assert model.text._few_rows._layers is not None
    places = {name: "cpu" for name, part in model.named_modules() if name and not list(part.children())}
    places = {name: place for name, place in places.items() if LAYERS not in name}
    places |= {f"{LAYERS}.{i}": "disk" for i in range(len(model.text.layers))}
    accelerate.dispatch_model(model, places, offload_dir=tmp_path, preload_module_classes=BLOCKS)
    assert torch.equal(model.generate(input_ids=prompt, **options), wanted)
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    assert torch.equal(model.generate(input_ids=prompt, **options), wanted)


def test_a_norm_with_hooks_is_called() -> None:
    """Norms are fused with the addition before them, but not where somebody watches."""
    model = tiny_model()
    norm = model.get_submodule(f"{LAYERS}.0.post_attention_layernorm")
    calls = []
    accelerate.hooks.add_hook_to_module(norm, accelerate.hooks.ModelHook())
    norm.register_forward_hook(lambda *_: calls.append(1))
    answers(model, torch.float32)
    assert calls


def test_a_hook_on_a_layer_is_called_at_every_token() -> None:
    """Where decode steps are one native call, a layer that accelerate wrapped is still called."""
    model = model_of()
    options: dict[str, Any] = {"input_ids": torch.arange(3, 12).unsqueeze(0), "max_new_tokens": 5, "min_new_tokens": 5}
    wanted = model.generate(**options, do_sample=False)
    calls = []

    class Counting(accelerate.hooks.ModelHook):  # type: ignore[misc]
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return args, kwargs

    accelerate.hooks.add_hook_to_module(model.text.layers[0], Counting())
    assert torch.equal(model.generate(**options, do_sample=False), wanted)
    assert len(calls) == 5
