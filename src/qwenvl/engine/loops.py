"""The guard against answers that repeat themselves without end.

In: the ids of an answer, one by one. Out: nothing, until the answer is a loop; then which one, and how many ids to
keep. Does not know text, pictures or probabilities, and changes none of them: no penalty is involved.

An answer is a loop when its end consists of exact copies of one piece of p tokens, not a token different, and

- there are at least LEAST of them, and
- they are at least `tokens` long together, or at least `copies` where these are shorter, and
- where the piece has no more than DULL different tokens, as an empty row of a table has, there are at least `rows`, or
  WIDE times `tokens` tokens of them. (`tokens`, `copies`, `rows`: types.LoopRule.)

What that leaves alone, with the rule's defaults: everything in which at least one token changes from row to row (ids,
numbers, names, coordinates of boxes), however long it is; `copies` equal cells in a row while a cell takes up to 12
tokens; `rows` equal empty rows of up to 200 tokens; fewer than `tokens` tokens of anything. What it lets pass: a piece
of more than LONGEST tokens, and a loop that counts ("item 1", "item 2"), which nothing but the page tells from an
honest list; max_new_tokens ends these.

A token costs one comparison with each of the last LONGEST tokens, in one vector operation: 2048 periods are followed at
once and exactly, so that no loop can hide behind a shorter repetition inside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwenvl.types import LoopRule

LONGEST = 2048  # tokens of the longest piece that is recognised
LEAST = 6  # copies that even a long piece needs
DULL = 32  # most different tokens in a row that may be empty
WIDE = 4  # times `tokens` of such rows are a loop however few they are
STRIDE = 16  # tokens between two looks


@dataclass(frozen=True)
class Loop:
    """A loop at the end of an answer: `copies` (the last one may be in the making) of a piece of `period` tokens. The
    answer without it is its first `kept` ids: everything before, and the first copy."""

    period: int
    copies: int
    kept: int


class LoopGuard:
    """Watches one answer. `push` each id; `loop` is what was found."""

    def __init__(self, rule: LoopRule) -> None:
        self._rule = rule
        self._count = 0
        self._past = np.full(3 * LONGEST, -1, dtype=np.int64)  # the newest id first, from `_at` on
        self._at = 2 * LONGEST
        self._same = np.zeros(LONGEST, dtype=bool)
        self._runs = np.zeros(LONGEST, dtype=np.int32)  # ids at the end that equal those p = index + 1 before them
        self._periods = np.arange(1, LONGEST + 1, dtype=np.int32)
        enough = np.minimum(self._periods * rule.copies, rule.tokens)
        self._least = np.maximum(enough, self._periods * LEAST)  # length of a loop, in tokens
        self.loop: Loop | None = None

    def push(self, token: int) -> bool:
        """Whether the answer is a loop with this id. O(LONGEST) in vector operations, a few microseconds."""
        np.equal(self._past[self._at : self._at + LONGEST], token, out=self._same)
        self._runs += 1
        self._runs *= self._same
        if self._at == 0:
            self._past[2 * LONGEST :] = self._past[:LONGEST]
            self._at = 2 * LONGEST
        self._at -= 1
        self._past[self._at] = token
        self._count += 1
        if self._count % STRIDE == 0:
            self.loop = self._look()
        return self.loop is not None

    def _look(self) -> Loop | None:
        lengths = self._runs + self._periods
        for period in (np.flatnonzero(lengths >= self._least) + 1).tolist():  # the shortest first, which needs least
            different = len(np.unique(self._past[self._at : self._at + period]))
            length = int(lengths[period - 1])
            if different > DULL or length >= min(self._rule.rows * period, self._rule.tokens * WIDE):
                return Loop(period, -(-length // period), self._count - length + period)
        return None
