"""The planner: what headers say, bytes and seconds from it, and advice that is computed."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from video_files import write_video

from qwenvl import machine
from qwenvl.checkpoint import load_model
from qwenvl.config import load_config
from qwenvl.hub import resolve
from qwenvl.media.sampling import VideoOptions
from qwenvl.planning import calibration, plan
from qwenvl.planning.media import Header, Limits, read_header, see
from qwenvl.planning.memory import Sizes, piece, pieces
from qwenvl.planning.seconds import estimate
from qwenvl.planning.weights import weights_of
from qwenvl.processing import AutoProcessor
from qwenvl.quantization import weight_bytes

DEMO = resolve("demo")
ONES = calibration.Speeds(**{field.name: 1.0 for field in fields(calibration.Speeds)})
ZEROS = {field.name: 0.0 for field in fields(calibration.Speeds)}


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(DEMO)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWENVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "_measured_base", lambda: 250_000_000)  # else a process that imports torch
    return tmp_path / "cache"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (300, 200), "red").save(path, exif=exif)
    return path


def grey_clip(tmp_path: Path, frames: int, size: tuple[int, int]) -> Path:
    return write_video(
        tmp_path / "clip.mp4", size=size, pictures=[np.full((*size, 3), i, np.uint8) for i in range(frames)]
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("3.5 GiB", 7 * 2**29), ("800m", 8 * 10**8), ("1k", 1000), (123, 123), ("2Ti", 2**41)],
)
def test_amounts_of_memory(text: str | int, size: int) -> None:
    assert machine.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "4X", "GB", "-1GB", "0", "1.5.2GB", "1ib"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(ValueError, match=r"memory=.*such as 4GB"):
        machine.parse_bytes(text)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def fake_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str) -> None:
    write(tmp_path / "proc" / "meminfo", "MemTotal: 8000000 kB\nMemAvailable:    5000000 kB\n")
    write(tmp_path / "proc" / "self" / "cgroup", groups)
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine.sys, "platform", "linux")


def test_memory_that_no_group_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_machine(tmp_path, monkeypatch, "0::/\n")
    write(tmp_path / "groups" / "memory.max", "max\n")
    assert machine.available_memory() == 5_000_000 * 1024


def test_limits_of_groups_of_both_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tightest of all groups above counts; pages of files that can be dropped are room."""
    fake_machine(tmp_path, monkeypatch, "0::/outer/inner\n4:memory:/old\n")
    groups = tmp_path / "groups"
    write(groups / "outer" / "memory.max", "3000000000")
    write(groups / "outer" / "memory.current", "1000000000")
    write(groups / "outer" / "memory.stat", "anon 5\ninactive_file 200000000\n")
    write(groups / "outer" / "inner" / "memory.max", "max")
    write(groups / "outer" / "inner" / "memory.current", "900000000")
    assert machine.available_memory() == 2_200_000_000
    write(groups / "memory" / "old" / "memory.limit_in_bytes", "1500000000")
    write(groups / "memory" / "old" / "memory.usage_in_bytes", "1400000000")
    assert machine.available_memory() == 100_000_000


def test_memory_that_cannot_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert machine.available_memory() is None
    assert machine.mapped_weights() is None


def test_headers_are_read_without_pixels(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(image: Image.Image) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    assert read_header(picture).size == (200, 300)


def test_a_file_that_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a picture that can be read"):
        read_header(tmp_path / "words.png")


@pytest.mark.feature(24)
@pytest.mark.parametrize("limits", [Limits(), Limits(max_pixels=40_000), Limits(min_pixels=90_000, max_pixels=120_000)])
def test_tokens_are_those_of_the_processor(picture: Path, tmp_path: Path, processor: Any, limits: Limits) -> None:
    """Pictures and videos go through all of the processor and are counted; the plan has seen headers only."""
    from qwenvl.media import read_video

    clip = grey_clip(tmp_path, 37, (90, 160))
    video = read_video(clip, VideoOptions(min_pixels=limits.min_pixels, max_pixels=limits.max_pixels))
    changed = {name: x for name in ("min_pixels", "max_pixels") if (x := getattr(limits, name)) is not None}
    full = AutoProcessor.from_pretrained(DEMO, **changed)
    content = [{"type": "image", "image": str(picture)}, {"type": "video", "video": video}]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "How many circles are there?"}]}]
    inputs = full.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    made = plan("demo", [picture, clip], "How many circles are there?", limits=limits, timing=False)
    assert made.prompt_tokens == len(inputs["input_ids"][0])
    assert [item.grid for item in made.items] == [
        tuple(inputs["image_grid_thw"][0].tolist()), tuple(inputs["video_grid_thw"][0].tolist())
    ]  # fmt: skip


