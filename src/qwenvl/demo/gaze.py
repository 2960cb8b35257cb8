"""Teaches attention where to look: a training-only loss on a few heads of the decoder.

In an early layer the last word of a name ("red circle") looks at what it names; in the last ones every token of an
answer is predicted while looking at what it is about. The loss is -log of the attention that falls on the right vision
tokens. Without it the model finds the right thing only after many hours of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor, nn

from qwenvl.config import Qwen2_5_VLTextConfig
from qwenvl.model.rope import rotate
from qwenvl.model.rope_types import packed_rotation
from qwenvl.training.collate import TrainBatch

# a name of a thing, an answer about things, a letter (or the name of a field), the next letter
LEVELS = ("a_name", "a_answer", "a_letter_here", "a_letter_next")


@dataclass(frozen=True)
class Gaze:
    """token: index in its sample. level: see LEVELS. spots: vision tokens of the sample to look at. head:
    which of the guided heads of that level does it (None: all of them)."""

    token: int
    level: int
    spots: tuple[int, ...]
    head: int | None = None


class Attention:
    """Catches queries and keys of one head of a layer, and scores them."""

    def __init__(self, layer: nn.Module, head: int, config: Qwen2_5_VLTextConfig) -> None:
        self._size = config.head_dim
        group = config.num_attention_heads // config.num_key_value_heads
        self._slices = [slice(i * self._size, (i + 1) * self._size) for i in (head, head // group)]
        self._query: Tensor | None = None
        self._key: Tensor | None = None
        layer.get_submodule("self_attn.q_proj").register_forward_hook(self._keep_query)
        layer.get_submodule("self_attn.k_proj").register_forward_hook(self._keep_key)

    def _keep_query(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._query = output[:, self._slices[0]]

    def _keep_key(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._key = output[:, self._slices[1]]

    def loss(self, rotation: tuple[Tensor, Tensor], rows: list[tuple[int, int, Tensor]]) -> Tensor | None:
        """Mean of -log(attention on the spots). rows: (packed token, start of its sequence, packed spots)."""
        query, key = self._query, self._key
        self._query = self._key = None
        if query is None or key is None or not rows:
            return None
        q = rotate(query.float().unsqueeze(1), rotation).squeeze(1) * self._size**-0.5
        k = rotate(key.float().unsqueeze(1), rotation).squeeze(1)
        costs = []
        by_start: dict[int, list[tuple[int, Tensor]]] = {}
        for token, start, spots in rows:
            by_start.setdefault(start, []).append((token, spots))
        for start, group in by_start.items():
            tokens = torch.tensor([token for token, _ in group])
            end = int(tokens.max()) + 1
            scores = q[tokens] @ k[start:end].T
            seen = torch.arange(start, end) <= tokens.unsqueeze(1)
            wanted = torch.zeros_like(seen)
            for i, (_, spots) in enumerate(group):
                wanted[i, spots - start] = True
            scores = scores.masked_fill(~seen, float("-inf"))
            costs.append(scores.logsumexp(1) - scores.masked_fill(~wanted, float("-inf")).logsumexp(1))
        return torch.cat(costs).mean()


class Guide:
    """The loss of all guided heads. heads: (layer, head) of those of each of the LEVELS."""

    def __init__(
        self,
        model: nn.Module,
        config: Qwen2_5_VLTextConfig,
        heads: Sequence[Iterable[tuple[int, int]]],
    ) -> None:
        self._config = config
        self._heads = [
            [Attention(model.get_submodule(f"model.language_model.layers.{layer}"), head, config) for layer, head in x]
            for x in heads
        ]

    def loss(self, batch: TrainBatch, gazes: list[list[Gaze]]) -> dict[str, Tensor]:
        """gazes: one list a sequence. One figure for each of the LEVELS, or fewer: the mean over its
        heads."""
        packed = batch.packed
        starts = packed.seq.cu_q
        assert packed.vision_index is not None
        firsts = torch.searchsorted(packed.vision_index, torch.tensor(starts[:-1])).tolist()
        rotation = packed_rotation(packed.positions, self._config, packed.seq.q_lens)
        costs = {}
        for level, (name, heads) in enumerate(zip(LEVELS, self._heads, strict=True)):
            rows = [
                (gaze.head, (start + gaze.token, start, packed.vision_index[first + torch.tensor(gaze.spots)]))
                for start, first, found in zip(starts, firsts, gazes, strict=False)
                for gaze in found
                if gaze.level == level
            ]
            mine = ([row for chosen, row in rows if chosen in (None, i)] for i in range(len(heads)))
            found_costs = [x for x in map(Attention.loss, heads, repeat(rotation), mine) if x is not None]
            if found_costs:
                costs[name] = torch.stack(found_costs).mean()
        return costs
