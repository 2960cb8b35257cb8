"""`qwenvl info MODEL`: what a checkpoint is, from its headers. No weights are loaded."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenvl.cli.inputs import JsonOption, QuantizeOption, check_quantize, find_model

if TYPE_CHECKING:
    from qwenvl.cli.model_files import ModelFiles


def info(
    model: Annotated[str, typer.Argument(help="demo, a checkpoint's folder, or its name on the hub.")] = "demo",
    quantize: QuantizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show configuration, parameters, vocabulary, dtype, limits and files of a checkpoint. With --quantize, also the
    bytes of its weights before and after."""
    from qwenvl.cli.model_files import FLOATS

    check_quantize(quantize)
    found = find_model(model)
    report = describe(found)
    if quantize not in (None, "none"):
        if found.quantization is not None or any(name not in FLOATS for name in found.dtypes):
            raise ValueError(f"{found.folder} is quantized already: leave --quantize {quantize} out")
        report = {**report, "quantized": quantized(found, quantize), "files": report.pop("files")}
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    files = report.pop("files")
    for name, value in report.items():
        kinds = name == "dtypes_of_files"  # Q4_K is a name
        print(f"{name.replace('_', ' '):<20}{_listed(value) if kinds else _plain(value)}")
    print("files")
    for name, size in files.items():
        print(f"  {size:>14,}  {name}")


def describe(found: ModelFiles) -> dict[str, Any]:
    """What `info` shows, for JSON. Sizes in bytes, limits in pixels; None where the checkpoint says nothing."""
    config = found.config
    text, vision = config.text_config, config.vision_config
    picture = found.read_json("preprocessor_config.json")
    limits = picture.get("size") or {}
    tokenizer = found.read_json("tokenizer.json").get("model", {})
    window = vision.window_size
    return {
        "folder": str(found.folder),
        "model_type": config.model_type,
        "class": ", ".join(config.architectures or ()) or None,
        "parameters": found.parameters,
        "parameters_by_part": found.parameters_by_part,
        "dtype": config.dtype,
        "dtypes_of_files": found.dtypes,
        "quantization": None if found.quantization is None else _settings(found.quantization),
        "decoder": {
            "layers": text.num_hidden_layers,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "kv_heads": text.num_key_value_heads,
            "mlp": text.intermediate_size,
        },
        "vision_tower": {
            "blocks": vision.depth,
            "width": vision.width,
            "heads": vision.num_heads,
            "mlp": vision.mlp_width,
            "window": window,
            "full_attention_blocks": list(vision.fullatt_block_indexes) if window is not None else None,
        },
        "vocabulary": {"rows": text.vocab_size, "tokens": len(tokenizer.get("vocab", ())) or None},
        "tied_head": config.tie_word_embeddings,
        "context": text.max_position_embeddings,
        "min_pixels": picture.get("min_pixels", limits.get("shortest_edge")),
        "max_pixels": picture.get("max_pixels", limits.get("longest_edge")),
        "chat_template": found.chat_template,
        "generation": found.read_json("generation_config.json") or None,
        "files": found.files,
    }


def quantized(found: ModelFiles, word: str) -> dict[str, Any]:
    """What quantizing to `word` makes of the weights: bytes as they are in the model's dtype, and after."""
    from qwenvl.checkpoint.names import EMBEDDING, HEAD, module_name
    from qwenvl.quantization import choose, options_of, packed_bytes

    shapes = {module_name(tensor.name) or "": tensor.shape for tensor in found.tensors}
    size = 4 if (found.config.dtype or next(iter(found.dtypes))) in ("float32", "F32") else 2
    before = size * sum(map(math.prod, shapes.values()))
    tied = {HEAD: shapes[EMBEDDING]} if found.config.tie_word_embeddings else {}
    schemes = choose({**shapes, **tied}, options_of(word))
    kept = sum(size * math.prod(shape) for name, shape in shapes.items() if name.removesuffix(".weight") not in schemes)
    packed = sum(packed_bytes({**shapes, **tied}[f"{name}.weight"], scheme) for name, scheme in schemes.items())
    return {"to": word, "weight_bytes": before, "quantized_bytes": kept + packed}


def _settings(quantization: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of quantized weights, without the lists of modules."""
    return {name: value for name, value in quantization.items() if isinstance(value, str | int | bool)}


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_plain(one)}" for name, one in value.items())
    return str(value)