@pytest.mark.parametrize("word", [None, "int8", "int4"])
def test_bytes_of_weights_are_those_of_the_loaded_model(word: str | None) -> None:
    said = weights_of(DEMO, load_config(DEMO), quantize=word)
    assert said.total == weight_bytes(load_model(DEMO, quantize=word))
    assert said.layers + said.head < said.total


def test_bytes_in_another_dtype() -> None:
    config = load_config(DEMO)
    half, full = (weights_of(DEMO, config, dtype).total for dtype in ("bfloat16", "float32"))
    assert full == 2 * half


def test_an_embedding_that_serves_lookups_is_hardly_read() -> None:
    """Of an untied model the embedding stays in its file but for some rows; the head is read."""
    import torch

    from qwenvl.checkpoint.stored import Entry, Plain, SafeFile
    from qwenvl.planning.weights import count

    config = load_config(DEMO).replace(tie_word_embeddings=False)
    file = SafeFile(Path("none"))
    names = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"
    stored = [
        Plain(Entry(file, name, shape, "BF16")) for name, shape in zip(names, [(10, 4), (10, 4), (8, 4)], strict=True)
    ]
    found = count(stored, config)
    assert torch.bfloat16.itemsize == found.itemsize
    assert (found.total, found.touched, found.layers, found.head) == (224, 144, 64, 80)


def test_sizes_by_hand() -> None:
    config = load_config(DEMO)
    sizes, text = Sizes(config), config.text_config
    assert (
        sizes.cache(17)
        == sizes.cache(32)
        == 32 * 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    )
    assert sizes.tokens_in(sizes.cache(32) + 5) == 32
    assert sizes.tower(sizes.patches_within(10**6)) <= 10**6 < sizes.tower(sizes.patches_within(10**6) + 8)
    assert piece((10, 20, 20), 4096) == 4000
    assert pieces((10, 20, 20), 1000) == 5
    assert piece((1, 100, 100), 4096) == 10000


def test_seconds_by_hand(processor: Any) -> None:
    """With one speed at a time being 1, its seconds are the work that it counts."""
    config, weights = load_config(DEMO), weights_of(DEMO, load_config(DEMO))
    text, vision = config.text_config, config.vision_config
    item = see(Header("x", "image", (280, 224)), processor.image_processor, processor.video_processor, Limits())
    assert item.grid == (1, 16, 20)

    def count(name: str, prompt: int = 100, answer: int = 1) -> Any:
        speeds = calibration.Speeds(**{**ZEROS, name: 1.0})
        return estimate(config, weights, speeds, [item], prompt, answer, 64, 4096)

    assert count("block_call").tower == vision.depth
    assert count("tower_pair").tower == len(vision.fullatt_block_indexes) * 320**2
    assert vision.depth * 320 < count("block_row").tower < 2 * vision.depth * 320
    assert count("layer_call").prefill == 2 * text.num_hidden_layers
    assert count("layer_row").prefill == 100 * text.num_hidden_layers
    assert count("text_pair").prefill == text.num_hidden_layers * 100**2 / 2
    assert count("decode_layer").decode == text.num_hidden_layers
    assert count("byte").prefill == weights.head
    assert count("pixel").prepare == 280 * 224
    assert count("decode_layer", answer=5).total == 4 * text.num_hidden_layers


