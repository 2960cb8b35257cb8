"""Pictures -> patches: resize to the size the model sees, cut, normalise.

Everything stays uint8 until the last step, which is one multiply-add a value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from qwenvl.media.images import ImageSource, load_image
from qwenvl.media.pixels import resize_rgb
from qwenvl.media.resize import MAX_PIXELS, MIN_PIXELS, smart_resize
from qwenvl.processing.batch_feature import BatchFeature
from qwenvl.processing.files import read_json
from qwenvl.types import ImageSize

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3
FIELDS = ("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std",
          "do_resize", "do_rescale", "rescale_factor", "do_normalize", "do_convert_rgb", "resample")  # fmt: skip
LIMITS = ("min_pixels", "max_pixels")
Limit = int | None | Sequence[int | None]


def patchify(rgb: Tensor, patch: int = 14, merge: int = 2, temporal: int = 2) -> Tensor:
    """Patches of one picture in merge-block order: uint8 [h, w, 3] -> uint8 [P, 3 * temporal * patch * patch].

    Rows go block by block (merge x merge neighbours together, blocks in reading order); a row is laid out as
    channel, frame, y, x, and the picture stands for its `temporal` equal frames. h and w are multiples of
    patch * merge. Example: [56, 28, 3] -> [8, 1176]: the upper 28 x 28 block is rows 0-3.
    """
    h, w, channels = rgb.shape
    rows, cols = h // (patch * merge), w // (patch * merge)
    blocks = rgb.reshape(rows, merge, patch, cols, merge, patch, channels).permute(0, 3, 1, 4, 6, 2, 5)
    frames = blocks.unsqueeze(5).expand(rows, cols, merge, merge, channels, temporal, patch, patch)
    return frames.reshape(rows * cols * merge * merge, channels * temporal * patch * patch)


def normalize_patches(
    patches: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD, rescale_factor: float = 1 / 255
) -> Tensor:
    """uint8 patches [P, channels * n] -> float32 of that shape: (value * rescale_factor - mean) / std by channel."""
    device = patches.device
    deviation = torch.tensor(std, dtype=torch.float64)
    scale = (rescale_factor / deviation).to(device, torch.float32)
    shift = (-torch.tensor(mean, dtype=torch.float64) / deviation).to(device, torch.float32)
    values = patches.unflatten(1, (len(scale), -1)).to(torch.float32)
    return values.mul_(scale.unsqueeze(1)).add_(shift.unsqueeze(1)).flatten(1)


class Qwen2VLImageProcessor:
    """Pictures -> pixel_values and image_grid_thw, with the documented settings.

    min_pixels, max_pixels: limits of the area that the model sees; `size` {"shortest_edge", "longest_edge"} is
    another spelling of the two and always agrees with them. fast: torch's resize kernel in place of Pillow's (see
    media.pixels.resize_rgb). The same class serves Qwen2-VL and Qwen2.5-VL.
    """

    def __init__(
        self,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        patch_size: int = 14,
        temporal_patch_size: int = 2,
        merge_size: int = 2,
        image_mean: Sequence[float] = MEAN,
        image_std: Sequence[float] = STD,
        do_resize: bool = True,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        do_convert_rgb: bool = True,
        resample: int = BICUBIC,
        size: dict[str, int] | None = None,
        fast: bool = False,
    ) -> None:
        if resample != BICUBIC:
            raise ValueError(
                f"resample={resample!r} is not supported: the models were trained with {BICUBIC} (bicubic)"
            )
        if not do_convert_rgb:
            raise ValueError("do_convert_rgb=False is not supported: the models take RGB only")
        low, high = _limits(min_pixels, max_pixels, size)
        self.min_pixels = MIN_PIXELS if low is None else low
        self.max_pixels = MAX_PIXELS if high is None else high
        self.patch_size, self.temporal_patch_size, self.merge_size = patch_size, temporal_patch_size, merge_size
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.do_resize, self.do_rescale, self.rescale_factor = do_resize, do_rescale, rescale_factor
        self.do_normalize, self.do_convert_rgb, self.resample, self.fast = do_normalize, do_convert_rgb, resample, fast
        _check_limits(self.min_pixels, self.max_pixels)

    @property
    def size(self) -> dict[str, int]:
        """The limits as newer files spell them."""
        return {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}

    @size.setter
    def size(self, size: dict[str, int]) -> None:
        low, high = _limits(None, None, size)
        low, high = self.min_pixels if low is None else low, self.max_pixels if high is None else high
        _check_limits(low, high)
        self.min_pixels, self.max_pixels = low, high

    @property
    def factor(self) -> int:
        """Sides that the model sees are multiples of this many pixels (28)."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_dict(cls, data: dict[str, Any], **changes: Any) -> Self:
        """Settings from a preprocessor_config.json of any vintage; `changes` win. A limit given in `changes` beats the
        file's in both spellings."""
        known = {name: data[name] for name in FIELDS if data.get(name) is not None}
        changes = {name: value for name, value in changes.items() if value is not None}
        limits = [
            _limits(source.get("min_pixels"), source.get("max_pixels"), source.pop("size", None))
            for source in (changes, dict(data))
        ]
        for name, wanted, found in zip(("min_pixels", "max_pixels"), *limits, strict=True):
            known[name] = found if wanted is None else wanted
        return cls(**{**known, **{name: value for name, value in changes.items() if name not in LIMITS}})

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Self:
        """Settings of a checkpoint's folder: preprocessor_config.json, or the "image_processor" part of
        processor_config.json, where newer folders have them; without both the class's own."""
        data = read_json(Path(folder) / "preprocessor_config.json")
        if data is None:
            data = (read_json(Path(folder) / "processor_config.json") or {}).get("image_processor", {})
        return cls.from_dict(data, **changes)

    def to_dict(self) -> dict[str, Any]:
        """preprocessor_config.json in the official layout."""
        fields = {name: getattr(self, name) for name in FIELDS}
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return {**lists, "image_processor_type": "Qwen2VLImageProcessor"}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes preprocessor_config.json."""
        path = Path(folder) / "preprocessor_config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", "utf-8")

    def target_size(
        self, height: int, width: int, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> tuple[int, int]:
        """(height, width) that the model sees of a picture, under these limits or the processor's."""
        low = self.min_pixels if min_pixels is None else min_pixels
        high = self.max_pixels if max_pixels is None else max_pixels
        _check_limits(low, high)
        if not self.do_resize:
            if height % self.factor or width % self.factor:
                raise ValueError(
                    f"do_resize=False needs sides that are multiples of {self.factor}: "
                    f"the picture has {width} x {height}"
                )
            return height, width
        return smart_resize(height, width, self.factor, min_pixels=low, max_pixels=high)

    def patches(self, image: ImageSource, height: int, width: int) -> Tensor:
        """uint8 patches [P, 1176] of a picture at a size that the model sees."""
        rgb = resize_rgb(load_image(image), height, width, self.fast)
        return patchify(rgb, self.patch_size, self.merge_size, self.temporal_patch_size)

    def preprocess(
        self,
        images: ImageSource | Sequence[ImageSource],
        min_pixels: Limit = None,
        max_pixels: Limit = None,
        sizes: Sequence[tuple[int, int] | None] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """pixel_values float32 [P, 1176] and image_grid_thw int64 [n, 3] of one picture or several.

        min_pixels, max_pixels: for this call, or one per picture (None: the processor's). sizes: (height, width) that
        one picture must have, else None. The result's image_sizes tells what became of each.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors={return_tensors!r}: expected 'pt'")
        given: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
        pictures = [load_image(x) for x in given]
        if not pictures:
            raise ValueError("images is empty: give at least one picture")
        if sizes is not None and len(sizes) != len(pictures):
            raise ValueError(f"sizes has {len(sizes)} values for {len(pictures)} pictures: give one per picture")
        for size in sizes or ():
            if size is not None and (min(size) < 1 or size[0] % self.factor or size[1] % self.factor):
                raise ValueError(f"sizes has {size}: expected (height, width) in multiples of {self.factor}")
        lows, highs = _each("min_pixels", min_pixels, len(pictures)), _each("max_pixels", max_pixels, len(pictures))
        blocks, grids, seen = [], [], []
        for i, picture in enumerate(pictures):
            fixed = sizes[i] if sizes else None
            height, width = fixed or self.target_size(picture.height, picture.width, lows[i], highs[i])
            blocks.append(self.patches(picture, height, width))
            grids.append([1, height // self.patch_size, width // self.patch_size])
            seen.append(ImageSize(picture.width, picture.height, width, height))
        pixels = self.normalize(torch.cat(blocks))
        return BatchFeature({"pixel_values": pixels, "image_grid_thw": torch.tensor(grids)}, seen)

    __call__ = preprocess

    def normalize(self, patches: Tensor) -> Tensor:
        """uint8 patches -> float32, by the settings."""
        factor = self.rescale_factor if self.do_rescale else 1.0
        if not self.do_normalize:
            return patches.to(torch.float32) * factor
        return normalize_patches(patches, self.image_mean, self.image_std, factor)


def _limits(low: int | None, high: int | None, size: dict[str, int] | None) -> tuple[int | None, int | None]:
    """min_pixels and max_pixels where given, else what `size` says in either of its published spellings."""
    size = dict(size or {})
    lows = [low, size.pop("shortest_edge", None), size.pop("min_pixels", None)]
    highs = [high, size.pop("longest_edge", None), size.pop("max_pixels", None)]
    if size:
        raise ValueError(f"size has {', '.join(map(str, size))}: expected shortest_edge and longest_edge, in pixels")
    return next((x for x in lows if x is not None), None), next((x for x in highs if x is not None), None)


def _check_limits(low: int, high: int) -> None:
    if not 0 < low <= high:
        raise ValueError(f"min_pixels={low} and max_pixels={high}: expected 0 < min_pixels <= max_pixels")


def _each(name: str, value: Limit, count: int) -> list[int | None]:
    """One limit per picture."""
    if value is None or isinstance(value, int):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} values for {count} pictures: give one number, or one per picture")
    return list(value)
