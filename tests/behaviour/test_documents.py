"""The documents' own programs run here, with the import line changed and the bundled model in place of theirs.

One test a block, named after the document and the line where the block begins. What is changed in a block stands in
documents.py; what is not run stands in NOT_RUN.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import DOCUMENTS, MISTAKES, Block, Played, Stage, expected_prompts, read_blocks
from PIL import Image

from qwenvl import Assistant, AutoProcessor
from qwenvl.checkpoint.hub import demo_folder
from qwenvl.demo.samples import PICTURES

SHELL = "a line for a shell"
GPU_ATTENTION = "FlashAttention-2 needs its package and a GPU"
NOT_RUN = {
    "001:104": SHELL,
    "001:108": "an error message of other software",
    "001:115": SHELL,
    "001:529": SHELL,
    "001:537": GPU_ATTENTION,
    "001:578": SHELL,
    "001:583": "needs a key for an API in the internet",
    "001:619": SHELL,
    "001:631": SHELL,
    "001:639": SHELL,
    "001:645": "a line that a server prints",
    "001:656": SHELL,
    "001:662": SHELL,
    "001:675": SHELL,
    "001:686": "a citation",
    "003:255": SHELL,
    "003:263": GPU_ATTENTION,
}
COUNTS = {"000": 8, "001": 24, "002": 9, "003": 7, "004": 2}

BLOCKS = read_blocks()
RUN = [block for block in BLOCKS if block.name not in NOT_RUN]
KINDS = {  # test -> what a block that it runs has in it; the first that fits
    "answers": "model.generate(",
    "configuration": "configuration = ",
    "limits": "max_pixels=max_pixels",
    "pipeline": "pipeline(",
    "prompts": "prompt_with_id = ",
    "quantized": "TorchAoConfig(",
    "yarn": '"type": "yarn"',
}

THREE = ("red circle", "blue square", "green triangle")

pytestmark = [
    pytest.mark.skipif(
        not (demo_folder() / "model.safetensors").is_file(), reason="this checkout has no bundled checkpoint"
    ),
    pytest.mark.skipif(not BLOCKS, reason="the documents are not beside this checkout (../shared/documents)"),
]


def kind(block: Block) -> str:
    """Which test runs the block: the first sign that it shows."""
    return next((name for name, sign in KINDS.items() if sign in block.code), "messages")


def blocks_of(wanted: str) -> Any:
    chosen = [pytest.param(block, id=block.name) for block in RUN if kind(block) == wanted]
    return pytest.mark.parametrize("block", chosen)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("media")
    return Stage(PICTURES / "three-shapes.png", folder, lambda: qwen2_vl_checkpoint(folder / "qwen2-vl"))


def qwen2_vl_checkpoint(folder: Path) -> Path:
    """A small Qwen2-VL with random weights and the bundled model's tokenizer."""
    from qwenvl import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    if folder.is_dir():
        return folder
    values = json.loads((demo_folder() / "config.json").read_text("utf-8"))
    top = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "image_token_id", "video_token_id")
    top += ("vision_start_token_id", "vision_end_token_id", "max_position_embeddings")
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        **{name: values[name] for name in top},
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_scaling={"type": "mrope", "mrope_section": [2, 2, 2]},
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 48, "mlp_ratio": 2},
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    for file in demo_folder().glob("*.json"):
        if file.name != "scores.json" and not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_every_block_is_run_or_listed() -> None:
    """No more and no fewer blocks than the documents have, each under one heading."""
    names = [block.name for block in BLOCKS]
    assert {document: sum(name.startswith(document) for name in names) for document in COUNTS} == COUNTS
    assert len(names) == len(set(names)) == sum(COUNTS.values())
    assert set(NOT_RUN) <= set(names)
    assert {kind(block) for block in RUN} == {*KINDS, "messages"}


def test_every_correction_corrects_something() -> None:
    texts = {path.name[:3]: path.read_text("utf-8") for path in DOCUMENTS.glob("*.txt")}
    for document, wrong, _ in MISTAKES:
        assert wrong in texts[document], (document, wrong)


