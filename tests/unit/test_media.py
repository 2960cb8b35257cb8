"""Media: pictures from everywhere come out upright, in RGB, on white; bad ones are one clear line."""

from __future__ import annotations

import base64
import io
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwenvl.media import MediaError, MediaPolicy, load_image, smart_resize
from qwenvl.media.pixels import resize_rgb

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def two_tone(mode: str = "RGB") -> Image.Image:
    """30 wide, 20 high: left half red, right half blue."""
    image = Image.new("RGB", (30, 20), RED)
    image.paste(BLUE, (15, 0, 30, 20))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int, pixels: bytes = bytes(100_000)) -> bytes:
    """A PNG that says how large it is, holds the first pixels and then ends."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(pixels))


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "a picture #1%20.png"
    path.write_bytes(encoded(two_tone()))
    return path


def _plain(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.feature(55)
@pytest.mark.parametrize(
    "source",
    [
        lambda path: path,
        lambda path: str(path),
        lambda path: path.as_uri(),
        lambda path: path.as_uri().replace("file://", "file://localhost"),
        lambda path: f"file://{path}",
        lambda path: path.read_bytes(),
        lambda path: bytearray(path.read_bytes()),
        lambda path: _plain(path.read_bytes()),
        lambda path: _plain(path.read_bytes(), "image"),
        lambda path: "data:image/png;base64," + base64.encodebytes(path.read_bytes()).decode(),
        lambda path: Image.open(path),
        lambda path: np.asarray(Image.open(path)),
    ],
    ids=[
        "path",
        "str",
        "file",
        "file-localhost",
        "file-raw",
        "bytes",
        "bytearray",
        "data",
        "data-short",
        "data-lines",
        "pil",
        "array",
    ],
)
def test_every_source_gives_the_same_picture(png: Path, source: Callable[[Path], Any]) -> None:
    image = load_image(source(png))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(two_tone()))


def test_the_picture_given_is_not_changed(png: Path) -> None:
    given_picture = two_tone()
    load_image(given_picture).paste(WHITE, (0, 0, 30, 20))
    assert given_picture.getpixel((0, 0)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(two_tone(), "PNG", exif=exif)
    image = load_image(data)
    turned = orientation >= 5
    assert image.size == ((20, 30) if turned else (30, 20))
    first = RED if orientation in (1, 4, 5, 6) else BLUE
    assert image.getpixel((0, 0)) == first
    assert np.array_equal(np.asarray(load_image(image)), np.asarray(image))


def test_damaged_exif_leaves_the_picture_as_it_is() -> None:
    image = load_image(encoded(two_tone(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff"))
    assert image.size == (30, 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_transparent_pixels_become_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0)).convert(mode if mode != "PA" else "P").convert(mode)
    image.putalpha(0)
    assert load_image(image).getcolors() == [(16, WHITE)]


def test_half_transparent_is_mixed_with_white() -> None:
    mixed = load_image(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0))
    assert mixed == (255, 127, 127)


def test_a_transparent_palette_entry_and_a_transparent_colour_become_white() -> None:
    palette = two_tone("P")
    index = palette.getpixel((0, 0))
    assert load_image(encoded(palette, transparency=index)).getpixel((0, 0)) == WHITE
    colour_key = encoded(two_tone(), transparency=RED)
    assert load_image(colour_key).getpixel((0, 0)) == WHITE
    assert load_image(colour_key).getpixel((29, 0)) == BLUE


def test_a_palette_with_alpha_and_a_transparent_grey_become_white() -> None:
    palette = Image.new("RGBA", (2, 2), (1, 2, 3, 0)).quantize(4)
    assert palette.palette is not None
    assert palette.palette.mode == "RGBA"
    assert load_image(palette).getpixel((0, 0)) == WHITE
    for grey in (Image.new("L", (2, 1)), Image.new("1", (2, 1)), Image.fromarray(np.zeros((1, 2), np.uint16))):
        grey.putpixel((1, 0), 1 if grey.mode == "1" else 100)
        image = load_image(encoded(grey, transparency=0))
        assert image.getpixel((0, 0)) == WHITE
        assert image.getpixel((1, 0)) == {"L": (100,) * 3, "1": WHITE}.get(grey.mode, (0, 0, 0))


def test_sixteen_bits_of_grey_become_eight() -> None:
    grey = np.array([[0, 0x8000, 0xFFFF]], np.uint16)
    picture = Image.fromarray(grey)
    for source in (picture, encoded(picture), encoded(picture, "TIFF"), Image.fromarray(grey.astype(np.int32))):
        assert np.asarray(load_image(source))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_converted(mode: str) -> None:
    image = load_image(two_tone(mode))
    assert (image.mode, image.size) == ("RGB", (30, 20))


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_other_formats_are_read(kind: str) -> None:
    image = load_image(encoded(two_tone(), kind))
    left, right = image.getpixel((3, 10)), image.getpixel((26, 10))
    assert left[0] > 200 > 60 > left[2]
    assert right[2] > 200 > 60 > right[0]


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data).getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"", "empty"),
        (b"this is text", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
        (encoded(two_tone(), "JPEG")[:-40], "cut off"),
        (encoded(two_tone())[:60], "cut off"),
        (png_header(3000, 3000), "cut off"),
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:image/png,abc", "base64"),
        ("ftp://example.org/a.png", "expected a path"),
        ("nowhere.png", "does not exist"),
        ("x" * 5000, "cannot be read"),
        ("file:///" + "x" * 5000, "cannot be read"),
        ("", "empty"),
        ("a\nb.png", "does not exist"),
        ("a\0b.png", "does not exist"),
        ("file://elsewhere/a.png", "another machine"),
        ("file:a.png", "not absolute"),
        ("http://", "no host"),
        ("http://[::1", "could not be fetched"),
        ("http://nobody.invalid/a\nb", "could not be fetched|not known"),
        (np.zeros((0, 4, 3), np.uint8), "4 x 0"),
        ("/dev/null", "no regular file"),
        (17, "int"),
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
    ],
)
def test_a_bad_source_is_one_clear_line(source: Any, says: str) -> None:
    with pytest.raises(MediaError, match=says) as found:
        load_image(source)
    message = str(found.value)
    assert "\n" not in message
    assert len(message) < 300


def test_damaged_files_are_one_line_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    draws = random.Random(0)
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 15, 3), np.uint8))
    whole = [encoded(noisy, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA")]
    messages = []
    for _ in range(400):
        data = bytearray(draws.choice(whole))
        for _ in range(draws.randint(1, 6)):
            data[draws.randrange(min(len(data), draws.choice([30, 100, 10_000])))] = draws.randrange(256)
        data = data[: draws.randrange(len(data))] if draws.random() < 0.3 else data
        try:
            load_image(data, MediaPolicy(max_pixels=10**6))
        except MediaError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)
    assert not recwarn.list


def test_files_that_are_no_pictures_are_named(tmp_path: Path) -> None:
    text = tmp_path / "letter.png"
    text.write_text("Dear all")
    for path, says in ((text, "not a picture"), (tmp_path, "folder")):
        with pytest.raises(MediaError, match=says) as found:
            load_image(path)
        assert str(path) in str(found.value)


BOMB = """
import re, sys
from qwenvl.media import MediaError, load_image
try:
    load_image(sys.argv[1])
