"""Processing against transformers: sizes, pixels, token ids, rendered prompts and whole batches."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor as Qwen2_5_VLProcessor_
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as their_smart_resize

from qwenvl.demo.vocabulary import corpus, save_tokenizer, train_tokenizer
from qwenvl.media import smart_resize
from qwenvl.processing import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Tokenizer
from qwenvl.processing.chat_template import BUILT_IN


class TheirProcessor(Qwen2_5_VLProcessor_):
    """Their processor as it is, without a video processor, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


STEP = 1 / 255 / 0.26130258  # one of 255 levels after normalisation, in the channel that it moves most
SIZES = [(5, 8), (2, 150), (14, 715), (28, 28), (30, 41), (97, 640), (224, 225), (333, 512), (700, 500), (1000, 1400)]
TEXTS = [
    "",
    " ",
    "What's on the table? It isn't 12345.67!",
    "café naïve 日本語 кошка 🐈 \u0301",
    "tabs\tand\r\n\n\n   trailing  ",
    "cafe\u0301 is composed; <b>html</b> < | > <| |>",
    '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|object_ref_start|>cat<|object_ref_end|>',
    "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>Hi<|im_end|>\n",
]


RANGES = [(32, 127), (0xA0, 0x250), (0x300, 0x330), (0x400, 0x460), (0x5D0, 0x5EB), (0x620, 0x650), (0x900, 0x970),
          (0x3040, 0x30A0), (0x4E00, 0x4E80), (0xAC00, 0xAC40), (0x1F600, 0x1F640), (0x2000, 0x2030)]  # fmt: skip


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth background with shapes and text, as photographs and screens have them."""
    draws = random.Random(seed)
    coarse = Image.fromarray(noise(height // 16 + 2, width // 16 + 2, seed))
    image = coarse.resize((width, height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    for _ in range(20):
        x, y = draws.randrange(width), draws.randrange(height)
        colour = tuple(draws.randrange(256) for _ in range(3))
        pen.rectangle([x, y, x + draws.randrange(60), y + draws.randrange(60)], fill=colour)
        pen.text((x, y), "Qwen 12.5", fill=0)
    return np.asarray(image)


@pytest.mark.feature(75)
def test_sizes_are_equal() -> None:
    draws = random.Random(1)
    limits = [(3136, 12845056), (3136, 1003520), (50176, 50176), (784, 2000)]
    for _ in range(4000):
        height, width = (int(10 ** draws.uniform(0, 3.8)) for _ in range(2))
        low, high = draws.choice(limits)
        if max(height, width) / min(height, width) <= 200:
            expected = their_smart_resize(height, width, 28, low, high)
            assert smart_resize(height, width, 28, low, high) == expected, (height, width, low, high)


@pytest.mark.parametrize("make", [noise, scene])
def test_pixels_are_within_one_level(make: Callable[[int, int], np.ndarray]) -> None:
    pictures = [make(height, width) for height, width in SIZES]
    theirs = Qwen2VLImageProcessorPil().preprocess(pictures, return_tensors="pt")
    ours = Qwen2VLImageProcessor(max_pixels=28 * 28 * 1280).preprocess(pictures)
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert ours["pixel_values"].dtype == torch.float32
    assert (ours["pixel_values"] - theirs["pixel_values"]).abs().max() < 1e-5 < STEP


def test_the_quick_kernel_keeps_sizes_and_order() -> None:
    picture = scene(500, 700)
    theirs = Qwen2VLImageProcessorPil().preprocess([picture], return_tensors="pt")
    ours = Qwen2VLImageProcessor(fast=True).preprocess([picture])
    difference = (ours["pixel_values"] - theirs["pixel_values"]).abs()
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert (difference > 1.01 * STEP).float().mean() < 1e-3


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_equal(checkpoint: Path, text: str) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(checkpoint), Tokenizer.from_pretrained(checkpoint)
    ids = theirs(text)["input_ids"]
    assert ours.encode(text) == ids
    assert ours(text)["input_ids"] == ids
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_ids_of_plain_user_text_are_equal(checkpoint: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(checkpoint), Tokenizer.from_pretrained(checkpoint)
    for text in TEXTS[:-2]:
        assert ours.encode(text, special=False) == theirs(text)["input_ids"]


def test_ids_of_random_text_are_equal(checkpoint: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(checkpoint), Tokenizer.from_pretrained(checkpoint)
    draws = random.Random(3)
    letters = [chr(c) for low, high in RANGES for c in range(low, high)] + list(" \n\t'\r" * 40) + ["'ll", "<|im_end|>"]
    for _ in range(400):
        text = "".join(draws.choices(letters, k=draws.randint(1, 60)))
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text


def test_ids_of_vocabulary_and_merges_are_equal(checkpoint: Path, tmp_path: Path) -> None:
    Backend.from_file(str(checkpoint / "tokenizer.json")).model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text((checkpoint / "tokenizer_config.json").read_text())
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
    assert (ours.eos_token_id, ours.pad_token_id, len(ours)) == (theirs.eos_token_id, theirs.pad_token_id, len(theirs))


def test_ids_of_the_bundled_models_vocabulary_are_equal(tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer(corpus(np.random.default_rng(0), 600), 600), tmp_path, BUILT_IN)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, *corpus(np.random.default_rng(1), 40)]:
        assert ours.encode(text) == theirs(text)["input_ids"], text
    assert ours.chat_template == theirs.chat_template == BUILT_IN


@pytest.fixture(scope="module")
def pair(checkpoint: Path) -> tuple[Qwen2_5_VLProcessor, TheirProcessor]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    limits = {"shortest_edge": 3136, "longest_edge": 12845056}
    theirs = TheirProcessor(Qwen2VLImageProcessorPil(size=limits), tokenizer, None, chat_template=BUILT_IN)
    return Qwen2_5_VLProcessor.from_pretrained(checkpoint), theirs


CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is the cat?"}]}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A:"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Two cats."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And here?"}]},
    ],
]


@pytest.mark.feature(44, 52, 94)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chosen", [[0], [1], [2], [0, 1, 2], [2, 0]])
def test_prompts_with_pictures_are_equal(
    pair: tuple[Qwen2_5_VLProcessor, TheirProcessor], chosen: list[int], side: str
) -> None:
    ours, theirs = pair
    talks = [CONVERSATIONS[i] for i in chosen]
    texts = ours.apply_chat_template(talks, add_generation_prompt=True)
    assert texts == [theirs.apply_chat_template(talk, add_generation_prompt=True) for talk in talks]
    count = sum(text.count("<|image_pad|>") for text in texts)
    images = [Image.fromarray(scene(40 + 30 * i, 90 - 10 * i, i)) for i in range(count)] or None
    options: dict[str, Any] = {"padding": True, "padding_side": side, "return_tensors": "pt"}
    got = ours(text=texts, images=images, **options)
    expected = theirs(text=texts, images=images, **options)
    names = {"input_ids", "attention_mask"} | ({"pixel_values", "image_grid_thw"} if images else set())
    assert set(got) == names
    for name in names - {"pixel_values"}:
        assert torch.equal(got[name], expected[name]), name
    if images:
        assert (got["pixel_values"] - expected["pixel_values"]).abs().max() < 1e-5


@pytest.mark.feature(47)
def test_a_conversation_with_its_pictures_is_equal(pair: tuple[Qwen2_5_VLProcessor, TheirProcessor]) -> None:
    ours, theirs = pair
    picture = Image.fromarray(scene(60, 84))
    talk = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Hm?"}]}]
    options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    got = ours.apply_chat_template(talk, **options, return_tensors="pt")
    expected = theirs.apply_chat_template(talk, **options, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "image_grid_thw"):
        assert torch.equal(got[name], expected[name]), name
    ids = [[*row] for row in got["input_ids"]]
    assert ours.post_process_image_text_to_text(got["input_ids"]) == theirs.post_process_image_text_to_text(ids)


TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "Größe von 'x' <b>", "parameters": {"a": [1, None]}},
}


@pytest.mark.feature(50)
@pytest.mark.parametrize(
    "options", [{"add_vision_id": True}, {"tools": [TOOL, TOOL]}, {"tools": [TOOL], "add_generation_prompt": True}]
)
def test_the_template_is_rendered_as_theirs(
    pair: tuple[Qwen2_5_VLProcessor, TheirProcessor], options: dict[str, Any]
) -> None:
    ours, theirs = pair
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": "é"}}}]}
    answered = [*CONVERSATIONS[2], call, {"role": "tool", "content": "5"}, {"role": "tool", "content": "6"}]
    for talk in (*CONVERSATIONS, answered):
        assert ours.apply_chat_template(talk, **options) == theirs.apply_chat_template(talk, **options)


def test_what_transformers_saves_is_read(pair: tuple[Qwen2_5_VLProcessor, TheirProcessor], tmp_path: Path) -> None:
    ours, theirs = pair
    theirs.tokenizer.save_pretrained(tmp_path)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 784, "longest_edge": 50176}).save_pretrained(tmp_path)
    read = Qwen2_5_VLProcessor.from_pretrained(tmp_path)
    assert (read.image_processor.min_pixels, read.image_processor.max_pixels) == (784, 50176)
    for text in TEXTS:
        assert read.tokenizer.encode(text) == ours.tokenizer.encode(text)
    assert read.tokenizer.eos_token_id == ours.tokenizer.eos_token_id
    assert read.tokenizer.added_tokens == ours.tokenizer.added_tokens


def test_transformers_reads_what_is_saved(pair: tuple[Qwen2_5_VLProcessor, TheirProcessor], tmp_path: Path) -> None:
    ours, _ = pair
    ours.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert tokenizer("Hi <|im_end|>")["input_ids"] == ours.tokenizer.encode("Hi <|im_end|>")
    assert image_processor.size["longest_edge"] == 12845056
    theirs = TheirProcessor(image_processor, tokenizer, None, chat_template=ours.chat_template.text)
    talk = CONVERSATIONS[2]
    assert theirs.apply_chat_template(talk) == ours.apply_chat_template(talk)
