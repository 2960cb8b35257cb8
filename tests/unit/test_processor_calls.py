"""The processor's calls as the documents and newer programs write them: videos, options at every level, batches."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prompts import PICTURE, READY, SYSTEM, VIDEO, clip_file, frames, picture, text, user

from qwenvl import MediaPolicy, Video, process_vision_info
from qwenvl.config import config_from_dict
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration
from qwenvl.processing import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    AutoVideoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from qwenvl.types import ImageSize

MODEL_KEYS = ["input_ids", "attention_mask", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw",
              "second_per_grid_ts"]  # fmt: skip


@pytest.fixture(scope="module")
def small(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLProcessor:
    """The same with limits of 1 to 6 tokens a picture or frame."""
    limits = {"min_pixels": 784, "max_pixels": 784 * 6}
    return Qwen2_5_VLProcessor(Qwen2VLImageProcessor(**limits), processor.tokenizer, Qwen2VLVideoProcessor(**limits))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_file(tmp_path_factory.mktemp("clip") / "a.mp4", seconds=4, rate=10, size=(84, 56))


def tokens(processor: Qwen2_5_VLProcessor, got: Any) -> tuple[int, int]:
    """(tokens of pictures, tokens of videos)."""
    ids = got.input_ids
    return int((ids == processor.image_token_id).sum()), int((ids == processor.video_token_id).sum())


@pytest.mark.feature(43, 44, 65, 94)
def test_a_prompt_with_pictures_and_videos(small: Qwen2_5_VLProcessor) -> None:
    prompt = f"{SYSTEM}<|im_start|>user\nA {VIDEO} B {PICTURE}{PICTURE} C {VIDEO}?<|im_end|>\n<|im_start|>assistant\n"
    clips = [frames(3, 56, 84), list(frames(2, 28, 28))]
    got = small(text=[prompt], images=[picture(), picture(84)], videos=clips, padding=True, return_tensors="pt")
    assert list(got) == MODEL_KEYS == list(small.model_input_names)
    assert got.video_grid_thw.tolist() == [[2, 4, 6], [1, 2, 2]]
    assert got.pixel_values_videos.shape == (2 * 24 + 4, 1176)
    assert tokens(small, got) == (got.image_grid_thw.prod(-1).sum() // 4, 12 + 1)
    row, pad = got.input_ids[0], small.video_token_id
    runs = torch.diff((row == pad).long(), prepend=torch.zeros(1)).eq(1).sum()
    assert runs == 2
    assert got.second_per_grid_ts.tolist() == [1.0, 1.0]
    assert got.video_sizes == [ImageSize(84, 56, 84, 56), ImageSize(28, 28, 28, 28)]
    assert got.video_times == [(0.0, 0.5, 1.0, 1.0), (0.0, 0.5)]
    kinds = small(text=[prompt], images=[picture(), picture(84)], videos=clips, return_mm_token_type_ids=True)
    types = kinds["mm_token_type_ids"][0]
    assert [types.count(i) for i in (1, 2)] == list(tokens(small, got))
    assert isinstance(small.video_processor, Qwen2VLVideoProcessor)
    assert (small.video_processor.patch_size, small.image_processor.merge_size) == (14, 2)


@pytest.mark.feature(45)
def test_frames_a_second_of_a_call(small: Qwen2_5_VLProcessor) -> None:
    clips = [frames(4, 28, 28), frames(2, 28, 28)]
    real = Video(clips[0], (0.0, 2.0, 4.0, 6.0), (0, 1, 2, 3), 0.5, 8.0, 28, 28)

    def seconds(videos: Any, **options: Any) -> list[float]:
        given: list[float] = small(text=VIDEO * len(videos), videos=videos, **options)["second_per_grid_ts"]
        return given

    assert seconds(clips) == [1.0, 1.0]
    assert seconds(clips, fps=1) == [2.0, 2.0]
    video_kwargs: dict[str, Any] = {"fps": [1.0, 4.0], "do_sample_frames": False}  # as vision utilities give them
    assert seconds(clips, **video_kwargs) == [2.0, 0.5]
    assert seconds(clips, videos_kwargs={"fps": 8}) == [0.25, 0.25]
    assert seconds([real, clips[1]], fps=1) == [4.0, 2.0]
    for fps, says in (([1.0], "fps has 1 values for 2 videos"), ([1, 2, 3], "3 values for 2"), ("x", "fps='x'")):
        with pytest.raises(ValueError, match=says):
            seconds(clips, fps=fps)
    with pytest.raises(TypeError, match="multiple values"):
        small(text=VIDEO, videos=clips[:1], fps=1, **video_kwargs)


@pytest.mark.feature(47, 56)
@pytest.mark.parametrize("name", ["fps", "video_fps"])
def test_a_conversation_loads_its_video(small: Qwen2_5_VLProcessor, clip: Path, name: str) -> None:
    talk = [user({"type": "video", "path": str(clip)}, text("What happened?"))]
    got = small.apply_chat_template(talk, **READY, **{name: 1})
    assert list(got) == [key for key in MODEL_KEYS if "image" not in key and key != "pixel_values"]
    assert got.video_grid_thw.tolist() == [[2, 4, 6]]
    assert tokens(small, got) == (0, 12)
    assert got.second_per_grid_ts.item() == pytest.approx(2.0)
    assert got.video_times == [pytest.approx((0, 1.3, 2.6, 3.9))]


@pytest.mark.feature(44, 45, 56)
def test_the_vision_utilities_fit(small: Qwen2_5_VLProcessor, clip: Path) -> None:
    listed = [picture(56, 56), picture(56, 56), picture(56, 56)]
    talk = [user({"type": "video", "video": f"file://{clip}", "max_pixels": 784 * 4, "min_pixels": 784, "fps": 1.0},
                 {"type": "image", "image": picture()}, {"type": "video", "video": listed, "fps": 4.0})]  # fmt: skip
    prompt = small.apply_chat_template(talk, add_generation_prompt=True)
    images, videos, kwargs = process_vision_info(talk, return_video_kwargs=True)
    got = small(text=[prompt], images=images, videos=videos, padding=True, return_tensors="pt", **kwargs)
    assert got.video_grid_thw[:, 0].tolist() == [2, 2]
    assert got.second_per_grid_ts.tolist() == pytest.approx([2.0, 0.5])
    assert got.video_times[0] == pytest.approx((0, 1.3, 2.6, 3.9))
    images, videos, kwargs = process_vision_info(talk, return_video_kwargs=True, return_video_metadata=True)
    again = small(
        text=[prompt], images=images, videos=videos, return_tensors="pt", do_sample_frames=False, do_resize=False
    )
    assert again.second_per_grid_ts.tolist() == pytest.approx([2.0, 0.5])
    assert torch.equal(again.pixel_values_videos[:8], got.pixel_values_videos[:8])


@pytest.mark.feature(48, 61, 62, 66, 94)
def test_a_mixed_batch_is_padded_and_answered(small: Qwen2_5_VLProcessor, clip: Path) -> None:
    talks = [
        [user({"type": "image", "image": picture()}, text("Describe."))],
        [user({"type": "image", "image": picture(84)}, {"type": "image", "image": picture(28)}, text("Compare."))],
        [{"role": "user", "content": "who are you?"}],
        [user({"type": "image", "image": picture()}, {"type": "video", "path": str(clip)}, text("Common?"))],
    ]
    inputs = small.apply_chat_template(talks, **READY, video_fps=1).to("cpu")
    assert inputs.attention_mask[:, -1].tolist() == [1, 1, 1, 1]
    assert len(set(inputs.attention_mask.sum(1).tolist())) == 4
    out = tiny(small).generate(**inputs, max_new_tokens=3)
    trimmed = [o[len(i) :] for i, o in zip(inputs.input_ids, out, strict=True)]
    assert all(1 <= len(rest) <= 3 for rest in trimmed)
    assert torch.equal(torch.stack([o[: -len(rest)] for o, rest in zip(out, trimmed, strict=True)]), inputs.input_ids)
    assert len(small.batch_decode(trimmed, skip_special_tokens=True, clean_up_tokenization_spaces=False)) == 4


def tiny(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    """A random model for the processor's tokens."""
    ids = processor.tokenizer.convert_tokens_to_ids
    vision = {"hidden_size": 32, "intermediate_size": 44, "num_heads": 2, "in_channels": 3,
              "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "tokens_per_second": 2, "depth": 2,
              "window_size": 112, "out_hidden_size": 48, "fullatt_block_indexes": [1],
              "hidden_act": "silu"}  # fmt: skip
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(
        config_from_dict(
            {
                "model_type": "qwen2_5_vl", "vocab_size": len(processor.tokenizer), "hidden_size": 48,
                "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1000.0,
                "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}, "tie_word_embeddings": False,
                "image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>"),
                "vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>"),
                "bos_token_id": 0, "eos_token_id": ids("<|im_end|>"), "pad_token_id": 0, "vision_config": vision,
            }
        )
    ).eval()  # fmt: skip


