"""uint8 pixels -> patches -> values, and the settings that pictures and frames of videos share.

Everything stays uint8 until the last step, which is one multiply-add a value.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from qwenvl.media.resize import smart_resize
from qwenvl.types import Affine

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3
FIELDS = ("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std",
          "do_resize", "do_rescale", "rescale_factor", "do_normalize", "do_convert_rgb", "resample")  # fmt: skip
LIMITS = ("min_pixels", "max_pixels")


def patchify_frames(frames: Tensor, patch: int = 14, merge: int = 2, temporal: int = 2) -> Tensor:
    """Patches of frames in merge-block order: uint8 [T, h, w, 3] -> uint8 [P, 3 * temporal * patch * patch].

    `temporal` frames after each other share rows. Rows go in time, then block by block (merge x merge neighbours
    together, blocks in reading order); a row is laid out as channel, frame, y, x. T is a multiple of temporal, h and w
    of patch * merge. Example: [4, 56, 28, 3] -> [16, 1176]: rows 0-7 are of frames 0 and 1, 0-3 their upper half.
    """
    count, h, w, channels = frames.shape
    rows, cols = h // (patch * merge), w // (patch * merge)
    blocks = frames.reshape(count // temporal, temporal, rows, merge, patch, cols, merge, patch, channels)
    return blocks.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, channels * temporal * patch * patch)


def patchify(rgb: Tensor, patch: int = 14, merge: int = 2, temporal: int = 2) -> Tensor:
    """Patches of one picture, which stands for `temporal` equal frames: uint8 [h, w, 3] -> uint8 [P, 1176].
    Example: [56, 28, 3] -> [8, 1176]: the upper 28 x 28 block is rows 0-3."""
    return patchify_frames(rgb.expand(temporal, *rgb.shape), patch, merge, temporal)


def repeat_frames(patches: Tensor, temporal: int, channels: int = 3) -> Tensor:
    """Rows that hold equal frames once, [P, channels * n], with each of them: [P, channels * temporal * n]."""
    once = patches.view(len(patches), channels, 1, -1)
    return once.expand(-1, -1, temporal, -1).reshape(len(patches), -1)


def wants_uint8(pixel_dtype: torch.dtype) -> bool:
    """Whether a call asks for pixels in place of values. ValueError for a dtype that is neither."""
    if pixel_dtype not in (torch.float32, torch.uint8):
        raise ValueError(f"pixel_dtype={pixel_dtype!r}: expected torch.float32 (values) or torch.uint8 (pixels)")
    return pixel_dtype == torch.uint8


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


class PixelSettings:
    """The documented settings of an image or video processor.

    min_pixels, max_pixels: limits of the area (of one picture or frame) that the model sees; `size`
    {"shortest_edge", "longest_edge"} is another spelling of the two and always agrees with them. fast: torch's resize
    kernel in place of Pillow's (see media.pixels.resize_rgb).
    """

    kind: ClassVar[tuple[str, str]]  # how a file names the class
    default_limits: ClassVar[tuple[int, int]]
    default_fast: ClassVar[bool]
    fields: ClassVar[tuple[str, ...]] = FIELDS

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
        size: Mapping[str, int] | None = None,
        fast: bool | None = None,
    ) -> None:
        given = read_limits(min_pixels, max_pixels, size)
        self.min_pixels, self.max_pixels = self.settle(*given, *self.default_limits)
        self.patch_size, self.temporal_patch_size, self.merge_size = patch_size, temporal_patch_size, merge_size
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.do_resize, self.do_rescale, self.rescale_factor = do_resize, do_rescale, rescale_factor
        self.do_normalize, self.do_convert_rgb, self.resample = do_normalize, do_convert_rgb, resample
        self.fast = self.default_fast if fast is None else fast
        self._check()

    @classmethod
    def settle(cls, low: int | None, high: int | None, other_low: int, other_high: int) -> tuple[int, int]:
        """The limits given, the others where one is None."""
        return other_low if low is None else low, other_high if high is None else high

    def _check(self) -> None:
        if self.resample != BICUBIC:
            raise ValueError(f"resample={self.resample!r} is not supported: the models take {BICUBIC} (bicubic)")
        if not self.do_convert_rgb:
            raise ValueError("do_convert_rgb=False is not supported: the models take RGB only")
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            whole_number(name, getattr(self, name))
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} has {len(getattr(self, name))} values: expected one each for R, G and B")
        check_limits(self.min_pixels, self.max_pixels)

    @property
    def size(self) -> dict[str, int]:
        """The limits as newer files spell them."""
        return {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}

    @size.setter
    def size(self, size: Mapping[str, int]) -> None:
        low, high = read_limits(None, None, size)
        low, high = self.settle(low, high, self.min_pixels, self.max_pixels)
        check_limits(low, high)
        self.min_pixels, self.max_pixels = low, high

    @property
    def factor(self) -> int:
        """Sides that the model sees are multiples of this many pixels (28)."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **changes: Any) -> Self:
        """Settings from a file of any vintage; `changes` win. A limit given in `changes` beats the file's in both
        spellings."""
        known = {name: data[name] for name in cls.fields if data.get(name) is not None}
        changes = {name: value for name, value in changes.items() if value is not None}
        wanted, found = (
            read_limits(source.get("min_pixels"), source.get("max_pixels"), source.pop("size", None))
            for source in (changes, dict(data))
        )
        limits = cls.settle(*wanted, *cls.settle(*found, *cls.default_limits))
        known |= dict(zip(LIMITS, limits, strict=True))
        return cls(**{**known, **{name: value for name, value in changes.items() if name not in LIMITS}})

    def to_dict(self) -> dict[str, Any]:
        """The settings in the official layout of their file."""
        fields = {name: getattr(self, name) for name in self.fields}
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return {**lists, self.kind[0]: self.kind[1]}

    def changed(self, **changes: Any) -> Self:
        """A copy with other settings; those that are None stay. ValueError for a name that is no setting."""
        changes = {name: value for name, value in changes.items() if value is not None}
        low, high = read_limits(changes.pop("min_pixels", None), changes.pop("max_pixels", None),
                                changes.pop("size", None))  # fmt: skip
        other = copy.copy(self)
        for name, value in changes.items():
            if name not in (*self.fields, "fast"):
                raise ValueError(
                    f"{name}={value!r} is no setting: expected some of {', '.join((*self.fields, 'size'))}"
                )
            setattr(other, name, tuple(value) if isinstance(value, list) else value)
        other.min_pixels, other.max_pixels = self.settle(low, high, self.min_pixels, self.max_pixels)
        other._check()
        return other

    def target_size(
        self, height: int, width: int, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> tuple[int, int]:
        """(height, width) that the model sees of a picture or frame, under these limits or the processor's."""
        low, high = self.settle(min_pixels, max_pixels, self.min_pixels, self.max_pixels)
        check_limits(low, high)
        if not self.do_resize:
            if height % self.factor or width % self.factor:
                raise ValueError(
                    f"do_resize=False needs sides that are multiples of {self.factor}: "
                    f"the picture has {width} x {height}"
                )
            return height, width
        return smart_resize(height, width, self.factor, min_pixels=low, max_pixels=high)

    def check_size(self, size: tuple[int, int], name: str) -> None:
        """ValueError unless (height, width) are multiples of `factor`."""
        if min(size) < 1 or size[0] % self.factor or size[1] % self.factor:
            raise ValueError(f"{name} has {size}: expected (height, width) in multiples of {self.factor}")

    def grid(self, frames: int, height: int, width: int) -> list[int]:
        """[time, height, width] in patches, of frames as the model sees them."""
        return [frames // self.temporal_patch_size, height // self.patch_size, width // self.patch_size]

    @property
    def affine(self) -> Affine:
        """What normalize() does to channel c, up to rounding: value * scale[c] + shift[c], as (scale, shift)."""
        factor = float(self.rescale_factor) if self.do_rescale else 1.0
        if not self.do_normalize:
            return (factor,) * 3, (0.0,) * 3
        pairs = list(zip(self.image_mean, self.image_std, strict=True))
        return tuple(factor / std for _, std in pairs), tuple(-mean / std for mean, std in pairs)

    def normalize(self, patches: Tensor) -> Tensor:
        """uint8 patches -> float32, by the settings."""
        factor = self.rescale_factor if self.do_rescale else 1.0
        if not self.do_normalize:
            return patches.to(torch.float32) * factor
        return normalize_patches(patches, self.image_mean, self.image_std, factor)


def read_limits(low: int | None, high: int | None, size: Mapping[str, int] | None) -> tuple[int | None, int | None]:
    """min_pixels and max_pixels where given, else what `size` says in either of its published spellings."""
    if size is not None and not isinstance(size, Mapping):
        raise ValueError(f"size={size!r}: expected a dict with shortest_edge and longest_edge, in pixels")
    size = dict(size or {})
    lows = [low, size.pop("shortest_edge", None), size.pop("min_pixels", None)]
    highs = [high, size.pop("longest_edge", None), size.pop("max_pixels", None)]
    if size:
        raise ValueError(f"size has {', '.join(map(str, size))}: expected shortest_edge and longest_edge, in pixels")
    return next((x for x in lows if x is not None), None), next((x for x in highs if x is not None), None)


def check_limits(low: int, high: int) -> None:
    """ValueError unless both are whole numbers and 0 < low <= high."""
    for name, value in zip(LIMITS, (low, high), strict=True):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(f"{name}={value!r}: expected a whole number of pixels")
    if not 0 < low <= high:
        raise ValueError(f"min_pixels={low} and max_pixels={high}: expected 0 < min_pixels <= max_pixels")


def whole_number(name: str, value: Any) -> None:
    """ValueError unless the value is a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number, 1 or more")
