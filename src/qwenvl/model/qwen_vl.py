"""The documented model classes: one vision path, one text path, and the documented forward() around them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl.config import Qwen2_5_VLConfig, Qwen2VLConfig
from qwenvl.model.attention import backend_named
from qwenvl.model.outputs import CausalLMOutput
from qwenvl.model.rope import mrope_positions
from qwenvl.model.text import TextModel, init_weights
from qwenvl.model.vision import VisionTower
from qwenvl.types import PackedBatch, SeqInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

IGNORED_LABEL = -100


class QwenVLModel(nn.Module):
    """The two towers under their checkpoint names: `visual` and `language_model`."""

    def __init__(self, config: Qwen2_5_VLConfig | Qwen2VLConfig, attn_implementation: str) -> None:
        super().__init__()
        backend = backend_named(attn_implementation)
        self.visual = VisionTower(config.vision_config, backend)
        self.language_model = TextModel(config.text_config, backend)


class _ForConditionalGeneration(nn.Module):
    """Both families; they differ by the data in their config."""

    config: Any
    generation_config: Any = None

    def __init__(self, config: Any, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.attn_implementation = attn_implementation
        self.model = QwenVLModel(config, attn_implementation)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        init_weights(self, config.text_config.initializer_range)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Share the embedding with the head where the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.language_model.embed_tokens.weight

    @property
    def dtype(self) -> torch.dtype:
        return self.model.language_model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.language_model.norm.weight.device

    def encode_vision(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Vision tokens of pictures or videos: pixel_values [P, 1176] float, grid_thw int64 [n, 3] in patches ->
        [P / 4, D] in the order of the pictures."""
        return self.model.visual(pixel_values, grid_thw)

    def run(self, batch: PackedBatch) -> Tensor:
        """Logits, float32 [N, vocabulary], of the rows of `batch.logits_index` (None: all T)."""
        return self.head(self.hidden(batch, batch.logits_index))

    def hidden(self, batch: PackedBatch, rows: Tensor | None = None) -> Tensor:
        """Hidden states [N, D] after the last norm; run() without the head."""
        text = self.model.language_model
        embeds = text.embed_tokens(batch.token_ids) if batch.inputs_embeds is None else batch.inputs_embeds
        if batch.vision_embeds is not None:
            assert batch.vision_index is not None
            embeds = embeds.index_copy(0, batch.vision_index, batch.vision_embeds.to(embeds.dtype))
        return text(embeds, batch.positions, batch.seq, batch.kv, rows)

    def head(self, hidden: Tensor) -> Tensor:
        """[N, D] -> float32 logits [N, vocabulary]."""
        return self.lm_head(hidden).float()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | Sequence[float] | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool = True,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """The documented forward of one padded batch: unpad, positions, encode_vision, run, pad again.

        input_ids int64 [B, S]; attention_mask 1 = token, 0 = padding [B, S]; position_ids int64 [3, B, S];
        labels int64 [B, S] with -100 ignored (the loss predicts token i + 1 at i); pixel_values [P, 1176] with
        image_grid_thw [n, 3] in patches (videos likewise); logits_to_keep: the last k columns, or the columns of a
        1-D tensor, 0 = all. Logits at padding are zero.
        Raises ValueError when placeholders, grids and pixels do not agree.
        """
        if input_ids is None:
            raise ValueError("input_ids is None: give the token ids (inputs_embeds alone is not supported yet)")
        shape = input_ids.shape
        mask = (
            torch.ones(shape, dtype=torch.bool, device=input_ids.device)
            if attention_mask is None
            else attention_mask.bool()
        )
        packed = input_ids[mask]
        positions, deltas = self._positions(input_ids, mask, image_grid_thw, video_grid_thw, second_per_grid_ts)
        if position_ids is not None:
            positions = position_ids[:, mask]
        embeds, index = self._vision(packed, pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw)
        batch = PackedBatch(
            packed,
            positions,
            SeqInfo.from_lengths(mask.sum(-1).tolist()),
            vision_embeds=embeds,
            vision_index=index,
            inputs_embeds=None if inputs_embeds is None else inputs_embeds[mask],
        )
        kept = torch.arange(shape[1], device=mask.device)
        kept = kept[-logits_to_keep:] if isinstance(logits_to_keep, int) else kept[logits_to_keep]
        hidden = self.hidden(batch)
        places = torch.zeros(shape, dtype=torch.long, device=mask.device)
        places[mask] = torch.arange(len(packed), device=mask.device)
        wanted = mask[:, kept]
        rows = self.head(hidden[places[:, kept][wanted]])
        logits = rows.new_zeros(*wanted.shape, rows.shape[-1]).masked_scatter(wanted.unsqueeze(-1), rows)
        loss = None if labels is None else self._loss(hidden, labels, mask)
        output = CausalLMOutput(logits, loss, deltas)
        return output if return_dict else output.to_tuple()

    def _positions(
        self, input_ids: Tensor, mask: Tensor, images: Tensor | None, videos: Tensor | None, seconds: Any
    ) -> tuple[Tensor, Tensor]:
        """Positions of all rows, packed [3, T], and deltas [B, 1]; the grids are shared out by placeholder runs."""
        rows = [row[keep] for row, keep in zip(input_ids, mask, strict=True)]
        shares = [
            self._share(rows, self.config.image_token_id, images),
            self._share(rows, self.config.video_token_id, videos),
        ]
        columns, deltas, first_video = [], [], 0
        for i, row in enumerate(rows):
            mine = shares[1][i]
            times = None if seconds is None or mine is None else list(seconds)[first_video : first_video + len(mine)]
            first_video += 0 if mine is None else len(mine)
            found, delta = mrope_positions(row, self.config, shares[0][i], mine, times)
            columns.append(found)
            deltas.append(delta)
        return torch.cat(columns, 1), torch.tensor(deltas, device=input_ids.device).unsqueeze(1)

    def _share(self, rows: list[Tensor], token: int, grids: Tensor | None) -> list[Tensor | None]:
        """Which of the grids belong to which row: as many as its placeholder tokens account for."""
        merge = self.config.vision_config.spatial_merge_size**2
        sizes = [] if grids is None else (grids.prod(-1) // merge).tolist()
        shares, first = [], 0
        for row in rows:
            left, last = int((row == token).sum()), first
            while left > 0 and last < len(sizes):
                left, last = left - sizes[last], last + 1
            if left != 0:
                raise ValueError(
                    f"placeholder tokens {token} and grids do not match: {sum(int((r == token).sum()) for r in rows)} "
                    f"tokens in the batch, grids of {sizes} tokens"
                )
            shares.append(None if grids is None else grids[first:last])
            first = last
        if first != len(sizes):
            raise ValueError(f"{len(sizes)} grids were given, the prompts have placeholders for {first}")
        return shares

    def _vision(
        self,
        packed: Tensor,
        images: Tensor | None,
        image_grid: Tensor | None,
        videos: Tensor | None,
        video_grid: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Embeddings [V, D] of all items and the packed places [V] that they take."""
        parts, places = [], []
        for name, pixels, grid, token in (
            ("image", images, image_grid, self.config.image_token_id),
            ("video", videos, video_grid, self.config.video_token_id),
        ):
            if (pixels is None) != (grid is None):
                raise ValueError(f"{name} pixel values and {name}_grid_thw belong together: one of them is missing")
            if pixels is None or grid is None:
                continue
            parts.append(self.encode_vision(pixels, grid))
            places.append((packed == token).nonzero().squeeze(1))
            if len(places[-1]) != len(parts[-1]):
                raise ValueError(
                    f"{len(places[-1])} {name} tokens in the prompt, {len(parts[-1])} {name} embeddings from the tower"
                )
        return (torch.cat(parts), torch.cat(places)) if parts else (None, None)

    def _loss(self, hidden: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Mean cross entropy of the next token; rows whose label is -100 cost nothing."""
        following = torch.full_like(labels, IGNORED_LABEL)
        following[:, :-1] = labels[:, 1:]
        following = following[mask]
        rows = (following != IGNORED_LABEL).nonzero().squeeze(1)
        return F.cross_entropy(self.head(hidden[rows]), following[rows])

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> Self:
        """The model of a folder or hub id with its weights; options as checkpoint.load.load_model takes them."""
        from qwenvl.checkpoint.load import load_pretrained

        return load_pretrained(cls, model, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write config and safetensors into `folder` (checkpoint.save.save_model)."""
        from qwenvl.checkpoint.save import save_model

        save_model(self, folder, **options)

    def generate(self, input_ids: Tensor | None = None, **options: Any) -> Tensor:
        """The documented generate(): prompt + new tokens, int64 [B, S + new] (engine.generate)."""
        from qwenvl.engine.generate import generate

        return generate(self, input_ids, **options)


class Qwen2_5_VLForConditionalGeneration(_ForConditionalGeneration):
    """Qwen2.5-VL (3B, 7B, 32B, 72B and any size its config describes)."""

    config: Qwen2_5_VLConfig


class Qwen2VLForConditionalGeneration(_ForConditionalGeneration):
    """Qwen2-VL (2B, 7B, 72B, QvQ)."""

    config: Qwen2VLConfig
