"""`qwenvl info MODEL`: what a checkpoint is, from its headers. No weights are loaded."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from qwenvl.cli.inputs import JsonOption, find_model
from qwenvl.cli.model_files import ModelFiles


def info(
    model: Annotated[str, typer.Argument(help="demo, a checkpoint's folder, or its name on the hub.")] = "demo",
    as_json: JsonOption = False,
) -> None:
    """Show configuration, parameters, vocabulary, dtype, limits and files of a checkpoint."""
    report = describe(find_model(model))
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    files = report.pop("files")
    for name, value in report.items():
        print(f"{name.replace('_', ' '):<20}{_plain(value)}")
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
