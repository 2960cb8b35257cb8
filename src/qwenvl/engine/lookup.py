"""Prompt lookup: guesses of the next tokens, copied from where the last ones stood before (Saxena 2023).

Answers about documents repeat what the model has just read or written: names, keys of JSON, the previous page. The last
few tokens are looked up in what came before, and what followed them there is the draft. The model checks all of it in
one step, which on a CPU costs little more than one token, as the weights are read once. A draft changes the speed and
never the answer: a token is taken from it only if it is the one that would have been drawn.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

import torch

from qwenvl.kernels.native import library

if TYPE_CHECKING:
    from .request import Request

DRAFT_TOKENS = 8
LONGEST, SHORTEST = 4, 2  # tokens that have to agree; a single one where it stood only once
SMOOTHING = 0.2  # weight of the newest draft in the share that was right
WORTH = 0.15  # least share that pays
PAUSE = 8  # tokens without a draft after the first disappointment; doubled with each that follows
LONGEST_PAUSE = 256
DRAFT_ROWS = 16  # tokens of answers and drafts in one step: as long as reading the weights is what takes the time


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


class Drafts:
    """The guesses for all requests of an engine. most: tokens of one; 0 = none.

    What a grammar forces is computed ahead in the same way, though it is no guess; a guess goes as far as the grammar
    allows it. drafted, accepted: tokens in all."""

    def __init__(self, most: int) -> None:
        self._most, self._rows = most, 0
        self._forced: set[str] = set()  # requests whose draft of this step is what the grammar forces
        self._lookups: dict[str, Lookup] = {}
        self.drafted = self.accepted = 0

    def start(self, request: Request) -> None:
        """A new request."""
        if self._most and request.has_ids:
            self._lookups[request.id] = Lookup(request.prompt_ids, request.lookup_sources)

    def begin(self, rows: int) -> None:
        """A new step, which has as many rows without drafts."""
        self._rows = rows
        self._forced.clear()

    def draft(self, request: Request) -> tuple[int, ...]:
        """Tokens that may follow, as long as the step is small enough for them to cost little."""
        if not self._most:
            return ()
        room = min(DRAFT_ROWS - self._rows, request.limit - len(request.output_ids) - 1)
        lookup, guide = self._lookups.get(request.id), request.guide
        guess = () if guide is None else guide.forced(room)
        if guess:
            self._forced.add(request.id)
        elif lookup is not None:
            guess = lookup.draft(min(self._most, room))
            guess = guess if guide is None else guide.agree(guess)
        self._rows += len(guess)
        return guess

    def learn(self, request: Request, draft: tuple[int, ...], new: Sequence[int]) -> None:
        """What was really drawn, the first token without a guess."""
        right = len(new) - 1 if draft else 0
        self.drafted, self.accepted = self.drafted + len(draft), self.accepted + right
        lookup = self._lookups.get(request.id)
        if lookup is not None:
            guessed = request.id not in self._forced
            lookup.learn(len(draft) * guessed, right * guessed, new)

    def forget(self, request: Request) -> None:
        """A request that is done."""
        self._lookups.pop(request.id, None)

    def keep(self, ids: Container[str]) -> None:
        """Forget all requests but those of these ids."""
        self._lookups = {one: lookup for one, lookup in self._lookups.items() if one in ids}
