"""Packing for the inputs that come: outputs are nearer than those of packing alone, layer by layer and in the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from qwenvl.quantization import INT4, INT8, Scheme, calibrate, choose, options_of, pack
from qwenvl.quantization.calibrate import Moments, compensate, packed_layers
from qwenvl.types import PackedBatch, SeqInfo


def inputs(rows: int, width: int, seed: int = 0) -> Tensor:
    """Inputs that depend on each other, as those of language models do: a few directions and a little of all."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(width // 8, width, generator=torch.Generator().manual_seed(99))
    return torch.randn(rows, width // 8, generator=draw) @ mix + 0.3 * torch.randn(rows, width, generator=draw)


def error(weight: Tensor, packed: Any, x: Tensor) -> float:
    """Mean squared error of the outputs, in units of their mean square."""
    wanted = x.double() @ weight.double().T
    return float((x.double() @ packed.dequantize().double().T - wanted).square().mean() / wanted.square().mean())


def moments_of(x: Tensor) -> Moments:
    moments = Moments(x.shape[1])
    for part in x.split(100):
        moments.add(part)
    return moments


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_are_sums_over_rows(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SPAN", 64)
    x = inputs(300, 80).to(dtype)
    moments = moments_of(x)
    whole = x.double().T @ x.double()
    assert moments.rows == 300
    assert [len(one) for one in moments.sums] == [64, 16]
    torch.testing.assert_close(moments.sums[0].double(), whole[:64, :64], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(moments.sums[1].double(), whole[64:, 64:], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scheme", [INT4, Scheme("int4", 64), INT8], ids=str)
@pytest.mark.parametrize("width", [96, 112])  # whole groups, and a last one that is not full
def test_outputs_are_nearer_on_fresh_inputs(scheme: Scheme, width: int) -> None:
    weight = torch.randn(40, width, generator=torch.Generator().manual_seed(5))
    packed = compensate(weight, moments_of(inputs(2000, width)), scheme)
    plain, fresh = pack(weight, scheme), inputs(500, width, seed=1)
    assert (packed.kind, packed.group, packed.nbytes) == (plain.kind, plain.group, plain.nbytes)
    assert error(weight, packed, fresh) < 0.5 * error(weight, plain, fresh)


def test_pieces_lose_little_and_rows_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(70, 128, generator=torch.Generator().manual_seed(5)), inputs(2000, 128)
    whole = compensate(weight, moments_of(x), INT4)
    monkeypatch.setattr(calibrate, "ROWS", 32)
    assert torch.equal(compensate(weight, moments_of(x), INT4).data, whole.data)
    monkeypatch.setattr(calibrate, "SPAN", 64)
    pieces = compensate(weight, moments_of(x), INT4)
    assert error(weight, whole, x) < error(weight, pieces, x) < error(weight, pack(weight, INT4), x)


def test_the_factor_is_that_of_the_inverse() -> None:
    x = inputs(400, 24).double()
    moments = (x.T @ x / 400).float()
    damped = moments.double()
    damped.diagonal().add_(calibrate.DAMPING * moments.double().diagonal().mean())
    factor = calibrate._factor(moments).double()
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(24).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 1])
def test_inputs_that_say_nothing(rows: int) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    moments = Moments(64)
    moments.add(torch.zeros(rows, 64))
    packed = compensate(weight, moments, INT4)
    assert (packed.dequantize() - weight.float()).abs().max() < 0.25
    with pytest.raises(ValueError, match="not finite"):
        compensate(torch.full((32, 64), float("nan")), moments, INT4)


def batch(length: int, seed: int, wanted: int) -> PackedBatch:
    ids = torch.randint(5, 50, (length,), generator=torch.Generator().manual_seed(seed))
    return PackedBatch(
        token_ids=ids,
        positions=torch.arange(length).expand(3, -1),
        seq=SeqInfo.from_lengths([length]),
        logits_index=torch.arange(length - wanted, length),
    )


def test_layers_come_in_order_and_the_whole_is_nearer() -> None:
    samples = [batch(40 + i, i, 30) for i in range(30)]
    fresh = [batch(50, 1000 + i, 50) for i in range(8)]
    model = tiny_model(initializer_range=0.5).to(torch.bfloat16)
    with torch.no_grad():
        wanted = torch.cat([model.run(one) for one in fresh]).double()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    schemes = {name: one for name, one in choose(shapes, options_of("int4")).items() if "visual" not in name}

    def distance(weights: dict[str, Any]) -> float:
        other = tiny_model(initializer_range=0.5).to(torch.bfloat16)
        from qwenvl.quantization import swap

        for name, packed in weights.items():
            swap(other, name, packed, other.dtype)
        with torch.no_grad():
            found = torch.cat([other.run(one) for one in fresh]).double()
        return float((found - wanted).square().mean())

    plain = {name: pack(model.get_submodule(name).weight, scheme) for name, scheme in schemes.items()}
    told: list[tuple[int, int]] = []
    found = dict(packed_layers(model, samples, schemes, lambda *at: told.append(at)))
    assert told == [(1, 2), (2, 2)]
    assert list(found)[-1] == "lm_head"
    assert found.keys() == schemes.keys()
    assert ["layers.0." in name for name in found] == [True] * 7 + [False] * 8
    assert distance(found) < 0.85 * distance(plain)


def test_nothing_to_calibrate_with() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        next(packed_layers(tiny_model(), [], {"lm_head": INT4}))


def test_groups_that_do_not_fill_a_piece_are_refused() -> None:
    model, batches = tiny_model(), [batch(20, 0, 10)]
    schemes = {"model.language_model.layers.0.mlp.down_proj": Scheme("int4", 96)}
    with pytest.raises(ValueError, match="groups of 96 cannot be calibrated: expected a divisor of 2048"):
        next(packed_layers(model, batches, schemes))


def test_what_is_not_packed_is_left() -> None:
    model = tiny_model().to(torch.bfloat16)
    name = "model.language_model.layers.1.mlp.up_proj"
    found = dict(packed_layers(model, [batch(20, 0, 10)], {name: INT8}))
    assert list(found) == [name]
