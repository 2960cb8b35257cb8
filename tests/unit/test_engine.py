"""The engine under a scripted model: scheduling, pages, streaming, stopping, aborting, errors."""

from __future__ import annotations

import threading
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from scripted import EOS, IMAGE, VISION_END, VISION_START, ByteTokenizer, ScriptedModel, prompt, script

from qwenvl.engine import Engine, Request
from qwenvl.engine.blocks import PAGE
from qwenvl.types import SamplingParams

ANSWERS = {"one": "eins", "two": "zwei, and a long tail", "three": "drei €uro", "": "empty"}


def engine_of(model: ScriptedModel | None = None, **options: Any) -> tuple[Engine, ScriptedModel]:
    model = model or ScriptedModel(script(ANSWERS))
    return Engine(model, ByteTokenizer(), **options), model


def check(engine: Engine) -> None:
    """The allocator's invariant: every page is accounted for."""
    engine._pool.check(r.table for r in engine._scheduler.running)


def request(model: ScriptedModel, text: str = "one", priority: int = 0, id: str = "", **params: Any) -> Request:
    inputs = {"input_ids": torch.tensor(prompt(text))}
    return Request.from_inputs(inputs, model.config, SamplingParams(**params), priority=priority, id=id)


def picture(model: ScriptedModel, values: list[int], text: str = "one", **params: Any) -> Request:
    """A prompt with one picture of grid (1, 2, 2n); vision token i has the embedding -values[i]."""
    ids = [65, VISION_START, *[IMAGE] * len(values), VISION_END, *prompt(text)]
    pixels = -torch.tensor(values, dtype=torch.float32).repeat_interleave(4).unsqueeze(1)
    inputs = {
        "input_ids": torch.tensor([ids]),
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 2, 2 * len(values)]]),
    }
    return Request.from_inputs(inputs, model.config, SamplingParams(**params))


def looker(history: list[int]) -> int:
    """Answers the embeddings it sees of the picture (negative in the history) as bytes, then ends."""
    seen = [-i for i in history if i < 0]
    said = len(history) - history.index(3) - 1
    return seen[said] if said < len(seen) else EOS


# Answers


def test_run_answers_in_the_order_of_the_requests() -> None:
    engine, model = engine_of(max_running=2)
    done = engine.run([request(model, text) for text in ("two", "one", "three", "")])
    assert [c.text for c in done] == ["zwei, and a long tail", "eins", "drei €uro", "empty"]
    assert {c.finish_reason for c in done} == {"stop"}
    assert done[1].token_ids == list(b"eins")
    assert done[1].prompt_tokens == 4
    assert not engine.has_work


@pytest.mark.feature(77)
def test_an_answer_past_the_context_is_told_once(recwarn: pytest.WarningsRecorder) -> None:
    """Prompt "two" takes 4 positions here; the context ends with the third token of the answer."""
    model = ScriptedModel(script(ANSWERS))
    model.config.text_config.context_length = len(prompt("two")) + 3
    engine, _ = engine_of(model)
    (done,) = engine.run([request(model, "two")])
    assert done.text == "zwei, and a long tail"
    told = [str(w.message) for w in recwarn if "goes past the 7 positions" in str(w.message)]
    assert len(told) == 1
    engine.run([request(model, "two", max_new_tokens=3)])
    assert len([w for w in recwarn if "goes past" in str(w.message)]) == 1


@pytest.mark.parametrize("limit", [1, 3, 4, 5])
def test_max_new_tokens_is_exact(limit: int) -> None:
    engine, model = engine_of()
    done = engine.run([request(model, "one", max_new_tokens=limit)])[0]
    assert done.text == "eins"[:limit]
    assert done.finish_reason == ("stop" if limit == 5 else "length")
    assert sum(map(sum, model.steps)) == 4 + min(limit, 5) - 1, "each token is computed once, the last one never"


def test_stop_token_ids_and_ignore_eos() -> None:
    engine, model = engine_of()
    done = engine.run([request(model, stop_token_ids=(ord("n"),)), request(model, ignore_eos=True, max_new_tokens=5)])
    assert (done[0].text, done[0].token_ids, done[0].finish_reason) == ("ei", list(b"ei"), "stop")
    assert (done[1].token_ids, done[1].finish_reason) == ([*b"eins", EOS], "length")


