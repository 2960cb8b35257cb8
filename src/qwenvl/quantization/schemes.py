"""What is packed, and how: a word or options -> a scheme for every linear, chosen by the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qwenvl.kernels.quantized import PANEL

Kind = Literal["int8", "int4"]
TEXT, TOWER, HEAD = "text", "tower", "head"
_PARTS = {
    "model.language_model.layers.": TEXT,
    "model.visual.blocks.": TOWER,
    "model.visual.merger.": TOWER,
    "lm_head.": HEAD,
}


@dataclass(frozen=True)
class Scheme:
    """How one linear is packed: the kind, and how many weights of a row share a scale."""

    kind: Kind
    group: int

    def __str__(self) -> str:
        return f"{self.kind} group {self.group}"


INT8, INT4 = Scheme("int8", 128), Scheme("int4", 32)


@dataclass(frozen=True)
class QuantizeOptions:
    """The scheme of every part of a model; None leaves the part as it is."""

    text: Scheme | None
    tower: Scheme | None = INT8
    head: Scheme | None = INT8


WORDS = {"int8": QuantizeOptions(INT8), "int4": QuantizeOptions(INT4, head=INT4)}


def options_of(quantize: str | QuantizeOptions) -> QuantizeOptions:
    """The options behind a word: "int8", or "int4" (the text layers and the head; the tower in int8). ValueError for
    another word."""
    if isinstance(quantize, QuantizeOptions):
        return quantize
    if quantize not in WORDS:
        raise ValueError(f"quantize={quantize!r} is not known: expected one of {', '.join(WORDS)}, or QuantizeOptions")
    return WORDS[quantize]


def choose(shapes: Mapping[str, Sequence[int]], options: QuantizeOptions) -> dict[str, Scheme]:
    """Module name -> scheme, of every linear that `options` packs.

    shapes: of the tensors of a model, under the names they have in the whole one
    ("model.visual.blocks.0.attn.qkv.weight"). Matrices in the parts above are weights of linears.
    """
    chosen = {}
    for name, shape in shapes.items():
        part = next((part for beginning, part in _PARTS.items() if name.startswith(beginning)), None)
        scheme = None if part is None else getattr(options, part)
        if scheme is not None and name.endswith(".weight") and len(shape) == 2:
            chosen[name.removesuffix(".weight")] = scheme
    return chosen


def packed_bytes(shape: Sequence[int], scheme: Scheme) -> int:
    """PackedWeight.nbytes of a weight [out, in], without packing one."""
    rows, groups = -(-shape[0] // PANEL) * PANEL, -(-shape[1] // scheme.group)
    # A scale in float16 for each group; with 4 bits, a minimum too.
    return rows * groups * (scheme.group + 2 if scheme.kind == "int8" else scheme.group // 2 + 4)
