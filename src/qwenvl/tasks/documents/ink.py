"""Where on a page picture there is ink: lines of text, and the gaps between words and columns.

In: the picture as grey values [height, width] and a box in its pixels. Out: stretches (start, end) in pixels.
A page is read as dark on light or light on dark: ink is what differs from the most common grey of the box.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Stretch = tuple[int, int]

_DIFFERENT = 56  # grey values of 256 between ground and ink
_RULE = 0.7  # a row or column with ink over this share of the box is a drawn line, not letters
_SMALL = 40  # pixels: in smaller boxes a letter would pass for a drawn line
_FAINT = 0.06  # rows with less ink than this share of the fullest lie between lines: tails and dots only


def ink_of(grey: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """What is ink in the box (x1, y1, x2, y2); lines drawn across it are taken out."""
    import numpy as np

    part = _part(grey, box)
    if part.size == 0:
        return np.zeros((0, 0), dtype=bool)
    ink: NDArray[np.bool_] = np.abs(part.astype(np.int16) - _ground(part)) > _DIFFERENT
    if ink.shape[1] > _SMALL:
        ink[ink.mean(axis=1) > _RULE] = False
    return ink


def without_rules(grey: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A copy in which the lines that rule the box, across and from top to bottom, have the colour of the ground."""
    import numpy as np

    clean = grey.copy()
    part = _part(clean, box)
    if part.size and min(part.shape) > _SMALL:
        ground = _ground(part)
        ink = np.abs(part.astype(np.int16) - ground) > _DIFFERENT
        for rule in np.flatnonzero(ink.mean(axis=1) > _RULE):
            part[max(0, rule - 1) : rule + 2] = ground
        for rule in np.flatnonzero(ink.mean(axis=0) > _RULE):
            part[:, max(0, rule - 1) : rule + 2] = ground
    return clean


def _part(grey: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    x1, y1, x2, y2 = box
    return grey[max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)]


def _ground(part: NDArray[np.uint8]) -> int:
    """The most common grey, to within 4."""
    import numpy as np

    return int(np.bincount(part.ravel() >> 3, minlength=32).argmax()) * 8 + 4


def lines_of(ink: NDArray[np.bool_]) -> list[Stretch]:
    """The rows that each line of text covers, top to bottom. Specks are no lines."""
    profile = ink.sum(axis=1)
    if profile.size == 0 or profile.max() == 0:
        return []
    bands = stretches(profile > max(0, _FAINT * float(profile.max())))
    tall = sorted(end - start for start, end in bands)[len(bands) * 3 // 4]
    lines: list[Stretch] = []
    for start, end in bands:
        if lines and start - lines[-1][1] < 0.15 * tall:
            lines[-1] = (lines[-1][0], end)
        else:
            lines.append((start, end))
    return [(start, end) for start, end in lines if end - start >= 0.35 * tall]


def inked(ink: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Which columns (axis 0) or rows (axis 1) have ink."""
    found: NDArray[np.bool_] = ink.sum(axis=axis) > 0
    return found


def extent_of(ink: NDArray[np.bool_]) -> Stretch | None:
    """From the first to the last column with ink."""
    import numpy as np

    columns = np.flatnonzero(ink.any(axis=0))
    return (int(columns[0]), int(columns[-1]) + 1) if columns.size else None


def parted(covered: NDArray[np.bool_], parts: int, least: float) -> list[Stretch] | None:
    """The stretches between the widest `parts` - 1 gaps; None where there are not so many of `least` or more."""
    runs = stretches(covered)
    if len(runs) < parts:
        return None
    gaps = sorted(range(1, len(runs)), key=lambda at: runs[at - 1][1] - runs[at][0])[: parts - 1]
    if any(runs[at][0] - runs[at - 1][1] < least for at in gaps):
        return None
    edges = [0, *sorted(gaps), len(runs)]
    return [(runs[edges[at]][0], runs[edges[at + 1] - 1][1]) for at in range(parts)]


def stretches(marked: NDArray[np.bool_]) -> list[Stretch]:
    """(start, end) of every run of True."""
    import numpy as np

    steps = np.flatnonzero(np.diff(np.concatenate(([False], marked, [False])).astype(np.int8)))
    return [(int(start), int(end)) for start, end in zip(steps[::2], steps[1::2], strict=True)]
