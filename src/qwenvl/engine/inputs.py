"""A padded batch as the processor gives it, split into its prompts: each with its own pictures and no
padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwenvl.model.inputs import share_items

if TYPE_CHECKING:
    from qwenvl.config import Qwen2_5_VLConfig, Qwen2VLConfig


def split_batch(
    config: Qwen2_5_VLConfig | Qwen2VLConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    pixel_values: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    pixel_values_videos: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Tensor | list[float] | None = None,
) -> list[dict[str, Any]]:
    """One dict a prompt, with the same names, for Request.from_inputs.

    input_ids [B, S]; attention_mask [B, S], 1 = token, 0 = padding on either side, None = no padding.
    Pictures belong to the prompts in order, as many to each as its placeholder tokens account for. Raises
    ValueError with both numbers where they do not agree.
    """
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}: expected [batch, length]")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}: "
            "expected the same, 1 for a token and 0 for padding"
        )
    rows: list[dict[str, Any]] = []
    for i, ids in enumerate(input_ids):
        ids = ids if attention_mask is None else ids[attention_mask[i].bool()]
        if not len(ids):
            raise ValueError(f"prompt {i} is empty: expected at least one token")
        rows.append({"input_ids": ids})
    merge = config.vision_config.spatial_merge_size
    _share(rows, config.image_token_id, merge, "pixel_values", pixel_values, "image_grid_thw", image_grid_thw)
    shares = _share(
        rows,
        config.video_token_id,
        merge,
        "pixel_values_videos",
        pixel_values_videos,
        "video_grid_thw",
        video_grid_thw,
    )
    if second_per_grid_ts is not None:
        seconds = [float(s) for s in second_per_grid_ts]
        if len(seconds) != shares[-1].stop:
            raise ValueError(
                f"second_per_grid_ts has {len(seconds)} values for {shares[-1].stop} videos: give one per video"
            )
        for row, share in zip(rows, shares, strict=True):
            row["second_per_grid_ts"] = seconds[share.start : share.stop]
    return rows


def _share(
    rows: list[dict[str, Any]],
    token_id: int,
    merge: int,
    values_name: str,
    values: Tensor | None,
    grids_name: str,
    grids: Tensor | None,
) -> list[range]:
    """Give each prompt its items: sets both names in the rows that have some. Returns the items of each
    row."""
    if (values is None) != (grids is None):
        given, missing = (values_name, grids_name) if grids is None else (grids_name, values_name)
        raise ValueError(f"{given} is given without {missing}: the processor returns both")
    shapes = [] if grids is None else torch.as_tensor(grids).tolist()
    patches = [t * h * w for t, h, w in shapes]
    if values is not None and values.shape[0] != sum(patches):
        raise ValueError(f"{values_name} has {values.shape[0]} patches, but {grids_name} needs {sum(patches)}")
    shares = share_items([row["input_ids"] for row in rows], token_id, grids, merge, grids_name)
    row_start = 0
    for row, share in zip(rows, shares, strict=True):
        if share:
            assert values is not None
            assert grids is not None
            row_stop = row_start + sum(patches[share.start : share.stop])
            row[values_name], row[grids_name] = values[row_start:row_stop], grids[share.start : share.stop]
            row_start = row_stop
    return shares
