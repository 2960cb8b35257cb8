"""The same prompt computed in different ways: what comes out may differ by rounding, and by nothing else.

Distances: for each row of logits the root of the mean squared difference in units of the row's standard deviation;
then the mean over rows. NOISE is what healthy models stay below. Measured on the bundled model: 1e-5 in float32, 0.002
in float16 and 0.012 in bfloat16 between native code and torch's operators; a mask that is left out, a cache that is
read in a wrong place or a picture that gets into another prompt is 0.3 and more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwenvl.doctor.case import Case
from qwenvl.doctor.finding import Notes, Outcome, Unavailable

if TYPE_CHECKING:
    from qwenvl.doctor.case import Model

NOISE = {torch.float64: 1e-3, torch.float32: 3e-3, torch.float16: 0.03, torch.bfloat16: 0.1}
NOISE_PACKED = 0.15  # quantized weights, whose products round their inputs to 8 bits
NEW = 8  # tokens of an answer
CHUNK = 13
TALKS: tuple[tuple[str, tuple[int, int] | None], ...] = (
    ("Describe this image.", (252, 196)),
    ("How many shapes are there, and what is left of the largest one?", (140, 224)),
    ("What do you see?", None),
)
BUG = "this is code, not the checkpoint: try QWENVL_NATIVE=0 or another --dtype, and report it"


def distance(found: Tensor, wanted: Tensor) -> float:
    """[N, vocabulary] each; see the module."""
    found, wanted = found.detach().float().cpu(), wanted.detach().float().cpu()
    return float(((found - wanted).square().mean(-1).sqrt() / wanted.std(-1).clamp_min(1e-6)).mean())


def noise(model: Model) -> float:
    """The distance that rounding explains in this model."""
    return NOISE_PACKED if model.quantization is not None else NOISE[model.dtype]


@dataclass
class Comparison:
    """Distances of several ways from one reference, collected."""

    limit: float
    notes: Notes
    worst: float = 0.0

    def add(self, what: str, found: Tensor, wanted: Tensor) -> None:
        if not (bool(torch.isfinite(found).all()) and bool(torch.isfinite(wanted).all())):
            raise Unavailable("there are numbers that are not finite: see the check of finite numbers")
        far = distance(found, wanted)
        self.worst = max(self.worst, far)
        if far > self.limit:
            self.notes.fault(f"{what}: logits are {far:.2g} apart, rounding explains {self.limit:g}", BUG)

    def outcome(self, what: str) -> Outcome:
        return self.notes.outcome(f"{what}: at most {self.worst:.1g} apart (rounding explains {self.limit:g})")


def _comparison(case: Case) -> Comparison:
    return Comparison(noise(case.model), Notes())


def _prompts(case: Case) -> list[dict[str, Any]]:
    return [case.prompt(*talk) for talk in TALKS]


def _joined(case: Case, prompts: Sequence[dict[str, Any]], side: str) -> dict[str, Any]:
    """Prompts as one batch, padded on that side."""
    rows = [prompt["input_ids"][0].tolist() for prompt in prompts]
    batch: dict[str, Any] = case.processor.tokenizer.pad(rows, True, side, "pt")
    for name in ("pixel_values", "image_grid_thw"):
        batch[name] = torch.cat([prompt[name] for prompt in prompts if name in prompt])
    return {name: value.to(case.model.device) for name, value in batch.items()}


@dataclass(frozen=True)
class Written:
    """An answer: its ids, and the logits [n, vocabulary] that each was chosen from."""

    ids: list[int]
    logits: Tensor

    def until(self, other: Written) -> int:
        """How many steps both were asked the same: up to the first where they chose another token, included."""
        same = list(takewhile(lambda pair: pair[0] == pair[1], zip(self.ids, other.ids, strict=False)))
        return min(len(same) + 1, len(self.ids), len(other.ids))


def write(model: Model, prompts: Sequence[dict[str, Any]], **options: Any) -> list[Written]:
    """Greedy answers of the engine. options: of Engine."""
    from qwenvl.engine import Engine, Request
    from qwenvl.types import SamplingParams

    params = SamplingParams(max_new_tokens=NEW, ignore_eos=True, keep_logits=True)
    requests = [Request.from_inputs(prompt, model.config, params) for prompt in prompts]
    engine = Engine(model, max_running=len(requests), prefix_cache=False, eos_token_ids=(), **options)
    for completion in engine.run(requests):
        if completion.error is not None:
            raise ArithmeticError(completion.error)
    return [Written(one.output_ids, torch.stack(one.output_logits)) for one in requests]


@torch.inference_mode()
def batch(case: Case) -> Outcome:
    """Three prompts of different lengths: alone, together in the engine, and padded on either side in forward()."""
    model, prompts, seen = case.model, _prompts(case), _comparison(case)
    alone = [model(**prompt).logits[0] for prompt in prompts]
    for side in ("left", "right"):
        inputs = _joined(case, prompts, side)
        together, mask = model(**inputs).logits, inputs["attention_mask"].bool()
        for i, wanted in enumerate(alone):
            seen.add(f"prompt {i}, padded on the {side}", together[i][mask[i]], wanted)
    answers = [write(model, [prompt])[0] for prompt in prompts]
    ties = 0
    for i, (one, other) in enumerate(zip(write(model, prompts), answers, strict=True)):
        steps = one.until(other)
        seen.add(f"answer {i}, among others", one.logits[:steps], other.logits[:steps])
        ties += one.ids != other.ids
    if ties:
        seen.notes.note(f"{ties} answers took another token at a near tie")
    return seen.outcome(f"{len(prompts)} prompts alone, padded on both sides and together in the engine")


@torch.inference_mode()
def chunks(case: Case) -> Outcome:
    """A prompt with a picture, computed whole and a few tokens at a time."""
    model, seen = case.model, _comparison(case)
    prompt = case.prompt()
    whole, parts = (write(model, [prompt], token_budget=budget)[0] for budget in (2048, CHUNK))
    steps = whole.until(parts)
    seen.add(f"in chunks of {CHUNK}", parts.logits[:steps], whole.logits[:steps])
    if whole.ids != parts.ids:
        seen.notes.note("another token at a near tie")
    return seen.outcome(
        f"{prompt['input_ids'].shape[1]} tokens whole and in chunks of {CHUNK}, {steps} tokens answered"
    )


def _rescored(model: Model, prompt: dict[str, Any], answer: Written) -> Tensor:
    """The logits of an answer's tokens by one pass over prompt and answer, without a cache."""
    ids = torch.tensor([answer.ids[:-1]], device=model.device)
    whole = {**prompt, "input_ids": torch.cat((prompt["input_ids"], ids), 1)}
    whole.pop("attention_mask", None)
    logits: Tensor = model(**whole, use_cache=False).logits[0]
    return logits[prompt["input_ids"].shape[1] - 1 :]


