"""How fast this model runs here, as shares of what the machine can do (bench/limits.py)."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, cast

import torch

from qwenvl.config import Qwen2_5_VLConfig
from qwenvl.doctor.case import Case
from qwenvl.doctor.finding import Notes, Outcome, Unavailable
from qwenvl.quantization.schemes import TEXT, part_of

if TYPE_CHECKING:
    from qwenvl.doctor.case import Model

PROMPT, NEW = 512, 17
LARGE = 300_000_000  # parameters from which on the machine's limits, not calls, take the time
SLOW = 0.25  # of what reading the weights allows
RUNS, ENOUGH = 3, 5.0  # so many, unless seconds are enough to say that starting up counts little


def shares(case: Case) -> Outcome:
    """Prefill against the rate of products, decode against the rate of reading weights."""
    from qwenvl.bench.limits import Limits
    from qwenvl.bench.work import Work
    from qwenvl.kernels.native import reason

    model, notes = case.model, Notes()
    if model.device.type != "cpu":
        raise Unavailable(f"the limits are measured for the CPU, the model is on {model.device}")
    tokens = min(PROMPT, model.config.text_config.max_position_embeddings // 2)
    first, step = _best(case, tokens)
    meter = Limits(torch.get_num_threads())
    meter.load()
    limits = meter.limits()
    work = Work(cast(Qwen2_5_VLConfig, model.config))  # of the text part, which both families share
    size = {torch.float32: 2.0, torch.float64: 4.0}.get(model.dtype, 1.0)  # bytes in units of those counted
    prefill = work.prefill(tokens) / limits["gflops"] / 1e9 / first
    decode = work.step([tokens], _weights(model)) * size / limits["gbs"] / 1e9 / step
    large = model.num_parameters() >= LARGE
    if large and decode < SLOW:
        why = reason() or "another program may be using the cores"
        notes.warn(f"decode reads weights at {decode:.0%} of the rate that the machine reads at", why)
    if not large:
        notes.note("a model this small is bound by calls, not by the machine's limits")
    return notes.outcome(
        f"{tokens} tokens in {first * 1e3:,.0f} ms ({prefill:.0%} of {limits['gflops']:,.0f} GFLOP/s), then "
        f"{step * 1e3:.2f} ms a token ({decode:.0%} of {limits['gbs']:.0f} GB/s), {torch.get_num_threads()} threads"
    )


def _weights(model: Model) -> str:
    """What most linears of the text layers are, in the words of Work."""
    schemes = {} if model.quantization is None else model.quantization.schemes
    kinds = Counter(scheme.kind for name, scheme in schemes.items() if part_of(name) == TEXT)
    return next((kind for kind, _ in kinds.most_common(1)), "bf16")


def _best(case: Case, tokens: int) -> tuple[float, float]:
    """The smallest of both times over some runs."""
    start, times = time.perf_counter(), [_times(case, tokens)]
    while len(times) < RUNS and time.perf_counter() - start < ENOUGH:
        times.append(_times(case, tokens))
    return min(first for first, _ in times), min(step for _, step in times)


def _times(case: Case, tokens: int) -> tuple[float, float]:
    """Seconds to the first token of an answer to `tokens` tokens, and of each further one."""
    from qwenvl.engine import Engine, Request
    from qwenvl.types import SamplingParams

    model = case.model
    params = SamplingParams(max_new_tokens=NEW, ignore_eos=True)
    ids = torch.arange(tokens) % 200 + 1
    engine = Engine(model, max_running=1, prefix_cache=False, eos_token_ids=())
    request = Request.from_inputs({"input_ids": ids}, model.config, params)
    start, moments = time.perf_counter(), []
    for event in engine.stream(request):
        if event.token_id is not None:
            moments.append(time.perf_counter())
    return moments[0] - start, (moments[-1] - moments[0]) / (len(moments) - 1)
