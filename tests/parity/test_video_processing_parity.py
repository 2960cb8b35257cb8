"""Videos against transformers: grids, pixels, prompts with several videos, seconds a step, and files of settings.

Their video processor needs torchvision, of which it takes only resize and normalize. It runs in a process of its own,
beside a stand-in for these two, which asks torch for the same kernel as torchvision does (antialiased bicubic, on
uint8 without a detour). That frames are cut the same way as pictures is checked against their Pillow path besides.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qwenvl.processing import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor
from qwenvl.processing.chat_template import BUILT_IN

STEP = 1 / 255 / 0.26130258  # one of 255 levels after normalisation, in the channel that it moves most
STAND_IN = {
    "__init__.py": "__version__ = '0.25.0'\n",
    "io.py": "",
    "transforms/__init__.py": "from enum import Enum\nclass InterpolationMode(Enum):\n"
    + "".join(f"    {name} = {name.lower()!r}\n" for name in
              ("NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")),
    "transforms/functional.py": "def pil_to_tensor(image):\n    raise NotImplementedError\n",
    "transforms/v2/__init__.py": "",
    "transforms/v2/functional.py": """
import torch
from torchvision.transforms import InterpolationMode
def resize(image, size, interpolation, antialias):
    assert interpolation == InterpolationMode.BICUBIC and antialias
    found = torch.nn.functional.interpolate(image.flatten(0, -4), size, mode="bicubic", antialias=True)
    return found.unflatten(0, image.shape[:-3])
def normalize(image, mean, std, inplace=False):
    mean, std = (torch.as_tensor(x, dtype=image.dtype).view(-1, 1, 1) for x in (mean, std))
    return (image - mean) / std
def grayscale_to_rgb(image):
    return image
""",
}  # fmt: skip
THEIRS = """
import sys, json, torch, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from transformers import AutoTokenizer
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
folder, checkpoint = Path(sys.argv[1]), sys.argv[2]
given = torch.load(folder / "given.pt", weights_only=False)
class Theirs(Qwen2_5_VLProcessor):
    def check_argument_for_proper_class(self, argument_name, argument):
        return type(argument)
found = []
for settings, videos in given["batches"]:
    processor = Qwen2VLVideoProcessor(cap_pixels_per_frame=False, **settings)
    found.append(dict(processor(videos, return_tensors="pt")))
whole = Theirs(Qwen2VLImageProcessorPil(), AutoTokenizer.from_pretrained(checkpoint), Qwen2VLVideoProcessor(),
               chat_template=given["template"])
result = whole(text=given["text"], images=given["images"], videos=given["videos"], padding=True, padding_side="left",
               return_tensors="pt", video_metadata=given["metadata"], do_sample_frames=False,
               cap_pixels_per_frame=False)
prompt = whole.apply_chat_template(given["talk"], add_generation_prompt=True)
numbered = whole.apply_chat_template(given["talk"], add_vision_id=True)
read = Qwen2VLVideoProcessor.from_pretrained(folder / "ours")
old = Qwen2VLVideoProcessor.from_pretrained(checkpoint)
Qwen2VLVideoProcessor(max_pixels=50176 * 4, fps=1.5).save_pretrained(folder / "theirs")
torch.save({"batches": found, "whole": dict(result), "prompt": prompt, "numbered": numbered,
            "read": dict(read.size), "old": dict(old.size), "default": dict(Qwen2VLVideoProcessor().size)},
           folder / "found.pt")