def test_eos_comes_from_the_generation_config_first() -> None:
    model = ScriptedModel(script(ANSWERS))
    model.generation_config = {"eos_token_id": [ord("n"), 5]}  # type: ignore[attr-defined]
    assert Engine(model, ByteTokenizer()).run([request(model)])[0].text == "ei"
    assert Engine(model, ByteTokenizer(), eos_token_ids=[ord("i")]).run([request(model)])[0].text == "e"


def test_logprobs_belong_to_the_tokens() -> None:
    engine, model = engine_of()
    done = engine.run([request(model, logprobs=True), request(model)])
    assert done[0].logprobs == pytest.approx([10 - torch.tensor([10.0] + [0.0] * 263).logsumexp(0).item()] * 4)
    assert done[1].logprobs is None


def test_a_vision_token_is_never_generated() -> None:
    def wants_a_picture(history: list[int]) -> torch.Tensor:
        row = torch.zeros(264)
        row[257:261], row[70] = 9.0, 1.0
        return row

    engine, model = engine_of(ScriptedModel(wants_a_picture))
    assert engine.run([request(model, max_new_tokens=3)])[0].text == "FFF"


def test_positions_of_the_answer_are_index_plus_delta() -> None:
    engine, model = engine_of(ScriptedModel(looker))
    asked = picture(model, [7, 8, 9, 10])
    assert engine.run([asked])[0].token_ids == [7, 8, 9, 10]
    _, positions = model.histories[-1]
    assert asked.delta == 0  # 4 columns in a row: as long as it is wide; the time row stands still meanwhile
    assert positions == [0, 1, 2, 2, 2, 2, *range(6, 15)]


# Stop strings and text


def test_stop_string_over_several_tokens_is_cut() -> None:
    engine, model = engine_of()
    asked = request(model, "two", stop=(", and", "never"))
    pieces = [event.text for event in engine.stream(asked)]
    assert "".join(pieces) == "zwei" == asked.completion().text
    assert pieces == ["z", "w", "e", "i", "", "", "", "", ""]
    assert asked.completion().finish_reason == "stop"
    assert asked.completion().token_ids == list(b"zwei, and")


def test_text_held_for_a_stop_string_comes_out_at_the_end() -> None:
    engine, model = engine_of()
    events = list(engine.stream(request(model, "one", stop=("nsx",))))
    assert [e.text for e in events] == ["e", "i", "", "", "ns"]
    assert [e.token_id for e in events] == [*b"eins", EOS]
    assert engine.run([request(model, "two", stop=(", anx",), max_new_tokens=7)])[0].text == "zwei, a"


def test_half_a_character_is_never_streamed() -> None:
    engine, model = engine_of()
    pieces = [event.text for event in engine.stream(request(model, "three"))]
    assert pieces == [*"drei ", "", "", "€", *"uro", ""]
    assert engine.run([request(model, "three", max_new_tokens=6)])[0].text == "drei \N{REPLACEMENT CHARACTER}"


def test_special_tokens_can_be_kept_in_the_text() -> None:
    model = ScriptedModel(lambda history: 261 if history[-1] == 3 else EOS)
    assert Engine(model, ByteTokenizer()).run([request(model)])[0].text == ""
    assert Engine(model, ByteTokenizer(), skip_special_tokens=False).run([request(model)])[0].text == "<261>"


def test_without_a_tokenizer_there_are_ids() -> None:
    model = ScriptedModel(script(ANSWERS))
    engine = Engine(model)
    assert engine.run([request(model)])[0].token_ids == list(b"eins")
    with pytest.raises(ValueError, match="give the engine a tokenizer"):
        engine.add(request(model, stop=("x",)))


# Scheduling


def test_a_prompt_larger_than_the_budget_comes_in_chunks() -> None:
    model = ScriptedModel(script({"x" * 20: "ok"}))
    engine, _ = engine_of(model, max_running=2, token_budget=8)
    assert engine.run([request(model, "x" * 20)])[0].text == "ok"
    assert model.steps == [(8,), (8,), (5,), (1,), (1,)]


def test_chunks_and_decode_steps_share_a_batch() -> None:
    model = ScriptedModel(script({"one": "eins", "y" * 11: "ok"}))
    engine, _ = engine_of(model, max_running=4, token_budget=6)
    first, second = request(model, "one"), request(model, "y" * 11)
    done = engine.run([first, second])
    assert [c.text for c in done] == ["eins", "ok"]
    assert model.steps == [(4, 2), (1, 5), (1, 5), (1, 1), (1, 1)]


