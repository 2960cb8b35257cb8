"""The model loads, every layer gives finite numbers, and what float16 would make of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from qwenvl.doctor.case import Case
from qwenvl.doctor.finding import Notes, Outcome, Unavailable, one_line, some
from qwenvl.model.finite import first_non_finite

HALF_LIMIT = 65504.0
CLOSE = 0.5  # of the limit: another picture may need twice as much


def loading(case: Case) -> Outcome:
    """Every tensor that config.json asks for is in the files with its shape, and none is left over."""
    try:
        model = case.load_model()
    except (ValueError, OSError) as error:
        advice = "config.json and the weights are not of one checkpoint, or not whole: fetch both again"
        return Outcome("fault", one_line(error), advice)
    packed = "" if model.quantization is None else f", {model.quantization}"
    kind = str(model.dtype).removeprefix("torch.")
    return Outcome("ok", f"{model.num_parameters():,} parameters in {kind} on {model.device}{packed}")


@torch.inference_mode()
def finite(case: Case) -> Outcome:
    """A drawn picture and a question give finite logits; else the first layer that does not is named."""
    model, inputs = case.model, case.prompt()
    kind = str(model.dtype).removeprefix("torch.")
    logits = model(**inputs).logits
    if bool(torch.isfinite(logits).all()):
        return Outcome("ok", f"{inputs['input_ids'].shape[1]} tokens with a picture in {kind}: all finite")
    where = first_non_finite(model, lambda: model(**inputs)) or "the logits"
    advice = "load it with --dtype bfloat16 or float32" if kind == "float16" else "see the check of values"
    return Outcome("fault", f"{where} is the first to give NaN or infinity in {kind}", advice)


class Largest:
    """Hooks that note the largest number that goes into and comes out of every part of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: dict[str, float] = {}
        self.finite = True
        self._handles = [part.register_forward_hook(self._hook(name)) for name, part in model.named_modules() if name]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def note(part: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            for where, values in ((f"what goes into {name}", inputs[:1]), (name, (output,))):
                for value in values:
                    if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                        most = float(value.abs().amax())
                        self.finite = self.finite and math.isfinite(most)
                        self.seen[where] = max(self.seen.get(where, 0.0), most)

        return note

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


@torch.inference_mode()
def half_precision(case: Case) -> Outcome:
    """A forecast: which layers would pass float16's largest number, from a run in the dtype that was chosen."""
    model, inputs = case.model, case.prompt()
    if model.dtype == torch.float16 and not bool(torch.isfinite(model(**inputs).logits).all()):
        raise Unavailable("it has overflowed in float16 already: see the check of finite numbers")
    watch = Largest(model)
    try:
        model(**inputs)
    finally:
        watch.remove()
    notes, parts = Notes(), watch.seen
    if not parts or not watch.finite:
        raise Unavailable("there are numbers that are not finite: see the check of finite numbers")
    over = [name for name, value in parts.items() if value > HALF_LIMIT]
    name, value = max(parts.items(), key=lambda item: item[1])
    if over:
        notes.warn(
            f"in float16 {len(over)} parts would overflow, the first {over[0]} ({parts[over[0]]:,.0f}), the largest "
            f"{name} ({value:,.0f}); all: {some(over)}",
            "do not load it in float16; bfloat16 and float32 are fine",
        )
    elif value > CLOSE * HALF_LIMIT:
        notes.warn(f"{name} comes to {value:,.0f}: other pictures may pass float16's limit", "prefer bfloat16")
    return notes.outcome(f"the largest is {value:,.0f} ({name}), {HALF_LIMIT / max(value, 1e-9):,.0f} times below")
