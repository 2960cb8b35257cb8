"""Weights that others quantized to integers, whatever the layout of their files.

Every layout (awq.py, gptq.py, compressed.py) says the same in the end: w = scale * (q - zero), with one scale and one
zero for a group of neighbouring inputs. A layout unpacks some rows at a time to `Integers`; from there the weight is
either computed in a dtype or packed for the kernels, and neither the integers nor the file's words are ever there as a
whole beside the result.

Legend: N outputs, K inputs, G groups of a row.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.checkpoint.stored import COPY_BYTES, CheckpointError, Entry, Stored
from qwenvl.kernels.quantized import GROUP_STEP, PANEL, PackedWeight, to_halves

CHUNK = 2**21  # weights unpacked at a time
ROWS = PANEL  # a chunk starts at a multiple of it: the words of all layouts hold whole rows then


@dataclass(frozen=True)
class Integers:
    """Rows of a weight: w = scale * (q - zero).

    q: uint8 [N, K], 0..15 or 0..255 by `bits`. scales, zeros: floating point [N, G], one of each for `group`
    neighbouring columns of q; the last group may be shorter. zeros is None where all are in the middle, 8 or 128.
    order: int64 [K], column i of q belongs to the input order[i]; None where that is i.
    """

    bits: int
    group: int
    q: Tensor
    scales: Tensor
    zeros: Tensor | None
    order: Tensor | None = None

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, K], its columns in the order of the inputs. In float32 it is exact where a scale has at most
        16 significant bits; other dtypes are rounded from there."""
        n, k = self.q.shape
        full = F.pad(self.q, (0, -k % self.group)).view(n, -1, self.group).float()
        zeros = float(middle(self.bits)) if self.zeros is None else self.zeros[..., None].float()
        w = full.sub_(zeros).mul_(self.scales[..., None].float()).view(n, -1)[:, :k]
        if self.order is None:
            return w.to(dtype)
        out = torch.empty(n, k, dtype=dtype)
        out[:, self.order] = w.to(dtype)
        return out

    def pack(self, group: int) -> PackedWeight:
        """The same for the kernels, in groups of `group`, as kernel_group says."""
        k, zeros = self.q.shape[1], self.zeros
        if zeros is None and self.bits == 4:
            zeros = torch.full_like(self.scales, middle(4))
        groups = -(-k // group)
        times = groups if self.group >= k else self.group // group
        scales = self.scales.repeat_interleave(times, 1)[:, :groups]
        zeros = None if zeros is None else zeros.repeat_interleave(times, 1)[:, :groups]
        return PackedWeight.from_values(
            self.q, scales, zeros, kind="int4" if self.bits == 4 else "int8", group=group, order=self.order
        )


def middle(bits: int) -> int:
    """The zero of symmetric integers."""
    return 1 << (bits - 1)


def unless_middle(zeros: Tensor, bits: int) -> Tensor | None:
    """Zeros as Integers takes them: float16, or None where all are in the middle."""
    return None if bool((zeros == middle(bits)).all()) else zeros.to(torch.float16)


def kernel_group(group: int, k: int) -> int | None:
    """The length of the kernels' groups that hold groups of `group` inputs, of K = k, exactly: of all that divide it
    the longest up to 128, as the kernels round the inputs by the same groups. None where there is none."""
    whole = group >= k  # one scale for the row: the end of its last part may be empty
    divides = [size for size in range(128, 0, -GROUP_STEP) if (k if whole else group) % size == 0]
    return divides[0] if divides else 128 if whole else None


class IntegerWeight(Stored):
    """The weight of a linear as integers in several tensors of a file.

    module: of the linear, as the file calls it. parts: its tensors, by the ends of their names. A layout checks their
    shapes when it is built, from the headers, and their values when they are read.
    """

    def __init__(self, module: str, parts: dict[str, Entry], main: str, shape: tuple[int, int]) -> None:
        self.module, self.parts = module, parts
        self.key, self.path, self.shape = f"{module}.weight", parts[main].file.path, shape
        self.nbytes = sum(entry.nbytes for entry in parts.values())

    def take(self, bits: int, group: int, scales: str) -> None:
        """What the layout found: bits, the length of a group (-1: the whole row), and which part has the scales."""
        self.bits, self.group = bits, self.shape[1] if group == -1 else group
        if self.group < 1:
            raise CheckpointError(f"{self.key} of {self.path}: groups of {group} inputs; expected -1, or 1 and more")
        self.groups = -(-self.shape[1] // self.group)  # of a row; the last may be shorter
        self.dtype = self.part(scales).dtype
        self.kernel_group = kernel_group(self.group, self.shape[1])
        self.is_packed = self.kernel_group is not None

    @abstractmethod
    def integers(self) -> Callable[[int, int], Tensor]:
        """How to get q, uint8 [rows, K] in the order of the file, for rows start..stop; start is a multiple of ROWS."""

    @abstractmethod
    def scales(self) -> Tensor:
        """[N, G], in the file's dtype and finite. This and the next two raise CheckpointError for values that cannot
        be."""

    @abstractmethod
    def zeros(self) -> Tensor | None:
        """As Integers has them, [N, G]."""

    def order(self) -> Tensor | None:
        """As Integers has it."""
        return None

    def plain(self, dtype: torch.dtype) -> Tensor:
        out = torch.empty(self.shape, dtype=dtype)
        for start, rows in self._chunks(self.scales()):
            out[start : start + len(rows.q)] = rows.dequantize(dtype)
        return out

    def packed(self) -> PackedWeight:
        assert self.kernel_group is not None, self.key
        halves, exponent = to_halves(self.scales())  # of all rows: they share the exponent
        whole: PackedWeight | None = None
        for start, rows in self._chunks(halves):
            piece = rows.pack(self.kernel_group)
            if whole is None:
                whole = _empty_like(piece, self.shape[0], exponent)
            for target, part in ((whole.data, piece.data), (whole.scales, piece.scales), (whole.zeros, piece.zeros)):
                if target is not None and part is not None:
                    target[start // PANEL : start // PANEL + len(part)] = part
        assert whole is not None
        return whole

    def _chunks(self, scales: Tensor) -> Iterator[tuple[int, Integers]]:
        """Some rows at a time, and where they start."""
        zeros, order, read, (n, k) = self.zeros(), self.order(), self.integers(), self.shape
        step = max(CHUNK // k // ROWS, 1) * ROWS
        for start in range(0, n, step):
            span = slice(start, min(start + step, n))
            q = read(span.start, span.stop)
            q = q if order is None else q.index_select(1, order)
            yield start, Integers(self.bits, self.group, q, scales[span], None if zeros is None else zeros[span], order)

    def part(self, leaf: str) -> Entry:
        """A part that has to be there, or CheckpointError."""
        if leaf not in self.parts:
            raise CheckpointError(
                f"{self.path.parent} has no {self.module}.{leaf}, which belongs to {', '.join(self.parts)}: fetch the "
                "checkpoint again"
            )
        return self.parts[leaf]

    def expect(self, leaf: str, shape: tuple[int, ...], *kinds: str) -> None:
        """CheckpointError unless the part `leaf` is there, with this shape and one of these kinds."""
        entry = self.part(leaf)
        if entry.shape != shape or entry.kind not in kinds:
            raise CheckpointError(
                f"{entry.key} of {entry.file.path} is {entry.kind} {list(entry.shape)}: expected "
                f"{' or '.join(kinds)} {list(shape)}, as {self.bits} bits in groups of {self.group} need for a weight "
                f"of {list(self.shape)}. Does quantization_config in config.json belong to these files?"
            )

    def finite(self, leaf: str) -> Tensor:
        """The tensor of a part. CheckpointError for values that are not finite."""
        values = self.parts[leaf].alone()
        if not values.float().isfinite().all():
            raise CheckpointError(
                f"{self.parts[leaf].key} of {self.path} has values that are not finite: fetch the checkpoint again"
            )
        return values


def _empty_like(piece: PackedWeight, n: int, exponent: int) -> PackedWeight:
    """A packed weight of n rows, to be filled with what a piece of it is like."""
    data, scales, zeros = (
        None if x is None else x.new_empty(-(-n // PANEL), *x.shape[1:])
        for x in (piece.data, piece.scales, piece.zeros)
    )
    assert data is not None
    assert scales is not None
    return replace(piece, out_features=n, data=data, scales=scales, zeros=zeros, exponent=exponent)


def matrix(entry: Entry) -> tuple[int, int]:
    """The shape of a tensor that has to be a matrix. CheckpointError for one that is none, or is empty."""
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise CheckpointError(f"{entry.key} of {entry.file.path} has the shape {list(entry.shape)}: expected a matrix")
    return entry.shape[0], entry.shape[1]


def octets(words: Tensor) -> Tensor:
    """int32 [..., W], values of 8 bits, the lowest first -> uint8 [..., 4 W]."""
    flat = words.reshape(-1)  # where a size is 1, "contiguous" says nothing of the stride that view() asks for
    return flat.view(torch.uint8).view(*words.shape[:-1], -1)


def nibbles(words: Tensor) -> Tensor:
    """int32 [..., W], values of 4 bits, the lowest first -> uint8 [..., 8 W]."""
    data = octets(words)
    return torch.stack((data & 15, data >> 4), -1).flatten(-2)


def unpacked(words: Tensor, bits: int) -> Tensor:
    """int32 [..., W] -> uint8 [..., W * 32 / bits], for 4 and 8 bits, the lowest first."""
    return nibbles(words) if bits == 4 else octets(words)


def transposed(entry: Entry) -> Tensor:
    """A matrix of a file, turned, in memory of its own. It is read a piece at a time: what was read does not stay."""
    rows, columns = entry.shape
    out = torch.empty(columns, rows, dtype=entry.dtype)
    step = max(1, rows * COPY_BYTES // max(1, entry.nbytes))
    for start in range(0, rows, step):
        out[:, start : start + step] = entry.file.rows(entry.key, start, min(start + step, rows)).t()
    return out
