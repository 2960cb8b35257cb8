"""What is packed, and how: a word or options -> a scheme for every linear, chosen by the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
_ROOTS = ("model", "language_model", "visual", "lm_head")  # of the whole model, whichever part is loaded


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
    """The scheme of every part of a model; None leaves the part as it is.

    exceptions: schemes, or None, of modules that have these words in their dotted names: {"v_proj": INT8,
    "visual.merger": None, "layers.0": INT8}; the last one that fits a module decides. whole_groups: linears of the
    tower whose inputs do not fill whole groups are left as they are.
    """

    text: Scheme | None
    tower: Scheme | None = INT8
    head: Scheme | None = INT8
    exceptions: Mapping[str, Scheme | None] = field(default_factory=dict, hash=False)
    whole_groups: bool = False


# With these in 8 bits a layer is a few hundredths larger, and loses about half as much (docs/quantization.md).
WORDS = {
    "int8": QuantizeOptions(INT8),
    "int4": QuantizeOptions(INT4, head=INT4, exceptions={"k_proj": INT8, "v_proj": INT8, "o_proj": INT8}),
}


def options_of(quantize: str | QuantizeOptions) -> QuantizeOptions:
    """The options behind a word: "int8", or "int4" (the text layers and the head; keys, values, o_proj and the
    tower in int8). ValueError for another word."""
    if isinstance(quantize, QuantizeOptions):
        return quantize
    if quantize not in WORDS:
        raise ValueError(f"quantize={quantize!r} is not known: expected one of {', '.join(WORDS)}, or QuantizeOptions")
    return WORDS[quantize]


def part_of(name: str) -> str | None:
    """The part that a tensor or module belongs to, by its name in the whole model; None for what is never packed."""
    return next((part for beginning, part in _PARTS.items() if f"{name}.".startswith(beginning)), None)


def choose(shapes: Mapping[str, Sequence[int]], options: QuantizeOptions) -> dict[str, Scheme]:
    """Module name -> scheme, of every linear that `options` packs.

    shapes: of the tensors of a model, under the names they have in the whole one
    ("model.visual.blocks.0.attn.qkv.weight"). Matrices in the parts above are weights of linears. ValueError for an
    exception that no name has in it.
    """
    for words in options.exceptions:
        if words.split(".")[0] not in _ROOTS and not any(_has(name, words) for name in shapes):
            raise ValueError(
                f"{words!r} is in no name of the model's modules: expected such as lm_head, visual, v_proj"
            )
    chosen = {}
    for name, shape in shapes.items():
        part = part_of(name)
        scheme = None if part is None else getattr(options, part)
        for words, other in options.exceptions.items():
            scheme = other if _has(name, words) else scheme
        ragged = options.whole_groups and part == TOWER and scheme is not None and shape[-1] % scheme.group
        if part and scheme is not None and name.endswith(".weight") and len(shape) == 2 and not ragged:
            chosen[name.removesuffix(".weight")] = scheme
    return chosen


def _has(name: str, words: str) -> bool:
    return f".{words}." in f".{name}."


def packed_bytes(shape: Sequence[int], scheme: Scheme) -> int:
    """PackedWeight.nbytes of a weight [out, in], without packing one."""
    rows, groups = -(-shape[0] // PANEL) * PANEL, -(-shape[1] // scheme.group)
    # A scale in float16 for each group; with 4 bits, a zero too.
    return rows * groups * (scheme.group + 2 if scheme.kind == "int8" else scheme.group // 2 + 4)
