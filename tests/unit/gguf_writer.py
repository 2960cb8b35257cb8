"""GGUF files for tests, written from the format: any metadata and tensors, and a checkpoint's folder as a pair of them.

Independent of the reader. What converters of different times do differently are options of `convert`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

FAMILIES = ("qwen2_5_vl", "qwen2_vl")

# name: (number in the file, weights of a block, bytes of a block, where its float16 numbers are)
KINDS: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "F32": (0, 1, 4, ()), "F16": (1, 1, 2, ()), "BF16": (30, 1, 2, ()),
    "Q4_0": (2, 32, 18, (0,)), "Q4_1": (3, 32, 20, (0, 2)), "Q5_0": (6, 32, 22, (0,)), "Q5_1": (7, 32, 24, (0, 2)),
    "Q8_0": (8, 32, 34, (0,)), "Q8_1": (9, 32, 40, (0, 2)), "Q2_K": (10, 256, 84, (80, 82)),
    "Q3_K": (11, 256, 110, (108,)), "Q4_K": (12, 256, 144, (0, 2)), "Q5_K": (13, 256, 176, (0, 2)),
    "Q6_K": (14, 256, 210, (208,)), "IQ2_XXS": (16, 256, 66, (0,)), "IQ2_XS": (17, 256, 74, (0,)),
    "IQ3_XXS": (18, 256, 98, (0,)), "IQ1_S": (19, 256, 50, (0,)), "IQ4_NL": (20, 32, 18, (0,)),
    "IQ3_S": (21, 256, 110, (0,)), "IQ2_S": (22, 256, 82, (0,)), "IQ4_XS": (23, 256, 136, (0,)),
    "TQ1_0": (34, 256, 54, (52,)), "TQ2_0": (35, 256, 66, (64,)), "MXFP4": (39, 32, 17, ()),
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A tensor as it is to be written. shape: slowest dimension first."""

    kind: str
    shape: tuple[int, ...]
    data: bytes


def encode(weight: Tensor, kind: str) -> Written:
    """A tensor as F32, F16, BF16, Q8_0 or Q4_0."""
    shape = tuple(weight.shape)
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if kind in plain:
        return Written(kind, shape, weight.to(plain[kind]).contiguous().flatten().view(torch.uint8).numpy().tobytes())
    blocks = weight.float().numpy().reshape(-1, 32)
    if kind == "Q8_0":
        scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
        q = np.round(blocks / np.where(scale == 0, 1, scale).astype(np.float32)).clip(-128, 127).astype(np.int8)
        return Written(kind, shape, np.concatenate([scale.view(np.uint8), q.view(np.uint8)], 1).tobytes())
    assert kind == "Q4_0", kind
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = (largest / -8).astype(np.float16)
    q = np.round(blocks / np.where(scale == 0, 1, scale).astype(np.float32) + 8).clip(0, 15).astype(np.uint8)
    return Written(kind, shape, np.concatenate([scale.view(np.uint8), q[:, :16] | q[:, 16:] << 4], 1).tobytes())


