"""Video processor: patches of real frames, what counts as a video, rates and times, limits, and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prompts import clip_file, frames, picture

from qwenvl import MediaPolicy, Video, VideoOptions, read_video
from qwenvl.processing import Qwen2VLVideoProcessor
from qwenvl.processing.clips import flat_videos
from qwenvl.types import ImageSize

EXACT = {"do_rescale": False, "do_normalize": False, "min_pixels": 784, "max_pixels": 784 * 12}


@pytest.mark.feature(33, 44, 71)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_row_holds_two_frames_and_an_odd_end_is_doubled(count: int) -> None:
    video = frames(count, 56, 84)
    got = Qwen2VLVideoProcessor(**EXACT)(video)
    steps = (count + 1) // 2
    assert got.video_grid_thw.tolist() == [[steps, 4, 6]]
    rows = got.pixel_values_videos.view(steps, 2, 3, 2, 2, 3, 2, 14, 14)  # time, block y, block x, y, x, C, frame, ...
    for i in range(2 * steps):
        frame = torch.from_numpy(video[min(i, count - 1)]).permute(2, 0, 1)
        for y in range(4):
            for x in range(6):
                expected = frame[:, y * 14 : y * 14 + 14, x * 14 : x * 14 + 14]
                assert torch.equal(rows[i // 2, y // 2, x // 2, y % 2, x % 2, :, i % 2], expected.float())
    assert got.second_per_grid_ts.tolist() == [1.0]
    assert got.video_sizes == [ImageSize(84, 56, 84, 56)]
    assert got.video_times == [tuple(min(i, count - 1) / 2 for i in range(2 * steps))]


@pytest.mark.feature(71)
def test_every_layout_gives_the_same_patches() -> None:
    video = frames(3, 56, 84)
    first = torch.from_numpy(video).permute(0, 3, 1, 2)
    forms: list[Any] = [
        video, first, first.float(), first.numpy().astype(np.int64), list(video), [picture_of(f) for f in video],
        tuple(video), [torch.from_numpy(f).permute(2, 0, 1) for f in video], [video], [list(video)],
    ]  # fmt: skip
    expected = Qwen2VLVideoProcessor(**EXACT)(video)
    for form in forms:
        got = Qwen2VLVideoProcessor(**EXACT)(form)
        assert torch.equal(got.pixel_values_videos, expected.pixel_values_videos)
        assert torch.equal(got.video_grid_thw, expected.video_grid_thw)
    unit = Qwen2VLVideoProcessor()(video, max_pixels=784 * 6)
    again = Qwen2VLVideoProcessor()(first / 255.0 * 255, max_pixels=784 * 6)
    assert torch.equal(unit.pixel_values_videos, again.pixel_values_videos)


def picture_of(frame: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(frame)


@pytest.mark.parametrize(
    ("video", "says"),
    [
        (np.zeros((2, 5, 4, 5), np.uint8), "no dimension of 1, 3 or 4 channels"),
        (np.zeros((0, 28, 28, 3), np.uint8), "shape"),
        (np.full((2, 28, 28, 3), 300), "values from 300 to 300"),
        (np.full((2, 28, 28, 3), 0.5), "between 0 and 1"),
        ([picture(28, 28), picture(56, 28)], "frame 1 has 56 x 28 pixels, frame 0 28 x 28"),
        ("nowhere.mp4", "nowhere.mp4 does not exist"),
        (3, "videos is int"),
        ([], "videos is empty"),
        ([[3]], r"videos\[0\]\[0\] is of type int"),
        ([{"a": 1}], r"videos\[0\] is of type dict"),
        (np.zeros((2, 1, 5000, 3), np.uint8), "5000 x 1"),
    ],
)
def test_what_is_no_video_is_refused(video: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Qwen2VLVideoProcessor()(video)


@pytest.mark.feature(44)
def test_what_is_one_video_and_what_are_several(tmp_path: Path) -> None:
    one, two = frames(2, 28, 28), frames(4, 28, 28)
    real = Video(two, (0.0, 1.0, 2.0, 3.0), (0, 1, 2, 3), 1.0, 4.0, 28, 28)
    cases: list[tuple[Any, int, list[int] | None]] = [
        (None, 0, None), (one, 1, None), (list(one), 1, None), ([one, two], 2, None), ("a.mp4", 1, None),
        (["a.mp4", "b.gif"], 2, None), (["1.png", "2.JPG"], 1, None), ([["1.png", "2.png"], "c.mp4"], 2, None),
        ([Path("a"), b"xyz", real], 3, None), ([(one, {"fps": 3.0})], 1, None), ((one, {"fps": 3.0}), 1, None),
        ([[one], [], [two, "c.mp4"]], 3, [1, 0, 2]), ([[one], None], 1, [1, 0]), ([[["f1", "f2"]], [real]], 2, [1, 1]),
        ([["a.mp4", "b.mp4"], ["c.mp4"]], 3, [2, 1]),
    ]  # fmt: skip
    for given, count, shares in cases:
        found, split = flat_videos(given)
        assert (len(found), split) == (count, shares), given


@pytest.mark.feature(45)
def test_rates_of_frames() -> None:
    process, video = Qwen2VLVideoProcessor(max_pixels=784), frames(4, 28, 28)
    assert process([video, video]).second_per_grid_ts.tolist() == [1.0, 1.0]
    assert process([video, video], fps=4).second_per_grid_ts.tolist() == [0.5, 0.5]
    assert process([video, video], fps=[1, 0.5]).second_per_grid_ts.tolist() == [2.0, 4.0]
    assert process([video], fps=[1], return_tensors=None).second_per_grid_ts == [2.0]
    assert process(video, fps=4).video_times == [(0.0, 0.25, 0.5, 0.75)]
    for fps, says in (
        ([1.0], "fps has 1 values for 2 videos"),
        (0, "fps=0"),
        (float("nan"), "nan"),
        (True, "fps=True"),
    ):
        with pytest.raises(ValueError, match=says):
            process([video, video], fps=fps)


@pytest.mark.feature(45, 76)
def test_the_rate_that_was_really_sampled_decides() -> None:
    process, video = Qwen2VLVideoProcessor(max_pixels=784), frames(4, 28, 28)
    real = Video(video, (0.0, 1.5, 3.0, 4.5), (0, 15, 30, 45), 1 / 1.5, 6.0, 640, 480)
    got = process([real], fps=30)
    assert got.second_per_grid_ts.tolist() == [3.0]
    assert got.video_times == [real.times]
    assert got.video_sizes == [ImageSize(640, 480, 28, 28)]
    told = {"fps": 10.0, "frames_indices": [0, 13, 26, 39], "total_num_frames": 40}
    for given in (process([(video, told)], fps=30), process(video, video_metadata=[told])):
        assert given.second_per_grid_ts.tolist() == [2.0]
        assert given.video_times == [pytest.approx((0, 1.3, 2.6, 3.9))]
    metadata = process([real], return_metadata=True)["video_metadata"]
    assert metadata[0]["timestamps"] == [0.0, 1.5, 3.0, 4.5]
    assert metadata[0]["frames_indices"] == [0, 15, 30, 45]
    with pytest.raises(ValueError, match="metadata tells of 4 frames, the video has 2"):
        process(video[:2], video_metadata=told)


@pytest.mark.feature(56, 65)
def test_files_are_sampled_and_resized_at_once(tmp_path: Path) -> None:
    path = clip_file(tmp_path / "a.mp4", seconds=4, rate=10, size=(168, 112))
    process = Qwen2VLVideoProcessor(min_pixels=784, max_pixels=784 * 6)
    for source in (path, f"file://{path}"):
        got = process(source, fps=1)
        assert got.video_grid_thw.tolist() == [[2, 4, 6]]
        assert got.video_sizes == [ImageSize(168, 112, 84, 56)]
        assert got.second_per_grid_ts.item() == pytest.approx(2.0)
    read = read_video(path, VideoOptions(fps=1, min_pixels=784, max_pixels=784 * 6))
    assert got.video_times == [read.times]
    assert torch.equal(got.pixel_values_videos, process([read]).pixel_values_videos)
    assert process(str(path)).video_grid_thw[0, 0] == 4  # 2 frames a second
    assert process(str(path), fps=8, max_frames=10).video_grid_thw[0, 0] == 5
    assert Qwen2VLVideoProcessor(fps=1.0, max_pixels=784)(str(path), num_frames=6).video_grid_thw[0, 0] == 3
    with pytest.raises(ValueError, match="exclude each other"):
        process(str(path), fps=1, num_frames=6)
    with pytest.raises(ValueError, match="do_sample_frames=False is for frames"):
        process(str(path), do_sample_frames=False)
    with pytest.raises(ValueError, match="local files are not allowed"):
        process(str(path), policy=MediaPolicy(allow_files=False))


def test_options_for_sampling_warn_where_nothing_is_sampled() -> None:
    process, video = Qwen2VLVideoProcessor(max_pixels=784), frames(4, 28, 28)
    with pytest.warns(UserWarning, match="num_frames has no effect on frames"):
        assert process(video, num_frames=2).video_grid_thw[0, 0] == 2
    process(video, do_sample_frames=False)
    with pytest.raises(ValueError, match="do_sample_frames=True is for files"):
        process(video, do_sample_frames=True)


@pytest.mark.feature(73)
def test_limits_of_a_frame() -> None:
    video = frames(2, 448, 448)
    process = Qwen2VLVideoProcessor()
    assert (process.min_pixels, process.max_pixels) == (128 * 28 * 28, 768 * 28 * 28)
    assert process(video).video_sizes == [ImageSize(448, 448, 448, 448)]
    assert process(video, max_pixels=50176).video_sizes == [ImageSize(448, 448, 224, 224)]
    assert process(video, size={"shortest_edge": 784, "longest_edge": 12544}).video_sizes == [
        ImageSize(448, 448, 112, 112)
    ]
    assert process(video, total_pixels=112 * 1050 * 1050).video_sizes == [ImageSize(448, 448, 448, 448)]
    small = Qwen2VLVideoProcessor(min_pixels=784, max_pixels=12845056)
    assert small(video, total_pixels=50176).video_sizes == [ImageSize(448, 448, 224, 224)]
    assert small(frames(4, 448, 448), total_pixels=50176).video_sizes == [ImageSize(448, 448, 140, 140)]
    assert Qwen2VLVideoProcessor(max_pixels=5000).size == {"shortest_edge": 5000, "longest_edge": 5000}
    assert Qwen2VLVideoProcessor(min_pixels=10**6).size == {"shortest_edge": 10**6, "longest_edge": 10**6}
    assert process(frames(2, 56, 28), do_resize=False).video_grid_thw.tolist() == [[1, 4, 2]]
    with pytest.raises(ValueError, match="do_resize=False needs sides that are multiples of 28"):
        process(frames(2, 57, 28), do_resize=False)
    for wrong, says in (({"max_pixels": 0}, "max_pixels=0"), ({"min_pixels": 9, "max_pixels": 8}, "min_pixels=9"),
                        ({"resample": 2}, "resample"), ({"colour": 1}, "colour=1 is no setting"),
                        ({"max_pixels": 1.5}, "max_pixels=1.5")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            process(video, **wrong)


@pytest.mark.feature(65)
def test_settings_come_from_files_of_every_vintage(tmp_path: Path) -> None:
    def write(name: str, data: dict[str, Any]) -> None:
        (tmp_path / name).write_text(json.dumps(data))

    def limits() -> tuple[int, int]:
        found = Qwen2VLVideoProcessor.from_pretrained(tmp_path)
        return found.min_pixels, found.max_pixels

    assert limits() == (128 * 784, 768 * 784)
    write("preprocessor_config.json", {"min_pixels": 3136, "max_pixels": 12845056})
    assert limits() == (3136, 12845056)
    write("processor_config.json", {"video_processor": {"size": {"shortest_edge": 1000, "longest_edge": 2000}}})
    assert limits() == (1000, 2000)
    own = Qwen2VLVideoProcessor(min_pixels=784, max_pixels=7840, fps=1.5, max_frames=20, image_mean=(0.5, 0.5, 0.5))
    own.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert data["video_processor_type"] == "Qwen2VLVideoProcessor"
    assert data["temporal_patch_size"] == 2
    assert Qwen2VLVideoProcessor.from_pretrained(tmp_path).to_dict() == own.to_dict() == data
    changed = Qwen2VLVideoProcessor.from_pretrained(tmp_path, max_pixels=500, use_fast=False)
    assert (changed.size, changed.fast) == ({"shortest_edge": 500, "longest_edge": 500}, False)
    with pytest.raises(TypeError, match="max_frame'"):
        Qwen2VLVideoProcessor.from_pretrained(tmp_path, max_frame=1)
    for wrong, says in (
        ({"fps": -1}, "fps=-1"),
        ({"fps": 1, "num_frames": 4}, "exclude"),
        ({"min_frames": 0}, "min_frames=0"),
    ):
        with pytest.raises(ValueError, match=says):
            Qwen2VLVideoProcessor(**wrong)
