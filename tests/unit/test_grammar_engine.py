"""Grammars in the engine: batches of several, drafts, preemption, ends, cut answers, faults; under a scripted model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

import jsonschema
import pytest
import torch
from grammar_cases import SCHEMAS
from scripted import ASK, EOS, VOCABULARY, ByteTokenizer, ScriptedModel
from test_engine import check, picture, request

from qwenvl.engine import Engine
from qwenvl.engine.grammar import Guide
from qwenvl.types import Grammar, SamplingParams

RECEIPT, RECURSIVE = Grammar.json_schema(SCHEMAS["receipt"]), Grammar.json_schema(SCHEMAS["recursive"])
BOX = Grammar.json_schema({"type": "array", "format": "bbox_2d"})
DIGITS = Grammar("regex", "[0-9]{3,}")


class SpelledBytes(ByteTokenizer):
    """Bytes, with what grammars ask of a tokenizer."""

    eos_token_id = EOS

    def spellings(self) -> tuple[list[bytes], list[int]]:
        specials = list(range(256, VOCABULARY))
        return [bytes([i]) for i in range(256)] + [f"<{i}>".encode() for i in specials], specials

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


def babbler(history: list[int]) -> torch.Tensor:
    """Logits that are random but a function of the history, with some love for ends and quotes."""
    luck = torch.Generator().manual_seed(hash(tuple(history)) & 0x7FFFFFFF)
    logits = torch.randn(VOCABULARY, generator=luck) * 2
    logits[[EOS, *b'"}]', *b"0123456789"]] += 2
    return logits


def engine_of(answer: Any = babbler, **options: Any) -> tuple[Engine, ScriptedModel]:
    model = ScriptedModel(answer)
    return Engine(model, SpelledBytes(), **options), model


def mixed(model: ScriptedModel, **params: Any) -> list[Any]:
    ask = partial(request, model)
    return [
        ask("a", grammar=RECEIPT, temperature=1.0, seed=1, max_new_tokens=300, **params),
        ask("b", temperature=1.0, seed=2, max_new_tokens=20, **params),
        ask("c", grammar=RECURSIVE, temperature=0.7, seed=3, max_new_tokens=300, **params),
        ask("d", grammar=DIGITS, max_new_tokens=30, **params),
        picture(model, [70, 71, 72], "e", grammar=BOX, temperature=1.5, seed=5, **params),
        ask(
            "f", grammar=RECEIPT, repetition_penalty=1.3, top_k=5, temperature=1.0, seed=6, max_new_tokens=300, **params
        ),
    ]


def answers(completions: Sequence[Any]) -> list[tuple[str, str]]:
    return [(c.text, c.finish_reason) for c in completions]


@pytest.fixture(scope="module")
def alone() -> list[tuple[str, str]]:
    """Each answer of `mixed`, computed by itself."""
    found = []
    for i in range(6):
        engine, model = engine_of(max_running=1)
        found += answers(engine.run([mixed(model)[i]]))
    return found


def test_answers_are_what_their_grammars_say(alone: list[tuple[str, str]]) -> None:
    for (text, reason), schema in zip(
        alone, (SCHEMAS["receipt"], None, SCHEMAS["recursive"], None, None, None), strict=True
    ):
        if schema is not None:
            assert reason == "stop"
            jsonschema.validate(json.loads(text), schema)
    x1, y1, x2, y2 = json.loads(alone[4][0])
    assert 0 <= x1 < x2 <= 84, "a picture of 2 x 6 patches"
    assert 0 <= y1 < y2 <= 28
    assert len(alone[3][0]) >= 3
    assert alone[3][0].isdigit()
    assert alone[0][0] != alone[5][0]


@pytest.mark.parametrize(
    "options",
    [{}, {"max_running": 2}, {"draft_tokens": 8}, {"draft_tokens": 2}, {"token_budget": 7}, {"prefix_cache": False}],
)
def test_together_as_alone(options: dict[str, Any], alone: list[tuple[str, str]]) -> None:
    engine, model = engine_of(**options)
    assert answers(engine.run(mixed(model))) == alone
    check(engine)


def test_after_preemption_as_without(alone: list[tuple[str, str]]) -> None:
    engine, model = engine_of(cache_tokens=96, draft_tokens=4)
    assert answers(engine.run(mixed(model))) == alone
    assert engine.stats.preemptions


def test_what_is_forced_is_computed_ahead() -> None:
    """Keys of JSON cost no steps of their own, and are no guesses that could be wrong."""
    steps = []
    for draft in (0, 8):
        engine, model = engine_of(draft_tokens=draft)
        engine.run([request(model, "a", grammar=RECEIPT, temperature=1.0, seed=1, max_new_tokens=300)])
        steps.append(len(model.steps))
    assert steps[1] < 0.6 * steps[0], steps


def test_wrong_guesses_stay_within_the_grammar() -> None:
    """The prompt repeats what the grammar forbids: a draft goes only as far as the grammar does."""
    page = "ab" * 20
    engine, model = engine_of(lambda h: h[-2] if len(h) > 1 else 0, draft_tokens=8)
    (done,) = engine.run([request(model, page, grammar=Grammar("regex", "[ab]{4}[cd]{9}"), max_new_tokens=40)])
    assert (done.text[:4], len(done.text)) == ("baba", 13)
    assert 3 <= engine.stats.accepted <= engine.stats.drafted <= 13


def wants(text: str) -> Any:
    """A model that would write this, whatever it has written so far."""

    def answer(history: list[int]) -> torch.Tensor:
        logits = torch.zeros(VOCABULARY)
        at = len(history) - history.index(ASK) - 1
        logits[text.encode()[at] if at < len(text) else EOS] = 9.0
        logits[list(b'"}]')] += 1.0
        return logits

    return answer


def test_the_grammar_wins_over_the_model() -> None:
    engine, model = engine_of(wants("no JSON at all"))
    (done,) = engine.run([request(model, grammar=RECEIPT)])
    jsonschema.validate(json.loads(done.text), SCHEMAS["receipt"])
    engine, model = engine_of(wants(""))  # it wants to end at once
    (done,) = engine.run([request(model, grammar=RECEIPT)])
    assert done.text == '{"company": "", "date": "", "total": ""}'


def test_a_complete_answer_ends_without_an_end_token() -> None:
    engine, model = engine_of(wants(""))
    (done,) = engine.run([request(model, grammar=RECEIPT, ignore_eos=True)])
    assert (done.text, done.finish_reason) == ('{"company": "", "date": "", "total": ""}', "stop")
    assert bytes(done.token_ids).decode() == done.text
    (done,) = engine.run([request(model, grammar=DIGITS, max_new_tokens=50)])
    assert (len(done.text), done.finish_reason) == (3, "stop"), "as soon as it may"
    (done,) = engine.run([request(model, grammar=DIGITS, max_new_tokens=50, ignore_eos=True)])
    assert (len(done.text), done.finish_reason) == (50, "length")


def test_stop_tokens_stop_only_where_the_answer_may_end() -> None:
    engine, model = engine_of(wants("7" * 20))
    (done,) = engine.run([request(model, grammar=DIGITS, stop_token_ids=(ord("7"),))])
    assert (done.finish_reason, len(done.text)) == ("stop", 3)
    assert "7" not in done.text


def test_a_cut_answer_comes_with_its_closing() -> None:
    engine, model = engine_of(wants('{"company": "Café", "date": "x'))
    whole = '{"company": "Café", "date": "x'
    for most in range(1, 26):
        (done,) = engine.run([request(model, grammar=RECEIPT, max_new_tokens=most)])
        assert done.finish_reason == "length"
        assert whole.startswith(done.text.rstrip("\N{REPLACEMENT CHARACTER}"))
        assert done.closed is not None
        jsonschema.validate(json.loads(done.closed), SCHEMAS["receipt"])
    assert done.closed == '{"company": "Café", "date": "", "total": ""}'
    (whole_one,) = engine.run([request(model, grammar=RECEIPT)])
    assert whole_one.closed is None


def test_a_refused_grammar_fails_its_request_alone() -> None:
    engine, model = engine_of()
    bad = Grammar.json_schema({"type": "array", "uniqueItems": True})
    with pytest.raises(ValueError, match="uniqueItems"):
        engine.add(request(model, grammar=bad))
    done = engine.run([lambda: request(model, grammar=bad), lambda: request(model, grammar=DIGITS, max_new_tokens=9)])
    assert done[0].finish_reason == "error"
    assert "uniqueItems" in str(done[0].error)
    assert done[1].text.isdigit()
    check(engine)
    with pytest.raises(ValueError, match="a place needs its picture"):
        engine.add(request(model, grammar=BOX))
    plain = Engine(model, None)
    with pytest.raises(ValueError, match="give the engine a tokenizer"):
        plain.add(request(model, grammar=DIGITS))


def test_options_that_leave_nothing_fail_their_request_alone() -> None:
    engine, model = engine_of()
    digits = tuple(range(ord("0"), ord("9") + 1))
    done = engine.run([request(model, grammar=DIGITS, suppress_tokens=digits), request(model, grammar=DIGITS)])
    assert "of those that the grammar allows" in str(done[0].error)
    assert done[1].text.isdigit()


def test_an_automaton_out_of_bounds_fails_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, model = engine_of()
    first = request(model, "one", grammar=DIGITS)
    engine.add(first)
    guide = first.guide
    assert guide is not None
    guide._matcher.consume_token(ord("x"))  # what no draw does: it is in error from here on
    assert isinstance(guide, Guide)
    done = engine.run([request(model, "two", grammar=DIGITS)])
    assert done[0].text.isdigit()
    assert "too complex" in str(first.error)


def test_seeded_answers_do_not_depend_on_where_steps_end() -> None:
    luck = Random(0)
    engine, model = engine_of(draft_tokens=3)
    texts = set()
    for _ in range(3):
        other = request(model, "x" * luck.randint(1, 40), grammar=RECURSIVE, temperature=1.0, seed=luck.randint(0, 99))
        mine = request(model, "q", grammar=RECEIPT, temperature=1.0, seed=4, max_new_tokens=200)
        texts.add(engine.run([other, mine])[1].text)
    assert len(texts) == 1


def test_a_grammar_needs_no_text_of_the_engine() -> None:
    """SamplingParams with a grammar can be compared and hashed, as caches of them do."""
    assert SamplingParams(grammar=RECEIPT) == SamplingParams(grammar=Grammar.json_schema(SCHEMAS["receipt"]))
    assert len({SamplingParams(grammar=RECEIPT), SamplingParams(grammar=DIGITS)}) == 2
