"""Training: masks, packing, schedule, exact resume, and that a model learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwenvl.demo.lessons import LOOKING, World
from qwenvl.demo.recipe import demo_config
from qwenvl.demo.sights import cell_targets
from qwenvl.demo.world import sample_picture
from qwenvl.media import Video
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration
from qwenvl.processing import Qwen2_5_VLProcessor
from qwenvl.training.collate import collate
from qwenvl.training.curve import draw_curve
from qwenvl.training.data import Encoder, JsonLines, Turn
from qwenvl.training.trainer import Trainer, TrainSettings


@pytest.fixture(scope="module")
def processor() -> Any:
    return Qwen2_5_VLProcessor.from_pretrained("demo")


def small_model(processor: Any) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(3)
    config = demo_config(processor.tokenizer)
    config = config.replace(
        text_config=config.text_config.replace(num_hidden_layers=2, layer_types=()),
        vision_config=config.vision_config.replace(depth=2, fullatt_block_indexes=[1]),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def conversations(folder: Path) -> Path:
    """Two pictures with one question each, as a JSON Lines file."""
    rows = []
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (170, 170), colour).save(folder / f"{name}.png")
        talk = [{"from": "human", "value": "<image>\nWhat color?"}, {"from": "gpt", "value": f"The object is {name}."}]
        rows.append(json.dumps({"image": f"{name}.png", "conversations": talk}))
    path = folder / "data.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_encoder_equals_the_template(processor: Any) -> None:
    """Ids are those of apply_chat_template; loss lies on the answers and their end tokens, nowhere else."""
    picture = np.full((200, 180, 3), 200, np.uint8)
    turns = [Turn("What is <|im_start|> this?", "A red star.", images=1), Turn("And now?", "Nothing.")]
    sample = Encoder(processor).encode([picture], turns)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": turns[0].question}]},
        {"role": "assistant", "content": turns[0].answer},
        {"role": "user", "content": turns[1].question},
        {"role": "assistant", "content": turns[1].answer},
    ]
    expected = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert sample.token_ids.tolist() == expected["input_ids"][0]
    answers = processor.tokenizer.decode(sample.token_ids[sample.answer])
    assert answers == "A red star.<|im_end|>Nothing.<|im_end|>"


def test_a_video_is_encoded_as_the_processor_does(processor: Any) -> None:
    """Ids, patches and seconds a step are those of apply_chat_template."""
    frames = np.random.default_rng(0).integers(0, 256, (6, 120, 150, 3), dtype=np.uint8)
    video = Video(frames, tuple(i / 4 for i in range(6)), tuple(range(6)), 4.0, 1.5, 150, 120)
    sample = Encoder(processor).encode([], [Turn("What moves?", "Nothing moves.", videos=1)], videos=[video])
    content = [{"type": "video", "video": video}, {"type": "text", "text": "What moves?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Nothing moves."}]
    expected = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(sample.token_ids, expected["input_ids"][0])
    assert torch.equal(sample.video_grids, expected["video_grid_thw"])
    assert sample.seconds == expected["second_per_grid_ts"].tolist() == [0.5]
    pixels = processor.video_processor.normalize(sample.patches)
    assert torch.equal(pixels, expected["pixel_values_videos"])
    batch = collate([sample, Encoder(processor).encode([], [Turn("Hello", "Hi.")])], small_model(processor).config)
    assert batch.packed.vision_index is not None
    assert len(batch.packed.vision_index) == len(sample.patches) // 4
    assert batch.packed.positions[0, batch.packed.vision_index].unique_consecutive().diff().tolist() == [1, 1]
    with pytest.raises(ValueError, match="pictures and videos is not supported"):
        Encoder(processor).encode([frames[0]], [Turn("?", "!", 1, 1)], videos=[video])


def test_picture_count_must_agree(processor: Any) -> None:
    with pytest.raises(ValueError, match="has 0 pictures and 0 videos, its turns ask for 1"):
        Encoder(processor).encode([], [Turn("?", "!", images=1)])


def test_collate_predicts_answers_from_the_token_before(processor: Any) -> None:
    model = small_model(processor)
    encoder = Encoder(processor)
    samples = [encoder.encode([], [Turn("Hello", "I am here.")]), encoder.encode([], [Turn("Who", "Me.")])]
    batch = collate(samples, model.config)
    assert batch.packed.seq.q_lens == tuple(len(s.token_ids) for s in samples)
    assert batch.packed.logits_index is not None
    assert torch.equal(batch.packed.token_ids[batch.packed.logits_index + 1], batch.targets)
    assert processor.tokenizer.decode(batch.targets) == "I am here.<|im_end|>Me.<|im_end|>"


def test_world_is_a_function_of_seed_and_step(processor: Any) -> None:
    worlds = [World(Encoder(processor), seed, token_budget=600) for seed in (1, 1, 2)]
    first, same, other = (world.batch(LOOKING + 3) for world in worlds)
    assert all(torch.equal(a.token_ids, b.token_ids) for a, b in zip(first, same, strict=True))
    assert any(not torch.equal(a.token_ids, b.token_ids) for a, b in zip(first, other, strict=False))
    assert not any(bool(s.answer.any()) for s in worlds[0].batch(0)), "looking comes first, without answers"


def test_cell_targets_mark_every_centre() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        picture = sample_picture(rng, max_things=5, min_things=1)
        targets = cell_targets(picture)
        assert targets[:, 2].sum() == len(picture.things)
        boxes = {tuple(row) for row in targets[targets[:, 2] > 0][:, 8:12].int().tolist()}
        assert boxes == {picture.resized_box(t) for t in picture.things}
        assert torch.equal(targets[:, 0] > 0, targets[:, 1] > 0)


def test_schedule() -> None:
    settings = TrainSettings(steps=100, learning_rate=1.0, warmup=10, decay=0.2)
    assert [settings.rate(s) for s in (0, 9, 50, 79)] == pytest.approx([0.1, 1.0, 1.0, 1.0])
    assert settings.rate(90) == pytest.approx(0.5)
    assert settings.rate(99) == pytest.approx(0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_learns_and_resumes_exactly(processor: Any, tmp_path: Path, optimizer: Any) -> None:
    """12 steps in one go and 6 + 6 give the same losses; the answer is learned; the curve is a picture."""
    data = conversations(tmp_path)

    def run(folder: Path, steps: int) -> list[float]:
        source = JsonLines(data, Encoder(processor), batch_size=2, seed=0)
        settings = TrainSettings(12, learning_rate=2e-3, warmup=2, decay=0.0, bf16=False, optimizer=optimizer)
        trainer = Trainer(small_model(processor), processor, source, settings, folder)
        losses = []
        for _ in range(steps):
            losses.append(trainer.train_step(collate(source.batch(trainer.step), trainer.model.config))["loss"])
            trainer.step += 1
        trainer.save()
        return losses

    whole = run(tmp_path / "whole", 12)
    halves = run(tmp_path / "halves", 6) + run(tmp_path / "halves", 6)
    assert halves == pytest.approx(whole, rel=1e-5)
    assert whole[-1] < 0.5 * whole[0]
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert again.config.text_config.num_hidden_layers == 2
    (tmp_path / "whole" / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    with Image.open(draw_curve(tmp_path / "whole")) as curve:
        assert curve.format == "PNG"


def test_bad_files_are_named(processor: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"conversations": []}\n{"image": "x.png"}\n')
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2.*conversations"):
        JsonLines(path, Encoder(processor), 1, 0)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no conversation"):
        JsonLines(path, Encoder(processor), 1, 0)
