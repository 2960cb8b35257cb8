"""generate() against transformers' generate(), exactly: greedy and beam ids, and the scores behind each processor, for
a padded batch with pictures."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from oracle import END, IMAGE, START, VIDEO, build, prompts
from oracle import IMAGES as GRIDS

NOT_DRAWN = [IMAGE, VIDEO, START, END]
PAD = 1
EOS = [8, 9, 10, 11, 20, 21, 22, 23]


@cache
def models(family: str) -> tuple[Any, Any]:
    """(our model, the oracle), with weights so large that answers do not repeat one token."""
    ours, oracle = build(family, tied=False)
    for weight in oracle.parameters():
        torch.nn.init.normal_(weight, mean=0.0 if weight.ndim > 1 else 0.7, std=0.3)
    ours.load_state_dict(oracle.state_dict())
    return ours, oracle


def both(family: str, **options: Any) -> tuple[Any, Any]:
    """What ours and the oracle generate with these options."""
    ours, oracle = models(family)
    ids, mask, pixels = prompts()
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": pixels,
        "image_grid_thw": GRIDS,
        "max_new_tokens": 24,
        "pad_token_id": PAD,
        "do_sample": False,
        **options,
    }
    types = torch.where(ids == IMAGE, 1, 0)
    banned = {"suppress_tokens": NOT_DRAWN + options.get("suppress_tokens", [])}
    return ours.generate(**inputs), oracle.generate(**{**inputs, **banned}, mm_token_type_ids=types)


def assert_same_rows(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal, but for columns of padding at the end."""
    width = max(ours.shape[1], theirs.shape[1])
    padded = [torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=PAD) for ids in (ours, theirs)]
    assert torch.equal(*padded)


@pytest.mark.feature(41)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("eos", [[57], EOS])
def test_greedy_ids_equal(family: str, penalty: float, eos: list[int]) -> None:
    answers, theirs = both(family, repetition_penalty=penalty, eos_token_id=eos, max_new_tokens=32)
    assert torch.equal(answers, theirs)
    new = answers[:, prompts()[0].shape[1] :].tolist()
    assert len({tuple(row) for row in new}) == 3
    assert max(len(set(row)) for row in new) > 5, "the tiny model is not degenerate"


@pytest.mark.feature(41)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 1, "max_new_tokens": 12},
        {"min_new_tokens": 10},
        {"min_length": 80},
        {"bad_words_ids": [[55], [35, 35], [32, 32, 28], [39, 21], [16, 16, 16], [8]]},
        {"suppress_tokens": [3, 5, 30]},
        {"begin_suppress_tokens": list(range(40))},
        {"forced_eos_token_id": 9, "max_new_tokens": 6},
        {"forced_eos_token_id": [9, 10], "max_new_tokens": 6, "eos_token_id": 9},
        {"max_length": 75, "max_new_tokens": None},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 4},
    ],
)
def test_processors_give_the_same_ids(family: str, options: dict[str, Any]) -> None:
    plain, _ = both(family, eos_token_id=EOS)
    answers, theirs = both(family, **{"eos_token_id": EOS, **options})
    assert torch.equal(answers, theirs)
    if not {"max_length", "min_length", "min_new_tokens"} & set(options):
        assert not torch.equal(answers, plain), "the option does something"


@pytest.mark.feature(41)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.05},
        {"typical_p": 0.6, "top_k": 0},
        {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9, "repetition_penalty": 1.1},
        {"temperature": 0.1, "top_k": 1, "top_p": 0.001, "repetition_penalty": 1.05},  # as Qwen2-VL publishes
        {"no_repeat_ngram_size": 2, "bad_words_ids": [[3], [30, 31]]},
    ],
)
def test_scores_that_are_drawn_from_are_the_same(family: str, options: dict[str, Any]) -> None:
    """The first token's distribution, and that of the second where both drew the same first."""
    torch.manual_seed(0)
    shown = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "max_new_tokens": 2}
    ours, theirs = both(family, do_sample=True, eos_token_id=[57], **shown, **options)
    for step in range(2):
        same = (ours.sequences[:, : -2 + step] == theirs.sequences[:, : -2 + step]).all(dim=1)
        for name in ("logits", "scores"):
            mine, other = getattr(ours, name)[step][same], getattr(theirs, name)[step][same]
            assert torch.equal(mine.isinf(), other.isinf()), name
            assert torch.allclose(mine[~mine.isinf()], other[~other.isinf()], atol=2e-3, rtol=1e-3), name
    drawn = ours.scores[0].gather(1, ours.sequences[:, -2:-1])
    assert torch.isfinite(drawn).all()