@pytest.mark.feature(50, 51, 52, 53)
def test_the_documents_conversation_with_and_without_numbers(processor: Qwen2_5_VLProcessor) -> None:
    talk = [
        user({"type": "image"}, text("Hello, how are you?")),
        {"role": "assistant", "content": "I'm doing well."},
        user(text("Can you describe these images and video?"), {"type": "image"}, {"type": "image"},
             {"type": "video"}, text("These are from my vacation.")),
    ]  # fmt: skip
    assert processor.apply_chat_template(talk, add_generation_prompt=True) == (
        f"{SYSTEM}<|im_start|>user\n{PICTURE}Hello, how are you?<|im_end|>\n<|im_start|>assistant\nI'm doing well."
        f"<|im_end|>\n<|im_start|>user\nCan you describe these images and video?{PICTURE}{PICTURE}{VIDEO}These are "
        "from my vacation.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.apply_chat_template(talk, add_vision_id=True) == (
        f"{SYSTEM}<|im_start|>user\nPicture 1: {PICTURE}Hello, how are you?<|im_end|>\n<|im_start|>assistant\n"
        f"I'm doing well.<|im_end|>\n<|im_start|>user\nCan you describe these images and video?Picture 2: {PICTURE}"
        f"Picture 3: {PICTURE}Video 1: {VIDEO}These are from my vacation.<|im_end|>\n"
    )


