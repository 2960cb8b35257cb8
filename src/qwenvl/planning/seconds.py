"""Sizes and speeds -> seconds of the tower, the prompt and each token of the answer.

Work is counted the same way as in the calibration: a block of the tower costs so much a patch, a layer of the decoder
so much a token, both an overhead a call; attention costs so much a pair of query and key; a decode step reads the
weights of all layers and the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl.planning.calibration import Speeds
from qwenvl.planning.media import Item
from qwenvl.planning.memory import Config, pieces
from qwenvl.planning.weights import Weights

QUESTION = 12  # what a question costs beside its pixels (template, ids, positions, hashes), in steps


@dataclass(frozen=True)
class Seconds:
    """prepare: reading and cutting pictures (decoding of videos is not counted); tower; prefill: from the tower's end
    to the first token; decode: of one further token; total: all of an answer."""

    prepare: float
    tower: float
    prefill: float
    decode: float
    total: float

    @property
    def first_token(self) -> float:
        return self.prepare + self.tower + self.prefill


def estimate(
    config: Config, weights: Weights, speeds: Speeds, items: Sequence[Item], prompt: int, answer: int,
    token_budget: int, vision_budget: int,
) -> Seconds:  # fmt: skip
    """Seconds of one question with `prompt` tokens, pictures included, and `answer` tokens of answer."""
    tower = sum(_tower(config, speeds, item, vision_budget) for item in items)
    prefill = _prefill(config, weights, speeds, prompt, token_budget)
    decode = _decode(config, weights, speeds, prompt + answer // 2)
    prepare = sum(
        speeds.pixel * item.size[0] * item.size[1] + speeds.patch * item.patches
        for item in items
        if item.kind == "image"
    ) + sum(speeds.patch * item.patches for item in items if item.kind == "video")
    prepare += QUESTION * speeds.step
    total = prepare + tower + prefill + decode * max(answer - 1, 0)
    return Seconds(prepare, tower, prefill, decode, total)


def _tower(config: Config, speeds: Speeds, item: Item, budget: int) -> float:
    vision = config.vision_config
    full = len(vision.fullatt_block_indexes)
    time, rows, columns = item.grid
    pairs = full * time * float(rows * columns) ** 2
    calls = pieces(item.grid, budget)
    products = vision.depth + extra_blocks(config)
    return (
        calls * vision.depth * speeds.block_call
        + item.patches * products * speeds.block_row
        + pairs * speeds.tower_pair
    )


def extra_blocks(config: Config) -> float:
    """Patch embedding and merger, in blocks of the same number of products."""
    vision = config.vision_config
    width, merge = vision.width, vision.spatial_merge_size**2
    block = 4 * width * width + (3 if vision.gated_mlp else 2) * width * vision.mlp_width
    around = 588 * width + (merge * width) ** 2 / merge + width * vision.out_width
    return around / block


def _prefill(config: Config, weights: Weights, speeds: Speeds, prompt: int, budget: int) -> float:
    layers = config.text_config.num_hidden_layers
    calls = -(-prompt // budget)
    pairs = layers * float(prompt) ** 2 / 2
    head = weights.head * speeds.byte
    return (
        calls * (layers * speeds.layer_call + speeds.step)
        + prompt * layers * speeds.layer_row
        + pairs * speeds.text_pair
        + head
    )


def _decode(config: Config, weights: Weights, speeds: Speeds, context: int) -> float:
    text = config.text_config
    kept = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * weights.itemsize
    read = text.num_hidden_layers * speeds.decode_layer + weights.head * speeds.byte
    return speeds.step + read + context * kept * speeds.byte
