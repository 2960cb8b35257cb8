"""The engine on a real tiny model of random weights: what must not change an answer does not change it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from qwenvl.config import config_from_dict
from qwenvl.engine import Engine, Request, generate
from qwenvl.engine.inputs import split_batch
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
from qwenvl.types import SamplingParams

IMAGE, VIDEO, START, END, PAD = 60, 61, 58, 59, 0
NEW = 12
TEXT = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 1000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]},
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START,
    "vision_end_token_id": END, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD,
    "tie_word_embeddings": False,
}  # fmt: skip
COMMON = {
    "num_heads": 2, "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
VISION = {
    "qwen2_5_vl": COMMON | {
        "depth": 3, "hidden_size": 32, "intermediate_size": 44, "tokens_per_second": 2, "window_size": 112,
        "out_hidden_size": 48, "fullatt_block_indexes": [1], "hidden_act": "silu",
    },
    "qwen2_vl": COMMON | {
        "depth": 2, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 3, "hidden_act": "quick_gelu",
    },
}  # fmt: skip
PICTURES = torch.tensor([[1, 18, 10], [1, 8, 8], [1, 4, 26]])  # ragged windows, one full window, wide
CLIPS = torch.tensor([[3, 4, 6]])


@cache
def model_of(family: str) -> Any:
    classes: dict[str, Any] = {
        "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
        "qwen2_vl": Qwen2VLForConditionalGeneration,
    }
    config = config_from_dict({**TEXT, "model_type": family, "vision_config": VISION[family]})
    model = classes[family](config).eval()
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)  # large enough that answers do not repeat one token
    return model


def batch() -> dict[str, Any]:
    """Four prompts, left-padded: two pictures; one and a video; text; one token."""

    def run(token: int, grid: torch.Tensor) -> list[int]:
        return [START, *[token] * (int(grid.prod()) // 4), END]

    rows = [
        [3, 4, *run(IMAGE, PICTURES[0]), 5, 6, 7, *run(IMAGE, PICTURES[1]), 8],
        [9, *run(IMAGE, PICTURES[2]), 10, *run(VIDEO, CLIPS[0]), 11],
        [12, 13, 14, 15, 16],
        [17],
    ]
    longest = max(map(len, rows))
    torch.manual_seed(1)
    return {
        "input_ids": torch.tensor([[PAD] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values": torch.randn(int(PICTURES.prod(-1).sum()), 1176),
        "image_grid_thw": PICTURES,
        "pixel_values_videos": torch.randn(int(CLIPS.prod(-1).sum()), 1176),
        "video_grid_thw": CLIPS,
        "second_per_grid_ts": torch.tensor([1.5]),
    }


def requests(family: str, **params: Any) -> list[Request]:
    config = model_of(family).config
    options = SamplingParams(**{"max_new_tokens": NEW, "ignore_eos": True, **params})
    return [Request.from_inputs(row, config, options) for row in split_batch(config, **batch())]


@cache
def expected(family: str) -> list[list[int]]:
    """Greedy ids of each prompt alone, by a plain forward over all of it at each token: no cache, no chunks."""
    model, answers = model_of(family), []
    banned = [IMAGE, VIDEO, START, END]
    with torch.no_grad():
        for row in split_batch(model.config, **batch()):
            ids = inputs = row.pop("input_ids")[None]
            for _ in range(NEW):
                logits = model(inputs, **row, logits_to_keep=1).logits[0, -1]
                logits[banned] = float("-inf")
                inputs = torch.cat((inputs, logits.argmax().view(1, 1)), dim=1)
            answers.append(inputs[0, ids.shape[1] :].tolist())
    return answers


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
@pytest.mark.parametrize(
    "options", [{}, {"max_running": 2}, {"token_budget": 16}, {"max_running": 1, "token_budget": 7}]
)
def test_batched_chunked_and_cached_equal_plain_forwards(family: str, options: dict[str, int]) -> None:
    assert len({tuple(ids) for ids in expected(family)}) == 4
    assert all(len(set(ids)) > 4 for ids in expected(family)), "the tiny model is not degenerate"
    done = Engine(model_of(family), **options).run(requests(family))
    assert [c.token_ids for c in done] == expected(family)


@pytest.mark.feature(11)
@pytest.mark.parametrize("budget", [8192, 20])
def test_a_prompt_in_chunks_is_scaled_by_its_whole_length(budget: int) -> None:
    """Rope scalings that go by the length of the request see all of it, however it is computed."""
    scaling = {
        "rope_type": "dynamic",
        "factor": 4.0,
        "mrope_section": [2, 2, 2],
        "original_max_position_embeddings": 16,
    }
    data = {**TEXT, "rope_scaling": scaling, "model_type": "qwen2_5_vl", "vision_config": VISION["qwen2_5_vl"]}
    model = Qwen2_5_VLForConditionalGeneration(config_from_dict(data)).eval()
    model.load_state_dict(model_of("qwen2_5_vl").state_dict())
    row = split_batch(model.config, **batch())[0]
    request = Request.from_inputs(row, model.config, SamplingParams(max_new_tokens=1, logprobs=True))
    (done,) = Engine(model, token_budget=budget).run([request])
    with torch.no_grad():
        logits = model(row.pop("input_ids")[None], **row).logits[0, -1]
    logprobs = logits.log_softmax(-1)
    assert done.logprobs is not None
    assert abs(float(logprobs[done.token_ids[0]]) - done.logprobs[0]) < 1e-4


def test_requests_that_come_while_others_run() -> None:
    engine = Engine(model_of("qwen2_5_vl"), token_budget=64)
    asked = requests("qwen2_5_vl")
    for request in reversed(asked):
        engine.add(request)
        engine.step()
        engine.step()
    while engine.has_work:
        engine.step()
    assert [request.output_ids for request in asked] == expected("qwen2_5_vl")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
def test_generate_equals_rescoring_by_one_plain_forward(family: str) -> None:
    model = model_of(family)
    params = {"temperature": 1.2, "seed": 4, "logprobs": True, "repetition_penalty": 1.1}
    done = Engine(model, token_budget=32).run(requests(family, **params))
    for row, completion in zip(split_batch(model.config, **batch()), done, strict=True):
        ids = torch.cat((row.pop("input_ids"), torch.tensor(completion.token_ids)))[None]
        with torch.no_grad():
            logprobs = model(ids, **row).logits[0].log_softmax(-1)
        start = completion.prompt_tokens
        scored = logprobs[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]]
        assert torch.allclose(scored, torch.tensor(completion.logprobs), atol=1e-4)


def test_seeded_answers_do_not_depend_on_batch_mates() -> None:
    params = {"temperature": 1.5, "top_p": 0.9, "seed": 11}
    together = [c.token_ids for c in Engine(model_of("qwen2_5_vl")).run(requests("qwen2_5_vl", **params))]
    alone = [Engine(model_of("qwen2_5_vl")).run([r])[0].token_ids for r in requests("qwen2_5_vl", **params)]
    assert together == alone
    others = [c.token_ids for c in Engine(model_of("qwen2_5_vl")).run(requests("qwen2_5_vl", **{**params, "seed": 12}))]
    assert others != alone


@pytest.mark.feature(41, 62)
def test_the_documented_generate() -> None:
    inputs = batch()
    out = model_of("qwen2_5_vl").generate(**inputs, max_new_tokens=NEW, eos_token_id=[63])
    width = inputs["input_ids"].shape[1]
    assert torch.equal(out[:, :width], inputs["input_ids"])
    for row, ids in zip(out[:, width:].tolist(), expected("qwen2_5_vl"), strict=True):
        end = ids.index(63) + 1 if 63 in ids else NEW
        assert row == ids[:end] + [PAD] * (len(row) - end)
    right = {**inputs}
    for name in ("input_ids", "attention_mask"):
        order = inputs["attention_mask"].argsort(dim=1, descending=True, stable=True)
        right[name] = inputs[name].gather(1, order)
    turned = generate(model_of("qwen2_5_vl"), **right, max_new_tokens=NEW, eos_token_id=[63])
    assert torch.equal(turned[:, width:], out[:, width:])


def test_damaged_weights_are_said_to_be() -> None:
    config = model_of("qwen2_5_vl").config
    broken = Qwen2_5_VLForConditionalGeneration(config).eval()
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    done = Engine(broken).run([Request.from_inputs({"input_ids": torch.tensor([5, 6])}, config)])[0]
    assert done.finish_reason == "error"
    assert "not finite (64 of 64)" in str(done.error)
    assert "first at lm_head" in str(done.error)


def test_an_overflowing_tower_names_its_layer() -> None:
    """The vision tower of a damaged model: the request fails with the layer's name, and text goes on."""
    import copy

    broken = copy.deepcopy(model_of("qwen2_5_vl"))
    torch.nn.init.constant_(broken.model.visual.blocks[1].mlp.down_proj.bias, float("inf"))
    pictured, text = (Request.from_inputs(row, broken.config, SamplingParams(max_new_tokens=2)) for row in two_rows())
    done = Engine(broken).run([pictured, text])
    assert done[0].finish_reason == "error"
    assert "first at model.visual.blocks.1.mlp.down_proj: load the model in bfloat16" in str(done[0].error)
    assert done[1].finish_reason == "length"


