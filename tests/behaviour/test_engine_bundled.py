"""The engine with all it has (native kernels where they are, pages, prefix and vision caches, drafts) on the bundled
model: the answers are those of plain forwards."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from qwenvl.demo.samples import PICTURES
from qwenvl.engine import Engine, Request
from qwenvl.tasks.ask import Assistant
from qwenvl.types import SamplingParams

QUESTIONS = [
    "Describe this image.",
    "How many circles are there?",
    "List every shape with its colour.",
    "Detect all shapes and output their bounding boxes in JSON.",
]


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant("demo", dtype="bfloat16")


def asked(assistant: Assistant) -> list[Any]:
    pictures = sorted(path for path in PICTURES.iterdir() if path.suffix in (".png", ".jpg"))[:4]
    return [(path, question) for path in pictures for question in QUESTIONS]


def requests(assistant: Assistant, **params: Any) -> list[Request]:
    sampling = SamplingParams(max_new_tokens=48, **params)
    return [assistant.prepare([path], question, sampling)[0] for path, question in asked(assistant)]


@torch.inference_mode()
def agreement(assistant: Assistant, done: list[Request]) -> float:
    """Share of the drawn tokens that one plain forward over prompt and answer would draw too."""
    right = total = 0
    for request in done:
        ids = torch.tensor([request.prompt_ids + request.output_ids])
        embeds = assistant.model.get_input_embeddings()(ids[0])
        for item in request.items:
            grid = torch.tensor([item.grid])
            embeds[item.start : item.start + item.tokens] = assistant.model.encode_vision(
                item.patches, grid, item.affine
            )
        positions = request.positions_of(0, ids.shape[1]).unsqueeze(1)
        logits = assistant.model(inputs_embeds=embeds[None], position_ids=positions, use_cache=False).logits[0]
        drawn = logits[len(request.prompt_ids) - 1 : -1].argmax(-1)
        right += int((drawn == torch.tensor(request.output_ids)).sum())
        total += len(request.output_ids)
    assert total > 100
    return right / total


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"token_budget": 40, "prompt_budget": 24},
        {"draft_tokens": 6},
        {"cache_tokens": 512, "max_running": 8},
        {"vision_budget": 16, "vision_cache_bytes": 0, "prefix_cache": False},
    ],
    ids=str,
)
def test_greedy_tokens_are_those_of_plain_forwards(assistant: Assistant, options: dict[str, Any]) -> None:
    done = requests(assistant)
    Random(0).shuffle(done)
    engine = Engine(assistant.model, assistant.processor.tokenizer, **options)
    engine.run(done)
    assert all(request.finish_reason in ("stop", "length") for request in done)
    assert agreement(assistant, done) >= 0.99
    assert engine.stats.used_tokens == 0


def test_a_second_turn_computes_only_what_is_new(assistant: Assistant) -> None:
    """A chat about a picture: the second question finds the first turn in the cache, and answers as if it were new."""
    picture, tokenizer = sorted(PICTURES.glob("*.png"))[0], assistant.processor.tokenizer
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image", "image": str(picture)}, {"type": "text", "text": QUESTIONS[0]}]}
    ]

    def turn() -> Request:
        inputs = assistant.processor.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return Request.from_inputs(inputs, assistant.model.config, SamplingParams(max_new_tokens=48))

    engine = Engine(assistant.model, tokenizer)
    first = engine.run([turn()])[0]
    talk += [
        {"role": "assistant", "content": [{"type": "text", "text": first.text}]},
        {"role": "user", "content": [{"type": "text", "text": QUESTIONS[1]}]},
    ]
    second, fresh = turn(), turn()
    answer = engine.run([second])[0]
    assert second.found >= 0.8 * (len(second.prompt_ids) - 30)
    assert Engine(assistant.model, tokenizer).run([fresh])[0].text == answer.text
    assert fresh.found == 0


def test_drafts_pay_where_answers_repeat(assistant: Assistant) -> None:
    """Lists of boxes repeat their keys: fewer steps than tokens."""
    engine = Engine(assistant.model, assistant.processor.tokenizer, draft_tokens=6)
    steps = 0
    run = engine._runner.run

    def counted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        return run(*arguments)

    engine._runner.run = counted  # type: ignore[method-assign]
    picture = sorted(PICTURES.glob("*.png"))[0]
    sampling = SamplingParams(max_new_tokens=160)
    request = assistant.prepare([picture], "Detect all shapes and output their bounding boxes in JSON.", sampling)[0]
    done = engine.run([request])[0]
    plain = assistant.prepare([picture], "Detect all shapes and output their bounding boxes in JSON.", sampling)[0]
    assert Engine(assistant.model, assistant.processor.tokenizer).run([plain])[0].token_ids == done.token_ids
    assert steps < 0.9 * len(done.token_ids), (steps, len(done.token_ids))
