"""Pages that are drawn in a thread while others are answered, never more than a few at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeAlias

from qwenvl.tasks.parsing.pages import PageImage

Drawn: TypeAlias = PageImage | Exception
MOST_PAGES = 4
MOST_BYTES = 2**28  # of pixels; a larger page waits alone


class Ahead:
    """read(number) for each of `numbers`, in their order, in a thread of its own; what it raises comes in place of the
    page. As a context: the thread ends with it.

    No more than MOST_PAGES pages wait to be taken, nor MOST_BYTES of pixels, so that a document may be of any length.
    """

    def __init__(self, read: Callable[[int], PageImage], numbers: Sequence[int]) -> None:
        self._read, self._numbers = read, numbers
        self._waiting: deque[tuple[int, Drawn]] = deque()
        self._left, self._closed = len(numbers), False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="pages ahead", daemon=True)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join()

    def __len__(self) -> int:
        """Pages that have not been taken."""
        return self._left

    @property
    def ready(self) -> bool:
        """Whether `take` has a page at once."""
        return bool(self._waiting)

    def take(self) -> tuple[int, Drawn]:
        """The next page's number and picture; waits until it is there. IndexError when there are no more."""
        if not self._left:
            raise IndexError("all pages were taken")
        with self._change:
            self._change.wait_for(lambda: self._waiting)
            self._left -= 1
            found = self._waiting.popleft()
            self._change.notify_all()
        return found

    def _work(self) -> None:
        for number in self._numbers:
            with self._change:
                self._change.wait_for(self._has_room)
                if self._closed:
                    return
            try:
                drawn: Drawn = self._read(number)
            except Exception as error:  # told with its page
                drawn = error
            with self._change:
                self._waiting.append((number, drawn))
                self._change.notify_all()

    def _has_room(self) -> bool:
        held = sum(_bytes(drawn) for _, drawn in self._waiting)
        return self._closed or not self._waiting or (len(self._waiting) < MOST_PAGES and held < MOST_BYTES)


def _bytes(drawn: Drawn) -> int:
    return 0 if isinstance(drawn, Exception) else 3 * drawn.image.width * drawn.image.height
