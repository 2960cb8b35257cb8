"""Rotary positions: M-RoPE for the text model, two-dimensional RoPE for the vision tower.

Source: Qwen2-VL report (arXiv 2409.12191) for M-RoPE, Qwen2.5-VL report (arXiv 2502.13923) for absolute time.
Positions are pure functions of the request; nothing here keeps state.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from qwenvl.config import Qwen2_5_VLConfig, Qwen2VLConfig


def mrope_positions(
    input_ids: Tensor,
    config: Qwen2_5_VLConfig | Qwen2VLConfig,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Tensor | list[float] | None = None,
) -> tuple[Tensor, int]:
    """Positions of one prompt, without padding.

    input_ids: int64 [L]. *_grid_thw: int64 [n, 3], patches (time, height, width) of each item in order of
    appearance. second_per_grid_ts: seconds per temporal grid step of each video (default 1.0 each).
    Returns (int64 [3, L] with rows time, height, width; delta). The token generated at index i >= L has
    position i + delta in all three rows.

    Text counts on all rows together. A picture that starts at s has time s, height s + row and width s + column
    of its merged grid; a video's time is s + floor(frame * seconds * tokens_per_second). What follows starts at
    the maximum over all three rows + 1.
    Example: 2 text tokens, a picture of grid (1, 4, 4), 1 text token ->
        time   0 1 2 2 2 2 4 / height 0 1 2 2 3 3 4 / width 0 1 2 3 2 3 4, delta = 5 - 7 = -2.

    Raises ValueError when placeholders and grids do not match. Warns when the prompt takes more positions than the
    configuration is made for (context_length): they are computed, but the model was not trained on them.
    """
    merge = config.vision_config.spatial_merge_size
    ids = input_ids.tolist()
    images = [] if image_grid_thw is None else image_grid_thw.tolist()
    videos = [] if video_grid_thw is None else video_grid_thw.tolist()
    seconds = [1.0] * len(videos) if second_per_grid_ts is None else [float(s) for s in second_per_grid_ts]
    if len(seconds) != len(videos):
        raise ValueError(f"second_per_grid_ts has {len(seconds)} values for {len(videos)} videos: give one per video")
    rate = config.vision_config.tokens_per_second

    parts: list[Tensor] = []
    start = index = image = video = 0
    while index < len(ids):
        token = ids[index]
        if token == config.image_token_id:
            if image == len(images):
                raise ValueError(f"the prompt has more image tokens than its {len(images)} image grids account for")
            grid, step = images[image], 0.0
            image += 1
        elif token == config.video_token_id:
            if video == len(videos):
                raise ValueError(f"the prompt has more video tokens than its {len(videos)} video grids account for")
            grid, step = videos[video], 1.0 if rate is None else seconds[video] * rate
            video += 1
        else:
            end = index
            while end < len(ids) and ids[end] not in (config.image_token_id, config.video_token_id):
                end += 1
            block = torch.arange(end - index).expand(3, -1)
            parts.append(block + start)
            start, index = start + end - index, end
            continue
        block = _grid_positions(grid, merge, step)
        count = block.shape[1]
        if ids[index : index + count] != [token] * count:
            raise ValueError(
                f"grid {tuple(grid)} needs {count} placeholder tokens at index {index}, the prompt has fewer"
            )
        parts.append(block + start)
        start, index = start + int(block.max()) + 1, index + count
    if image != len(images) or video != len(videos):
        raise ValueError(
            f"{len(images)} image and {len(videos)} video grids were given, "
            f"the prompt has placeholders for {image} and {video}"
        )
    if start > config.text_config.context_length:
        warnings.warn(
            f"the prompt takes {start} positions, the configuration is made for {config.text_config.context_length}: "
            "answers may be poor. Shorten it (lower max_pixels or fps), or raise max_position_embeddings in the "
            "configuration",
            stacklevel=2,
        )
    positions = torch.cat(parts, dim=1) if parts else torch.zeros(3, 0, dtype=torch.long)
    return positions.to(input_ids.device), start - len(ids)


def _grid_positions(grid: list[int], merge: int, step: float) -> Tensor:
    """Positions [3, t*h*w/merge^2] of one item, from 0; `step` = ids per temporal grid step (0: a picture)."""
    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    times = (torch.arange(t) * step).long()  # in float32, as in training: in float64 25 * 1.16 is below 29
    return torch.stack(
        [
            times.view(t, 1, 1).expand(t, h, w).reshape(-1),
            torch.arange(h).view(1, h, 1).expand(t, h, w).reshape(-1),
            torch.arange(w).view(1, 1, w).expand(t, h, w).reshape(-1),
        ]
    )


def inverse_frequencies(size: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Angle per position of the size / 2 frequencies of a head of `size`, float32."""
    return 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / size))


def turn(positions: Tensor, inverse: Tensor, sections: tuple[int, ...], scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [T, 1, head_dim / 2], times `scaling`.

    positions: int64 [3, T]. inverse: [head_dim / 2], or [T, head_dim / 2] of each token: shared out, the first
    sections[0] turn with time, the next sections[1] with height, the rest with width.
    """
    device = positions.device
    row = torch.repeat_interleave(torch.arange(len(sections), device=device), torch.tensor(sections, device=device))
    angles = positions[row].T.to(torch.float32) * inverse
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    return (cos, sin) if scaling == 1.0 else (cos * scaling, sin * scaling)


def vision_rotation(coordinates: Tensor, head_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [P, 1, head_dim / 2], for patches at `coordinates` int64 [P, 2] (row, column).

    The first half of the frequencies turns with the row, the second with the column.
    """
    inverse = inverse_frequencies(head_dim // 2, theta, coordinates.device)
    angles = (coordinates.to(torch.float32).unsqueeze(-1) * inverse).flatten(1)
    return angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of x [T, H, D] by the given angles; same shape and dtype."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
