"""An interrupt at any moment leaves an engine that is whole: no page is lost, later answers are right.

A trace function raises KeyboardInterrupt before the n-th bytecode that is executed within the engine's files, for many
n: that is where a signal can come. (In C code it comes as soon as that returns.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest
from scripted import ScriptedModel
from test_engine import ANSWERS, check, engine_of, looker, picture, request

import qwenvl.engine
from qwenvl.engine import Engine, Request
from qwenvl.engine.request import RequestState

FILES = str(Path(qwenvl.engine.__file__).parent)
LONG = "two"  # its answer repeats nothing, its prompt is short
TEXTS = {**ANSWERS, "ab" * 30: "abababab and abab" * 2, "ab" * 30 + "c": "cababab" * 4}


class Interrupter:
    """Raises before the n-th bytecode of the engine's own files; counts them where n is 0."""

    def __init__(self, n: int = 0) -> None:
        self.n, self.count, self.where = n, 0, ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(FILES):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.count += 1
            if self.count == self.n:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                raise KeyboardInterrupt
        return self

    def during(self, work: Callable[[], Any]) -> bool:
        """Whether the work was interrupted."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


def answer(history: list[int]) -> Any:
    from scripted import script

    return looker(history) if any(i < 0 for i in history) else script(TEXTS)(history)


def fresh() -> tuple[Engine, ScriptedModel]:
    """A small cache, so that requests give way; drafts; pictures; and something in it from before."""
    model = ScriptedModel(answer)
    engine, _ = engine_of(model, max_running=3, cache_tokens=16 * 18, token_budget=48, prompt_budget=32, draft_tokens=4,
                          vision_cache_bytes=64)  # fmt: skip
    engine.run([request(model, "ab" * 30)])
    return engine, model


def batch(model: ScriptedModel) -> list[Request]:
    texts = ["ab" * 30, "ab" * 30 + "c", "two", "ab" * 30]
    return [*(request(model, text) for text in texts), picture(model, [5, 6, 7]), picture(model, [7, 7])]


def expect_whole(engine: Engine, model: ScriptedModel, where: str) -> None:
    """Every page is blank or can be found, nothing is live, and answers are what they would have been."""
    steps = 0
    while engine.has_work:
        engine.step()
        steps += 1
        assert steps < 200, where
    check(engine)
    assert engine.stats.used_tokens == 0, where
    kept = (engine._live, engine._texts, engine._drafts._lookups, engine._preparing, engine._scheduler.waiting)
    assert not any(kept), where
    cache = engine._runner.vision.cache
    assert not cache._owners, where
    assert cache.nbytes == sum(held.nbytes for held in cache._held.values()), where
    done = engine.run(batch(model))
    assert [c.text for c in done[:4]] == [TEXTS[t] for t in ("ab" * 30, "ab" * 30 + "c", "two", "ab" * 30)], where
    assert [c.token_ids for c in done[4:]] == [[5, 6, 7], [7, 7]], where
    check(engine)
    assert engine.stats.used_tokens == 0, where


def run_batch(engine: Engine, model: ScriptedModel) -> Any:
    return lambda: engine.run(batch(model))


def run_prepared(engine: Engine, model: ScriptedModel) -> Any:
    return lambda: engine.run([partial(lambda one: one, one) for one in batch(model)])


def read_stream(engine: Engine, model: ScriptedModel) -> Any:
    return lambda: list(engine.stream(request(model, "ab" * 30 + "c")))


def abort_some(engine: Engine, model: ScriptedModel) -> Any:
    def work() -> None:
        requests = batch(model)
        try:
            for one in requests:
                engine.add(one)
            for _ in range(4):
                engine.step()
            for one in requests[::2]:
                engine.abort(one.id)
        finally:
            sys.settrace(None)
            for one in requests:
                engine.abort(one.id)

    return work


def interrupt_at(n: int, scenario: Callable[[Engine, ScriptedModel], Any]) -> bool:
    engine, model = fresh()
    interrupter = Interrupter(n)
    interrupted = interrupter.during(scenario(engine, model))
    expect_whole(engine, model, f"{scenario.__name__}, bytecode {n}, {interrupter.where}")
    engine.close()
    return interrupted


def moments(scenario: Callable[[Engine, ScriptedModel], Any], most: int) -> list[int]:
    """Moments to interrupt a scenario at: all, or so many of them."""
    counter = Interrupter()
    engine, model = fresh()
    counter.during(scenario(engine, model))
    engine.close()
    every = range(1, counter.count + 1)
    return list(every) if most >= len(every) else sorted(Random(most).sample(every, most))


SCENARIOS = [run_batch, run_prepared, read_stream, abort_some]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_interrupt_loses_no_page(scenario: Callable[[Engine, ScriptedModel], Any]) -> None:
    chosen = moments(scenario, 10)
    assert sum(interrupt_at(n, scenario) for n in chosen) > 5


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_interrupt_at_any_bytecode_loses_no_page(scenario: Callable[[Engine, ScriptedModel], Any]) -> None:
    chosen = moments(scenario, int(os.environ.get("QWENVL_INTERRUPTS", "300")))
    assert sum(interrupt_at(n, scenario) for n in chosen) > 0.8 * len(chosen)


def test_what_else_is_answered_goes_on_or_ends() -> None:
    """Two streams, of which one is interrupted: the other one is right to its end, or ends as aborted."""

    def scenario(n: int) -> tuple[str, str | None, int]:
        engine, model = fresh()
        other, mine = (engine.stream(request(model, text)) for text in ("ab" * 30 + "c", "ab" * 30))
        text = next(other).text
        interrupter = Interrupter(n)
        assert interrupter.during(partial(list, mine)) or not n
        events = list(other)
        text += "".join(event.text for event in events)
        expect_whole(engine, model, interrupter.where)
        return text, events[-1].finish_reason, interrupter.count

    wanted = TEXTS["ab" * 30 + "c"]
    *right, count = scenario(0)
    assert right == [wanted, "stop"]
    ends = []
    for n in Random(0).sample(range(1, count + 1), 15):
        text, reason, _ = scenario(n)
        ends.append(reason)
        assert text == wanted if reason == "stop" else wanted.startswith(text) and reason == "abort", (n, text)
    assert ends.count("stop") > 4


def test_a_hook_that_raises_leaves_the_others_to_be_answered() -> None:
    """What a hook raises leaves step(); the request is ended, and one that only waited is answered."""
    from qwenvl.engine.request import Hooks

    def fails(ids: list[int], scores: Any) -> Any:
        raise RuntimeError("a processor of the caller's")

    engine, model = engine_of(max_running=1)
    bad, good = request(model, "two"), request(model, "one")
    bad.hooks = Hooks(process=fails)
    engine.add(bad)
    engine.add(good)
    with pytest.raises(RuntimeError, match="of the caller's"):
        engine.step()
    while engine.has_work:
        engine.step()
    assert (bad.finish_reason, good.finish_reason, good.text) == ("abort", "stop", "eins")
    assert bad.state is RequestState.FINISHED
    check(engine)
    assert engine.stats.used_tokens == 0


def test_a_stream_that_is_never_read_is_ended() -> None:
    engine, model = engine_of()
    stream = engine.stream(request(model))
    assert engine.has_work
    del stream
    engine.step()
    assert not engine.has_work
