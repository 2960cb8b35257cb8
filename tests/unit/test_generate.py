"""generate() and its streamers under a scripted model: shapes, padding, options, and what is refused."""

from __future__ import annotations

import warnings
from queue import Empty
from threading import Thread
from typing import Any

import pytest
import torch
from scripted import EOS, ByteTokenizer, ScriptedModel, prompt, script

from qwenvl import GenerationConfig
from qwenvl.engine import (
    GenerateDecoderOnlyOutput,
    TextIteratorStreamer,
    TextStreamer,
    compute_transition_scores,
    generate,
)

ANSWERS = {"one": "eins", "to": "zwei!!", "three": "drei €"}


def scripted(**settings: Any) -> ScriptedModel:
    model = ScriptedModel(script(ANSWERS))
    model.generation_config = settings  # type: ignore[attr-defined]
    return model


def ids(text: str = "one") -> torch.Tensor:
    return torch.tensor([prompt(text)])


def letters(history: list[int]) -> torch.Tensor:
    """Logits that like the letters a to z, each a little less than the one before."""
    row = torch.zeros(264)
    row[97:123] = 9 - torch.arange(26) * 0.05
    return row


def answer(out: torch.Tensor, width: int = 4) -> bytes:
    return bytes(out[0, width:].tolist())


@pytest.mark.feature(41, 62)
@pytest.mark.feature(41)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_answers_and_pads(side: str) -> None:
    def pad(row: list[int], fill: int) -> list[int]:
        padding = [fill] * (6 - len(row))
        return padding + row if side == "left" else row + padding

    rows = [prompt(text) for text in ("one", "to", "three")]
    padded = torch.tensor([pad(row, 77) for row in rows])
    mask = torch.tensor([pad([1] * len(row), 0) for row in rows])
    out = generate(scripted(), padded, mask, max_new_tokens=8)
    assert out.dtype == torch.int64
    assert torch.equal(out[:, :6], padded)
    assert [bytes(i for i in row[6:].tolist() if i != EOS) for row in out] == [
        b"eins\0\0\0",
        b"zwei!!\0",
        "drei €".encode(),
    ]
    assert out[0, 6 + 4] == EOS
    assert out.shape == (3, 6 + 8), "as long as the longest answer, here cut by max_new_tokens"


def test_the_longest_answer_gives_the_width() -> None:
    padded = torch.tensor([prompt("one"), [0, *prompt("to")]])
    out = generate(scripted(), padded, (padded != 0).long(), max_new_tokens=100, pad_token_id=5)
    assert out.tolist() == [[*padded[0], *b"eins", EOS, 5, 5], [*padded[1], *b"zwei!!", EOS]]


@pytest.mark.feature(41)
def test_max_length_counts_the_prompt() -> None:
    assert answer(generate(scripted(), ids(), max_length=6)) == b"ei"
    assert answer(generate(scripted(max_length=7), ids())) == b"ein"
    assert answer(generate(scripted(max_length=7), ids(), max_new_tokens=1)) == b"e"
    assert answer(generate(scripted(max_new_tokens=2, max_length=7), ids())) == b"ei"
    with pytest.raises(ValueError, match="max_length=4 leaves no room behind a prompt of 4 tokens"):
        generate(scripted(), ids(), max_length=4)


def test_the_default_length_is_20_new_tokens_with_a_warning() -> None:
    model = ScriptedModel(letters)
    with pytest.warns(UserWarning, match="ends after 20 tokens; set max_new_tokens"):
        assert generate(model, ids()).shape == (1, 4 + 20)
    with pytest.warns(UserWarning, match="max_length=9 is not"):
        assert generate(model, ids(), max_new_tokens=2, max_length=9).shape == (1, 6)


def test_precedence_explicit_then_given_config_then_the_models() -> None:
    model = ScriptedModel(letters)
    model.generation_config = {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05}  # type: ignore[attr-defined]
    assert answer(generate(model, ids(), max_new_tokens=3)) == b"abc"
    assert answer(generate(model, ids(), max_new_tokens=3, repetition_penalty=1.0)) == b"aaa"
    given = type("Given", (), {"repetition_penalty": 1.0, "eos_token_id": [97]})()
    assert answer(generate(model, ids(), max_new_tokens=3, generation_config=given)) == b"a"
    assert answer(generate(model, ids(), max_new_tokens=3, generation_config=given, eos_token_id=98)) == b"aaa"


