"""Tensors of a pair of GGUF files, for the loader: plain in any dtype, or packed for the kernels as they are.

Plain: exactly the weights that the blocks stand for (the values of the library `gguf`, to the last bit), computed some
rows at a time. Packed, w = scale * (q - zero) with scale and zero in float16:

    Q4_0, Q8_0, Q5_0, IQ4_NL        exact: the integers and the scales are the file's own
    Q6_K, Q3_K, IQ4_XS              the scale of a group is a product, rounded to float16
    Q4_K, Q5_K, Q2_K, Q4_1, Q5_1    so is its zero, which the file has as a weight, not in steps of the scale

What has 4 bits or less keeps 4, everything else gets 8, in the file's own groups of 16 or 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qwenvl.checkpoint.gguf_blocks import FOUR_BITS, GROUPS, UNPACK, kernel_integers, unpack
from qwenvl.checkpoint.stored import CheckpointError, Stored
from qwenvl.gguf_folder import GgufTensor, Target, pair_of, targets
from qwenvl.gguf_folder.header import TYPES
from qwenvl.kernels.quantized import PANEL, Kind, PackedWeight

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CHUNK = 2**19  # weights unpacked at a time
PACKED = UNPACK.keys() - {"MXFP4"}  # whose scales reach beyond float16
BLOCKS = {name: (weights, nbytes) for name, weights, nbytes in TYPES.values()}


def gguf_tensors(folder: Path) -> list[Stored] | None:
    """Every tensor of the files that a folder was made of; None for a folder of another kind. ValueError for files
    that are gone, and CheckpointError for a type of weights that cannot be read here."""
    pair = pair_of(folder)
    if pair is None:
        return None
    made = targets(*pair)
    found = [GgufWeight(target) for target in made]
    embedding = next((one for one in made if one.key == EMBEDDING), None)
    if embedding is not None and all(one.key != HEAD for one in made):
        head = GgufWeight(replace(embedding, key=HEAD))
        found += [head] if head.is_packed else []  # of a tied model: the product takes it packed, the look-up plain
    for kind, path in {piece.tensor.kind: piece.tensor.path for one in found for piece in one.pieces}.items():
        _weights_of(kind, path)
    return list(found)


class GgufWeight(Stored):
    """A tensor of the model, from one or several pieces of GGUF tensors."""

    def __init__(self, target: Target) -> None:
        self.key, self.shape, self.nbytes = target.key, target.shape, target.nbytes
        self.pieces, self.joined, self.path = target.pieces, target.joined, target.pieces[0].tensor.path
        kinds = {piece.tensor.kind for piece in self.pieces}
        self.kind = target.kind
        self.dtype = FLOATS.get(self.kind, torch.float32) if len(kinds) == 1 else torch.float32
        linear = len(self.shape) == 2 and self.key != EMBEDDING
        self.is_packed = linear and len(kinds) == 1 and self.kind in PACKED
        self.form: tuple[Kind, int] = ("int4" if self.kind in FOUR_BITS else "int8", GROUPS.get(self.kind, PANEL))

    def plain(self, dtype: torch.dtype) -> Tensor:
        return self._computed(dtype, torch.device("cpu"))

    def load(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """On the CPU in the file's own dtype it stays mapped, privately: writing to it does not change the file."""
        [piece, *more] = self.pieces
        whole = not more and piece.stop - piece.first == piece.tensor.shape[0] and self.joined == "rows"
        if not whole or device.type != "cpu" or FLOATS.get(self.kind) != dtype:
            return self._computed(dtype, device)
        mapped = np.memmap(piece.tensor.path, np.uint8, "c", piece.tensor.start, (piece.tensor.nbytes,))
        return torch.from_numpy(mapped).view(dtype).view(self.shape)

    def packed(self) -> PackedWeight:
        assert self.is_packed, self.key
        try:
            return self._packed()
        except ValueError as error:
            raise CheckpointError(f"{self.key} of {self.path} ({self.kind}): {error}") from error

    def _computed(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        out, row = torch.empty(self.shape, dtype=dtype, device=device), 0
        for place, piece in enumerate(self.pieces):
            target, rows = out[:, :, place] if self.joined == "times" else out[row:], piece.stop - piece.first
            weights, step = _weights_of(piece.tensor.kind, self.path), max(CHUNK // math.prod(self.shape[1:]), 1)
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                blocks = _blocks(piece.tensor, piece.first + start, piece.first + stop)
                target[start:stop] = weights(blocks).view(stop - start, *piece.tensor.shape[1:])
            row += rows
        return out

    def _packed(self) -> PackedWeight:
        """Some panels at a time, into tensors that are there from the start."""
        (N, K), (kind, group) = self.shape, self.form
        step = max(CHUNK // K // PANEL, 1) * PANEL
        whole: list[Tensor | None] = []
        for start in range(0, N, step):
            q, scales, zeros = self._integers(start, min(start + step, N))
            part = PackedWeight.from_values(q, scales, zeros, kind=kind, group=group)
            tensors = part.data, part.scales, part.zeros
            if not start:
                whole = [None if x is None else x.new_empty(-(-N // PANEL), *x.shape[1:]) for x in tensors]
            for target, piece in zip(whole, tensors, strict=True):
                if target is not None and piece is not None:
                    target[start // PANEL : start // PANEL + len(piece)] = piece
        data, packed_scales, packed_zeros = whole
        assert data is not None
        assert packed_scales is not None
        return PackedWeight(kind, group, N, K, data, packed_scales, packed_zeros)

    def _integers(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows start..stop of all pieces together: q uint8 [N, K], scales and zeros float16 [N, groups]."""
        parts, row = [], 0
        for piece in self.pieces:
            first, last = max(start - row, 0) + piece.first, min(stop - row + piece.first, piece.stop)
            if first < last:
                blocks = unpack(self.kind, _blocks(piece.tensor, first, last))
                parts.append(kernel_integers(self.kind, blocks))
            row += piece.stop - piece.first
        q, scales, zeros = (
            None if x[0] is None else torch.cat(x).view(stop - start, -1) for x in zip(*parts, strict=True)
        )
        assert q is not None
        assert scales is not None
        return q, scales, zeros


def _blocks(tensor: GgufTensor, first: int, last: int) -> Tensor:
    """Rows first..last as the file has them: uint8 [blocks, bytes of a block]. They are read, not mapped, so that
    nothing of the file counts as ours afterwards."""
    size = tensor.row_bytes
    data = np.fromfile(tensor.path, np.uint8, (last - first) * size, offset=tensor.start + first * size)
    if data.size != (last - first) * size:
        raise CheckpointError(f"{tensor.path} ends within {tensor.name}: it was changed; fetch it again")
    return torch.from_numpy(data).view(-1, BLOCKS[tensor.kind][1])


def _weights_of(kind: str, path: Path) -> Callable[[Tensor], Tensor]:
    """What makes weights of blocks [B, bytes of a block]. CheckpointError for types that nothing here can read."""
    if kind in FLOATS:
        return lambda blocks: blocks.view(FLOATS[kind])
    if kind in UNPACK:
        return lambda blocks: unpack(kind, blocks).weights()
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError as error:
        raise CheckpointError(
            f"{path} has {kind} weights, which the library gguf reads: pip install 'qwenvl[gguf]'"
        ) from error
    try:
        quants.dequantize(np.zeros((1, BLOCKS[kind][1]), np.uint8), GGMLQuantizationType[kind])
    except (NotImplementedError, KeyError) as error:
        raise CheckpointError(
            f"{path} has {kind} weights, which cannot be read here: take a file of another quantization"
        ) from error
    return lambda blocks: torch.from_numpy(quants.dequantize(blocks.numpy(), GGMLQuantizationType[kind]))
