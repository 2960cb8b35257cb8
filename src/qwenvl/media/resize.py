"""Sizes: which size the model sees.

Legend: h, w picture height and width in pixels; a side the model sees is a multiple of 28 (patch 14 x merge 2).
"""

from __future__ import annotations

import math

MAX_RATIO = 200
FACTOR = 28
MIN_PIXELS = 56 * 56
MAX_PIXELS = 14 * 14 * 4 * 1280


def smart_resize(
    height: int,
    width: int,
    factor: int = FACTOR,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, int]:
    """(height, width) the model sees: multiples of `factor`, area within the limits, shape nearly kept.

    Rounding is to the nearest multiple, a tie to the even one. Above max_pixels both sides shrink by one ratio and
    round down; below min_pixels, or where a side would round to nothing, they are scaled to an area of min_pixels
    and round up. Source: the processing rules of the Qwen2-VL report (2024).
    Example: smart_resize(428, 640) == (420, 644), which is 30 x 46 patches and 345 tokens.
    Raises ValueError for sides below 1, a longer side above 200 x the shorter one, or min_pixels > max_pixels.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {width} x {height} pixels has no area: both sides must be 1 or more")
    if min_pixels > max_pixels:
        raise ValueError(
            f"min_pixels={min_pixels} is above max_pixels={max_pixels}: lower the first or raise the second"
        )
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_RATIO:
        raise ValueError(
            f"a picture of {width} x {height} pixels is {ratio:.0f} times longer than wide; the model takes at most "
            f"{MAX_RATIO}: crop it or split it"
        )
    h = round(height / factor) * factor
    w = round(width / factor) * factor
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h = max(factor, math.floor(height / shrink / factor) * factor)
        w = max(factor, math.floor(width / shrink / factor) * factor)
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h = math.ceil(height * grow / factor) * factor
        w = math.ceil(width * grow / factor) * factor
    return h, w
