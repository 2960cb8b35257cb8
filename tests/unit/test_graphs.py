"""Decode steps through captured graphs, on the CPU: the stand-in for a CUDA graph notes every operation that the
capture runs and replays those on the same memory. No Python runs again in a replay, and what a real capture could not
take (waiting for the device, tensors made from numbers) fails."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_engine_model import expected, model_of, requests
from tiny import tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qwenvl.engine import Engine, Request, graphs
from qwenvl.engine.blocks import PAGE
from qwenvl.engine.graphs import Graphs, SparedCache, key_bucket, row_bucket
from qwenvl.engine.runner import Runner
from qwenvl.engine.scheduler import Chunk
from qwenvl.model.kv_cache import PagedCache, PageTable, SlotCache
from qwenvl.types import SamplingParams

FORBIDDEN = (
    "aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.is_nonzero", "aten.masked_select",
    "aten.repeat_interleave", "aten.lift_fresh",
)  # fmt: skip


class Tape(TorchDispatchMode):
    """The operations of a function, with the very tensors they took and gave."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(FORBIDDEN):
            raise RuntimeError(f"{func} is not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.steps:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recorder:
    """A stand-in for CudaRecorder; made counts them, captured and replayed what they did."""

    made = captured = replayed = 0

    def __init__(self, device: torch.device) -> None:
        Recorder.made += 1

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        Recorder.captured += 1
        tape = Tape()
        with tape:
            function()

        def replay() -> None:
            Recorder.replayed += 1
            tape.replay()

        return replay


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "CudaRecorder", Recorder)
    Recorder.made = Recorder.captured = Recorder.replayed = 0


