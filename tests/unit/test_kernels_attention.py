"""kernels/attention.py: native attention against float64, its independence of everything else, and its refusals."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.kernels.attention import Layout, attention, usable
from qwenvl.kernels.native import library, reason

native = pytest.mark.skipif(library() is None, reason=f"no native library: {reason()}")
BF16 = torch.bfloat16
HEADS = [(4, 2, 16), (16, 2, 128), (16, 16, 80), (7, 1, 64), (3, 3, 20), (2, 1, 256), (4, 4, 72), (64, 1, 32)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def starts(lengths: list[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))


def exact(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None = None, scale: float | None = None
) -> Tensor:
    """One sequence in float64: q [Q, H, D], k and v [K, Hkv, D]."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double().transpose(0, 1), *(x.double().transpose(0, 1).repeat_interleave(group, 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        ahead = torch.arange(k.shape[1]) - torch.arange(q.shape[1]).unsqueeze(1) - (k.shape[1] - q.shape[1])
        hidden = ahead > 0 if window is None else (ahead > 0) | (-ahead >= window)
        scores = scores.masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1)


def error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).square().mean().sqrt())


def torch_error(q: Tensor, k: Tensor, v: Tensor, causal: bool, expected: Tensor) -> float:
    """That of torch's bf16 attention of one sequence."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    out = F.scaled_dot_product_attention(*(x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)), is_causal=causal)
    return error(out[0].transpose(0, 1), expected)


@native
@pytest.mark.parametrize(("heads", "kv_heads", "size"), HEADS)
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences(heads: int, kv_heads: int, size: int, causal: bool) -> None:
    for lengths in ([5], [64, 16, 33, 0, 1], [500, 17]):
        cu = starts(lengths)
        q, k, v = noise(cu[-1], heads + 2 * kv_heads, size).split((heads, kv_heads, kv_heads), dim=1)
        out = attention(q, k, v, Layout.packed(cu), causal=causal)
        assert out.shape == q.shape
        assert out.is_contiguous()
        for a, b in pairwise(cu):
            if a < b:
                expected = exact(q[a:b], k[a:b], v[a:b], causal)
                assert error(out[a:b], expected) <= 1.1 * torch_error(q[a:b], k[a:b], v[a:b], causal, expected)


@native
@pytest.mark.parametrize("window", [1, 7, 64, 240, 300, 10000])
def test_window(window: int) -> None:
    cu = starts([600, 30, 241])
    q, k, v = noise(cu[-1], 8, 32).split((4, 2, 2), dim=1)
    out = attention(q, k, v, Layout.packed(cu), causal=True, window=window)
    for a, b in pairwise(cu):
        assert torch.allclose(out[a:b].double(), exact(q[a:b], k[a:b], v[a:b], True, window), atol=1.5e-2)


@native
def test_scale_and_large_scores() -> None:
    q, k, v = (noise(50, 2, 16, seed=i) for i in range(3))
    out = attention(q * 8, k * 8, v, Layout.packed([0, 50]), causal=True, scale=1.0)
    expected = exact(q * 8, k * 8, v, True, scale=1.0)
    assert torch.allclose(out.double(), expected, atol=2e-2)


def pages(lengths: list[int], page: int, seed: int) -> tuple[list[list[tuple[int, int]]], int]:
    """Runs of scattered pages for sequences of so many keys, and how many places there are."""
    counts = [-(-n // page) for n in lengths]
    table = list(range(sum(counts) + 3))
    random.Random(seed).shuffle(table)
    runs = []
    for count, length in zip(counts, lengths, strict=True):
        own, table = table[:count], table[count:]
        runs.append([(p * page, min(page, length - i * page)) for i, p in enumerate(own)])
    return runs, (sum(counts) + 3) * page


@native
@pytest.mark.parametrize(("heads", "kv_heads", "size"), HEADS)
def test_cached_keys_in_runs(heads: int, kv_heads: int, size: int) -> None:
    new, keys = [1, 1, 5, 40, 16], [1, 300, 77, 40, 700]
    runs, places = pages(keys, 16, seed=size)
    cu = starts(new)
    k, v = (torch.full((kv_heads, places, size), float("nan"), dtype=BF16) for _ in range(2))
    packed = [noise(n, 2, kv_heads, size, seed=n) for n in keys]
    for own, whole in zip(runs, packed, strict=True):
        index = torch.cat([torch.arange(a, a + n) for a, n in own])
        k[:, index], v[:, index] = whole[:, 0].transpose(0, 1), whole[:, 1].transpose(0, 1)
    q = noise(cu[-1], heads, size, seed=9)
    out = attention(q, k, v, Layout.cached(cu, runs), causal=True)
    for i, (a, b) in enumerate(pairwise(cu)):
        expected = exact(q[a:b], packed[i][:, 0], packed[i][:, 1], True)
        assert torch.allclose(out[a:b].double(), expected, atol=1.5e-2)
        alone = attention(q[a:b], packed[i][:, 0].transpose(0, 1).contiguous(), packed[i][:, 1].transpose(0, 1),
                          Layout.cached([0, b - a], [[(0, keys[i])]]), causal=True)  # fmt: skip
        assert torch.equal(out[a:b], alone)  # neither the batch nor the place changes a bit


@native
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(16, 2, 128), (4, 4, 16), (7, 1, 64), (2, 2, 80)])
def test_a_prompt_in_any_chunks_is_the_same_to_the_bit(
    heads: int, kv_heads: int, size: int, window: int | None
) -> None:
    total = 533
    q, k, v = noise(total, heads + 2 * kv_heads, size).split((heads, kv_heads, kv_heads), dim=1)
    whole = attention(q, k, v, Layout.packed([0, total]), causal=True, window=window)
    store = k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()
    for chunk in (1, 5, 16, 128):
        for end in (total, 241, 240, 130):
            start = max(end - chunk, 0)
            layout = Layout.cached([0, end - start], [[(0, 7), (7, end - 7)]])
            out = attention(q[start:end], *store, layout, causal=True, window=window)
            assert torch.equal(out, whole[start:end])


@native
def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [3000, 20, 1000]
    runs, places = pages(keys, 64, seed=0)
    q, k, v = noise(5, 16, 64), noise(2, places, 64, seed=1), noise(2, places, 64, seed=2)
    packed = noise(700, 12, 32)
    results = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        dirty = [torch.full((2**power,), float("nan")) for power in range(8, 20) for _ in range(8)]
        del dirty  # what the kernel is given as scratch is not zero
        cached = attention(q, k, v, Layout.cached([0, 1, 4, 5], runs), causal=True)
        own = attention(packed[:, :8], packed[:, 8:10], packed[:, 10:], Layout.packed([0, 600, 700]), causal=False)
        results.append((cached, own))
    assert not any(x.isnan().any() for pair in results for x in pair)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@native
def test_random_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    for seed in range(40):
        kv_heads, group, size = draw.choice([1, 2, 3]), draw.choice([1, 5, 8, 33]), 2 * draw.randint(1, 64)
        new = [draw.choice([1, 2, 9, 30, 130]) for _ in range(draw.randint(1, 4))]
        keys = [n + draw.choice([0, 1, 100, 239, 240, 500]) for n in new]
        runs, places = pages(keys, draw.choice([1, 3, 16, 64]), seed)
        window = draw.choice([None, None, 1, 50, 300])
        causal, threads = window is not None or draw.random() < 0.7, draw.choice([1, 2, 5])
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        cu = starts(new)
        q, k, v = noise(cu[-1], kv_heads * group, size), *noise(2, kv_heads, places, size, seed=seed)
        out = attention(q, k, v, Layout.cached(cu, runs), causal=causal, window=window)
        for own, (a, b) in zip(runs, pairwise(cu), strict=True):
            index = torch.cat([torch.arange(start, start + n) for start, n in own])
            expected = exact(q[a:b], *(x[:, index].transpose(0, 1) for x in (k, v)), causal, window)
            assert torch.allclose(out[a:b].double(), expected, atol=2e-2), (seed, new, keys, causal, window, threads)


@native
def test_nan_is_not_hidden() -> None:
    q, k, v = noise(20, 6, 16).split(2, dim=1)
    v[3, 0, 5] = float("nan")
    out = attention(q, k, v, Layout.packed([0, 20]), causal=False)
    assert out[:, 0, 5].isnan().all()
    assert not out[:, 1].isnan().any()


@native
def test_layouts_and_tensors_that_do_not_fit() -> None:
    q, k, v = noise(8, 6, 16).split(2, dim=1)
    layout = Layout.packed([0, 8])
    cases = [
        ({"q": q[:7]}, "8 queries"),
        ({"k": k[:7], "v": v[:7]}, "8 places"),
        ({"v": v[:, :1]}, "do not fit"),
        ({"q": q.float()}, "float32"),
        ({"q": noise(8, 3, 16)}, "3 query heads on 2"),
        ({"q": q[..., ::2], "k": k[..., ::2], "v": v[..., ::2]}, "side by side"),
        ({"q": q[..., :15], "k": k[..., :15], "v": v[..., :15]}, "size 15"),
        ({"window": 3, "causal": False}, "window"),
        ({"window": 0}, "window"),
        ({"layout": Layout.cached([0, 8], [[(0, 2)]]), "k": noise(2, 9, 16), "v": noise(2, 9, 16)}, "as many keys"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            attention(**{"q": q, "k": k, "v": v, "layout": layout, "causal": True, **change})


@pytest.mark.parametrize(
    ("cu", "runs"),
    [([], []), ([1, 2], [[(0, 1)]]), ([0, 2, 1], [[(0, 2)]] * 2), ([0, 1], []), ([0, 1], [[]]), ([0, 1], [[(-1, 2)]])],
)
def test_impossible_layouts(cu: list[int], runs: list[list[tuple[int, int]]]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Layout.cached(cu, runs)


def test_usable() -> None:
    q, k, v = noise(8, 6, 16).split(2, dim=1)
    assert usable(q, k, v) == (library() is not None)
    assert not usable(q.float(), k.float(), v.float())
    assert not usable(q[..., :15], k[..., :15], v[..., :15])
    assert not usable(q.clone().requires_grad_(), k, v)
    with torch.no_grad():
        assert usable(q.clone().requires_grad_(), k, v) == (library() is not None)
