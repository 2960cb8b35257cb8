"""Placeholders -> as many tokens as their pictures and videos have, and which token is of what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def token_counts(grids: Tensor, merge: int) -> list[int]:
    """Tokens of each picture or video; grids int64 [n, 3] in patches. Example: [1, 30, 46] with merge 2 -> 345."""
    return [int(count) for count in (grids.prod(-1) // merge**2).tolist()]


def expand(rows: Sequence[Sequence[int]], counts: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Rows of ids in which each placeholder stands as often as its item has tokens.

    counts: for each placeholder's id the tokens of its items, in order over all rows. There must be as many of them
    as placeholders: the processor's check_places sees to it.
    """
    left = {pad: iter(of_items) for pad, of_items in counts.items()}
    wide = [[t for token in row for t in ([token] * next(left[token]) if token in left else [token])] for row in rows]
    assert all(next(rest, None) is None for rest in left.values())
    return wide


def token_types(rows: Sequence[Sequence[int]], image: int, video: int) -> list[list[int]]:
    """0 for text and padding, 1 for tokens of pictures, 2 of videos."""
    kinds = {image: 1, video: 2}
    return [[kinds.get(token, 0) for token in row] for row in rows]


def check_places(rows: Sequence[Sequence[int]], pad: int, name: str, given: int, kind: str) -> None:
    """ValueError unless the rows hold as many placeholders as there are pictures or videos."""
    wanted = sum(row.count(pad) for row in rows)
    if wanted != given:
        raise ValueError(f"the text has {wanted} places for {kind} ({name}), {given} {kind} were given")


def check_shares(shares: Sequence[int] | None, rows: Sequence[Sequence[int]], pad: int, name: str, kind: str) -> None:
    """ValueError unless items that came in one list a prompt are as many as each prompt has places for."""
    if shares is None:
        return
    if len(shares) != len(rows):
        raise ValueError(f"{kind} come in {len(shares)} lists for {len(rows)} prompts: give one per prompt")
    for i, (share, row) in enumerate(zip(shares, rows, strict=True)):
        if share != row.count(pad):
            raise ValueError(f"prompt {i} has {row.count(pad)} places for {kind} ({name}), {share} {kind} were given")
