"""attend() on packed sequences against plain attention of each sequence alone; windows of the tower."""

from __future__ import annotations

import pytest
import torch

from qwenvl.model.attention import attend, backend_named, eager, plan, sdpa
from qwenvl.model.vision import tower_layout
from qwenvl.types import SeqInfo

CPU = torch.device("cpu")


def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """[L, H, D] of one sequence, by the definition."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores = scores + torch.full(scores.shape[-2:], float("-inf")).triu(1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


@pytest.mark.parametrize("backend", [eager, sdpa])
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


def test_unknown_backend_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'flash'.*eager, sdpa"):
        backend_named("flash")


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