@torch.inference_mode()
def cached(case: Case) -> Outcome:
    """Answers of the engine and of forward() with past_key_values, against one pass without a cache."""
    model, seen = case.model, _comparison(case)
    for i, prompt in enumerate(_prompts(case)):
        answer = write(model, [prompt])[0]
        wanted = _rescored(model, prompt, answer)
        seen.add(f"prompt {i}, the engine", answer.logits, wanted)
        seen.add(f"prompt {i}, past_key_values", _stepped(model, [answer.ids], prompt)[0], wanted)
    return seen.outcome(f"{len(TALKS)} answers of {NEW} tokens with and without cached keys")


def _stepped(model: Model, answers: list[list[int]], inputs: dict[str, Any]) -> Tensor:
    """Logits [B, n, vocabulary] of given answers, token by token through forward() and its cache. Prompts are padded
    on the left."""
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    rows, mask = [output.logits[:, -1]], inputs["attention_mask"]
    for token in torch.tensor(answers, device=model.device).T[:-1]:
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), 1)
        past = output.past_key_values
        output = model(input_ids=token.unsqueeze(1), attention_mask=mask, past_key_values=past, use_cache=True)
        rows.append(output.logits[:, -1])
    return torch.stack(rows, 1)


@contextmanager
def computed_with(model: Model, name: str) -> Iterator[None]:
    """The model with another attention back end, for as long as the context lasts."""
    from qwenvl.model.backends import backend_named

    chosen, before = backend_named(name), []
    for part in model.modules():
        for attribute in ("backend", "_backend"):
            if callable(vars(part).get(attribute)):
                before.append((part, attribute, vars(part)[attribute]))
                setattr(part, attribute, chosen)
    assert before, "no part of the model computes attention"
    try:
        yield
    finally:
        for part, attribute, backend in before:
            setattr(part, attribute, backend)


@torch.inference_mode()
def back_ends(case: Case) -> Outcome:
    """Prompts of different lengths and decode steps with the model's back end, and with each other one that can be
    used here, against the plain one (eager)."""
    from qwenvl.model.backends import NAMES

    model, seen = case.model, _comparison(case)
    inputs = _joined(case, _prompts(case), "left")
    mask = inputs["attention_mask"].bool()
    ids = [[5 + i] * 3 for i in range(len(mask))]  # the same tokens for all: what is compared are logits
    ran: dict[str, tuple[Tensor, Tensor]] = {}

    def run(name: str) -> None:
        ran[name] = model(**inputs, use_cache=False).logits[mask], _stepped(model, ids, inputs).flatten(0, 1)

    run("the model's own")
    for name in NAMES:
        if name == "flash_attention_2" and not _has_flash(model):
            seen.notes.note(f"{name} cannot be used here")
            continue
        with computed_with(model, name):
            run(name)
    for name, (prompts, steps) in ran.items():
        seen.add(f"{name}, prompts", prompts, ran["eager"][0])
        seen.add(f"{name}, decode steps", steps, ran["eager"][1])
    return seen.outcome(f"{', '.join(ran)}")


def _has_flash(model: Model) -> bool:
    """Whether this model, where it is, can be computed with flash_attention_2."""
    from qwenvl.model.backends import flash_kernel, require_flash

    try:
        require_flash(model.dtype, model.device)
        flash_kernel()
    except (ValueError, ImportError):
        return False
    return True


def kernels(case: Case) -> Outcome:
    """What native code computes (prompts, and decode steps of the engine) against torch's operators, which are used
    where gradients are wanted."""
    from qwenvl.kernels.linear import native_takes
    from qwenvl.kernels.native import reason

    model, prompt = case.model, case.prompt()
    weight = model.text.norm.weight
    with torch.inference_mode():
        native = native_takes(weight)
    if reason():
        raise Unavailable(f"there is no native code: {reason()}")
    if not native or model.quantization is not None:
        raise Unavailable("native code and torch's operators can be compared in bfloat16 on the CPU, not quantized")
    with torch.enable_grad():
        if native_takes(weight):
            raise Unavailable("the weights want no gradients, which is how native code is turned off here")
    seen = _comparison(case)
    with torch.inference_mode():
        quick, answer = model(**prompt).logits[0], write(model, [prompt])[0]
    with torch.enable_grad():
        plain, rescored = model(**prompt).logits[0].detach(), _rescored(model, prompt, answer).detach()
    seen.add("a prompt", quick, plain)
    seen.add("decode steps", answer.logits, rescored)
    return seen.outcome("a prompt and an answer by native code and by torch's operators")
