"""Admission by memory: shares of a limit, what a request costs, and that only what can never fit is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny import END, IMAGE, START, tiny_model

from qwenvl.engine import Engine, Request
from qwenvl.engine import admission as room
from qwenvl.engine.admission import Admission
from qwenvl.types import SamplingParams

BUDGETS = {"token_budget": 64, "vision_budget": 64}
HELD = 100 * 2**20


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(room, "resident_bytes", lambda: HELD)
    monkeypatch.setattr(room, "mapped_weights", lambda: ([], 0))
    return tiny_model()


def asked(model: Any, side: int, new: int = 4) -> Request:
    """A question about a picture of side x side patches."""
    tokens = side * side // 4
    pixels = torch.randn(side * side, 1176, generator=torch.Generator().manual_seed(side))
    ids = torch.tensor([3, START, *[IMAGE] * tokens, END, 4, 5])
    inputs = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, side, side]])}
    return Request.from_inputs(inputs, model.config, SamplingParams(max_new_tokens=new, ignore_eos=True))


def spare(model: Any, more: int) -> int:
    """A limit that leaves `more` bytes beside the process."""
    return HELD + room.FIXED + more


def test_shares_stay_within_the_limit(model: Any) -> None:
    for more in (2 * 10**6, 10**7, 10**8, 10**9):
        shares = Admission.of(model, spare(model, more), 64, 64, 2**28)
        cache = shares.sizes.cache(shares.tokens)
        assert shares.held + shares.step + shares.kept + cache <= shares.memory
        assert shares.tokens >= 64
        assert shares.step >= max(shares.sizes.prefill(64), shares.sizes.tower(64))


def test_a_model_that_does_not_fit(model: Any) -> None:
    with pytest.raises(ValueError, match=r"memory='50MB' is too little .* 130 MB, .*give at least"):
        Engine(model, memory="50MB", **BUDGETS)
    with pytest.raises(ValueError, match="memory='much' is not an amount"):
        Engine(model, memory="much", **BUDGETS)


def test_a_picture_too_large_fails_alone(model: Any) -> None:
    """Both numbers and what to change are said; those before and behind it are answered as without a limit."""
    small, large = asked(model, 8), asked(model, 96)
    needed = Admission.of(model, "1GB", 64, 64, 0).sizes.tower(96 * 96)
    engine = Engine(model, memory=spare(model, needed), **BUDGETS)
    answers = engine.run([small, large, asked(model, 12)])
    assert [a.finish_reason for a in answers] == ["length", "error", "length"]
    step = room.shown(engine._admission.step)
    assert f"9216 patches needs {room.shown(needed)}" in answers[1].error
    assert f"a step may have {step}: lower max_pixels to" in answers[1].error
    free = Engine(model, **BUDGETS).run([asked(model, 8), asked(model, 12)])
    assert [a.token_ids for a in free] == [answers[0].token_ids, answers[2].token_ids]


def test_the_max_pixels_named_is_taken(model: Any) -> None:
    needed = Admission.of(model, "1GB", 64, 64, 0).sizes.tower(96 * 96)
    shares = Admission.of(model, spare(model, needed), 64, 64, 0)
    told = str(shares.refusal(asked(model, 96)))
    side = int((int(told.split("max_pixels to ")[1].split(",")[0]) / 14**2) ** 0.5) // 2 * 2
    assert shares.refusal(asked(model, side)) is None
    assert shares.refusal(asked(model, side + 2)) is not None


def test_a_prompt_too_long_for_the_cache(model: Any) -> None:
    shares = Admission.of(model, spare(model, 2 * 10**6), 64, 64, 0)
    ids = torch.full((shares.tokens + 1,), 5)
    engine = Engine(model, memory=spare(model, 2 * 10**6), **BUDGETS, vision_cache_bytes=0)
    completion = engine.run([Request.from_inputs({"input_ids": ids}, model.config)])[0]
    assert completion.error is not None
    assert f"{shares.tokens + 1} tokens" in completion.error
    assert f"({shares.tokens} tokens): shorten it" in completion.error
    assert engine.stats.cache_tokens == shares.tokens


def test_what_a_request_costs(model: Any) -> None:
    shares = Admission.of(model, spare(model, 10**8), 64, 64, 0)
    one = asked(model, 16, new=11)
    cost = shares.cost(one)
    assert cost.cache == shares.sizes.cache(5 + 64 + 10)
    assert cost.step == max(shares.sizes.tower(256), shares.sizes.prefill(64))
    assert cost.media == one.items[0].patches.nbytes + 64 * 48 * model.dtype.itemsize
    assert cost.total == cost.cache + cost.step + cost.media


def test_weights_that_were_not_read_yet_count(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = next(model.parameters())
    monkeypatch.setattr(room, "mapped_weights", lambda: ([(weight.data_ptr(), weight.data_ptr() + weight.nbytes)], 100))
    assert room.held_bytes(model) == HELD + weight.nbytes - 100
    monkeypatch.setattr(room, "mapped_weights", lambda: None)
    assert room.held_bytes(model) > room.UNKNOWN_BASE


GROWTH = """
import json, sys
import torch
from qwenvl.checkpoint import load_model, resolve
from qwenvl.engine import Engine, Request
from qwenvl.machine import peak_bytes
from qwenvl.types import SamplingParams

torch.set_num_threads(1)
model = load_model(resolve("demo"))
engine = Engine(model, memory=sys.argv[1] if len(sys.argv) > 1 else None, max_running=4, token_budget=512)
config, requests = model.config, []
for side in (20, 40, 144):
    pixels = torch.randint(0, 255, (side * side, 588), dtype=torch.uint8)
    ids = torch.tensor([3, config.vision_start_token_id, *[config.image_token_id] * (side * side // 4), 4])
    inputs = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, side, side]])}
    inputs["pixel_affine"] = ((0.01,) * 3, (-1.0,) * 3)
    requests.append(Request.from_inputs(inputs, config, SamplingParams(max_new_tokens=8, ignore_eos=True)))
answers = engine.run(requests)
print(json.dumps([[a.error for a in answers], peak_bytes()]))
"""


def grown(*limit: str) -> tuple[list[str | None], int]:
    done = subprocess.run([sys.executable, "-c", GROWTH, *limit], capture_output=True, text=True, check=True)
    errors, peak = json.loads(done.stdout.splitlines()[-1])
    return errors, peak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is told by /proc")
def test_growth_stays_below_the_limit() -> None:
    """The bundled model in a process with a limit, which the same requests pass without it."""
    limit = 340_000_000
    errors, peak = grown(str(limit))
    assert errors[:2] == [None, None]
    assert "lower max_pixels to" in (errors[2] or "")
    assert peak < limit
    errors, peak = grown()
    assert errors == [None, None, None]
    assert peak > limit
