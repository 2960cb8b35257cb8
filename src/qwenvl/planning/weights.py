"""A checkpoint's headers -> bytes of its weights in the precision they will have. No weights are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenvl.checkpoint.formats import stored_tensors
from qwenvl.checkpoint.load import UNPACKED, auto_dtype
from qwenvl.checkpoint.names import DECODER, EMBEDDING, HEAD, TOWER
from qwenvl.checkpoint.stored import Stored
from qwenvl.planning.memory import Config
from qwenvl.quantization import INT4, INT8, QuantizeOptions, Scheme, choose, options_of, packed_bytes

ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
SAME = 0.75  # bytes a weight: what is packed in fewer is read as int4, else as int8


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights. dtype: of activations, and of weights that are not packed. total: all of them, a tied
    head once, or twice where it has a packed copy. touched: those that answering reads; of an embedding that serves
    lookups alone, hardly anything while it stays mapped. layers, head: what a decode step reads. text, tower,
    head_scheme: how the linears are packed, None = not."""

    dtype: str
    total: int
    touched: int
    layers: int
    head: int
    text: Scheme | None = None
    tower: Scheme | None = None
    head_scheme: Scheme | None = None

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]


def weights_of(folder: Path, config: Config, dtype: str = "auto", quantize: str | None = None) -> Weights:
    """The weights in `folder` as they will be in memory. dtype, quantize: as for loading. ValueError for words that are
    not known, damaged files, and for quantizing what is quantized."""
    stored = {one.name: one for one in stored_tensors(folder) if one.name is not None}
    return count(list(stored.values()), config, dtype, quantize)


def count(stored: Sequence[Stored], config: Config, dtype: str = "auto", quantize: str | None = None) -> Weights:
    """weights_of() for tensors whose headers are read already."""
    tensors = {one.name: one for one in stored if one.name is not None}
    if config.tie_word_embeddings and (quantize == UNPACKED or not (HEAD in tensors and tensors[HEAD].is_packed)):
        tensors.pop(HEAD, None)
    packed = {} if quantize == UNPACKED else {name: one for name, one in tensors.items() if one.is_packed}
    options = None if quantize in (None, UNPACKED) else options_of(str(quantize))
    if options is not None and packed:
        raise ValueError(f"the checkpoint is quantized already: leave quantize={quantize!r} out")
    auto = auto_dtype(config.dtype, stored, bool(packed)) if dtype == "auto" else dtype
    chosen = _named(str(auto).removeprefix("torch."))
    shapes = {name: one.shape for name, one in tensors.items()}
    tied = {HEAD: shapes[EMBEDDING]} if config.tie_word_embeddings and EMBEDDING in shapes else {}
    sizes = {name: ITEMSIZE[chosen] * math.prod(shape) for name, shape in shapes.items()}
    sizes |= {name: one.nbytes for name, one in packed.items()}
    sizes |= _to_pack({**shapes, **tied}, options)
    embedding = tensors.get(EMBEDDING)
    mapped = embedding is not None and str(embedding.dtype).endswith(chosen) and EMBEDDING not in packed
    only_lookups = mapped and not config.tie_word_embeddings
    head = sizes.get(HEAD, sizes.get(EMBEDDING, 0))
    return Weights(
        chosen,
        total=sum(sizes.values()),
        touched=sum(sizes.values()) - (sizes[EMBEDDING] if only_lookups else 0),
        layers=sum(size for name, size in sizes.items() if name.startswith(f"{DECODER}layers.")),
        head=head,
        text=_scheme(packed, sizes, f"{DECODER}layers.", options.text if options else None),
        tower=_scheme(packed, sizes, f"{TOWER}blocks.", options.tower if options else None),
        head_scheme=_scheme(packed, sizes, "lm_head.", options.head if options else None),
    )


def _named(wanted: str) -> str:
    """The name of a dtype. ValueError for one that is not known."""
    if wanted not in ITEMSIZE:
        raise ValueError(f"dtype={wanted!r} is not known: expected auto or one of {', '.join(ITEMSIZE)}")
    return wanted


def _to_pack(shapes: dict[str, tuple[int, ...]], options: QuantizeOptions | None) -> dict[str, int]:
    """Bytes of what is packed while it is loaded, by name."""
    schemes = {} if options is None else choose(shapes, options)
    return {f"{name}.weight": packed_bytes(shapes[f"{name}.weight"], scheme) for name, scheme in schemes.items()}


def _scheme(stored: dict[str, Stored], sizes: dict[str, int], beginning: str, chosen: Scheme | None) -> Scheme | None:
    """How the linears of a part are packed: as chosen, or as the files have most of them."""
    packed = [one for name, one in stored.items() if name.startswith(beginning)]
    if chosen is not None or not packed:
        return chosen
    bytes_each = sum(one.nbytes for one in packed) / sum(math.prod(one.shape) for one in packed)
    return INT4 if bytes_each < SAME else INT8
