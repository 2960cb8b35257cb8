"""Samples -> one packed batch without padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwenvl.model.rope import mrope_positions
from qwenvl.training.data import Sample
from qwenvl.types import PackedBatch, SeqInfo


@dataclass
class TrainBatch:
    """packed: tokens, positions and bounds; its logits_index are the N rows that predict an answer token.

    targets int64 [N]; lengths int64 [N], tokens of the answer that each target belongs to; patches uint8 [P, 1176];
    grids int64 [n, 3] of pictures and videos in packed order; extras: one per sample.
    """

    packed: PackedBatch
    targets: Tensor
    lengths: Tensor
    patches: Tensor
    grids: Tensor
    extras: list[Any]


def collate(samples: list[Sample], config: Any) -> TrainBatch:
    """Pack samples one behind the other. config: the model's (placeholder ids and merge size)."""
    tokens = torch.cat([s.token_ids for s in samples])
    shown = torch.cat([s.token_ids if s.shown is None else s.shown for s in samples])
    answer = torch.cat([s.answer for s in samples])
    positions = torch.cat(
        [
            mrope_positions(
                s.token_ids,
                config,
                s.grids if len(s.grids) else None,
                s.video_grids if len(s.video_grids) else None,
                s.seconds or None,
            )[0]
            for s in samples
        ],
        1,
    )
    predicted = answer.nonzero().squeeze(1)
    _, run, counts = torch.unique_consecutive(answer, return_inverse=True, return_counts=True)
    seen = [s for s in samples if len(s.grids) or len(s.video_grids)]
    width = 3 * config.vision_config.temporal_patch_size * config.vision_config.patch_size**2
    return TrainBatch(
        PackedBatch(
            shown,
            positions,
            SeqInfo.from_lengths([len(s.token_ids) for s in samples]),
            vision_index=((tokens == config.image_token_id) | (tokens == config.video_token_id)).nonzero().squeeze(1),
            logits_index=predicted - 1,
        ),
        tokens[predicted],
        counts[run[predicted]],
        torch.cat([s.patches for s in seen]) if seen else torch.zeros(0, width, dtype=torch.uint8),
        torch.cat([part for s in seen for part in (s.grids, s.video_grids)]) if seen else torch.zeros(0, 3).long(),
        [s.extra for s in samples],
    )