@pytest.fixture
def play(stage: Stage) -> Callable[..., Played]:
    """Runs a block after those others of its document that it needs."""
    programs = [block for block in RUN if kind(block) != "yarn"]
    return partial(stage.play, blocks=programs)


@pytest.mark.feature(22, 54)
@blocks_of("pipeline")
def test_pipelines(block: Block, play: Callable[..., Played]) -> None:
    (answer,) = play(block).value
    assert isinstance(answer["generated_text"], str)
    assert answer["generated_text"].strip()
    if "Describe this image." in block.code:  # 20 tokens reach the first of the three
        assert answer["generated_text"].startswith("There are three objects")
        assert THREE[0] in answer["generated_text"]


@pytest.mark.feature(4, 5, 32, 33, 34, 36, 41, 42, 44, 45, 47, 48, 56, 60, 62, 63, 66, 67, 68, 76, 94)
@blocks_of("answers")
def test_answers(block: Block, play: Callable[..., Played], capsys: pytest.CaptureFixture[str]) -> None:
    played = play(block)
    check_answers(block, played)
    texts = answers_of(played)
    printed = capsys.readouterr().out
    assert printed.endswith(f"{texts}\n") or "print(" not in block.code
    for messages in played.messages[:-1]:
        other = played.again(messages)
        check_answers(block, other)
        assert answers_of(other)[0]


def answers_of(played: Played) -> list[str]:
    """What the program has at its end: output_texts, output_text, or the value of its last line."""
    names = played.names
    found = names.get("output_texts", names.get("output_text", [played.value]))
    assert isinstance(found, list)
    assert all(isinstance(text, str) for text in found)
    return found


def check_answers(block: Block, played: Played) -> None:
    """As many texts as prompts, behind prompts that are unchanged; pixels as many as the grids say; and, of the
    bundled model, words."""
    inputs, texts = played.names["inputs"], answers_of(played)
    ids = played.names.get("output_ids", played.names.get("generated_ids", played.names.get("generate_ids")))
    assert isinstance(ids, torch.Tensor)
    length = inputs.input_ids.shape[1]
    assert torch.equal(ids[:, :length], inputs.input_ids)
    assert length < ids.shape[1] <= length + 128
    assert len(texts) == len(ids)
    config = played.names["model"].config
    check_pixels(inputs, "pixel_values", "image_grid_thw", int((inputs.input_ids == config.image_token_id).sum()))
    check_pixels(
        inputs, "pixel_values_videos", "video_grid_thw", int((inputs.input_ids == config.video_token_id).sum())
    )
    if "fps=1," in block.code:  # once video_fps=1: 8 frames of 8 seconds, two in a grid of about two seconds
        assert inputs["video_grid_thw"][:, 0].tolist() == [4]
        assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(2, abs=0.3)
    if "video_kwargs" in played.names:
        (rate,) = played.names["video_kwargs"]["fps"]
        assert 0.5 < rate <= 4  # the file has four frames a second
    if block.document == "003":
        return
    assert all(text.strip() for text in texts)
    if "Describe this image." in block.code:
        assert all(name in texts[0] for name in THREE)
    if "Who are you?" in block.code:  # the shorter row of a batch says what it says alone
        assert "qwenvl" in texts[-1]


def check_pixels(inputs: Any, pixels: str, grids: str, tokens: int) -> None:
    """Grids are in patches of 14 x 14 x 2, and every four of them are one token."""
    if not tokens:
        assert pixels not in inputs
        return
    patches = int(inputs[grids].prod(-1).sum())
    assert tokens * 4 == patches
    assert inputs[pixels].shape == (patches, 3 * 2 * 14 * 14)
    if pixels == "pixel_values_videos":
        assert len(inputs["second_per_grid_ts"]) == len(inputs[grids])


@pytest.mark.feature(46, 49, 50, 51, 52, 53, 54)
@blocks_of("prompts")
def test_prompts(block: Block, play: Callable[..., Played]) -> None:
    names = play(block).names
    expected = expected_prompts(block)
    assert len(expected) == 2
    assert [names["prompt_without_id"], names["prompt_with_id"]] == expected
    if block.document in ("000", "002"):
        assert names["model"].dtype == torch.float16


