"""GGUF tensors <-> the tensors of the published checkpoints.

llama.cpp's converters split the tower's qkv into three and its convolution over two frames into two; some keep qkv,
some join the decoder's q, k and v, and old ones swapped the names of the two layers of Qwen2-VL's vision MLP. All of
that is undone here, by names and shapes.

Example: blk.0.attn_output.weight makes model.layers.0.self_attn.o_proj.weight; v.blk.0.attn_q.weight, ..._k and ..._v
are, one below the other, visual.blocks.0.attn.qkv.weight.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from qwenvl.gguf_folder.header import Gguf, GgufTensor

TIMES = ("v.patch_embd.weight", "v.patch_embd.weight.1")
FIRST_GATE, FIRST_UP = "v.blk.0.ffn_gate.weight", "v.blk.0.ffn_up.weight"
MERGER_OUT = "mm.2.weight"
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
# Written by converters and needed by none of the models: positions are computed.
UNUSED = ("v.position_embd.weight", "rope_freqs.weight")
_TEXT = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_TOWER = {"ln1": "norm1", "ln2": "norm2", "attn_qkv": "attn.qkv", "attn_out": "attn.proj"}
_GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_PLAIN = {"ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
_SWAPPED = {"ffn_up": "mlp.fc2", "ffn_down": "mlp.fc1"}
_TOP = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "v.post_ln": "visual.merger.ln_q", "mm.0": "visual.merger.mlp.0", "mm.2": "visual.merger.mlp.2",
}  # fmt: skip
_BLOCK = re.compile(r"(v\.)?blk\.(\d+)\.(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class Piece:
    """Rows first..stop of a tensor of a file."""

    tensor: GgufTensor
    first: int
    stop: int


@dataclass(frozen=True)
class Target:
    """One tensor of the published layout.

    key: its name there; one that no rule knows keeps its name in the file. joined: the pieces lie below one another
    ("rows"), or are the slices of a convolution over time ("times": [out, in, h, w] each, [out, in, time, h, w] made).
    """

    key: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    joined: Literal["rows", "times"] = "rows"

    @property
    def kind(self) -> str:
        """How the weights are kept: Q4_K, ...; the first piece's, where they differ."""
        return self.pieces[0].tensor.kind

    @property
    def nbytes(self) -> int:
        """Bytes in the files."""
        return sum(piece.tensor.row_bytes * (piece.stop - piece.first) for piece in self.pieces)


def is_gated(tower: Gguf) -> bool:
    """Whether a tower is Qwen2.5-VL's. The tensors tell: early files name both families' projector qwen2vl_merger."""
    return FIRST_GATE in tower.tensors


def mlp_width(tower: Gguf) -> int:
    """Width of the tower's MLP, of its tensors: early files do not say it, or say another one."""
    return next(size for size in tower.shape(FIRST_UP) if size != tower.natural("clip.vision.embedding_length"))


def targets(text: Gguf, tower: Gguf) -> list[Target]:
    """Every tensor of the model that a pair of files holds, in the order of the files."""
    out: list[Target] = []
    for tensor in text.tensors.values():
        if tensor.name not in UNUSED:
            out += _of_text(text, tensor)
    names = _tower_names(tower)
    for tensor in tower.tensors.values():
        if tensor.name not in UNUSED:
            out += _of_tower(tower, tensor, names)
    return out


def _of_text(text: Gguf, tensor: GgufTensor) -> list[Target]:
    found = _BLOCK.fullmatch(tensor.name)
    if found is None or found[1]:
        return [_whole(_top_name(tensor.name), tensor)]
    layer, leaf = f"model.layers.{found[2]}", found[4]
    if found[3] != "attn_qkv":
        return [_whole(f"{layer}.{_TEXT[found[3]]}.{leaf}" if found[3] in _TEXT else tensor.name, tensor)]
    heads, few = (text.natural(f"{text.architecture}.attention.head_count{end}") for end in ("", "_kv"))
    head = tensor.shape[0] // (heads + 2 * few)
    ends = (0, heads * head, (heads + few) * head, tensor.shape[0])
    return [
        Target(f"{layer}.self_attn.{one}_proj.{leaf}", (stop - first, *tensor.shape[1:]), (Piece(tensor, first, stop),))
        for one, first, stop in zip("qkv", ends[:-1], ends[1:], strict=True)
    ]


def _of_tower(tower: Gguf, tensor: GgufTensor, names: dict[str, str]) -> list[Target]:
    if tensor.name == TIMES[1]:
        return []  # made with the first
    if tensor.name == TIMES[0]:
        slices = [tower.tensors[name] for name in TIMES if name in tower.tensors]
        shape = (*tensor.shape[:2], len(slices), *tensor.shape[2:])
        return [Target("visual.patch_embed.proj.weight", shape, tuple(map(_all, slices)), "times")]
    found = _BLOCK.fullmatch(tensor.name)
    if found is None or not found[1]:
        return [_whole(_top_name(tensor.name), tensor)]
    block, part, leaf = f"visual.blocks.{found[2]}", found[3], found[4]
    if part in ("attn_k", "attn_v"):
        return []  # made with attn_q
    if part == "attn_q":
        parts = [tower.tensors.get(f"v.blk.{found[2]}.attn_{one}.{leaf}") for one in "qkv"]
        pieces = tuple(_all(one) for one in parts if one is not None)
        shape = (sum(piece.stop for piece in pieces), *tensor.shape[1:])
        return [Target(f"{block}.attn.qkv.{leaf}", shape, pieces)]
    return [_whole(f"{block}.{names[part]}.{leaf}" if part in names else tensor.name, tensor)]


def _tower_names(tower: Gguf) -> dict[str, str]:
    if is_gated(tower):
        return {**_TOWER, **_GATED}
    swapped = tower.shape(FIRST_UP)[0] == tower.natural("clip.vision.embedding_length")
    return {**_TOWER, **(_SWAPPED if swapped else _PLAIN)}


def _top_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{_TOP[module]}.{leaf}" if module in _TOP else name


def _whole(key: str, tensor: GgufTensor) -> Target:
    return Target(key, tensor.shape, (_all(tensor),))


def _all(tensor: GgufTensor) -> Piece:
    return Piece(tensor, 0, tensor.shape[0])