def two_rows() -> list[dict[str, Any]]:
    """Inputs of a prompt with a picture, and of one without."""
    grid = torch.tensor([[1, 4, 4]])
    ids = torch.tensor([[3, START, *[IMAGE] * 4, END, 5]])
    pictured = {"input_ids": ids, "pixel_values": torch.ones(16, 1176), "image_grid_thw": grid}
    return [pictured, {"input_ids": torch.tensor([[3, 4, 5]])}]


EVERY_OPTION: list[dict[str, Any]] = [
    {"no_repeat_ngram_size": 2, "bad_words": ((17,), (30, 31)), "suppress_tokens": (40, 41)},
    {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.8, "seed": 9},
    {"temperature": 1.0, "typical_p": 0.5, "seed": 2, "repetition_penalty": 1.2, "begin_suppress_tokens": (5,)},
    {"min_new_tokens": 8, "ignore_eos": False, "forced_eos": (63,)},
]


@pytest.mark.feature(41)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
@pytest.mark.parametrize("params", EVERY_OPTION)
def test_every_option_is_the_rows_own(family: str, params: dict[str, Any]) -> None:
    """A row answers in a batch as alone, whatever its mates are asked; and its scores are a row's own too."""
    kept = {**params, "keep_scores": True, "keep_logits": True}
    alone = requests(family, **kept)
    for request in alone:
        Engine(model_of(family)).run([request])
    plain = requests(family, temperature=1.0, seed=1)
    together = requests(family, **kept)
    Engine(model_of(family), token_budget=24).run([r for pair in zip(plain, together, strict=True) for r in pair])
    for one, other in zip(alone, together, strict=True):
        assert one.output_ids == other.output_ids
        for name in ("output_scores", "output_logits"):
            mine, theirs = torch.stack(getattr(one, name)), torch.stack(getattr(other, name))
            assert torch.equal(mine.isinf(), theirs.isinf())
            assert torch.allclose(mine, theirs, atol=1e-3)
        drawn = torch.stack(one.output_scores)[range(len(one.output_ids)), one.output_ids]
        assert torch.isfinite(drawn).all(), "what was drawn is among what could be drawn"


