"""kernels/quantized.py: what is packed, what comes back, and the product with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.kernels import quantized
from qwenvl.kernels.native import library
from qwenvl.kernels.quantized import PackedWeight, quantized_linear

native = pytest.mark.skipif(library() is None, reason="no native library here")
KINDS = [("int8", 128), ("int8", 32), ("int4", 32), ("int4", 64), ("int4", 128)]
SHAPES = [(1, 1, 1), (3, 33, 31), (2, 64, 256), (7, 40, 588), (13, 97, 300), (6, 32, 3420), (40, 100, 1280)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def rounded(x: Tensor, group: int) -> Tensor:
    """x as the native product sees it: 8 bits for a row's group."""
    k = x.shape[-1]
    groups = F.pad(x.float(), (0, -k % group)).view(len(x), -1, group)
    largest = groups.abs().amax(-1, keepdim=True)
    q = (groups * torch.where(largest > 0, torch.tensor(127.0) / largest, 0)).round()
    return (q.double() * (largest / 127).double()).view(len(x), -1)[:, :k]


def values(kind: str, n: int, k: int, group: int) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(n + k)
    q = torch.randint(0, 256 if kind == "int8" else 16, (n, k), generator=generator).to(torch.uint8)
    scales = torch.rand(n, -(-k // group), generator=generator).half()
    return q, scales, None if kind == "int8" else -8 * torch.rand(scales.shape, generator=generator).half()


@pytest.mark.parametrize(("kind", "group"), KINDS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 31), (64, 256), (97, 300)])
def test_values_come_back_as_they_were(kind: str, group: int, n: int, k: int) -> None:
    q, scales, minima = values(kind, n, k, group)
    packed = PackedWeight.from_values(q, scales, minima, group)
    assert (packed.kind, packed.group, packed.out_features, packed.in_features) == (kind, group, n, k)
    back = packed.values()
    assert torch.equal(back[0], q)
    assert torch.equal(back[1], scales)
    assert (back[2] is None) if minima is None else torch.equal(back[2], minima)
    each = scales.float().repeat_interleave(group, 1)[:, :k]
    want = each * (q.float() - 128) if minima is None else each * q + minima.float().repeat_interleave(group, 1)[:, :k]
    torch.testing.assert_close(packed.dequantize(), want)
    assert packed.dequantize(torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(("kind", "group", "most"), [("int8", 128, 0.0068), ("int4", 32, 0.088), ("int4", 128, 0.115)])
def test_the_error_of_packing_is_small(kind: quantized.Kind, group: int, most: float) -> None:
    """Relative to the spread of normal weights; the plain range of 4 bits at 32 gives 0.093."""
    weight = normal(96, 700) * 0.02
    packed = PackedWeight.pack(weight, kind, group)
    error = packed.dequantize() - weight.float()
    assert error.square().mean().sqrt() < most * 0.02
    assert packed.nbytes < 96 * 768 * (1 if kind == "int8" else 0.5) * 1.26
    torch.testing.assert_close(PackedWeight.pack(weight.float(), kind, group).dequantize(), packed.dequantize())


@native
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_both_ways_to_choose_agree(kind: quantized.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(70, 300)
    weight[3, :128] = 0
    weight[4] = 5
    weight[5, 7] = 400
    first = PackedWeight.pack(weight, kind, 32).dequantize()
    monkeypatch.setattr(quantized, "native_function", lambda *_: None)
    second = PackedWeight.pack(weight, kind, 32).dequantize()
    errors = [(w - weight.float()).square().view(70, -1) for w in (first, second)]
    assert abs(float(errors[0].sum() / errors[1].sum()) - 1) < 1e-3
    assert (first != second).float().mean() < 0.01
    assert torch.equal(first[3, :128], torch.zeros(128))
    torch.testing.assert_close(first[4], weight[4].float(), rtol=1e-3, atol=0)


def test_large_weights_are_packed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(100, 96)
    whole = PackedWeight.pack(weight, "int4")
    monkeypatch.setattr(quantized, "CHUNK", 96 * 32)
    pieces = PackedWeight.pack(weight, "int4")
    assert torch.equal(pieces.data, whole.data)
    assert torch.equal(pieces.dequantize(), whole.dequantize())
    assert pieces.out_features == 100


@pytest.mark.parametrize(("kind", "group"), KINDS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_the_product(kind: str, group: int, m: int, n: int, k: int) -> None:
    packed = PackedWeight.from_values(*values(kind, n, k, group), group)
    x, bias = normal(m, k), normal(n)
    with torch.no_grad():
        out, wide = quantized_linear(x, packed, bias), quantized_linear(x, packed, None, torch.float32)
    assert (out.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    seen = x.double() if library() is None else rounded(x, group)
    want = F.linear(seen, packed.dequantize().double())
    slack = 1e-5 if library() is not None else 1e-2
    torch.testing.assert_close(wide.double(), want, rtol=slack, atol=slack * float(want.abs().max()))
    torch.testing.assert_close(out.double(), want + bias, rtol=2**-8 + slack, atol=slack * float(want.abs().max()))


@native
@pytest.mark.parametrize(("kind", "group"), KINDS)
@pytest.mark.parametrize("k", [300, 2048])
def test_a_row_does_not_depend_on_the_rows_beside_it(kind: str, group: int, k: int) -> None:
    packed = PackedWeight.from_values(*values(kind, 200, k, group), group)
    x = normal(300, k)
    with torch.no_grad():
        alone = torch.cat([quantized_linear(row[None], packed, None, torch.float32) for row in x])
        for m in (*range(1, 20), 64, 300):
            assert torch.equal(quantized_linear(x[:m], packed, None, torch.float32), alone[:m])


@native
def test_nothing_is_written_beside_the_result() -> None:
    function = quantized.product()
    assert function is not None
    for kind, group in KINDS:
        packed = PackedWeight.from_values(*values(kind, 37, 70, group), group)
        low = 0 if packed.minima is None else packed.minima.data_ptr()
        for m in (5, 29):
            x, out = normal(m, 70), torch.full((m + 1, 40), 7.0)
            weight = packed.data.data_ptr(), packed.scales.data_ptr(), low
            function(x.data_ptr(), 70, *weight, 0, out.data_ptr(), 40, 1, m, 37, 70, group, 2)
            assert (out[:, 37:] == 7).all()
            assert (out[m] == 7).all()


def test_activations_of_zero_and_not_a_number() -> None:
    packed = PackedWeight.pack(normal(8, 64), "int8", 32)
    x = normal(3, 64)
    x[0], x[1, 40] = 0, torch.nan
    with torch.no_grad():
        out = quantized_linear(x, packed)
    assert (out[0] == 0).all()
    assert out[1].isnan().all()
    assert out[2].isfinite().all()


def test_rows_may_lie_apart_and_gradients_reach_x() -> None:
    packed, x = PackedWeight.pack(normal(40, 64), "int4"), normal(6, 64)
    with torch.no_grad():
        want = quantized_linear(x, packed)
        assert torch.equal(quantized_linear(torch.cat([x, x], -1)[:, :64], packed), want)
        assert torch.equal(quantized_linear(x.view(2, 3, 64), packed).view(6, 40), want)
        assert quantized_linear(x.float(), packed).dtype == torch.float32
        assert quantized_linear(x[:0], packed).shape == (0, 40)
    leaf = x.float().requires_grad_()
    quantized_linear(leaf, packed).sum().backward()
    torch.testing.assert_close(leaf.grad, packed.dequantize().sum(0).expand(6, 64))


def test_what_cannot_be_packed_is_named() -> None:
    with pytest.raises(ValueError, match="int3"):
        PackedWeight.pack(normal(4, 4), "int3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="group 48"):
        PackedWeight.pack(normal(4, 4), "int8", 48)
    with pytest.raises(ValueError, match="not finite"):
        PackedWeight.pack(normal(4, 4) / 0, "int8")
    with pytest.raises(ValueError, match=r"\[4\]"):
        PackedWeight.pack(normal(4), "int8")
    q, scales, minima = values("int4", 4, 64, 32)
    with pytest.raises(ValueError, match="0 to 16"):
        PackedWeight.from_values(q.clamp(max=0) + torch.eye(4, 64) * 16, scales, minima, 32)
    with pytest.raises(ValueError, match="scales have the shape"):
        PackedWeight.from_values(q, scales[:, :1], minima, 32)
    with pytest.raises(ValueError, match="within float16"):
        PackedWeight.from_values(q, scales.float() * 1e6, minima, 32)
    packed = PackedWeight.from_values(q, scales, minima, 32)
    with pytest.raises(ValueError, match="expected 64"):
        quantized_linear(normal(2, 65), packed)
    assert replace(packed, out_features=3).dequantize().shape == (3, 64)
