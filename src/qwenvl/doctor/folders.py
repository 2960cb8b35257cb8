"""What config.json and generation_config.json say, what they leave out, and whether that makes sense."""

from __future__ import annotations

import json
from typing import Any

from qwenvl.doctor.case import Case
from qwenvl.doctor.finding import Notes, Outcome, Unavailable, some

GENERATION = "generation_config.json"
# Fields that some published files leave out, whose default is that of all published models.
LEFT_OUT = ("depth", "num_heads", "patch_size", "spatial_merge_size", "temporal_patch_size", "in_channels",
            "hidden_act", "window_size", "fullatt_block_indexes")  # fmt: skip
# Fields whose class default fits no published model, or one size only: a file has to say them.
TOWER = {
    "qwen2_5_vl": ("hidden_size", "intermediate_size", "tokens_per_second"),
    "qwen2_vl": ("embed_dim", "mlp_ratio"),
}
TEXT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "vocab_size", "rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings")  # fmt: skip
NOTES = ("transformers_version", "chat_format")  # what other programs write for themselves
WRITE = "write what is missing into config.json, as the model's publisher has it"


def configuration(case: Case) -> Outcome:
    """config.json is understood; says of which vintage it is and what was filled in."""
    raw, config, notes = case.raw_config, case.load_config(), Notes()
    nested = isinstance(raw.get("text_config"), dict)
    text = {**raw, **(raw["text_config"] if nested else {})}
    tower = raw.get("vision_config")
    rope = next((f"{name} {_words(text[name])}" for name in ("rope_scaling", "rope_parameters") if text.get(name)), "")
    if not isinstance(tower, dict):
        notes.warn("config.json has no vision_config: the whole tower is built by class defaults", WRITE)
        tower = {}
    said = set(tower) | ({"in_channels"} if "in_chans" in tower else set())
    trap = [name for name in TOWER[config.model_type] if name not in said]
    if tower and "hidden_size" in trap:
        notes.fault(
            f"vision_config says no hidden_size: the class default {config.vision_config.width} is no published "
            "tower's width (1280)",
            WRITE,
        )
    elif tower and trap:
        filled = [f"{name}={getattr(config.vision_config, name)}" for name in trap]
        notes.warn(f"vision_config leaves out {', '.join(filled)} (class defaults)", WRITE)
    usual = [name for name in LEFT_OUT if name not in said and hasattr(config.vision_config, name)]
    if usual and tower:
        filled = [f"{name}={getattr(config.vision_config, name)}" for name in usual]
        notes.note(f"filled in as published models have it: {some(filled, 9)}")
    rotary = text.get("rope_parameters")
    known = set(text) | (set(rotary) if isinstance(rotary, dict) else set())
    unsaid = [name for name in TEXT if name not in known]
    if unsaid:
        notes.warn(f"config.json leaves out {', '.join(unsaid)} (class defaults)", WRITE)
    if not rope:
        notes.fault(
            "config.json has no rope_scaling: the sections of the rotary positions are a guess",
            'write "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, or as the publisher has it',
        )
    layout = "text_config inside" if nested else "flat, as published"
    quantized = " quantized," if "quantization_config" in raw else ""
    return notes.outcome(f"{config.model_type},{quantized} {layout}, {rope}")


def _words(value: Any) -> str:
    return json.dumps(value, separators=(", ", ": ")) if isinstance(value, dict) else repr(value)


def generation(case: Case) -> Outcome:
    """generation_config.json can be honoured, and the ids in it end an answer."""
    from qwenvl.checkpoint.generation_config import NOT_SUPPORTED, OPTION_NAMES, GenerationConfig

    path = case.path / GENERATION
    if not path.is_file():
        raise Unavailable(f"there is no {GENERATION}")
    settings, notes = GenerationConfig.from_file(path), Notes()
    idle = [name for name in settings.extra if not name.startswith("_") and name not in NOTES]
    if idle:
        notes.warn(f"{some(idle)} in {GENERATION} has no effect here", "take it out, or set it where it belongs")
    refused = [f"{n}={getattr(settings, n)!r}" for n, fine in NOT_SUPPORTED.items() if getattr(settings, n) not in fine]
    if refused:
        notes.fault(f"{GENERATION} asks for {some(refused)}, which generate() refuses", "take it out")
    _check_ends(case, settings.eos_token_id, notes)
    _check_sampling(settings, notes)
    said = [f"{n}={v!r}" for n, v in settings.to_dict().items() if n in OPTION_NAMES]
    return notes.outcome(", ".join(said) or "it says nothing")


def _check_ends(case: Case, given: Any, notes: Notes) -> None:
    """eos ids: whole numbers of the vocabulary, <|im_end|> among them."""
    ids = given if isinstance(given, list | tuple) else [] if given is None else [given]
    rows = case.config.text_config.vocab_size
    wrong = [one for one in ids if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < rows]
    advice = f"set eos_token_id in {GENERATION} to the ids of <|im_end|> and <|endoftext|>"
    if wrong:
        notes.fault(f"eos_token_id {some(wrong)} is not in the vocabulary of {rows} rows", advice)
    if not ids:
        notes.warn(f"{GENERATION} has no eos_token_id: answers end as config.json says", advice)
        return
    end = case.processor.tokenizer.backend.token_to_id("<|im_end|>")
    if end is not None and end not in ids:
        notes.fault(f"eos_token_id {ids} lacks {end}, the id of <|im_end|>: answers do not end", advice)


def _check_sampling(settings: Any, notes: Notes) -> None:
    """Numbers within their ranges."""
    ranges = {"temperature": (0, 10), "top_p": (1e-9, 1), "min_p": (0, 1), "repetition_penalty": (0.1, 10)}
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not (isinstance(value, int | float) and low <= value <= high):
            notes.fault(f"{name}={value!r} in {GENERATION} makes no sense: expected {low:g} to {high:g}", "correct it")
    if settings.do_sample and settings.temperature == 0:
        notes.warn(f"{GENERATION} samples (do_sample) at temperature 0, which is greedy", "set do_sample to false")