@pytest.mark.feature(41)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
def test_generates_logprobs_and_scores_are_those_of_one_plain_forward(family: str) -> None:
    model, inputs = model_of(family), batch()
    shown: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "logprobs": True}
    out = model.generate(**inputs, max_new_tokens=6, eos_token_id=[99], do_sample=True, top_k=0, seed=7, **shown)
    for i, row in enumerate(split_batch(model.config, **inputs)):
        start, answer = len(row["input_ids"]), out.sequences[i, -6:]
        ids = torch.cat((row.pop("input_ids"), answer))[None]
        with torch.no_grad():
            logits = model(ids, **row).logits[0, start - 1 : -1]
        scored = logits.log_softmax(-1).gather(1, answer[:, None]).squeeze(1)
        assert torch.allclose(out.logprobs[i], scored, atol=1e-4)
        scores = torch.stack([step[i] for step in out.scores])
        allowed = ~scores.isinf()
        assert torch.allclose(scores[allowed], logits[allowed], atol=1e-3)
        assert (~allowed).nonzero()[:, 1].unique().tolist() == [START, END, IMAGE, VIDEO]


@pytest.mark.feature(30)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 3}])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
def test_embeddings_in_place_of_ids(family: str, options: dict[str, Any]) -> None:
    """With pictures: the embeddings alone, and beside the ids, answer as the ids do."""
    model, inputs = model_of(family), batch()
    more = {"max_new_tokens": 8, "eos_token_id": [63], "pad_token_id": PAD, **options}
    expected_ids = model.generate(**inputs, **more)
    ids = inputs.pop("input_ids")
    embeds = model.get_input_embeddings()(ids).detach()
    new = model.generate(inputs_embeds=embeds, **inputs, **more)
    assert torch.equal(new, expected_ids[:, ids.shape[1] :])
    assert torch.equal(model.generate(ids, inputs_embeds=embeds, **inputs, **more), expected_ids)
    changed = model.generate(inputs_embeds=embeds + 0.3, attention_mask=inputs["attention_mask"], **more)
    assert not torch.equal(changed[2:], new[2:]), "the embeddings are what is read"
    with pytest.raises(ValueError, match=r"inputs_embeds has shape .* beside input_ids"):
        model.generate(ids[:, 1:], inputs_embeds=embeds, **inputs, **more)
