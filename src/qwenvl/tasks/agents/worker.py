"""A thread that does one thing after the other, for objects that belong to one thread.

In: calls from any thread. Out: what they return or raise; TimeoutError for one that takes too long, which goes on in
its thread. The thread never keeps the program from ending.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")


class Worker:
    """See the module."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, work: Callable[[], _T], seconds: float) -> _T:
        """work() in the thread. TimeoutError after so many seconds, those before it in the line included."""
        future: Future[_T] = Future()
        self._calls.put((future, work))
        return future.result(timeout=seconds)

    def end(self) -> None:
        """No more calls; the thread ends behind what it has."""
        self._calls.put(None)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            future, work = item
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
