"""What prompt lookup saves, on answers that repeat much, a little, or nothing of their prompt.

    python bench/lookup.py MODEL [--rounds 3]

The answers are given: a hook makes the engine draw exactly those tokens, so that any checkpoint, random ones included,
does the work of a reader that is right. `extraction`: the values of a form as JSON, whose keys stand in the prompt.
`reading`: a page written out in full. `free`: tokens that were nowhere before. Runs with and without drafts are
interleaved; the ratio is of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from random import Random
from typing import Any

import torch

from qwenvl.checkpoint import load_model
from qwenvl.engine import Engine, Hooks, Request
from qwenvl.types import SamplingParams

DRAFT = 8


def form(luck: Random) -> tuple[list[int], list[int]]:
    """A page of 40 lines 'name: value' between other words; the answer copies names and values with JSON's signs."""
    words = range(1000, 60000)
    names = [luck.choices(words, k=2) for _ in range(40)]
    values = [luck.choices(words, k=luck.randint(1, 6)) for _ in range(40)]
    page = [t for n, v in zip(names, values, strict=True) for t in (*n, 25, *v, 198, *luck.choices(words, k=4), 198)]
    answer = [t for n, v in zip(names[:12], values[:12], strict=True) for t in (1, *n, 794, *v, 756)]
    return page, answer


def cases(luck: Random) -> dict[str, tuple[list[int], list[int]]]:
    page, answer = form(luck)
    text = luck.choices(range(1000, 60000), k=300)
    return {
        "extraction": (page, answer),
        "reading": ([*text, 198], text[:96]),
        "free": (text, luck.sample(range(60000, 120000), 64)),
    }


def seconds(model: Any, prompt: list[int], answer: list[int], draft: int) -> tuple[float, int, int]:
    """(seconds from the first token to the last, drafted, accepted)."""

    def forced(said: list[int], scores: torch.Tensor) -> torch.Tensor:
        out = torch.full_like(scores, float("-inf"))
        out[answer[len(said)]] = 0.0
        return out

    engine = Engine(model, draft_tokens=draft, prefix_cache=False)
    request = Request.from_inputs(
        {"input_ids": torch.tensor(prompt)},
        model.config,
        SamplingParams(max_new_tokens=len(answer), ignore_eos=True),
        hooks=Hooks(process=forced),
    )
    engine.add(request)
    while not request.output_ids:
        engine.step()
    started = time.perf_counter()
    while not request.finished:
        engine.step()
    assert request.output_ids == answer
    return time.perf_counter() - started, engine.stats.drafted, engine.stats.accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    print(f"{'answer':<12}{'tokens':>8}{'tok/s':>9}{'with drafts':>13}{'ratio':>8}{'accepted':>10}")
    for name, (prompt, answer) in cases(Random(0)).items():
        plain, fast = [], []
        for _ in range(arguments.rounds):
            plain.append(seconds(model, prompt, answer, 0)[0])
            took, drafted, accepted = seconds(model, prompt, answer, DRAFT)
            fast.append(took)
        rates = [(len(answer) - 1) / statistics.median(times) for times in (plain, fast)]
        share = f"{accepted}/{drafted}"
        print(f"{name:<12}{len(answer):>8}{rates[0]:>9.1f}{rates[1]:>13.1f}{rates[1] / rates[0]:>8.2f}{share:>10}")


if __name__ == "__main__":
    main()