@pytest.mark.feature(60)
@pytest.mark.parametrize("content", ["Be brief.", [{"type": "text", "text": "Be brief."}], ""])
def test_a_system_message_is_kept_as_given(processor: Qwen2_5_VLProcessor, content: Any) -> None:
    said = content if isinstance(content, str) else content[0]["text"]
    got = processor.apply_chat_template([{"role": "system", "content": content}, {"role": "user", "content": "Hi"}])
    assert got == f"<|im_start|>system\n{said}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.feature(54, 55, 56, 58, 59)
def test_sources_of_every_kind(small: Qwen2_5_VLProcessor, tmp_path: Path) -> None:
    path = tmp_path / "a b.png"
    picture(28, 28).save(path)
    data = base64.b64encode(path.read_bytes()).decode()
    expected = small.image_processor(picture(28, 28)).pixel_values
    array = np.array(picture(28, 28))
    for source in (str(path), path, f"file://{path}", f"data:image;base64,{data}", f"data:image/png;base64,{data}",
                   picture(28, 28), array, torch.from_numpy(array).permute(2, 0, 1), path.read_bytes()):  # fmt: skip
        for item in ({"type": "image", "image": source}, {"image": source}, {"image_url": {"url": source}}):
            if isinstance(item.get("image_url"), dict) and not isinstance(source, str):
                continue
            got = small.apply_chat_template([user(item)], **READY)
            assert torch.equal(got.pixel_values, expected)
    shown = frames(2, 28, 28)
    listed = [picture(28, 28), str(path), f"data:image;base64,{data}"]
    for item, steps in (({"video": shown}, 1), ({"type": "video", "video": listed}, 2), ({"video": list(shown)}, 1),
                        ({"video_url": listed}, 2), ({"type": "video", "url": shown}, 1)):  # fmt: skip
        got = small.apply_chat_template([user(item)], **READY)
        assert got.video_grid_thw.tolist() == [[steps, 2, 2]]
    same = small.apply_chat_template([user({"video": listed})], **READY).pixel_values_videos
    assert torch.equal(same[:4], expected)  # two equal frames are what a picture stands for
    buffer = io.BytesIO()
    picture(28, 28).convert("RGBA").save(buffer, "PNG")
    assert torch.equal(small.apply_chat_template([user({"image": buffer.getvalue()})], **READY).pixel_values, expected)


