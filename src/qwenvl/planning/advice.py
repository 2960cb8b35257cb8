"""What to change so that a question fits: each proposal is tried by computing its plan, and told with what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from qwenvl.machine import shown
from qwenvl.planning.media import Header, Item, Limits, fewer_frames, see_all
from qwenvl.planning.planner import Case
from qwenvl.planning.weights import Weights
from qwenvl.processing.image_processor import Qwen2VLImageProcessor
from qwenvl.processing.video_processor import Qwen2VLVideoProcessor

CELL = 28 * 28
SMALLEST = 16 * CELL  # below this, a picture shows nothing
STEPS = 24


@dataclass(frozen=True)
class Choices:
    """What can be changed about a question. weigh: a word for quantize -> the weights it makes (ValueError where they
    cannot be made)."""

    headers: Sequence[Header]
    images: Qwen2VLImageProcessor
    videos: Qwen2VLVideoProcessor
    limits: Limits
    quantize: str | None
    weigh: Callable[[str | None], Weights]

    def see(self, limits: Limits) -> tuple[Item, ...] | None:
        """The items under other limits; None where a file does not go with them."""
        try:
            return tuple(see_all(self.headers, self.images, self.videos, limits))
        except ValueError:
            return None


def advise(case: Case, choices: Choices, room: int) -> Iterator[str]:
    """Sentences, each a change with the peak it gives. What is enough alone comes alone; where nothing is, the best
    weights with smaller pictures; else what is missing."""
    lighter = [(f"--quantize {word}", changed) for word, changed in _packed(case, choices)]
    single = [*_pictures(case, choices, room), *lighter, *_frames(case, choices, room), *_answer(case, room)]
    enough = [(words, changed) for words, changed in single if changed.bytes().peak <= room]
    if not enough:
        both = [
            (f"{words} with {more}", smaller)
            for words, changed in lighter
            for more, smaller in [*_pictures(changed, choices, room), *_frames(changed, choices, room)]
        ]
        enough = [(words, changed) for words, changed in both if changed.bytes().peak <= room][:2]
    for words, changed in enough:
        yield f"{words} makes it {shown(changed.bytes().peak)}"
    if not enough:
        least = min((changed.bytes().peak for _, changed in [*single, ("", case)]), default=0)
        yield (
            f"nothing that can be changed here makes it fit: the least is {shown(least)}; give {shown(least - room)} "
            "more memory, or take a smaller model"
        )


def _packed(case: Case, choices: Choices) -> Iterator[tuple[str, Case]]:
    for word in ("int8", "int4"):
        if choices.quantize is None or (choices.quantize, word) == ("int8", "int4"):
            try:
                weights = choices.weigh(word)
            except ValueError:  # quantized already
                return
            if weights.total < case.weights.total:
                yield word, replace(case, weights=weights)


def _pictures(case: Case, choices: Choices, room: int) -> Iterator[tuple[str, Case]]:
    """The largest --max-pixels that fits, found by halving; the smallest that is tried, where none does."""
    largest = max((item.resized[0] * item.resized[1] for item in case.items), default=0)
    least = max(SMALLEST, choices.limits.min_pixels or choices.images.min_pixels)
    low, high = least, largest
    best: tuple[int, Case] | None = None
    for _ in range(STEPS if largest > least else 0):
        middle = (low + high) // 2 // CELL * CELL
        changed = _limited(case, choices, middle)
        if changed is not None and changed.bytes().peak <= room:
            best, low = (middle, changed), middle
        else:
            high = middle
        if high - low <= CELL:
            break
    if best is None and largest > least:
        changed = _limited(case, choices, least)
        best = (least, changed) if changed is not None else None
    if best is not None:
        yield f"--max-pixels {best[0]}", best[1]


def _limited(case: Case, choices: Choices, pixels: int) -> Case | None:
    items = choices.see(replace(choices.limits, max_pixels=pixels))
    return None if items is None else replace(case, items=items)


def _frames(case: Case, choices: Choices, room: int) -> Iterator[tuple[str, Case]]:
    """As few frames of videos as fit, by halving."""
    limits, items, best = choices.limits, case.items, None
    while (fewer := fewer_frames(limits, items)) is not None:
        seen = choices.see(fewer)
        if seen is None or sum(i.frames for i in seen) >= sum(i.frames for i in items):
            break
        limits, items = fewer, seen
        best = (f"--max-frames {fewer.max_frames}", replace(case, items=items))
        if best[1].bytes().peak <= room:
            break
    if best is not None:
        yield best


def _answer(case: Case, room: int) -> Iterator[tuple[str, Case]]:
    """A shorter answer, where the cache of the answer is what does not fit."""
    over = case.bytes().peak - room
    tokens = case.answer_tokens - -(-over // case.sizes.cache_token) - 16
    if tokens >= 16:
        yield f"--max-new-tokens {tokens}", replace(case, answer_tokens=tokens)
