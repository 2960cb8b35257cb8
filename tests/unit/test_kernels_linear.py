"""kernels/linear.py: nn.Linear's meaning on every path, and results that do not depend on the batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.kernels.linear import linear
from qwenvl.kernels.native import ADDRESS, LONG, library, native_function

native = pytest.mark.skipif(library() is None, reason="no native library here")
SHAPES = [(1, 1, 1), (1, 48, 32), (3, 5, 31), (2, 50, 33), (7, 97, 588), (16, 256, 2048), (5, 30, 3420), (16, 3, 13000)]
LARGE = [(17, 1, 1), (17, 33, 31), (23, 64, 65), (40, 100, 588), (300, 257, 1280), (65, 70, 3420), (640, 256, 2048)]


def draw(m: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(m * 31 + n * 7 + k)
    return tuple(torch.randn(*shape, generator=generator).bfloat16() for shape in ((m, k), (n, k), (n,)))  # type: ignore[return-value]


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


def close(out: Tensor, want: Tensor, k: int) -> None:
    """float32 sums: an error of a few units of the last place of the largest partial sum; bf16: one rounding more."""
    rounding = 2**-8 * want.abs() if out.dtype == torch.bfloat16 else 0.0
    assert ((out.double() - want).abs() <= rounding + 2e-6 * k**0.5 * (1 + k**0.5)).all()


@pytest.mark.parametrize(("m", "n", "k"), SHAPES + LARGE)
def test_it_is_the_product_rounded_once(m: int, n: int, k: int) -> None:
    x, weight, bias = draw(m, n, k)
    with torch.no_grad():
        for b in (None, bias):
            out = linear(x, weight, b)
            assert out.dtype == torch.bfloat16
            assert out.shape == (m, n)
            close(out, exact(x, weight, b), k)


@native
@pytest.mark.parametrize(("m", "n", "k"), SHAPES + LARGE)
def test_float32_results_are_not_rounded_to_bfloat16(m: int, n: int, k: int) -> None:
    x, weight, bias = draw(m, n, k)
    with torch.no_grad():
        out = linear(x, weight, bias, torch.float32)
    assert out.dtype == torch.float32
    close(out, exact(x, weight, bias), k)


@native
@pytest.mark.parametrize(("n", "k"), [(50, 2048), (61, 3420), (25, 11008)])
def test_a_row_does_not_depend_on_the_rows_beside_it(n: int, k: int) -> None:
    x, weight, bias = draw(16, n, k)
    with torch.no_grad():
        alone = torch.cat([linear(row[None], weight, bias, torch.float32) for row in x])
        for m in range(1, 17):
            assert torch.equal(linear(x[:m], weight, bias, torch.float32), alone[:m])


@native
@pytest.mark.parametrize(("n", "k"), [(50, 2048), (300, 588)])
def test_neither_does_it_among_many_rows(n: int, k: int) -> None:
    x, weight, bias = draw(1300, n, k)
    with torch.no_grad():
        together = linear(x, weight, bias, torch.float32)
        for start, m in ((0, 17), (3, 24), (100, 41), (17, 600), (99, 1201)):
            assert torch.equal(linear(x[start : start + m], weight, bias, torch.float32), together[start : start + m])


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


def call(x: Tensor, weight: Tensor, out: Tensor, threads: int) -> None:
    function = native_function("qv_linear_bf16", ADDRESS, LONG, *[ADDRESS] * 3, *[LONG] * 5)
    assert function is not None
    (m, k), n = x.shape, weight.shape[0]
    function(x.data_ptr(), k, weight.data_ptr(), 0, out.data_ptr(), out.stride(0), 1, m, n, k, threads)


@native
def test_nothing_is_written_beside_the_result() -> None:
    for m, n, k in ((5, 37, 70), (29, 37, 70)):
        x, weight, _ = draw(m, n, k)
        out = torch.full((m + 1, n + 3), 7.0)
        call(x, weight, out, 2)
        assert (out[:, n:] == 7).all()
        assert (out[m] == 7).all()
        close(out[:m, :n], exact(x, weight, None), k)


@native
@pytest.mark.parametrize(("m", "n", "k"), [(3, 500, 300), (700, 90, 300), (1300, 600, 64)])
def test_threads_change_nothing(m: int, n: int, k: int) -> None:
    x, weight, _ = draw(m, n, k)
    alone, shared = torch.empty(m, n), torch.empty(m, n)
    call(x, weight, alone, 1)
    call(x, weight, shared, 3)
    assert torch.equal(alone, shared)


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