except MediaError as error:
    peak = re.search("VmHWM: *(\\d+) kB", open("/proc/self/status").read().replace("\\t", ""))
    print(int(peak[1]) // 1024, error)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_bomb_is_seen_in_the_header(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_header(30_000, 30_000, bytes(2**20)))
    assert bomb.stat().st_size < 5000
    started = time.perf_counter()
    told = subprocess.run([sys.executable, "-c", BOMB, bomb], capture_output=True, text=True, check=True, timeout=60)
    seconds = time.perf_counter() - started
    mebibytes, _, message = told.stdout.partition(" ")
    assert message == f"{bomb} has more pixels than the limit of 178956970: make it smaller\n"
    assert told.stderr == ""
    assert int(mebibytes) < 300  # decoded it has 2.7 GB
    assert seconds < 10  # 0.3 s alone; the bound of 2 s, with room for a busy machine


def test_the_policy_is_kept(png: Path) -> None:
    for source in (png, two_tone(), np.asarray(two_tone())):
        with pytest.raises(MediaError, match="600 pixels, the limit is 599"):
            load_image(source, MediaPolicy(max_pixels=599))
    with pytest.raises(MediaError, match="not allowed"):
        load_image(png, MediaPolicy(allow_files=False))
    with pytest.raises(MediaError, match="not allowed"):
        load_image(png.as_uri(), MediaPolicy(allow_files=False))
    for source in (png, _plain(png.read_bytes())):
        with pytest.raises(MediaError, match="the limit is 10"):
            load_image(source, MediaPolicy(max_bytes=10))


@pytest.mark.feature(24, 74, 75)
@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ((1080, 2400), (1092, 2408)), ((720, 1280), (728, 1288)), ((640, 428), (644, 420)),
        ((870, 1398), (868, 1400)), ((1014, 1532), (1008, 1540)), ((368, 434), (364, 448)),
        ((1920, 1080), (1932, 1092)), ((3840, 2160), (3836, 2156)), ((3000, 4000), (2996, 4004)), ((10, 10), (56, 56)),
    ],
)  # fmt: skip
def test_smart_resize_gives_the_published_sizes(given: tuple[int, int], seen: tuple[int, int]) -> None:
    assert smart_resize(given[1], given[0], max_pixels=16384 * 784) == (seen[1], seen[0])


