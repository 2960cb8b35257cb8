"""The distance between two models' answers, on distributions worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from qwenvl.demo.divergence import answer_logits, divergence
from qwenvl.engine.request import Request, VisionItem
from qwenvl.types import PackedBatch


class Table:
    """Gives token t the row t of a table of probabilities; notes what it was asked."""

    device = torch.device("cpu")

    def __init__(self, *rows: list[float]) -> None:
        self.logits, self.batches = torch.tensor(rows).log(), []  # type: ignore[var-annotated]

    def run(self, batch: PackedBatch) -> torch.Tensor:
        self.batches.append(batch)
        assert batch.logits_index is not None
        return self.logits[batch.token_ids[batch.logits_index]]

    def encode_vision(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return torch.full((int(grid.prod()) // 4, 2), float(pixels.sum()))


def request(prompt: list[int], answer: list[int], **options: Any) -> Request:
    made = Request(prompt, torch.arange(len(prompt)).expand(3, -1), 5, **options)
    made.output_ids = answer
    return made


def test_by_hand() -> None:
    """The prompt's last token predicts the answer's first; the answer's last token predicts nothing."""
    reference = Table([0.5, 0.5], [0.25, 0.75])
    model: Any = Table([0.25, 0.75], [0.5, 0.5])
    from_zero = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    from_one = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    found = divergence(model, reference, [request([1, 0], [0, 1, 1])])  # type: ignore[arg-type]
    assert found.mean == pytest.approx((2 * from_zero + from_one) / 3)
    assert found.worst == pytest.approx(max(from_zero, from_one))
    assert found.tokens == 3
    two = divergence(model, reference, [request([1, 0], [0, 1, 1]), request([0], []), request([1], [0])])  # type: ignore[arg-type]
    assert two.tokens == 4
    assert two.mean == pytest.approx((2 * from_zero + 2 * from_one) / 4)


def test_agreement_is_about_the_likeliest_token() -> None:
    model: Any = Table([0.9, 0.1], [0.6, 0.4])
    reference: Any = Table([0.6, 0.4], [0.4, 0.6])
    assert divergence(model, reference, [request([0], [0, 1, 1])]).agreement == pytest.approx(2 / 3)
    same = divergence(model, model, [request([0], [0, 1, 1])])
    assert (same.mean, same.worst, same.agreement) == (0, 0, 1)


def test_pictures_and_positions_reach_the_model() -> None:
    model: Any = Table([0.5, 0.5], [0.5, 0.5])
    items = [
        VisionItem(torch.full((4, 1176), 1 / 4704), (1, 2, 2), 1, 1, ""),
        VisionItem(torch.full((8, 1176), 0.0), (1, 4, 2), 2, 2, ""),
    ]
    assert answer_logits(model, request([0, 1, 1, 1, 0], [1, 1, 0], items=items)).shape == (3, 2)
    (batch,) = model.batches
    assert batch.token_ids.tolist() == [0, 1, 1, 1, 0, 1, 1]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 4, 10, 11]
    assert batch.logits_index.tolist() == [4, 5, 6]
    assert batch.vision_index.tolist() == [1, 2, 3]
    torch.testing.assert_close(batch.vision_embeds[:, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert (batch.seq.cu_q, batch.kv) == ((0, 7), None)


def test_requests_without_answers() -> None:
    model: Any = Table([1.0])
    with pytest.raises(ValueError, match="none of the requests has an answer"):
        divergence(model, model, [request([0], [])])
