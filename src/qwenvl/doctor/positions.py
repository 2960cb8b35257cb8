"""Positions of pictures and videos against a formula that is written out here, once more and plainly.

What is checked: text counts on in all three rows; a picture's time stands still; a video's time is
floor(i * seconds per grid step * tokens_per_second), multiplied as a number with a fraction and rounded down last
(Qwen2-VL: i itself); what follows starts at the maximum over ALL THREE rows + 1. Casting the seconds to a whole number
first makes every time of a video above 2 frames a second the same; going on at max(height, width) + 1 writes the text
into the time of long videos.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from qwenvl.doctor.case import Case
from qwenvl.doctor.finding import Notes, Outcome, Unavailable

if TYPE_CHECKING:
    from torch import Tensor

FPS = (0.25, 0.5, 1, 2, 4, 8)
INTERVALS = (0.5, 1.5)  # seconds between grid steps
Part = int | tuple[tuple[int, int, int], float]  # so many text tokens, or an item: grid in tokens, positions a step
BUG = "positions are computed by code, not by the checkpoint: report it as a bug"


def expected(parts: list[Part]) -> list[list[int]]:
    """Three rows of positions. Example: [1, ((1, 1, 2), 0.0), 1] -> [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]."""
    rows: list[list[int]] = [[], [], []]
    start = 0
    for part in parts:
        if isinstance(part, int):
            for row in rows:
                row += range(start, start + part)
            start += part
            continue
        (t, h, w), step = part
        for i in range(t):
            for y in range(h):
                for x in range(w):
                    for row, place in zip(rows, (math.floor(i * step), y, x), strict=True):
                        row.append(start + place)
        start = max(max(row) for row in rows) + 1
    return rows


def time_ids(case: Case) -> Outcome:
    """The positions that the model, the engine and the bare function give, at several speeds and lengths."""
    config, notes, tried = case.config, Notes(), 0
    rate, merge = config.vision_config.tokens_per_second, config.vision_config.spatial_merge_size
    frames = config.vision_config.temporal_patch_size
    for seconds in [*(frames / fps for fps in FPS), *INTERVALS]:
        for length in (4, 40):
            picture, video = (1, 2, 3), (length, 3, 2)
            wanted = expected([3, (picture, 0.0), 2, (video, 1.0 if rate is None else seconds * rate), 2])
            for name, rows, delta in _ways(case, picture, video, seconds, merge):
                tried += 1
                if rows != wanted:
                    row = next(i for i in range(3) if rows[i] != wanted[i])
                    at = next((i for i, (a, b) in enumerate(zip(rows[row], wanted[row], strict=False)) if a != b), 0)
                    notes.fault(
                        f"{name}, {length} steps of {seconds:g} s: {('time', 'height', 'width')[row]} of token {at} is "
                        f"{rows[row][at]}, by the formula {wanted[row][at]}",
                        BUG,
                    )
                elif delta != max(map(max, wanted)) + 1 - len(wanted[0]):
                    notes.fault(f"{name}, {length} steps of {seconds:g} s: answers start at a wrong position", BUG)
    if len(notes.said) > 3:
        notes.said[3:] = []
    kind = "frame numbers" if rate is None else f"floor(i * seconds * {rate:g})"
    return notes.outcome(f"{tried} prompts at {len(FPS)} speeds and {len(INTERVALS)} intervals follow {kind}")


def _ways(
    case: Case, picture: tuple[int, int, int], video: tuple[int, int, int], seconds: float, merge: int
) -> Iterator[tuple[str, list[list[int]], int]]:
    """(name, rows, delta) by each way that positions are computed. Items are given in tokens."""
    import torch

    from qwenvl.engine import Request
    from qwenvl.model import rope

    config = case.config
    grids = [torch.tensor([[t, h * merge, w * merge]]) for t, h, w in (picture, video)]
    pads = [[pad] * math.prod(item) for pad, item in ((config.image_token_id, picture), (config.video_token_id, video))]
    start, end = config.vision_start_token_id, config.vision_end_token_id
    ids = torch.tensor([1, 1, start, *pads[0], end, start, *pads[1], end, 1])
    found, delta = rope.mrope_positions(ids, config, grids[0], grids[1], [seconds])
    yield "mrope_positions", found.tolist(), delta
    blank = [torch.zeros(int(grid.prod()), 1) for grid in grids]
    names = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
    given = dict(zip(names, (blank[0], grids[0], blank[1], grids[1]), strict=True))
    request = Request.from_inputs({"input_ids": ids, "second_per_grid_ts": [seconds], **given}, config)
    yield "the engine", request.positions.tolist(), request.delta
    try:
        model = case.model
    except Unavailable:
        return
    rows, deltas = model.get_rope_index(*_padded(ids, grids, seconds))
    yield "get_rope_index", rows[:, 1, 2:].tolist(), int(deltas[1])


def _padded(ids: Tensor, grids: list[Tensor], seconds: float) -> tuple[Tensor, Tensor, Tensor, list[float], Tensor]:
    """The arguments of get_rope_index for a batch of a short text and the prompt, padded by two on the left."""
    import torch

    batch = torch.ones(2, len(ids) + 2, dtype=torch.long)
    batch[1, 2:] = ids
    mask = torch.zeros_like(batch)
    mask[0, -3:], mask[1, 2:] = 1, 1
    return batch, grids[0], grids[1], [seconds], mask


def seconds(case: Case) -> Outcome:
    """second_per_grid_ts of drawn clips is what their frames are apart."""
    videos, notes = case.processor.video_processor, Notes()
    frames = np.zeros((8, 56, 56, 3), np.uint8)
    frames[:] = np.arange(8, dtype=np.uint8)[:, None, None, None] * 30
    for fps in FPS:
        inputs = videos.preprocess([frames], fps=fps)
        found, wanted = float(inputs["second_per_grid_ts"][0]), videos.temporal_patch_size / fps
        if abs(found - wanted) > 1e-6:
            notes.fault(f"at {fps:g} frames a second a step is said to last {found:g} s, it lasts {wanted:g} s", BUG)
        steps = int(inputs["video_grid_thw"][0, 0])
        if steps != len(frames) // videos.temporal_patch_size:
            notes.fault(f"{len(frames)} frames become {steps} steps", BUG)
    return notes.outcome(f"clips at {len(FPS)} speeds: seconds of a step are those of their frames")
