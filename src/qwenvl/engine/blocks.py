"""Who owns which slot of the KV cache, and a cache that is only as large as the requests need.

A slot is owned by one request from admission until it ends. The cache is allocated when the first request is
admitted, and grows (contents copied) when more or longer requests come, up to the limits.
"""

from __future__ import annotations

from collections.abc import Callable

from qwenvl.model.kv_cache import SlotCache

CAPACITY_STEP = 256  # tokens per slot are a multiple of this, so that similar requests reuse one allocation


class SlotPool:
    """Slots of one SlotCache and their owners.

    make: (slots, capacity) -> SlotCache. max_slots: requests at a time. max_capacity: tokens per slot, None =
    what the requests need. Example: max_slots 8; one request of 300 tokens allocates 1 slot of 512; a second
    one of 100 tokens that comes meanwhile grows the cache to 2 slots of 512.
    """

    def __init__(self, make: Callable[[int, int], SlotCache], max_slots: int, max_capacity: int | None = None) -> None:
        self._make = make
        self.max_slots, self.max_capacity = max_slots, max_capacity
        self._cache: SlotCache | None = None
        self._owners: dict[int, str] = {}
        self._free: list[int] = []

    @property
    def cache(self) -> SlotCache:
        assert self._cache is not None, "the cache is asked for before a request was admitted"
        return self._cache

    @property
    def free(self) -> int:
        """Requests that may still be admitted, counting slots that are not allocated yet."""
        return self.max_slots - len(self._owners)

    def ensure(self, slots: int, capacity: int) -> None:
        """Make the cache hold at least `slots` slots of `capacity` tokens; what owned slots hold is kept.

        A cache that must grow doubles its slots at least, so that requests that come one by one cost few
        copies. What the allocator raises passes through; owned slots are then as they were.
        """
        assert slots <= self.max_slots
        assert self.max_capacity is None or capacity <= self.max_capacity
        old = self._cache
        if old is not None and old.slots >= slots and old.capacity >= capacity:
            return
        capacity = -(-capacity // CAPACITY_STEP) * CAPACITY_STEP
        if self.max_capacity is not None:
            capacity = min(capacity, self.max_capacity)
        if old is not None and self._owners:
            capacity = max(capacity, old.capacity)
            slots = old.slots if old.slots >= slots else max(slots, min(2 * old.slots, self.max_slots))
            self._cache = self._make(slots, capacity).filled(old)
        else:
            self._cache = old = None  # nothing to keep: let the old one go before the new one is made
            self._free = []
            self._cache = self._make(slots, capacity)
        self._free = [slot for slot in range(slots) if slot not in self._owners]

    def acquire(self, owner: str) -> int:
        """The lowest free slot, now owned by `owner`. ensure() must have made room."""
        slot = min(self._free)
        self._free.remove(slot)
        self._owners[slot] = owner
        return slot

    def release(self, slot: int, owner: str) -> None:
        """Give a slot back at once."""
        assert self._owners.get(slot) == owner, f"slot {slot} belongs to {self._owners.get(slot)}, not {owner}"
        del self._owners[slot]
        self._free.append(slot)

    def check(self) -> None:
        """The invariant: every slot is either free, once, or owned by one request; no request owns two."""
        slots = self._cache.slots if self._cache is not None else 0
        assert sorted([*self._free, *self._owners]) == list(range(slots)), (self._free, self._owners, slots)
        assert len(set(self._owners.values())) == len(self._owners), self._owners
