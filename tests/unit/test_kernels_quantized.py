"""kernels/quantized.py: what is packed, what comes back, and the product with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.kernels import quantized, rounding
from qwenvl.kernels.native import library
from qwenvl.kernels.quantized import PackedWeight, quantized_linear

native = pytest.mark.skipif(library() is None, reason="no native library here")
KINDS: list[tuple[quantized.Kind, int, bool]] = [  # with the group, and whether there are zeros
    ("int8", 128, False), ("int8", 32, False), ("int8", 16, True), ("int8", 128, True), ("int4", 16, True),
    ("int4", 32, True), ("int4", 128, True),
]  # fmt: skip
FORMS = pytest.mark.parametrize(("kind", "group", "zeros"), KINDS)
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


def values(kind: str, n: int, k: int, group: int, with_zeros: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(n + k)
    most = 255 if kind == "int8" else 15
    q = torch.randint(0, most + 1, (n, k), generator=generator).to(torch.uint8)
    scales = torch.rand(n, -(-k // group), generator=generator).half()
    return q, scales, (most * torch.rand(scales.shape, generator=generator)).half() if with_zeros else None


def packed_of(kind: quantized.Kind, n: int, k: int, group: int, with_zeros: bool = True) -> PackedWeight:
    return PackedWeight.from_values(*values(kind, n, k, group, with_zeros), kind=kind, group=group)


def by_columns(x: Tensor, group: int, k: int) -> Tensor:
    return x.repeat_interleave(group, 1)[:, :k]


@FORMS
@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 31), (64, 256), (97, 300)])
def test_values_come_back_as_they_were(kind: quantized.Kind, group: int, zeros: bool, n: int, k: int) -> None:
    q, scales, at = values(kind, n, k, group, zeros)
    packed = PackedWeight.from_values(q, scales, at, kind=kind, group=group)
    assert (packed.kind, packed.group, packed.out_features, packed.in_features) == (kind, group, n, k)
    back = packed.values()
    assert torch.equal(back[0], q)
    assert torch.equal(back[1], scales)
    assert (back[2] is None) if at is None else torch.equal(back[2], at)  # type: ignore[arg-type]
    from_zero = q - 128.0 if at is None else q.double() - by_columns(at.double(), group, k)
    torch.testing.assert_close(packed.dequantize().double(), by_columns(scales, group, k).double() * from_zero)
    assert packed.dequantize(torch.bfloat16).dtype == torch.bfloat16
    assert packed.nbytes == sum(x.nbytes for x in (packed.data, packed.scales, packed.zeros) if x is not None)


@FORMS
def test_integers_of_others_mean_exactly_what_they_meant(kind: quantized.Kind, group: int, zeros: bool) -> None:
    """Scales in float16 or bfloat16 and zeros that are integers: every weight is theirs to the last bit."""
    q, scales, at = values(kind, 40, 300, group, zeros)
    whole = None if at is None else at.round()
    from_zero = q - (128.0 if whole is None else by_columns(whole.float(), group, 300))
    for unit in (1.0, 2.0**-30, 2.0**20):  # bfloat16 reaches where float16 does not
        for given in (scales.bfloat16() * unit, *([scales] if unit == 1 else [])):
            packed = PackedWeight.from_values(q, given, whole, kind=kind, group=group)
            assert torch.equal(packed.dequantize(), by_columns(given.float(), group, 300) * from_zero)
    assert packed.exponent != 0


def test_scales_beyond_float16_are_kept() -> None:
    """One group of 1e-8 beside one of 0.1, and one of 1e6: rounded to 11 bits, neither lost nor cut off."""
    q, _, zeros = values("int4", 4, 96, 32)
    scales = torch.tensor([[1e-8, 0.1, 0.03], [0.1, 0.1, -0.1], [1e-3, 1e-8, 0.0], [0.1, 0.2, 0.3]])
    packed = PackedWeight.from_values(q, scales, zeros, kind="int4", group=32)
    want = by_columns(scales, 32, 96) * (q - by_columns(zeros.float(), 32, 96))  # type: ignore[union-attr]
    torch.testing.assert_close(packed.dequantize(), want, rtol=2**-11, atol=0)
    for large in (scales * 1e8, scales * 1e-20):
        packed = PackedWeight.from_values(q, large, zeros, kind="int4", group=32)
        torch.testing.assert_close(packed.dequantize() / large.max(), want / 0.3, rtol=2**-10, atol=0)
        x = normal(3, 96)
        with torch.no_grad():
            out = quantized_linear(x, packed, None, torch.float32)
        torch.testing.assert_close(
            out, F.linear(x.float(), packed.dequantize()), rtol=0.1, atol=float(out.abs().max() / 50)
        )


@FORMS
def test_columns_in_another_order(kind: quantized.Kind, group: int, zeros: bool) -> None:
    """x's features are taken in the order in which their weights were packed; the weight comes back in x's own."""
    given, order = values(kind, 40, 300, group, zeros), torch.randperm(300, generator=torch.Generator().manual_seed(1))
    plain = PackedWeight.from_values(*given, kind=kind, group=group)
    packed = PackedWeight.from_values(*given, kind=kind, group=group, order=order)
    assert packed.nbytes == plain.nbytes + 300 * 8
    weight = packed.dequantize()
    assert torch.equal(weight[:, order], plain.dequantize())
    x = normal(5, 300)
    with torch.no_grad():
        assert torch.equal(quantized_linear(x, packed), quantized_linear(x[:, order], plain))
        assert torch.equal(quantized_linear(x.view(1, 5, 300), packed)[0], quantized_linear(x, packed))
        wide = quantized_linear(x.double(), packed)
    torch.testing.assert_close(wide, F.linear(x.double(), weight.double()))


def test_columns_that_fill_up_the_last_group() -> None:
    q, scales, zeros = values("int4", 8, 96, 32)
    packed = PackedWeight.from_values(q, scales, zeros, kind="int4", group=32, in_features=70)
    whole = PackedWeight.from_values(q, scales, zeros, kind="int4", group=32)
    assert torch.equal(packed.dequantize(), whole.dequantize()[:, :70])
    x = normal(3, 70)
    with torch.no_grad():
        assert torch.equal(quantized_linear(x, packed), quantized_linear(F.pad(x, (0, 26)), whole))


@pytest.mark.parametrize(("kind", "group", "most"), [("int8", 128, 0.0068), ("int4", 32, 0.0835), ("int4", 128, 0.113)])
def test_the_error_of_packing_is_small(kind: quantized.Kind, group: int, most: float) -> None:
    """Relative to the spread of normal weights; the plain range of 4 bits at 32 gives 0.093."""
    weight = normal(96, 700) * 0.02
    packed = PackedWeight.pack(weight, kind, group)
    error = packed.dequantize() - weight.float()
    assert error.square().mean().sqrt() < most * 0.02
    assert packed.nbytes < 96 * 768 * (1 if kind == "int8" else 0.5) * 1.26
    torch.testing.assert_close(PackedWeight.pack(weight.float(), kind, group).dequantize(), packed.dequantize())


def least_squares(w: Tensor, count: Tensor) -> Tensor:
    """Squared error of the best 16 even steps for groups w [G, n] in float64: every range that begins and ends between
    the values' own ends in 40 steps, each with the best line through what it gives."""
    w, count = w.double(), count.double()
    least, spread = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True) - w.amin(-1, keepdim=True)
    best = (count * (w - (count * w).sum(-1, keepdim=True) / count.sum(-1, keepdim=True)).square()).sum(-1)
    for cut_below in range(20):
        for cut_above in range(20):
            scale = spread * (40 - cut_below - cut_above) / 40 / 15
            q = ((w - least - spread * cut_below / 40) / scale).round().clamp(0, 15).nan_to_num(0)
            n, total, w_mean = count.sum(-1), (count * q).sum(-1), (count * w).sum(-1) / count.sum(-1)
            centred = w - w_mean[:, None]
            variance = (count * q * q).sum(-1) - total * total / n
            slope = torch.where(variance > 1e-9, (count * q * centred).sum(-1) / variance, 0)
            missed = centred - slope[:, None] * (q - (total / n)[:, None])
            best = torch.minimum(best, (count * missed.square()).sum(-1))
    return best


