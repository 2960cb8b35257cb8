"""Whose pictures are whose: placeholder tokens of prompts <-> grids, positions, and vision embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from qwenvl.config import Qwen2_5_VLConfig, Qwen2VLConfig
from qwenvl.model.rope import mrope_positions

if TYPE_CHECKING:
    from qwenvl.model.forward import Given
    from qwenvl.model.vision import VisionTower

TopConfig = Qwen2_5_VLConfig | Qwen2VLConfig


def share_items(
    prompts: Sequence[Tensor], token_id: int, grids: Tensor | None, merge: int, grids_name: str
) -> list[range]:
    """Which of the grids belong to which prompt: in order, as many as its placeholder tokens account for.

    prompts: int64 [L] each, without padding. grids: int64 [n, 3] in patches; merge: patches along a side of a token.
    Raises ValueError with both numbers where they do not agree.
    """
    shapes = [] if grids is None else torch.as_tensor(grids).tolist()
    shares, item = [], 0
    for i, prompt in enumerate(prompts):
        wanted, have, first = int((prompt == token_id).sum()), 0, item
        while have < wanted and item < len(shapes):
            t, h, w = shapes[item]
            have += t * h * w // merge**2
            item += 1
        if have != wanted:
            raise ValueError(
                f"prompt {i} has {wanted} placeholder tokens, but rows {first} to {item} (exclusive) of "
                f"{grids_name} account for {have}"
            )
        shares.append(range(first, item))
    if item != len(shapes):
        raise ValueError(f"{grids_name} has {len(shapes)} rows, but the prompts have placeholders for {item}")
    return shares


@dataclass(frozen=True)
class Items:
    """The pictures or the videos of a batch.

    token: the id that holds a place for them. pixels: float [P, 1176] as `pixels_name`; grids: int64 [n, 3] in
    patches as `grids_name`; both are the documented arguments.
    """

    kind: Literal["image", "video"]
    token: int
    pixels: Tensor | None
    grids: Tensor | None

    @property
    def pixels_name(self) -> str:
        return "pixel_values" if self.kind == "image" else "pixel_values_videos"

    @property
    def grids_name(self) -> str:
        return f"{self.kind}_grid_thw"

    def embed(self, tower: VisionTower, ids: Tensor) -> tuple[Tensor, Tensor] | None:
        """Vision tokens [V, D] and the places [V] they take among packed ids [T]; None without pixels."""
        if self.pixels is None:
            return None
        assert self.grids is not None, "check() comes first"
        embeds = tower(self.pixels, self.grids)
        places = (ids == self.token).nonzero().squeeze(1)
        if len(places) != len(embeds):
            raise ValueError(
                f"the prompts have {len(places)} {self.kind} tokens, {self.grids_name} accounts for {len(embeds)}"
            )
        return embeds, places


@dataclass(frozen=True)
class Media:
    """The documented arguments of a forward that are about pictures and videos."""

    pixel_values: Tensor | None = None
    pixel_values_videos: Tensor | None = None
    image_grid_thw: Tensor | None = None
    video_grid_thw: Tensor | None = None
    second_per_grid_ts: Tensor | Sequence[float] | None = None
    mm_token_type_ids: Tensor | None = None

    def items(self, config: TopConfig) -> tuple[Items, Items]:
        return (
            Items("image", config.image_token_id, self.pixel_values, self.image_grid_thw),
            Items("video", config.video_token_id, self.pixel_values_videos, self.video_grid_thw),
        )

    def ids(self, given: Given, table: Tensor, config: TopConfig) -> Tensor:
        """Packed ids [T]. Where only embeddings came, those of the placeholders whose rows of `table` [n, D] stand
        among them, and -1 elsewhere."""
        if given.ids is not None:
            return given.ids
        assert given.embeds is not None
        ids = torch.full(given.embeds.shape[:1], -1, dtype=torch.long, device=given.embeds.device)
        for one in self.items(config):
            if one.grids is not None:
                ids[(given.embeds == table[one.token].to(given.embeds.dtype)).all(-1)] = one.token
        return ids

    def check(self, given: Given, ids: Tensor, config: TopConfig) -> None:
        """Errors of what belongs together and did not come together."""
        for one in self.items(config):
            if one.pixels is not None and one.grids is None:
                raise ValueError(f"{one.pixels_name} is given without {one.grids_name}: the processor returns both")
            left_over = given.past is not None and not bool((ids == one.token).any())  # from the prompt, now cached
            if one.pixels is None and one.grids is not None and given.embeds is None and not left_over:
                raise ValueError(f"{one.grids_name} is given without {one.pixels_name}: the processor returns both")
        self.check_types(given, ids, config)

    def check_types(self, given: Given, ids: Tensor, config: TopConfig) -> None:
        """mm_token_type_ids [B, S] (or of all columns, with a cache) say what the packed ids say."""
        if self.mm_token_type_ids is None:
            return
        mask = given.layout.mask
        types = self.mm_token_type_ids[:, -mask.shape[1] :].to(ids.device)
        if types.shape != mask.shape:
            raise ValueError(f"mm_token_type_ids has shape {tuple(types.shape)}: expected {tuple(mask.shape)}")
        image, video = (ids == one.token for one in self.items(config))
        if not torch.equal(types[mask].long(), image.long() + 2 * video.long()):
            raise ValueError(
                "mm_token_type_ids does not agree with input_ids: expected 1 at image tokens, 2 at video tokens and 0 "
                "elsewhere (it may be left out)"
            )

    def embed(self, tower: VisionTower, ids: Tensor, config: TopConfig) -> tuple[Tensor, Tensor] | None:
        """Vision tokens [V, D] of all items, and the places [V] they take among packed ids."""
        parts = [found for one in self.items(config) if (found := one.embed(tower, ids)) is not None]
        if not parts:
            return None
        return torch.cat([embeds for embeds, _ in parts]), torch.cat([places for _, places in parts])

    def in_prompts(self, given: Given, ids: Tensor, config: TopConfig) -> bool:
        """Whether the new tokens have pictures or videos among them, or should have."""
        items = self.items(config)
        new = given.past is None and any(one.grids is not None for one in items)
        return new or any(bool((ids == one.token).any()) for one in items)


def vision_positions(
    config: TopConfig,
    prompts: Sequence[Tensor],
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    second_per_grid_ts: Tensor | Sequence[float] | None,
) -> list[Tensor]:
    """M-RoPE positions of each prompt, int64 [3, L], counted from 0."""
    merge = config.vision_config.spatial_merge_size
    images = share_items(prompts, config.image_token_id, image_grid_thw, merge, "image_grid_thw")
    videos = share_items(prompts, config.video_token_id, video_grid_thw, merge, "video_grid_thw")
    count = 0 if video_grid_thw is None else len(video_grid_thw)
    seconds = None if second_per_grid_ts is None else [float(s) for s in second_per_grid_ts]
    if seconds is not None and len(seconds) != count:
        raise ValueError(f"second_per_grid_ts has {len(seconds)} values for {count} videos: give one per video")
    return [
        mrope_positions(
            prompt,
            config,
            None if image_grid_thw is None else image_grid_thw[image.start : image.stop],
            None if video_grid_thw is None else video_grid_thw[video.start : video.stop],
            None if seconds is None else seconds[video.start : video.stop],
        )[0]
        for prompt, image, video in zip(prompts, images, videos, strict=True)
    ]
