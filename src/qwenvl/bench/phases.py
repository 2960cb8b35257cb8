"""What is measured: for each phase its points, the command of each point, and what the machine's limits allow there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qwenvl.bench import figures
from qwenvl.bench.pictures import Album
from qwenvl.bench.work import Work
from qwenvl.bench.workload import FOLLOW_UP, PROMPT, Pixels, Workload

OVERHEAD = 52  # tokens of a prompt beside those of its picture


class Draws:
    """Fresh pictures and seeds: nothing that was shown once is shown again, so no cache can answer from before."""

    def __init__(self, album: Album) -> None:
        self._album, self._count = album, 0

    def seed(self) -> int:
        self._count += 1
        return self._count

    def picture(self, size: Pixels) -> str:
        return self._album.path(size, self.seed())


Make = Callable[[Draws], dict[str, Any]]


@dataclass(frozen=True)
class Limits:
    """What one machine reaches: GFLOP/s of a bf16 product, GB/s of reading memory."""

    gflops: float
    gbs: float


Best = Callable[[Limits, str], dict[str, float]]  # (limits, kind of weights) -> metrics that they allow


@dataclass(frozen=True)
class Point:
    """One thing to measure. x: its place on the axis of a growth phase."""

    label: str
    command: Make
    best: Best = lambda limits, weights: {}
    x: float = 0.0


@dataclass(frozen=True)
class Phase:
    """points: of a workload and a model. axis: what grows, "" where nothing does.

    most_rounds: for what takes long. warm: how many of its points each row runs once before it counts. fresh: each
    run has a process of its own.
    """

    about: str
    points: Callable[[Workload, Work], list[Point]]
    read: figures.Reader
    axis: str = ""
    most_rounds: int = 100
    warm: int = 100
    fresh: bool = False


def with_picture(do: str, size: Pixels, **values: Any) -> Make:
    """A command about a fresh picture of this size."""
    return lambda draws: {"do": do, "picture": draws.picture(size), **values}


def with_seed(do: str, **values: Any) -> Make:
    """A command about fresh ids."""
    return lambda draws: {"do": do, "seed": draws.seed(), **values}


def _sizes(load: Workload) -> list[tuple[str, Pixels]]:
    return [(f"{width}x{height}", (width, height)) for width, height in (load.large, load.small)]


def _patches(load: Workload, work: Work) -> list[Point]:
    return [Point(name, with_picture("patches", size)) for name, size in _sizes(load)]


def _towered(work: Work, size: Pixels, frames: int = 1) -> Best:
    return lambda limits, weights: {"tower": work.tower(size, frames) / limits.gflops / 1e9}


def _tower(load: Workload, work: Work) -> list[Point]:
    return [Point(name, with_picture("tower", size), _towered(work, size)) for name, size in _sizes(load)]


def _prefill(load: Workload, work: Work) -> list[Point]:
    tokens = load.prompt_tokens

    def best(limits: Limits, weights: str) -> dict[str, float]:
        return {"prefill": work.prefill(tokens) / limits.gflops / 1e9}

    return [Point(f"{tokens} tokens", with_seed("prefill", tokens=tokens), best)]


def _answered(work: Work, size: Pixels, new_tokens: int) -> Best:
    rows, columns = work.grid(size)
    prompt = rows * columns // 4 + OVERHEAD

    def best(limits: Limits, weights: str) -> dict[str, float]:
        first = (work.tower(size) + work.prefill(prompt)) / limits.gflops / 1e9
        return {"first": first, "decode": limits.gbs * 1e9 / work.step([prompt + new_tokens // 2], weights)}

    return best


def _answer(load: Workload, work: Work) -> list[Point]:
    return [
        Point(
            name,
            with_picture("answer", size, prompt=PROMPT, new_tokens=load.answer),
            _answered(work, size, load.answer),
        )
        for name, size in _sizes(load)
    ]


def _batch(load: Workload, work: Work) -> list[Point]:
    def command(draws: Draws) -> dict[str, Any]:
        common = {"at": 0.0, "prompt": PROMPT, "new_tokens": load.answer}
        return {
            "do": "serve",
            "requests": [{**common, "picture": draws.picture(load.small)} for _ in range(load.batch)],
        }

    rows, columns = work.grid(load.small)
    contexts = [rows * columns // 4 + OVERHEAD + load.answer // 2] * load.batch

    def best(limits: Limits, weights: str) -> dict[str, float]:
        return {"decode": load.batch * limits.gbs * 1e9 / work.step(contexts, weights)}

    return [Point(f"{load.batch} at once, {load.small[0]}x{load.small[1]}", command, best)]


def _stream(load: Workload, work: Work) -> list[Point]:
    def command(draws: Draws) -> dict[str, Any]:
        arrivals = load.stream(seed=0)  # the same stream in each round, with other pictures
        made = [{"at": a.at, "picture": draws.picture(a.size), "new_tokens": a.new_tokens} for a in arrivals]
        return {"do": "serve", "requests": [{**one, "prompt": PROMPT} for one in made]}

    return [Point(f"{load.arrivals} mixed requests, one in {load.gap:g} s", command)]


def _chat(load: Workload, work: Work) -> list[Point]:
    turns = {"prompt": PROMPT, "new_tokens": load.second_answer}
    turns |= {"follow_up": FOLLOW_UP, "next_tokens": load.second_answer}
    return [Point(name, with_picture("chat", size, **turns)) for name, size in _sizes(load)[:1]]


def _start(load: Workload, work: Work) -> list[Point]:
    name, size = _sizes(load)[1]
    return [Point(name, with_picture("answer", size, prompt=PROMPT, new_tokens=1))]


def _memory(load: Workload, work: Work) -> list[Point]:
    name, size = _sizes(load)[0]
    return [Point(f"one answer, {name}", with_picture("answer", size, prompt=PROMPT, new_tokens=load.second_answer))]


def _by_pixels(load: Workload, work: Work) -> list[Point]:
    return [
        Point(f"{w}x{h}", with_picture("tower", (w, h)), _towered(work, (w, h)), w * h / 1e6) for w, h in load.pixels
    ]


def _by_frames(load: Workload, work: Work) -> list[Point]:
    def frames(count: int) -> Make:
        return lambda draws: {"do": "frames", "pictures": [draws.picture(load.small) for _ in range(count)]}

    return [
        Point(f"{count} frames", frames(count), _towered(work, load.small, count // 2), count) for count in load.frames
    ]


def _steps(work: Work, label: str, context: int, batch: int, steps: int, x: int) -> Point:
    def best(limits: Limits, weights: str) -> dict[str, float]:
        return {"step": work.step([context + steps // 2] * batch, weights) / limits.gbs / 1e9}

    return Point(label, with_seed("decode", context=context, batch=batch, steps=steps), best, x)


def _by_context(load: Workload, work: Work) -> list[Point]:
    return [_steps(work, f"{context} tokens", context, 1, load.steps, context) for context in load.contexts]


def _by_batch(load: Workload, work: Work) -> list[Point]:
    return [_steps(work, f"{batch} sequences", load.batch_context, batch, load.steps, batch) for batch in load.batches]


PHASES = {
    "patches": Phase("a JPEG's path to the values that the tower takes", _patches, figures.seconds_as("patches")),
    "tower": Phase("those values to the picture's embeddings", _tower, figures.seconds_as("tower")),
    "prefill": Phase("the text model over a prompt", _prefill, figures.seconds_as("prefill")),
    "answer": Phase("a whole request alone", _answer, figures.of_answer),
    "batch": Phase("requests that come together", _batch, figures.of_batch, most_rounds=3, warm=1),
    "stream": Phase("requests that arrive over time", _stream, figures.of_stream, most_rounds=2, warm=0),
    "chat": Phase("a second question about the same picture", _chat, figures.of_chat),
    "start": Phase("a fresh process to its first token", _start, figures.of_start, warm=0, fresh=True),
    "memory": Phase("a fresh process that answers once", _memory, figures.of_memory, most_rounds=3, warm=0, fresh=True),
    "pixels": Phase("the tower by pixels", _by_pixels, figures.seconds_as("tower"), "megapixels", 3, 1),
    "frames": Phase("the tower by frames", _by_frames, figures.seconds_as("tower"), "frames", 3, 1),
    "context": Phase("a step of decoding by context", _by_context, figures.of_step, "tokens of context", 3, 1),
    "batches": Phase("a step of decoding by batch", _by_batch, figures.of_step, "sequences", 3, 1),
}
