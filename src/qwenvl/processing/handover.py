"""Pixels as callers hand them over (PIL pictures, arrays and tensors in any layout) -> upright RGB, uint8."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from qwenvl.media.images import load_image
from qwenvl.media.policy import DEFAULT_POLICY, MediaPolicy

CHANNELS = (1, 3, 4)


def as_picture(source: Any, policy: MediaPolicy = DEFAULT_POLICY, first: bool | None = None) -> Image.Image:
    """What load_image takes, and besides: tensors, and arrays or tensors [H, W], [H, W, C] or [C, H, W] of 1, 3 or 4
    channels with whole or broken values from 0 to 255. first: where the channels are (None: by the shape)."""
    if isinstance(source, np.ndarray | torch.Tensor):
        array = uint8(source, "the picture")
        if array.ndim == 3:
            array = _channels_last(array, isinstance(source, torch.Tensor), first, "a picture")
        elif array.ndim != 2:
            raise ValueError(f"a picture of shape {tuple(array.shape)}: expected [H, W, C], [C, H, W] or [H, W]")
        return load_image(np.ascontiguousarray(array), policy)
    return load_image(source, policy)


def as_frames(
    source: np.ndarray | torch.Tensor, policy: MediaPolicy = DEFAULT_POLICY, first: bool | None = None
) -> np.ndarray:
    """Array or tensor [T, H, W, C] or [T, C, H, W], values 0 to 255 -> uint8 [T, H, W, 3]."""
    frames = uint8(source, "the video")
    if frames.ndim != 4 or not frames.shape[0]:
        raise ValueError(f"a video of shape {tuple(frames.shape)}: expected [T, H, W, C] or [T, C, H, W], T 1 or more")
    frames = _channels_last(frames, isinstance(source, torch.Tensor), first, "a video")
    if frames.ndim == 4 and frames.shape[-1] == 3:
        load_image(np.ascontiguousarray(frames[0]), policy)  # checks the size
        return np.ascontiguousarray(frames)
    return np.stack([np.asarray(load_image(np.ascontiguousarray(frame), policy)) for frame in frames])


def uint8(values: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """The same as a uint8 array; other types are rounded. ValueError outside 0 to 255, and for pixels that were
    divided by 255 (the processor does that itself)."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{name} has values of type {values.dtype}: expected numbers from 0 to 255")
    if not values.size:
        return values.astype(np.uint8)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):
        raise ValueError(f"{name} has values from {low} to {high}: expected 0 to 255")
    if high <= 1 and values.dtype.kind == "f" and (values != values.round()).any():
        raise ValueError(
            f"{name} has values between 0 and 1: expected 0 to 255, give it undivided or with do_rescale=False"
        )
    return values.round().astype(np.uint8)


def is_unit(values: Any) -> bool:
    """Whether it is an array or tensor of broken numbers from 0 to 1."""
    if isinstance(values, torch.Tensor):
        return (
            values.is_floating_point() and bool(values.numel()) and 0 <= float(values.min()) <= float(values.max()) <= 1
        )
    return (
        isinstance(values, np.ndarray) and values.dtype.kind == "f" and bool(values.size)
        and 0 <= float(values.min()) <= float(values.max()) <= 1
    )  # fmt: skip


def _channels_last(pixels: np.ndarray, prefer_first: bool, first: bool | None, name: str) -> np.ndarray:
    """[..., H, W, C], or [..., H, W] for one channel, which load_image takes as grey."""
    at_front, at_end = pixels.shape[-3] in CHANNELS, pixels.shape[-1] in CHANNELS
    if first is None:
        if not at_front and not at_end:
            raise ValueError(f"{name} of shape {pixels.shape} has no dimension of 1, 3 or 4 channels, first or last")
        first = at_front and (prefer_first or not at_end)
    elif not (at_front if first else at_end):
        raise ValueError(f"{name} of shape {pixels.shape} has no 1, 3 or 4 channels where input_data_format says")
    pixels = np.moveaxis(pixels, -3, -1) if first else pixels
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