def random_blocks(kind: str, shape: tuple[int, int], seed: int = 0) -> Written:
    """Valid blocks with any integers, and scales as weights have them."""
    rng = np.random.default_rng(seed)
    _, weights, nbytes, halves = KINDS[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // weights, nbytes), dtype=np.uint8)
    for at in halves:
        blocks[:, at : at + 2] = rng.normal(0, 0.002, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = rng.integers(110, 125, len(blocks))
    return Written(kind, shape, blocks.tobytes())


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Written],
    *,
    version: int = 3,
    order: str = "<",
    alignment: int = 32,
) -> Path:
    """A file. metadata: str, bool, int, float, or lists of them. order: "<" little endian, ">" big."""
    if alignment != 32:
        metadata = {**metadata, "general.alignment": alignment}
    out = b"GGUF" + struct.pack(f"{order}IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        out += _text(key, order) + _value(value, order)
    at = 0
    for name, tensor in tensors.items():
        sizes = struct.pack(f"{order}{len(tensor.shape)}Q", *reversed(tensor.shape))
        kind = KINDS[tensor.kind][0] if tensor.kind in KINDS else int(tensor.kind)
        out += _text(name, order) + struct.pack(f"{order}I", len(tensor.shape)) + sizes
        out += struct.pack(f"{order}IQ", kind, at)
        at += -(-len(tensor.data) // alignment) * alignment
    with path.open("wb") as file:
        file.write(out + bytes(-len(out) % alignment))
        for tensor in tensors.values():
            file.write(tensor.data + bytes(-len(tensor.data) % alignment))
    return path


def _text(text: str, order: str) -> bytes:
    data = text.encode()
    return struct.pack(f"{order}Q", len(data)) + data


def _value(value: Any, order: str) -> bytes:
    if isinstance(value, list):
        kinds = [_value(one, order) for one in value]
        return (
            struct.pack(f"{order}I", 9)
            + kinds[0][:4]
            + struct.pack(f"{order}Q", len(value))
            + b"".join(one[4:] for one in kinds)
        )
    if isinstance(value, str):
        return struct.pack(f"{order}I", 8) + _text(value, order)
    if isinstance(value, bool):
        return struct.pack(f"{order}I?", 7, value)
    if isinstance(value, int):
        return struct.pack(f"{order}I", 4 if value >= 0 else 5) + struct.pack(
            f"{order}{'I' if value >= 0 else 'i'}", value
        )
    return struct.pack(f"{order}If", 6, value)


TEXT_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TOWER_NAMES = {
    "norm1": "ln1", "norm2": "ln2", "attn.qkv": "attn_qkv", "attn.proj": "attn_out", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
}  # fmt: skip
TOP_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "visual.merger.ln_q": "v.post_ln", "visual.merger.mlp.0": "mm.0", "visual.merger.mlp.2": "mm.2",
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """What `convert` made, to be written anew with something changed."""

    text: dict[str, Any]
    tower: dict[str, Any]
    text_tensors: dict[str, Written]
    tower_tensors: dict[str, Written]

    def write(self, folder: Path, name: str = "tiny", tower_name: str = "mmproj-tiny-f16.gguf") -> Path:
        """Both files; the path of the text model's."""
        folder.mkdir(parents=True, exist_ok=True)
        write_gguf(folder / tower_name, self.tower, self.tower_tensors)
        return write_gguf(folder / f"{name}.gguf", self.text, self.text_tensors)


def convert(
    folder: Path,
    kind: Callable[[str], str] | str = "F16",
    *,
    tower_kind: str | None = None,
    split_tower: bool = True,
    join_text: bool = False,
    swapped: bool = False,
    template: str | None = None,
) -> Pair:
    """A checkpoint's folder (config.json, tokenizer, one safetensors file in the published layout) as a pair.

    kind: of the decoder's matrices, by their GGUF name. tower_kind: of the tower's. split_tower: q, k and v apart, as
    converters do. join_text: q, k and v of the decoder in one. swapped: the layers of the plain vision MLP under each
    other's names, as converters did once.
    """
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    chosen = kind if callable(kind) else lambda name: str(kind)
    text: dict[str, Tensor] = {}
    tower: dict[str, Tensor] = {}
    for key, weight in weights.items():
        (tower if key.startswith("visual.") else text).update(_renamed(key, weight, split_tower, swapped))
    if join_text:
        text = _joined(text)
    shape_kind = tower_kind or ("F32" if kind == "F32" else "F16")
    return Pair(
        _text_metadata(folder, config, template),
        _tower_metadata(config),
        {name: encode(one, "F32" if one.ndim < 2 else chosen(name)) for name, one in text.items()},
        {
            name: encode(one, "F32" if one.ndim < 2 or ("patch" in name and shape_kind != "F16") else shape_kind)
            for name, one in tower.items()
        },
    )


def _renamed(key: str, weight: Tensor, split: bool, swapped: bool) -> dict[str, Tensor]:
    module, _, leaf = key.rpartition(".")
    if key == "visual.patch_embed.proj.weight":
        return {"v.patch_embd.weight": weight[:, :, 0], "v.patch_embd.weight.1": weight[:, :, 1]}
    if module in TOP_NAMES:
        return {f"{TOP_NAMES[module]}.{leaf}": weight}
    start, names = ("visual.blocks.", TOWER_NAMES) if key.startswith("visual.") else ("model.layers.", TEXT_NAMES)
    number, _, part = module.removeprefix(start).partition(".")
    name = names[part]
    if swapped and part in ("mlp.fc1", "mlp.fc2"):
        name = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}[name]
    block = f"{'v.' if names is TOWER_NAMES else ''}blk.{number}"
    if name == "attn_qkv" and split:
        return {f"{block}.attn_{one}.{leaf}": x for one, x in zip("qkv", weight.chunk(3), strict=True)}
    return {f"{block}.{name}.{leaf}": weight}


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {name: one for name, one in tensors.items() if not any(f".attn_{x}." in name for x in "qkv")}
    for name in tensors:
        if ".attn_q." in name:
            out[name.replace("attn_q", "attn_qkv")] = torch.cat(
                [tensors[name.replace("attn_q", f"attn_{x}")] for x in "qkv"]
            )
    return out


def _text_metadata(folder: Path, config: dict[str, Any], template: str | None) -> dict[str, Any]:
    scaling = config.get("rope_scaling") or {}
    names = {
        "block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    }  # fmt: skip
    return {
        "general.architecture": "qwen2vl",
        "general.type": "model",
        "general.name": "Tiny",
        **{f"qwen2vl.{ours}": config[theirs] for ours, theirs in names.items()},
        "qwen2vl.rope.dimension_sections": [*scaling.get("mrope_section", [16, 24, 24]), 0],
        "qwen2vl.rope.freq_base": float(config["rope_theta"]),
        "qwen2vl.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        **vocabulary(folder, config["vocab_size"]),
        **({} if template is None else {"tokenizer.chat_template": template}),
    }


def vocabulary(folder: Path, rows: int) -> dict[str, Any]:
    """tokenizer.ggml.* of a folder's tokenizer.json, filled up to the rows of the embedding."""
    file = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokens, kinds = [f"[PAD{number}]" for number in range(rows)], [5] * rows
    for token, number in file["model"]["vocab"].items():
        tokens[number], kinds[number] = token, 1
    for one in file["added_tokens"]:
        looks = one["content"].startswith("<|") and one["content"].endswith("|>")
        tokens[one["id"]], kinds[one["id"]] = one["content"], 3 if one["special"] or looks else 4
    merges = [one if isinstance(one, str) else " ".join(one) for one in file["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.bos_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.add_bos_token": False,
    }


def _tower_metadata(config: dict[str, Any]) -> dict[str, Any]:
    vision = config["vision_config"]
    gated = config["model_type"] == "qwen2_5_vl"
    # What is written for Qwen2-VL's feed forward length is the output width, as the present converter does.
    shared = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.vision.projection_dim": config["hidden_size"],
        "clip.vision.image_size": 560,
        "clip.vision.patch_size": vision["patch_size"],
        "clip.vision.embedding_length": vision["hidden_size" if gated else "embed_dim"],
        "clip.vision.feed_forward_length": vision["intermediate_size" if gated else "hidden_size"],
        "clip.vision.block_count": vision["depth"],
        "clip.vision.attention.head_count": vision["num_heads"],
        "clip.vision.image_mean": [0.48145466, 0.4578275, 0.40821073],
        "clip.vision.image_std": [0.26862954, 0.26130258, 0.27577711],
        "clip.projector_type": "qwen2.5vl_merger" if gated else "qwen2vl_merger",
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
    }
    more = {"clip.use_silu": True, "clip.vision.n_wa_pattern": vision["fullatt_block_indexes"][0] + 1} if gated else {}
    return {**shared, **more}


def save_checkpoint(folder: Path, tokenizer_from: Path, family: str = "qwen2_5_vl", **changes: Any) -> Path:
    """A tiny random model in the published layout, with the tokenizer files of another folder."""
    import shutil

    from tiny import VISION, tiny_model

    from qwenvl.checkpoint import save_model

    folder.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(tokenizer_from / file, folder)
    tokens = {one["content"]: one["id"] for one in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
    marks = {"image_token_id": "image_pad", "video_token_id": "video_pad", "vision_start_token_id": "vision_start",
             "vision_end_token_id": "vision_end"}  # fmt: skip
    ids: dict[str, Any] = {name: tokens[f"<|{mark}|>"] for name, mark in marks.items()}
    ids |= {"eos_token_id": tokens["<|im_end|>"], "bos_token_id": tokens["<|endoftext|>"]}
    vision = VISION[family] | {"out_hidden_size" if family == "qwen2_5_vl" else "hidden_size": 64}
    sizes = {"vocab_size": 480, "hidden_size": 64, "intermediate_size": 96, "vision_config": vision}
    rope = {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    model = tiny_model(family, **{**sizes, **ids, **rope, "max_position_embeddings": 4096, **changes})
    save_model(model, folder, layout="original")
    return folder
