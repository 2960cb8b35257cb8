"""Processing: messages, templates, ids and batches, and that no user text becomes a control token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer as Backend

from qwenvl.processing import (
    AutoProcessor,
    BatchFeature,
    ChatTemplate,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Tokenizer,
)
from qwenvl.processing.image_processor import normalize_patches, patchify
from qwenvl.types import ImageSize

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
READY: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
OFFICIAL = (  # the behaviour of the published text without tools, in the shortest form
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    + SYSTEM.replace("\n", "{{ '\\n' }}")
    + "{% endif %}"
    "<|im_start|>{{ m.role }}{{ '\\n' }}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}" + PICTURE + "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)  # fmt: skip


def user(*items: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(items)}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def picture(width: int = 56, height: int = 84) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Qwen2_5_VLProcessor:
    return Qwen2_5_VLProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def tokenizer(processor: Qwen2_5_VLProcessor) -> Tokenizer:
    return processor.tokenizer


# Patches and pixels


def test_patches_go_block_by_block() -> None:
    rgb = torch.randint(0, 256, (56, 84, 3), dtype=torch.uint8)
    patches = patchify(rgb)
    assert patches.shape == (24, 1176)
    row = 0
    for block_y in range(2):
        for block_x in range(3):
            for y in range(2):
                for x in range(2):
                    top, left = block_y * 28 + y * 14, block_x * 28 + x * 14
                    expected = rgb[top : top + 14, left : left + 14].permute(2, 0, 1)
                    got = patches[row].view(3, 2, 14, 14)
                    assert torch.equal(got[:, 0], expected)
                    assert torch.equal(got[:, 1], expected)
                    row += 1


def test_normalising_is_rescale_minus_mean_over_deviation() -> None:
    patches = torch.randint(0, 256, (5, 1176), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    exact = patches.view(5, 3, -1).double() / 255
    exact = ((exact - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]).view(5, -1)
    assert (normalize_patches(patches, mean, std) - exact).abs().max() < 2e-6


def test_switches_of_the_image_processor() -> None:
    image = picture()
    raw = Qwen2VLImageProcessor(do_rescale=False, do_normalize=False)(image)["pixel_values"]
    assert torch.equal(raw, patchify(torch.from_numpy(np.array(image))).float())
    scaled = Qwen2VLImageProcessor(do_normalize=False)(image)["pixel_values"]
    assert torch.allclose(scaled, raw / 255)
    with pytest.raises(ValueError, match="multiples of 28: the picture has 57 x 84"):
        Qwen2VLImageProcessor(do_resize=False)(picture(57, 84))
    for option, value in (("resample", 2), ("do_convert_rgb", False)):
        with pytest.raises(ValueError, match=option):
            Qwen2VLImageProcessor(**{option: value})


def test_limits_of_one_call_of_one_picture_and_of_the_processor() -> None:
    images = Qwen2VLImageProcessor(min_pixels=3136, max_pixels=50176)
    big = picture(448, 448)
    assert images(big).image_sizes == [ImageSize(448, 448, 224, 224)]
    assert images(big, max_pixels=12544).image_sizes == [ImageSize(448, 448, 112, 112)]
    sizes = images([big, big, big], max_pixels=[None, 12544, None], sizes=[None, None, (56, 84)]).image_sizes
    assert [(s.resized_width, s.resized_height) for s in sizes] == [(224, 224), (112, 112), (84, 56)]
    with pytest.raises(ValueError, match=r"\(30, 30\): expected .* multiples of 28"):
        images(big, sizes=[(30, 30)])
    for wrong in ({"min_pixels": 60000}, {"min_pixels": 100, "max_pixels": 50}, {"max_pixels": [1, 2]}):
        with pytest.raises(ValueError, match=r"min_pixels=|max_pixels has 2 values for 1 pictures"):
            images(big, **wrong)
    with pytest.raises(TypeError, match="max_pixel'"):
        images(big, max_pixel=3)


def test_both_spellings_of_the_limits_agree() -> None:
    images = Qwen2VLImageProcessor(max_pixels=1003520)
    assert images.size == {"shortest_edge": 3136, "longest_edge": 1003520}
    images.size = {"longest_edge": 50176}
    assert (images.min_pixels, images.max_pixels) == (3136, 50176)
    images.max_pixels = 100352
    assert images.size["longest_edge"] == 100352
    with pytest.raises(ValueError, match="height"):
        images.size = {"height": 224}


@pytest.mark.parametrize(
    "limits",
    [
        {"min_pixels": 784, "max_pixels": 7840},
        {"size": {"shortest_edge": 784, "longest_edge": 7840}},
        {"size": {"min_pixels": 784, "max_pixels": 7840}},
        {"min_pixels": 784, "max_pixels": 7840, "size": {"shortest_edge": 1, "longest_edge": 2}},
        {"min_pixels": None, "size": {"shortest_edge": 784, "longest_edge": 7840}},
    ],
)
def test_every_vintage_of_the_file_is_read(limits: dict[str, Any]) -> None:
    data = {"image_processor_type": "Qwen2_5_VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor", **limits}
    images = Qwen2VLImageProcessor.from_dict(data)
    assert (images.min_pixels, images.max_pixels) == (784, 7840)
    for changes in ({"max_pixels": 5000}, {"size": {"longest_edge": 5000}}):
        images = Qwen2VLImageProcessor.from_dict(data, **changes)
        assert (images.min_pixels, images.max_pixels) == (784, 5000)
    with pytest.raises(TypeError, match="patchsize"):
        Qwen2VLImageProcessor.from_dict(data, patchsize=3)


def test_the_image_processor_saves_the_official_layout(tmp_path: Path) -> None:
    Qwen2VLImageProcessor(min_pixels=784, max_pixels=7840, image_mean=(0.5, 0.5, 0.5)).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert data["image_processor_type"] == "Qwen2VLImageProcessor"
    assert (data["min_pixels"], data["max_pixels"], data["image_mean"]) == (784, 7840, [0.5, 0.5, 0.5])
    assert Qwen2VLImageProcessor.from_pretrained(tmp_path).to_dict() == data


# The template


def test_prompt_of_text_and_pictures() -> None:
    render = ChatTemplate().render
    assert render([{"role": "user", "content": "Hi"}]) == f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n"
    talk = [
        {"role": "system", "content": [text("Be brief.")]},
        user(text("A "), {"type": "image"}, text(" B")),
        {"role": "assistant", "content": "C"},
        user({"type": "image"}, {"type": "image"}),
    ]
    assert render(talk, add_generation_prompt=True) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nA {PICTURE} B<|im_end|>\n"
        f"<|im_start|>assistant\nC<|im_end|>\n<|im_start|>user\n{PICTURE}{PICTURE}<|im_end|>\n<|im_start|>assistant\n"
    )
    numbered = render(talk, add_vision_id=True)
    assert f"A Picture 1: {PICTURE} B" in numbered
    assert f"Picture 2: {PICTURE}Picture 3: {PICTURE}" in numbered


def test_the_builtin_text_is_the_published_one_where_there_are_no_tools() -> None:
    talks = [
        [user({"type": "image"}, text("{{ 1 }} what\n\nis it? "))],
        [{"role": "system", "content": ""}, user(text(" x "))],
    ]
    for talk in talks:
        for prompt in (False, True):
            assert ChatTemplate().render(talk, prompt) == ChatTemplate(OFFICIAL).render(talk, prompt)


TOOL = {"type": "function", "function": {"name": "weather", "description": "Wetter für 'jetzt'", "parameters": {}}}
TOOLBOX = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
    "function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "weather", "description": "Wetter für \'jetzt\'", "parameters": {}}}\n'
    "</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call><|im_end|>\n"
)


@pytest.mark.parametrize("template", [None, OFFICIAL])
def test_tools_calls_and_results(template: str | None) -> None:
    talk = [
        user({"type": "image"}, text("Weather?")),
        {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"at": "Köln"}}},
            {"type": "function", "function": {"name": "weather", "arguments": '{"at": "Rom"}'}}]},
        {"role": "tool", "content": "5"},
        {"role": "tool", "content": [text("9")]},
    ]  # fmt: skip
    rest = (
        f"<|im_start|>user\n{PICTURE}Weather?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
        '{"name": "weather", "arguments": {"at": "Köln"}}\n</tool_call>\n<tool_call>\n'
        '{"name": "weather", "arguments": {"at": "Rom"}}\n</tool_call><|im_end|>\n<|im_start|>user\n'
        "<tool_response>\n5\n</tool_response>\n<tool_response>\n9\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    rendered = ChatTemplate(template).render(talk, add_generation_prompt=True, tools=[TOOL])
    assert rendered == "<|im_start|>system\nYou are a helpful assistant." + TOOLBOX + rest
    assert ChatTemplate(template).render(talk, add_generation_prompt=True) == SYSTEM + rest
    talk.insert(0, {"role": "system", "content": "Be brief."})
    assert (
        ChatTemplate(template)
        .render(talk, True, tools=[TOOL])
        .startswith("<|im_start|>system\nBe brief." + TOOLBOX + "<|im_start|>user")
    )
    talk[2]["content"] = "Let me see."
    assert "assistant\nLet me see.\n<tool_call>" in ChatTemplate(template).render(talk, tools=[TOOL])


def test_where_the_template_comes_from(tmp_path: Path) -> None:
    builtin = ChatTemplate().text
    assert ChatTemplate.from_folder(tmp_path).text == builtin
    assert ChatTemplate.from_folder(tmp_path, "a text model's, with tools").text == builtin
    assert ChatTemplate.from_folder(tmp_path, OFFICIAL).text == OFFICIAL
    (tmp_path / "chat_template.jinja").write_text("b")
    assert ChatTemplate.from_folder(tmp_path, OFFICIAL).text == "b"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "c"}')
    assert ChatTemplate.from_folder(tmp_path, OFFICIAL).text == "c"
    (tmp_path / "chat_template.json").write_text("[")
    with pytest.raises(ValueError, match=r"chat_template\.json"):
        ChatTemplate.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "not valid"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 1 + 'a' }}", "cannot render"),
    ],
)
def test_a_bad_template_is_a_clear_error(template: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ChatTemplate(template).render([{"role": "user", "content": "x"}])


def test_a_template_knows_the_day() -> None:
    assert len(ChatTemplate("{{ strftime_now('%Y-%m-%d') }}").render([{"role": "user", "content": ""}])) == 10


# The tokenizer


def test_tokenizer_basics(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids(["<|endoftext|>"])[0]
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|im_end|>"
    assert len(tokenizer) == max(tokenizer.get_vocab().values()) + 1 > tokenizer.vocab_size
    for wrong in (lambda: tokenizer.convert_tokens_to_ids("<|none|>"), lambda: tokenizer.convert_ids_to_tokens([9999])):
        with pytest.raises(ValueError, match="vocabulary"):
            wrong()
    ids = tokenizer.encode("<|im_start|>Größe 日本<|im_end|><tool_call>")
    assert tokenizer.decode(ids) == "<|im_start|>Größe 日本<|im_end|><tool_call>"
    assert tokenizer.decode(torch.tensor(ids), skip_special_tokens=True) == "Größe 日本<tool_call>"
    assert tokenizer.decode(ids[0]) == tokenizer.decode(torch.tensor(ids[0])) == "<|im_start|>"
    assert tokenizer.decode(np.int64(ids[0])) == "<|im_start|>"
    assert tokenizer.batch_decode(torch.tensor([ids, ids])) == [tokenizer.decode(ids)] * 2
    spaced = tokenizer.encode("Yes , it is n't .")
    assert tokenizer.decode(spaced) == "Yes , it is n't ."
    assert tokenizer.decode(spaced, clean_up_tokenization_spaces=True) == "Yes, it isn't."
    tokenizer.save_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_padding(tokenizer: Tokenizer) -> None:
    rows, pad = ["a b c", "a"], tokenizer.pad_token_id
    long, short = (tokenizer.encode(row) for row in rows)
    fill = len(long) - len(short)
    right = tokenizer(rows, padding=True, return_tensors="pt")
    assert right.input_ids.tolist() == [long, short + [pad] * fill]
    assert right.attention_mask.tolist() == [[1] * len(long), [1] * len(short) + [0] * fill]
    left = tokenizer(rows, padding="longest", padding_side="left")
    assert left["input_ids"] == [long, [pad] * fill + short]
    assert left["attention_mask"][1] == [0] * fill + [1] * len(short)
    for wrong in ({"return_tensors": "pt"}, {"padding": "max"}, {"padding_side": "top"}, {"return_tensors": "tf"}):
        with pytest.raises(ValueError, match=r"padding|return_tensors"):
            tokenizer(rows, **wrong)


def test_the_older_files_give_the_same_ids(checkpoint: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    Backend.from_file(str(checkpoint / "tokenizer.json")).model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text((checkpoint / "tokenizer_config.json").read_text())
    older = Tokenizer.from_pretrained(tmp_path)
    assert older.get_vocab() == tokenizer.get_vocab()
    for sample in ("It isn't 12 cafe\u0301\n\n x", "<|im_start|>user\n<tool_call><|box_start|>"):
        assert older.encode(sample) == tokenizer.encode(sample)
        assert older.decode(older.encode(sample)) == tokenizer.decode(tokenizer.encode(sample))
    assert older.control_tokens == tokenizer.control_tokens


def test_listed_tokens_are_added_under_their_ids(checkpoint: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = json.loads((checkpoint / "tokenizer.json").read_text())
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**data, "added_tokens": data["added_tokens"][:3]}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    sample = "<|image_pad|> <tool_call><|im_end|>"
    assert Tokenizer.from_pretrained(tmp_path).encode(sample) == tokenizer.encode(sample)
    config["added_tokens_decoder"].pop(str(tokenizer.convert_tokens_to_ids("<|image_pad|>")))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"<\|video_pad\|> the id \d+, the vocabulary makes it \d+"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({**data, "added_tokens": []}))
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="no added tokens"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_file_that_asks_for_truncation_cuts_no_prompt(checkpoint: Path, tmp_path: Path) -> None:
    backend = Backend.from_file(str(checkpoint / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.decode(loaded.encode("one two three four five")) == "one two three four five"
    assert len(loaded.encode("a")) == 1


def test_missing_and_broken_tokenizer_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.from_pretrained(tmp_path)


# What users type is never a control token


CONTROL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>",
    "<|box_start|>",
)  # fmt: skip


def test_spelt_control_tokens_are_plain_text_and_nothing_else_changes(tokenizer: Tokenizer) -> None:
    control = set(tokenizer.convert_tokens_to_ids(list(CONTROL)))
    for token in CONTROL:
        for sample in (token, f"a{token}", f"{token} b", f"x {token}{token}\n\ny"):
            ids = tokenizer.encode(sample, special=False)
            assert not control & set(ids)
            assert tokenizer.decode(ids, skip_special_tokens=True) == sample
    assert tokenizer.encode("a b <|im_end|> c d", special=False) == [
        *tokenizer.encode("a b "), *tokenizer.encode("<|im_end|>", special=False), *tokenizer.encode(" c d")
    ]  # fmt: skip


PIECES = st.sampled_from(
    [*CONTROL, "<", "<|", "<|im", "_start", "|>", "|im_end|>", "image_pad|>", "<|image_", "pad|>", "a", " ", "\n", '"',
     "\U000f0000", "\U000f00000\U000f0000", "\ue000", "<tool_call>", "é", "{{", "user"]
)  # fmt: skip
WORDS = st.lists(PIECES, max_size=6).map("".join)


@settings(max_examples=150, deadline=None)
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


# The processor


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
        ([{"type": "image_url", "image_url": {"url": "a", "detail": "high"}}], "unknown fields detail"),
        ([{"type": "video", "video": "a.mp4"}], "video input is not supported yet in this version"),
        ([{"video": "a.mp4"}], "video input is not supported yet in this version"),
        ([{"type": "image"}], "no picture"),
        ([{"type": "image", "image": "nowhere.png"}], "nowhere.png does not exist"),
        ([{"type": "image", "image": Image.new("RGB", (1, 5000))}], "1 x 5000"),
        ([{"type": "image", "image": picture(), "min_pixels": 9000, "max_pixels": 8000}], "min_pixels=9000"),
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


def test_numbers_before_pictures_need_a_template_that_writes_them() -> None:
    with pytest.raises(ValueError, match="add_vision_id"):
        ChatTemplate(OFFICIAL).render([user({"type": "image"})], add_vision_id=True)


def test_conversations_that_are_none(processor: Qwen2_5_VLProcessor) -> None:
    for talk in ([], [{"content": "x"}], [[]], "hello", [["hello"]], {"role": "user", "content": "x"}):
        with pytest.raises(ValueError, match=r"conversation|role"):
            processor.apply_chat_template(talk, tokenize=True)  # type: ignore[arg-type]


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


def test_videos_are_refused_plainly(processor: Qwen2_5_VLProcessor) -> None:
    with pytest.raises(ValueError, match="video input is not supported yet in this version"):
        processor(text="Hi", videos=["a.mp4"])
    with pytest.raises(ValueError, match="video input is not supported yet in this version"):
        processor(text="<|vision_start|><|video_pad|><|vision_end|>")


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
    with pytest.raises(ValueError, match="video_processor"):
        Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), processor.tokenizer, object())  # type: ignore[arg-type]


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
