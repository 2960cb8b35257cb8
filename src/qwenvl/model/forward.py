"""The documented forward() of every class in three steps: unpad, run the packed text model, pad again."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwenvl.model.padding import Padded, packed_positions, padded
from qwenvl.model.past import PastKeyValues
from qwenvl.model.text import TextModel, Trace
from qwenvl.types import PackedBatch


@dataclass(frozen=True)
class Asked:
    """The documented options of a forward; None means what the config says, or no."""

    use_cache: bool | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    return_dict: bool | None = None

    def on(self, name: str, config: Any, default: bool = False) -> bool:
        value = getattr(self, name)
        return bool(getattr(config, name, default) if value is None else value)


@dataclass(frozen=True)
class Given:
    """The documented inputs of a forward, checked and unpadded.

    ids: int64 [T], or None when only embeddings came. embeds: [T, D] in their place. positions: int64 [3, T] as given
    by position_ids, or None. prompts: how many new tokens each row has.
    """

    layout: Padded
    past: PastKeyValues | None
    ids: Tensor | None
    embeds: Tensor | None
    positions: Tensor | None

    def rows(self, ids: Tensor) -> list[Tensor]:
        """Packed ids [T] -> those of each row of the batch."""
        return list(ids.split(self.layout.mask.sum(-1).tolist()))

    def deltas(self, rope_deltas: Tensor | None = None) -> Tensor:
        """Position - count of the tokens of each row, int64 [B]: as asked for, as cached, else 0."""
        if self.past is None:
            return torch.zeros(len(self.layout.mask), dtype=torch.long, device=self.layout.mask.device)
        asked = _deltas(rope_deltas, self)
        return (self.past.rope_deltas if asked is None else asked).squeeze(1)

    def start(self, rope_deltas: Tensor | None = None) -> Tensor:
        """The position of the first new token of each row, int64 [B]."""
        return self.layout.seen.sum(-1) + self.deltas(rope_deltas)

    def text_positions(self, rope_deltas: Tensor | None = None) -> Tensor:
        """int64 [3, T] of new tokens without pictures: every row counts on from its start."""
        deltas = self.deltas(rope_deltas).repeat_interleave(self.layout.mask.sum(-1))
        return (self.layout.counted() + deltas).expand(3, -1)


@dataclass(frozen=True)
class Computed:
    """hidden: [T, D] after the last norm. What else the documented outputs need is padded by the methods."""

    hidden: Tensor
    layout: Padded
    past: PastKeyValues | None
    trace: Trace
    rope_deltas: Tensor

    @property
    def hidden_states(self) -> tuple[Tensor, ...] | None:
        states = self.trace.hidden_states
        return None if states is None else tuple(self.layout.pad(x) for x in states)

    @property
    def attentions(self) -> tuple[Tensor, ...] | None:
        layers = self.trace.attentions
        return None if layers is None else tuple(self.layout.pad_attention(x) for x in layers)


def unpad(
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past_key_values: PastKeyValues | None,
    inputs_embeds: Tensor | None,
    cache_position: Tensor | None,
) -> Given:
    """Check the documented inputs against each other and pack them. Raises ValueError for what does not agree."""
    like = input_ids if input_ids is not None else inputs_embeds
    if like is None:
        raise ValueError("input_ids is None: give token ids [B, S], or inputs_embeds [B, S, D]")
    if input_ids is not None and input_ids.ndim != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}: expected [batch, length]")
    if inputs_embeds is not None and (inputs_embeds.ndim != 3 or inputs_embeds.shape[:2] != like.shape[:2]):
        raise ValueError(
            f"inputs_embeds has shape {tuple(inputs_embeds.shape)}: expected [batch, length, width]"
            + ("" if input_ids is None else f" for input_ids of shape {tuple(input_ids.shape)}")
        )
    if past_key_values is not None and not isinstance(past_key_values, PastKeyValues):
        raise ValueError(
            f"past_key_values is a {type(past_key_values).__name__}: expected what an earlier forward(use_cache=True) "
            "of this package returned"
        )
    rows, columns = like.shape[:2]
    layout = padded((rows, columns), like.device, attention_mask, past_key_values, position_ids)
    cached = layout.seen.shape[1]
    if cache_position is not None and cache_position.tolist() != list(range(cached, cached + columns)):
        raise ValueError(
            f"cache_position={cache_position.tolist()} does not fit a cache of {cached} columns: expected "
            f"{cached} to {cached + columns - 1}, or nothing"
        )
    return Given(
        layout,
        past_key_values,
        None if input_ids is None else layout.pack(input_ids),
        None if inputs_embeds is None else layout.pack(inputs_embeds),
        None if position_ids is None else packed_positions(position_ids, layout),
    )


def compute(
    text: TextModel,
    config: Any,
    given: Given,
    positions: Tensor,
    asked: Asked,
    rope_deltas: Tensor | None = None,
    vision: tuple[Tensor, Tensor] | None = None,
) -> Computed:
    """Run the text model on unpadded inputs.

    config: where options that were not given are looked up. vision: embeddings [V, D] and their places [V] among the
    tokens.
    """
    layout, past = given.layout, _cache(text, config, given, asked)
    trace = Trace(
        [] if asked.on("output_hidden_states", config) else None,
        [] if asked.on("output_attentions", config) else None,
    )
    ids = given.ids if given.ids is not None else positions.new_zeros(positions.shape[1])
    batch = PackedBatch(ids, positions, layout.seq, inputs_embeds=given.embeds)
    if vision is not None:
        batch.vision_embeds, batch.vision_index = vision
    if past is not None:
        batch.kv = past.view(list(layout.seq.q_lens))
    following = _following(given, positions, rope_deltas)
    hidden = text.hidden(batch, trace=trace)
    if past is not None:
        past.advance(layout.mask, following)
    tokens = layout.seen.sum(-1, keepdim=True) + layout.mask.sum(-1, keepdim=True)
    return Computed(hidden, layout, past, trace, following[:, -1:] - tokens)


def _following(given: Given, positions: Tensor, rope_deltas: Tensor | None) -> Tensor:
    """The position of a token put behind each column, int64 [B, S]."""
    layout = given.layout
    following = layout.pad(positions.amax(0) + 1).cummax(1).values
    following = torch.where(following == 0, given.start().unsqueeze(1), following)  # no token yet
    deltas = _deltas(rope_deltas, given)
    if deltas is None:
        return following
    ends = layout.seen.sum(-1, keepdim=True) + layout.mask.sum(-1, keepdim=True) + deltas
    if given.past is None and given.positions is None and not torch.equal(ends, following[:, -1:]):
        found = (following[:, -1:] - ends + deltas).squeeze(1).tolist()
        raise ValueError(
            f"rope_deltas={deltas.squeeze(1).tolist()} differ from those of the prompts, {found}: give position_ids "
            "with them, or leave them out"
        )
    return torch.cat((following[:, :-1], ends), 1)


def _cache(text: TextModel, config: Any, given: Given, asked: Asked) -> PastKeyValues | None:
    """The cache to write to: the one given, a new one, or None."""
    documents = len(given.layout.seq.q_lens) != len(given.layout.mask)
    recomputed = text.recompute is not None and text.training
    if given.past is not None:
        if recomputed:
            raise ValueError("past_key_values and gradient checkpointing in training exclude each other: drop one")
        return given.past
    unset = not text.training and not documents
    wanted = asked.on("use_cache", config) and (unset or asked.use_cache is not None)
    if wanted and documents:
        raise ValueError("use_cache=True and several packed documents in a row exclude each other: drop one")
    if wanted and recomputed:
        warnings.warn("use_cache=True has no effect with gradient checkpointing in training", stacklevel=4)
        return None
    if not wanted:
        return None
    weight = text.norm.weight
    return PastKeyValues(text.config, len(given.layout.mask), weight.dtype, weight.device)


def _deltas(rope_deltas: Tensor | None, given: Given) -> Tensor | None:
    """Documented rope_deltas, one number a row in any shape -> int64 [B, 1]."""
    rows = len(given.layout.mask)
    if rope_deltas is None:
        return None
    if rope_deltas.numel() != rows:
        raise ValueError(
            f"rope_deltas has shape {tuple(rope_deltas.shape)}: expected one number for each of {rows} rows"
        )
    return rope_deltas.reshape(rows, 1).to(given.layout.mask.device).long()
