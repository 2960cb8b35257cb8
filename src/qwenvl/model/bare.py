"""The documented bare models: the text model alone, and both towers without a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from qwenvl.config import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2VLConfig, Qwen2VLTextConfig
from qwenvl.model.attention import backend_named
from qwenvl.model.base import PreTrained
from qwenvl.model.forward import Asked, Computed, Given, compute, unpad
from qwenvl.model.inputs import Media, vision_positions
from qwenvl.model.outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, Qwen2_5_VLModelOutputWithPast
from qwenvl.model.padding import padded
from qwenvl.model.past import PastKeyValues
from qwenvl.model.text import TextModel, init_weights
from qwenvl.model.vision import VisionTower


class _TextModel(PreTrained, TextModel):
    """The decoder of both families."""

    weights_prefix: ClassVar[str] = "model.language_model."

    def __init__(self, config: Any, attn_implementation: str = "sdpa", *, fill: bool = True) -> None:
        """fill: draw random weights; a model that this one is a part of does it for all."""
        config = getattr(config, "text_config", config)  # the documents also build it from a whole configuration
        super().__init__(config, backend_named(attn_implementation))
        self._take_config(config)
        self.attn_implementation = attn_implementation
        if fill:
            init_weights(self, config.initializer_range)

    @property
    def text(self) -> TextModel:
        return self

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """The documented forward of one padded batch; arguments as in Qwen2_5_VLForConditionalGeneration.forward.
        Exactly one of input_ids and inputs_embeds."""
        if input_ids is not None and inputs_embeds is not None:
            raise ValueError("input_ids and inputs_embeds are both given: the text model takes one of them")
        asked = Asked(use_cache, output_attentions, output_hidden_states, return_dict)
        given = unpad(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, cache_position)
        positions = given.text_positions() if given.positions is None else given.positions
        done = compute(self, self.config, given, positions, asked)
        output = BaseModelOutputWithPast(done.layout.pad(done.hidden), done.past, done.hidden_states, done.attentions)
        return output if asked.on("return_dict", self.config, True) else output.to_tuple()


class Qwen2_5_VLTextModel(_TextModel):
    """The decoder of Qwen2.5-VL without its head. Built from a config it has random weights."""

    config_class: ClassVar[type] = Qwen2_5_VLTextConfig


class Qwen2VLTextModel(_TextModel):
    """The decoder of Qwen2-VL without its head."""

    config_class: ClassVar[type] = Qwen2VLTextConfig


class BareModel(PreTrained):
    """Both towers of either family under their checkpoint names, `visual` and `language_model`."""

    weights_prefix: ClassVar[str] = "model."
    text_class: ClassVar[type[_TextModel]]

    def __init__(self, config: Any, attn_implementation: str = "sdpa", *, fill: bool = True) -> None:
        super().__init__()
        self._take_config(config)
        self.attn_implementation = attn_implementation
        self.visual = VisionTower(config.vision_config, backend_named(attn_implementation))
        self.language_model = self.text_class(config.text_config, attn_implementation, fill=False)
        if fill:
            init_weights(self, config.text_config.initializer_range)

    @property
    def text(self) -> TextModel:
        return self.language_model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        rope_deltas: Tensor | None = None,
        cache_position: Tensor | None = None,
        second_per_grid_ts: Tensor | Sequence[float] | None = None,
        mm_token_type_ids: Tensor | None = None,
    ) -> Qwen2_5_VLModelOutputWithPast | tuple[Any, ...]:
        """The documented forward; arguments as in Qwen2_5_VLForConditionalGeneration.forward."""
        asked = Asked(use_cache, output_attentions, output_hidden_states, return_dict)
        given = unpad(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, cache_position)
        media = Media(
            pixel_values, pixel_values_videos, image_grid_thw, video_grid_thw, second_per_grid_ts, mm_token_type_ids
        )
        done = self.compute(given, media, asked, rope_deltas)
        output = Qwen2_5_VLModelOutputWithPast(
            done.layout.pad(done.hidden), done.past, done.hidden_states, done.attentions, done.rope_deltas
        )
        return output if asked.on("return_dict", self.config, True) else output.to_tuple()

    def compute(self, given: Given, media: Media, asked: Asked, rope_deltas: Tensor | None = None) -> Computed:
        """forward() on unpadded inputs, without the padding of its outputs: encode, find positions, run."""
        ids = media.ids(given, self.language_model.embed_tokens.weight, self.config)
        media.check(given, ids, self.config)
        positions = given.positions
        if positions is None and media.in_prompts(given, ids, self.config):
            starts = given.start(rope_deltas).tolist()
            found = vision_positions(
                self.config, given.rows(ids), media.image_grid_thw, media.video_grid_thw, media.second_per_grid_ts
            )
            positions = torch.cat([start + row for start, row in zip(starts, found, strict=True)], 1)
        elif positions is None:
            positions = given.text_positions(rope_deltas)
        vision = media.embed(self.visual, ids, self.config)
        return compute(self.language_model, self.config, given, positions, asked, rope_deltas, vision)

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> BaseModelOutputWithPooling:
        """Vision tokens of pictures: pixel_values [P, 1176] and image_grid_thw [n, 3] in patches -> an output whose
        pooler_output has one [V, D] for each picture."""
        embeds = self.visual(pixel_values, image_grid_thw)
        sizes = (image_grid_thw.prod(-1) // self.config.vision_config.spatial_merge_size**2).tolist()
        return BaseModelOutputWithPooling(embeds.split(sizes))

    def get_video_features(self, pixel_values_videos: Tensor, video_grid_thw: Tensor) -> BaseModelOutputWithPooling:
        """get_image_features() of videos."""
        return self.get_image_features(pixel_values_videos, video_grid_thw)

    def get_rope_index(
        self,
        input_ids: Tensor,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | Sequence[float] | None = None,
        attention_mask: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """M-RoPE positions int64 [3, B, S] (0 at padding) and rope_deltas int64 [B, 1] of prompts [B, S].

        Positions of each kind of item as in model.rope.mrope_positions. mm_token_type_ids is checked when given.
        """
        layout = padded((input_ids.shape[0], input_ids.shape[1]), input_ids.device, attention_mask, None)
        ids = layout.pack(input_ids)
        given = Given(layout, None, ids, None, None)
        media = Media(None, None, image_grid_thw, video_grid_thw, second_per_grid_ts, mm_token_type_ids)
        media.check_types(given, ids, self.config)
        found = vision_positions(self.config, given.rows(ids), image_grid_thw, video_grid_thw, second_per_grid_ts)
        deltas = [int(row.max()) + 1 - row.shape[1] if row.numel() else 0 for row in found]
        positions = layout.pad(torch.cat(found, 1).T.to(input_ids.device)).permute(2, 0, 1)
        return positions, torch.tensor(deltas, device=input_ids.device).unsqueeze(1)


class Qwen2_5_VLModel(BareModel):
    """Both towers of Qwen2.5-VL without the head. Built from a config it has random weights."""

    config_class: ClassVar[type] = Qwen2_5_VLConfig
    text_class: ClassVar[type[_TextModel]] = Qwen2_5_VLTextModel


class Qwen2VLModel(BareModel):
    """Both towers of Qwen2-VL without the head."""

    config_class: ClassVar[type] = Qwen2VLConfig
    text_class: ClassVar[type[_TextModel]] = Qwen2VLTextModel
