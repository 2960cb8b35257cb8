"""Antialiased bicubic resize of frames in plain numpy, for a process that never imports torch.

Floating point between the two passes and one rounding at the end: the values of torch's antialiased bicubic on
floats, which the official video pipeline uses (Keys 1981 with a = -0.5, widened by the scale when shrinking).
"""

from __future__ import annotations

import numpy as np

SLICE = 16  # outputs computed by one matrix product: larger wastes zeros, smaller wastes calls


class Resampler:
    """Resizes uint8 [H, W, 3] frames of one size to uint8 [height, width, 3]."""

    def __init__(self, old: tuple[int, int], new: tuple[int, int]) -> None:
        """old, new: (height, width)."""
        self.old, self.new = old, new
        self._rows, self._columns = _weights(old[0], new[0]), _weights(old[1], new[1])

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        (old_height, old_width), (height, width) = self.old, self.new
        if frame.shape != (old_height, old_width, 3):
            raise ValueError(f"a frame of shape {frame.shape}: expected {(old_height, old_width, 3)}")
        if self.old == self.new:
            return frame
        tall = _apply(self._rows, frame.reshape(old_height, old_width * 3), height)
        turned = np.ascontiguousarray(tall.reshape(height, old_width, 3).transpose(1, 0, 2))
        small = _apply(self._columns, turned.reshape(old_width, height * 3), width)
        np.rint(small, out=small)
        pixels = small.clip(0, 255, out=small).astype(np.uint8).reshape(width, height, 3)
        return np.ascontiguousarray(pixels.transpose(1, 0, 2))


def _weights(old: int, new: int) -> list[tuple[int, np.ndarray]]:
    """For every SLICE of outputs: the first input they need, and float32 weights [outputs, inputs]."""
    scale = old / new
    wide = max(scale, 1.0)
    bands = []
    for begin in range(0, new, SLICE):
        rows = []
        for i in range(begin, min(begin + SLICE, new)):
            center = scale * (i + 0.5)
            low, high = max(int(center - 2 * wide + 0.5), 0), min(int(center + 2 * wide + 0.5), old)
            at = np.abs((np.arange(low, high) - center + 0.5) / wide)
            near = (1.5 * at - 2.5) * at * at + 1
            far = ((-0.5 * at + 2.5) * at - 4) * at + 2
            kernel = np.where(at < 1, near, np.where(at < 2, far, 0.0))
            rows.append((low, kernel / kernel.sum()))
        first, last = rows[0][0], max(low + len(kernel) for low, kernel in rows)
        band = np.zeros((len(rows), last - first), np.float32)
        for row, (low, kernel) in zip(band, rows, strict=True):
            row[low - first : low - first + len(kernel)] = kernel
        bands.append((first, band))
    return bands


def _apply(bands: list[tuple[int, np.ndarray]], values: np.ndarray, new: int) -> np.ndarray:
    """[old, X] -> float32 [new, X]."""
    out = np.empty((new, values.shape[1]), np.float32)
    done = 0
    for first, band in bands:
        np.matmul(band, values[first : first + band.shape[1]].astype(np.float32), out=out[done : done + len(band)])
        done += len(band)
    return out
