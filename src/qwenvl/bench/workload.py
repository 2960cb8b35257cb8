"""What the benchmark asks: prompts, sizes of pictures, and requests that arrive over time. No torch, no files."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

PROMPT = (
    "Describe this picture in detail: list every object that you can see, its colour, its position, and say what the "
    "overall scene could be used for."
)
FOLLOW_UP = "Which of these objects is the largest, and why?"
UNIT = 28  # pixels on a side of what becomes one token

Pixels = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Arrival:
    """One request of the stream: when, about a picture of which size, and how many tokens are wanted."""

    at: float
    size: Pixels
    new_tokens: int


@dataclass(frozen=True)
class Workload:
    """How large everything is. prompt_tokens: of the text-only prompts of prefill; answers in tokens; times in seconds.

    arrivals, gap: how many requests the stream has, and their mean distance in time. picture_tokens, answer_tokens:
    least and most of each request. pixels, frames, contexts, batches: the points of the growth phases.
    """

    large: Pixels = (1024, 768)
    small: Pixels = (448, 448)
    prompt_tokens: int = 1051
    answer: int = 48
    second_answer: int = 16
    steps: int = 24
    batch: int = 8
    arrivals: int = 32
    gap: float = 0.5
    picture_tokens: tuple[int, int] = (256, 1500)
    answer_tokens: tuple[int, int] = (16, 96)
    pixels: tuple[Pixels, ...] = ((448, 448), (896, 448), (896, 896), (1792, 896))
    frames: tuple[int, ...] = (2, 4, 8, 16)
    contexts: tuple[int, ...] = (1024, 2048, 4096, 8192)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    batch_context: int = 512

    def stream(self, seed: int) -> list[Arrival]:
        """Requests with exponential gaps (a Poisson stream); sizes of pictures even on a logarithmic scale."""
        draw = random.Random(seed)
        at, found = 0.0, []
        low, high = (math.log(n) for n in self.picture_tokens)
        for _ in range(self.arrivals):
            area, shape = math.exp(draw.uniform(low, high)), draw.uniform(0.6, 1.7)
            rows = max(2, int(math.sqrt(area / shape)))
            columns = max(2, int(area / rows))
            found.append(Arrival(at, (columns * UNIT, rows * UNIT), draw.randint(*self.answer_tokens)))
            at += draw.expovariate(1 / self.gap)
        return found


TINY = Workload(
    large=(168, 112), small=(84, 84), prompt_tokens=40, answer=6, second_answer=4, steps=4, batch=3, arrivals=4,
    gap=0.01, picture_tokens=(6, 20), answer_tokens=(3, 6), pixels=((84, 84), (168, 84)), frames=(2, 4),
    contexts=(32, 64), batches=(1, 2), batch_context=16,
)  # fmt: skip
