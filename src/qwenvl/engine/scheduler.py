"""One rule: computed tokens catch up with wanted tokens, under a token budget.

There is no prefill phase and no decode phase: a new prompt of 900 tokens is 900 behind, a request that just drew a
token is 1 behind, and both get a chunk of the same packed batch. A prompt larger than the budget comes in chunks. When
the cache is full, the least urgent request gives its pages back and waits; later it catches up again, from its own
prompt and answer, so that nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .blocks import PAGE, PagePool
from .prefix import page_keys
from .request import Request, RequestState

PATIENCE = 256  # steps after which a waiting request counts one priority higher
LEAST_CHUNK = 256  # a prompt that waits for a picture is not begun for fewer tokens than this


@dataclass(frozen=True)
class Chunk:
    """The tokens [start, stop) of a request, to be computed in this step, and `draft` tokens behind them that are only
    guessed."""

    request: Request
    start: int
    stop: int
    draft: tuple[int, ...] = ()

    @property
    def wants_logits(self) -> bool:
        """Whether the chunk ends at the last known token, so that the next one can be drawn."""
        return self.stop == self.request.num_tokens

    @property
    def tokens(self) -> int:
        return self.stop - self.start + len(self.draft)


class Scheduler:
    """Which tokens are computed next. Knows requests and pages; no tensors.

    token_budget: most tokens in one step. beside: most prompt tokens in a step that also goes on with answers, so that
    a long prompt does not hold them up. Requests that answer come first; then prompts, by priority and arrival, where
    the first takes all that it needs, or half when it needs more than one step; the rest goes to those with the least
    left, so that a short question need not wait for an hour of video. A waiting request rises by one priority every
    PATIENCE steps. share: whether pages of equal content are shared.
    """

    def __init__(self, pool: PagePool, token_budget: int, beside: int, max_running: int, share: bool = True) -> None:
        self._pool, self._budget, self._beside = pool, token_budget, beside
        self._max_running, self._share = max_running, share
        self._steps = 0
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.preemptions = 0

    def add(self, request: Request) -> None:
        """Put a request into the queue."""
        request.state = RequestState.WAITING
        request.queued = self._steps
        self.waiting.append(request)
        self.waiting.sort(key=self._urgency)

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it is; its pages are free at once."""
        if request.state is RequestState.RUNNING:
            self._give_back(request)
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        request.state = RequestState.FINISHED

    def restart(self, requests: Sequence[Request]) -> None:
        """Only these requests are there, none of which holds a page any more: all of them wait."""
        for request in requests:
            request.reset()
            if request.state is not RequestState.WAITING:
                request.state, request.queued = RequestState.WAITING, self._steps
        self.running = []
        self.waiting = sorted(requests, key=self._urgency)

    def upcoming(self, count: int) -> list[Request]:
        """Requests whose prompts are computed now or next, the most urgent first: those that run and have not caught
        up, then up to `count` that wait."""
        behind = [request for request in self.running if request.num_tokens - request.computed > 1]
        return sorted(behind, key=self._urgency) + self.waiting[: min(count, self._max_running - len(self.running))]

    def matched(self, request: Request) -> int:
        """How many tokens of a waiting request the cache holds now."""
        return len(self._match(request)) * PAGE

    def schedule(
        self, ready: Callable[[Request], int], draft: Callable[[Request], tuple[int, ...]] | None = None
    ) -> list[Chunk]:
        """Chunks of this step, in order of their places in the cache.

        ready(request): up to which token it can be computed, as its pictures are encoded only so far. draft(request):
        guesses of the tokens that follow, for a request that has caught up. A request that could never be held, even
        alone, comes as MemoryError from here (its `request` attribute says which).
        """
        self._steps += 1
        if self._steps % PATIENCE == 0:
            self.waiting.sort(key=self._urgency)
        chunks: dict[str, Chunk] = {}
        for request in sorted(self.running, key=self._urgency):
            if request.state is RequestState.RUNNING and request.num_tokens - request.computed == 1:
                guess = draft(request) if draft is not None else ()
                if self._hold(request, request.num_tokens + len(guess), chunks):
                    chunks[request.id] = Chunk(request, request.computed, request.num_tokens, guess)
        budget = self._budget - sum(chunk.tokens for chunk in chunks.values())
        self._prompts(min(budget, self._beside) if chunks else budget, ready, chunks)
        return sorted(chunks.values(), key=lambda chunk: chunk.request.first_page)

    def _prompts(self, budget: int, ready: Callable[[Request], int], chunks: dict[str, Chunk]) -> None:
        """Share the budget out among the prompts that are behind, admitting requests while it lasts."""
        behind = [(r, _left(r, ready)) for r in self.running if r.id not in chunks]
        while self.waiting and len(self.running) < self._max_running and self._demand(behind, budget) < budget:
            request = self.waiting[0]
            if not self._admit(request):
                break
            behind.append((request, _left(request, ready)))
        behind = [(request, count) for request, count in behind if count]
        if not behind or budget < 1:
            return
        first, most = min(behind, key=lambda one: self._urgency(one[0]))
        others = sum(count for _, count in behind) - most
        share = most if most <= budget else max(budget - others, -(-budget // 2))
        chunks[first.id] = Chunk(first, first.computed, first.computed + share)
        budget -= share
        for request, count in sorted(behind, key=lambda one: one[1]):
            if request is not first and budget:
                share = min(count, budget)
                chunks[request.id] = Chunk(request, request.computed, request.computed + share)
                budget -= share

    def _demand(self, behind: list[tuple[Request, int]], budget: int) -> int:
        """Tokens that these requests could use in this step; one that is longer than a step counts half of it."""
        longest = max((count for _, count in behind), default=0)
        total = sum(count for _, count in behind)
        return total if longest <= budget else total - longest + -(-budget // 2)

    def _admit(self, request: Request) -> bool:
        """Give a waiting request its pages, those that hold its beginning already among them; False: not now."""
        found = self._match(request)
        needed = -(-request.num_tokens // PAGE) - len(found)
        idle = sum(1 for page in found if self._pool.is_idle(page))  # they would be handed out no more
        if needed + idle + len(self.running) > self._pool.obtainable:
            if not self.running:
                raise self._too_large(request)
            return False
        self._pool.adopt(request.table, found)
        if not self._pool.extend(request.table, needed, -(-request.most_tokens // PAGE)):
            self._give_back(request)
            if not self.running:
                raise self._too_large(request)
            return False
        self.waiting.remove(request)
        request.computed = len(found) * PAGE
        request.found += request.computed
        self._pool.counts.asked += request.num_tokens
        self._pool.counts.found += request.computed
        request.state = RequestState.RUNNING
        self.running.append(request)
        return True

    def _match(self, request: Request) -> list[int]:
        """Pages with the beginning of a request; the last token is always computed, as its logits are wanted."""
        return self._pool.match(page_keys(request, request.num_tokens - 1)) if self._share else []

    def _hold(self, request: Request, tokens: int, chunks: dict[str, Chunk]) -> bool:
        """Make the pages of a running request hold so many tokens; others, or itself, may have to give way."""
        while not self._pool.extend(request.table, -(-tokens // PAGE) - len(request.table)):
            victim = max(self.running, key=self._urgency)
            if len(self.running) == 1:
                raise self._too_large(request)
            chunks.pop(victim.id, None)
            self.preempt(victim)
            if victim is request:
                return False
        return True

    def preempt(self, request: Request) -> None:
        """Take a running request's pages away; it waits and catches up later."""
        self._give_back(request)
        self.running.remove(request)
        self.preemptions += 1
        self.add(request)

    def publish(self, request: Request) -> None:
        """Let others find the pages that a running request has filled."""
        if not self._share or request.computed // PAGE <= request.published:
            return
        keys = page_keys(request, request.computed)
        for page in range(request.published, len(keys)):
            self._pool.publish(request.table.pages[page], keys[page])
        request.published = len(keys)

    def _give_back(self, request: Request) -> None:
        self._pool.release(request.table)
        request.reset()

    def _urgency(self, request: Request) -> tuple[int, int]:
        """Smaller goes first."""
        waited = (self._steps - request.queued) // PATIENCE if request.state is RequestState.WAITING else 0
        return -(request.priority + waited), request.arrival

    def _too_large(self, request: Request) -> MemoryError:
        have, why = self._pool.obtainable * PAGE, "raise cache_tokens"
        if self._pool.refused:
            have, why = self._pool.tokens, f"free memory ({self._pool.refused})"
        error = MemoryError(
            f"prompt and answer have {request.num_tokens} tokens, but the cache has room for {have}: shorten the "
            f"prompt, lower max_pixels, or {why}"
        )
        error.request = request  # type: ignore[attr-defined]
        return error


def _left(request: Request, ready: Callable[[Request], int]) -> int:
    """Prompt tokens that can be computed now."""
    until = min(ready(request), request.num_tokens)
    left = max(until - request.computed, 0)
    return left if until == request.num_tokens or left >= LEAST_CHUNK else 0
