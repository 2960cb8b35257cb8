"""What the documented forward() of each class returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from qwenvl.model.past import PastKeyValues


@dataclass(eq=False)
class ModelOutput(Mapping[str, Any]):
    """Named results, of which those that are None count as absent.

    Read as attributes (out.logits), by name (out["logits"]) or by number and slice, as the tuple that to_tuple()
    and return_dict=False give (out[0], out[:2]). Iteration, keys() and ** go over names, like a dict's.
    """

    def __post_init__(self) -> None:
        """One mapping alone holds all the results: what rebuilds outputs elsewhere (accelerate) gives them so."""
        first = fields(self)[0].name
        given = getattr(self, first)
        if isinstance(given, Mapping):
            setattr(self, first, None)
            for name, value in given.items():
                setattr(self, name, value)

    def to_tuple(self) -> tuple[Any, ...]:
        """The results that are present, in the order of the fields."""
        return tuple(self.values())

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in list(self):
            raise KeyError(f"{key}: there is {', '.join(self)}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (item.name for item in fields(self) if getattr(self, item.name) is not None)

    def __len__(self) -> int:
        return len(list(iter(self)))


@dataclass(eq=False)
class BaseModelOutputWithPast(ModelOutput):
    """What the text model returns.

    last_hidden_state: [B, S, D] after the last norm, zero at padding; with a cache, S counts the new tokens only.
    past_key_values: the cache to go on with. hidden_states: the embeddings and the output of each layer, the last
    after the norm; layers + 1 of [B, S, D]. attentions: per layer the probabilities [B, H, S, K], K = cached + new
    columns.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: PastKeyValues | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class Qwen2_5_VLModelOutputWithPast(BaseModelOutputWithPast):
    """What both towers together return: the same, and rope_deltas, int64 [B, 1], for each row the largest M-RoPE
    position + 1 - tokens so far."""

    rope_deltas: Tensor | None = None


@dataclass(eq=False)
class Qwen2_5_VLCausalLMOutputWithPast(ModelOutput):
    """What the model with its head returns.

    loss: float32 scalar when labels were given. logits: float32 [B, S, vocabulary] (or the columns kept), zero at
    padding. The rest as in Qwen2_5_VLModelOutputWithPast.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: PastKeyValues | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    rope_deltas: Tensor | None = None


Qwen2VLModelOutputWithPast = Qwen2_5_VLModelOutputWithPast
Qwen2VLCausalLMOutputWithPast = Qwen2_5_VLCausalLMOutputWithPast


@dataclass(eq=False)
class BaseModelOutputWithPooling(ModelOutput):
    """What get_image_features and get_video_features return: the vision tokens of each item, [V, D] each."""

    pooler_output: tuple[Tensor, ...] | None = None
