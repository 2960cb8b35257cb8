"""One rule: computed tokens catch up with wanted tokens, under a token budget.

There is no prefill phase and no decode phase: a new prompt of 900 tokens is 900 behind, a request that just
drew a token is 1 behind, and both get a chunk of the same packed batch. A prompt larger than the budget comes
in chunks.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from .blocks import SlotPool
from .request import Request, RequestState


@dataclass(frozen=True)
class Chunk:
    """The tokens [start, stop) of a request, to be computed in this step."""

    request: Request
    start: int
    stop: int

    @property
    def wants_logits(self) -> bool:
        """Whether the chunk ends at the last known token, so that the next one can be drawn."""
        return self.stop == self.request.num_tokens


class Scheduler:
    """Which tokens are computed next. Knows requests and slots; no tensors.

    token_budget: most tokens in one step. Running requests come first, in order of admission (they hold
    memory, and decode steps are cheap); then waiting ones by priority and arrival, while slots and budget
    last. The first of the queue is never overtaken by a smaller one behind it.
    """

    def __init__(self, pool: SlotPool, token_budget: int) -> None:
        self._pool = pool
        self._budget = token_budget
        self.waiting: list[Request] = []
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        """Put a new request into the queue."""
        request.state = RequestState.WAITING
        insort(self.waiting, request, key=lambda r: (-r.priority, r.arrival))

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it is; its slot is free at once."""
        if request.slot is not None:
            self._pool.release(request.slot, request.id)
            request.slot = None
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        request.state = RequestState.FINISHED

    def candidates(self) -> list[Request]:
        """The waiting requests that slots allow to be admitted now, first come first."""
        return self.waiting[: self._pool.free]

    def reserve(self) -> None:
        """Make the cache large enough for the running requests and the candidates. Passes on what allocation
        raises."""
        wanted = self.running + self.candidates()
        if len(wanted) > len(self.running):
            self._pool.ensure(len(wanted), max(request.slot_tokens for request in wanted))

    def schedule(self) -> list[Chunk]:
        """Chunks of this step, in order of slots (neighbours in the cache are neighbours in the batch).

        reserve() must have been called since the last add().
        """
        budget = self._budget
        chunks = []
        for request in self.running:
            count = min(request.num_tokens - request.computed, budget)
            if count:
                chunks.append(Chunk(request, request.computed, request.computed + count))
                budget -= count
        for request in self.candidates():
            if not budget:
                break
            self._admit(request)
            count = min(request.num_tokens, budget)
            chunks.append(Chunk(request, 0, count))
            budget -= count
        return sorted(chunks, key=lambda chunk: chunk.request.slot or 0)

    def _admit(self, request: Request) -> None:
        assert request.computed == 0, "a waiting request has nothing in the cache"
        self.waiting.remove(request)
        request.slot = self._pool.acquire(request.id)
        request.state = RequestState.RUNNING
        self.running.append(request)
