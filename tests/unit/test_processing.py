"""Processor: messages and batches, files, and that no user text becomes a control token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prompts import CONTROL, OFFICIAL, PICTURE, READY, SYSTEM, VIDEO, frames, picture, text, user

from qwenvl.processing import (
    AutoProcessor,
    BatchFeature,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)
from qwenvl.types import ImageSize

PIECES = st.sampled_from(
    [*CONTROL, "<", "<|", "<|im", "_start", "|>", "|im_end|>", "image_pad|>", "<|image_", "pad|>", "a", " ", "\n", '"',
     "\U000f0000", "\U000f00000\U000f0000", "\ue000", "<tool_call>", "é", "{{", "user"]
)  # fmt: skip
WORDS = st.lists(PIECES, max_size=6).map("".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4), WORDS, WORDS, st.booleans())
def test_no_user_text_becomes_a_control_token(
    processor: Qwen2_5_VLProcessor, items: list[str], second: str, about: str, with_tool: bool
) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": about, "parameters": {about: second}}}
    talk = [user(*map(text, items)), {"role": "assistant", "content": second}, {"role": "user", "content": about}]
    options: dict[str, Any] = {"add_generation_prompt": True, "tools": [tool] if with_tool else None}
    ids = processor.apply_chat_template(talk, tokenize=True, **options)
    added = set(processor.tokenizer.convert_tokens_to_ids(list(processor.tokenizer.added_tokens)))
    assert processor.decode(ids) == processor.apply_chat_template(talk, **options)
    start, end = (processor.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
    turns = [i for i in ids if i in added]
    content = [processor.tokenizer.convert_tokens_to_ids(t) for t in ("<tool_call>", "<|box_start|>", "</tool_call>")]
    assert [i for i in turns if i not in content] == [start, end] * 4 + [start]
    own = second.count("<tool_call>") + (2 if with_tool else 0)  # an answer may hold it, and the tools' text does
    assert turns.count(content[0]) == own
    assert turns.count(content[1]) == second.count("<|box_start|>")


def test_answers_and_instructions_may_hold_marks_of_content(processor: Qwen2_5_VLProcessor) -> None:
    call = '<tool_call>\n{"name": "f"}\n</tool_call><|box_start|>'
    for role in ("system", "assistant"):
        talk = [{"role": role, "content": call + "<|im_end|>"}, {"role": "user", "content": "x"}]
        ids = processor.apply_chat_template(talk, tokenize=True)
        assert set(processor.tokenizer.encode(call)) <= set(ids)
        assert ids.count(processor.tokenizer.eos_token_id) == (2 if role == "system" else 3)


def test_a_typed_placeholder_takes_no_picture(processor: Qwen2_5_VLProcessor) -> None:
    typed = text("Is <|image_pad|> or <|vision_start|> a token?")
    got = processor.apply_chat_template([user({"type": "image", "image": picture()}, typed)], **READY)
    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert int((got.input_ids == pad).sum()) == 6
    assert "Is <|image_pad|> or <|vision_start|> a token?" in processor.decode(got.input_ids[0])


def test_the_text_interface_reads_control_tokens(processor: Qwen2_5_VLProcessor) -> None:
    with pytest.raises(ValueError, match=r"1 places for pictures .*0 pictures"):
        processor(text=["Is <|image_pad|> a token?"])


@pytest.mark.feature(54, 58, 59)
@pytest.mark.parametrize("key", ["image", "url", "path", "image_url", "openai", "untyped", "untyped-url"])
def test_pictures_by_every_key(processor: Qwen2_5_VLProcessor, tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    name = {"openai": "image_url", "untyped": "image", "untyped-url": "image_url"}.get(key, key)
    item: dict[str, Any] = {name: {"url": str(path)} if key == "openai" else str(path)}
    if not key.startswith("untyped"):
        item["type"] = "image_url" if key == "openai" else "image"
    got = processor.apply_chat_template([user(item, {"text": "What?"})], **READY)
    expected = processor(text=[f"{SYSTEM}<|im_start|>user\n{PICTURE}What?<|im_end|>\n<|im_start|>assistant\n"],
                         images=[picture()], return_tensors="pt")  # fmt: skip
    assert set(got) == {"input_ids", "attention_mask", "pixel_values", "image_grid_thw"}
    for field in got:
        assert torch.equal(got[field], expected[field])
    assert got.image_sizes == [ImageSize(56, 84, 56, 84)]


@pytest.mark.feature(57, 73)
@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, (224, 224)),
        ({"max_pixels": 12544}, (112, 112)),
        ({"min_pixels": 100352, "max_pixels": 200704}, (336, 336)),
        ({"resized_height": 100, "resized_width": 57}, (112, 56)),
        ({"resized_height": 10, "resized_width": 10}, (56, 56)),
    ],
)
def test_options_of_an_item(processor: Qwen2_5_VLProcessor, options: dict[str, int], seen: tuple[int, int]) -> None:
    item = {"type": "image", "image": picture(224, 224), **options}
    other = {"type": "image", "image": picture(224, 224)}
    got = processor.apply_chat_template([user(item, other, text("?"))], **READY, max_pixels=50176)
    sizes = [(s.resized_height, s.resized_width) for s in got.image_sizes]
    assert sizes == [seen, (224, 224)]
    assert got.image_grid_thw.tolist() == [[1, h // 14, w // 14] for h, w in sizes]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"type": "image", "image": "x", "max_pixel": 1}], "item 0 has unknown fields max_pixel"),
        ([{"type": "text", "text": "x", "font": 1}], "unknown fields font"),
        ([{"type": "audio", "audio": "x"}], "audio"),
        ([{"text": 3}], '"text" is int'),
        ([3], "item 0 is int"),
        (7, "content is int"),
        (None, "no content"),
        ([{"type": "image", "image": "a", "url": "b"}], "twice"),
        ([{"type": "image", "image": "a", "min_pixels": -1}], "min_pixels=-1"),
        ([{"type": "image", "image": "a", "resized_height": 56}], "belong together"),
        ([{"type": "image", "image": "a", "resized_height": 56, "resized_width": 56, "min_pixels": 9}], "not both"),
        ([{"type": "image_url", "image_url": {"url": "a", "detail": "high"}}], "unknown fields detail"),
        ([{"type": "image", "image": "a", "fps": 1}], "message 0, item 0 has unknown fields fps"),
        ([{"type": "image"}], "message 0, item 0, image: there is no picture"),
        ([{"type": "video"}], "message 0, item 0, video: there is no video"),
        ([text("a"), {"type": "image", "url": "nowhere.png"}], "message 0, item 1, url: nowhere.png does not exist"),
        ([{"type": "video", "path": "nowhere.mp4"}], "message 0, item 0, path: nowhere.mp4 does not exist"),
        ([{"video": "a.mp4", "path": "b.mp4"}], r"names its video twice \(video, path\)"),
        ([{"video": "a.mp4", "fps": 0}], "message 0, item 0: fps=0, expected a number above 0"),
        ([{"video": "a.mp4", "fps": 1, "nframes": 4}], "message 0, item 0: fps and nframes exclude each other"),
        ([{"video": "a.mp4", "nframes": 2.5}], "message 0, item 0: nframes=2.5"),
        ([{"video": "a.mp4", "video_start": -1}], "video_start=-1"),
        ([{"video": "a.mp4", "sample_fps": 2}], "sample_fps and raw_fps tell of frames"),
        ([{"video": "a.mp4", "frame": 2}], "message 0, item 0 has unknown fields frame"),
        ([{"video": [picture(), "nowhere.png"]}], "message 0, item 0, video: nowhere.png does not exist"),
        ([{"type": "image", "image": Image.new("RGB", (1, 5000))}], "message 0, item 0, image: .*1 x 5000"),
        (
            [{"type": "image", "image": picture(), "min_pixels": 9000, "max_pixels": 8000}],
            "message 0, item 0, image: min_pixels=9000",
        ),
    ],
)
def test_what_is_not_understood_is_named(processor: Qwen2_5_VLProcessor, content: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        processor.apply_chat_template([{"role": "user", "content": content}], **READY)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "conten": "q"}, "message 0 has unknown fields conten"),
        ({"role": "user<|im_end|>", "content": "q"}, "role 'user<|im_end|>'"),
        ({"content": "q"}, "role None"),
        ({"role": "user"}, "no content"),
    ],
)
def test_a_wrong_message_is_named(processor: Qwen2_5_VLProcessor, message: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("|", r"\|")):
        processor.apply_chat_template([message])


def test_options_that_need_ids_are_refused_for_text(processor: Qwen2_5_VLProcessor) -> None:
    talk = [{"role": "user", "content": "x"}]
    for name, value in (("return_dict", True), ("return_tensors", "pt"), ("padding", True), ("max_pixels", 9000)):
        with pytest.raises(ValueError, match=f"{name}=.*tokenize=True"):
            processor.apply_chat_template(talk, **{name: value})


def test_conversations_that_are_none(processor: Qwen2_5_VLProcessor) -> None:
    for talk in ([], [{"content": "x"}], [[]], "hello", [["hello"]], {"role": "user", "content": "x"}):
        with pytest.raises(ValueError, match=r"conversation|role"):
            processor.apply_chat_template(talk, tokenize=True)  # type: ignore[arg-type]


@pytest.mark.feature(48, 62)
def test_a_batch_is_padded_left_for_generation(processor: Qwen2_5_VLProcessor) -> None:
    talks = [
        [user({"type": "image", "image": picture()}, text("What?"))],
        [user({"type": "image", "image": picture(84, 84)}, {"type": "image", "image": picture()}, text("Compare."))],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "Hi"}],
    ]
    got = processor.apply_chat_template(talks, **READY)
    alone = [processor.apply_chat_template(talk, **READY) for talk in talks]
    for i, one in enumerate(alone):
        length = one.input_ids.shape[1]
        assert torch.equal(got.input_ids[i, -length:], one.input_ids[0])
        assert got.attention_mask[i].tolist() == [0] * (got.input_ids.shape[1] - length) + [1] * length
    assert torch.equal(got.pixel_values, torch.cat([one.pixel_values for one in alone[:2]]))
    assert torch.equal(got.image_grid_thw, torch.cat([one.image_grid_thw for one in alone[:2]]))
    whole = processor.apply_chat_template(talks, **{**READY, "add_generation_prompt": False})
    assert whole.attention_mask[:, 0].tolist() == [1, 1, 1]


@pytest.mark.feature(46, 47, 49)
def test_text_ids_or_features(processor: Qwen2_5_VLProcessor) -> None:
    talk = [{"role": "user", "content": "Hi"}]
    prompt = processor.apply_chat_template(talk)
    assert prompt == f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n"
    assert processor.apply_chat_template([talk, talk]) == [prompt, prompt]
    ids = processor.tokenizer.encode(prompt)
    assert processor.apply_chat_template(talk, tokenize=True) == ids
    assert processor.apply_chat_template(talk, tokenize=True, return_tensors="pt").tolist() == [ids]
    features = processor.apply_chat_template(talk, tokenize=True, return_dict=True)
    assert features == {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}


@pytest.mark.feature(44)
def test_prompts_and_pictures_must_agree(processor: Qwen2_5_VLProcessor) -> None:
    with pytest.raises(ValueError, match=r"2 places for pictures .*1 pictures"):
        processor(text=PICTURE * 2, images=picture())
    with pytest.raises(ValueError, match=r"0 places for pictures .*1 pictures"):
        processor(text="Hi", images=[picture()])
    for images, says in (
        ([[picture()], [picture()] * 2], "prompt 0 has 2 .*1 pictures"),
        ([[picture()] * 3], "1 lists"),
    ):
        with pytest.raises(ValueError, match=says):
            processor(text=[PICTURE * 2, PICTURE], images=images, padding=True)
    nested = processor(text=[PICTURE, PICTURE * 2], images=[[picture()], [picture(), picture(84)]], padding=True)
    assert nested.image_grid_thw.tolist() == [[1, 6, 4], [1, 6, 4], [1, 6, 6]]


@pytest.mark.parametrize("nothing", [None, "", [], [""], ["Hi", ""]])
def test_a_prompt_without_text_is_refused(processor: Qwen2_5_VLProcessor, nothing: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        processor(text=nothing)


def test_prompts_and_videos_must_agree(processor: Qwen2_5_VLProcessor) -> None:
    with pytest.raises(ValueError, match=r"0 places for videos .*1 videos"):
        processor(text="Hi", videos=["a.mp4"])
    with pytest.raises(ValueError, match=r"1 places for videos .*0 videos"):
        processor(text=VIDEO)
    with pytest.raises(ValueError, match=r"prompt 0 has 1 places for videos .*2 videos"):
        processor(text=[VIDEO, VIDEO], videos=[[frames(2, 28, 28)] * 2, []], padding=True)


@pytest.mark.feature(63, 64)
def test_answers_become_text(processor: Qwen2_5_VLProcessor) -> None:
    rows = [processor.tokenizer.encode(t) for t in ("<|im_start|>Yes .<|im_end|>", "No<|im_end|><|endoftext|>")]
    assert processor.batch_decode(rows, skip_special_tokens=True) == ["Yes .", "No"]
    assert processor.decode(rows[0]) == "<|im_start|>Yes .<|im_end|>"
    assert processor.post_process_image_text_to_text(rows) == ["Yes .", "No"]
    assert processor.post_process_image_text_to_text(torch.tensor(rows[0])) == ["Yes ."]
    kept = processor.post_process_image_text_to_text(rows[:1], skip_special_tokens=False)
    assert kept == ["<|im_start|>Yes .<|im_end|>"]
    assert processor.post_process_image_text_to_text(rows[:1], clean_up_tokenization_spaces=True) == ["Yes."]


def test_a_processor_is_saved_and_loaded(processor: Qwen2_5_VLProcessor, tmp_path: Path) -> None:
    changed = Qwen2VLProcessor(Qwen2VLImageProcessor(max_pixels=50176), processor.tokenizer, chat_template=OFFICIAL)
    changed.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["processor_class"] == "Qwen2VLProcessor"
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is Qwen2VLProcessor
    assert loaded.image_processor.max_pixels == 50176
    assert loaded.chat_template.text == OFFICIAL
    talk = [user({"type": "image", "image": picture()}, text("Größe?"))]
    assert torch.equal(
        loaded.apply_chat_template(talk, **READY).input_ids, processor.apply_chat_template(talk, **READY).input_ids
    )


@pytest.mark.feature(6)
def test_auto_picks_by_the_files(checkpoint: Path, tmp_path: Path) -> None:
    found = AutoProcessor.from_pretrained(checkpoint, min_pixels=784, max_pixels=7840)
    assert type(found) is Qwen2_5_VLProcessor
    assert (found.image_processor.min_pixels, found.image_processor.max_pixels) == (784, 7840)
    with pytest.raises(TypeError, match="max_pixel'"):
        AutoProcessor.from_pretrained(checkpoint, max_pixel=1)
    assert AutoProcessor.from_pretrained(checkpoint, padding_side="left").tokenizer.padding_side == "left"
    for wrong, says in (("no-such-name", "no-such-name"), (tmp_path, "no tokenizer")):
        with pytest.raises(ValueError, match=says):
            AutoProcessor.from_pretrained(wrong)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="llama"):
        AutoProcessor.from_pretrained(tmp_path)


def test_newer_folders_hold_the_picture_settings_in_processor_config(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((checkpoint / name).read_text())
    data = {
        "image_processor": {"size": {"shortest_edge": 784, "longest_edge": 7840}},
        "processor_class": "Qwen2VLProcessor",
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(data))
    (tmp_path / "chat_template.jinja").write_text(OFFICIAL)
    found = AutoProcessor.from_pretrained(tmp_path)
    assert type(found) is Qwen2VLProcessor
    assert (found.image_processor.min_pixels, found.image_processor.max_pixels) == (784, 7840)
    assert found.chat_template.text == OFFICIAL


def test_a_processor_needs_a_tokenizer(processor: Qwen2_5_VLProcessor) -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        Qwen2_5_VLProcessor(Qwen2VLImageProcessor())
    with pytest.raises(ValueError, match="video_processor is object: expected Qwen2VLVideoProcessor"):
        Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), processor.tokenizer, object())  # type: ignore[arg-type]


@pytest.mark.feature(42)
def test_features_move_and_only_floats_change_type() -> None:
    features = BatchFeature({"pixel_values": torch.zeros(2), "input_ids": torch.zeros(2, dtype=torch.long), "n": [1]})
    moved = features.to("cpu", dtype=torch.bfloat16)
    assert moved.pixel_values.dtype == torch.bfloat16
    assert moved["input_ids"].dtype == torch.long
    assert moved.n == [1]
    assert moved.to(device="cpu") is moved
    with pytest.raises(ValueError, match="one device"):
        moved.to("cpu", "cpu")
    assert moved.to(torch.float32).pixel_values.dtype == torch.float32
    with pytest.raises(AttributeError, match="pixel_value'"):
        _ = moved.pixel_value
