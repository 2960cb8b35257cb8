"""Bytes that computing needs, from the configuration: the largest step of tower and decoder, cache, what requests hold.

What is alive at once at the widest place of a block was measured and then counted (docs/log.md): in a gated MLP, just
before its last product returns, the input of the block, its sum with the attention, the norm of that and the result
(each as wide as the model), with gate, up and their product (each as wide as the MLP); in the attention the input, its
norm, q, k and v, the turned q and k, the outcome and its product. Legend: P patches, T tokens, D width of the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl.config import Qwen2_5_VLConfig, Qwen2VLConfig

Config = Qwen2_5_VLConfig | Qwen2VLConfig
PAGE = 16  # tokens of a page of the cache (engine/blocks.py)
HEAP = 1.06  # what the heap holds beside what is alive, fitted to measured peaks
FIXED = 24 * 2**20  # native code, tables and the first pages of everything, of the first answer
PIXELS = {"image": 588, "video": 1176}  # bytes of a patch as the engine holds it: uint8, equal frames once


@dataclass(frozen=True)
class Sizes:
    """Bytes as functions of patches and tokens. itemsize: of activations. packed: whether the products round their
    input to int8, which is another copy of it."""

    config: Config
    itemsize: int = 2
    packed: bool = False

    def tower(self, patches: int) -> int:
        """The tower's largest step for so many patches that are encoded together."""
        vision = self.config.vision_config
        width, mlp = vision.width, vision.mlp_width
        gated = 4 * width + (3 if vision.gated_mlp else 2) * mlp
        block = max(gated, 9 * width) * self.itemsize + (max(width, mlp) if self.packed else 0)
        rotations = 3 * 2 * (width // vision.num_heads) // 2 * 4  # cos and sin in float32, in up to three orders
        return int(HEAP * patches * (block + rotations))

    def prefill(self, tokens: int, logits: int = 1) -> int:
        """The decoder's largest step for so many tokens, with so many rows of logits in float32."""
        text = self.config.text_config
        heads = text.num_attention_heads * text.head_dim
        shared = 2 * text.num_key_value_heads * text.head_dim
        mlp = 4 * text.hidden_size + 3 * text.intermediate_size
        attention = 3 * text.hidden_size + 3 * heads + 2 * shared
        row = max(mlp, attention) * self.itemsize + (text.intermediate_size if self.packed else 0)
        return int(HEAP * tokens * row) + 3 * logits * text.vocab_size * 4

    @property
    def cache_token(self) -> int:
        """Keys and values of one token in all layers."""
        text = self.config.text_config
        return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * self.itemsize

    def cache(self, tokens: int) -> int:
        """Keys and values of so many tokens, in whole pages."""
        return -(-tokens // PAGE) * PAGE * self.cache_token

    def tokens_in(self, size: int) -> int:
        """How many tokens a cache of this size holds, in whole pages."""
        return max(size, 0) // (PAGE * self.cache_token) * PAGE

    def embeds(self, patches: int) -> int:
        """Embeddings of encoded patches."""
        merge = self.config.vision_config.spatial_merge_size**2
        return patches // merge * self.config.text_config.hidden_size * self.itemsize

    def patches_within(self, size: int) -> int:
        """The most patches whose largest step of the tower stays within so many bytes."""
        return max(int(size / max(self.tower(2**20), 1) * 2**20), 0)


def piece(grid: Sequence[int], budget: int) -> int:
    """Patches of an item that the engine encodes together: whole time steps up to `budget`, at least one."""
    steps, height, width = grid
    frame = height * width
    return min(steps, max(1, budget // frame)) * frame


def pieces(grid: Sequence[int], budget: int) -> int:
    """In how many calls of the tower an item is encoded."""
    steps, height, width = grid
    return math.ceil(steps / min(steps, max(1, budget // (height * width))))
