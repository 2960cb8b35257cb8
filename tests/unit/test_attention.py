"""attend() on packed sequences against plain attention of each sequence alone; windows of the tower."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import FAMILIES, padded_batch, tiny_model

from qwenvl.config import Qwen2_5_VLTextConfig
from qwenvl.model import attention, backends
from qwenvl.model.attention import Backend, attend, backend_named, eager, plan, sdpa
from qwenvl.model.backends import Flash, Varlen, flash_attn_kernel, require_flash, torch_kernel
from qwenvl.model.kv_cache import SlotCache
from qwenvl.model.vision import tower_layout
from qwenvl.types import SeqInfo

CPU = torch.device("cpu")


def packed(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries of 4 heads, keys and values of 2."""
    torch.manual_seed(0)
    total = sum(lengths)
    return torch.randn(total, 4, 8), torch.randn(total, 2, 8), torch.randn(total, 2, 8)


def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, window: int | None = None) -> torch.Tensor:
    """[Q, H, D] of one sequence, by the definition; the last query stands at the last key."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    for i in range(q.shape[0]):
        for j in range(k.shape[0]):
            back = i + k.shape[0] - q.shape[0] - j
            if causal and (back < 0 or (window is not None and back >= window)):
                scores[:, i, j] = float("-inf")
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """What a variable-length kernel computes, sequence by sequence."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
    parts = []
    for (a, b), (c, d) in zip(*(x.unfold(0, 2, 1).tolist() for x in (cu_q, cu_k)), strict=True):
        parts.append(alone(q[a:b], k[c:d], v[c:d], causal, window))
    return torch.cat(parts)


FLASH = Flash(varlen, (torch.float32,), ("cpu",))
BACKENDS = [pytest.param(eager, id="eager"), pytest.param(sdpa, id="sdpa"), pytest.param(FLASH, id="flash")]


@pytest.mark.feature(16, 18, 19)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [3, 9, 1, 4, 8], [1, 1], [7, 7, 2]])
def test_packed_equals_alone(backend: object, causal: bool, lengths: list[int]) -> None:
    torch.manual_seed(0)
    total = sum(lengths)
    q, k, v = torch.randn(total, 4, 8), torch.randn(total, 2, 8), torch.randn(total, 2, 8)
    layout = plan(SeqInfo.from_lengths(lengths), CPU, pad=causal)
    out = attend(q, k, v, layout, backend, causal=causal)  # type: ignore[arg-type]
    expected = [alone(*parts, causal) for parts in zip(*(x.split(lengths) for x in (q, k, v)), strict=True)]
    torch.testing.assert_close(out, torch.cat(expected))


def test_padding_is_bounded() -> None:
    layout = plan(SeqInfo.from_lengths([10, 11, 12, 40, 50]), CPU)
    assert [b.rows for b in layout.buckets] == [(0, 1, 2), (3, 4)]
    assert all(b.length * len(b.rows) <= 1.3 * sum(layout.seq.q_lens[i] for i in b.rows) for b in layout.buckets)


@pytest.mark.feature(18)
@pytest.mark.feature(18)
@pytest.mark.parametrize("name", ["flash", "flash_attention_3", "flex_attention", None, {"text_config": "sdpa"}])
def test_unknown_backend_lists_the_known(name: object) -> None:
    with pytest.raises(ValueError, match=r"attn_implementation=.*eager, sdpa, flash_attention_2"):
        backend_named(name)