def strange_groups() -> Tensor:
    """Groups of 32 that a range is hard to find for."""
    generator = torch.Generator().manual_seed(3)
    normals = torch.randn(24, 32, generator=generator)
    groups = [
        *normals[:8], *(normals[8:12] * 1e-6), *(normals[12:14] * 1e30), normals[14] * 1e-3 + 1, normals[15] * 1e-4 - 3,
        normals[16] * 1e-6 + 1, torch.zeros(32), torch.full((32,), 0.37), torch.full((32,), -5e4),
        torch.full((32,), 2e-5), F.pad(torch.tensor([1e3]), (0, 31)), F.pad(torch.tensor([-1.0, 1.0]), (0, 30)),
        normals[17].abs() + 3, normals[18].exp(), torch.arange(32.0), torch.full((32,), 3e-9),
    ]  # fmt: skip
    return torch.stack(groups)


@pytest.mark.parametrize("way", ["native", "torch"])
@pytest.mark.parametrize("weighted", [False, True])
def test_four_bits_come_near_the_least_squares(way: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group for itself, as a weight of one row: far from zero, constant, tiny, huge and with one large value too.
    The bound beside the factor is float16's: of the group's values, an eighth of its last bit."""
    if way == "torch":
        monkeypatch.setattr(rounding, "native_function", lambda *_: None)
    groups = strange_groups()
    count = torch.rand(32, generator=torch.Generator().manual_seed(4)) ** 2 if weighted else torch.ones(32)
    bound = least_squares(groups, count.expand(len(groups), 32))
    for row, least in zip(groups, bound, strict=True):
        packed = PackedWeight.pack(row[None], "int4", 32, count if weighted else None)
        missed = float((count * (packed.dequantize()[0].double() - row.double()).square()).sum())
        assert missed <= 1.25 * float(least) + 32 * (float(row.abs().max()) * 2**-14) ** 2, (
            row,
            missed,
            least,
        )


@pytest.mark.parametrize("way", ["native", "torch"])
def test_a_group_far_from_zero_beside_others(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All strange groups that fit in one weight, beside each other: they share an exponent, and nothing else."""
    if way == "torch":
        monkeypatch.setattr(rounding, "native_function", lambda *_: None)
    groups = strange_groups()
    groups = groups[groups.abs().amax(-1) < 1e29]
    whole = PackedWeight.pack(groups.flatten()[None], "int4", 32).dequantize().view_as(groups)
    for row, together in zip(groups, whole, strict=True):
        alone = PackedWeight.pack(row[None], "int4", 32).dequantize()[0]
        error, own = ((x - row).square().sum().sqrt() for x in (together, alone))
        assert error <= 1.01 * own + row.abs().max() * 2**-11 + 5e4 * 2**-35, row


def test_importance_moves_the_error_to_where_it_counts_less() -> None:
    weight, x = normal(64, 256).float(), normal(400, 256, seed=1).float()
    x = x * torch.logspace(-1.5, 0, 256)[torch.randperm(256, generator=torch.Generator().manual_seed(2))]
    counts = x.square().mean(0)
    for kind, group, most in (("int4", 32, 0.75), ("int4", 128, 0.8), ("int8", 128, 1.0)):
        plain = PackedWeight.pack(weight, kind, group).dequantize()  # type: ignore[arg-type]
        chosen = PackedWeight.pack(weight, kind, group, counts).dequantize()  # type: ignore[arg-type]
        errors = [F.linear(x, w - weight).square().mean() for w in (plain, chosen)]
        assert errors[1] < most * errors[0], (kind, group, errors)
    # Unimportant values are cut off in 8 bits too, and a group in which nothing counts is packed as without.
    weight[:, 5] = 9
    counts[5], counts[128:] = 0, 0
    chosen, plain = PackedWeight.pack(weight, "int8", 128, counts), PackedWeight.pack(weight, "int8", 128)
    assert (chosen.dequantize()[:, 5] < 7).all()
    assert torch.equal(chosen.dequantize()[:, 128:], plain.dequantize()[:, 128:])
    scaled = PackedWeight.pack(weight, "int8", 128, counts * 1e-12)
    assert torch.equal(scaled.dequantize(), chosen.dequantize())


@native
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("weighted", [False, True])
def test_both_ways_to_choose_agree(kind: quantized.Kind, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(70, 300)
    weight[3, :128] = 0
    weight[4] = 5
    weight[5, 7] = 400
    counts = torch.rand(300, generator=torch.Generator().manual_seed(0)) if weighted else None
    first = PackedWeight.pack(weight, kind, 32, counts).dequantize()
    monkeypatch.setattr(rounding, "native_function", lambda *_: None)
    second = PackedWeight.pack(weight, kind, 32, counts).dequantize()
    errors = [(w - weight.float()).square() for w in (first, second)]
    assert abs(float(errors[0].sum() / errors[1].sum()) - 1) < 1e-3
    assert ((first - second).abs() > 0.02 * second.abs().mean()).float().mean() < 0.005
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


@FORMS
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_the_product(kind: quantized.Kind, group: int, zeros: bool, m: int, n: int, k: int) -> None:
    packed = packed_of(kind, n, k, group, zeros)
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
@FORMS
@pytest.mark.parametrize("k", [300, 2048])
def test_a_row_does_not_depend_on_the_rows_beside_it(kind: quantized.Kind, group: int, zeros: bool, k: int) -> None:
    packed = packed_of(kind, 200, k, group, zeros)
    x = normal(300, k)
    with torch.no_grad():
        alone = torch.cat([quantized_linear(row[None], packed, None, torch.float32) for row in x])
        for m in (*range(1, 20), 64, 300):
            assert torch.equal(quantized_linear(x[:m], packed, None, torch.float32), alone[:m])


@native
def test_nothing_is_written_beside_the_result() -> None:
    function = quantized.product()
    assert function is not None
    for kind, group, zeros in KINDS:
        packed = packed_of(kind, 37, 70, group, zeros)
        low = 0 if packed.zeros is None else packed.zeros.data_ptr()
        for m in (5, 29):
            x, out = normal(m, 70), torch.full((m + 1, 40), 7.0)
            weight = packed.data.data_ptr(), packed.scales.data_ptr(), low
            function(x.data_ptr(), 70, *weight, 0, out.data_ptr(), 40, 1, m, 37, 70, group, packed.bits, 0, 2)
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
    with pytest.raises(ValueError, match="group 40"):
        PackedWeight.pack(normal(4, 4), "int8", 40)
    with pytest.raises(ValueError, match="not finite"):
        PackedWeight.pack(normal(4, 4) / 0, "int8")
    with pytest.raises(ValueError, match=r"\[4\]"):
        PackedWeight.pack(normal(4), "int8")
    for counts in (torch.ones(3), torch.tensor([1.0, -1, 1, 1]), torch.tensor([1.0, torch.nan, 1, 1])):
        with pytest.raises(ValueError, match=r"importance .* expected \[4\]"):
            PackedWeight.pack(normal(4, 4), "int8", importance=counts)
    q, scales, zeros = values("int4", 4, 64, 32)
    assert zeros is not None
    int4: Any = {"kind": "int4", "group": 32}
    with pytest.raises(ValueError, match="0 to 16"):
        PackedWeight.from_values(q.clamp(max=0) + torch.eye(4, 64) * 16, scales, zeros, **int4)
    with pytest.raises(ValueError, match="scales have the shape"):
        PackedWeight.from_values(q, scales[:, :1], zeros, **int4)
    with pytest.raises(ValueError, match=r"zeros reach 1\.00001e"):
        PackedWeight.from_values(q, scales, zeros.float() + 1e6, **int4)
    with pytest.raises(ValueError, match="scales are not all finite"):
        PackedWeight.from_values(q, scales / 0, zeros, **int4)
    with pytest.raises(ValueError, match="zeros are None"):
        PackedWeight.from_values(q, scales, None, **int4)
    with pytest.raises(ValueError, match="in_features is 32"):
        PackedWeight.from_values(q, scales, zeros, in_features=32, **int4)
    for order in (torch.arange(63), torch.arange(64).clamp(max=62), torch.arange(1, 65)):
        with pytest.raises(ValueError, match="order is no order of 64 features"):
            PackedWeight.from_values(q, scales, zeros, order=order, **int4)
    packed = PackedWeight.from_values(q, scales, zeros, **int4)
    with pytest.raises(ValueError, match="expected 64"):
        quantized_linear(normal(2, 65), packed)
    assert replace(packed, out_features=3).dequantize().shape == (3, 64)
