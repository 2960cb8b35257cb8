"""The documented models with their head: one vision path, one text path, and the documented forward() around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl.config import Qwen2_5_VLConfig, Qwen2VLConfig
from qwenvl.model.bare import BareModel, Qwen2_5_VLModel, Qwen2VLModel
from qwenvl.model.base import PreTrained
from qwenvl.model.forward import Asked, unpad
from qwenvl.model.inputs import Media
from qwenvl.model.layers import Linear
from qwenvl.model.outputs import BaseModelOutputWithPooling, Qwen2_5_VLCausalLMOutputWithPast
from qwenvl.model.padding import Padded
from qwenvl.model.past import PastKeyValues
from qwenvl.model.text import TextModel, init_weights
from qwenvl.model.vision import VisionTower
from qwenvl.types import Affine, PackedBatch

IGNORED_LABEL = -100


class _ForConditionalGeneration(PreTrained):
    """Both families; they differ by the data in their config."""

    model_class: ClassVar[type[BareModel]]

    def __init__(self, config: Any, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        from qwenvl.checkpoint.generation_config import GenerationConfig

        self._take_config(config)
        self.generation_config = GenerationConfig()
        self.attn_implementation = attn_implementation
        self.model = self.model_class(config, attn_implementation, fill=False)
        self.lm_head: nn.Linear = Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        init_weights(self, config.text_config.initializer_range)
        self.tie_weights()

    @property
    def text(self) -> TextModel:
        return self.model.language_model

    @property
    def language_model(self) -> TextModel:
        return self.model.language_model

    @property
    def visual(self) -> VisionTower:
        return self.model.visual

    def tie_weights(self) -> None:
        """Share the embedding with the head where the config says so and the head is not packed."""
        if self.config.tie_word_embeddings and isinstance(self.lm_head, nn.Linear):
            self.lm_head.weight = self.text.embed_tokens.weight

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def encode_vision(self, pixel_values: Tensor, grid_thw: Tensor, affine: Affine | None = None) -> Tensor:
        """Vision tokens of pictures or videos: pixel_values [P, 1176] float, grid_thw int64 [n, 3] in patches ->
        [P / 4, D] in the order of the pictures. uint8 pixels come with their affine (see PatchEmbed)."""
        return self.model.visual(pixel_values, grid_thw, affine)

    def run(self, batch: PackedBatch) -> Tensor:
        """Logits, float32 [N, vocabulary], of the rows of `batch.logits_index` (None: all T)."""
        return self.head(self.hidden(batch, batch.logits_index))

    def hidden(self, batch: PackedBatch, rows: Tensor | None = None) -> Tensor:
        """Hidden states [N, D] after the last norm; run() without the head."""
        return self.text.hidden(batch, rows)

    def head(self, hidden: Tensor) -> Tensor:
        """[N, D] -> float32 logits [N, vocabulary]."""
        wide = (torch.float32,) if type(self.lm_head) is Linear or hasattr(self.lm_head, "packed") else ()
        return self.lm_head(hidden, *wide).float()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
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
        logits_to_keep: int | Tensor = 0,
        mm_token_type_ids: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Qwen2_5_VLCausalLMOutputWithPast | tuple[Any, ...]:
        """The documented forward of one padded batch: unpad, positions, encode_vision, run, pad again.

        input_ids: int64 [B, S]. attention_mask: 1 = token, 0 = padding, [B, S]; with a cache [B, cached + S].
        position_ids: int64 [3, B, S] (time, height, width), or [B, S] for all three; computed when left out.
        past_key_values: what an earlier forward returned; it is extended in place, and input_ids holds only the
            tokens that are not in it. cache_position [S] is not needed, and checked.
        inputs_embeds: [B, S, D] in place of the embeddings of input_ids; alone, or beside them.
        labels: int64 [B, S], -100 is ignored; the loss is the mean cross entropy of token i + 1 at i, or the sum over
            num_items_in_batch.
        use_cache: return past_key_values (config.use_cache; in training only when asked for).
        pixel_values: float [P, 1176] with image_grid_thw int64 [n, 3] in patches; videos likewise, with
            second_per_grid_ts, the seconds of a grid step of each video (1.0).
        rope_deltas: [B], the position of the next token - tokens so far; in place of the one in the cache, or beside
            position_ids. logits_to_keep: the last k columns, or the columns of a 1-D tensor, 0 = all.
        mm_token_type_ids: [B, S], checked only.
        Raises ValueError when the arguments do not agree.
        """
        asked = Asked(use_cache, output_attentions, output_hidden_states, return_dict)
        given = unpad(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, cache_position)
        media = Media(
            pixel_values, pixel_values_videos, image_grid_thw, video_grid_thw, second_per_grid_ts, mm_token_type_ids
        )
        columns = _kept_columns(logits_to_keep, given.layout.mask)
        if labels is not None and labels.shape != given.layout.mask.shape:
            raise ValueError(f"labels has shape {tuple(labels.shape)}: expected {tuple(given.layout.mask.shape)}")
        done = self.model.compute(given, media, asked, rope_deltas)
        output = Qwen2_5_VLCausalLMOutputWithPast(
            None if labels is None else self._loss(done.hidden, labels, done.layout.mask, num_items_in_batch),
            self._logits(done.hidden, done.layout, columns),
            done.past,
            done.hidden_states,
            done.attentions,
            done.rope_deltas,
        )
        return output if asked.on("return_dict", self.config, True) else output.to_tuple()

    def _logits(self, hidden: Tensor, layout: Padded, columns: Tensor) -> Tensor:
        """Hidden states [T, D] -> logits [B, n, vocabulary] of the columns wanted, zero at padding."""
        places = layout.pad(torch.arange(len(hidden), device=hidden.device))[:, columns]
        wanted = layout.mask[:, columns]
        rows = self.head(hidden[places[wanted]])
        return rows.new_zeros(*wanted.shape, rows.shape[-1]).masked_scatter(wanted.unsqueeze(-1), rows)

    def _loss(self, hidden: Tensor, labels: Tensor, mask: Tensor, items: int | Tensor | None) -> Tensor:
        """Cross entropy of the next token; tokens whose label is -100 cost nothing."""
        following = torch.full_like(labels, IGNORED_LABEL)
        following[:, :-1] = labels[:, 1:]
        following = following[mask]
        rows = (following != IGNORED_LABEL).nonzero().squeeze(1)
        logits = self.head(hidden[rows])
        if items is None:
            return F.cross_entropy(logits, following[rows])
        return F.cross_entropy(logits, following[rows], reduction="sum") / torch.as_tensor(items, device=logits.device)

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> BaseModelOutputWithPooling:
        """See BareModel.get_image_features."""
        return self.model.get_image_features(pixel_values, image_grid_thw)

    def get_video_features(self, pixel_values_videos: Tensor, video_grid_thw: Tensor) -> BaseModelOutputWithPooling:
        """See BareModel.get_video_features."""
        return self.model.get_video_features(pixel_values_videos, video_grid_thw)

    def get_rope_index(self, input_ids: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """See BareModel.get_rope_index."""
        return self.model.get_rope_index(input_ids, *arguments, **named)

    def generate(self, input_ids: Tensor | None = None, **options: Any) -> Any:
        """The documented generate(): prompt + new tokens, int64 [B, S + new], or a GenerateDecoderOnlyOutput with
        return_dict_in_generate=True (engine.generate)."""
        from qwenvl.engine.generate import generate

        return generate(self, input_ids, **options)

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: Sequence[Tensor],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """The score of each generated token (engine.compute_transition_scores)."""
        from qwenvl.engine.outputs import compute_transition_scores

        return compute_transition_scores(sequences, scores, beam_indices, normalize_logits)


class Qwen2_5_VLForConditionalGeneration(_ForConditionalGeneration):
    """Qwen2.5-VL (3B, 7B, 32B, 72B and any size its config describes). Built from a config it has random weights."""

    config: Qwen2_5_VLConfig
    config_class: ClassVar[type] = Qwen2_5_VLConfig
    model_class: ClassVar[type[BareModel]] = Qwen2_5_VLModel


class Qwen2VLForConditionalGeneration(_ForConditionalGeneration):
    """Qwen2-VL (2B, 7B, 72B, QvQ). Built from a config it has random weights."""

    config: Qwen2VLConfig
    config_class: ClassVar[type] = Qwen2VLConfig
    model_class: ClassVar[type[BareModel]] = Qwen2VLModel


def _kept_columns(logits_to_keep: int | Tensor, mask: Tensor) -> Tensor:
    """The columns whose logits are wanted, int64 [n]."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    if isinstance(logits_to_keep, int):
        if logits_to_keep < 0:
            raise ValueError(f"logits_to_keep={logits_to_keep} is not valid: expected 0 (all) or how many columns")
        return columns[-logits_to_keep:]
    if logits_to_keep.ndim != 1:
        raise ValueError(
            f"logits_to_keep has shape {tuple(logits_to_keep.shape)}: expected a number or the columns, 1-D"
        )
    return columns[logits_to_keep.to(mask.device)]
