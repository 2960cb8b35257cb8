"""Bytes -> upright RGB pictures."""

from __future__ import annotations

import io
import os
import warnings
from contextlib import suppress
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from qwenvl.media.policy import DEFAULT_POLICY, MediaError, MediaPolicy, shown
from qwenvl.media.sources import read_bytes

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | Image.Image | np.ndarray
COMMON = ("BMP", "GIF", "JPEG", "PNG", "PPM")  # known without loading every plugin
OTHERS = ("AVIF", "ICO", "JPEG2000", "MPO", "TGA", "TIFF", "WEBP")  # no format that runs a program or a script


def load_image(source: ImageSource, policy: MediaPolicy = DEFAULT_POLICY) -> Image.Image:
    """A picture in RGB, upright (EXIF orientation applied), transparency on white, first frame of animations.

    source: path, file://, http(s):// or data: address, bytes, PIL picture, or uint8 array [H, W], [H, W, 3] or
    [H, W, 4]. Raises MediaError (a ValueError) with one clear line when it cannot be had, is no picture, is cut off,
    or has more pixels than the policy allows (seen in the header, nothing is decoded then).
    """
    if isinstance(source, Image.Image):
        return _finish(source, "the picture", policy)
    if isinstance(source, np.ndarray):
        return _finish(_from_array(source), "the array", policy)
    if isinstance(source, bytes | bytearray):
        return _decode(bytes(source), f"the picture of {len(source)} bytes", policy)
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        name = "the data: picture" if name[:5].lower() == "data:" else shown(name)
        return _decode(read_bytes(source, policy), name, policy)
    raise MediaError(
        f"a picture of type {type(source).__name__} cannot be read: expected a path, an address, bytes, a PIL picture "
        "or a uint8 array"
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB: EXIF orientation applied, transparency composited on white, 16-bit grey brought to 8 bits."""
    with suppress(Exception):  # damaged EXIF says nothing about the orientation
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        deep = np.asarray(image)
        grey = (deep >> 8).clip(0, 255).astype(np.uint8)
        grey[deep == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("RGB")


def _open(data: bytes, name: str, policy: MediaPolicy) -> Image.Image:
    """A picture whose header is read."""
    if not data:
        raise MediaError(f"{name} is empty: expected a picture")
    try:
        with warnings.catch_warnings(action="ignore"):  # of sizes below the limit, of damaged EXIF
            image = _identify(data)
    except Image.DecompressionBombError:
        limit = min(policy.max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or 0))
        raise MediaError(f"{name} has more pixels than the limit of {limit}: make it smaller") from None
    except UnidentifiedImageError:
        raise MediaError(
            f"{name} is not a picture that can be read: expected PNG, JPEG, WebP, GIF, BMP or TIFF"
        ) from None
    except Exception as error:  # decoders raise whatever they like on damaged data
        raise MediaError(f"{name} is damaged or cut off: {_short(error)}; get the file again") from None
    return image


def _identify(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=COMMON)
    except UnidentifiedImageError:
        Image.init()
        return Image.open(io.BytesIO(data), formats=[name for name in OTHERS if name in Image.OPEN])


def _decode(data: bytes, name: str, policy: MediaPolicy) -> Image.Image:
    with _open(data, name, policy) as image:
        return _finish(image, name, policy)


def _finish(image: Image.Image, name: str, policy: MediaPolicy) -> Image.Image:
    """Decode and convert, after a look at the size."""
    width, height = image.size
    if width * height > policy.max_pixels:
        raise MediaError(
            f"{name} has {width} x {height} = {width * height} pixels, the limit is {policy.max_pixels}: "
            "make it smaller"
        )
    if not width or not height:
        raise MediaError(f"{name} has {width} x {height} pixels: expected at least one")
    try:
        with warnings.catch_warnings(action="ignore"):
            image.load()
            return to_rgb(image)
    except Exception as error:  # decoders raise whatever they like on damaged data
        raise MediaError(f"{name} is damaged or cut off: {_short(error)}; get the file again") from None


def _from_array(array: np.ndarray) -> Image.Image:
    good = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not good:
        raise MediaError(
            f"an array of shape {array.shape} and type {array.dtype} is no picture: expected uint8 [H, W], [H, W, 3] "
            "or [H, W, 4]"
        )
    return Image.fromarray(array)


def _short(error: BaseException) -> str:
    """The error's first line, without the object that PIL prints."""
    return str(error).split("\n")[0].split("<_io")[0].strip() or type(error).__name__
