"""One forward against transformers in float32, both families: towers, positions, logits, loss and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import FAMILIES, IMAGE, IMAGES, START, VIDEO, VIDEOS, batch, build, item, mixed, pictures, relative, types


@pytest.mark.feature(1, 2, 18, 27, 32, 34, 93)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_tower_and_logits(family: str, attn: str) -> None:
    ours, oracle = build(family, attn=attn)
    inputs = pictures()
    theirs = oracle.model.visual(inputs["pixel_values"], grid_thw=IMAGES)
    theirs = getattr(theirs, "pooler_output", theirs)
    assert relative(ours.encode_vision(inputs["pixel_values"], IMAGES), theirs) < 1e-4
    logits = ours(**inputs).logits
    expected = oracle(**inputs, mm_token_type_ids=types(inputs["input_ids"])).logits
    real = inputs["attention_mask"].bool()
    assert relative(logits[real], expected[real]) < 1e-4


@pytest.mark.feature(33, 34, 36)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_pictures_videos_and_text_in_one_batch(family: str, attn: str) -> None:
    """The video ends before its height does (2 steps of a second, 5 rows): there both count alike."""
    ours, oracle = build(family, attn=attn)
    inputs: dict[str, Any] = mixed()
    seconds = {"second_per_grid_ts": torch.tensor([0.9])} if family == "qwen2_5_vl" else {}
    logits = ours(**inputs, **seconds).logits
    expected = oracle(**inputs, **seconds, mm_token_type_ids=types(inputs["input_ids"])).logits
    real = inputs["attention_mask"].bool()
    assert relative(logits[real], expected[real]) < 1e-4


@pytest.mark.feature(28, 36)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_long_video_with_its_positions(family: str) -> None:
    """Text behind a video counts on from the largest position of all; the oracle gets these positions given."""
    ours, oracle = build(family)
    grid = torch.tensor([[6, 4, 6]])
    ids, mask = batch([[3, *item(VIDEO, grid[0]), 8, 9], [12, 13, 14]])
    torch.manual_seed(1)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values_videos": torch.randn(144, 1176)}
    seconds = [1.5] if family == "qwen2_5_vl" else None
    positions, deltas = ours.get_rope_index(ids, None, grid, seconds, mask)
    assert positions[:, 0, -2].tolist() == [2 + (15 if seconds else 5) + 1 + 1] * 3
    output = ours(**inputs, video_grid_thw=grid, second_per_grid_ts=seconds)
    given = ours(**inputs, video_grid_thw=grid, position_ids=positions)
    expected = oracle(**inputs, video_grid_thw=grid, position_ids=positions).logits
    assert torch.equal(output.logits, given.logits)
    assert torch.equal(output.rope_deltas, deltas)
    assert torch.equal(given.rope_deltas, deltas)
    assert relative(output.logits[mask.bool()], expected[mask.bool()]) < 1e-4


@pytest.mark.feature(28, 35)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_position_ids_exact(family: str) -> None:
    ours, oracle = build(family, tied=True)
    inputs = mixed()
    ids = inputs["input_ids"]
    named = {name: inputs[name] for name in ("image_grid_thw", "video_grid_thw", "attention_mask")}
    positions, deltas = ours.get_rope_index(ids, **named, mm_token_type_ids=types(ids))
    expected, expected_deltas = oracle.model.get_rope_index(ids, **named, mm_token_type_ids=types(ids))
    assert torch.equal(positions, expected)
    assert torch.equal(deltas, expected_deltas)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_features_by_item(family: str) -> None:
    ours, oracle = build(family)
    inputs = mixed()
    ours_images = ours.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    images = oracle.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    (ours_video,) = ours.get_video_features(inputs["pixel_values_videos"], VIDEOS).pooler_output
    (video,) = oracle.get_video_features(inputs["pixel_values_videos"], VIDEOS).pooler_output
    for mine, theirs in zip((*ours_images, ours_video), (*images, video), strict=True):
        assert relative(mine, theirs) < 1e-4


@pytest.mark.feature(27, 94)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_batch_equals_alone(family: str) -> None:
    ours, _ = build(family, tied=True)
    inputs = pictures()
    ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
    together = ours(**inputs).logits
    split = int(IMAGES[:2].prod(-1).sum())
    alone = [
        ours(ids[0][mask[0].bool()][None], pixel_values=pixels[:split], image_grid_thw=IMAGES[:2]).logits[0],
        ours(ids[1][mask[1].bool()][None], pixel_values=pixels[split:], image_grid_thw=IMAGES[2:]).logits[0],
        ours(ids[2][mask[2].bool()][None]).logits[0],
    ]
    for row, expected in enumerate(alone):
        assert relative(together[row][mask[row].bool()], expected) < 1e-5


@pytest.mark.feature(31)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients(family: str) -> None:
    ours, oracle = build(family)
    inputs = mixed()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    # Nothing predicts the first token of a row: the oracle does, from padding.
    labels = torch.where((mask.cumsum(-1) > 1) & (ids < START), ids, -100)
    loss = ours(**inputs, labels=labels).loss
    expected = oracle(**inputs, labels=labels, mm_token_type_ids=types(ids)).loss
    assert abs(loss.item() - expected.item()) < 1e-4 * expected.item()
    loss.backward()
    expected.backward()
    theirs = dict(oracle.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert relative(parameter.grad, theirs[name].grad) < 1e-4, name


@pytest.mark.feature(16)
@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_multi_head_and_multi_query(kv_heads: int, attn: str) -> None:
    ours, oracle = build("qwen2_5_vl", attn=attn, num_key_value_heads=kv_heads)
    ids, mask = batch([[3, 4, 5, 6, 7, 8], [12, 13, 14]])
    assert ours.model.language_model.layers[0].self_attn.k_proj.out_features == 12 * kv_heads
    expected = oracle(input_ids=ids, attention_mask=mask).logits
    assert relative(ours(ids, mask).logits[mask.bool()], expected[mask.bool()]) < 1e-4


@pytest.mark.feature(30)
@torch.no_grad()
def test_embeddings_with_pictures_in_them() -> None:
    """inputs_embeds alone: placeholders are found by their embedding, as the oracle does it."""
    ours, oracle = build("qwen2_5_vl")
    inputs = pictures()
    ids, mask = inputs.pop("input_ids"), inputs["attention_mask"]
    embeds = ours.get_input_embeddings()(ids)
    positions, _ = ours.get_rope_index(ids, IMAGES, attention_mask=mask)
    assert int((ids == IMAGE).sum()) > 0
    logits = ours(inputs_embeds=embeds, **inputs).logits
    expected = oracle(inputs_embeds=embeds, position_ids=positions, **inputs).logits
    assert relative(logits[mask.bool()], expected[mask.bool()]) < 1e-4