@pytest.mark.feature(6, 24, 65, 73)
@blocks_of("limits")
def test_limits(block: Block, play: Callable[..., Played]) -> None:
    names = play(block).names
    assert names["min_pixels"] in (224 * 224, 256 * 28 * 28)
    images = names["processor"].image_processor
    assert (images.min_pixels, images.max_pixels) == (names["min_pixels"], names["max_pixels"])
    for side in (100, 2000):  # 28 x 28 pixels are a token
        (grid,) = images(images=[Image.new("RGB", (side, side))], return_tensors="pt")["image_grid_thw"]
        tokens = int(grid.prod()) // 4
        assert names["min_pixels"] <= tokens * 28 * 28 <= names["max_pixels"]
        assert tokens * 28 * 28 < 1.2 * names["min_pixels"] or side == 2000


@pytest.mark.feature(55, 57, 72, 73, 75)
@blocks_of("messages")
def test_messages(block: Block, play: Callable[..., Played]) -> None:
    """Each way to name a picture gives the same picture; sizes are those that its item asks for."""
    played = play(block, wanted={"model", "processor", "process_vision_info"})
    processor, process_vision_info = (played.names[name] for name in ("processor", "process_vision_info"))
    sizes, answers = [], []
    for messages in played.messages:
        (picture,), videos = process_vision_info(messages)
        assert videos is None
        sizes.append(picture.size)
        prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[prompt], images=[picture], videos=videos, padding=True, return_tensors="pt")
        ids = played.names["model"].generate(**inputs, max_new_tokens=40)
        answers += processor.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    if "resized_height" in block.code:
        assert sizes == [(420, 280), (252, 168)]  # 280 x 210 scaled to 50176 pixels, sides down to 28
    else:
        assert sizes == [(280, 224)] * 3
        assert answers[0] == answers[1] == answers[2]
        assert all(name in answers[0] for name in THREE)


@pytest.mark.feature(4, 20)
@blocks_of("quantized")
def test_quantized(block: Block, play: Callable[..., Played]) -> None:
    """group_size is honoured, the head stays as it is, and the model still tells what it sees."""
    model = play(block).names["model"]
    schemes = model.quantization.schemes
    assert {str(scheme) for name, scheme in schemes.items() if "language_model" in name} == {"int4 group 128"}
    assert "lm_head" not in schemes
    answer = Assistant.from_parts(model, AutoProcessor.from_pretrained("demo")).ask(
        [PICTURES / "three-shapes.png"], "Describe this image."
    )
    assert all(name in answer.text for name in THREE)


@pytest.mark.feature(12, 15)
@blocks_of("configuration")
def test_configurations(block: Block, play: Callable[..., Played]) -> None:
    """The documented default is a model of 72 billion parameters: it is built without memory for them."""
    with torch.device("meta"):
        names = play(block).names
    model, configuration = names["model"], names["configuration"]
    assert configuration is model.config
    assert isinstance(model, torch.nn.Module)
    assert (configuration.vocab_size, configuration.hidden_size, configuration.num_hidden_layers) == (152064, 8192, 80)
    assert 70e9 < sum(parameter.numel() for parameter in model.parameters()) < 76e9
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.feature(11, 78)
@blocks_of("yarn")
def test_yarn(block: Block, tmp_path: Path) -> None:
    """What the document adds to config.json is read, and the model that has it answers."""
    from qwenvl import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    addition = json.loads(block.code.replace("...,", ""))
    values = json.loads((demo_folder() / "config.json").read_text("utf-8"))
    values |= {"rope_scaling": addition, "hidden_size": 128, "num_attention_heads": 1, "num_key_value_heads": 1}
    values["vision_config"]["out_hidden_size"] = 128
    values |= {"max_position_embeddings": 131072, "num_hidden_layers": 2}
    config = Qwen2_5_VLConfig.from_dict(values)
    assert (config.rope_type, config.mrope_section) == ("yarn", (16, 24, 24))
    assert config.rope_scaling["factor"] == 4
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert (model.config.rope_type, model.config.rope_scaling["factor"]) == ("yarn", 4)
    inputs = AutoProcessor.from_pretrained("demo")(text=["Hello"], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs.input_ids.shape[1]