@pytest.mark.feature(41)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 2.0},
        {"num_beams": 3, "length_penalty": 0.0, "early_stopping": "never"},
        {"num_beams": 3, "length_penalty": 1.5, "early_stopping": "never", "num_return_sequences": 2},
        {"num_beams": 4, "early_stopping": True, "num_return_sequences": 4},
        {"num_beams": 4, "length_penalty": -1.0, "num_return_sequences": 2},
        {"num_beams": 3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
        {"num_beams": 3, "max_new_tokens": 3, "num_return_sequences": 3},
        {"num_beams": 2, "eos_token_id": [57]},
        {"num_beams": 3, "renormalize_logits": True, "suppress_tokens": [3, 4]},
    ],
)
def test_beam_search_is_the_same(family: str, options: dict[str, Any]) -> None:
    shown = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    ours, theirs = both(family, **{"eos_token_id": EOS, **shown, **options})
    assert_same_rows(ours.sequences, theirs.sequences)
    assert torch.allclose(ours.sequences_scores, theirs.sequences_scores, atol=1e-3)
    width = ours.beam_indices.shape[1]
    assert torch.equal(ours.beam_indices, theirs.beam_indices[:, :width])
    first, other = ours.scores[0], theirs.scores[0]
    assert torch.equal(first.isinf(), other.isinf())
    assert torch.allclose(first[~first.isinf()], other[~other.isinf()], atol=1e-3)
    plain, _ = both(family, eos_token_id=EOS)
    best = ours.sequences[:: options.get("num_return_sequences", 1)]
    assert best.shape != plain.shape or not torch.equal(best, plain), "beams find something else than greedy"


@pytest.mark.feature(41)
@pytest.mark.parametrize("beams", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_transition_scores_are_the_same(beams: dict[str, int]) -> None:
    from qwenvl.engine.outputs import compute_transition_scores

    _, oracle = models("qwen2_5_vl")
    shown = {"return_dict_in_generate": True, "output_scores": True, "eos_token_id": EOS}
    ours, theirs = both("qwen2_5_vl", **shown, **beams)
    indices = [getattr(out, "beam_indices", None) for out in (ours, theirs)]
    mine = compute_transition_scores(ours.sequences, ours.scores, indices[0], normalize_logits=not beams)
    expected = oracle.compute_transition_scores(theirs.sequences, theirs.scores, indices[1], normalize_logits=not beams)
    over = ours.sequences[:, -mine.shape[1] :] == PAD
    assert torch.allclose(mine[~over], expected[~over], atol=1e-3)


@pytest.mark.feature(41)
def test_the_callers_own_functions_see_what_they_expect() -> None:
    """A stateless processor and criterion of the caller's, alone and with beams; and the oracle's own classes."""
    from transformers import LogitsProcessorList, MinPLogitsWarper, NoRepeatNGramLogitsProcessor, StoppingCriteriaList

    width = prompts()[0].shape[1]

    def odd_after_even(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        wrong = (torch.arange(scores.shape[1]) + ids[:, -1:]) % 2 == 0
        return scores.masked_fill(wrong, -float("inf"))

    def long_enough(ids: torch.Tensor, scores: Any) -> torch.Tensor:
        return torch.full((ids.shape[0],), ids.shape[1] >= width + 7)

    lists = {
        "logits_processor": LogitsProcessorList([NoRepeatNGramLogitsProcessor(2), MinPLogitsWarper(1e-8)]),
        "stopping_criteria": StoppingCriteriaList([long_enough]),
    }
    for more in ({"logits_processor": [odd_after_even]}, {"stopping_criteria": [long_enough]}, lists):
        for beams in (1, 3):
            ours, theirs = both("qwen2_5_vl", eos_token_id=[57], num_beams=beams, **more)
            assert_same_rows(ours, theirs)
            assert "stopping_criteria" not in more or ours.shape[1] == width + 7


@pytest.mark.feature(30)
@pytest.mark.parametrize("beams", [1, 3])
def test_embeddings_alone_give_only_new_tokens(beams: int) -> None:
    ours, oracle = models("qwen2_5_vl")
    ids = torch.tensor([[0, 0, 12, 13, 14], [3, 4, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    embeds = oracle.get_input_embeddings()(ids).detach()
    more = {"max_new_tokens": 9, "eos_token_id": EOS, "pad_token_id": PAD, "num_beams": beams, "do_sample": False}
    oracle.model.rope_deltas = None
    theirs = oracle.generate(inputs_embeds=embeds, attention_mask=mask, suppress_tokens=NOT_DRAWN, **more)
    assert_same_rows(ours.generate(inputs_embeds=embeds, attention_mask=mask, **more), theirs)
    both_given = ours.generate(ids, inputs_embeds=embeds, attention_mask=mask, **more)
    assert torch.equal(both_given[:, :5], ids)
    assert_same_rows(both_given[:, 5:], theirs)


@pytest.mark.feature(96)
def test_the_oracles_streamers_work(processor: Any) -> None:
    from transformers import TextStreamer

    class Kept(TextStreamer):
        text = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text

    ours, _ = models("qwen2_5_vl")
    streamer = Kept(processor.tokenizer, skip_prompt=True)
    ids = torch.tensor([[12, 13, 14]])
    out = ours.generate(ids, max_new_tokens=8, streamer=streamer, eos_token_id=[57])
    assert streamer.text == processor.tokenizer.decode(out[0, 3:].tolist())
    assert streamer.text
