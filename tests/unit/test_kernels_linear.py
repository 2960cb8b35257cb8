"""kernels/linear.py: nn.Linear's meaning on every path, and results that do not depend on the batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.kernels.linear import linear
from qwenvl.kernels.native import library

native = pytest.mark.skipif(library() is None, reason="no native library here")
SHAPES = [(1, 1, 1), (1, 48, 32), (3, 5, 31), (2, 50, 33), (7, 97, 588), (16, 256, 2048), (5, 30, 3420), (16, 3, 13000)]
LARGE = [(17, 1, 1), (17, 33, 31), (23, 64, 65), (40, 100, 588), (300, 257, 1280), (65, 70, 3420), (640, 256, 2048)]


def draw(M: int, N: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(M * 31 + N * 7 + K)
    return tuple(torch.randn(*shape, generator=generator).bfloat16() for shape in ((M, K), (N, K), (N,)))  # type: ignore[return-value]


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


def close(out: Tensor, want: Tensor, K: int) -> None:
    """float32 sums: an error of a few units of the last place of the largest partial sum; bf16: one rounding more."""
    rounding = 2**-8 * want.abs() if out.dtype == torch.bfloat16 else 0.0
    assert ((out.double() - want).abs() <= rounding + 2e-6 * K**0.5 * (1 + K**0.5)).all()


@pytest.mark.parametrize(("M", "N", "K"), SHAPES + LARGE)
def test_it_is_the_product_rounded_once(M: int, N: int, K: int) -> None:
    x, weight, bias = draw(M, N, K)
    with torch.no_grad():
        for b in (None, bias):
            out = linear(x, weight, b)
            assert out.dtype == torch.bfloat16
            assert out.shape == (M, N)
            close(out, exact(x, weight, b), K)


@native
@pytest.mark.parametrize(("M", "N", "K"), SHAPES + LARGE)
def test_float32_results_are_not_rounded_to_bfloat16(M: int, N: int, K: int) -> None:
    x, weight, bias = draw(M, N, K)
    with torch.no_grad():
        out = linear(x, weight, bias, torch.float32)
    assert out.dtype == torch.float32
    close(out, exact(x, weight, bias), K)


@native
@pytest.mark.parametrize(("N", "K"), [(50, 2048), (61, 3420), (25, 11008)])
def test_a_row_does_not_depend_on_the_rows_beside_it(N: int, K: int) -> None:
    x, weight, bias = draw(16, N, K)
    with torch.no_grad():
        alone = torch.cat([linear(row[None], weight, bias, torch.float32) for row in x])
        for M in range(1, 17):
            assert torch.equal(linear(x[:M], weight, bias, torch.float32), alone[:M])


@native
@pytest.mark.parametrize(("N", "K"), [(50, 2048), (300, 588)])
def test_neither_does_it_among_many_rows(N: int, K: int) -> None:
    x, weight, bias = draw(1300, N, K)
    with torch.no_grad():
        together = linear(x, weight, bias, torch.float32)
        for start, M in ((0, 17), (3, 24), (100, 41), (17, 600), (99, 1201)):
            assert torch.equal(linear(x[start : start + M], weight, bias, torch.float32), together[start : start + M])


def test_rows_may_lie_apart_and_have_any_number_of_dimensions() -> None:
    x, weight, bias = draw(6, 40, 64)
    wide = torch.cat([x, x], -1)
    with torch.no_grad():
        want = linear(x, weight, bias)
        assert torch.equal(linear(wide[:, :64], weight, bias), want)
        assert torch.equal(linear(x.view(2, 3, 64), weight, bias).view(6, 40), want)
        assert torch.equal(linear(x[0], weight, bias), linear(x[:1], weight, bias)[0])
        close(linear(x.t().contiguous().t(), weight, bias), exact(x, weight, bias), 64)
        close(linear(x[:1].expand(6, 64), weight, bias), exact(x[:1].expand(6, 64), weight, bias), 64)


@native
def test_nothing_is_written_beside_the_result() -> None:
    from qwenvl.kernels.linear import ADDRESS, LONG, native_function

    function = native_function("qv_linear_bf16", *[ADDRESS, LONG, *[ADDRESS] * 3, *[LONG] * 5])
    assert function is not None
    for M, N, K in ((5, 37, 70), (29, 37, 70)):
        x, weight, _ = draw(M, N, K)
        out = torch.full((M + 1, N + 3), 7.0)
        function(x.data_ptr(), K, weight.data_ptr(), 0, out.data_ptr(), N + 3, 1, M, N, K, 2)
        assert (out[:, N:] == 7).all()
        assert (out[M] == 7).all()
        close(out[:M, :N], exact(x, weight, None), K)


def test_gradients_other_types_and_empty_inputs_take_torch_s_way() -> None:
    x, weight, bias = draw(3, 4, 8)
    x.requires_grad_()
    linear(x, weight, bias).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, 8))
    wide = linear(x.float(), weight.float(), bias.float(), torch.bfloat16)
    assert wide.dtype == torch.bfloat16
    assert linear(torch.empty(0, 8, dtype=torch.bfloat16), weight, bias).shape == (0, 4)
    with pytest.raises(RuntimeError):
        linear(torch.empty(3, 9, dtype=torch.bfloat16), weight, bias)
