"""The guard against endless repetition: true loops end, long honest documents stay as they are."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_texts import PAGE, Pieces, honest, loops
from scripted import ASK, EOS, ByteTokenizer, ScriptedModel, prompt

from qwenvl.engine import Engine, Request
from qwenvl.engine.loops import DULL, LEAST, STRIDE, WIDE, Loop, LoopGuard
from qwenvl.types import LoopRule, SamplingParams

LENGTH = 32000  # tokens that a page may take
STRICT = LoopRule(tokens=64, copies=8, rows=8)


def watch(ids: list[int], rule: LoopRule | None = None) -> Loop | None:
    """The loop that ends the answer `ids`, if one does."""
    guard = LoopGuard(rule or LoopRule())
    for place, token in enumerate(ids):
        if guard.push(token):
            assert guard.loop is not None
            assert guard.loop.kept <= place
            return guard.loop
    return None


def delay(piece: list[int], rule: LoopRule) -> int:
    """Tokens after which a loop of `piece` has to be found."""
    length = len(piece)
    enough = max(min(length * rule.copies, rule.tokens), length * LEAST)
    if len(set(piece)) <= DULL:
        enough = max(enough, min(length * rule.rows, rule.tokens * WIDE), length * LEAST)
    return enough + STRIDE


@pytest.mark.parametrize(("name", "text"), [pytest.param(*case, id=case[0]) for case in loops()])
def test_true_loops_end(name: str, text: str) -> None:
    pieces, rule = Pieces(), LoopRule()
    before, once = pieces.encode(PAGE), pieces.encode(text + text)
    once = once[len(once) // 2 :]  # a group of signs may join two copies
    guard = LoopGuard(rule)
    tokens = 0
    for token in before + once * (LENGTH // len(once)):
        if guard.push(token):
            break
        tokens += 1
    assert guard.loop is not None, f"{name} was never found"
    assert tokens - len(before) <= delay(once, rule)
    assert guard.loop.period == len(once) or len(once) % guard.loop.period == 0
    assert len(before) - 1 <= guard.loop.kept <= len(before) + len(once)


@pytest.mark.parametrize(("name", "text"), [pytest.param(*case, id=case[0]) for case in honest()])
def test_honest_repetition_is_left_alone(name: str, text: str) -> None:
    ids = Pieces().encode(PAGE + text + "</body></html>\n```")
    assert len(ids) > 400
    assert watch(ids) is None, name


def test_the_longest_honest_documents_are_as_long_as_answers_can_be() -> None:
    lengths = [len(Pieces().encode(text)) for _, text in honest()]
    assert max(lengths) > 0.6 * LENGTH
    assert statistics.median(lengths) > 3000


@pytest.mark.parametrize("period", [1, 2, 3, 15, 16, 17, 47, 64, 200])
def test_one_other_token_in_each_copy_is_enough(period: int) -> None:
    ids = [token for i in range(8000 // period) for token in [*range(period - 1), 10_000 + i]]
    assert watch(ids, STRICT) is None
    assert watch([*ids, *list(range(period)) * (2000 // period + 10)], STRICT) is not None


def by_definition(ids: list[int], rule: LoopRule, most: int) -> Loop | None:
    """The rule as its docstring has it, asked at every 16th token."""
    for end in range(STRIDE, len(ids) + 1, STRIDE):
        for period in range(1, min(most, end - 1) + 1):
            length = period
            while length < end and ids[end - 1 - length] == ids[end - 1 - length + period]:
                length += 1
            piece = ids[end - period : end]
            if any(period % p == 0 and piece == piece[:p] * (period // p) for p in range(1, period)):
                continue
            enough = [min(rule.tokens, rule.copies * period), LEAST * period]
            if len(set(piece)) <= DULL:
                enough.append(min(rule.rows * period, WIDE * rule.tokens))
            if length >= max(enough):
                return Loop(period, -(-length // period), end - length + period)
    return None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
    st.integers(0, 200),
    st.lists(st.integers(0, 2), max_size=80),
)
def test_it_is_the_rule(before: list[int], piece: list[int], length: int, after: list[int]) -> None:
    ids = before + (piece * length)[:length] + after
    assert watch(ids, STRICT) == by_definition(ids, STRICT, 40)


def test_a_rule_without_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="LoopRule tokens=3 is not valid: expected at least 64"):
        LoopRule(tokens=3)


def writer(words: bytes, again: bytes) -> ScriptedModel:
    """A model that writes `words`, then `again` without end."""

    def answer(history: list[int]) -> int:
        said = len(history) - 1 - history.index(ASK)
        return words[said] if said < len(words) else again[(said - len(words)) % len(again)]

    return ScriptedModel(answer)


def request(model: ScriptedModel, **params: Any) -> Request:
    return Request.from_inputs({"input_ids": torch.tensor(prompt("one"))}, model.config, SamplingParams(**params))


@pytest.mark.parametrize("draft_tokens", [0, 4])
def test_an_answer_in_a_loop_ends_with_one_copy(draft_tokens: int) -> None:
    model = writer(b"before:", b" again,")
    engine = Engine(model, ByteTokenizer(), draft_tokens=draft_tokens)
    guarded = request(model, max_new_tokens=400, stop_loops=STRICT, logprobs=True)
    free = request(model, max_new_tokens=400)
    looped, went_on = engine.run([guarded, free])
    assert (looped.finish_reason, looped.text) == ("loop", "before: again,")
    assert bytes(looped.token_ids) == b"before: again,"
    assert looped.logprobs is not None
    assert len(looped.logprobs) == len(looped.token_ids)
    assert len(guarded.output_ids) < 100
    assert (went_on.finish_reason, len(went_on.token_ids)) == ("length", 400)
    assert not engine.has_work


def test_a_cut_answer_holds_whole_characters() -> None:
    model = writer(b"zero:", " €, ½,".encode())
    (looped,) = Engine(model, ByteTokenizer()).run([request(model, max_new_tokens=400, stop_loops=STRICT)])
    assert looped.text == "zero: €, ½,"


def test_the_end_of_an_answer_comes_before_a_loop() -> None:
    model = writer(b"x" * 79, bytes([EOS - 1]))
    (done,) = Engine(model, ByteTokenizer(), eos_token_ids=[EOS - 1]).run([request(model, stop_loops=LoopRule())])
    assert (done.finish_reason, done.text) == ("stop", "x" * 79)
