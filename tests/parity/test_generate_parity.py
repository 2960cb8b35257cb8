"""generate() against transformers' generate(): greedy ids over 32 tokens, exactly, for a padded batch with pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_model_parity import END, GRIDS, IMAGE, START, VIDEO, build, prompts


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("eos", [[57], [8, 9, 10, 11, 20, 21, 22, 23]])
def test_greedy_ids_equal(family: str, penalty: float, eos: list[int]) -> None:
    ours, oracle = build(family, tied=False)
    for weight in oracle.parameters():  # large weights, so that answers do not repeat one token
        torch.nn.init.normal_(weight, mean=0.0 if weight.ndim > 1 else 0.7, std=0.3)
    ours.load_state_dict(oracle.state_dict())
    ids, mask, pixels = prompts()
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": pixels,
        "image_grid_thw": GRIDS,
        "max_new_tokens": 32,
        "repetition_penalty": penalty,
        "eos_token_id": eos,
        "pad_token_id": 0,
    }
    types = torch.where(ids == IMAGE, 1, 0)
    theirs = oracle.generate(
        **inputs, mm_token_type_ids=types, do_sample=False, suppress_tokens=[IMAGE, VIDEO, START, END]
    )
    answers = ours.generate(**inputs)
    assert torch.equal(answers, theirs)
    new = answers[:, ids.shape[1] :].tolist()
    assert len({tuple(row) for row in new}) == 3
    assert max(len(set(row)) for row in new) > 5, "the tiny model is not degenerate"
