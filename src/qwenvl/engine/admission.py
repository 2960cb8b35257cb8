"""Who may come in: what the engine and its requests may have of a memory, and which requests can never have enough.

    memory = what the process has + weights still to be read + the largest step + the cache + embeddings that are kept

The largest step is reserved once, as steps come one after the other. Where there is room, it is large enough for the
largest picture of the family; else half of what is left, so that the cache has the other half. The cache is asked for
as a whole at the start: on the CPU it takes memory only as it is filled, and it never has to be copied to grow.

A server that holds several models, or queues before the engine, asks `Admission.cost(request)` for the bytes that one
request will need, and `Admission.refusal(request)` whether it can run at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from qwenvl.machine import mapped_weights, parse_bytes, resident_bytes, shown
from qwenvl.model.kv_cache import PageTable
from qwenvl.planning.memory import FIXED, Sizes, piece
from qwenvl.quantization import weight_bytes

from .blocks import PAGE, PagePool
from .request import Request

LARGEST_PICTURE = 16384 * 4  # patches: the documents' largest picture
UNKNOWN_BASE = 300 * 2**20  # of a process with torch, where the system does not tell
KEPT_SHARE = 8  # the cache of embeddings may have one part in so many of what is left


@dataclass(frozen=True)
class Cost:
    """Bytes that a request needs beside the model: `cache` for its keys and values, `step` for the largest step that it
    takes part in, `media` for its pixels and their embeddings."""

    cache: int
    step: int
    media: int

    @property
    def total(self) -> int:
        return self.cache + self.step + self.media


@dataclass(frozen=True)
class Admission:
    """The shares of a memory, in bytes. held: the process with all weights; step: reserved for the largest step;
    kept: for embeddings; tokens: what the cache may hold. token_budget, vision_budget: of the engine."""

    sizes: Sizes
    memory: int
    held: int
    step: int
    kept: int
    tokens: int
    token_budget: int
    vision_budget: int

    @classmethod
    def of(cls, model: Any, memory: int | str, token_budget: int, vision_budget: int, kept: int) -> Admission:
        """The shares for a model that is loaded. memory: bytes, or such as "4GB"; on a GPU that of the GPU. kept: the
        most bytes for embeddings. ValueError where not even the smallest request would fit, with the numbers."""
        most = parse_bytes(memory)
        packed = getattr(model, "quantization", None) is not None
        sizes = Sizes(model.config, model.dtype.itemsize, packed)
        held = held_bytes(model) + FIXED
        least = max(sizes.prefill(token_budget), sizes.tower(vision_budget))
        needed = held + least + sizes.cache(token_budget)
        left = most - held
        if most < needed:
            raise ValueError(
                f"memory={memory!r} is too little for this model: the process and its weights have {shown(held)}, a "
                f"step of {token_budget} tokens needs {shown(least)} and its cache {shown(sizes.cache(token_budget))}; "
                f"give at least {shown(1.05 * needed)}, quantize the model, or lower token_budget"
            )
        step = min(max(least, min(sizes.tower(LARGEST_PICTURE), left // 2)), left - sizes.cache(token_budget))
        kept = min(kept, (left - step) // KEPT_SHARE)
        tokens = sizes.tokens_in(left - step - kept)
        return cls(sizes, most, held, step, kept, tokens, token_budget, vision_budget)

    def cost(self, request: Request) -> Cost:
        """What a request needs, from its prompt and the sizes of its pictures."""
        sizes, items = self.sizes, request.items
        tower = max((sizes.tower(piece(item.grid, self.vision_budget)) for item in items), default=0)
        prompt = len(request.prompt_ids)
        return Cost(
            cache=sizes.cache(prompt + request.params.max_new_tokens - 1),
            step=max(tower, sizes.prefill(min(prompt, self.token_budget))),
            media=sum(item.patches.nbytes + sizes.embeds(_patches(item.grid)) for item in items),
        )

    def refusal(self, request: Request) -> ValueError | None:
        """Why a request can never run in this memory: the largest picture of it, or its prompt; None where it can."""
        for item in request.items:
            patches = piece(item.grid, self.vision_budget)
            needed, cell = self.sizes.tower(patches), self.sizes.config.vision_config.patch_size**2
            if needed > self.step:
                fits = self.sizes.patches_within(self.step) * cell
                return ValueError(
                    f"a picture of {patches} patches needs {shown(needed)} while it is encoded, but of "
                    f"memory={shown(self.memory)} a step may have {shown(self.step)}: lower max_pixels to "
                    f"{fits}, or raise memory"
                )
        prompt = len(request.prompt_ids)
        if prompt > self.tokens:
            return ValueError(
                f"the prompt has {prompt} tokens, whose cache needs {shown(self.sizes.cache(prompt))}, but of "
                f"memory={shown(self.memory)} the cache may have {shown(self.sizes.cache(self.tokens))} "
                f"({self.tokens} tokens): shorten it, lower max_pixels, or raise memory"
            )
        return None


def _patches(grid: tuple[int, int, int]) -> int:
    return grid[0] * grid[1] * grid[2]


def held_bytes(model: nn.Module) -> int:
    """Bytes of this process once all weights of `model` have been read: what it has now, and the pages of mapped files
    of weights that were not read yet. On a GPU: the weights there."""
    if next(model.parameters()).device.type != "cpu":
        return weight_bytes(model)
    now, mapped = resident_bytes(), mapped_weights()
    if now is None or mapped is None:
        return UNKNOWN_BASE + weight_bytes(model)
    ranges, read = mapped
    whole = sum(p.nbytes for p in model.parameters() if any(a <= p.data_ptr() < b for a, b in ranges))
    return now + max(whole - read, 0)


def reserve(pool: PagePool) -> None:
    """Let a cache with a limit have all of it now. On the CPU its pages take memory when they are first written."""
    assert pool.most_tokens is not None
    table = PageTable()
    if not pool.extend(table, pool.most_tokens // PAGE):
        raise ValueError(f"a cache of {pool.most_tokens} tokens cannot be had: {pool.refused}; lower memory")
    pool.release(table)


def check_numbers(token_budget: int, max_running: int, naturals: Mapping[str, int], **positive: int | None) -> None:
    """ValueError unless the numbers of an engine make sense; None is not checked."""
    for name, value in {"max_running": max_running, **positive}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} is not valid: expected at least 1")
    if min(naturals.values()) < 0:
        raise ValueError(f"{', '.join(f'{name}={value}' for name, value in naturals.items())}: expected 0 or more")
    if token_budget < max_running:
        raise ValueError(
            f"token_budget={token_budget} is below max_running={max_running}: each running request needs one token a "
            "step"
        )


def too_long(length: int, room: int) -> ValueError:
    """A prompt that the engine's own limits do not hold."""
    return ValueError(
        f"the prompt has {length} tokens, but a request may have at most {room} (the engine's capacity): shorten it, "
        "lower max_pixels, or raise the capacity"
    )
