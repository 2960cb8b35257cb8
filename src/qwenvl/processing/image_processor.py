"""Pictures -> patches: resize to the size the model sees, cut, normalise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qwenvl.gguf_folder import resolve
from qwenvl.media.images import ImageSource
from qwenvl.media.pixels import resize_rgb
from qwenvl.media.policy import DEFAULT_POLICY, MediaPolicy
from qwenvl.media.resize import MAX_PIXELS, MIN_PIXELS
from qwenvl.processing.batch_feature import BatchFeature
from qwenvl.processing.files import read_json
from qwenvl.processing.handover import as_picture, is_unit
from qwenvl.processing.pixels import (
    BICUBIC,
    MEAN,
    STD,
    PixelSettings,
    normalize_patches,
    patchify,
    repeat_frames,
    wants_uint8,
)
from qwenvl.types import ImageSize

Limit = int | None | Sequence[int | None]
Prepared = tuple[Tensor, ImageSize]  # uint8 patches [P, 588], equal frames once, and what became of the picture


class Qwen2VLImageProcessor(PixelSettings):
    """Pictures -> pixel_values and image_grid_thw, with the documented settings (see PixelSettings).

    The same class serves Qwen2-VL and Qwen2.5-VL.
    """

    kind = ("image_processor_type", "Qwen2VLImageProcessor")
    default_limits = (MIN_PIXELS, MAX_PIXELS)
    default_fast = False
    model_input_names = ("pixel_values", "image_grid_thw")

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, revision: str | None = None, token: str | bool | None = None,
        local_files_only: bool = False, cache_dir: str | Path | None = None, use_fast: bool | None = None,
        **changes: Any,
    ) -> Self:  # fmt: skip
        """Settings of a checkpoint's folder or hub id: preprocessor_config.json, or the "image_processor" part of
        processor_config.json, where newer folders have them; without both the class's own. use_fast is another
        spelling of fast; `changes` are settings in place of the file's."""
        folder = resolve(folder, revision, token, local_files_only, cache_dir)
        data = read_json(folder / "preprocessor_config.json")
        if data is None:
            data = (read_json(folder / "processor_config.json") or {}).get("image_processor", {})
        return cls.from_dict(data, **with_fast(changes, use_fast))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes preprocessor_config.json."""
        path = Path(folder) / "preprocessor_config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", "utf-8")

    def patches(self, image: Image.Image | np.ndarray, height: int, width: int, frames: int | None = None) -> Tensor:
        """uint8 patches [P, 1176] of a picture (RGB) at a size that the model sees. frames: how often each row holds
        the picture (None: temporal_patch_size times); [P, 588] with 1."""
        rgb = resize_rgb(as_picture(image), height, width, self.fast)
        return patchify(rgb, self.patch_size, self.merge_size, frames or self.temporal_patch_size)

    def prepare(
        self,
        picture: Image.Image,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> Prepared:
        """The patches [P, 588] of one picture under these limits (None: the processor's), or at this (height,
        width)."""
        if size is not None:
            self.check_size(size, "sizes")
        height, width = size or self.target_size(picture.height, picture.width, min_pixels, max_pixels)
        return self.patches(picture, height, width, 1), ImageSize(picture.width, picture.height, width, height)

    def batch(self, prepared: Sequence[Prepared], pixel_dtype: torch.dtype = torch.float32) -> BatchFeature:
        """pixel_values and image_grid_thw int64 [n, 3] of prepared pictures, at least one. By pixel_dtype,
        pixel_values are float32 [P, 1176], or uint8 [P, 588] with pixel_affine, the (scale, shift) that makes values
        of them: an eighth of the bytes, for the vision tower to take as they are."""
        pixels = torch.cat([patches for patches, _ in prepared])
        sizes = [size for _, size in prepared]
        grids = [self.grid(self.temporal_patch_size, size.resized_height, size.resized_width) for size in sizes]
        data = {"pixel_values": pixels, "image_grid_thw": torch.tensor(grids)}
        if wants_uint8(pixel_dtype):
            return BatchFeature({**data, "pixel_affine": self.affine}, sizes)
        data["pixel_values"] = repeat_frames(self.normalize(pixels), self.temporal_patch_size)
        return BatchFeature(data, sizes)

    def preprocess(
        self,
        images: ImageSource | Tensor | Sequence[Any],
        *,
        videos: None = None,
        min_pixels: Limit = None,
        max_pixels: Limit = None,
        size: Mapping[str, int] | None = None,
        sizes: Sequence[tuple[int, int] | None] | None = None,
        do_resize: bool | None = None,
        resample: int | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        patch_size: int | None = None,
        temporal_patch_size: int | None = None,
        merge_size: int | None = None,
        do_convert_rgb: bool | None = None,
        return_tensors: str | None = "pt",
        data_format: str | None = None,
        input_data_format: str | None = None,
        policy: MediaPolicy = DEFAULT_POLICY,
        pixel_dtype: torch.dtype = torch.float32,
    ) -> BatchFeature:
        """pixel_values float32 [P, 1176] and image_grid_thw int64 [n, 3] of one picture or several, also in nested
        lists. The result's image_sizes tells what became of each. pixel_dtype: see batch().

        images: paths, addresses, PIL pictures, arrays or tensors with values 0 to 255 (0 to 1 with do_rescale=False).
        min_pixels, max_pixels: for this call, or one per picture (None: the processor's). sizes: (height, width) that
        one picture must have, else None. input_data_format: "channels_first" or "channels_last" of arrays (None: by
        their shape). The other arguments are the settings of that name, for this call.
        """
        if videos is not None:
            raise ValueError("videos are not for the image processor: give them to Qwen2VLVideoProcessor")
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors={return_tensors!r}: expected 'pt'")
        if data_format not in (None, "channels_first"):
            raise ValueError(f"data_format={data_format!r} is not supported: patches are always channels_first")
        first = channels_first(input_data_format)
        given = flat(images)
        if not given:
            raise ValueError("images is empty: give at least one picture")
        changes = {
            "size": size, "do_resize": do_resize, "resample": resample, "do_rescale": do_rescale,
            "rescale_factor": rescale_factor, "do_normalize": do_normalize, "image_mean": image_mean,
            "image_std": image_std, "patch_size": patch_size, "temporal_patch_size": temporal_patch_size,
            "merge_size": merge_size, "do_convert_rgb": do_convert_rgb,
        }  # fmt: skip
        given, changes = lift_units(given, changes)
        settings = self.changed(**changes)
        if sizes is not None and len(sizes) != len(given):
            raise ValueError(f"sizes has {len(sizes)} values for {len(given)} pictures: give one per picture")
        lows, highs = _each("min_pixels", min_pixels, len(given)), _each("max_pixels", max_pixels, len(given))
        chosen = sizes or [None] * len(given)
        return settings.batch(
            [
                settings.prepare(as_picture(image, policy, first), low, high, fixed)
                for image, low, high, fixed in zip(given, lows, highs, chosen, strict=True)
            ],
            pixel_dtype,
        )

    __call__ = preprocess


def lift_units(given: list[Any], options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arrays from 0 to 1, which callers announce by do_rescale=False, brought to 0 to 255, with options that undo
    it; anything else as it came."""
    if options.get("do_rescale") is False and given and all(map(is_unit, given)):
        return [x * 255 for x in given], {**options, "do_rescale": True, "rescale_factor": 1 / 255}
    return given, options


def with_fast(changes: dict[str, Any], use_fast: bool | None) -> dict[str, Any]:
    """`changes` with use_fast, the ecosystem's word, as `fast`. ValueError where both are given and differ."""
    if use_fast is None:
        return changes
    if changes.get("fast") not in (None, use_fast):
        raise ValueError(f"fast={changes['fast']} and use_fast={use_fast} are one setting: give one")
    return {**changes, "fast": use_fast}


def channels_first(input_data_format: str | None) -> bool | None:
    """Where arrays have their channels: first, last, or to be seen from their shape (None)."""
    words = {None: None, "channels_first": True, "channels_last": False}
    value = getattr(input_data_format, "value", input_data_format)
    if value not in words:
        raise ValueError(f"input_data_format={input_data_format!r}: expected channels_first or channels_last")
    return words[value]


def flat(images: Any) -> list[Any]:
    """Pictures of one prompt or of many, in one list."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [x for item in images for x in (flat(item) if isinstance(item, list | tuple) else [item])]
    return [images]


def _each(name: str, value: Limit, count: int) -> list[int | None]:
    """One limit per picture."""
    if value is None or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} values for {count} pictures: give one number, or one per picture")
    return list(value)


__all__ = ["BICUBIC", "MEAN", "STD", "Qwen2VLImageProcessor", "normalize_patches", "patchify"]
