"""Where the auxiliary losses say that words look and what happens."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from qwenvl.demo.clips import sample_clip
from qwenvl.demo.drawing import COLOURS
from qwenvl.demo.focus import answer_spans, question_spans
from qwenvl.demo.lessons import WHOLE, Lesson, World
from qwenvl.demo.looking import Looking
from qwenvl.demo.pairs import sample_pair
from qwenvl.demo.questions import sample_exchange
from qwenvl.demo.recipe import demo_config
from qwenvl.demo.sights import APPEARS, CHANGES, cell_targets, clip_targets, gazes, pair_targets, picture_spots
from qwenvl.demo.world import sample_picture
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration
from qwenvl.processing import Qwen2_5_VLProcessor
from qwenvl.training.collate import collate
from qwenvl.training.data import Encoder, Turn


@pytest.fixture(scope="module")
def processor() -> Any:
    return Qwen2_5_VLProcessor.from_pretrained("demo")


def test_spans_name_what_they_are_about() -> None:
    rng = np.random.default_rng(3)
    told = 0
    for _ in range(60):
        picture = sample_picture(rng)
        for kind in (*WHOLE, "describe", "locate"):
            exchange = sample_exchange(rng, picture, kind)
            if exchange is None:
                continue
            for span in question_spans(exchange):
                words = exchange.question[span.start : span.end].lower()
                assert all(t.shape in words or t.colour in words or kind in ("count", "locate") for t in span.things)
            for span in answer_spans(exchange):
                told += 1
                if kind in ("describe", "locate", "point"):
                    assert span.things[0].name in exchange.answer[span.start : span.end]
    assert told > 200


def test_words_look_at_the_middle_of_the_thing(processor: Any) -> None:
    """Every gaze lies on a token with the thing's centre, and comes from its name or its part of the answer."""
    rng = np.random.default_rng(4)
    encoder, looked = Encoder(processor), 0
    for _ in range(20):
        picture = sample_picture(rng, 3, 2)
        exchange = sample_exchange(rng, picture, "locate")
        assert exchange is not None
        sample = encoder.encode([picture.image], [Turn(exchange.question, exchange.answer, images=1)])
        encode = partial(processor.tokenizer.encode, special=False)
        targets = cell_targets(picture)
        for gaze in gazes([exchange], sample, picture_spots(picture), encode):
            assert all(targets[spot, 2] == 1 for spot in gaze.spots)
            if gaze.level == 1:
                assert bool(sample.answer[gaze.token + 1])
                names = [f"{list(COLOURS)[int(targets[s, 1]) - 1]}" for s in gaze.spots]
                assert len(names) == 1
                looked += 1
            else:
                assert not bool(sample.answer[gaze.token])
    assert looked > 100


def test_events_lie_on_their_tokens() -> None:
    rng = np.random.default_rng(5)
    kinds = set()
    for _ in range(30):
        clip = sample_clip(rng)
        targets = clip_targets(clip)
        assert len(targets) == len(clip.frames) // 2 * clip.resized_width * clip.resized_height // 784
        for row in targets[targets[:, 18] > 0]:
            kinds.add(int(row[18]))
            assert (row[18] == APPEARS) == (row[19] >= 0)
        pair = sample_pair(rng)
        changed = (pair_targets(pair)[:, 18] == CHANGES).nonzero()
        assert len(changed) == (pair.change != "none")
        if len(changed):
            assert int(changed) >= len(pair_targets(pair)) // 2
    assert kinds == {1, 2, 3, 4, APPEARS}


def test_all_losses_come_and_reach_the_layers(processor: Any) -> None:
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(demo_config(processor.tokenizer), attn_implementation="eager")
    lesson = Lesson(10, 3, 0.2, WHOLE, clips=0.4, pairs=0.2, cards=0.2)
    world = World(Encoder(processor), 1, token_budget=2500, looking=0, lessons=(lesson,))
    batch = collate(world.batch(1), model.config)
    auxiliary = Looking(model, model.config.text_config)
    batch.packed.vision_embeds = model.encode_vision(processor.image_processor.normalize(batch.patches), batch.grids)
    model.run(batch.packed)
    loss, figures = auxiliary.loss(batch.packed.vision_embeds, batch)
    assert {"a_name", "a_answer", "a_event", "a_quiet", "a_time", "a_shape", "a_box", "a_tens", "a_fives"} <= set(
        figures
    )
    assert {"a_letter", "a_blank", "a_letter_read", "a_blank_read", "a_letter_here", "a_letter_next"} <= set(figures)
    loss.backward()
    for name in ("layers.2.self_attn.q_proj", "layers.4.self_attn.k_proj", "layers.5.self_attn.k_proj"):
        grad = model.get_submodule(f"model.language_model.{name}").weight.grad
        assert grad is not None
        assert grad[:48].abs().max() > 0