def test_mixed_arrival_joins_the_running_batch() -> None:
    engine, model = engine_of()
    first = request(model, "two")
    engine.add(first)
    for _ in range(3):
        engine.step()
    second = request(model, "three")
    assert engine.run([second])[0].text == "drei €uro"
    assert not first.finished
    while engine.has_work:
        engine.step()
    assert first.completion().text == "zwei, and a long tail"
    assert (1, 6) in model.steps


def test_priority_first_then_arrival() -> None:
    engine, model = engine_of(max_running=1)
    asked = [request(model, "one", priority) for priority in (0, 5, 0, 9)]
    for r in asked:
        engine.add(r)
    order = []
    while engine.has_work:
        order += [e.request_id for e in engine.step() if e.finish_reason]
    assert order == [asked[i].id for i in (3, 1, 0, 2)]


def test_two_streams_read_in_turn() -> None:
    engine, model = engine_of()
    streams = [engine.stream(request(model, text)) for text in ("one", "two")]
    texts = ["", ""]
    for _ in range(4):
        for i in (0, 1):
            texts[i] += next(streams[i]).text
    assert texts == ["eins", "zwei"]
    assert len(model.steps) == 4
    assert "".join(e.text for e in streams[1]) == ", and a long tail"


@pytest.mark.parametrize("seed", range(30))
def test_any_schedule_gives_the_same_answers(seed: int) -> None:
    luck = Random(seed)
    answers = {"p" * n: f"answer {n}" for n in range(1, 30)}
    model = ScriptedModel(script(answers))
    running = luck.randint(1, 4)
    budget = luck.randint(running, 12)
    engine, _ = engine_of(model, max_running=running, token_budget=budget)
    asked = [request(model, "p" * luck.randint(1, 29), priority=luck.randint(0, 1)) for _ in range(7)]
    waiting, aborted = list(asked), set()
    while waiting or engine.has_work:
        if waiting and luck.random() < 0.4:
            engine.add(waiting.pop())
        for event in engine.step():
            if event.finish_reason is None and luck.random() < 0.05:
                aborted |= {event.request_id} if engine.abort(event.request_id) else set()
        check(engine)
        assert max(map(sum, model.steps), default=0) <= budget
    for r in asked:
        text = answers[bytes(r.prompt_ids[:-1]).decode()]
        assert text.startswith(r.text) if r.id in aborted else r.text == text
    assert engine._pool.used == 0


# Pages


def test_the_cache_is_as_large_as_the_requests_need() -> None:
    engine, model = engine_of()
    engine.run([request(model, "one", max_new_tokens=10)])
    assert engine.stats.cache_tokens == PAGE
    engine.run([request(model, "one", max_new_tokens=300)])
    assert engine.stats.cache_tokens == PAGE, "the answer is short: no more is taken before it is needed"
    long, model = engine_of(ScriptedModel(script({"x" * 40: "ok"})))
    long.run([request(model, "x" * 40, max_new_tokens=100)])
    assert long.stats.cache_tokens == 9 * PAGE, "once it has to grow, it makes room for all 140 tokens side by side"
    assert engine.stats.used_tokens == 0


def test_abort_frees_the_pages_at_once() -> None:
    engine, model = engine_of(max_running=1)
    first, second = request(model, "two"), request(model, "one")
    engine.add(first)
    engine.add(second)
    engine.step()
    engine.step()
    assert engine._pool.used == 1
    assert engine.abort(first.id)
    assert engine._pool.used == 0
    assert not engine.abort(first.id)
    assert not engine.abort("no such request")
    events = engine.step()
    assert [(e.request_id, e.finish_reason) for e in events] == [(first.id, "abort"), (second.id, None)]
    assert (first.completion().text, first.completion().finish_reason) == ("zw", "abort")
    assert [e.text for e in events] == ["", "e"]


def test_a_stream_closed_early_aborts_its_request() -> None:
    engine, model = engine_of()
    asked = request(model, "two")
    stream = engine.stream(asked)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert asked.finish_reason == "abort"
    assert engine._pool.used == 0


def test_a_run_that_is_interrupted_leaves_nothing_behind() -> None:
    def interrupted(history: list[int]) -> int:
        if len(history) > 5:
            raise KeyboardInterrupt
        return 65

    engine, model = engine_of(ScriptedModel(interrupted))
    with pytest.raises(KeyboardInterrupt):
        engine.run([request(model), request(model)])
    assert engine._pool.used == 0
    engine.step()
    assert not engine.has_work


