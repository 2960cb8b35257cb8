"""Prompt lookup: guesses of the next tokens, copied from where the last ones stood before (Saxena 2023).

Answers about documents repeat what the model has just read or written: names, keys of JSON, the previous page. The last
few tokens are looked up in what came before, and what followed them there is the draft. The model checks all of it in
one step, which on a CPU costs little more than one token, as the weights are read once. A draft changes the speed and
never the answer: a token is taken from it only if it is the one that would have been drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from qwenvl.kernels.native import library

DRAFT_TOKENS = 8
LONGEST, SHORTEST = 4, 2  # tokens that have to agree; a single one where it stood only once
SMOOTHING = 0.2  # weight of the newest draft in the share that was right
WORTH = 0.15  # least share that pays
PAUSE = 8  # tokens without a draft after the first disappointment; doubled with each that follows
LONGEST_PAUSE = 256


def default_draft(model: Any) -> int:
    """DRAFT_TOKENS where a row's numbers do not depend on the rows beside it, to the last bit (native kernels), and 0
    elsewhere: a draft could there turn a tie of two tokens the other way."""
    native = library() is not None and model.dtype == torch.bfloat16 and model.device.type == "cpu"
    return DRAFT_TOKENS if native else 0


class Lookup:
    """Drafts for one request. ids: its prompt; sources: other token sequences that answers may repeat."""

    def __init__(self, ids: Sequence[int], sources: Sequence[Sequence[int]] = ()) -> None:
        self._ids: list[int] = []
        self._single: dict[int, int] = {}  # -1 where it was seen more than once
        self._seen: list[dict[tuple[int, ...], int]] = [{} for _ in range(SHORTEST, LONGEST + 1)]
        for source in (*sources, ids):
            self._ids.append(-1)  # nothing reaches over the edge of a source
            self.extend(source)
        self._right, self._pause, self._wait = 1.0, PAUSE, 0
        self.drafted = self.accepted = 0

    def extend(self, ids: Sequence[int]) -> None:
        """Tokens that follow."""
        for token in ids:
            end = len(self._ids)
            for length, seen in enumerate(self._seen, SHORTEST):  # noted only now: a place that has a successor
                if end > length and -1 not in (key := tuple(self._ids[end - length : end])):
                    seen[key] = end
            if end and (last := self._ids[-1]) != -1:
                self._single[last] = -1 if last in self._single else end
            self._ids.append(token)

    def draft(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may follow; fewer the less the last drafts were right, none while they do not
        pay."""
        if self._wait or most < 1:
            return ()
        most = max(1, round(most * self._right))
        at = self._where()
        if at < 0:
            return ()
        guess = self._ids[at : at + most]
        period = len(self._ids) - at
        guess += [guess[i % period] for i in range(len(guess), most)]  # what repeats goes on repeating
        return tuple(guess[: guess.index(-1)] if -1 in guess else guess)

    def _where(self) -> int:
        """What followed the last tokens before, as an index; -1 where they are new."""
        for length in range(LONGEST, SHORTEST - 1, -1):
            at = self._seen[length - SHORTEST].get(tuple(self._ids[-length:]))
            if at is not None:
                return at
        return self._single.get(self._ids[-1], -1)

    def learn(self, drafted: int, accepted: int, ids: Sequence[int]) -> None:
        """What came of a draft (0 tokens: there was none), and the tokens that were really drawn."""
        self.extend(ids)
        self._wait = max(0, self._wait - len(ids))
        if not drafted:
            return
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted
        self._right += SMOOTHING * (accepted / drafted - self._right)
        if self._right < WORTH:
            self._wait, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
            self._right = 2 * WORTH  # the next try is a short one
        elif accepted == drafted:
            self._pause = PAUSE
