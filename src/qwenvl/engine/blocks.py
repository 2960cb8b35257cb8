"""Who owns which page of the KV cache, and which pages hold a prefix that may come again.

A page belongs to every request whose prompt and answer begin with the same tokens, positions and pictures as those
that filled it: its key is a digest of all that (and of the page before it), so pages are found by content. A page that
nobody uses any more keeps its content until its place is needed, the longest unused first. The cache is allocated when
the first request is admitted, and grows (contents copied) up to the limits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qwenvl.model.kv_cache import PagedCache, PageTable

PAGE = 16  # tokens of a page: only whole pages are shared


@dataclass
class CacheCounts:
    """Since the engine began: prompt tokens that were asked for, and those found in the cache."""

    asked: int = 0
    found: int = 0


@dataclass(eq=False)
class PagePool:
    """Pages of one PagedCache, their users and their content.

    make: pages -> PagedCache. most_tokens: limit of the whole cache, None = what the requests need. keep_tokens: up to
    this size the cache rather grows than forgets content that nobody uses now.
    Example, pages of 16: a prompt of 40 tokens takes 3 pages. When its answer ends, the first two (and every page that
    the answer filled) stay findable; a prompt that begins with the same 35 tokens adopts the two and computes the rest.
    """

    make: Callable[[int], PagedCache]
    most_tokens: int | None = None
    keep_tokens: int = 0
    counts: CacheCounts = field(default_factory=CacheCounts)
    refused: str = ""
    _storage: tuple[PagedCache, int] | None = None  # with how many pages may be handed out
    _users: list[int] = field(default_factory=list)
    _keys: list[bytes | None] = field(default_factory=list)
    _found: dict[bytes, int] = field(default_factory=dict)
    _idle: OrderedDict[int, None] = field(default_factory=OrderedDict)  # content, but no user; longest unused first
    _blank: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    _blanks: int = 0

    @property
    def cache(self) -> PagedCache:
        assert self._storage is not None, "the cache is asked for before a request was admitted"
        return self._storage[0]

    @property
    def tokens(self) -> int:
        """Room of the cache as it is now."""
        return len(self._users) * PAGE

    @property
    def used(self) -> int:
        """Pages that requests hold."""
        return len(self._users) - self._blanks - len(self._idle)

    @property
    def obtainable(self) -> int:
        """Pages that could be handed out, growth up to the limit included; a very large number without a limit."""
        most = 2**40 if self.most_tokens is None else self.most_tokens // PAGE
        return max(most, len(self._users)) - self.used

    def is_idle(self, page: int) -> bool:
        """Whether a page has content that nobody uses now."""
        return page in self._idle

    def extend(self, table: PageTable, pages: int, expected: int = 0) -> bool:
        """Give a sequence so many more pages; False (and nothing changed) when there are not enough, or no memory to
        grow (`refused` then says why).

        expected: how many it may need in all; a place is looked for where they fit side by side.
        """
        if pages <= 0:
            return True
        if pages > self.obtainable:
            return False
        self._make_room(pages, max(expected, len(table) + pages) - len(table))
        if self._blanks + len(self._idle) < pages:
            return False
        place = table.pages[-1] + 1 if table.pages else self._extent(max(expected, pages), pages)
        for _ in range(pages):
            page = self._take(place)
            table.append(page)
            place = page + 1
        return True

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """The pages that hold a prefix, as many as are there: those of the first keys."""
        pages = []
        for key in keys:
            page = self._found.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def adopt(self, table: PageTable, pages: Iterable[int]) -> None:
        """Let a sequence that owns nothing yet share these pages."""
        for page in pages:
            self._idle.pop(page, None)
            self._users[page] += 1
            table.append(page)

    def publish(self, page: int, key: bytes) -> None:
        """A page has been filled with what `key` is a digest of: others may find it."""
        if key not in self._found and self._keys[page] is None:
            self._found[key] = page
            self._keys[page] = key

    def release(self, table: PageTable) -> None:
        """Give back all pages of a sequence at once. What has a key can still be found; the end of a prefix is
        forgotten before its beginning."""
        for page in reversed(table.pages):
            self._users[page] -= 1
            if self._users[page]:
                continue
            if self._keys[page] is not None:
                self._idle[page] = None
            else:
                self._set_blank(page)

    def forget(self) -> None:
        """Drop all content that nobody uses."""
        while self._idle:
            self._drop_oldest()

    def restart(self) -> None:
        """Nobody holds a page any more, and all books are made anew from what one assignment each has written: the
        cache, and the keys of pages that were filled. For a caller who was interrupted in the middle of something."""
        room = 0 if self._storage is None else self._storage[1]
        content = {page: key for page, key in enumerate(self._keys[:room]) if key is not None}
        before = {page: place for place, page in enumerate(self._idle)}  # the end of a prefix is forgotten first
        idle = sorted(content, key=lambda page: (before.get(page, room), -page))
        self._keys = [content.get(page) for page in range(room)]
        self._found = {key: page for page, key in content.items()}
        self._idle = OrderedDict.fromkeys(idle)
        self._users = [0] * room
        self._blank = np.array([page not in content for page in range(room)], dtype=bool)
        self._blanks = room - len(content)

    def check(self, tables: Iterable[PageTable]) -> None:
        """The invariant: every page is blank, idle with content, or used by as many of the tables as it counts."""
        counted = [0] * len(self._users)
        for table in tables:
            assert len(set(table.pages)) == len(table.pages), table.pages
            for page in table.pages:
                counted[page] += 1
        assert counted == self._users, (counted, self._users)
        blank = set(np.flatnonzero(self._blank).tolist())
        assert len(blank) == self._blanks
        for page, users in enumerate(self._users):
            kinds = (users > 0, page in self._idle, page in blank)
            assert sum(kinds) == 1, (page, kinds)
            assert page not in blank or self._keys[page] is None, page
            assert page not in self._idle or self._keys[page] is not None, page
        assert self._found == {key: page for page, key in enumerate(self._keys) if key is not None}

    def _make_room(self, pages: int, expected: int) -> None:
        """Grow if pages are missing, or if content would be forgotten that there is still room to keep."""
        have = len(self._users)
        free = self._blanks + (len(self._idle) if self.tokens >= self.keep_tokens else 0)
        if free >= pages:
            return
        most = 2**40 if self.most_tokens is None else self.most_tokens // PAGE
        for size in (max(have + max(expected, pages), 2 * have), have + pages):
            wanted = min(size, most)
            if wanted <= have:
                return
            try:
                grown = self.make(wanted) if self._storage is None else self._storage[0].grown(wanted)
                self._storage = grown, wanted
                break
            except (RuntimeError, MemoryError) as error:
                self.refused = str(error)
        else:
            return
        self.refused = ""
        self._users += [0] * (wanted - have)
        self._keys += [None] * (wanted - have)
        self._blank = np.append(self._blank, np.ones(wanted - have, dtype=bool))
        self._blanks += wanted - have

    def _extent(self, expected: int, pages: int) -> int:
        """Where that many blank pages lie side by side; else the largest such place."""
        edges = np.flatnonzero(np.diff(np.concatenate(([0], self._blank.view(np.int8), [0]))))
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        if not len(starts):
            return 0
        for wanted in (expected, pages):
            fitting = np.flatnonzero(lengths >= wanted)
            if len(fitting):
                return int(starts[fitting[0]])
        return int(starts[lengths.argmax()])

    def _take(self, place: int) -> int:
        """One page: the one at `place` if it is blank, else some blank one, else the longest unused."""
        if not self._blanks:
            self._drop_oldest()
        if not (place < len(self._blank) and self._blank[place]):
            place = int(self._blank.argmax())
        self._blank[place] = False
        self._blanks -= 1
        self._users[place] = 1
        return place

    def _drop_oldest(self) -> None:
        page, _ = self._idle.popitem(last=False)
        key = self._keys[page]
        assert key is not None
        del self._found[key]
        self._keys[page] = None
        self._set_blank(page)

    def _set_blank(self, page: int) -> None:
        self._blank[page] = True
        self._blanks += 1
