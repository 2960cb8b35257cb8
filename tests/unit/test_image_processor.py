"""Image processor: patches, values, limits, and files of every vintage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prompts import picture

from qwenvl.processing import (
    Qwen2VLImageProcessor,
)
from qwenvl.processing.image_processor import normalize_patches, patchify
from qwenvl.types import ImageSize


def test_patches_go_block_by_block() -> None:
    rgb = torch.randint(0, 256, (56, 84, 3), dtype=torch.uint8)
    patches = patchify(rgb)
    assert patches.shape == (24, 1176)
    row = 0
    for block_y in range(2):
        for block_x in range(3):
            for y in range(2):
                for x in range(2):
                    top, left = block_y * 28 + y * 14, block_x * 28 + x * 14
                    expected = rgb[top : top + 14, left : left + 14].permute(2, 0, 1)
                    got = patches[row].view(3, 2, 14, 14)
                    assert torch.equal(got[:, 0], expected)
                    assert torch.equal(got[:, 1], expected)
                    row += 1


def test_normalising_is_rescale_minus_mean_over_deviation() -> None:
    patches = torch.randint(0, 256, (5, 1176), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    exact = patches.view(5, 3, -1).double() / 255
    exact = ((exact - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]).view(5, -1)
    assert (normalize_patches(patches, mean, std) - exact).abs().max() < 2e-6


def test_switches_of_the_image_processor() -> None:
    image = picture()
    raw = Qwen2VLImageProcessor(do_rescale=False, do_normalize=False)(image)["pixel_values"]
    assert torch.equal(raw, patchify(torch.from_numpy(np.array(image))).float())
    scaled = Qwen2VLImageProcessor(do_normalize=False)(image)["pixel_values"]
    assert torch.allclose(scaled, raw / 255)
    with pytest.raises(ValueError, match="multiples of 28: the picture has 57 x 84"):
        Qwen2VLImageProcessor(do_resize=False)(picture(57, 84))
    for option, value in (("resample", 2), ("do_convert_rgb", False)):
        with pytest.raises(ValueError, match=option):
            Qwen2VLImageProcessor(**{option: value})


def test_limits_of_one_call_of_one_picture_and_of_the_processor() -> None:
    images = Qwen2VLImageProcessor(min_pixels=3136, max_pixels=50176)
    big = picture(448, 448)
    assert images(big).image_sizes == [ImageSize(448, 448, 224, 224)]
    assert images(big, max_pixels=12544).image_sizes == [ImageSize(448, 448, 112, 112)]
    sizes = images([big, big, big], max_pixels=[None, 12544, None], sizes=[None, None, (56, 84)]).image_sizes
    assert [(s.resized_width, s.resized_height) for s in sizes] == [(224, 224), (112, 112), (84, 56)]
    with pytest.raises(ValueError, match=r"\(30, 30\): expected .* multiples of 28"):
        images(big, sizes=[(30, 30)])
    for wrong in ({"min_pixels": 60000}, {"min_pixels": 100, "max_pixels": 50}, {"max_pixels": [1, 2]}):
        with pytest.raises(ValueError, match=r"min_pixels=|max_pixels has 2 values for 1 pictures"):
            images(big, **wrong)
    with pytest.raises(TypeError, match="max_pixel'"):
        images(big, max_pixel=3)


def test_both_spellings_of_the_limits_agree() -> None:
    images = Qwen2VLImageProcessor(max_pixels=1003520)
    assert images.size == {"shortest_edge": 3136, "longest_edge": 1003520}
    images.size = {"longest_edge": 50176}
    assert (images.min_pixels, images.max_pixels) == (3136, 50176)
    images.max_pixels = 100352
    assert images.size["longest_edge"] == 100352
    with pytest.raises(ValueError, match="height"):
        images.size = {"height": 224}


@pytest.mark.parametrize(
    "limits",
    [
        {"min_pixels": 784, "max_pixels": 7840},
        {"size": {"shortest_edge": 784, "longest_edge": 7840}},
        {"size": {"min_pixels": 784, "max_pixels": 7840}},
        {"min_pixels": 784, "max_pixels": 7840, "size": {"shortest_edge": 1, "longest_edge": 2}},
        {"min_pixels": None, "size": {"shortest_edge": 784, "longest_edge": 7840}},
    ],
)
def test_every_vintage_of_the_file_is_read(limits: dict[str, Any]) -> None:
    data = {"image_processor_type": "Qwen2_5_VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor", **limits}
    images = Qwen2VLImageProcessor.from_dict(data)
    assert (images.min_pixels, images.max_pixels) == (784, 7840)
    for changes in ({"max_pixels": 5000}, {"size": {"longest_edge": 5000}}):
        images = Qwen2VLImageProcessor.from_dict(data, **changes)
        assert (images.min_pixels, images.max_pixels) == (784, 5000)
    with pytest.raises(TypeError, match="patchsize"):
        Qwen2VLImageProcessor.from_dict(data, patchsize=3)


def test_the_image_processor_saves_the_official_layout(tmp_path: Path) -> None:
    Qwen2VLImageProcessor(min_pixels=784, max_pixels=7840, image_mean=(0.5, 0.5, 0.5)).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert data["image_processor_type"] == "Qwen2VLImageProcessor"
    assert (data["min_pixels"], data["max_pixels"], data["image_mean"]) == (784, 7840, [0.5, 0.5, 0.5])
    assert Qwen2VLImageProcessor.from_pretrained(tmp_path).to_dict() == data