@pytest.mark.feature(57, 73)
@pytest.mark.parametrize(
    ("options", "grid", "seconds"),
    [
        ({}, [2, 4, 6], 1.0),
        ({"max_pixels": 784}, [2, 2, 2], 1.0),
        ({"min_pixels": 784 * 30, "max_pixels": 784 * 60}, [2, 10, 14], 1.0),
        ({"resized_height": 116, "resized_width": 29}, [2, 8, 2], 1.0),
        ({"total_pixels": 784 * 2 * 2}, [2, 2, 2], 1.0),
        ({"fps": 1}, [2, 4, 6], 2.0),
        ({"sample_fps": 4.0, "raw_fps": 24}, [2, 4, 6], 0.5),
    ],
)
def test_options_of_a_video_of_frames(
    small: Qwen2_5_VLProcessor, options: dict[str, Any], grid: list[int], seconds: float
) -> None:
    item = {"type": "video", "video": frames(4, 56, 84), **options}
    got = small.apply_chat_template([user(item, {"video": frames(2, 56, 84)})], **READY)
    assert got.video_grid_thw.tolist() == [grid, [1, 4, 6]]
    assert got.second_per_grid_ts.tolist() == [seconds, 1.0]


@pytest.mark.feature(57)
def test_options_of_a_video_file(small: Qwen2_5_VLProcessor, clip: Path) -> None:
    items = [
        {"video": str(clip), "nframes": 6, "resized_height": 50, "resized_width": 115},
        {"video": str(clip), "video_start": 1, "video_end": 3.0, "fps": 2.0},
        {"video": str(clip), "fps": 8, "max_frames": 6, "max_pixels": 784},
    ]
    got = small.apply_chat_template([user(*items)], **READY, fps=4)
    assert got.video_grid_thw.tolist() == [[3, 4, 8], [2, 4, 6], [3, 2, 2]]
    assert got.video_times[1][0] == pytest.approx(1.0)
    assert got.video_times[1][-1] == pytest.approx(3.0)
    assert got.video_sizes[0] == ImageSize(84, 56, 112, 56)