# Pictures


@pytest.mark.parametrize("budget", [2, 3, 4, 5, 8192])
def test_chunk_boundaries_inside_a_picture(budget: int) -> None:
    engine, model = engine_of(ScriptedModel(looker), max_running=2, token_budget=budget)
    done = engine.run([picture(model, [11, 12, 13, 14, 15, 16, 17]), picture(model, [21, 22])])
    assert [c.token_ids for c in done] == [[11, 12, 13, 14, 15, 16, 17], [21, 22]]
    assert len(model.encoded) == 2


def test_equal_pictures_are_encoded_once() -> None:
    engine, model = engine_of(ScriptedModel(looker))
    done = engine.run([picture(model, [5, 6]), picture(model, [5, 6], text="two"), picture(model, [6, 5])])
    assert [c.token_ids for c in done] == [[5, 6], [5, 6], [6, 5]]
    assert len(model.encoded) == 2
    engine.run([picture(model, [5, 6], text="three")])
    assert len(model.encoded) == 2, "the picture is found by its content after its requests have ended"
    forgetful, model = engine_of(ScriptedModel(looker), vision_cache_bytes=0, prefix_cache=False)
    for values in ([5, 6], [6, 5], [5, 6]):
        assert forgetful.run([picture(model, values)])[0].token_ids == values
    assert len(model.encoded) == 3


def test_pictures_are_encoded_ahead_of_their_turn_within_the_budget() -> None:
    """Two patches' worth of budget a step: the second picture is ready when its request is admitted."""
    engine, model = engine_of(ScriptedModel(looker), max_running=1, vision_budget=4)
    asked = [picture(model, [5 + i]) for i in range(3)]
    for one in asked:
        engine.add(one)
    counts = []
    while engine.has_work:
        engine.step()
        counts.append(len(model.encoded))
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[1] == 1, "nobody else is admitted beside the only one that may run"
    assert [one.completion().token_ids for one in asked] == [[5], [6], [7]]


def test_a_video_is_encoded_a_few_steps_of_time_at_once() -> None:
    """Three time steps of 4 patches under a budget of 8: two calls, while the other request goes on answering."""
    model = ScriptedModel(lambda history: looker(history) if min(history) < 0 else 65)
    engine, _ = engine_of(model, vision_budget=8, max_running=2)
    other = request(model, "one", max_new_tokens=8)
    engine.add(other)
    engine.step()
    ids = [65, VISION_START, *[IMAGE] * 3, VISION_END, *prompt("one")]
    pixels = -torch.tensor([31.0, 32.0, 33.0]).repeat_interleave(4).unsqueeze(1)
    inputs = {"input_ids": torch.tensor(ids), "pixel_values": pixels, "image_grid_thw": torch.tensor([[3, 2, 2]])}
    clip = Request.from_inputs(inputs, model.config)
    engine.add(clip)
    engine.step()
    assert model.encoded == [[[2, 2, 2]]]
    assert len(other.output_ids) == 2
    engine.step()
    assert model.encoded == [[[2, 2, 2]], [[1, 2, 2]]]
    while engine.has_work:
        engine.step()
    assert clip.completion().token_ids == [31, 32, 33]


# Requests that are prepared in workers


def test_requests_are_prepared_beside_the_engine() -> None:
    engine, model = engine_of()
    threads = []

    def prepare(text: str) -> Request:
        threads.append(threading.current_thread())
        return request(model, text)

    done = engine.run([partial(prepare, "two"), request(model, "one"), partial(prepare, "three")])
    assert [c.text for c in done] == ["zwei, and a long tail", "eins", "drei €uro"]
    assert threading.main_thread() not in threads
    engine.close()
    assert not any(thread.is_alive() for thread in threads)


def test_a_request_that_cannot_be_prepared_fails_alone() -> None:
    engine, model = engine_of()

    def broken() -> Request:
        raise ValueError("the picture is damaged")

    done = engine.run([broken, request(model, "one")])
    assert (done[0].finish_reason, done[0].error) == ("error", "the picture is damaged")
    assert done[1].text == "eins"
    name = engine.submit(broken, id="mine")
    with pytest.raises(ValueError, match="'mine' is in use"):
        engine.submit(broken, id="mine")
    events = []
    while engine.has_work:
        events += engine.step()
    assert [(e.request_id, e.finish_reason, e.error) for e in events] == [(name, "error", "the picture is damaged")]
    engine.close()


