"""kernels/rows.py: native code against float64, against torch's operators, and where it must not run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.kernels import rows
from qwenvl.kernels.native import library, reason
from qwenvl.kernels.rows import add_rms_norm, rms_norm, rotate_rows, silu_mul
from qwenvl.model.layers import RMSNorm
from qwenvl.model.rope import rotate

native = pytest.mark.skipif(library() is None, reason=f"no native library: {reason()}")
BF16 = torch.bfloat16
SIZES = [(1, 2048), (3, 1280), (70, 96), (5, 7), (300, 1024), (2, 3, 40)]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def only_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_native", lambda: None)


def ulps(a: Tensor, b: Tensor) -> Tensor:
    """Distance of bf16 values in units of the last place."""
    a, b = (x.contiguous().view(torch.int16).int() for x in (a, b))
    a, b = (torch.where(x < 0, -32768 - x, x) for x in (a, b))
    return (a - b).abs()


@native
@pytest.mark.parametrize("shape", SIZES)
def test_rms_norm_is_the_layer_s(shape: tuple[int, ...]) -> None:
    layer = RMSNorm(shape[-1], 1e-6).to(BF16)
    layer.weight.data = noise(shape[-1], seed=1)
    x = noise(*shape) * 3
    with torch.no_grad():
        expected, out = layer(x), rms_norm(x, layer.weight, 1e-6)
    assert out.shape == shape
    assert (ulps(out, expected) > 0).float().mean() < 0.01  # a sum in another order may tip a rounding
    assert ulps(out, expected).max() <= 2


@native
@pytest.mark.parametrize("shape", SIZES)
def test_add_rms_norm_rounds_the_sum_first(shape: tuple[int, ...]) -> None:
    x, delta, weight = noise(*shape), noise(*shape, seed=1), noise(shape[-1], seed=2)
    total, out = add_rms_norm(x, delta, weight, 1e-6)
    assert torch.equal(total, x + delta)
    assert torch.equal(out, rms_norm(x + delta, weight, 1e-6))


@native
def test_norm_of_strided_rows() -> None:
    wide, weight = noise(9, 3 * 64), noise(64, seed=1)
    x, delta = wide[:, 64:128], wide[:, 128:]
    assert torch.equal(rms_norm(x, weight, 1e-6), rms_norm(x.contiguous(), weight, 1e-6))
    expected = add_rms_norm(x.contiguous(), delta.contiguous(), weight, 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(add_rms_norm(x, delta, weight, 1e-6), expected, strict=True))


@native
@pytest.mark.parametrize("shape", SIZES)
def test_silu_mul_is_torch_s(shape: tuple[int, ...]) -> None:
    gate, up = noise(*shape) * 8, noise(*shape, seed=1)
    expected = F.silu(gate) * up
    out = silu_mul(gate, up)
    assert (ulps(out, expected) > 0).float().mean() < 0.01
    assert ulps(out, expected).max() <= 2


@native
def test_silu_mul_of_extremes_and_in_place() -> None:
    gate = torch.tensor([[0.0, -0.0, 3e38, -3e38, 100.0, -100.0, -88.0, float("inf"), float("nan")]], dtype=BF16)
    up = torch.ones_like(gate)
    expected = F.silu(gate) * up
    both = torch.cat((gate, up), dim=1)
    half = both[:, :9]
    assert silu_mul(half, both[:, 9:], out=half) is half
    assert torch.allclose(half.float(), expected.float(), rtol=1e-2, atol=1e-30, equal_nan=True)
    assert torch.equal(both[:, 9:], up)


@native
@pytest.mark.parametrize(("heads", "size"), [(16, 128), (2, 80), (3, 16), (1, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_rotation_in_float32_rounded_once(heads: int, size: int, dtype: torch.dtype) -> None:
    tokens = 40
    qkv = noise(tokens, 3, heads, size)
    angles = noise(tokens, 1, size // 2, seed=1, dtype=torch.float32) * 10
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    x = qkv[:, 1]
    exact = rotate(x.double(), (cos.double(), sin.double()))
    out = rotate_rows(x, cos, sin)
    assert out.is_contiguous()
    assert (ulps(out, exact.to(BF16)) > 0).float().mean() < 1e-3
    assert (out.double() - exact).abs().max() <= (rotate(x, (cos.to(BF16), sin.to(BF16))).double() - exact).abs().max()
    before = qkv.clone()
    assert rotate_rows(x, cos, sin, out=x) is x
    assert torch.equal(qkv[:, 1], out)
    assert torch.equal(qkv[:, ::2], before[:, ::2])


@native
def test_a_row_does_not_depend_on_the_others_nor_on_threads() -> None:
    x, y, weight = noise(200, 1024), noise(200, 1024, seed=1), noise(1024, seed=2)
    angles = noise(200, 1, 64, dtype=torch.float32)
    whole = (
        rms_norm(x, weight, 1e-6),
        silu_mul(x, y),
        rotate_rows(x.view(200, 8, 128), angles.cos(), angles.sin()).flatten(1),
    )
    for at in (0, 7, 199):
        one = slice(at, at + 1)
        alone = (
            rms_norm(x[one], weight, 1e-6),
            silu_mul(x[one], y[one]),
            rotate_rows(x[one].view(1, 8, 128), angles[one].cos(), angles[one].sin()).flatten(1),
        )
        assert all(torch.equal(a[one], b) for a, b in zip(whole, alone, strict=True))


def check_meaning(dtype: torch.dtype) -> None:
    """The functions against their formulas in float64."""
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    x, y, weight = (noise(6, 32, seed=i, dtype=dtype) for i in range(3))
    weight, angles = weight[0], noise(6, 1, 16, seed=3, dtype=torch.float32)
    cos, sin = angles.cos(), angles.sin()

    def norm(a: Tensor) -> Tensor:
        return a / (a.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()

    total, out = add_rms_norm(x, y, weight, 1e-6)
    pairs = [
        (rms_norm(x, weight, 1e-6), norm(x.double())),
        (total, x.double() + y.double()),
        (out, norm(x.double() + y.double())),
        (silu_mul(x, y), F.silu(x.double()) * y.double()),
        (rotate_rows(x.unsqueeze(1), cos, sin), rotate(x.double().unsqueeze(1), (cos.double(), sin.double()))),
    ]
    for got, expected in pairs:
        assert got.dtype == dtype
        assert torch.allclose(got.double(), expected, rtol=tolerance, atol=tolerance)
    target = torch.empty_like(x)
    assert silu_mul(x, y, out=target) is target
    assert torch.equal(target, pairs[3][0])


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_torch_s_operators_mean_the_same(dtype: torch.dtype, only_torch: None) -> None:
    check_meaning(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_whatever_runs_means_the_same(dtype: torch.dtype) -> None:
    check_meaning(dtype)


def test_gradients_flow() -> None:
    x, y = noise(4, 32).requires_grad_(), noise(4, 32, seed=1).requires_grad_()
    weight, angles = noise(32, seed=2).requires_grad_(), noise(4, 1, 16, dtype=torch.float32)
    total, out = add_rms_norm(x, y, weight, 1e-6)
    turned = rotate_rows(silu_mul(out, total).unsqueeze(1), angles.cos(), angles.sin())
    turned.float().square().sum().backward()
    assert all(z.grad is not None and bool(z.grad.abs().sum() > 0) for z in (x, y, weight))
