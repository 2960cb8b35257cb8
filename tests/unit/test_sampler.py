"""Sampling: every filter by hand, seeds that do not see their batch mates, damaged logits."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl.engine.logits import banned_next
from qwenvl.engine.sampler import Drawn, Sampler
from qwenvl.types import SamplingParams

VOCABULARY = 12
BANNED = (10, 11)
PROBS = torch.tensor([0.4, 0.2, 0.15, 0.1, 0.05, 0.04, 0.03, 0.02, 0.005, 0.005])


def sampler(vocabulary: int = VOCABULARY, banned: tuple[int, ...] = BANNED) -> Sampler:
    return Sampler(vocabulary, banned, torch.device("cpu"))


def logits_of(probs: torch.Tensor = PROBS) -> torch.Tensor:
    row = torch.full((VOCABULARY,), 50.0)  # the banned ones would win
    row[: len(probs)] = probs.log()
    return row


def draws(count: int, prompt: list[int] | None = None, **params: Any) -> list[int]:
    """Tokens of one request that is asked again and again for PROBS."""
    draw = sampler()
    state = draw.start(prompt or [9], SamplingParams(**{"temperature": 1.0, "seed": 0, **params}))
    row = logits_of().unsqueeze(0)
    return [draw.sample(row.clone(), [state])[0].token for _ in range(count)]


def test_greedy_takes_the_best_that_is_not_banned() -> None:
    assert draws(2, temperature=0.0) == [0, 0]


def test_drawn_frequencies_are_the_probabilities() -> None:
    counts = Counter(draws(4000))
    assert set(counts) <= set(range(10))
    for token, probability in enumerate(PROBS.tolist()):
        spread = 4.5 * math.sqrt(probability * (1 - probability) / 4000)
        assert abs(counts[token] / 4000 - probability) < spread


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 1}, {0}),
        ({"top_k": 100}, set(range(10))),
        ({"top_p": 0.59}, {0, 1}),  # 0.4 < 0.59 <= 0.6: the token that crosses the line is kept
        ({"top_p": 0.3}, {0}),
        ({"top_p": 0.001}, {0}),
        ({"min_p": 0.3}, {0, 1, 2}),  # at least 0.3 of 0.4 = 0.12
        ({"min_p": 1.0}, {0}),
        ({"top_k": 4, "top_p": 0.8}, {0, 1, 2}),  # of the four, renormalised: 0.471, 0.235, 0.176, 0.118
        ({"temperature": 1e-6}, {0}),
        ({"temperature": 1e-6, "top_p": 0.001, "top_k": 1}, {0}),
        ({"temperature": 1e-45}, {0}),
    ],
)
def test_filters_keep_what_they_say(params: dict[str, Any], kept: set[int]) -> None:
    tokens = draws(600, **params)
    assert set(tokens) <= kept
    likely = {token for token in kept if PROBS[token] >= 0.02}
    assert likely <= set(tokens)


def test_temperature_flattens() -> None:
    hot = Counter(draws(3000, temperature=2.0))
    expected = PROBS.sqrt() / PROBS.sqrt().sum()
    assert abs(hot[0] / 3000 - float(expected[0])) < 0.03


def test_repetition_penalty_by_hand() -> None:
    draw = sampler(5, ())
    row = torch.tensor([[3.0, 2.9, -0.5, -1.0, 0.0]])
    state = draw.start([0], SamplingParams(repetition_penalty=1.5))
    assert [draw.sample(row.clone(), [state])[0].token for _ in range(3)] == [
        1,
        0,
        0,
    ]  # 2.0 < 2.9; then 2.0 > 2.9 / 1.5
    negative = torch.tensor([[-1.0, -1.2, -9.0, -9.0, -9.0]])
    state = draw.start([0], SamplingParams(repetition_penalty=1.5))  # -1.0 * 1.5 = -1.5 < -1.2
    assert draw.sample(negative.clone(), [state])[0].token == 1


def test_penalty_touches_only_its_own_row() -> None:
    draw = sampler()
    rows = logits_of().repeat(2, 1)
    plain, penalised = SamplingParams(), SamplingParams(repetition_penalty=100.0)
    states = [draw.start([0], plain), draw.start([0], penalised)]
    assert [d.token for d in draw.sample(rows.clone(), states)] == [0, 1]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_seeded_draw_does_not_see_its_batch_mates(data: st.DataObject) -> None:
    def params() -> st.SearchStrategy[SamplingParams]:
        return st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
            top_k=st.sampled_from([0, 1, 5, 12]),
            top_p=st.sampled_from([1.0, 0.9, 0.4]),
            min_p=st.sampled_from([0.0, 0.1]),
            repetition_penalty=st.sampled_from([1.0, 1.3]),
            seed=st.integers(0, 5),
        )

    mine, others = data.draw(params()), data.draw(st.lists(params(), max_size=5))
    torch.manual_seed(data.draw(st.integers(0, 100)))
    rows = torch.randn(len(others) + 1, VOCABULARY).round(decimals=0)  # ties
    draw = sampler()
    alone, together = draw.start([1], mine), [draw.start([1], p) for p in [*others, mine]]
    for _ in range(5):
        expected = draw.sample(rows[-1:].clone(), [alone])[0]
        assert draw.sample(rows.clone(), together)[-1] == expected


def test_without_a_seed_torch_manual_seed_decides() -> None:
    torch.manual_seed(5)
    first = draws(20, seed=None)
    torch.manual_seed(5)
    assert draws(20, seed=None) == first
    assert draws(20, seed=None) != first


def test_logprob_is_of_the_models_own_logits() -> None:
    draw = sampler()
    row = logits_of().unsqueeze(0)
    params = SamplingParams(temperature=0.5, top_k=1, repetition_penalty=2.0, seed=1, logprobs=True)
    drawn = draw.sample(row.clone(), [draw.start([5], params)])[0]
    assert drawn.logprob == pytest.approx(float(row.log_softmax(-1)[0, drawn.token]), abs=1e-5)
    assert draw.sample(row.clone(), [draw.start([5], SamplingParams())])[0] == Drawn(0, None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_fail_their_row_only(bad: float, temperature: float) -> None:
    draw = sampler()
    rows = logits_of().repeat(3, 1)
    rows[1, 4] = bad
    params = SamplingParams(temperature=temperature, seed=3, logprobs=True)
    drawn = draw.sample(rows.clone(), [draw.start([1], params) for _ in range(3)])
    assert drawn[1].error is not None
    assert "not finite (1 of 12)" in drawn[1].error
    assert drawn[0] == drawn[2]
    assert drawn[0].error is None


def test_no_rows() -> None:
    assert sampler().sample(torch.zeros(0, VOCABULARY), []) == []


@pytest.mark.parametrize(
    ("prompt", "answer", "params", "banned"),
    [
        ([5, 6, 7], [5], {"no_repeat_ngram_size": 2}, {6}),
        ([5, 6, 7, 5], [6], {"no_repeat_ngram_size": 3}, {7}),
        ([5, 6], [5], {"no_repeat_ngram_size": 1}, {5, 6}),
        ([5], [6], {"no_repeat_ngram_size": 4}, set()),
        ([1, 7], [], {"bad_words": ((7, 8), (3,), (1, 7, 9), (2, 7, 4), (0,))}, {8, 3, 9}),  # 0 ends: alone it may
        ([1], [2], {"min_new_tokens": 2}, {0}),
        ([1], [2, 2], {"min_new_tokens": 2}, set()),
        ([1], [], {"begin_suppress_tokens": (4,), "suppress_tokens": (5,)}, {4, 5}),
        ([1], [2], {"begin_suppress_tokens": (4,), "suppress_tokens": (5,)}, {5}),
    ],
)
def test_what_is_banned_by_hand(prompt: list[int], answer: list[int], params: dict[str, Any], banned: set[int]) -> None:
    assert banned_next(prompt, answer, SamplingParams(**params), ends={0}) == banned


def test_a_forced_end() -> None:
    draw = sampler()
    state = draw.start([1], SamplingParams(max_new_tokens=3, forced_eos=(7,), keep_scores=True))
    drawn = [draw.sample(logits_of().unsqueeze(0), [state])[0] for _ in range(3)]
    assert [d.token for d in drawn] == [0, 0, 7]
    scores = drawn[2].scores
    assert scores is not None
    assert scores[7] == 0
    assert int(scores.isinf().sum()) == VOCABULARY - 1


def test_typical_tokens_are_near_the_expected_surprise() -> None:
    """PROBS has an entropy of 1.76 nats: 0.2 (1.61) is nearest, then 0.15 (1.90), then 0.1 (2.30), then 0.4 (0.92)."""
    assert set(draws(300, typical_p=0.19)) == {1}
    assert set(draws(300, typical_p=0.3)) == {1, 2}
    assert set(draws(300, typical_p=0.4)) == {1, 2, 3}
    assert set(draws(300, typical_p=0.8)) == {0, 1, 2, 3}


def test_kept_scores_are_what_was_drawn_from() -> None:
    draw = sampler()
    params = SamplingParams(temperature=0.5, top_p=0.7, seed=1, keep_scores=True, keep_logits=True)
    drawn = draw.sample(logits_of().unsqueeze(0), [draw.start([1], params)])[0]
    assert drawn.scores is not None
    assert drawn.logits is not None
    assert torch.equal(drawn.logits, logits_of())
    assert (~drawn.scores.isinf()).nonzero().flatten().tolist() == [0, 1]  # 0.16 of 0.24 is 0.67 < 0.7