def decoding(lengths: list[int], pages: list[int], seed: int = 0) -> list[Request]:
    """Requests of so many tokens whose last token is to be computed. pages: handed out from the end, as needed."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(3, 58, (length,), generator=generator).tolist()
        request = Request(ids[: max(length - 3, 1)], torch.zeros(3, 0, dtype=torch.long), length % 3)
        request.output_ids = ids[len(request.prompt_ids) :]
        request.table = PageTable()
        for _ in range(-(-length // PAGE)):
            request.table.append(pages.pop())
        made.append(request)
    return made


def last(requests: list[Request]) -> list[Chunk]:
    return [Chunk(request, request.num_tokens - 1, request.num_tokens) for request in requests]


def alike(one: PagedCache, other: PagedCache) -> None:
    """Fill two caches with the same random numbers."""
    generator = torch.Generator().manual_seed(3)
    for mine, theirs in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
        mine.copy_(torch.randn(mine.shape, generator=generator))
        theirs.copy_(mine[:, : other.tokens])


def twins(model: Any, pages: int) -> tuple[Runner, SparedCache, Runner, PagedCache]:
    """A runner with graphs and one without, each with a cache of the same content."""
    captured, plain = Runner(model, graphs=True), Runner(model)
    one, other = captured.make_pages(pages), plain.make_pages(pages)
    assert isinstance(one, SparedCache)
    alike(one, other)
    return captured, one, plain, other


def same_stores(one: PagedCache, other: PagedCache) -> bool:
    """Whether all that `other` has is the same in both."""
    pairs = zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True)
    return all(torch.allclose(mine[:, : other.tokens], theirs, atol=1e-5) for mine, theirs in pairs)


LENGTHS = [[5], [17, 16], [4, 33, 260], [1 + 3, 256, 257, 31, 40], [6] * 9, [300, 7, 500]]


@pytest.mark.parametrize("lengths", LENGTHS)
@torch.inference_mode()
def test_a_captured_step_is_the_ordinary_one(lengths: list[int]) -> None:
    captured, one, plain, other = twins(model_of("qwen2_5_vl"), 80)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(len(lengths))).tolist()
    asked = decoding(lengths, order)
    assert torch.allclose(captured.run(last(asked), one), plain.run(last(asked), other), atol=1e-4)
    assert (Recorder.captured, Recorder.replayed) == (1, 1)
    assert same_stores(one, other)


@torch.inference_mode()
def test_a_graph_serves_every_step_of_its_bucket() -> None:
    """Other requests, lengths, pages and numbers of rows; captured once, for 8 rows and 256 keys."""
    captured, one, plain, other = twins(model_of("qwen2_5_vl"), 80)
    for seed, lengths in enumerate([[9, 8, 7, 30, 31, 32], [200, 5, 48, 49, 64], [20] * 8, [255, 4, 4, 4, 4, 4, 4]]):
        order = torch.randperm(80, generator=torch.Generator().manual_seed(seed)).tolist()
        asked = decoding(lengths, order, seed)
        assert torch.allclose(captured.run(last(asked), one), plain.run(last(asked), other), atol=1e-4)
        assert same_stores(one, other)
    assert (Recorder.captured, Recorder.replayed) == (1, 4)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
@torch.inference_mode()
def test_random_batches_of_both_families(family: str) -> None:
    captured, one, plain, other = twins(model_of(family), 150)
    draw = random.Random(family)
    for seed in range(12):
        lengths = [draw.choice([draw.randrange(2, 60), draw.randrange(2, 330)]) for _ in range(draw.randrange(1, 12))]
        pages = draw.sample(range(150), 150) if seed % 2 else list(range(150))
        asked = decoding(lengths, pages, seed)
        assert torch.allclose(captured.run(last(asked), one), plain.run(last(asked), other), atol=1e-4)
        assert same_stores(one, other)
    assert Recorder.replayed == 12 > Recorder.captured


@torch.inference_mode()
def test_rows_without_a_request_touch_no_page_of_others() -> None:
    captured, one, _, _ = twins(model_of("qwen2_5_vl"), 12)
    before = [store.clone() for store in (*one.keys, *one.values)]
    asked = decoding([20, 3, 18, 40, 17], list(range(12)))
    written = {r.table.pages[(r.num_tokens - 1) // PAGE] * PAGE + (r.num_tokens - 1) % PAGE for r in asked}
    for _ in range(2):
        captured.run(last(asked), one)
        for old, new in zip(before, (*one.keys, *one.values), strict=True):
            changed = {int(place) for place in (old != new).any(0).any(-1).nonzero()}
            spare = {place for place in changed if place >= one.spare * PAGE}
            assert changed - spare == written
            assert len(spare) == 3, "three rows of eight are empty, each with a place of its own"
    assert one.spare == 12
    assert one.tokens == 13 * PAGE


@torch.inference_mode()
def test_damage_behind_the_end_of_a_sequence_stays_there() -> None:
    """What another request left in a page, NaN too, is masked, and masked is not multiplied by 0."""
    captured, one, plain, other = twins(model_of("qwen2_5_vl"), 8)
    asked = decoding([20, 5], list(range(8)))
    owned = [page for request in asked for page in request.table.pages]
    for store in (*one.keys, *one.values):
        for page in range(8):
            if page not in owned:
                store[:, page * PAGE : (page + 1) * PAGE] = float("nan")
        store[:, asked[0].table.pages[1] * PAGE + 4 : asked[0].table.pages[1] * PAGE + PAGE] = float("nan")
    assert torch.allclose(captured.run(last(asked), one), plain.run(last(asked), other), atol=1e-4)


@torch.inference_mode()
def test_a_grown_cache_is_captured_anew() -> None:
    captured, one, plain, other = twins(model_of("qwen2_5_vl"), 4)
    asked = decoding([20, 9], list(range(4)))
    captured.run(last(asked), one)
    one, other = one.grown(9), other.grown(9)
    assert one.spare == 9
    alike(one, other)
    asked += decoding([70], list(range(4, 9)))  # where the spare page was
    assert torch.allclose(captured.run(last(asked), one), plain.run(last(asked), other), atol=1e-4)
    assert same_stores(one, other)
    assert Recorder.captured == 2
    assert Recorder.made == 3, "memory that graphs share goes with them"


@torch.inference_mode()
def test_other_steps_are_computed_the_ordinary_way() -> None:
    """Chunks of prompts, drafts, tokens of an answer that is computed again, slots, too many keys, far positions."""
    captured, one, _, _ = twins(model_of("qwen2_5_vl"), 40)
    taken = captured._graphs
    assert taken is not None
    (request,) = decoding([20], list(range(40)))
    decode = last([request])[0]
    assert taken.run([decode], one) is not None
    again = Chunk(request, 18, 19)
    for chunk in (Chunk(request, 0, 17), Chunk(request, 19, 20, (5,)), again, Chunk(request, 16, 20)):
        assert taken.run([chunk], one) is None
        assert taken.run([decode, chunk], one) is None
    config = model_of("qwen2_5_vl").config.text_config
    assert taken.run([decode], SlotCache(config, 1, 30)) is None
    request.delta = config.context_length - 19
    assert taken.run([decode], one) is None
    request.delta -= 1
    assert taken.run([decode], one) is not None


@torch.inference_mode()
def test_too_many_keys_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    captured, one, _, _ = twins(model_of("qwen2_5_vl"), 40)
    monkeypatch.setattr(graphs, "MOST_KEYS", 511)
    asked = decoding([20, 30], list(range(40)))
    assert captured._graphs is not None
    assert captured._graphs.run(last(asked), one) is None
    assert captured._graphs.run(last(asked[:1]), one) is not None


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
@pytest.mark.parametrize("options", [{}, {"max_running": 2}, {"token_budget": 16}, {"cache_tokens": 256}])
def test_an_engine_answers_the_same(family: str, options: dict[str, int]) -> None:
    """Pictures, chunks, a cache that grows, requests that give way to others."""
    engine = Engine(model_of(family), graphs=True, **options)
    done = engine.run(requests(family))
    assert [c.token_ids for c in done] == expected(family)
    assert Recorder.replayed > 8
    assert Recorder.captured < 8


def test_seeded_answers_and_their_log_probabilities() -> None:
    params: dict[str, Any] = {"temperature": 1.2, "seed": 4, "logprobs": True, "keep_logits": True}
    plain, captured = requests("qwen2_5_vl", **params), requests("qwen2_5_vl", **params)
    Engine(model_of("qwen2_5_vl")).run(plain)
    Engine(model_of("qwen2_5_vl"), graphs=True).run(captured)
    assert Recorder.replayed > 8
    for mine, theirs in zip(captured, plain, strict=True):
        assert mine.output_ids == theirs.output_ids
        assert torch.allclose(torch.stack(mine.output_logits), torch.stack(theirs.output_logits), atol=1e-4)
        assert mine.output_logprobs == pytest.approx(theirs.output_logprobs, abs=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.inference_mode()
def test_layers_with_a_sliding_window(attention: str) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
    model = tiny_model(**windows)
    model = type(model)(model.config, attn_implementation=attention).eval()
    captured, one, plain, other = twins(model, 20)
    for lengths in ([5, 40, 9], [10, 8, 70, 4]):
        asked = decoding(lengths, list(range(20)))
        assert torch.allclose(captured.run(last(asked), one), plain.run(last(asked), other), atol=1e-4)
    assert Recorder.captured == 1


def test_a_scaling_that_goes_by_the_length_is_not_captured() -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0, "mrope_section": [2, 2, 2]}
    model = tiny_model(rope_scaling=scaling)
    Engine(model, graphs=True).run([Request.from_inputs({"input_ids": torch.tensor([3, 4])}, model.config)])
    assert Recorder.made == 0


def test_a_capture_that_fails_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Recorder, function: Callable[[], None]) -> Callable[[], None]:
        Recorder.captured += 1
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Recorder, "__call__", refuse)
    engine = Engine(model_of("qwen2_5_vl"), graphs=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        done = engine.run(requests("qwen2_5_vl"))
    assert [c.token_ids for c in done] == expected("qwen2_5_vl")
    assert [str(w.message) for w in seen] == [
        "decode steps run without CUDA graphs: capturing one failed: operation not permitted when stream is capturing"
    ]
    assert Recorder.captured == 1


def test_damage_is_looked_for_uncaptured() -> None:
    """The layer at fault is named though the step that showed it was a graph, which calls no module."""
    import copy

    broken = copy.deepcopy(model_of("qwen2_5_vl"))
    engine = Engine(broken, graphs=True)
    request = Request.from_inputs({"input_ids": torch.tensor([5, 6])}, broken.config, SamplingParams(ignore_eos=True))
    engine.add(request)
    for _ in range(3):
        engine.step()
    with torch.no_grad():
        broken.model.language_model.layers[1].mlp.down_proj.weight.fill_(float("nan"))  # in place: graphs see it
    engine.step()
    assert request.finish_reason == "error"
    assert "first at model.language_model.layers.1.mlp.down_proj" in str(request.error)
    assert Recorder.replayed >= 3


def test_without_a_gpu_graphs_are_refused_and_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(ValueError, match="graphs=True needs a model on a CUDA device, and it is on cpu"):
        Engine(model_of("qwen2_5_vl"), graphs=True)
    assert Engine(model_of("qwen2_5_vl"))._runner._graphs is None
    with pytest.raises(ValueError, match="on cpu"):
        Graphs(model_of("qwen2_5_vl"))


@torch.inference_mode()
def test_the_ordinary_step_could_not_be_captured() -> None:
    """What the stand-in forbids is what the ordinary path does: it is no capture that takes anything."""
    runner = Runner(model_of("qwen2_5_vl"))
    pages = runner.make_pages(8)
    with pytest.raises(RuntimeError, match="is not permitted when stream is capturing"), Tape():
        runner.run(last(decoding([20, 9], list(range(8)))), pages)
    for unsafe in (lambda: torch.tensor([1, 2]), lambda: int(torch.ones(2).sum()), lambda: torch.ones(2).nonzero()):
        with pytest.raises(RuntimeError, match="not permitted"), Tape():
            unsafe()


def test_buckets() -> None:
    assert [row_bucket(n) for n in (1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 64)] == [1, 2, 4, 4, 8, 8, 16, 16, 24, 32, 64]
    assert [key_bucket(n) for n in (1, 256, 257, 512, 513, 1025, 5000)] == [256, 256, 512, 512, 1024, 2048, 8192]
