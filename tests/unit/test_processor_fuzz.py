"""Generated conversations, good and broken, through the whole processor: the counts agree, or a ValueError names the
place. Nothing else may come out, whatever a message holds."""

from __future__ import annotations

import base64
import io
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from prompts import CONTROL

from qwenvl.media.videos import Video
from qwenvl.processing import BatchFeature, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

LIMITS = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 6}
PLACE = re.compile(r"(conversation \d+, )?message \d+\b|(conversation \d+: )?(a|the) conversation is (a list|empty)")
BOOL = st.booleans()
BITS = [*CONTROL, "<|", "|>", "a", " ", "\n", "é", "{{ x }}", "{% if %}", "\ud7ff", "\U000f0000"]
WORDS = st.lists(st.sampled_from(BITS), max_size=4).map("".join)
SIDES = st.sampled_from([1, 2, 3, 13, 14, 27, 28, 29, 41, 56, 57, 90])
ODD = st.sampled_from(
    [0, -1, 1.5, "28", True, None, float("nan"), float("inf"), [1], {}, object(), 10**400]
)  # values nobody asked for


def mostly(good: Any, bad: Any, times: int = 15) -> Any:
    """`bad` once in so many times."""
    return st.integers(0, times).flatmap(lambda n: bad if n == times else good)


COUNT = mostly(st.sampled_from([1, 2, 27, 28, 57, 100, 3000, 5000]), ODD)
RATE = mostly(st.sampled_from([0.25, 1, 2.0, 3.7, 1e-9, 1e9]), ODD)
KEYS = st.one_of(
    st.sampled_from(["type", "text", "image", "video", "url", "fps", "colour", "", 3, None, ("a",)]), WORDS
)


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (width, height), (200, 30, 60, 90)).save(out, "PNG")
    return out.getvalue()


def video(height: int, width: int, frames: int, fps: float) -> Video:
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    times = tuple(i / fps for i in range(frames))
    return Video(pixels, times, tuple(range(frames)), fps, frames / fps, width, height)


@st.composite
def arrays(draw: Any, frames: int | None = None) -> Any:
    """A picture, or a video of some frames, as an array or tensor in some layout."""
    height, width = draw(st.tuples(SIDES, SIDES))
    if draw(st.integers(0, 19)) == 19:
        height, width = draw(st.sampled_from([(1, 201), (300, 1), (1, 200), (0, 5), (5, 0)]))
    channels = draw(st.sampled_from([3, 3, 3, 1, 4]))
    shape: tuple[int, ...] = (height, width, channels) if draw(BOOL) else (channels, height, width)
    if frames is None and draw(st.integers(0, 9)) == 0:
        shape = (height, width)
    value = draw(st.integers(0, 255))
    kind = draw(st.sampled_from([np.uint8, np.uint8, np.float32, np.int64, np.float16]))
    made = np.full(shape if frames is None else (frames, *shape), value, kind)
    if draw(st.integers(0, 19)) == 19:
        made = draw(
            st.sampled_from(
                [made[..., :0], made.astype(complex), made.astype(float) - 300, made.astype(bool), made / 256]
            )
        )
    return torch.from_numpy(np.array(made)) if draw(st.integers(0, 3)) == 0 else made


NAMES = st.sampled_from(
    ["", "nowhere.png", "file://host/x.png", "ftp://x/y", "data:image/png;base64,@@", "http://127.0.0.1:9/x.png",
     "http://", "\0", "data:", "data:video/mp4;base64,AAAA", "nowhere.mp4", "x" * 5000]
)  # fmt: skip
MODES = ("L", "P", "1", "RGBA", "CMYK", "I", "F", "I;16", "LA")
PICTURES = st.one_of(
    arrays(), st.builds(lambda w, h: Image.new("RGB", (w, h), "red"), SIDES, SIDES),
    st.builds(lambda mode: Image.new(mode, (30, 20)), st.sampled_from(MODES)),
    st.builds(png, SIDES, SIDES),
    st.builds(lambda w, h: "data:image/png;base64," + base64.b64encode(png(w, h)).decode(), SIDES, SIDES),
)  # fmt: skip
NO_PICTURES = st.one_of(
    NAMES, ODD, st.just(b""), st.just(png(9, 9)[:30]), st.just({"url": 3}), st.just({"url": "x", "detail": "low"})
)
VIDEOS = st.one_of(
    st.integers(1, 5).flatmap(lambda n: arrays(n)),
    st.tuples(SIDES, SIDES, st.integers(1, 5)).map(lambda x: [Image.new("RGB", x[:2], "blue")] * x[2]),
    st.builds(video, SIDES, SIDES, st.integers(1, 5), st.sampled_from([0.5, 2.0, 30.0])),
)  # fmt: skip
NO_VIDEOS = st.one_of(
    NAMES, ODD, st.lists(st.one_of(PICTURES, NO_PICTURES), max_size=3), st.just([]), st.just(b"no video"), arrays(0)
)  # fmt: skip
SIZES = dict.fromkeys(("min_pixels", "max_pixels", "resized_height", "resized_width"), COUNT)
MORE = {**dict.fromkeys(("nframes", "min_frames", "max_frames", "total_pixels"), COUNT),
        **dict.fromkeys(("fps", "sample_fps", "raw_fps", "video_start", "video_end"), RATE)}  # fmt: skip