def test_sampling_seeds_and_copies() -> None:
    model = ScriptedModel(letters)
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True}
    alone = generate(model, ids("to"), seed=3, **options)
    assert torch.equal(generate(model, ids("to"), seed=3, **options), alone)
    assert not torch.equal(generate(model, ids("to"), seed=4, **options), alone)
    batch = torch.tensor([prompt("one"), [0, *prompt("to")]])
    together = generate(model, batch, (batch != 0).long(), seed=3, **options)
    assert torch.equal(together[1:, 1:], alone)
    copies = generate(model, ids("to"), seed=3, num_return_sequences=2, **options)
    assert torch.equal(copies[:1], alone)
    assert torch.equal(copies[1:], generate(model, ids("to"), seed=4, **options))
    torch.manual_seed(1)
    free = generate(model, ids("to"), **options)
    torch.manual_seed(1)
    assert torch.equal(generate(model, ids("to"), **options), free)


def test_top_k_is_50_as_documented_when_sampling() -> None:
    def flat(history: list[int]) -> torch.Tensor:
        return torch.arange(264) * -1e-6

    drawn = generate(ScriptedModel(flat), ids(), max_new_tokens=400, do_sample=True, seed=0)[0, 4:]
    assert int(drawn.max()) == 49
    more = generate(ScriptedModel(flat), ids(), max_new_tokens=400, do_sample=True, seed=0, top_k=60, eos_token_id=263)
    assert 49 < int(more[0, 4:].max()) < 60


def test_stop_strings_end_a_row() -> None:
    out = generate(scripted(), ids("to"), max_new_tokens=9, stop_strings="ei", tokenizer=ByteTokenizer())
    assert answer(out, 3) == b"zwei"
    with pytest.raises(ValueError, match=r"pass tokenizer=processor\.tokenizer"):
        generate(scripted(), ids("to"), max_new_tokens=9, stop_strings=["ei"])


def test_options_without_effect_warn() -> None:
    with pytest.warns(UserWarning, match=r"temperature=0\.7, top_p=0\.9 has no effect without do_sample"):
        generate(scripted(), ids(), max_new_tokens=1, temperature=0.7, top_p=0.9)
    with pytest.warns(UserWarning, match="use_cache=False has no effect"):
        generate(scripted(), ids(), max_new_tokens=1, use_cache=False)


