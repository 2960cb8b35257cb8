"""What the documented forward() returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class CausalLMOutput:
    """loss: float32 scalar when labels were given. logits: float32 [B, S, vocabulary] (or the rows kept).
    rope_deltas: int64 [B, 1], largest M-RoPE position + 1 - length of each row."""

    logits: Tensor
    loss: Tensor | None = None
    rope_deltas: Tensor | None = None

    def to_tuple(self) -> tuple[Tensor, ...]:
        """The fields that are present, loss first, as return_dict=False gives them."""
        return tuple(x for x in (self.loss, self.logits, self.rope_deltas) if x is not None)

    def __getitem__(self, key: int | str) -> Tensor:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]
