"""Models spread over devices that are not there: numbers as on one device, and nothing computed across devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretend_devices import Devices, Pretend, pretend
from tiny import GRID, tiny_model

from qwenvl.checkpoint import placement
from qwenvl.checkpoint.dispatch import dispatch
from qwenvl.checkpoint.placement import Placement, plan_placement
from qwenvl.model.kv_cache import SlotCache
from qwenvl.types import PackedBatch, SeqInfo

FIRST, SECOND = torch.device("ipu:0"), torch.device("ipu:1")
LAYERS = "model.language_model.layers"
MAPS: dict[str, dict[str, Any]] = {
    "one": {"": FIRST},
    "two": {"": FIRST, f"{LAYERS}.1": SECOND, f"{LAYERS}.2": SECOND},
    "head elsewhere": {"": FIRST, "lm_head": SECOND, "model.language_model.norm": SECOND},
    "back and forth": {"": FIRST, f"{LAYERS}.0": SECOND, f"{LAYERS}.2": SECOND, "model.visual.blocks.1": SECOND},
    "cpu": {"": FIRST, f"{LAYERS}.1": "cpu", "model.visual.blocks.0": "cpu"},
    "cpu and disk": {"": FIRST, "model.visual": "cpu", f"{LAYERS}.0": "disk", f"{LAYERS}.2": SECOND},
}
pytestmark = pytest.mark.feature(4)


def put(model: Any, places: dict[str, Any]) -> None:
    """As loading does it: every tensor at its place, then dispatch."""
    placed = Placement(places, FIRST)
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        device = placed.device_of(name)
        module, _, leaf = name.rpartition(".")
        value = parameter.detach() if device.type == "cpu" else pretend(parameter, device)
        model.get_submodule(module)._parameters[leaf] = torch.nn.Parameter(value, False)
    dispatch(model, placed)


def steps(model: Any) -> list[torch.Tensor]:
    """Vision embeddings, then logits of two prompts with a cache, and of a step behind them."""
    device = model.device
    pixels = torch.randn(24, 1176, generator=torch.Generator().manual_seed(1))
    seen = model.encode_vision(pixels.to(device), GRID)
    cache = SlotCache(model.config.text_config, 2, 16, torch.float32, device)
    out = [seen]
    lengths, done = [9, 4], [0, 0]
    for new in (lengths, [1, 1], [1, 2]):
        count = sum(new)
        ids = torch.arange(3, 3 + count).to(device)
        positions = torch.cat([torch.arange(a, a + n) for a, n in zip(done, new, strict=True)]).expand(3, -1).to(device)
        first = not any(done)
        batch = PackedBatch(
            token_ids=ids,
            positions=positions,
            seq=SeqInfo.from_lengths(new, done),
            kv=cache.view([0, 1], done, new),
            vision_embeds=seen if first else None,
            vision_index=torch.arange(1, 7).to(device) if first else None,
            logits_index=torch.arange(count - 2, count).to(device),
        )
        out.append(model.run(batch))
        done = [a + b for a, b in zip(done, new, strict=True)]
    return out


def plain(x: torch.Tensor) -> torch.Tensor:
    return x.inner if isinstance(x, Pretend) else x


@pytest.mark.parametrize("name", MAPS)
def test_spread_models_compute_the_same(name: str) -> None:
    with torch.no_grad():
        options = {"num_hidden_layers": 3, "tie_word_embeddings": False}
        wanted = steps(tiny_model(**options))
        with Devices():
            model = tiny_model(**options)
            put(model, MAPS[name])
            got = steps(model)
    assert model.device == FIRST
    assert all(x.device == FIRST for x in got)
    for one, other in zip(wanted, got, strict=True):
        torch.testing.assert_close(plain(other), one, rtol=1e-5, atol=1e-5)


def test_weights_come_and_go() -> None:
    with torch.no_grad(), Devices():
        model = tiny_model(num_hidden_layers=3)
        put(model, MAPS["cpu"])
        layer = model.text.layers[1]
        seen = []
        layer.mlp.register_forward_hook(lambda *_: seen.append(layer.mlp.up_proj.weight.device))
        steps(model)
        assert seen == [FIRST] * 3
        assert layer.mlp.up_proj.weight.device.type == "cpu"


def test_weights_go_also_when_a_layer_fails() -> None:
    with torch.no_grad(), Devices():
        model = tiny_model(num_hidden_layers=3)
        put(model, MAPS["cpu"])
        mlp = model.text.layers[1].mlp

        def fail(*_: Any) -> None:
            raise RuntimeError("no")

        handle = mlp.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="no"):
            steps(model)
        handle.remove()
        assert mlp.up_proj.weight.device.type == "cpu"


def test_without_hooks_the_pretence_refuses() -> None:
    """The check itself: a model whose layers lie apart cannot run without dispatch."""
    with torch.no_grad(), Devices():
        model = tiny_model(num_hidden_layers=3, tie_word_embeddings=False)
        put(model, MAPS["two"])
        for part in model.modules():
            part._forward_pre_hooks.clear()
        with pytest.raises(RuntimeError, match="tensors on ipu:0 and ipu:1"):
            steps(model)


def test_a_block_in_two_places_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "existing", torch.device)
    with pytest.raises(ValueError, match=r"device_map divides model\.language_model\.layers\.0 "):
        plan_placement(tiny_model(), {"": "ipu:0", f"{LAYERS}.0.mlp": "ipu:1"})
    assert plan_placement(tiny_model(), {"": "cpu", f"{LAYERS}.0.mlp": "disk"}).is_spread