@pytest.mark.feature(73)
def test_smart_resize_under_a_smaller_limit() -> None:
    assert smart_resize(1080, 1920, max_pixels=1280 * 784) == (728, 1316)


@pytest.mark.feature(73, 75)
@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([3136, 50176]), st.sampled_from([50176, 1003520]))
def test_smart_resize_keeps_its_limits(height: int, width: int, low: int, high: int) -> None:
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match=f"{width} x {height}.*200"):
            smart_resize(height, width, min_pixels=low, max_pixels=high)
        return
    h, w = smart_resize(height, width, min_pixels=low, max_pixels=high)
    assert h % 28 == 0
    assert w % 28 == 0
    assert h * w >= min(low, high - 28 * (h + w + 56))
    assert h * w <= high or min(h, w) == 28 or low == high
    assert smart_resize(width, height, min_pixels=low, max_pixels=high) == (w, h)


@pytest.mark.parametrize("sizes", [(1, 5000), (5000, 1), (0, 10)])
def test_smart_resize_refuses_what_has_no_shape(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{sizes[1]} x {sizes[0]}"):
        smart_resize(*sizes)


def test_smart_resize_refuses_limits_in_the_wrong_order() -> None:
    with pytest.raises(ValueError, match="min_pixels=9000 is above max_pixels=8000"):
        smart_resize(100, 100, min_pixels=9000, max_pixels=8000)


def test_resize_is_pillows_and_leaves_the_right_size_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (57, 91, 3), np.uint8)
    expected = Image.fromarray(pixels).resize((84, 56), Image.Resampling.BICUBIC)
    assert np.array_equal(resize_rgb(pixels, 56, 84).numpy(), np.asarray(expected))
    assert np.array_equal(resize_rgb(Image.fromarray(pixels), 56, 84).numpy(), np.asarray(expected))
    for fast in (False, True):
        assert np.array_equal(resize_rgb(pixels, 57, 91, fast).numpy(), pixels)
        assert resize_rgb(pixels, 56, 84, fast).shape == (56, 84, 3)
