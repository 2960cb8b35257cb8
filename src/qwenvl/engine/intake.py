"""Requests that are still being made: pictures are fetched, decoded, resized and cut in threads, the engine computes.

Decoding and resizing do not hold the interpreter's lock. Only a few requests are in flight at a time (being made, or
made and not yet taken by ready()); the others wait as the calls that they are, so that a long queue does not fill the
memory with pictures.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

import torch

from .request import Request

MOST_WORKERS = 4


def default_workers() -> int:
    """Half of the processors that may be used, at least 1 and at most 4: on two, the engine computes on both."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, processors // 2))


@dataclass(order=True)
class _Job:
    """A call that waits. order: (-priority, arrival), the smallest is begun first."""

    order: tuple[int, int]
    id: str = field(compare=False)
    prepare: Callable[[], Request] = field(compare=False)


class Intake:
    """Makes requests in worker threads. Any thread may call any method.

    workers: how many threads, which begin with the first request; None = default_workers(). in_flight: most requests
    that are being made, or made and not taken; None = two more than workers. In a worker, torch computes with one
    thread. What is being made when the interpreter exits is waited for; what waits is dropped.
    """

    def __init__(self, workers: int | None = None, in_flight: int | None = None) -> None:
        self._workers = default_workers() if workers is None else workers
        self._in_flight = self._workers + 2 if in_flight is None else in_flight
        if self._workers < 1 or self._in_flight < 1:
            raise ValueError(f"workers={workers} and in_flight={in_flight}: expected at least 1 each")
        self._lock = threading.Lock()  # entered as it is: an interrupt within Condition.__enter__ would leave it locked
        self._changed = threading.Condition(self._lock)
        self._queue: list[_Job] = []  # a heap; jobs that are no longer in _waiting were cancelled
        self._waiting: dict[str, _Job] = {}
        self._running: dict[str, _Job] = {}
        self._done: dict[str, Request | Exception] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._busy: set[tuple[int, int]] = set()  # orders of the jobs that workers are at
        self._arrivals = 0
        self._closed = False

    def submit(self, prepare: Callable[[], Request], id: str, priority: int = 0) -> None:
        """Have prepare() called in a worker; what it returns or raises comes out of ready() under this id. Larger
        priority goes first, equal ones in order of arrival. ValueError for an id that is pending, RuntimeError after
        close()."""
        with self._lock:
            if self._closed:
                raise RuntimeError(f"request {id!r} cannot be prepared: the intake is closed")
            if id in self._waiting or id in self._running or id in self._done:
                raise ValueError(f"request id {id!r} is in use: give each pending request its own")
            job = _Job((-priority, self._arrivals), id, prepare)
            self._arrivals += 1
            heapq.heappush(self._queue, job)
            self._waiting[id] = job
            self._begin()

    def ready(self, most: int | None = None) -> list[tuple[str, Request | Exception]]:
        """What has been made, in the order in which it was finished: (id, the request or the error of its prepare()).
        Does not wait. most: leave the rest, which then keeps others from being begun."""
        with self._lock:
            taken = list(self._done.items())[:most]
            for id, _ in taken:
                del self._done[id]
            self._begin()
        return taken

    def wait(self, timeout: float | None = None) -> bool:
        """Whether ready() has something; waits for it, at most so many seconds (None: as long as it takes), and not
        when nothing is pending."""
        with self._lock:
            self._changed.wait_for(lambda: self._done or not self.pending, timeout)
            return bool(self._done)

    def cancel(self, id: str) -> bool:
        """Forget a pending request. When it is being made, that goes on to its end in its worker, and the result is
        dropped. False when no pending request has this id."""
        with self._lock:
            known = any(jobs.pop(id, None) is not None for jobs in (self._waiting, self._running, self._done))
            self._begin()
            self._changed.notify_all()
        return known

    def knows(self, id: str) -> bool:
        """Whether a request is pending under this id."""
        with self._lock:
            return any(id in jobs for jobs in (self._waiting, self._running, self._done))

    @property
    def pending(self) -> int:
        """Requests that were submitted and are neither taken nor cancelled."""
        return len(self._waiting) + len(self._running) + len(self._done)

    def close(self) -> None:
        """Forget all that is pending, wait for what is being made at this moment, end the threads."""
        with self._lock:
            self._closed = True
            for jobs in (self._queue, self._waiting, self._running, self._done):
                jobs.clear()
            pool, self._pool = self._pool, None
            self._changed.notify_all()
        if pool is not None:
            pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self) -> None:
        """Wake workers for what waits. Which job is begun is decided there, as an interrupt, which comes to the main
        thread, must not leave a job between two states. The caller holds the lock."""
        for _ in range(min(len(self._waiting), self._workers - len(self._busy))):
            if self._pool is None:
                self._pool = _single_threaded(self._workers)
            self._pool.submit(self._make)

    def _next(self) -> _Job | None:
        """The job to be made now, noted as running; None when there is none, or enough is in flight. The caller holds
        the lock."""
        while self._queue and len(self._busy) + len(self._done) < self._in_flight:
            job = heapq.heappop(self._queue)
            if self._waiting.get(job.id) is job:
                self._running[job.id] = self._waiting.pop(job.id)
                self._busy.add(job.order)
                return job
        return None

    def _make(self) -> None:
        """In a worker: one request from beginning to end."""
        with self._lock:
            job = self._next()
        if job is None:
            return
        result: Request | Exception
        try:
            result = job.prepare()
        except BaseException as error:  # also what would end a program: it ends this request alone
            result = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        with self._lock:
            self._busy.discard(job.order)
            if self._running.get(job.id) is job:
                del self._running[job.id]
                self._done[job.id] = result
            self._changed.notify_all()
            self._begin()


def _single_threaded(workers: int) -> ThreadPoolExecutor:
    """Threads in which torch computes alone: each would bring a team of its own, beside the one that computes answers.

    torch.set_num_threads counts for the calling thread and for those whose first use of torch comes later: a worker
    asks before it sets, which is a use, and the caller sets back what was.
    """
    before, met = torch.get_num_threads(), threading.Barrier(workers)
    pool = ThreadPoolExecutor(workers, "qwenvl-intake")

    def start() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        met.wait()  # so that no worker does this twice in place of another

    try:
        for started in [pool.submit(start) for _ in range(workers)]:
            started.result()
    except BaseException:  # an interrupt: nobody would come to the barrier any more
        met.abort()
        pool.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(before)
    return pool