@pytest.mark.feature(10)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[9], [3, 9, 1, 4, 8], [1, 1]])
@pytest.mark.parametrize("window", [1, 3, 8, 20])
def test_sliding_window(backend: Backend, lengths: list[int], window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BAND", 2)
    q, k, v = packed(lengths)
    layout = plan(SeqInfo.from_lengths(lengths), CPU)
    weights: list[torch.Tensor] = []
    out = attend(q, k, v, layout, backend, causal=True, window=window, weights=weights)
    expected = [alone(*parts, True, window) for parts in zip(*(x.split(lengths) for x in (q, k, v)), strict=True)]
    torch.testing.assert_close(out, torch.cat(expected))
    for w, values, wanted in zip(weights, v.split(lengths), expected, strict=True):
        torch.testing.assert_close(torch.einsum("hqk,khd->qhd", w, values.repeat_interleave(2, 1)), wanted)


@pytest.mark.feature(10, 18, 19)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 1, 4, 50])
def test_cached_equals_whole(backend: Backend, window: int | None) -> None:
    """Prompts, chunks and decode steps in one batch: each token comes out as when its sequence is computed whole."""
    lengths, steps = [9, 6, 12], [[5, 6, 3], [1, 0, 7], [1, 0, 1], [2, 0, 1]]
    config = Qwen2_5_VLTextConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1,
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
    )  # fmt: skip
    cache = SlotCache(config, 3, 16)
    q, k, v = (x.split(lengths) for x in packed(lengths))
    whole = [alone(*parts, True, window) for parts in zip(q, k, v, strict=True)]
    done = [0, 0, 0]
    for new in steps:
        rows = [i for i in range(3) if new[i]]
        counts, cached = [new[i] for i in rows], [done[i] for i in rows]
        layout = plan(SeqInfo.from_lengths(counts, cached), CPU, cached=True)
        now = [[x[i][done[i] : done[i] + new[i]] for i in rows] for x in (q, k, v)]
        kv = cache.view(rows, cached, counts)
        weights: list[torch.Tensor] = []
        out = attend(*map(torch.cat, now), layout, backend, causal=True, kv=kv, window=window, weights=weights)
        expected = [whole[i][done[i] : done[i] + new[i]] for i in rows]
        torch.testing.assert_close(out, torch.cat(expected))
        assert [w.shape[1:] for w in weights] == [(n, c + n) for n, c in zip(counts, cached, strict=True)]
        done = [a + b for a, b in zip(done, new, strict=True)]
    assert done == lengths


@pytest.mark.feature(10)
@pytest.mark.parametrize("backend", [eager, sdpa])
def test_a_window_makes_no_square_mask(backend: Backend) -> None:
    """2000 tokens under a window of 16: no product sees more keys than a band and its window."""
    sizes = []

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, mask: torch.Tensor) -> torch.Tensor:
        sizes.append((q.shape[2], k.shape[2]))
        return backend(q, k, v, causal, mask)

    q, k, v = packed([2000])
    layout = plan(SeqInfo.from_lengths([2000]), CPU)
    attend(q, k, v, layout, watched, causal=True, window=16)  # type: ignore[arg-type]
    assert sum(queries for queries, _ in sizes) == 2000
    assert max(queries * keys for queries, keys in sizes) <= attention.BAND * (attention.BAND + 15)
    first, mask = plan(SeqInfo.from_lengths([1, 1], [999, 1500]), CPU, cached=True).decode_window((0, 1), 16, CPU)
    assert first == 1000 - 16
    assert mask is not None
    assert mask.sum(-1).flatten().tolist() == [16, 16]


@pytest.mark.feature(19)
def test_flash_attention_calls_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def flash_attn_varlen_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:
        calls.append((causal, window_size))
        window = window_size[0] + 1 if window_size[0] >= 0 else None
        return varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, window)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func))
    check_kernel(flash_attn_kernel())
    assert calls == [(False, (-1, -1)), (True, (-1, -1)), (True, (2, 0))]


@pytest.mark.feature(19)
def test_flash_attention_calls_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import varlen as torch_varlen

    calls, real = [], inspect.signature(torch_varlen.varlen_attn)

    def varlen_attn(*given: Any, **named: Any) -> torch.Tensor:
        call = real.bind(*given, **named)
        call.apply_defaults()
        q, k, v, cu_q, cu_k, max_q, max_k = call.args[:7]
        left, right = call.kwargs["window_size"]
        assert call.kwargs["enable_gqa"]
        calls.append((left, right))
        return varlen(q, k, v, cu_q, cu_k, max_q, max_k, right == 0, left + 1 if left >= 0 else None)

    monkeypatch.setattr(torch_varlen, "varlen_attn", varlen_attn)
    check_kernel(torch_kernel())
    assert calls == [(-1, -1), (-1, 0), (2, 0)]


def check_kernel(kernel: Varlen) -> None:
    """The kernel without a mask, causal, and with a window of 3, through attend()."""
    lengths = [3, 9, 1]
    q, k, v = packed(lengths)
    layout = plan(SeqInfo.from_lengths(lengths), CPU)
    flash = Flash(kernel, (torch.float32,), ("cpu",))
    for causal, window in ((False, None), (True, None), (True, 3)):
        out = attend(q, k, v, layout, flash, causal=causal, window=window)
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        torch.testing.assert_close(out, torch.cat([alone(*part, causal, window) for part in parts]))


