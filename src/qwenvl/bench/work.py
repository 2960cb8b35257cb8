"""How much there is to compute and to read, from the configuration alone: what shares of the machine's limits mean.

Counted: matrix products (2 operations a weight and row) and attention; not norms, rotation and softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl.config import Qwen2_5_VLConfig
from qwenvl.media.resize import smart_resize

WIDTH = {"bf16": 2.0, "int8": 1.0, "int4": 0.5}  # bytes of a weight, scales not counted


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one model."""

    config: Qwen2_5_VLConfig

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of a picture (width, height) within the official limits."""
        height, width = smart_resize(size[1], size[0], min_pixels=3136, max_pixels=12845056)
        return height // 14, width // 14

    def tower(self, size: tuple[int, int], frames: int = 1) -> float:
        """Operations of the tower for a picture, or for a video of so many pairs of frames."""
        vision = self.config.vision_config
        rows, columns = self.grid(size)
        patches, width = rows * columns, vision.width
        cell = width * vision.spatial_merge_size**2
        products = vision.depth * (4 * width * width + 3 * width * vision.mlp_width) + 1176 * width
        merger = cell * cell + cell * vision.out_width
        window = (vision.window_size // vision.patch_size) ** 2
        full = len(vision.fullatt_block_indexes)
        seen = full * patches + (vision.depth - full) * min(window, patches)
        return frames * patches * (2.0 * products + 2.0 * merger / vision.spatial_merge_size**2 + 4.0 * width * seen)

    @property
    def layer_weights(self) -> int:
        """Weights of the text layers."""
        text = self.config.text_config
        heads, shared = text.num_attention_heads * text.head_dim, 2 * text.num_key_value_heads * text.head_dim
        attention = text.hidden_size * (2 * heads + shared)
        return text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)

    @property
    def head_weights(self) -> int:
        return self.config.text_config.hidden_size * self.config.text_config.vocab_size

    def prefill(self, tokens: int) -> float:
        """Operations for a prompt of so many tokens and the logits of its last one."""
        text = self.config.text_config
        heads = text.num_attention_heads * text.head_dim
        attention = text.num_hidden_layers * 2.0 * heads * tokens**2
        return 2.0 * self.layer_weights * tokens + attention + 2.0 * self.head_weights

    def step(self, contexts: Sequence[int], weights: str) -> float:
        """Bytes that one decoding step reads: all weights once, and the keys and values (bf16) of each sequence."""
        text = self.config.text_config
        kept = 4 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        return (self.layer_weights + self.head_weights) * WIDTH[weights] + kept * float(sum(contexts))
