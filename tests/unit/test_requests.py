"""Requests from the processor's tensors, and batches split into prompts: all must agree, with numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scripted import IMAGE, VIDEO, ScriptedModel

from qwenvl.engine import Request
from qwenvl.engine.inputs import split_batch
from qwenvl.engine.request import content_hash

CONFIG = ScriptedModel(lambda history: 0).config


def test_token_ids_and_positions_over_prompt_and_answer() -> None:
    inputs = {
        "input_ids": torch.tensor([9, *[IMAGE] * 4, 9]),
        "pixel_values": torch.zeros(16, 1),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    request = Request.from_inputs(inputs, CONFIG)
    request.output_ids = [70, 71, 72]
    assert request.delta == -2  # a picture of 2 x 2 tokens takes 2 positions
    assert request.token_ids(4, 8) == [IMAGE, 9, 70, 71]
    assert request.token_ids(7, 9) == [71, 72]
    assert request.positions_of(0, 9).tolist() == [
        [0, 1, 1, 1, 1, 3, 4, 5, 6],
        [0, 1, 1, 2, 2, 3, 4, 5, 6],
        [0, 1, 2, 1, 2, 3, 4, 5, 6],
    ]
    for start in range(9):
        for stop in range(start + 1, 10):
            assert torch.equal(request.positions_of(start, stop), request.positions_of(0, 9)[:, start:stop])


def test_content_hash_is_of_pixels_and_grid() -> None:
    pixels = torch.arange(8.0).view(8, 1)
    assert content_hash(pixels, (1, 2, 4)) == content_hash(pixels.clone(), (1, 2, 4))
    assert content_hash(pixels.flip(0), (1, 2, 4)) != content_hash(pixels, (1, 2, 4))
    assert content_hash(pixels, (1, 4, 2)) != content_hash(pixels, (1, 2, 4))
    assert content_hash(pixels.bfloat16(), (1, 2, 4)) != content_hash(pixels, (1, 2, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.zeros(0, dtype=torch.long)}, "the prompt is empty"),
        ({"input_ids": torch.tensor([[1], [2]])}, r"shape \(2, 1\)"),
        ({"input_ids": torch.tensor([5, 264])}, "token id 264 is not in the model's vocabulary of 264"),
        ({"image_grid_thw": torch.tensor([[1, 2, 6]])}, "has 2 image tokens, but its 1 image grids need 3"),
        ({"pixel_values": torch.zeros(12, 1)}, "have 12 patches, but the grids need 8"),
        ({"pixel_values": None}, "has 2 image tokens, but only one of image grids and pixel values is given"),
        (
            {"input_ids": torch.tensor([IMAGE, 9, IMAGE])},
            "needs 2 tokens in a row, but other tokens at 0 to 2",
        ),
    ],
)
def test_inputs_that_do_not_agree(change: dict[str, Any], message: str) -> None:
    inputs = {
        "input_ids": torch.tensor([9, IMAGE, IMAGE, 9]),
        "pixel_values": torch.zeros(8, 1),
        "image_grid_thw": torch.tensor([[1, 2, 4]]),
    }
    assert Request.from_inputs(inputs, CONFIG).items[0].tokens == 2
    with pytest.raises(ValueError, match=message):
        Request.from_inputs({**inputs, **change}, CONFIG)


def batch(**change: Any) -> list[dict[str, Any]]:
    """Three prompts: pictures of 1 and 2 tokens and a video of 2; text; a picture of 3 and a video of 1."""
    ids = torch.tensor(
        [
            [0, 9, IMAGE, 9, IMAGE, IMAGE, 9, VIDEO, VIDEO],
            [0, 0, 0, 0, 0, 0, 0, 8, 8],
            [7, IMAGE, IMAGE, IMAGE, VIDEO, 0, 0, 0, 0],
        ]
    )
    inputs = {
        "attention_mask": (ids != 0).long(),
        "pixel_values": torch.arange(24.0).view(24, 1),
        "image_grid_thw": torch.tensor([[1, 2, 2], [1, 4, 2], [1, 2, 6]]),
        "pixel_values_videos": torch.arange(100.0, 112.0).view(12, 1),
        "video_grid_thw": torch.tensor([[2, 2, 2], [1, 2, 2]]),
        "second_per_grid_ts": torch.tensor([0.5, 1.0]),
    }
    return split_batch(CONFIG, ids, **{**inputs, **change})


def test_a_batch_is_split_into_its_prompts() -> None:
    first, second, third = batch()
    assert first["input_ids"].tolist() == [9, IMAGE, 9, IMAGE, IMAGE, 9, VIDEO, VIDEO]
    assert first["image_grid_thw"].tolist() == [[1, 2, 2], [1, 4, 2]]
    assert first["pixel_values"][:, 0].tolist() == list(range(12))
    assert (first["second_per_grid_ts"], third["second_per_grid_ts"]) == ([0.5], [1.0])
    assert second["input_ids"].tolist() == [8, 8]
    assert "pixel_values" not in second
    assert third["pixel_values"][:, 0].tolist() == list(range(12, 24))
    assert third["pixel_values_videos"][:, 0].tolist() == list(range(108, 112))
    requests = [Request.from_inputs(row, CONFIG) for row in (first, second, third)]
    assert [[(i.start, i.tokens) for i in r.items] for r in requests] == [
        [(1, 1), (3, 2), (6, 2)],
        [],
        [(1, 3), (4, 1)],
    ]
    times = requests[0].positions[0].tolist()
    assert times == [0, 1, 2, 3, 3, 5, 6, 7]  # 0.5 s a step at 2 ids a second: one id a step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.ones(3, 8)}, r"shape \(3, 8\), input_ids \(3, 9\)"),
        ({"attention_mask": torch.zeros(3, 9)}, "prompt 0 is empty"),
        ({"image_grid_thw": None}, "pixel_values is given without image_grid_thw"),
        ({"pixel_values": torch.zeros(20, 1)}, "pixel_values has 20 patches, but image_grid_thw needs 24"),
        (
            {"image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 6], [1, 2, 4]])},
            r"prompt 0 has 3 placeholder tokens, but rows 0 to 2 \(exclusive\) of image_grid_thw account for 4",
        ),
        (
            {"pixel_values_videos": None, "video_grid_thw": None, "second_per_grid_ts": None},
            "prompt 0 has 2 placeholder tokens, but rows 0 to 0 .* account for 0",
        ),
        (
            {
                "pixel_values_videos": torch.zeros(16, 1),
                "video_grid_thw": torch.tensor([[2, 2, 2], [1, 2, 2], [1, 2, 2]]),
            },
            "video_grid_thw has 3 rows, but the prompts have placeholders for 2",
        ),
        ({"second_per_grid_ts": [1.0]}, "second_per_grid_ts has 1 values for 2 videos"),
    ],
)
def test_a_batch_that_does_not_agree(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch(**change)
