"""uint8 pixels from the processors into the tower: the same tokens as from normalised values, with fewer bytes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from prompts import PICTURE, VIDEO, frames, picture
from tiny import FAMILIES, tiny_config
from torch import Tensor

from qwenvl.model.backends import backend_named
from qwenvl.model.vision import PatchEmbed, VisionTower
from qwenvl.processing import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

SETTINGS: list[dict[str, Any]] = [
    {},
    {"image_mean": (0.1, 0.5, 0.9), "image_std": (0.5, 0.25, 0.125)},
    {"do_normalize": False},
    {"do_rescale": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5},
]


def embed(dtype: torch.dtype = torch.float32, **changes: Any) -> PatchEmbed:
    torch.manual_seed(0)
    return PatchEmbed(tiny_config(**changes).vision_config).to(dtype).requires_grad_(False)


def values_of(pixels: Tensor, affine: Any) -> Tensor:
    """float64 values of uint8 pixels, by their affine."""
    scale, shift = (torch.tensor(x, dtype=torch.float64)[:, None] for x in affine)
    return (pixels.double().unflatten(1, (3, -1)) * scale + shift).flatten(1)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_pixels_and_their_affine_are_the_values(settings: dict[str, Any]) -> None:
    images, given = Qwen2VLImageProcessor(**settings), [picture(), picture(84, 28)]
    values, quick = images(given), images(given, pixel_dtype=torch.uint8)
    assert set(values) == {"pixel_values", "image_grid_thw"}
    assert quick.pixel_values.dtype == torch.uint8
    assert quick.pixel_values.shape == (len(values.pixel_values), 588)
    assert torch.equal(quick.image_grid_thw, values.image_grid_thw)
    assert quick.image_sizes == values.image_sizes
    both = values.pixel_values.unflatten(1, (3, 2, -1))
    for frame in both.unbind(2):
        assert relative(frame.flatten(1), values_of(quick.pixel_values, quick.pixel_affine)) < 1e-6

    videos, clip = Qwen2VLVideoProcessor(**settings), frames(3, 56, 84)
    values, quick = videos(clip), videos(clip, pixel_dtype=torch.uint8)
    assert quick.pixel_values_videos.dtype == torch.uint8
    expected = values_of(quick.pixel_values_videos, quick.pixel_affine_videos)
    assert relative(values.pixel_values_videos, expected) < 1e-6


def test_arrays_from_0_to_1() -> None:
    array = picture().convert("RGB")
    unit = torch.from_numpy(np.array(array)).permute(2, 0, 1).double() / 255
    quick = Qwen2VLImageProcessor()(unit, do_rescale=False, pixel_dtype=torch.uint8)
    assert torch.equal(quick.pixel_values, Qwen2VLImageProcessor()(array, pixel_dtype=torch.uint8).pixel_values)
    assert quick.pixel_affine == Qwen2VLImageProcessor().affine


def test_the_processor_hands_over_pixels(processor: Qwen2_5_VLProcessor) -> None:
    prompt = f"{PICTURE}{VIDEO}?"
    given: dict[str, Any] = {"text": [prompt], "images": picture(), "videos": frames(2, 56, 84)}
    values = processor(**given, return_tensors="pt")
    quick = processor(**given, return_tensors="pt", pixel_dtype=torch.uint8)
    assert set(quick) == set(values) | {"pixel_affine", "pixel_affine_videos"}
    assert torch.equal(quick.input_ids, values.input_ids)
    assert (quick.pixel_values.dtype, quick.pixel_values.shape[1]) == (torch.uint8, 588)
    assert (quick.pixel_values_videos.dtype, quick.pixel_values_videos.shape[1]) == (torch.uint8, 1176)
    assert quick.to(torch.bfloat16).pixel_affine == processor.image_processor.affine
    for wrong in (torch.bfloat16, torch.int8):
        with pytest.raises(ValueError, match=r"expected torch.float32 \(values\) or torch.uint8 \(pixels\)"):
            processor(**given, return_tensors="pt", pixel_dtype=wrong)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_makes_the_same_of_pixels_and_values(family: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    tower = VisionTower(tiny_config(family).vision_config, backend_named("sdpa")).eval()
    images, given = Qwen2VLImageProcessor(**settings), [picture(84, 140), picture()]
    videos, clip = Qwen2VLVideoProcessor(**settings, min_pixels=784, max_pixels=784 * 8), frames(4, 56, 84)
    values, quick = images(given), images(given, pixel_dtype=torch.uint8)
    film, quick_film = videos(clip), videos(clip, pixel_dtype=torch.uint8)
    with torch.inference_mode():
        expected = tower(values.pixel_values, values.image_grid_thw)
        got = tower(quick.pixel_values, quick.image_grid_thw, quick.pixel_affine)
        assert relative(got, expected) < 1e-5
        expected = tower(film.pixel_values_videos, film.video_grid_thw)
        got = tower(quick_film.pixel_values_videos, film.video_grid_thw, quick_film.pixel_affine_videos)
        assert relative(got, expected) < 1e-5


def smooth(columns: int) -> Tensor:
    """uint8 patches [400, columns] whose neighbouring pixels are alike, as in pictures."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    slope = torch.randn(2, 400, columns // 196, 1, 1, generator=generator) * 4
    level = torch.randint(40, 216, (400, columns // 196, 1, 1), generator=generator)
    noise = torch.randn(400, columns // 196, 14, 14, generator=generator) * 3
    return (level + slope[0] * (y - 7) + slope[1] * (x - 7) + noise).clamp(0, 255).to(torch.uint8).flatten(1)


@pytest.mark.parametrize("columns", [588, 1176])
def test_the_product_is_right_to_rounding(columns: int) -> None:
    """float32 within 1e-5; bfloat16 nearer to float64 than the product of rounded values, and hardly further than
    rounding the exact tokens is."""
    affine = Qwen2VLImageProcessor().affine
    pixels = smooth(columns)
    values = values_of(pixels, affine)
    whole = values if columns == 1176 else values.view(400, 3, 1, 196).expand(-1, -1, 2, -1).reshape(400, -1)
    for dtype in (torch.float32, torch.bfloat16):
        layer = embed(dtype)
        exact = whole @ layer.proj.weight.double().flatten(1).T
        error, plain = relative(layer(pixels, affine), exact), relative(layer(whole.to(dtype)), exact)
        if dtype == torch.float32:
            assert error < 1e-5
        else:
            assert error < plain
            assert error < 1.15 * relative(exact.to(dtype), exact)


def test_values_of_equal_frames_may_come_once() -> None:
    once = torch.randn(40, 588, generator=torch.Generator().manual_seed(1))
    layer = embed()
    both = once.view(40, 3, 1, 196).expand(-1, -1, 2, -1).reshape(40, -1)
    assert relative(layer(once), layer(both)) < 1e-6


def test_folded_weights_follow_the_weight() -> None:
    pixels, affine = torch.randint(0, 256, (9, 588), dtype=torch.uint8), ((0.01,) * 3, (-1.0, 0.0, 1.0))
    layer = embed()

    def right() -> bool:
        values = values_of(pixels, affine).float().view(9, 3, 1, 196).expand(-1, -1, 2, -1).reshape(9, -1)
        return relative(layer(pixels, affine), layer(values)) < 1e-5

    before = layer(pixels, affine)
    first = layer._product(588, affine)
    layer._product(1176, affine)
    assert layer._product(588, affine) is first, "kept while nothing changes"
    layer.proj.weight.mul_(2)
    assert relative(layer(pixels, affine), 2 * before) < 1e-5
    layer.load_state_dict({"proj.weight": torch.randn(layer.proj.weight.shape)})
    assert right()
    layer.proj.weight = torch.nn.Parameter(torch.randn(layer.proj.weight.shape), requires_grad=False)
    assert right()
    with torch.inference_mode():
        layer.proj.weight.add_(1)
        assert right()
    affine = ((0.5,) * 3, (0.0,) * 3)
    assert right()
    assert layer.to(torch.float64)(pixels, affine).dtype == torch.float64
    assert list(layer.state_dict()) == ["proj.weight"]
    assert not list(layer.buffers())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        twin.proj.weight.zero_()
        assert not twin(pixels, affine).any()


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        layer = embed()
        pixels, affine = torch.full((2, 588), 3, dtype=torch.uint8), ((1.0,) * 3, (0.0,) * 3)
        before = layer(pixels, affine)
        layer.proj.weight.mul_(2)  # has no version that would tell
        assert relative(layer(pixels, affine), 2 * before) < 1e-5


def test_gradients_reach_the_weight() -> None:
    affine = Qwen2VLImageProcessor().affine
    pixels = torch.randint(0, 256, (9, 588), dtype=torch.uint8)
    values = values_of(pixels, affine).float().view(9, 3, 1, 196).expand(-1, -1, 2, -1).reshape(9, -1)
    layer = embed()
    layer(pixels, affine)
    layer.requires_grad_(True)
    (expected,) = torch.autograd.grad(layer(values).square().sum(), layer.proj.weight)
    (got,) = torch.autograd.grad(layer(pixels, affine).square().sum(), layer.proj.weight)
    assert relative(got, expected) < 1e-5


def test_what_the_tower_cannot_take() -> None:
    layer, affine = embed(), Qwen2VLImageProcessor().affine
    with pytest.raises(ValueError, match="uint8 without an affine"):
        layer(torch.zeros(4, 588, dtype=torch.uint8))
    with pytest.raises(ValueError, match="float32 with an affine"):
        layer(torch.zeros(4, 588), affine)
    with pytest.raises(ValueError, match="1000 columns: expected 1176, or 588 for equal frames"):
        layer(torch.zeros(4, 1000))