@pytest.mark.feature(73)
def test_limits_of_processor_call_and_item(checkpoint: Path) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint, min_pixels=784, max_pixels=784 * 16)
    assert processor.video_processor.size == processor.image_processor.size
    big, clip = picture(224, 224), frames(2, 224, 224)

    def sides(**options: Any) -> list[int]:
        items = [{"image": big}, {"image": big, "max_pixels": 784}, {"video": clip}, {"video": clip, "max_pixels": 784}]
        got = processor.apply_chat_template([user(*items)], **READY, **options)
        return [size.resized_width // 28 for size in (*got.image_sizes, *got.video_sizes)]

    assert sides() == [4, 1, 4, 1]
    assert sides(max_pixels=784 * 4) == [2, 1, 2, 1]
    assert sides(images_kwargs={"max_pixels": 784 * 4}) == [2, 1, 4, 1]
    assert sides(videos_kwargs={"size": {"longest_edge": 784 * 4}}) == [4, 1, 2, 1]
    assert sides(processor_kwargs={"videos_kwargs": {"max_pixels": 784 * 9}, "fps": 1}) == [4, 1, 3, 1]
    assert sides(size={"shortest_edge": 784, "longest_edge": 784 * 36}) == [6, 1, 6, 1]


def test_options_are_known_or_refused(small: Qwen2_5_VLProcessor) -> None:
    talk = [user({"video": frames(2, 28, 28)})]
    with pytest.raises(TypeError, match="unknown argument 'max_pixel'"):
        small.apply_chat_template(talk, max_pixel=3)  # type: ignore[call-arg]
    for options, says in (
        ({"images_kwargs": {"fps": 1}}, "images_kwargs has 'fps'"),
        ({"videos_kwargs": {"padding": True}}, "videos_kwargs has 'padding'"),
        ({"videos_kwargs": 3}, "videos_kwargs is int"),
        ({"fps": 1, "video_fps": 2}, "fps is given twice"),
        ({"fps": 1, "videos_kwargs": {"fps": 2}}, "fps is given twice"),
        ({"fps": 1, "num_frames": 2}, "exclude each other"),
        ({"truncation": True}, "truncation=True is not supported"),
        ({"return_assistant_tokens_mask": True}, "return_assistant_tokens_mask=True"),
        ({"video_load_backend": "ffmpeg"}, "video_load_backend='ffmpeg'"),
        ({"padding": "max_length"}, "needs max_length"),
        ({"max_length": 5}, "max_length=5: prompts are never cut"),
        ({"padding": "longer"}, "padding='longer'"),
        ({"return_tensors": "np"}, "return_tensors='np'"),
    ):
        with pytest.raises(ValueError, match=says):
            small.apply_chat_template(talk, tokenize=True, return_dict=True, **options)  # type: ignore[arg-type]
    got = small.apply_chat_template(
        talk, tokenize=True, return_dict=True, return_tensors="pt", truncation=False, add_special_tokens=False,
        padding="max_length", max_length=60, video_load_backend="pyav", num_frames=None, return_metadata=True,
    )  # fmt: skip
    assert got.input_ids.shape == (1, 60)
    assert got["video_metadata"][0]["sampled_fps"] == 2.0
    with pytest.warns(UserWarning, match="video_load_backend='decord' has no effect"):
        small.apply_chat_template(talk, tokenize=True, video_load_backend="decord")
    with pytest.warns(UserWarning, match="max_frames has no effect"):
        small.apply_chat_template(talk, tokenize=True, max_frames=4)
    assert small.tokenizer.pad([[1, 2, 3]], pad_to_multiple_of=4)["attention_mask"] == [[1, 1, 1, 0]]


def test_a_policy_reaches_every_reader(
    small: Qwen2_5_VLProcessor, checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    strict = MediaPolicy(allow_files=False)
    own = Qwen2_5_VLProcessor.from_pretrained(checkpoint, policy=strict)
    for item in ({"image": str(path)}, {"video": str(clip)}, {"video": [str(path), str(path)]}):
        for call in (
            lambda item=item: small.apply_chat_template([user(item)], **READY, policy=strict),
            lambda item=item: own.apply_chat_template([user(item)], **READY),
        ):
            with pytest.raises(ValueError, match=r"message 0, item 0, (image|video): .*not allowed here"):
                call()
    with pytest.raises(ValueError, match=r"images, picture 0: .*not allowed here"):
        small(text=PICTURE, images=str(path), policy=strict)
    with pytest.raises(ValueError, match=r"videos, video 0: .*not allowed here"):
        small(text=VIDEO, videos=str(clip), policy=strict)
    assert own(text=PICTURE, images=str(path), policy=MediaPolicy()).image_sizes[0].width == 56


def test_an_answer_is_continued(processor: Qwen2_5_VLProcessor) -> None:
    talk = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}]
    begun = f"{SYSTEM}<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\nOne, two,"
    assert processor.apply_chat_template(talk, continue_final_message=True) == begun
    ids = processor.apply_chat_template(talk, continue_final_message=True, tokenize=True)
    assert ids == processor.tokenizer.encode(begun)
    listed = [talk[0], {"role": "assistant", "content": [text("One <|im_end|>")]}]
    ids = processor.apply_chat_template(listed, continue_final_message=True, tokenize=True)
    assert ids.count(processor.tokenizer.eos_token_id) == 2
    for wrong, says in (
        ({"continue_final_message": True, "add_generation_prompt": True}, "exclude each other"),
        ({"continue_final_message": True, "chat_template": "nothing"}, "does not write the last message"),
    ):
        with pytest.raises(ValueError, match=says):
            processor.apply_chat_template(talk, **wrong)
    with pytest.raises(ValueError, match="does not end with text"):
        processor.apply_chat_template([user({"type": "image"})], continue_final_message=True)


