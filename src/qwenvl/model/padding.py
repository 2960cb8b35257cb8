"""A padded batch [B, S] as the documents have it <-> the packed tokens [T] that the model runs on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qwenvl.types import SeqInfo

if TYPE_CHECKING:
    from qwenvl.model.past import PastKeyValues


@dataclass(frozen=True)
class Padded:
    """Where the tokens of a padded batch lie.

    mask: bool [B, S], True = a token, False = padding. seq: the sequences in packed order, one a row (several where
    rows hold packed documents). seen: bool [B, C], the columns of the cache that hold tokens; C = 0 without one.
    Example: mask [[0, 1, 1], [1, 1, 1]] packs to T = 5 tokens, the first two of them from row 0.
    """

    mask: Tensor
    seq: SeqInfo
    seen: Tensor

    def pack(self, x: Tensor) -> Tensor:
        """[B, S, ...] -> [T, ...]."""
        return x[self.mask]

    def pad(self, x: Tensor) -> Tensor:
        """[T, ...] -> [B, S, ...], zero at padding."""
        out = x.new_zeros(*self.mask.shape, *x.shape[1:])
        out[self.mask] = x
        return out

    def pad_attention(self, weights: list[Tensor]) -> Tensor:
        """The probabilities of each sequence, [H, q_len, k_len] -> [B, H, S, C + S], zero at padding."""
        rows, columns = self.mask.nonzero(as_tuple=True)
        cached = self.seen.shape[1]
        out = weights[0].new_zeros(len(self.mask), weights[0].shape[0], self.mask.shape[1], cached + self.mask.shape[1])
        for first, last, part in zip(self.seq.cu_q, self.seq.cu_q[1:], weights, strict=False):
            if last > first:
                row, queries = int(rows[first]), columns[first:last]
                keys = torch.cat((self.seen[row].nonzero().squeeze(1), cached + queries))
                out[row, :, queries.unsqueeze(1), keys] = part
        return out

    def counted(self) -> Tensor:
        """The place of each token in its row, cached tokens included: int64 [T]."""
        behind = self.seen.sum(-1, keepdim=True)
        return self.pack(self.mask.long().cumsum(-1) - 1 + behind)


def padded(
    shape: tuple[int, int],
    device: torch.device,
    attention_mask: Tensor | None,
    past: PastKeyValues | None,
    position_ids: Tensor | None = None,
) -> Padded:
    """The layout of new tokens [B, S] behind what `past` holds.

    attention_mask: 1 = token, 0 = padding; [B, S], or with a cache of C columns [B, C + S], of which the first C have
    to be as they were. Without a mask all are tokens; then position_ids of [4, B, S] tell, by their first row, where
    the packed documents of a row begin: where it does not go on counting.
    """
    seen = torch.zeros(shape[0], 0, dtype=torch.bool, device=device) if past is None else past.seen
    if seen.shape[0] != shape[0]:
        raise ValueError(f"past_key_values holds {seen.shape[0]} rows, the new tokens have {shape[0]}: expected equal")
    if attention_mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=device)
        if past is None and position_ids is not None and position_ids.ndim == 3 and len(position_ids) == 4:
            return Padded(mask, SeqInfo.from_lengths(_documents(position_ids[0])), seen)
    else:
        mask = _new_part(attention_mask.to(device).bool(), shape, seen)
    if not bool(mask.any()):
        raise ValueError(f"there is no token among the {shape[0]} x {shape[1]} new columns: expected at least one")
    return Padded(mask, SeqInfo.from_lengths(mask.sum(-1).tolist(), seen.sum(-1).tolist()), seen)


def _new_part(mask: Tensor, shape: tuple[int, int], seen: Tensor) -> Tensor:
    """The part [B, S] of a mask that is about the new tokens."""
    cached = seen.shape[1]
    expected = (shape[0], cached + shape[1])
    if tuple(mask.shape) != expected:
        why = f"{cached} cached columns and {shape[1]} new ones" if cached else "one value a token"
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}: expected {expected}, {why}")
    if not torch.equal(mask[:, :cached], seen):
        raise ValueError(
            f"the first {cached} columns of attention_mask differ from what was cached: expected the same padding as "
            "in the forward that made past_key_values"
        )
    return mask[:, cached:]


def _documents(counts: Tensor) -> list[int]:
    """Lengths of the documents in all rows [B, S] of text positions."""
    begins = torch.ones_like(counts, dtype=torch.bool)
    begins[:, 1:] = counts.diff(dim=-1) != 1
    starts = [*begins.flatten().nonzero().squeeze(1).tolist(), counts.numel()]
    return [b - a for a, b in pairwise(starts)]


def packed_positions(position_ids: Tensor, layout: Padded) -> Tensor:
    """Documented position_ids -> int64 [3, T].

    [3, B, S] (time, height, width), [4, B, S] (a row of text positions before them), or [B, S], the same for all
    three; B may be 1 for all rows alike.
    """
    ids = position_ids.unsqueeze(0).expand(3, -1, -1) if position_ids.ndim == 2 else position_ids
    rows, columns = layout.mask.shape
    if ids.ndim != 3 or ids.shape[0] not in (3, 4) or ids.shape[1] not in (1, rows) or ids.shape[2] != columns:
        raise ValueError(
            f"position_ids has shape {tuple(position_ids.shape)}: expected [3, {rows}, {columns}] (time, height, "
            f"width), or [{rows}, {columns}] for all three alike, of the new tokens"
        )
    return ids[-3:].to(layout.mask.device).long().expand(3, rows, columns)[:, layout.mask]