def test_speeds_are_measured_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights = load_config(DEMO), weights_of(DEMO, load_config(DEMO))
    calls: list[int] = []
    monkeypatch.setattr(calibration, "measure", lambda *_: calls.append(1) or ONES)
    assert calibration.speeds(config, weights) == calibration.speeds(config, weights) == ONES
    assert len(calls) == 1
    calibration.speeds(config, weights, anew=True)
    calibration.speeds(config, weights_of(DEMO, config, quantize="int4"))  # another model to it
    assert len(calls) == 3
    for file in (cache / "plan").iterdir():
        file.write_text('{"damaged')
    assert calibration.speeds(config, weights) == ONES
    assert len(calls) == 4


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QWENVL_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(calibration, "measure", lambda *_: ONES)
    config = load_config(DEMO)
    assert calibration.speeds(config, weights_of(DEMO, config)) == ONES


@pytest.mark.parametrize("word", [None, "int4"])
def test_every_speed_is_measured(word: str | None) -> None:
    config = load_config(DEMO)
    found = calibration.measure(config, weights_of(DEMO, config, quantize=word))
    for field in fields(found):
        value = getattr(found, field.name)
        assert value >= 0
        differs = field.name.endswith("_call") or field.name == "decode_layer"  # of two times, so noise can make it 0
        assert differs or value > 1e-13, field.name
        assert value < 1e-1, field.name


def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((2400, 3200, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def wide_demo(tmp_path: Path) -> Path:
    """The bundled model's files with the limits of the published checkpoints, so that large pictures stay large."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in DEMO.iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        data = json.loads((DEMO / name).read_text())
        (folder / name).unlink()
        (folder / name).write_text(json.dumps({**data, "min_pixels": 3136, "max_pixels": 12845056, "size": None}))
    return folder


def test_advice_is_computed(wide_demo: Path, tmp_path: Path) -> None:
    """What is proposed fits when it is planned, and one step more would not."""
    source = large(tmp_path)
    whole = plan(wide_demo, [source], timing=False, memory="100GB")
    assert whole.fits
    assert whole.advice == ()
    small = plan(wide_demo, [source], timing=False, memory="100GB", limits=Limits(max_pixels=100_000))
    room = (whole.peak_bytes + small.peak_bytes) // 2
    tight = plan(wide_demo, [source], timing=False, memory=room)
    assert tight.fits is False
    words, number, *_, size, unit = tight.advice[0].split()
    assert words == "--max-pixels"
    tried = plan(wide_demo, [source], timing=False, memory=room, limits=Limits(max_pixels=int(number)))
    assert tried.fits
    assert machine.shown(tried.peak_bytes) == f"{size} {unit}"
    more = plan(wide_demo, [source], timing=False, memory=room, limits=Limits(max_pixels=int(int(number) * 1.1)))
    assert not more.fits


def test_advice_where_nothing_helps(picture: Path) -> None:
    made = plan("demo", [picture], timing=False, memory="50MB")
    assert len(made.advice) == 1
    assert "the least is" in made.advice[0]


def test_advice_for_videos(wide_demo: Path, tmp_path: Path) -> None:
    clip = grey_clip(tmp_path, 200, (360, 640))
    whole = plan(wide_demo, [clip], timing=False, limits=Limits(fps=10))
    few = plan(wide_demo, [clip], timing=False, limits=Limits(fps=10, max_frames=50))
    assert (whole.items[0].frames, few.items[0].frames) == (200, 50)
    tight = plan(wide_demo, [clip], timing=False, memory=few.peak_bytes + 10**6, limits=Limits(fps=10))
    assert any(one.startswith("--max-frames 50 ") for one in tight.advice), tight.advice


def test_a_plan_as_json(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "measure", lambda *_: ONES)
    made = plan("demo", [picture], max_new_tokens=8)
    told = json.loads(json.dumps(made.to_dict()))
    assert told["prompt_tokens"] == told["text_tokens"] + told["items"][0]["tokens"]
    assert told["bytes"]["peak"] == made.peak_bytes > told["bytes"]["weights"]
    assert told["seconds"]["total"] > told["seconds"]["first_token"] > 0


def test_wrong_questions(picture: Path) -> None:
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        plan("demo", [picture], max_new_tokens=0)
    with pytest.raises(ValueError, match="the question is empty"):
        plan("demo", [picture], " ", timing=False)
    with pytest.raises(ValueError, match="memory='lots'"):
        plan("demo", [picture], memory="lots", timing=False)
