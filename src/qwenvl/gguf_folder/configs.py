"""Metadata of a pair of GGUF files -> config.json, generation_config.json and preprocessor_config.json.

What GGUF does not say is filled in from the family: Qwen2.5-VL or Qwen2-VL as they were published. Sizes that early
converters wrote wrongly are taken from the tensors. Numbers are kept in 32 bits there, and become the short ones again
that were meant (0.000001, not 0.0000009999999974752427).
"""

from __future__ import annotations

import struct
from typing import Any

from qwenvl.config import Qwen2_5_VLConfig, Qwen2VLConfig, config_from_dict
from qwenvl.gguf_folder.header import Gguf
from qwenvl.gguf_folder.names import EMBEDDING, HEAD, MERGER_OUT, TIMES, is_gated, mlp_width
from qwenvl.gguf_folder.vocabulary import ROLES, token_id

PROJECTORS = ("qwen2vl_merger", "qwen2.5vl_merger")
PATTERN = 8  # every 8th block of the published Qwen2.5-VL towers sees everything: 7, 15, 23, 31
WINDOW, TOKENS_PER_SECOND, MERGE = 112, 2, 2
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
MIN_PIXELS, MAX_PIXELS = 3136, 12845056
SLIDING_WINDOW = 32768  # published beside use_sliding_window: false
# Which sampling the checkpoints were published with.
SAMPLING: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"do_sample": True, "temperature": 1e-06, "repetition_penalty": 1.05},
    "qwen2_vl": {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1},
}
_SAMPLING_KEYS = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
                  "penalty_repeat": "repetition_penalty"}  # fmt: skip
_IDS = {
    "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>", "vision_token_id": "<|vision_pad|>",
}  # fmt: skip


def model_config(text: Gguf, tower: Gguf) -> Qwen2_5_VLConfig | Qwen2VLConfig:
    """The configuration of a pair. ValueError when the two do not belong together, or lack what it takes."""
    _check_pair(text, tower)
    family = family_of(tower)
    return config_from_dict({"model_type": family, **_text(text), "vision_config": _vision(text, tower)})


def family_of(tower: Gguf) -> str:
    """model_type of the family that a tower belongs to."""
    return "qwen2_5_vl" if is_gated(tower) else "qwen2_vl"


def generation_config(text: Gguf, family: str) -> dict[str, Any]:
    """The published defaults of the family, and in their place what the file says about sampling."""
    end = token_id(text, "eos")
    said = {ours: text.metadata.get(f"general.sampling.{key}") for key, ours in _SAMPLING_KEYS.items()}
    given = {name: _short(value) for name, value in said.items() if value is not None}
    tokens: list[str] = text.need("tokenizer.ggml.tokens")
    ends = [end, *(number for number, token in enumerate(tokens) if token == ROLES["padding"] and number != end)]
    return {
        "bos_token_id": token_id(text, "bos"), "pad_token_id": token_id(text, "padding"), "eos_token_id": ends,
        **({"do_sample": True, **given} if given else SAMPLING[family]),
    }  # fmt: skip


def preprocessor_config(tower: Gguf, family: str) -> dict[str, Any]:
    """How pictures become patches."""
    metadata, name = tower.metadata, "Qwen2_5_VLProcessor" if family == "qwen2_5_vl" else "Qwen2VLProcessor"
    least, most = (
        next(
            (metadata[f"clip.vision.{key}"] for key in (f"image_{end}", end) if f"clip.vision.{key}" in metadata), usual
        )
        for end, usual in (("min_pixels", MIN_PIXELS), ("max_pixels", MAX_PIXELS))
    )
    return {
        "min_pixels": least, "max_pixels": most, "patch_size": tower.natural("clip.vision.patch_size"),
        "temporal_patch_size": len([name for name in TIMES if name in tower.tensors]), "merge_size": _merge(tower),
        "image_mean": _published(metadata.get("clip.vision.image_mean"), MEAN),
        "image_std": _published(metadata.get("clip.vision.image_std"), STD),
        "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True,
        "resample": 3, "image_processor_type": "Qwen2VLImageProcessor", "processor_class": name,
    }  # fmt: skip


def _check_pair(text: Gguf, tower: Gguf) -> None:
    if text.architecture == "clip":
        raise ValueError(f"{text.path} is the vision tower: give the file of the text model that lies beside it")
    if text.architecture == "qwen25vl":
        raise ValueError(
            f"{text.path} is a qwen25vl file as Ollama writes them: take a qwen2vl file with an mmproj file"
        )
    if text.architecture != "qwen2vl":
        raise ValueError(f"{text.path} is a {text.architecture or 'nameless'} model: expected qwen2vl (both families)")
    kind = tower.metadata.get("clip.projector_type", tower.metadata.get("clip.vision.projector_type"))
    if tower.architecture != "clip" or kind not in PROJECTORS:
        what = f"a tower of type {kind}" if tower.architecture == "clip" else f"a {tower.architecture} model"
        raise ValueError(f"{tower.path} is {what}: expected an mmproj file of {' or '.join(PROJECTORS)}")
    width, takes = tower.shape(MERGER_OUT)[0], text.natural("qwen2vl.embedding_length")
    if width != takes:  # of the tensor: early files have the tower's own width as projection_dim
        raise ValueError(
            f"{tower.path} gives width {width}, and {text.path} takes {takes}: they are of different models; "
            "give the mmproj file that belongs to the text model"
        )


