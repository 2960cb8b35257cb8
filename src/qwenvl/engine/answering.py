"""What callers do with an engine beside stepping it: have all requests answered, or follow one.

In: an engine's add, submit and step. Out: completions in order, or a stream of events. Whatever interrupts a caller,
the requests that it waited for do not go on without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

from qwenvl.types import Completion

from .events import StreamEvent
from .request import Request


class Answering(ABC):
    """The part of an engine that steps it until its callers have what they asked for."""

    def __init__(self) -> None:
        self._followed: WeakValueDictionary[str, deque[StreamEvent]] = WeakValueDictionary()  # held by their streams
        self._events: list[StreamEvent] = []

    @abstractmethod
    def add(self, request: Request) -> str: ...

    @abstractmethod
    def submit(self, prepare: Callable[[], Request], *, id: str = "", priority: int = 0) -> str: ...

    @abstractmethod
    def step(self) -> list[StreamEvent]: ...

    @abstractmethod
    def _new_id(self, wanted: str) -> str: ...

    @abstractmethod
    def _give_up(self, requests: Sequence[Request | str]) -> None: ...

    def run(self, requests: Sequence[Request | Callable[[], Request]]) -> list[Completion]:
        """Answer all; completions in the order of the requests. One that failed has finish_reason "error". A request
        may also come as a call that prepares it, see submit(). When this call is interrupted, the requests that are
        not finished are aborted."""
        made: list[Request | None] = [one if isinstance(one, Request) else None for one in requests]

        def keep(i: int, prepare: Callable[[], Request]) -> Callable[[], Request]:
            def make() -> Request:
                made[i] = request = prepare()
                return request

            return make

        ids: list[str] = []
        failed: dict[str, StreamEvent] = {}
        try:
            for i, one in enumerate(requests):
                if isinstance(one, Request):
                    ids.append(self.add(one))
                else:
                    ids.append(self._new_id(""))  # noted first: an interrupt of submit() finds it here
                    self.submit(keep(i, one), id=ids[i])
            pending = list(range(len(ids)))
            while pending:
                failed |= {event.request_id: event for event in self.step() if event.error is not None}
                pending = [i for i in pending if ids[i] not in failed and not ((r := made[i]) and r.finished)]
        finally:
            self._give_up([*ids, *(one for one in requests if isinstance(one, Request))])
        return [
            request.completion() if request is not None and request.finished else _unmade(failed[request_id])
            for request, request_id in zip(made, ids, strict=True)
        ]

    def stream(self, request: Request) -> Iterator[StreamEvent]:
        """Add a request and yield its events as they happen; the last one has a finish_reason.

        Each event that is waited for steps the engine, so several streams may be read in turn. A stream that
        is closed early aborts its request.
        """
        events = self._follow(request)
        next(events)
        return events

    def _follow(self, request: Request) -> Iterator[Any]:
        """None once the request is added, then its events. Also what is closed before the first event ends it."""
        try:
            request_id = self.add(request)
            self._followed[request_id] = events = deque(e for e in self._events if e.request_id == request_id)
            yield None
            while True:
                while not events:
                    self.step()
                event = events.popleft()
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            self._give_up([request])

    def _tell(self, event: StreamEvent) -> None:
        if event.request_id in self._followed:
            self._followed[event.request_id].append(event)
        self._events.append(event)  # behind the other, as _mend() takes it for the sign that all was told


def _unmade(event: StreamEvent) -> Completion:
    """The completion of a request that could not be prepared."""
    return Completion(finish_reason="error", error=event.error)