"""
VIDEOS = [(4, 120, 160), (3, 360, 480), (1, 97, 211), (8, 30, 41), (2, 700, 500), (5, 1080, 608)]  # frames, h, w
SETTINGS: list[dict[str, Any]] = [
    {}, {"min_pixels": 3136, "max_pixels": 12845056}, {"size": {"shortest_edge": 784, "longest_edge": 50176}},
    {"do_normalize": False},
]  # fmt: skip


def clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [T, 3, H, W] of smooth ground with edges that move."""
    random = np.random.default_rng([seed, frames, height, width])
    coarse = Image.fromarray(random.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), np.uint8))
    ground = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))
    video = np.stack([np.roll(ground, 3 * i, 1) for i in range(frames)])
    for i, frame in enumerate(video):
        frame[5 + i : 25 + i, 8 : 28 + 2 * i] = (250, 20, 60)
    return np.ascontiguousarray(video.transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def given(checkpoint: Path) -> dict[str, Any]:
    talk = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "A:"}, {"type": "image"}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "And here?"}, {"type": "image"}]},
    ]
    ours = Qwen2_5_VLProcessor.from_pretrained(checkpoint)
    other = [{"role": "user", "content": [{"type": "text", "text": "Then? "}, {"type": "video"}]}]
    text = [ours.apply_chat_template(t, add_generation_prompt=True) for t in (talk, other)]
    clips = [clip(*size, seed=3) for size in ((4, 112, 140), (6, 60, 90), (2, 40, 40))]
    metadata = [
        {"total_num_frames": 40, "fps": 10.0, "frames_indices": [0, 13, 26, 39]},
        {"total_num_frames": 6, "fps": 3.0, "frames_indices": [0, 1, 2, 3, 4, 5]},
        {"total_num_frames": 100, "fps": 25.0, "frames_indices": [0, 99]},
    ]
    images = [Image.fromarray(clip(1, 40, 60 + i)[0].transpose(1, 2, 0)) for i in range(2)]
    return {
        "batches": [(settings, [clip(*size) for size in VIDEOS]) for settings in SETTINGS],
        "text": text, "images": images, "videos": clips, "metadata": metadata, "talk": talk, "template": BUILT_IN,
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(given: dict[str, Any], checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("theirs")
    for name, text in STAND_IN.items():
        path = folder / "stand-in" / "torchvision" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    about = folder / "stand-in" / "torchvision-0.25.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.25.0\n")
    Qwen2VLVideoProcessor(min_pixels=784, max_pixels=7840, fps=1.0).save_pretrained(folder / "ours")
    torch.save(given, folder / "given.pt")
    code = f"import sys; sys.path.insert(0, {str(folder / 'stand-in')!r})\n{THEIRS}"
    command = [sys.executable, "-c", code, str(folder), str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = torch.load(folder / "found.pt", weights_only=False)
    return {**result, "folder": folder}


@pytest.mark.feature(34, 44, 71)
@pytest.mark.parametrize("case", range(len(SETTINGS)))
def test_grids_are_equal_and_pixels_within_one_level(given: dict[str, Any], found: dict[str, Any], case: int) -> None:
    settings, videos = given["batches"][case]
    theirs = found["batches"][case]
    ours = Qwen2VLVideoProcessor(**settings)(videos)
    assert torch.equal(ours["video_grid_thw"], theirs["video_grid_thw"])
    difference = (ours["pixel_values_videos"] - theirs["pixel_values_videos"]).abs()
    assert difference.max() < 1e-5 < STEP


@pytest.mark.feature(44)
def test_frames_are_cut_as_their_pictures_are() -> None:
    limits = {"min_pixels": 3136, "max_pixels": 100352}
    their_settings = {"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]}
    for size in VIDEOS:
        frames = clip(*size).transpose(0, 2, 3, 1)
        theirs = Qwen2VLImageProcessorPil(size=their_settings).preprocess(list(frames), return_tensors="pt")
        pictures = theirs["pixel_values"].unflatten(0, (len(frames), -1)).unflatten(2, (3, 2, 14, 14))[:, :, :, 0]
        ours = Qwen2VLVideoProcessor(fast=False, **limits)(frames)
        rows = ours["pixel_values_videos"].unflatten(1, (3, 2, 14, 14)).unflatten(0, (-1, pictures.shape[1]))
        for i in range(2 * len(rows)):
            expected = pictures[min(i, len(frames) - 1)]
            assert (rows[i // 2, :, :, i % 2] - expected).abs().max() < 1e-5


@pytest.mark.feature(43, 44, 45, 62)
def test_a_batch_with_pictures_and_videos_is_equal(
    given: dict[str, Any], found: dict[str, Any], checkpoint: Path
) -> None:
    ours = Qwen2_5_VLProcessor.from_pretrained(checkpoint)
    ours.image_processor.max_pixels = 28 * 28 * 1280
    ours.video_processor = Qwen2VLVideoProcessor()
    got = ours(
        text=given["text"], images=given["images"], videos=given["videos"], video_metadata=given["metadata"],
        padding=True, padding_side="left", return_tensors="pt", do_sample_frames=False, return_mm_token_type_ids=True,
    )  # fmt: skip
    theirs = found["whole"]
    assert set(got) == set(theirs)
    for name in ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw", "mm_token_type_ids"):
        assert torch.equal(got[name], theirs[name]), name
    expected = torch.as_tensor(theirs["second_per_grid_ts"])
    assert torch.allclose(got["second_per_grid_ts"], expected, rtol=1e-6)
    assert expected.tolist() == pytest.approx([2.0, 2 / 3, 4.0])
    assert (got["pixel_values"] - theirs["pixel_values"]).abs().max() < 1e-5
    assert (got["pixel_values_videos"] - theirs["pixel_values_videos"]).abs().max() < 1e-5


@pytest.mark.feature(46, 50)
def test_prompts_with_videos_are_equal(given: dict[str, Any], found: dict[str, Any], checkpoint: Path) -> None:
    ours = Qwen2_5_VLProcessor.from_pretrained(checkpoint)
    assert ours.apply_chat_template(given["talk"], add_generation_prompt=True) == found["prompt"]
    assert ours.apply_chat_template(given["talk"], add_vision_id=True) == found["numbered"]


@pytest.mark.feature(65)
def test_files_of_settings_are_read_both_ways(found: dict[str, Any], checkpoint: Path) -> None:
    def limits(size: dict[str, Any]) -> tuple[int, int]:
        return size["shortest_edge"], size["longest_edge"]

    assert limits(found["read"]) == (784, 7840)
    assert limits(Qwen2VLVideoProcessor.from_pretrained(checkpoint).size) == limits(found["old"]) == (3136, 12845056)
    assert limits(Qwen2VLVideoProcessor().size) == limits(found["default"])
    theirs = Qwen2VLVideoProcessor.from_pretrained(found["folder"] / "theirs")
    data = json.loads(next((found["folder"] / "theirs").glob("*.json")).read_text())
    assert limits(theirs.size) == limits(data.get("video_processor", data)["size"])
    assert theirs.fps == 1.5