def _text(text: Gguf) -> dict[str, Any]:
    tokens = {token: number for number, token in enumerate(text.need("tokenizer.ggml.tokens"))}
    missing = [token for token in _IDS.values() if token not in tokens]
    if missing:
        raise ValueError(f"{text.path}: its vocabulary lacks {', '.join(missing)}: it is no vision-language model")
    layers = text.natural("qwen2vl.block_count")
    kinds = {tensor.kind for tensor in text.tensors.values()}
    out = {
        "vocab_size": text.shape(EMBEDDING)[0], "hidden_size": text.natural("qwen2vl.embedding_length"),
        "intermediate_size": text.natural("qwen2vl.feed_forward_length"), "num_hidden_layers": layers,
        "num_attention_heads": text.natural("qwen2vl.attention.head_count"),
        "num_key_value_heads": text.natural("qwen2vl.attention.head_count_kv"),
        "max_position_embeddings": text.natural("qwen2vl.context_length"), "max_window_layers": layers,
        "rms_norm_eps": _short(text.need("qwen2vl.attention.layer_norm_rms_epsilon")),
        "rope_theta": _short(text.need("qwen2vl.rope.freq_base")), "rope_scaling": _rope(text),
        "hidden_act": "silu", "use_sliding_window": False, "sliding_window": SLIDING_WINDOW,
        "tie_word_embeddings": HEAD not in text.tensors,
        # The checkpoints were published in bfloat16, and float16 overflows in the tower.
        "torch_dtype": "float32" if kinds == {"F32"} else "bfloat16",
        "bos_token_id": token_id(text, "bos"), "eos_token_id": token_id(text, "eos"),
        **{name: tokens[token] for name, token in _IDS.items()},
    }  # fmt: skip
    head = text.metadata.get("qwen2vl.attention.key_length")
    return out if head is None else {**out, "head_dim": head}


def _rope(text: Gguf) -> dict[str, Any]:
    """M-RoPE's sections, and how the positions are stretched where the file says that they are."""
    sections = text.metadata.get("qwen2vl.rope.dimension_sections", [16, 24, 24])[:3]
    kind = text.metadata.get("qwen2vl.rope.scaling.type", "none")
    if kind == "none":
        return {"type": "mrope", "mrope_section": sections}
    if kind not in ("linear", "yarn"):
        raise ValueError(f"{text.path}: positions are scaled by {kind!r}: expected none, linear or yarn")
    scaling = {"type": kind, "mrope_section": sections, "factor": _short(text.need("qwen2vl.rope.scaling.factor"))}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = text.natural("qwen2vl.rope.scaling.original_context_length")
        for key, ours in (("beta_fast", "beta_fast"), ("beta_slow", "beta_slow"), ("attn_factor", "attention_factor")):
            value = text.metadata.get(f"qwen2vl.rope.scaling.yarn_{key}")
            if value is not None:
                scaling[ours] = _short(value)
    return scaling


def _vision(text: Gguf, tower: Gguf) -> dict[str, Any]:
    width, out = tower.natural("clip.vision.embedding_length"), text.natural("qwen2vl.embedding_length")
    shared = {
        "depth": tower.natural("clip.vision.block_count"),
        "num_heads": tower.natural("clip.vision.attention.head_count"),
        "in_chans": tower.shape(TIMES[0])[1], "patch_size": tower.natural("clip.vision.patch_size"),
        "spatial_merge_size": _merge(tower),
        "temporal_patch_size": len([name for name in TIMES if name in tower.tensors]),
    }  # fmt: skip
    if not is_gated(tower):
        ratio = mlp_width(tower) / width
        return {**shared, "embed_dim": width, "hidden_size": out, "mlp_ratio": ratio, "hidden_act": "quick_gelu"}
    return {
        **shared, "hidden_size": width, "intermediate_size": mlp_width(tower), "out_hidden_size": out,
        "hidden_act": "silu", "window_size": tower.metadata.get("clip.vision.window_size", WINDOW),
        "tokens_per_second": TOKENS_PER_SECOND, "fullatt_block_indexes": _full_blocks(tower, shared["depth"]),
    }  # fmt: skip


def _full_blocks(tower: Gguf, depth: int) -> list[int]:
    """Which blocks see the whole picture: as listed, every n-th, or, where a converter found neither, as published.

    Files of the 32B have neither: its config.json leaves them out, which does not mean that it has no windows.
    """
    listed = tower.metadata.get("clip.vision.fullatt_block_indexes")
    if listed:
        return list(listed)
    every = tower.metadata.get("clip.vision.n_wa_pattern") or PATTERN
    return [block for block in range(depth) if (block + 1) % every == 0]


def _merge(tower: Gguf) -> int:
    return int(tower.metadata.get("clip.vision.spatial_merge_size", MERGE))


def _published(values: list[float] | None, usual: tuple[float, ...]) -> list[float]:
    """Numbers as they were before they were put into 32 bits: the published ones where they are the same there."""
    if values is None or [_bits(value) for value in values] == [_bits(value) for value in usual]:
        return list(usual)
    return [_short(value) for value in values]


def _short(value: float) -> float:
    """The shortest decimal that is this number in 32 bits."""
    if isinstance(value, int):
        return value
    near = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((one for one in near if _bits(one) == _bits(value)), value)


def _bits(value: float) -> bytes:
    return struct.pack("<f", value)
