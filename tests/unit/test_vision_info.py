"""The interface of qwen-vl-utils: sizes, frames, frame rates and pixels as that package gives them.

The tables of expected values were taken from qwen-vl-utils 0.0.10 (time ranges, which it cannot cut: 0.0.14) with its
torchvision resize replaced by torch's antialiased bicubic on floats, clamped and rounded, and with its decord reader
replaced by PyAV; the package itself is not needed here.
"""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import qwenvl
from qwenvl import MediaError, MediaPolicy, extract_vision_info, fetch_image, fetch_video, process_vision_info

RED, WHITE = (255, 0, 0), (255, 255, 255)


def wave(width: int, height: int) -> Image.Image:
    """A picture with a gradient and sharp edges, the same everywhere."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([(x * 3 + y) % 256, (y * 5) % 256, (x // 8 + y // 8) % 2 * 255], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def user(*items: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(items)}]


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of 160 x 120 named after their frames and their rate; the blue of frame i is about 2 i."""
    folder = tmp_path_factory.mktemp("films")
    y, x = np.mgrid[:120, :160]
    for number, rate in ((50, "25"), (90, "30"), (75, "25"), (60, "30000/1001"), (3, "25"), (50, "12")):
        with av.open(str(folder / f"{number}_{rate.replace('/', '-')}.mp4"), "w") as film:
            stream = film.add_stream("mpeg4", rate=Fraction(rate))
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 160, 120, "yuv420p", 2_000_000
            for i in range(number):
                pixels = np.stack([(x * 2 + i * 5) % 256, (y * 2) % 256, np.full_like(x, i * 2 % 256)], -1)
                film.mux(stream.encode(av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")))
            film.mux(stream.encode())
    return folder


@pytest.mark.feature(57, 73, 74, 75)
@pytest.mark.parametrize(
    ("size", "options", "seen"),
    [
        ((640, 428), {}, (644, 420)),
        ((1920, 1080), {}, (1932, 1092)),
        ((4000, 3000), {}, (4004, 2996)),
        ((3000, 4500), {}, (2912, 4368)),
        ((10, 10), {}, (56, 56)),
        ((1000, 10), {}, (1008, 28)),
        ((2000, 11), {}, (1988, 28)),
        ((57, 91), {}, (56, 84)),
        ((640, 428), {"min_pixels": 50176, "max_pixels": 50176}, (252, 168)),
        ((640, 428), {"max_pixels": 1280 * 28 * 28}, (644, 420)),
        ((640, 428), {"max_pixels": 2000}, (28, 28)),
        ((4096, 2160), {"max_pixels": 1280 * 28 * 28}, (1372, 700)),
        ((640, 428), {"min_pixels": 256 * 28 * 28, "max_pixels": 1280 * 28 * 28}, (644, 420)),
        ((100, 60), {"min_pixels": 224 * 224, "max_pixels": 2048 * 2048}, (308, 196)),
        ((640, 428), {"resized_height": 280, "resized_width": 420}, (420, 280)),
        ((640, 428), {"resized_height": 100, "resized_width": 47}, (56, 112)),
        ((640, 428), {"resized_height": 8, "resized_width": 9}, (84, 56)),
        ((640, 428), {"resized_height": None, "max_pixels": None}, (644, 420)),
    ],
)
def test_pictures_get_the_size_of_the_package(size: tuple[int, int], options: dict[str, Any], seen: Any) -> None:
    image = fetch_image({"type": "image", "image": Image.new("L", size), **options})
    assert (image.size, image.mode) == (seen, "RGB")


def test_pictures_of_other_patches() -> None:
    assert fetch_image({"image": Image.new("RGB", (640, 428))}, image_patch_size=16).size == (640, 416)
    assert fetch_image({"image": Image.new("RGB", (640, 428))}, 32).size == (640, 416)
    with pytest.raises(ValueError, match="size_factor=14: expected patch size x 2"):
        fetch_image({"image": Image.new("RGB", (640, 428))}, 14)


def test_pixels_of_pictures() -> None:
    """Sampled values and means of the package's picture; the kernel is Pillow's own."""
    pixels = np.asarray(fetch_image({"image": wave(333, 217)}))
    assert pixels.shape == (224, 336, 3)
    sampled = {(0, 0): (0, 0, 0), (17, 200): (99, 82, 0), (100, 100): (138, 228, 0), (150, 301): (16, 214, 255),
               (223, 335): (188, 56, 0)}  # fmt: skip
    for (y, x), value in sampled.items():
        assert np.abs(pixels[y, x].astype(int) - value).max() <= 1
    assert np.allclose(pixels.mean((0, 1)), (127.922, 122.393, 127.463), atol=0.05)
    half = wave(56, 84).convert("RGBA")
    half.putalpha(128)
    assert np.abs(np.asarray(fetch_image({"image": half}))[5, 5].astype(int) - (137, 140, 127)).max() <= 1


@pytest.mark.feature(55, 59)
def test_every_source_of_a_picture(tmp_path: Path) -> None:
    data = encoded(wave(56, 84))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    expected = np.asarray(wave(56, 84))
    for item in (
        {"image": path.as_uri()},
        {"image": str(path)},
        {"image": path},
        {"image": f"data:image;base64,{text}"},
        {"image": f"data:image/jpeg;base64,{text}"},
        {"image": wave(56, 84)},
        {"image": data},
        {"image": expected},
        {"image_url": str(path)},
        {"image_url": {"url": f"data:image/png;base64,{text}", "detail": "auto"}},
        {"type": "image_url", "image_url": {"url": path.as_uri()}},
        {"type": "image", "url": path.as_uri()},
        {"type": "image", "path": str(path)},
        {"type": "image", "image": path, "image_url": None},
    ):
        images, videos = process_vision_info(user(item))
        assert videos is None
        assert np.array_equal(np.asarray(images[0]), expected)


def test_pictures_are_upright_and_on_white() -> None:
    """Both differ from the package on purpose (it turns nothing, and knows RGBA alone)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert fetch_image({"image": encoded(wave(112, 56), exif=exif)}).size == (56, 112)
    for mode in ("RGBA", "LA"):
        clear = Image.new("RGBA", (56, 56), (255, 0, 0, 0)).convert(mode)
        assert fetch_image({"image": clear}).getpixel((9, 9)) == WHITE


@pytest.mark.feature(58, 61, 67)
def test_order_shape_and_absence() -> None:
    red, blue = Image.new("RGB", (56, 56), RED), Image.new("RGB", (56, 84), (0, 0, 255))
    talk = [
        {"role": "system", "content": "You are a helpful assistant."},
        *user({"image": red}, {"text": "and"}, {"type": "image", "image": blue}, "plain"),
        {"role": "assistant", "content": "Two pictures."},
        *user({"type": "text", "text": "More?", "image": None}, {"video": [red, blue, red]}),
    ]
    images, videos = process_vision_info(talk)
    assert [image.size for image in images] == [(56, 56), (56, 84)]
    assert len(videos) == 1
    both = process_vision_info([talk, user({"image": blue}), [{"role": "user", "content": "Hello"}]])
    assert [image.size for image in both[0]] == [(56, 56), (56, 84), (56, 84)]
    assert [image.getpixel((5, 5)) for image in both[0]] == [RED, (0, 0, 255), (0, 0, 255)]
    for empty in ([{"role": "user", "content": "Hello"}], user({"type": "text", "text": "Hello"}), [], [[]]):
        assert process_vision_info(empty) == (None, None)
        assert process_vision_info(empty, return_video_kwargs=True) == (None, None, {"fps": []})


def test_extract_gives_the_items_themselves() -> None:
    first, second, third = {"image": "a"}, {"type": "video", "path": "b"}, {"type": "image_url", "image_url": "c"}
    talk = user(first, {"type": "text", "text": "image"}, second)
    assert extract_vision_info(talk) == [first, second]
    assert extract_vision_info(talk)[0] is first
    assert extract_vision_info([talk, user(third)]) == [first, second, third]
    assert extract_vision_info([]) == []
    assert extract_vision_info(talk[0]) == [first, second]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a message is str: expected a dict"):
        extract_vision_info([["Hello"]])


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"type": "image"}, "names no picture"),
        ({"type": "video"}, "names no video"),
        ({"image": "a", "url": "b"}, r"names its picture twice \(image, url\)"),
        ({"image": "a", "video": "b"}, "unknown fields video"),
        ({"image": "a", "max_pixel": 5}, "unknown fields max_pixel"),
        ({"image": "a", "nframes": 5}, "unknown fields nframes"),
        ({"video": "a", "quality": 5}, "unknown fields quality"),
        ({"image": "nowhere.png"}, "does not exist"),
        ({"image_url": {"url": "nowhere.png", "size": 3}}, "unknown fields size"),
        ({"image_url": {"url": "nowhere.png", "detail": "low"}}, "unknown fields detail"),
        ({"image": 17}, "int"),
        ({"video": []}, "empty list"),
        ({"video": [WHITE, 3]}, "tuple"),
        ({"video": "nowhere.mp4"}, "does not exist"),
        ({"image": np.zeros((9, 9), np.uint8), "resized_height": 56}, "belong together"),
        ({"image": np.zeros((9, 9), np.uint8), "max_pixels": "many"}, "max_pixels='many'"),
        ({"image": np.zeros((9, 9), np.uint8), "min_pixels": 9000, "max_pixels": 8000}, "min_pixels=9000"),
        ({"video": [np.zeros((9, 9), np.uint8)], "fps": 1, "sample_fps": 2}, "give one"),
        ({"video": [np.zeros((9, 9), np.uint8)], "fps": 0}, "fps=0"),
    ],
)
def test_mistakes_are_one_clear_line(item: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as found:
        process_vision_info(user(item))
    assert "\n" not in str(found.value)


def test_options_without_effect_warn() -> None:
    picture = Image.new("RGB", (56, 56))
    with pytest.warns(UserWarning, match="max_pixels has no effect"):
        fetch_image({"image": picture, "resized_height": 56, "resized_width": 56, "max_pixels": 9999})
    with pytest.warns(UserWarning, match="nframes has no effect"):
        fetch_video({"video": [picture] * 2, "nframes": 2})


def test_the_policy_is_kept(tmp_path: Path, films: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(wave(56, 56)))
    for item in ({"image": path}, {"video": [str(path)]}, {"video": str(films / "3_25.mp4")}):
        with pytest.raises(MediaError, match="not allowed"):
            process_vision_info(user(item), policy=MediaPolicy.for_server())


@pytest.mark.feature(57, 68)
@pytest.mark.parametrize(
    ("film", "options", "frames", "fps", "size", "mean"),
    [
        ("50_25", {}, (0, 16, 33, 49), 2.0, (280, 392), (121.12, 117.759, 47.91)),
        ("90_30", {"fps": 1}, (0, 30, 59, 89), 4 / 3, (280, 392), (125.869, 117.807, 87.872)),
        ("90_30", {"fps": 4}, (0, 8, 16, 24, 32, 40, 49, 57, 65, 73, 81, 89), 4.0, (280, 392),
         (126.198, 117.748, 87.659)),
        ("90_30", {"nframes": 7}, (0, 13, 25, 38, 51, 64, 76, 89), 8 / 3, (280, 392), (126.097, 117.761, 87.703)),
        ("75_25", {"nframes": 9}, (0, 11, 21, 32, 42, 53, 63, 74), 8 / 3, (280, 392), (122.997, 117.783, 72.695)),
        ("75_25", {"video_start": 0.5, "video_end": 2.5}, (13, 29, 46, 62), 2.0, (280, 392),
         (124.073, 117.732, 73.552)),
        ("50_12", {"video_start": 1.0}, (12, 19, 27, 34, 42, 49), 1.894736842105263, (280, 392),
         (128.176, 117.757, 59.583)),
        ("60_30000-1001", {}, (0, 20, 39, 59), 1.9980019980019978, (280, 392), (123.275, 117.854, 57.884)),
        ("90_30", {"fps": 8, "max_frames": 10}, (0, 10, 20, 30, 40, 49, 59, 69, 79, 89), 10 / 3, (280, 392),
         (126.201, 117.768, 87.662)),
        ("90_30", {"fps": 0.25, "min_frames": 6}, (0, 18, 36, 53, 71, 89), 2.0, (280, 392),
         (125.953, 117.792, 87.835)),
        ("50_25", {"min_pixels": 50176, "total_pixels": 200704}, (0, 16, 33, 49), 2.0, (196, 280),
         (121.114, 117.759, 47.91)),
        ("50_25", {"resized_height": 100, "resized_width": 210}, (0, 16, 33, 49), 2.0, (112, 224),
         (121.138, 117.757, 47.91)),
        ("3_25", {}, (0, 2), 50 / 3, (280, 392), (107.636, 117.836, 1.512)),
    ],
)  # fmt: skip
def test_videos_are_the_package_s(
    films: Path, film: str, options: dict[str, Any], frames: tuple[int, ...], fps: float, size: Any, mean: Any
) -> None:
    path = films / f"{film}.mp4"
    item = {"type": "video", "video": path.as_uri(), **options}
    video, rate = fetch_video(item, return_video_sample_fps=True)
    assert rate == pytest.approx(fps, rel=1e-12)
    assert (tuple(video.shape), video.dtype) == ((len(frames), 3, *size), torch.float32)
    assert np.allclose(video.mean((0, 2, 3)), mean, atol=0.5)
    with av.open(str(path)) as file:
        decoded = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    expected = torch.from_numpy(np.stack([decoded[i] for i in frames])).permute(0, 3, 1, 2).float()
    expected = F.interpolate(expected, size, mode="bicubic", antialias=True).clamp(0, 255).round()
    assert (video - expected).abs().max() <= 1
    rate_of_file = float(Fraction(film.partition("_")[2].replace("-", "/")))
    assert video.frame_times == pytest.approx([i / rate_of_file for i in frames], abs=1e-4)
    images, videos, more = process_vision_info(user(item), return_video_kwargs=True)
    assert images is None
    assert torch.equal(videos[0], video)
    assert more == {"fps": [rate]}


@pytest.mark.feature(73)
@pytest.mark.parametrize(("limit", "size"), [(50176, (168, 252)), (20000, (112, 140))])
def test_a_limit_of_videos_below_the_default_minimum(tmp_path: Path, limit: int, size: tuple[int, int]) -> None:
    path = tmp_path / "large.mp4"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for _ in range(8):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((480, 640, 3), np.uint8), format="rgb24")))
        film.mux(stream.encode())
    assert fetch_video({"video": path, "max_pixels": limit}).shape == (4, 3, *size)


def test_metadata_of_videos(films: Path) -> None:
    item = {"video": str(films / "50_12.mp4"), "video_start": 1.0}
    _, videos = process_vision_info(user(item), return_video_metadata=True)
    video, metadata = videos[0]
    assert video.shape == (6, 3, 280, 392)
    assert metadata["frames_indices"] == [12, 19, 27, 34, 42, 49]
    assert metadata["fps"] == pytest.approx(12)
    assert metadata["total_num_frames"] == 38


@pytest.mark.feature(67, 68)
def test_a_list_of_frames_is_a_list_of_pictures(tmp_path: Path) -> None:
    """As in the package: each frame is sized like a picture, and an odd number is filled up with the last."""
    path = tmp_path / "a.png"
    path.write_bytes(encoded(wave(640, 428)))
    item = {"type": "video", "video": [str(path), wave(640, 428), path.as_uri()], "max_pixels": 50176, "fps": 1.5}
    images, videos, more = process_vision_info(user(item), return_video_kwargs=True)
    assert (images, more) == (None, {"fps": [1.5]})
    assert [frame.size for frame in videos[0]] == [(252, 168)] * 4
    assert videos[0][3] is videos[0][2]
    expected = np.asarray(wave(640, 428).resize((252, 168)))
    assert all(np.array_equal(np.asarray(frame), expected) for frame in videos[0])
    assert fetch_video({"video": [wave(56, 56)] * 2}, return_video_sample_fps=True)[1] == 2.0
    (_, metadata), rate = fetch_video({"video": [wave(56, 56)], "sample_fps": 4}, 28, True, True)
    assert (rate, metadata) == (4.0, {"fps": 4.0, "frames_indices": [0, 1], "total_num_frames": 2})


@pytest.mark.feature(61, 67, 68)
def test_the_processor_takes_what_comes_out(films: Path) -> None:
    """The documented program: template, process_vision_info, processor with **video_kwargs; real times survive."""
    processor = qwenvl.AutoProcessor.from_pretrained("demo")
    film = {"type": "video", "video": str(films / "60_30000-1001.mp4"), "fps": 4, "max_pixels": 50176}
    for items in ([film, {"type": "image", "image": wave(56, 56)}, {"type": "text", "text": "What?"}], ["Hello"]):
        talk = user(*items)
        text = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        images, videos, more = process_vision_info(talk, return_video_kwargs=True)
        inputs = processor(text=[text], images=images, videos=videos, padding=True, return_tensors="pt", **more)
        if videos is None:
            assert "pixel_values_videos" not in inputs
            continue
        assert inputs["second_per_grid_ts"].tolist() == pytest.approx([2 / more["fps"][0]])
        assert inputs.video_times == [videos[0].frame_times]


def test_importing_the_interface_imports_no_torch() -> None:
    program = "import sys, qwenvl; qwenvl.process_vision_info, qwenvl.fetch_video; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout == "False\n"


def test_the_documented_names_are_at_the_top() -> None:
    for name in ("process_vision_info", "extract_vision_info", "fetch_image", "fetch_video", "smart_nframes",
                 "smart_resize", "MediaPolicy", "MediaError", "Video", "VideoOptions", "read_video"):  # fmt: skip
        assert name in qwenvl.__all__
        assert callable(getattr(qwenvl, name))