@st.composite
def items(draw: Any) -> Any:
    """One item of a message: mostly good, sometimes broken in one of the ways that programs manage."""
    kind = draw(st.sampled_from(["text", "image", "video"] * 6 + ["string", "broken"]))
    if kind == "string":
        return draw(WORDS)
    if kind == "broken":
        return draw(st.one_of(ODD, st.dictionaries(KEYS, st.one_of(WORDS, ODD, PICTURES), max_size=3)))
    if kind == "text":
        item: dict[Any, Any] = {"text": draw(WORDS)}
    else:
        good, bad = (PICTURES, NO_PICTURES) if kind == "image" else (VIDEOS, NO_VIDEOS)
        key = draw(st.sampled_from([kind, kind, "url", "path", kind + "_url"]))
        item = {key: draw(mostly(good, bad))}
        options = SIZES if kind == "image" else {**SIZES, **MORE}
        for name in draw(st.lists(st.sampled_from(sorted(options)), max_size=draw(st.sampled_from([0, 0, 1, 2])))):
            item[name] = draw(options[name])
        if set(item) & {"resized_height", "resized_width"} and draw(st.integers(0, 9)):
            item = {k: v for k, v in item.items() if k not in ("min_pixels", "max_pixels")}
            item |= {name: draw(COUNT) for name in ("resized_height", "resized_width")}
    if draw(st.integers(0, 5)) or "url" in item or "path" in item:
        item["type"] = draw(mostly(st.just(kind), st.one_of(ODD, st.just(kind + "_url"), WORDS)))
    if draw(st.integers(0, 29)) == 29:
        item[draw(KEYS)] = draw(st.one_of(WORDS, ODD))
    return item


@st.composite
def messages(draw: Any) -> Any:
    if draw(st.integers(0, 39)) == 39:
        return draw(st.one_of(ODD, WORDS))
    role = draw(st.sampled_from(["user"] * 6 + ["assistant", "system", "tool"]))
    message: dict[Any, Any] = {"role": draw(mostly(st.just(role), st.one_of(WORDS, ODD), 29))}
    form = draw(st.integers(0, 19))
    message["content"] = (
        draw(st.one_of(ODD, PICTURES))
        if form == 0
        else draw(WORDS)
        if form < 4
        else draw(st.lists(items(), max_size=3))
    )
    if draw(st.integers(0, 19)) == 19:
        call = st.dictionaries(
            st.sampled_from(["name", "arguments", "function", "id"]), st.one_of(WORDS, ODD, st.just({"a": 1}))
        )
        message["tool_calls"] = draw(st.one_of(ODD, st.lists(st.one_of(call, ODD), max_size=2)))
    if draw(st.integers(0, 29)) == 29:
        message[draw(KEYS)] = draw(st.one_of(WORDS, ODD))
    return message


TALKS = mostly(st.lists(messages(), min_size=1, max_size=3), st.just([]))
CONVERSATIONS = st.one_of(TALKS, TALKS, st.lists(TALKS, min_size=1, max_size=3))
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "fps": st.sampled_from([0.5, 1, 4.0]), "max_pixels": st.sampled_from([28 * 28 * 3, 28 * 28 * 8]),
        "add_vision_id": BOOL, "add_generation_prompt": BOOL, "padding_side": st.sampled_from(["left", "right"]),
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def small(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLProcessor:
    return Qwen2_5_VLProcessor(Qwen2VLImageProcessor(**LIMITS), processor.tokenizer, Qwen2VLVideoProcessor(**LIMITS))


def check(got: BatchFeature, processor: Qwen2_5_VLProcessor) -> None:
    """What the model relies on."""
    ids = got["input_ids"]
    assert ids.shape == got["attention_mask"].shape
    for pad, grids, pixels in (
        (processor.image_token_id, "image_grid_thw", "pixel_values"),
        (processor.video_token_id, "video_grid_thw", "pixel_values_videos"),
    ):
        count = int((ids == pad).sum())
        assert (grids in got) == (pixels in got) == bool(count)
        if count:
            patches = int(got[grids].prod(-1).sum())
            assert got[pixels].shape == (patches, 1176)
            assert count * 4 == patches
            assert torch.isfinite(got[pixels]).all()
    assert len(got.image_sizes) == len(got.get("image_grid_thw", ()))
    grids = got.get("video_grid_thw", torch.zeros(0, 3))
    seconds = got.get("second_per_grid_ts", torch.zeros(0))
    assert len(got.video_sizes) == len(got.video_times) == len(seconds) == len(grids)
    assert (seconds > 0).all()
    assert [2 * t for t in grids[:, 0].tolist()] == [len(times) for times in got.video_times]


def attempt(processor: Qwen2_5_VLProcessor, talk: Any, options: dict[str, Any]) -> str:
    """ "good", or what kind of error; anything but a ValueError that names its place fails the test."""
    ready = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    said = ""
    try:
        with warnings.catch_warnings(action="ignore"):
            got = processor.apply_chat_template(talk, **ready, **options)
    except ValueError as error:
        said = f"{error}"
    if said:
        assert PLACE.match(said), f"{said!r} names no place"
        assert "\n" not in said
        return "refused"
    check(got, processor)
    return "good"


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(CONVERSATIONS, OPTIONS)
def test_any_conversation_is_ready_or_refused_by_name(
    small: Qwen2_5_VLProcessor, talk: Any, options: dict[str, Any]
) -> None:
    attempt(small, talk, options)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_thousand_conversations(small: Qwen2_5_VLProcessor) -> None:
    seen = {"good": 0, "refused": 0}

    @settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(CONVERSATIONS, OPTIONS)
    def run(talk: Any, options: dict[str, Any]) -> None:
        seen[attempt(small, talk, options)] += 1

    run()
    assert min(seen.values()) > 2000, seen
    print(seen)
