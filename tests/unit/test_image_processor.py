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


@pytest.mark.feature(32)
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


@pytest.mark.feature(73)
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


@pytest.mark.feature(65)
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


@pytest.mark.feature(14)
def test_the_image_processor_saves_the_official_layout(tmp_path: Path) -> None:
    Qwen2VLImageProcessor(min_pixels=784, max_pixels=7840, image_mean=(0.5, 0.5, 0.5)).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert data["image_processor_type"] == "Qwen2VLImageProcessor"
    assert (data["min_pixels"], data["max_pixels"], data["image_mean"]) == (784, 7840, [0.5, 0.5, 0.5])
    assert Qwen2VLImageProcessor.from_pretrained(tmp_path).to_dict() == data


@pytest.mark.feature(14)
def test_preprocess_takes_the_documented_arguments() -> None:
    images, shown = Qwen2VLImageProcessor(), picture(112, 84)
    plain = images.preprocess(shown)
    assert images.preprocess(images=[[shown], [shown]]).image_grid_thw.tolist() == [[1, 6, 8]] * 2
    got = images.preprocess(
        shown, do_resize=True, size={"shortest_edge": 784, "longest_edge": 784 * 3}, resample=3, do_rescale=True,
        rescale_factor=1 / 255, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True,
        patch_size=14, temporal_patch_size=2, merge_size=2, return_tensors="pt", data_format="channels_first",
        input_data_format=None,
    )  # fmt: skip
    assert got.image_grid_thw.tolist() == [[1, 2, 4]]
    assert -1 <= got.pixel_values.min() < got.pixel_values.max() <= 1
    raw = images.preprocess(shown, do_normalize=False).pixel_values
    assert torch.allclose(images.preprocess(shown, do_normalize=False, rescale_factor=1.0).pixel_values / 255, raw)
    assert images.preprocess(shown, patch_size=28).pixel_values.shape == (4 * 4, 3 * 2 * 28 * 28)
    assert torch.equal(images.preprocess(shown).pixel_values, plain.pixel_values)
    for wrong, says in (
        ({"videos": [shown]}, "Qwen2VLVideoProcessor"), ({"data_format": "channels_last"}, "channels_last"),
        ({"return_tensors": "np"}, "return_tensors='np'"), ({"size": {"height": 3}}, "height"), ({"size": 3}, "size=3"),
        ({"image_mean": [0.5]}, "image_mean has 1 values"), ({"patch_size": 0}, "patch_size=0"),
        ({"input_data_format": "none"}, "input_data_format='none'"), ({"min_pixels": 2.5}, "min_pixels=2.5"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            images.preprocess(shown, **wrong)  # type: ignore[arg-type]


@pytest.mark.feature(14)
def test_arrays_and_tensors_in_every_layout() -> None:
    images, array = Qwen2VLImageProcessor(), np.array(picture(112, 84))
    expected = images(array).pixel_values
    first = np.moveaxis(array, -1, 0)
    for form in (first, torch.from_numpy(array), torch.from_numpy(first.copy()), first.astype(np.float32),
                 array.astype(int), torch.from_numpy(first.copy()).bfloat16().float()):  # fmt: skip
        assert torch.equal(images(form).pixel_values, expected)
    for unit in (first / 255, torch.from_numpy(array) / 255):
        assert torch.equal(images(unit, do_rescale=False).pixel_values, expected)
        with pytest.raises(ValueError, match=r"between 0 and 1.*do_rescale=False"):
            images(unit)
    grey = images(array[:, :, 0]).pixel_values
    assert torch.equal(images(array[:, :, :1]).pixel_values, grey)
    narrow = np.zeros((3, 56, 4), np.uint8)
    assert images(narrow, input_data_format="channels_first").image_sizes[0].width == 4
    assert images(narrow, input_data_format="channels_last").image_sizes[0].width == 56
    for wrong, says in ((np.zeros((5, 5, 5), np.uint8), "no dimension of"), (array - 300.0, "values from"),
                        (np.zeros((1, 2, 3, 3), np.uint8), "a picture of shape"), (array > 3, "bool")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            images(wrong)
