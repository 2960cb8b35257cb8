"""Names of tensors in files <-> names in our modules.

Published checkpoints, and files saved by transformers before 4.52 and since 5, have `visual.*` for the tower,
`model.*` for the decoder and `lm_head.weight`. Those saved in between have `model.visual.*` and
`model.language_model.*`, which are our module names. Repacks also put `language_model.` in front of the decoder.

Example: visual.blocks.0.norm1.weight <-> model.visual.blocks.0.norm1.weight;
model.layers.0.mlp.up_proj.weight <-> model.language_model.layers.0.mlp.up_proj.weight.
"""

from __future__ import annotations

from typing import Literal

Layout = Literal["modules", "original"]

TOWER, DECODER, HEAD, EMBEDDING = (
    "model.visual.",
    "model.language_model.",
    "lm_head.weight",
    "model.language_model.embed_tokens.weight",
)
# First match wins: longer beginnings stand before shorter ones.
_BEGINNINGS = (
    (TOWER, TOWER),
    (DECODER, DECODER),
    ("language_model.model.", DECODER),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.", DECODER),
    ("visual.", TOWER),
    ("model.", DECODER),
)


def module_name(key: str) -> str | None:
    """The module's name for the key of a file of any layout; None for what is computed, not stored."""
    if key.endswith(("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")):
        return None
    for beginning, ours in _BEGINNINGS:
        if key.startswith(beginning):
            return ours + key[len(beginning) :]
    return key


def file_key(name: str, layout: Layout) -> str:
    """The key that a file of `layout` has for the module's name; "modules" is the name itself."""
    if layout == "modules":
        return name
    if layout != "original":
        raise ValueError(f"layout={layout!r} is not known: expected 'modules' or 'original'")
    if name.startswith(TOWER):
        return "visual." + name[len(TOWER) :]
    if name.startswith(DECODER):
        return "model." + name[len(DECODER) :]
    return name
