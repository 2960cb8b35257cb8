"""Pages of the KV cache: prefixes found again, preemption and resumption, the allocator's invariant."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from types import SimpleNamespace

import pytest
import torch
from scripted import EOS, ScriptedModel, prompt, script
from test_engine import check, engine_of, looker, picture, request

from qwenvl.engine import Engine, Request
from qwenvl.engine.blocks import PAGE, PagePool
from qwenvl.engine.prefix import page_keys
from qwenvl.model.kv_cache import PagedCache, PageTable, SlotCache

CONFIG = SimpleNamespace(num_hidden_layers=2, num_key_value_heads=2, head_dim=4)


def pool_of(most: int | None = None, keep: int = 0) -> PagePool:
    return PagePool(lambda pages: PagedCache(CONFIG, pages, PAGE), most, keep)  # type: ignore[arg-type]


# Pages


def table_of(*pages: int) -> PageTable:
    table = PageTable()
    for page in pages:
        table.append(page)
    return table


def test_neighbouring_pages_join_to_one_run() -> None:
    table = table_of(0, 1, 5, 6, 4)
    assert table.runs(4, 20) == [(0, 8), (20, 8), (16, 4)]
    assert table.runs(4, 10) == [(0, 8), (20, 2)]
    assert table.runs(4, 0) == [(0, 0)]


@pytest.mark.parametrize("seed", range(5))
def test_pages_read_as_slots_do(seed: int) -> None:
    """The same writes and reads through both geometries, with pages in any order."""
    luck, torch_luck = Random(seed), torch.Generator().manual_seed(seed)
    lengths = [luck.randint(1, 30) for _ in range(4)]
    pages = luck.sample(range(40), 40)
    tables = [table_of(*(pages.pop() for _ in range(9))) for _ in lengths]
    paged, slots = PagedCache(CONFIG, 40, 4), SlotCache(CONFIG, 4, 36)  # type: ignore[arg-type]
    cached = [0] * 4
    for new in (lengths, [1, 1, 1, 1], [1, 2, 1, 3]):
        views = paged.view(tables, cached, new), slots.view([2, 0, 3, 1], cached, new)
        key, value = torch.randn(2, sum(new), 2, 4, generator=torch_luck).unbind(0)
        for layer in (0, 1):
            for view in views:
                view.write(layer, key + layer, value)
            for i in range(4):
                for mine, theirs in zip(views[0].read(layer, i), views[1].read(layer, i), strict=True):
                    assert torch.equal(mine, theirs)
            rows = (0, 2, 3)
            for mine, theirs in zip(views[0].read_batch(layer, rows), views[1].read_batch(layer, rows), strict=True):
                for n, row in enumerate(rows):
                    end = cached[row] + new[row]
                    assert torch.equal(mine[n, :, :end], theirs[n, :, :end])
        cached = [a + b for a, b in zip(cached, new, strict=True)]
    with pytest.raises(ValueError, match="do not fit 9 pages of 4"):
        paged.view(tables, [36] * 4, [1] * 4)


def test_the_pool_keeps_what_is_used_when_it_grows() -> None:
    pool = pool_of()
    table = PageTable()
    assert pool.extend(table, 2)
    pool.cache.keys[1][0, :3, 0] = torch.tensor([1.0, 2.0, 3.0])
    other = PageTable()
    assert pool.extend(other, 5)
    assert pool.tokens == 7 * PAGE
    assert pool.cache.keys[1][0, :4, 0].tolist() == [1, 2, 3, 0]
    pool.check([table, other])
    pool.release(table)
    with pytest.raises(AssertionError):
        pool.check([table, other])


def test_the_longest_unused_prefix_goes_first_and_its_end_before_its_beginning() -> None:
    pool = pool_of(most=4 * PAGE)
    tables = [PageTable(), PageTable()]
    for name, table in zip("ab", tables, strict=True):
        assert pool.extend(table, 2)
        for i, page in enumerate(table.pages):
            pool.publish(page, f"{name}{i}".encode())
    pool.release(tables[1])
    pool.release(tables[0])
    third = PageTable()
    assert pool.extend(third, 1)
    assert pool.match([b"b0", b"b1"]) == tables[1].pages[:1]
    assert pool.match([b"a0", b"a1"]) == tables[0].pages
    assert not pool.extend(PageTable(), 4)
    pool.check([third])


# Prefixes


def test_the_second_turn_computes_only_what_is_new() -> None:
    first, answer = "x" * 50, "y" * 40
    model = ScriptedModel(two_turns(answer, "done"))
    engine, _ = engine_of(model)
    said = engine.run([request(model, first)])[0]
    assert said.text == answer
    ids = [*prompt(first), *said.token_ids, *prompt("and then?")]
    model.steps.clear()
    second = Request.from_inputs({"input_ids": torch.tensor(ids)}, model.config)
    assert engine.run([second])[0].text == "done"
    known = len(prompt(first)) + len(answer)
    assert second.found == known // PAGE * PAGE
    assert model.steps[0] == (len(ids) - second.found,)
    check(engine)


def two_turns(answer: str, last: str) -> Callable[[list[int]], int]:
    """Answers a first prompt, and a second one behind it."""

    def say(history: list[int]) -> int:
        asks = [i for i, token in enumerate(history) if token == 3]
        words = (answer if len(asks) == 1 else last).encode()
        said = len(history) - asks[-1] - 1
        return words[said] if said < len(words) else EOS

    return say


def test_two_pictures_under_one_prompt_share_nothing_behind_them() -> None:
    engine, model = engine_of(ScriptedModel(looker))
    values = list(range(5, 40))
    others = [*values[:-1], 99]
    assert engine.run([picture(model, values)])[0].token_ids == values
    again, other = picture(model, values), picture(model, others)
    done = engine.run([again, other])
    assert [c.token_ids for c in done] == [values, others]
    assert again.found >= 2 * PAGE
    assert other.found == 0, "the first page holds tokens of the picture already"


def test_keys_tell_positions_pictures_and_what_came_before() -> None:
    model = ScriptedModel(looker)

    def keys(asked: Request) -> list[bytes]:
        return page_keys(asked, len(asked.prompt_ids))

    base = picture(model, list(range(5, 45)))
    assert keys(base) == keys(picture(model, list(range(5, 45))))
    assert len(keys(base)) == len(base.prompt_ids) // PAGE
    moved = picture(model, list(range(5, 45)))
    moved.positions = moved.positions.clone()
    moved.positions[0, PAGE] += 1
    assert keys(moved)[0] == keys(base)[0]
    assert all(a != b for a, b in zip(keys(moved)[1:], keys(base)[1:], strict=True))
    given = picture(model, list(range(5, 45)))
    given.prompt_embeds = torch.zeros(len(given.prompt_ids), 1)
    assert keys(given) == []


def test_without_a_prefix_cache_everything_is_computed() -> None:
    engine, model = engine_of(ScriptedModel(script({"x" * 50: "ok"})), prefix_cache=False)
    for _ in range(2):
        engine.run([request(model, "x" * 50)])
    assert model.steps[0] == model.steps[3] == (51,)
    assert engine.stats.found_tokens == 0


def test_what_failed_is_not_found_again() -> None:
    """A sequence whose logits are damaged leaves no pages behind for others."""
    broken = True

    def answer(history: list[int]) -> int | torch.Tensor:
        return torch.full((264,), float("nan")) if broken else 65

    engine, model = engine_of(ScriptedModel(answer))
    assert engine.run([request(model, "x" * 50)])[0].finish_reason == "error"
    broken = False
    asked = request(model, "x" * 50, max_new_tokens=2)
    assert engine.run([asked])[0].text == "AA"
    assert asked.found == 0


# Preemption


def test_the_least_urgent_gives_way_and_loses_nothing() -> None:
    answers = {"a" * 20: "1" * 60, "b" * 20: "2" * 60, "c" * 20: "3" * 60}
    engine, model = engine_of(ScriptedModel(script(answers)), cache_tokens=11 * PAGE)
    asked = [request(model, text) for text in answers]
    asked[0].priority = -1
    done = engine.run(asked)
    assert [c.text for c in done] == list(answers.values())
    assert engine.stats.preemptions > 0
    check(engine)


def test_a_request_that_grows_past_the_whole_cache_ends_there() -> None:
    engine, model = engine_of(ScriptedModel(lambda h: 65), cache_tokens=4 * PAGE)
    done = engine.run([request(model, "x" * 30, max_new_tokens=500), request(model, "y" * 30, max_new_tokens=20)])
    assert (done[0].finish_reason, len(done[0].token_ids)) == ("length", 4 * PAGE - 31 + 1)
    assert len(done[1].token_ids) == 20


def test_a_waiting_request_rises_with_time() -> None:
    """A stream of urgent requests does not keep an old one waiting for ever."""
    model = ScriptedModel(script({"old": "ok", "new": "ok"}))
    engine, _ = engine_of(model, max_running=1)
    old = request(model, "old")
    engine.add(old)
    steps = 0
    while not old.finished:
        if len(engine._scheduler.waiting) < 3:
            engine.add(request(model, "new", priority=3))
        engine.step()
        steps += 1
        assert steps < 2000
    assert steps > 256 * 3


def test_a_short_question_does_not_wait_for_a_long_prompt() -> None:
    model = ScriptedModel(script({"x" * 600: "ok", "one": "eins"}))
    engine, _ = engine_of(model, token_budget=40)
    long, short = request(model, "x" * 600), request(model, "one")
    engine.add(long)
    engine.add(short)
    for _ in range(6):
        engine.step()
    assert short.finished
    assert long.computed > 100
    while engine.has_work:
        engine.step()
    assert long.completion().text == "ok"


def test_beside_answers_a_long_prompt_is_taken_in_small_chunks() -> None:
    model = ScriptedModel(script({"x" * 100: "ok", "one": "eins"}))
    engine, _ = engine_of(model, prompt_budget=10)
    engine.add(request(model, "one"))
    engine.step()
    engine.add(request(model, "x" * 100))
    engine.step()
    assert sum(model.steps[-1]) == 11


@pytest.mark.parametrize("seed", range(200))
def test_random_workloads_answer_as_each_alone(seed: int) -> None:
    """Any arrival, abort, priority, picture, cache and budget: the same tokens, and no page lost."""
    luck = Random(seed)
    texts = {"p" * n: f"answer {n} " * luck.randint(1, 6) for n in range(1, 60)}
    said = script(texts)
    model = ScriptedModel(lambda h: looker(h) if any(i < 0 for i in h) else said(h))  # type: ignore[arg-type, return-value]
    budget = luck.randint(4, 60)
    engine = Engine(
        model,
        max_running=luck.randint(1, min(budget, 6)),
        token_budget=budget,
        prompt_budget=luck.randint(1, 60),
        cache_tokens=luck.choice([None, 12 * PAGE, 30 * PAGE]),
        prefix_cache=luck.random() < 0.7,
        vision_budget=luck.choice([1, 8, 4096]),
        vision_cache_bytes=luck.choice([0, 8, 2**20]),
        draft_tokens=luck.choice([0, 3, 8]),
    )
    waiting: list[tuple[Request, list[int]]] = []
    for _ in range(10):
        if luck.random() < 0.3:
            values = [luck.randint(5, 200) for _ in range(luck.randint(1, 40))]
            waiting.append((picture(model, values), values))
        else:
            text = "p" * luck.randint(1, 59)
            waiting.append((request(model, text, priority=luck.randint(0, 1)), list(texts[text].encode())))
    asked, aborted = list(waiting), set()
    while waiting or engine.has_work:
        if waiting and luck.random() < 0.4:
            engine.add(waiting.pop()[0])
        for event in engine.step():
            if event.finish_reason is None and luck.random() < 0.01:
                aborted |= {event.request_id} if engine.abort(event.request_id) else set()
        check(engine)
    for one, answer in asked:
        tokens = one.completion().token_ids
        assert answer[: len(tokens)] == tokens if one.id in aborted else answer == tokens
    assert engine.stats.used_tokens == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_soak_of_10000_requests_loses_no_page_and_no_memory() -> None:
    import resource

    luck = Random(0)
    texts = {"p" * n: f"answer {n}" for n in range(1, 40)}
    engine, model = engine_of(ScriptedModel(script(texts)), cache_tokens=64 * PAGE, draft_tokens=4)
    sizes = []
    for batch in range(100):
        chosen = ["p" * luck.randint(1, 39) for _ in range(100)]
        done = engine.run([request(model, text) for text in chosen])
        assert [c.text for c in done] == [texts[text] for text in chosen]
        check(engine)
        model.steps.clear()
        model.histories.clear()
        if batch % 10 == 9:
            sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert engine.stats.used_tokens == 0
    assert [len(kept) for kept in (engine._live, engine._texts, engine._drafts._lookups, engine._followed)] == [0] * 4
    assert sizes[-1] - sizes[1] < 4096, sizes  # KiB, over 8,000 requests