@pytest.mark.feature(19)
@pytest.mark.parametrize(
    ("dtype", "device", "said"),
    [
        (torch.bfloat16, "cpu", r"on cpu.*device_map='cuda'.*'sdpa'"),
        (torch.float32, "cuda", r"not in float32.*torch\.bfloat16.*'sdpa'"),
    ],
)
def test_flash_attention_says_what_it_needs(dtype: torch.dtype, device: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        require_flash(dtype, torch.device(device))


@pytest.mark.feature(19)
def test_flash_attention_does_not_run_on_a_cpu() -> None:
    backend = backend_named("flash_attention_2")
    q, k, v = (x.bfloat16() for x in packed([3]))
    with pytest.raises(ValueError, match="runs on a GPU"):
        attend(q, k, v, plan(SeqInfo.from_lengths([3]), CPU), backend, causal=True)
    require_flash(torch.bfloat16, torch.device("cuda"))


@pytest.mark.feature(10, 18, 19)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_whole_model_with_flash_attention(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both towers, a padded batch, sliding layers and decoding: as with the reference."""
    monkeypatch.setattr(backends, "flash_kernel", lambda: varlen)
    windows = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    model = tiny_model(family, **windows)
    flash = type(model)(model.config, attn_implementation="flash_attention_2").eval()
    flash.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=r"attn_implementation='flash_attention_2' runs on a GPU"):
        flash(**padded_batch())
    monkeypatch.setattr(Flash, "check", lambda self, q: None)
    found, expected = (one(**padded_batch(), use_cache=True) for one in (flash, model))
    real = padded_batch()["attention_mask"].bool()
    torch.testing.assert_close(found.logits[real], expected.logits[real])
    for _ in range(3):
        following = expected.logits[:, -1:].argmax(-1)
        found, expected = (
            one(following, past_key_values=done.past_key_values, use_cache=True)
            for one, done in ((flash, found), (model, expected))
        )
        torch.testing.assert_close(found.logits, expected.logits)


@pytest.mark.feature(8, 10)
def test_dropout_of_attention_is_not_silent() -> None:
    with pytest.warns(UserWarning, match=r"attention_dropout=0\.1 has no effect"):
        tiny_model(attention_dropout=0.1)


def test_windows_with_ragged_borders() -> None:
    """3 x 5 cells under windows of 4 x 4: one of 12 cells and one of 3; the small one comes first."""
    layout = tower_layout(torch.tensor([[1, 6, 10]]), 2, 4, CPU)
    assert layout.windows is not None
    assert layout.windows.index.tolist() == [4, 9, 14, 0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13]
    assert layout.windows.layout.seq.q_lens == (12, 48)
    assert layout.full.layout.seq.q_lens == (60,)


def test_equal_windows_of_all_pictures_share_one_product() -> None:
    grids = torch.tensor([[1, 16, 16], [2, 8, 24]])  # 4 full windows, and 3 in each of two frames
    layout = tower_layout(grids, 2, 4, CPU)
    assert layout.windows is not None
    assert [len(b.rows) for b in layout.windows.layout.buckets] == [10]
    assert layout.full.layout.seq.q_lens == (192, 192, 256)  # frames, not videos


def test_coordinates_follow_merge_blocks() -> None:
    layout = tower_layout(torch.tensor([[1, 4, 4]]), 2, None, CPU)
    assert layout.windows is None
    assert layout.coordinates[:8].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]


@pytest.mark.feature(26, 39)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[5], [3, 9, 1, 4]])
def test_weights_are_the_probabilities_of_each_sequence(backend: Backend, lengths: list[int]) -> None:
    q, k, v = packed(lengths)
    layout = plan(SeqInfo.from_lengths(lengths), CPU)
    weights: list[torch.Tensor] = []
    out = attend(q, k, v, layout, backend, causal=True, weights=weights)
    assert torch.equal(out, attend(q, k, v, layout, backend, causal=True))
    assert [tuple(w.shape) for w in weights] == [(4, n, n) for n in lengths]
    for w, part, values in zip(weights, out.split(lengths), v.split(lengths), strict=True):
        torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:2]))
        assert not w.triu(1).any()
        torch.testing.assert_close(torch.einsum("hqk,khd->qhd", w, values.repeat_interleave(2, 1)), part)
