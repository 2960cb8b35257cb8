"""Beam search: by hand on a scripted model, and on a tiny real one what must not change an answer does not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scripted import EOS, VOCABULARY, ByteTokenizer, ScriptedModel, prompt
from test_engine_model import batch, model_of

from qwenvl.engine import generate

FAMILIES = ["qwen2_5_vl", "qwen2_vl"]
TREE = {  # the likely first letter leads nowhere: a .6 then x .31; b .4 then y .9
    "": {"a": 0.6, "b": 0.4},
    "a": {"x": 0.31, "y": 0.29, "z": 0.2, "w": 0.2},
    "b": {"y": 0.9, "x": 0.1},
}


def tree(history: list[int]) -> torch.Tensor:
    said = bytes(history[4:]).decode()
    row = torch.full((VOCABULARY,), -30.0)
    for letter, share in TREE.get(said, {}).items():
        row[ord(letter)] = math.log(share)
    if said not in TREE:
        row[EOS] = 0.0
    return row


def ask(**options: Any) -> Any:
    ids = torch.tensor([prompt("one")])
    return generate(ScriptedModel(tree), ids, **{"max_new_tokens": 8, "return_dict_in_generate": True, **options})


def text(row: torch.Tensor) -> str:
    return bytes(i for i in row[4:].tolist() if 0 < i < 256).decode()


@pytest.mark.feature(41)
def test_two_beams_find_what_greedy_misses() -> None:
    assert text(ask().sequences[0]) == "ax"
    out = ask(num_beams=2, num_return_sequences=2, output_scores=True, length_penalty=0.0)
    assert [text(row) for row in out.sequences] == ["by", "ax"]
    assert out.sequences_scores.tolist() == pytest.approx([math.log(0.36), math.log(0.186)], abs=1e-4)
    assert out.beam_indices.tolist() == [[0, 1, 0], [0, 0, 1]]
    per_token = ask(num_beams=2, output_scores=True, length_penalty=1.0).sequences_scores
    assert per_token.tolist() == pytest.approx([math.log(0.36) / 3], abs=1e-4)


@pytest.mark.feature(41)
def test_stop_strings_and_lengths_end_beams() -> None:
    assert text(ask(num_beams=2, max_new_tokens=1).sequences[0]) == "a"
    out = ask(num_beams=2, num_return_sequences=2, stop_strings="b", tokenizer=ByteTokenizer(), length_penalty=0.0)
    assert [text(row) for row in out.sequences] == ["b", "ax"]


def test_the_caches_slots_follow_the_beams() -> None:
    """The scripted model reads its history back from the cache: a beam in a wrong slot would see another's."""
    model = ScriptedModel(tree)
    generate(model, torch.tensor([prompt("one")]), max_new_tokens=8, num_beams=2)
    said = [bytes(history[4:]).decode() for history, _ in model.histories]
    assert said[0] == ""
    assert said[1:3] == ["a", "b"]
    assert said[3:5] == ["by", "ax"]


def test_a_model_that_fails_is_told() -> None:
    broken = ScriptedModel(lambda history: torch.full((VOCABULARY,), float("nan")))
    with pytest.raises(RuntimeError, match=r"beam search failed: .*not finite"):
        generate(broken, torch.tensor([prompt("one")]), max_new_tokens=3, num_beams=2)


def rows(out: torch.Tensor, copies: int) -> list[list[list[int]]]:
    width = batch()["input_ids"].shape[1]
    answers = [[i for i in row[width:].tolist() if i != 0] for row in out]
    return [answers[i : i + copies] for i in range(0, len(answers), copies)]


def alone(i: int) -> dict[str, Any]:
    from qwenvl.engine.inputs import split_batch

    row = split_batch(model_of("qwen2_5_vl").config, **batch())[i]
    return {**row, "input_ids": row["input_ids"][None]}


@pytest.mark.feature(41)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2, "do_sample": True, "seed": 5, "temperature": 1.5, "top_k": 20, "top_p": 0.9},
        {"num_beams": 3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "early_stopping": True},
        {"num_beams": 12, "length_penalty": 2.0},  # more prompts than fit together: two waves
    ],
)
def test_a_batch_of_pictures_is_searched_as_each_prompt_alone(family: str, options: dict[str, Any]) -> None:
    model, copies = model_of(family), options.get("num_return_sequences", 1)
    more = {"max_new_tokens": 10, "eos_token_id": [33, 44], "pad_token_id": 0, **options}
    together = rows(model.generate(**batch(), **more), copies)
    for i in range(4):
        one = alone(i)
        out = model.generate(**one, **more)
        found = [[t for t in row[one["input_ids"].shape[1] :].tolist() if t != 0] for row in out]
        assert together[i] == found
    assert len({str(row) for row in together}) == 4


@pytest.mark.feature(41)
def test_sampled_beams_follow_the_seed() -> None:
    model = model_of("qwen2_5_vl")
    more: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 2, "do_sample": True, "temperature": 2.0}
    first = model.generate(**alone(2), **more, seed=1)
    assert torch.equal(model.generate(**alone(2), **more, seed=1), first)
    assert any(not torch.equal(model.generate(**alone(2), **more, seed=seed), first) for seed in (2, 3, 4))


@pytest.mark.feature(41)
@pytest.mark.parametrize("family", FAMILIES)
def test_beam_scores_are_those_of_one_plain_forward(family: str) -> None:
    model, one = model_of(family), alone(0)
    out = model.generate(
        **one, max_new_tokens=9, num_beams=4, num_return_sequences=4, length_penalty=1.5, eos_token_id=[33],
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    start = one["input_ids"].shape[1]
    shown = {name: value for name, value in one.items() if name != "input_ids"}
    for ids, score in zip(out.sequences, out.sequences_scores.tolist(), strict=True):
        answer = [t for t in ids[start:].tolist() if t != 0]
        ids = ids[: start + len(answer)]
        with torch.no_grad():
            logprobs = model(ids[None], **shown).logits[0].log_softmax(-1)
        total = logprobs[torch.arange(start - 1, len(ids) - 1), ids[start:]].sum()
        assert float(total) / len(answer) ** 1.5 == pytest.approx(score, abs=1e-3)
