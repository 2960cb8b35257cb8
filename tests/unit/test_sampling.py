"""Which frames are taken and how large they become: tables worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qwenvl.media.resample import Resampler
from qwenvl.media.sampling import (
    VideoOptions,
    frame_indices,
    frame_limits,
    frame_range,
    frame_size,
    smart_nframes,
)


@pytest.mark.feature(57, 76)
@pytest.mark.parametrize(
    ("ele", "total", "fps", "expected"),
    [
        ({}, 300, 30, 20),  # 10 s at the default 2 a second
        ({"fps": 2.0}, 250, 25.0, 20),
        ({"fps": 1}, 300, 30, 10),
        ({"fps": 1}, 330, 30, 10),  # 11 -> the even number below
        ({"fps": 4}, 300, 30, 40),
        ({"fps": 60}, 300, 30, 300),  # never more than there are
        ({"fps": 2}, 30, 30, 4),  # min_frames
        ({"fps": 2, "min_frames": 9}, 30, 30, 10),  # rounded up to even
        ({"fps": 2, "max_frames": 7}, 300, 30, 6),  # rounded down to even
        ({"fps": 2}, 3600 * 25, 25, 768),  # max_frames
        ({"fps": 2, "max_frames": 2000}, 3600 * 25, 25, 2000),
        ({"fps": 1}, 5, 25, 4),  # max_frames is the even number below total
        ({"fps": 2}, 3, 25, 2),
        ({"nframes": 8}, 100, 25, 8),
        ({"nframes": 7}, 100, 25, 8),  # 3.5 -> 4 pairs
        ({"nframes": 5}, 100, 25, 4),  # 2.5 -> 2 pairs: ties go to the even number
        ({"nframes": 100}, 100, 25, 100),
        ({"nframes": 6, "fps": None}, 100, 25, 6),
        ({"fps": 2}, 899, 29.97, 58),  # 59.99
    ],
)
def test_number_of_frames(ele: dict[str, Any], total: int, fps: float, expected: int) -> None:
    assert smart_nframes(ele, total_frames=total, video_fps=fps) == expected


@pytest.mark.feature(57)
@pytest.mark.parametrize(
    ("ele", "total", "message"),
    [
        ({"fps": 2, "nframes": 4}, 100, "only accept one"),
        ({"nframes": 102}, 100, r"interval \[2, 100\].*got 102"),
        ({"nframes": 1}, 100, r"interval \[2, 100\].*got 0"),
        ({}, 1, r"interval \[2, 1\]"),
        ({"fps": 0}, 100, "fps=0"),
        ({"fps": float("nan")}, 100, "fps=nan"),
        ({"nframes": -2}, 100, "nframes=-2"),
        ({"max_frames": 1}, 100, "got 0"),
    ],
)
def test_numbers_that_make_no_sense(ele: dict[str, Any], total: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smart_nframes(ele, total_frames=total, video_fps=25)


def test_no_frame_rate() -> None:
    with pytest.raises(ValueError, match="video_fps=0"):
        smart_nframes({}, 100, 0)


@pytest.mark.feature(76)
def test_indices_are_spread_evenly() -> None:
    assert frame_indices(0, 9, 4) == (0, 3, 6, 9)
    assert frame_indices(0, 99, 8) == (0, 14, 28, 42, 57, 71, 85, 99)
    assert frame_indices(50, 99, 2) == (50, 99)
    assert frame_indices(0, 5, 3) == (0, 2, 5)  # 2.5 goes to the even number


def test_indices_are_those_of_torch() -> None:
    different = total = 0
    for last, number in ((99, 20), (29999, 768), (89999, 768), (107999, 768), (1234, 100), (17, 18)):
        theirs = torch.linspace(0, last, number).round().long().tolist()
        ours = frame_indices(0, last, number)
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1
        different += sum(a != b for a, b in zip(ours, theirs, strict=True))
        total += number
    assert different <= total // 500  # its vector units round a few ties in another way


@pytest.mark.feature(57)
def test_start_and_end() -> None:
    times = np.arange(100) / 25
    assert frame_range(times, None, None) == (0, 99)
    assert frame_range(times, 1.0, 3.0) == (25, 75)  # both ends included
    assert frame_range(times, 0.99, 3.01) == (25, 75)  # the start rounds up, the end down
    assert frame_range(times, 0.12, None) == (3, 99)
    assert frame_range(times, None, 1e9) == (0, 99)
    assert frame_range(times, -5.0, 0.5) == (0, 12)
    for start, end in ((3.0, 1.0), (5.0, None), (1.0, 1.0)):
        with pytest.raises(ValueError, match="expected at least 2"):
            frame_range(times, start, end)


@pytest.mark.feature(57, 73, 75)
@pytest.mark.parametrize(
    ("options", "number", "size", "expected"),
    [
        # 768 frames of an hour: 90316800 / 768 * 2 = 235200 pixels each
        ({}, 768, (1080, 1920), (336, 644)),
        # few frames: 602112 pixels each
        ({}, 20, (1080, 1920), (560, 1008)),
        ({"max_pixels": 360 * 420}, 20, (1080, 1920), (280, 504)),
        # small frames grow to 128 tokens
        ({}, 20, (48, 64), (280, 392)),
        ({"min_pixels": 16 * 784, "total_pixels": 20480 * 784}, 768, (1080, 1920), (140, 252)),
        ({"min_pixels": 16 * 784, "total_pixels": 20480 * 784}, 60, (1080, 1920), (532, 952)),
        ({"resized_height": 280, "resized_width": 420}, 20, (1080, 1920), (280, 420)),
        ({"resized_height": 275, "resized_width": 430}, 20, (1080, 1920), (280, 420)),
        # a budget below the least area: 1.05 times that
        ({"total_pixels": 1000}, 20, (1080, 1920), (224, 420)),
        ({"resize": False}, 20, (1080, 1920), (1080, 1920)),
    ],
)
def test_size_of_a_frame(
    options: dict[str, Any], number: int, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert frame_size(*size, number, VideoOptions(**options)) == expected


def test_budget_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert frame_limits(VideoOptions(), 768) == (128 * 784, pytest.approx(235200))
    assert frame_limits(VideoOptions(max_pixels=10**9), 768)[1] == pytest.approx(235200)  # max_pixels only lowers
    monkeypatch.setenv("MODEL_SEQ_LEN", "64000")
    assert frame_limits(VideoOptions(), 768)[1] == pytest.approx(117600)
    monkeypatch.setenv("VIDEO_MAX_PIXELS", "115200000")
    assert frame_limits(VideoOptions(), 768)[1] == pytest.approx(300000)
    monkeypatch.setenv("VIDEO_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="VIDEO_MAX_PIXELS='many'"):
        frame_limits(VideoOptions(), 768)


def test_one_side_alone_is_an_error() -> None:
    with pytest.raises(ValueError, match="belong together"):
        frame_size(100, 100, 4, VideoOptions(resized_height=280))


@pytest.mark.parametrize(
    ("old", "new"), [((270, 480), (140, 252)), ((60, 80), (280, 364)), ((97, 131), (140, 84)), ((50, 50), (50, 100))]
)
def test_pixels_are_those_of_torch(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Antialiased bicubic on floats, as the official pipeline resizes videos: at most 1 of 255 from it."""
    frame = np.random.default_rng(0).integers(0, 256, (*old, 3), np.uint8)
    frame[old[0] // 3 : old[0] // 2] = 255
    values = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    theirs = torch.nn.functional.interpolate(values, new, mode="bicubic", antialias=True).clamp(0, 255).round()
    difference = np.abs(Resampler(old, new)(frame).astype(int) - theirs[0].permute(1, 2, 0).numpy())
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001  # only ties