def test_neutral_values_of_what_is_not_built_are_fine() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = generate(
            scripted(),
            ids(),
            max_new_tokens=1,
            num_beams=1,
            return_dict_in_generate=False,
            logits_processor=[],
        )
    assert answer(out) == b"e"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty_alpha": 0.6}, r"penalty_alpha=0\.6\) is not supported yet"),
        ({"output_hidden_states": True}, r"output_hidden_states=True\) is not supported yet"),
        ({"assistant_model": object()}, "assistant_model=.* is not supported yet"),
        ({"past_key_values": ()}, r"generate\(past_key_values=\.\.\.\) is not supported"),
        ({"logits_processor": [3]}, "logits_processor holds a int: expected functions"),
        ({"num_beams": 0}, "num_beams=0 is not valid"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 is more than num_beams=2"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping='soon' is not valid"),
        ({"num_beams": 2, "streamer": TextStreamer(ByteTokenizer())}, "streamer takes one answer, got 2"),
        ({"max_new_token": 4}, "does not know the option 'max_new_token'"),
        ({"generation_config": {"guidance_scale": 2}}, "guidance_scale=2"),
        ({"temperature": -1.0, "do_sample": True}, r"temperature=-1\.0 is not valid"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 is not valid here"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 is not valid"),
        ({"input_ids": None}, "needs input_ids"),
        ({"input_ids": torch.tensor([1, 2])}, r"shape \(2,\): expected \[batch, length\]"),
        (
            {"input_ids": torch.tensor([[1], [2]]), "streamer": TextStreamer(ByteTokenizer())},
            "streamer takes one",
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(scripted(), **{"input_ids": ids(), "max_new_tokens": 4, **options})


def test_a_row_that_fails_raises_with_its_number() -> None:
    def damaged(history: list[int]) -> int | torch.Tensor:
        return torch.full((264,), float("nan")) if history[0] == 50 else EOS

    with pytest.raises(RuntimeError, match=r"prompt 1 failed: .*not finite") as caught:
        generate(ScriptedModel(damaged), torch.tensor([[49, 3], [50, 3]]), max_new_tokens=4)
    assert isinstance(caught.value.__cause__, FloatingPointError)


class Recorder:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.values: list[list[Any]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


@pytest.mark.feature(96)
@pytest.mark.feature(96)
def test_a_streamer_gets_the_prompt_then_each_token_then_the_end() -> None:
    recorder = Recorder()
    out = generate(scripted(), ids(), max_new_tokens=9, streamer=recorder)
    assert recorder.values == [ids().tolist(), *[[i] for i in b"eins"], [EOS]]
    assert recorder.ended == 1
    assert answer(out[:, :-1]) == b"eins"


def test_a_streamer_is_ended_when_the_answer_fails() -> None:
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="not finite"):
        generate(
            ScriptedModel(lambda h: torch.full((264,), float("inf"))),
            ids(),
            max_new_tokens=9,
            streamer=recorder,
        )
    assert recorder.ended == 1


@pytest.mark.feature(96)
def test_text_streamer_prints(capsys: pytest.CaptureFixture[str]) -> None:
    generate(scripted(), ids("three"), max_new_tokens=20, streamer=TextStreamer(ByteTokenizer()))
    assert capsys.readouterr().out == "three\x03drei €<256>\n"
    streamer = TextStreamer(ByteTokenizer(), skip_prompt=True, skip_special_tokens=True)
    for _ in range(2):
        generate(scripted(), ids("three"), max_new_tokens=20, streamer=streamer)
        assert capsys.readouterr().out == "drei €\n"


@pytest.mark.feature(96)
@pytest.mark.feature(96)
def test_text_iterator_streamer_in_a_thread() -> None:
    streamer = TextIteratorStreamer(ByteTokenizer(), skip_prompt=True, timeout=20.0, skip_special_tokens=True)
    options = {"input_ids": ids("three"), "max_new_tokens": 20, "streamer": streamer}
    worker = Thread(target=generate, args=(scripted(),), kwargs=options)
    worker.start()
    pieces = list(streamer)
    worker.join()
    assert pieces == [*"drei ", "€"]


@pytest.mark.feature(96)
def test_text_iterator_streamer_times_out() -> None:
    with pytest.raises(Empty):
        next(TextIteratorStreamer(ByteTokenizer(), timeout=0.01))


@pytest.mark.feature(41)
def test_the_dict_that_comes_back() -> None:
    model = ScriptedModel(letters)
    shown: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out = generate(model, ids(), max_new_tokens=3, repetition_penalty=1.05, logprobs=True, **shown)
    assert isinstance(out, GenerateDecoderOnlyOutput)
    assert torch.equal(out.sequences, generate(model, ids(), max_new_tokens=3, repetition_penalty=1.05))
    assert torch.equal(out[0], out["sequences"])
    assert out.past_key_values is None
    assert len(out.scores) == len(out.logits) == 3
    assert torch.equal(torch.stack(out.scores).argmax(-1).T, out.sequences[:, 4:])
    assert torch.equal(out.logits[0][0], letters([]))
    assert out.scores[1][0, 97] == pytest.approx(9 / 1.05)
    assert float(out.logprobs[0, 0]) == pytest.approx(float(letters([]).log_softmax(-1)[97]), abs=1e-5)
    plain = generate(model, ids(), max_new_tokens=3, return_dict_in_generate=True)
    assert list(plain) == ["sequences"]


@pytest.mark.feature(41)
def test_scores_behind_the_end_say_pad() -> None:
    padded = torch.tensor([prompt("one"), [0, *prompt("to")]])
    options: dict[str, Any] = {"max_new_tokens": 9, "return_dict_in_generate": True, "output_scores": True}
    out = generate(scripted(), padded, (padded != 0).long(), pad_token_id=5, logprobs=True, **options)
    assert len(out.scores) == out.sequences.shape[1] - 4 == 7
    over = out.scores[6][0]
    assert over[5] == 0
    assert int(torch.isinf(over).sum()) == 263
    assert out.logprobs[0, 5:].tolist() == [0, 0]
    moves = compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    assert moves[0, 5:].tolist() == [0, 0]
    assert moves[1].tolist() == pytest.approx(out.logprobs[1].tolist(), abs=1e-3)


@pytest.mark.feature(41)
def test_options_without_a_dict_warn() -> None:
    with pytest.warns(UserWarning, match="output_scores has no effect without return_dict_in_generate=True"):
        generate(scripted(), ids(), max_new_tokens=1, output_scores=True)
    with pytest.warns(UserWarning, match=r"length_penalty=2\.0 has no effect without num_beams"):
        generate(scripted(), ids(), max_new_tokens=1, length_penalty=2.0)


@pytest.mark.feature(41)
def test_the_callers_functions_are_called_for_each_row_as_it_was_given() -> None:
    padded = torch.tensor([prompt("one"), [0, *prompt("to")]])
    seen: list[list[int]] = []

    def spell(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert scores.shape == (1, 264)
        seen.append(input_ids[0].tolist())
        return torch.nn.functional.one_hot(torch.tensor([ord("q")]), 264) * 1.0

    def enough(input_ids: torch.Tensor, scores: Any) -> bool:
        return input_ids.shape[1] == 6

    mask = (padded != 0).long()
    model = ScriptedModel(letters)
    out = generate(model, padded, mask, max_new_tokens=9, logits_processor=[spell], stopping_criteria=[enough])
    assert out[:, 4:].tolist() == [[113, 113], [113, 113]]
    assert sorted(seen) == sorted([*padded.tolist(), *[[*row, 113] for row in padded.tolist()]])

    def own(row: int, row_ids: torch.Tensor) -> list[int]:
        assert row_ids[:4].tolist() == padded[row].tolist()
        return [ord("r") + row]

    out = generate(model, padded, mask, max_new_tokens=2, prefix_allowed_tokens_fn=own)
    assert out[:, 4:].tolist() == [[114, 114], [115, 115]]
    with pytest.raises(ValueError, match="allows no token for row 0"):
        generate(model, padded, mask, max_new_tokens=2, prefix_allowed_tokens_fn=lambda row, row_ids: [])
    with pytest.raises(RuntimeError, match="prompt 0 failed: no token may come next"):
        generate(model, padded, mask, max_new_tokens=2, logits_processor=[lambda i, s: s - float("inf")])


@pytest.mark.feature(41)
def test_max_time_ends_all_rows_after_a_token() -> None:
    assert generate(ScriptedModel(letters), ids(), max_new_tokens=200, max_time=0.0).shape == (1, 5)
    assert generate(ScriptedModel(letters), ids(), max_new_tokens=9, max_time=60.0).shape == (1, 13)


@pytest.mark.feature(41)
def test_what_newer_programs_pass_along_is_taken() -> None:
    """As transformers' processors and prepare_inputs give it, and neutral values of what is not built."""
    more = {"mm_token_type_ids": torch.zeros_like(ids()), "rope_deltas": torch.zeros(1, 1), "logits_to_keep": 1}
    neutral = {"synced_gpus": False, "use_cache": True, "num_beam_groups": 1, "guidance_scale": 1.0,
               "past_key_values": None, "cache_implementation": "dynamic", "use_model_defaults": None}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = generate(scripted(), ids(), max_new_tokens=4, cache_position=torch.arange(4), **more, **neutral)
        assert answer(out) == b"eins"
        assert torch.equal(generate(scripted(), inputs=ids(), max_new_tokens=4), out)


@pytest.mark.feature(41)
def test_published_generation_configs_are_honoured() -> None:
    model = ScriptedModel(letters)
    for published in (
        {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05, "eos_token_id": [256, 100]},
        {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.001, "repetition_penalty": 1.05,
         "eos_token_id": [256, 100]},
    ):  # fmt: skip
        for config in (published, GenerationConfig(**published)):
            model.generation_config = config  # type: ignore[attr-defined]
            assert answer(generate(model, ids(), max_new_tokens=9)) == b"abcd"
            assert answer(generate(model, ids(), max_new_tokens=3, do_sample=False)) == b"abc"


@pytest.mark.feature(41)
def test_a_generation_config_of_the_caller() -> None:
    given = GenerationConfig(max_new_tokens=3, no_repeat_ngram_size=1)
    assert answer(generate(ScriptedModel(letters), ids(), generation_config=given)) == b"abc"
    assert answer(generate(ScriptedModel(letters), ids(), generation_config=given, max_new_tokens=2)) == b"ab"
    assert answer(generate(ScriptedModel(letters), ids(), generation_config=given.to_dict())) == b"abc"


def test_streams_do_not_clean_up() -> None:
    with pytest.raises(ValueError, match="clean_up_tokenization_spaces=True is not supported"):
        TextIteratorStreamer(ByteTokenizer(), clean_up_tokenization_spaces=True)
