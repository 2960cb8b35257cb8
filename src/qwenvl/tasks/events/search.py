"""A long film, one look after the other: windows in turn, or coarse to fine.

Coarse to fine, for one query: windows over the film at a low rate give candidates; each is looked at again, closer, at
its begin and its end, and what the second look does not see is dropped. An answer about a window knows nothing of what
was before: what is there "from the start" of a window goes on from the one before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from qwenvl.tasks.events.asking import Asker, Told
from qwenvl.tasks.events.event import Event, in_order, merge_overlaps, merge_same
from qwenvl.tasks.events.film import Film, Look

COARSE_SHARE = 0.75  # of the calls for the first pass, the rest for second looks
OVERLAP = 0.1  # share of a window's frames that the next one has too
MARGIN = 2  # frames of a pass by which what it tells may be wrong
CLOSER = 2  # second looks at one candidate that follow it over the edge of what they see


def overlap_of(size: int) -> int:
    """Frames that a window shares with the next: a tenth, even, at least two, and at most half."""
    return min(max(2, round(size * OVERLAP / 2) * 2), size // 2)


def count_windows(seconds: float, fps: float, size: int) -> int:
    """How many windows of `size` frames cover so many seconds."""
    overlap = overlap_of(size)
    return max(1, math.ceil((seconds * fps - overlap) / (size - overlap)))


def rate_for(seconds: float, fps: float, size: int, windows: int) -> float:
    """Frames a second, at most `fps`, at which the film fits into so many windows."""
    overlap = overlap_of(size)
    return min(fps, (max(1, windows) * (size - overlap) + overlap) / max(seconds, 1e-9))


def in_turn(film: Film, asker: Asker, begin: float, end: float, fps: float, size: int) -> list[Event]:
    """The events of all windows; those that two neighbours tell of are one. The rate is lowered where the calls would
    not be enough."""
    rate = rate_for(end - begin, fps, size, asker.left)
    asker.plan(count_windows(end - begin, rate, size))
    found: list[Event] = []
    for _, events in asker.ask(film.windows(begin, end, rate, size, overlap_of(size))):
        found += [_event(told) for told in events]
    return merge_same(found, gap=2 / rate)


def coarse_to_fine(
    film: Film, asker: Asker, begin: float, end: float, coarse: float, fps: float, size: int
) -> list[Event]:
    """When the one thing asked for happens. coarse: frames a second of the first pass, at most. fps: of second looks,
    at least."""
    most = max(1, int(asker.left * COARSE_SHARE))
    rate = rate_for(end - begin, coarse, size, most)
    asker.plan(count_windows(end - begin, rate, size))
    windows = list(_first_pass(film, asker, begin, end, rate, size))
    candidates = linked([events for _, events in windows], 2 / rate, begin)
    closer = _Closer(film, asker, begin, end, rate, fps, size)
    return closer.all(candidates)


def _first_pass(
    film: Film, asker: Asker, begin: float, end: float, rate: float, size: int
) -> Sequence[tuple[Look, list[Told]]]:
    looks = film.windows(begin, end, rate, size, overlap_of(size))
    # what was shown is not kept: an hour of frames would be
    return [(replace(look, video=replace(look.video, frames=look.video.frames[:0])), e) for look, e in asker.ask(looks)]


def linked(windows: Sequence[Sequence[Told]], gap: float, begin: float = 0.0) -> list[Told]:
    """What the windows of a film tell, as events of the film. What reaches over the begin of a window is the same as
    what the window before it told; where that told nothing, it is a candidate with an open begin."""
    out: list[Told] = []
    before = False
    for events in windows:
        for event in sorted(events, key=lambda e: (e.start, e.end)):
            last = out[-1] if out else None
            moment = event.end <= event.start
            if last is not None and event.start <= last.end + gap and not (moment and event.from_start):
                out[-1] = _joined(last, event)
            elif event.from_start and before and moment:
                continue  # it is still there; when it came is known already
            else:
                out.append(replace(event, from_start=event.from_start and event.start > begin + gap / 2))
        before = bool(events)
    return out


def _joined(one: Told, other: Told) -> Told:
    surest = max((one.confidence, other.confidence), key=lambda c: c if c is not None else -1.0)
    later = other if other.end >= one.end else one
    return replace(one, end=max(one.end, other.end), confidence=surest, to_end=later.to_end)


def _event(told: Told) -> Event:
    return Event(told.start, told.end, told.text, told.confidence)


class _Closer:
    """Closer looks at candidates, at a higher rate each time, until the rate is what is wanted. One that fits into a
    look gets one, a longer one gets a look at each end."""

    def __init__(
        self, film: Film, asker: Asker, begin: float, end: float, coarse: float, fps: float, size: int
    ) -> None:
        self._film, self._asker, self._begin, self._end = film, asker, begin, end
        self._rate, self._fps, self._size = coarse, max(coarse, min(fps, film.fps)), size

    def all(self, candidates: Sequence[Told]) -> list[Event]:
        """The candidates that hold, surest first as long as there are calls; the others as they were told last."""
        found = list(candidates)
        again = True
        while again and found:
            # what the looks before may be wrong by must fit into one look; the last rate is looked at in any case
            wider = max(self._size / (2 * MARGIN) * self._rate, 1.5 * self._rate)
            again = wider < self._fps
            self._rate, margin = min(wider, self._fps), MARGIN / self._rate
            found = self._level(found, margin)
        return merge_overlaps(in_order([_event(one) for one in found]), gap=1 / self._fps)

    def _level(self, candidates: Sequence[Told], margin: float) -> list[Told]:
        """All candidates at the rate of now. margin: seconds by which they may be wrong."""
        order = sorted(candidates, key=lambda c: -(c.confidence if c.confidence is not None else 1.0))
        needed = [1 if c.end - c.start + 2 * margin <= self._reach else 2 for c in order]
        self._asker.plan(sum(needed))
        found: list[Told] = []
        for candidate, looks in zip(order, needed, strict=True):
            if self._asker.left < looks:
                found.append(candidate)
            else:
                found += self._whole(candidate) if looks == 1 else self._ends(candidate)
        return linked([found], 1 / self._rate, self._begin)

    @property
    def _reach(self) -> float:
        """Seconds that one look covers."""
        return self._size / self._rate

    def _look(self, middle: float) -> tuple[Look, list[Told]]:
        """What is told of as many seconds as a look covers, around the middle and within the stretch."""
        low = min(max(self._begin, middle - self._reach / 2), max(self._begin, self._end - self._reach))
        look = self._film.look(low, min(self._end, low + self._reach), self._size)
        return next(iter(self._asker.ask([look])))

    def _whole(self, candidate: Told) -> list[Told]:
        """The candidate, seen in one look; followed to the left where it was there already when that began."""
        middle = (candidate.start + candidate.end) / 2
        events: list[Told] = []
        for _ in range(CLOSER + 1):
            look, events = self._look(middle)
            own = [e for e in events if not self._continues(e, look)]
            if own or not events:
                return own
            if self._asker.left < 1:
                break
            middle -= self._reach * 0.75
        return [replace(candidate, confidence=events[0].confidence)]

    def _continues(self, event: Told, look: Look) -> bool:
        """Whether it began before the look did."""
        return event.from_start and look.begin > self._begin + look.step

    def _ends(self, candidate: Told) -> list[Told]:
        """A long candidate: a look at its begin, one at its end. Without anything at either it is dropped; an edge that
        a look does not show stays where it was seen before."""
        first, at_start = self._look(candidate.start)
        last, at_end = self._look(candidate.end)
        if not at_start and not at_end:
            return []
        starts = [e.start for e in at_start if not self._continues(e, first)]
        ends = [e.end for e in at_end if e.end > e.start and not (e.to_end and last.end < self._end - last.step)]
        start = min(starts, key=lambda s: abs(s - candidate.start), default=candidate.start)
        end = min(ends, key=lambda e: abs(e - candidate.end), default=candidate.end)
        chances = [e.confidence for e in [*at_start, *at_end] if e.confidence is not None]
        mean = math.exp(sum(map(math.log, chances)) / len(chances)) if chances and min(chances) > 0 else None
        return [replace(candidate, start=min(start, end), end=max(start, end), confidence=mean)]