def test_another_template_for_one_call_and_for_all(checkpoint: Path) -> None:
    processor = Qwen2_5_VLProcessor.from_pretrained(checkpoint, chat_template="{{ messages[0].content }}!")
    talk = [{"role": "user", "content": "Hi"}]
    assert processor.apply_chat_template(talk) == "Hi!"
    assert processor.apply_chat_template(talk, "{{ messages | length }}") == "1"
    processor.chat_template = "{{ messages[0].role }}"  # type: ignore[assignment]
    assert processor.apply_chat_template(talk) == "user"
    assert isinstance(processor.chat_template, str)
    assert processor.chat_template == "{{ messages[0].role }}"


@pytest.mark.feature(65)
def test_the_parts_load_by_themselves(checkpoint: Path) -> None:
    whole = AutoProcessor.from_pretrained(checkpoint, use_fast=True, local_files_only=True, max_pixels=5000)
    assert (whole.image_processor.fast, whole.video_processor.max_pixels) == (True, 5000)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    assert tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert tokenizer.padding_side == "left"
    assert AutoImageProcessor.from_pretrained(checkpoint, max_pixels=5000).size == whole.image_processor.size
    assert AutoVideoProcessor.from_pretrained(checkpoint).size["longest_edge"] == 12845056
    with pytest.raises(ValueError, match="fast=True and use_fast=False"):
        AutoProcessor.from_pretrained(checkpoint, fast=True, use_fast=False)
    with pytest.raises(ValueError, match="revision='x' is for models on the hub"):
        AutoTokenizer.from_pretrained(checkpoint, revision="x")


@pytest.mark.feature(63, 64)
def test_answers_in_arrays_become_text(processor: Qwen2_5_VLProcessor) -> None:
    row = np.array(processor.tokenizer.encode("Yes .<|im_end|>"))
    assert processor.post_process_image_text_to_text(row) == ["Yes ."]
    assert processor.post_process_image_text_to_text(row[None]) == ["Yes ."]
    assert processor.post_process_image_text_to_text(list(row[None])) == ["Yes ."]
    with pytest.raises(TypeError, match="skip_special"):
        processor.post_process_image_text_to_text(row, skip_special=True)


@pytest.mark.feature(42)
def test_seconds_keep_their_precision(small: Qwen2_5_VLProcessor) -> None:
    got = small(text=VIDEO, videos=frames(2, 28, 28), fps=3, return_tensors="pt").to(torch.bfloat16)
    assert got.pixel_values_videos.dtype == torch.bfloat16
    assert got.second_per_grid_ts.dtype == torch.float32
    assert got.second_per_grid_ts.item() == pytest.approx(2 / 3, rel=1e-6)