def test_a_request_is_aborted_while_it_is_prepared() -> None:
    engine, model = engine_of()
    begun, go = threading.Event(), threading.Event()

    def slow() -> Request:
        begun.set()
        assert go.wait(10)
        return request(model, "one")

    engine.submit(slow, id="slow")
    assert begun.wait(10)
    assert engine.stats.preparing == 1
    assert engine.abort("slow")
    go.set()
    events = []
    while engine.has_work:
        events += engine.step()
    assert [(e.request_id, e.finish_reason) for e in events] == [("slow", "abort")]
    engine.close()
    assert model.steps == []


# Errors stay with their request


def test_a_prompt_larger_than_the_capacity_fails_alone_with_both_numbers() -> None:
    engine, model = engine_of(capacity=8)
    done = engine.run([request(model, "one"), request(model, "two" * 3), request(model, "two")])
    assert done[1].finish_reason == "error"
    assert done[1].error is not None
    assert "10 tokens" in done[1].error
    assert "at most 8" in done[1].error
    assert done[0].text == "eins"
    assert (done[2].text, done[2].finish_reason) == ("zwei,", "length")  # 4 + 5 - 1 = 8 tokens in the cache
    event = next(engine.stream(request(model, "two" * 3)))
    assert (event.finish_reason, event.token_id) == ("error", None)


def test_logits_that_are_not_finite_fail_alone() -> None:
    def answer(history: list[int]) -> int | torch.Tensor:
        if history[0] == ord("t") and len(history) > 6:
            return torch.full((264,), float("nan"))
        return script(ANSWERS)(history)

    engine, model = engine_of(ScriptedModel(answer))
    done = engine.run([request(model, text) for text in ("one", "two", "one")])
    assert [c.text for c in done] == ["eins", "zwe", "eins"]
    assert "not finite" in str(done[1].error)


def test_a_sequence_on_which_the_model_raises_fails_alone() -> None:
    def answer(history: list[int]) -> int:
        if history[0] == ord("t") and len(history) > 6:
            raise FloatingPointError("layer 7 overflowed")
        return script(ANSWERS)(history)

    engine, model = engine_of(ScriptedModel(answer))
    asked = [request(model, text) for text in ("one", "two", "one")]
    done = engine.run(asked)
    assert [c.text for c in done] == ["eins", "zwe", "eins"]
    assert done[1].error == "FloatingPointError: layer 7 overflowed"
    assert isinstance(asked[1].exception, FloatingPointError)


def test_a_picture_that_cannot_be_encoded_fails_alone() -> None:
    engine, model = engine_of(ScriptedModel(looker))
    bad = picture(model, [1, 2])
    bad.items[0].patches[0] = float("nan")
    done = engine.run([picture(model, [5]), bad, picture(model, [6])])
    assert [c.token_ids for c in done] == [[5], [], [6]]
    assert "not a number in the pixels" in str(done[1].error)
    check(engine)


def test_a_request_for_which_there_is_no_memory_fails_alone() -> None:
    model = ScriptedModel(script({**ANSWERS, "x" * 2000: "never"}))
    engine, _ = engine_of(model)
    make = engine._pool.make

    def limited(pages: int) -> Any:
        if pages * PAGE > 1000:
            raise RuntimeError("out of memory")
        return make(pages)

    engine._pool.make = limited
    done = engine.run([request(model, "x" * 2000), request(model), request(model, "two"), request(model, "three")])
    assert [c.text for c in done] == ["", "eins", "zwei, and a long tail", "drei €uro"]
    assert "have 2001 tokens, but the cache has room for 0" in str(done[0].error)
    assert "out of memory" in str(done[0].error)


def test_mistakes_of_callers() -> None:
    engine, model = engine_of()
    asked = request(model, id="mine")
    with pytest.raises(ValueError, match="not finished"):
        asked.completion()
    engine.add(asked)
    with pytest.raises(ValueError, match="was added before"):
        engine.add(asked)
    with pytest.raises(ValueError, match="'mine' is in use"):
        engine.run([request(model, id="mine")])
    assert not asked.finished, "the failed call must not abort the other request of that name"
    with pytest.raises(ValueError, match="empty string"):
        engine.add(request(model, stop=("",)))
    with pytest.raises(ValueError, match="token_budget=4 is below max_running=8"):
        Engine(model, token_budget=4, max_running=8)
    with pytest.raises(ValueError, match="capacity=0"):
        Engine(model, capacity=0)
