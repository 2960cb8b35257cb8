"""Videos: every container, real times, bounds, and files that mean harm."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from video_files import grey, seen, write_video

from qwenvl.media import MediaError, MediaPolicy, video_process
from qwenvl.media.video_pyav import PyAVReader
from qwenvl.media.videos import Video, VideoOptions, read_video

HERE = MediaPolicy(isolate_videos=False)  # without the cost of a process, where that is not the point
SMALL = {"min_pixels": 28 * 28, "max_pixels": 56 * 84}
CONTAINERS = [
    ("mp4", "libx264", "yuv420p"),
    ("mov", "libx264", "yuv420p"),
    ("mkv", "libx264", "yuv420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("webm", "libvpx", "yuv420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("wmv", "wmv2", "yuv420p"),
    ("flv", "flv", "yuv420p"),
    ("mpg", "mpeg2video", "yuv420p"),
    ("ts", "libx264", "yuv420p"),
    ("avi", "mjpeg", "yuvj420p"),
    ("avi", "libx264", "yuv420p"),  # without times of its own for frames that are reordered
    ("h264", "libx264", "yuv420p"),  # without any
    ("gif", "gif", "rgb8"),
    ("mp4", "libx265", "yuv420p"),
]


def read(source: Any, policy: MediaPolicy = HERE, **options: Any) -> Video:
    return read_video(source, VideoOptions(**(SMALL | options)), policy)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames at 10 a second, with B-frames and a keyframe every 12."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", options={"g": "12", "bf": "2", "crf": "10"})


@pytest.mark.feature(56)
@pytest.mark.parametrize(("kind", "codec", "pixels"), CONTAINERS)
def test_every_container(tmp_path: Path, kind: str, codec: str, pixels: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    options = {"libvpx": {"deadline": "realtime", "crf": "4", "b": "2M"}, "libx265": {"x265-params": "log-level=0"}}
    rate = 25 if kind in ("mpg", "h264") else 10
    path = write_video(tmp_path / f"a.{kind}", codec, rate=rate, pixels=pixels, options=options.get(codec))
    video = read(path, nframes=8)
    assert video.frames.shape == (8, 56, 56, 3)
    assert video.frames.dtype == np.uint8
    assert video.indices == (0, 4, 8, 12, 17, 21, 25, 29)
    assert seen(video.frames) == list(video.indices)
    offsets = np.array(video.times) - video.times[0]
    assert offsets == pytest.approx(np.array(video.indices) / rate, abs=0.002)
    assert video.fps == pytest.approx(8 / 30 * rate, rel=0.01)
    assert video.duration == pytest.approx(30 / rate, rel=0.02)
    assert (video.width, video.height) == (64, 48)


@pytest.mark.feature(56, 72)
def test_every_kind_of_source(clip: Path) -> None:
    data = clip.read_bytes()
    sources = (clip, str(clip), f"file://{clip}", data, "data:video/mp4;base64," + base64.b64encode(data).decode())
    first = read(sources[0], nframes=4)
    for source in sources[1:]:
        again = read(source, nframes=4)
        assert (again.frames == first.frames).all()
        assert again.times == first.times


@pytest.mark.feature(56, 72)
def test_address(clip: Path) -> None:
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(clip.parent))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            policy = MediaPolicy(allow_private=True, isolate_videos=False)
            video = read(f"http://127.0.0.1:{server.server_port}/clip.mp4", policy, nframes=4)
        finally:
            server.shutdown()
            thread.join()
    assert seen(video.frames) == [0, 10, 19, 29]


@pytest.mark.feature(71)
def test_list_of_frames(tmp_path: Path) -> None:
    pictures = [Image.fromarray(grey(i, 48, 64)) for i in range(5)]
    path = tmp_path / "frame.png"
    pictures[1].save(path)
    frames = [pictures[0], str(path), np.asarray(pictures[2]), [path.read_bytes(), pictures[4]]]
    video = read([*frames[:3], pictures[3], pictures[4]], fps=4)
    assert seen(video.frames) == [0, 1, 2, 3, 4, 4]  # the last one again: an even number
    assert video.times == (0, 0.25, 0.5, 0.75, 1.0, 1.25)
    assert video.fps == 4
    assert seen(read(frames).frames) == [0, 1, 2, 1, 4, 4]  # lists within the list
    assert read(frames).fps == 2
    assert read(frames, fps=4, sample_fps=0.5).times[1] == 2.0


@pytest.mark.feature(71)
def test_sizes_of_listed_frames() -> None:
    wide, tall = Image.new("RGB", (64, 48)), Image.new("RGB", (20, 64))
    with pytest.raises(MediaError, match=r"frame 1 has 20 x 64 pixels, frame 0 has 64 x 48"):
        read([wide, tall])
    assert read([wide, tall], resized_height=56, resized_width=84).frames.shape == (2, 56, 84, 3)
    assert read_video([wide, wide]).frames.shape == (2, 336, 336, 3)  # 64 x 48 -> 56 x 56 as a picture, then a frame
    assert read([wide, wide], resize=False).frames.shape == (2, 48, 64, 3)
    with pytest.raises(MediaError, match="empty"):
        read([])
    with pytest.warns(UserWarning, match="nframes without effect"):
        read([wide, wide], nframes=2)


def test_a_file_object_is_no_tensor() -> None:
    with pytest.raises(ValueError, match="BytesIO cannot be read"):
        read_video(io.BytesIO(b"film"))  # it has detach() too


def test_arrays_and_tensors() -> None:
    frames = np.stack([grey(i, 48, 64) for i in range(3)])
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    expected = read(frames)
    assert seen(expected.frames) == [0, 1, 2, 2]
    for source in (tensor, tensor.float(), frames.astype(np.float64), frames.transpose(0, 3, 1, 2)):
        assert (read(source).frames == expected.frames).all()
    assert (read(list(tensor)).frames[0] == expected.frames[0]).all()
    for bad in (frames[0], frames[..., :2], frames[:0], frames.astype(np.int64), frames / 255.0, 7):
        with pytest.raises(MediaError, match="expected"):
            read(bad)


@pytest.mark.feature(57, 76)
def test_sampling_options(clip: Path) -> None:
    assert seen(read(clip).frames) == [0, 6, 12, 17, 23, 29]  # 3 s at 2 a second
    assert read(clip).fps == pytest.approx(2.0)
    assert seen(read(clip, fps=1, min_frames=2).frames) == [0, 29]
    part = read(clip, video_start=1.0, video_end=2.0, nframes=4)
    assert part.indices == (10, 13, 17, 20)
    assert seen(part.frames) == [10, 13, 17, 20]
    assert part.times == pytest.approx((1.0, 1.3, 1.7, 2.0))
    assert part.fps == pytest.approx(4 / 11 * 10)
    assert part.duration == pytest.approx(3.0)
    assert read_video(clip, VideoOptions(resized_height=60, resized_width=80), HERE).frames.shape[1:] == (56, 84, 3)
    assert read(clip, resize=False).frames.shape[1:] == (48, 64, 3)
    with pytest.warns(UserWarning, match="max_pixels=700000 of a video is above the limit of 602112"):
        read(clip, max_pixels=700000)
    for options in ({"fps": 1, "nframes": 4}, {"nframes": 40}, {"video_start": 9.0}):
        with pytest.raises(MediaError, match=r"clip\.mp4"):
            read(clip, **options)


@pytest.mark.feature(76)
def test_variable_frame_rate(tmp_path: Path) -> None:
    pts = [0, 100, 200, 300, 1300, 2300, 3300, 3400, 3500, 8000]
    for kind in ("mp4", "mkv"):
        video = read(write_video(tmp_path / f"v.{kind}", number=10, pts=pts, options={"bf": "2"}), nframes=10)
        assert video.times == pytest.approx([p / 1000 for p in pts], abs=0.002)
        assert seen(video.frames) == list(range(10))
        mean = 8.0 / 9  # seconds from frame to frame
        assert video.fps == pytest.approx(1 / mean, rel=0.01)
    assert read(tmp_path / "v.mp4", nframes=4, video_start=1.0, video_end=4.0).indices == (4, 5, 7, 8)


def test_times_begin_where_the_file_begins(tmp_path: Path) -> None:
    late = [5000 + 100 * i for i in range(12)]
    for kind in ("mkv", "ts"):
        video = read(write_video(tmp_path / f"late.{kind}", number=12, pts=late), nframes=12)
        assert video.times == pytest.approx([0.1 * i for i in range(12)], abs=0.002)


def test_frame_count_missing_in_the_header(tmp_path: Path) -> None:
    """As browsers write webm: no duration, no index, no count."""
    path = write_video(tmp_path / "live.mkv", container={"live": "1"}, options={"g": "6"})
    with av.open(str(path)) as file:
        assert file.duration is None
        assert file.streams.video[0].frames == 0
    video = read(path, nframes=8)
    assert seen(video.frames) == list(video.indices) == [0, 4, 8, 12, 17, 21, 25, 29]
    assert video.duration == pytest.approx(3.0)


def test_sparse_frames_are_the_dense_ones(tmp_path: Path) -> None:
    """Seeking and skipping packets changes no pixel."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (80, 200, 3), np.uint8)
    pictures = [np.ascontiguousarray(noise[:48, i : i + 64]) for i in range(100)]
    path = write_video(tmp_path / "n.mp4", pictures=pictures, options={"g": "30", "bf": "3", "b-pyramid": "normal"})
    with av.open(str(path)) as file:
        every = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    for wanted in ((0, 99), (5, 6, 7, 50, 98), (29, 30, 31), tuple(range(0, 100, 7))):
        reader = PyAVReader(path, "n.mp4", 10**6)
        for i, (seconds, frame) in zip(wanted, reader.frames(wanted), strict=True):
            assert (frame == every[i]).all()
            assert seconds == pytest.approx(i / 10)
        reader.close()


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The display matrix of an mp4's track written by hand: x' = a x + c y, y' = b x + d y."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix stands after 40 bytes
    a, b, c, d = (value * 65536 for value in matrix)
    words = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    data[at : at + 36] = b"".join(word.to_bytes(4, "big", signed=True) for word in words)
    path.write_bytes(data)
    return path


@pytest.mark.feature(56)
def test_phone_videos_are_upright(tmp_path: Path) -> None:
    red, blue = (220, 30, 30), (30, 30, 220)
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = red, blue
    for matrix, first in (((0, 1, -1, 0), red), ((0, -1, 1, 0), blue)):  # a quarter right, a quarter left
        path = turned(write_video(tmp_path / "phone.mp4", pictures=[picture] * 4), matrix)
        video = read(path, nframes=2, resize=False)
        assert (video.width, video.height) == (48, 64)
        assert video.frames.shape == (2, 64, 48, 3)
        assert np.abs(video.frames[0, 10, 24].astype(int) - first).max() < 30
    path = turned(write_video(tmp_path / "down.mp4", pictures=[picture] * 4), (-1, 0, 0, -1))
    assert read(path, nframes=2, resize=False).frames[0, 24, 10, 2] > 150


@pytest.mark.parametrize(
    ("kind", "codec", "pixels", "size"),
    [
        ("mkv", "ffv1", "gray", (48, 64)),
        ("mkv", "ffv1", "gray16le", (48, 64)),
        ("mkv", "ffv1", "yuv420p10le", (48, 64)),
        ("mkv", "ffv1", "yuv444p", (47, 63)),
        ("mkv", "ffv1", "yuv420p", (47, 63)),
        ("mov", "prores_ks", "yuv422p10le", (48, 64)),
        ("mp4", "libx264", "yuv444p", (47, 63)),
    ],
)
def test_pixel_formats_and_odd_sizes(tmp_path: Path, kind: str, codec: str, pixels: str, size: tuple[int, int]) -> None:
    path = write_video(tmp_path / f"p.{kind}", codec, number=20, size=size, pixels=pixels)
    video = read(path, nframes=4, resize=False)
    assert video.frames.shape == (4, *size, 3)
    assert seen(video.frames) == [0, 6, 13, 19]


def test_transparency_is_white(tmp_path: Path) -> None:
    clear = np.zeros((48, 64, 4), np.uint8)
    clear[:, 32:] = (200, 0, 0, 255)
    path = write_video(tmp_path / "a.mkv", "ffv1", pictures=[clear] * 4, pixels="bgra", source="rgba")
    frame = read(path, nframes=2, resize=False).frames[0]
    assert tuple(frame[24, 10]) == (255, 255, 255)
    assert tuple(frame[24, 50]) == (200, 0, 0)


# Bounds, and files that mean harm


def test_another_process_gives_the_same(clip: Path) -> None:
    here, apart = read(clip, nframes=6), read(clip, MediaPolicy(), nframes=6)
    assert (here.frames == apart.frames).all()
    assert here.times == apart.times
    assert (here.indices, here.fps, here.duration) == (apart.indices, apart.fps, apart.duration)
    with pytest.raises(MediaError, match=r"clip\.mp4: nframes should be"):
        read(clip, MediaPolicy(), nframes=400)


def test_the_process_imports_no_torch() -> None:
    code = "import sys, qwenvl.media.video_process, qwenvl.media.video_pyav; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("policy", [HERE, MediaPolicy()], ids=["here", "apart"])
def test_files_that_are_no_videos(tmp_path: Path, policy: MediaPolicy) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    for data in (b"", b"\0" * 5000, bytes(range(256)) * 40, playlist, b"ffconcat version 1.0\nfile '/etc/passwd'\n"):
        (tmp_path / "bad.mp4").write_bytes(data)
        with pytest.raises(MediaError, match=r"bad\.mp4"):
            read(tmp_path / "bad.mp4", policy)


def test_names_that_are_no_files(tmp_path: Path) -> None:
    for name in ("", str(tmp_path), str(tmp_path / "missing.mp4"), "ftp://host/a.mp4"):
        with pytest.raises(MediaError):
            read(name)
    os.mkfifo(tmp_path / "endless.mp4")
    with pytest.raises(MediaError, match="no regular file"):
        read(tmp_path / "endless.mp4")


def test_sound_alone(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "s.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(MediaError, match="no pictures"):
        read(tmp_path / "s.mp4")


def test_a_single_frame(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="single frame"):
        read(write_video(tmp_path / "one.mp4", number=1))


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.95])
def test_cut_off(tmp_path: Path, keep: float) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(30)]
    path = write_video(tmp_path / "cut.mp4", pictures=pictures, container={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(MediaError, match=r"cut\.mp4"):
        read(path)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm", "avi", "ts"])
def test_damage_never_harms_the_caller(tmp_path: Path, kind: str) -> None:
    """Bytes changed at random: a video or a MediaError, in this process and without a crash."""
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(kind, "libx264")
    good = write_video(tmp_path / f"g.{kind}", codec, number=12).read_bytes()
    rng = np.random.default_rng(1)
    worked = 0
    for _ in range(12):
        data = np.frombuffer(good, np.uint8).copy()
        data[rng.integers(0, len(data), 12)] = rng.integers(0, 256, 12)
        with warnings.catch_warnings(action="ignore"):
            try:
                worked += read(data.tobytes(), nframes=4).frames.shape[0] == 4
            except MediaError:
                continue
    assert worked <= 12


def test_damaged_frames_are_replaced_with_a_warning(tmp_path: Path) -> None:
    path = write_video(tmp_path / "d.mkv", "mjpeg", pixels="yuvj420p")
    data = bytearray(path.read_bytes())
    begin = [i for i in range(len(data) - 1) if data[i : i + 2] == b"\xff\xd8"]
    data[begin[10] : begin[10] + 200] = b"\0" * 200
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"d\.mkv is damaged: 1 of 30 frames"):
        video = read(path, nframes=30)
    assert seen(video.frames)[8:13] == [8, 9, 9, 11, 12]
    for i in begin[4:25]:
        data[i : i + 200] = b"\0" * 200
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"is damaged: 21 of 30 frames"):
        read(path, nframes=30)


def test_huge_claims(tmp_path: Path) -> None:
    path = write_video(tmp_path / "big.mp4", number=4, size=(480, 640))
    with pytest.raises(MediaError, match="640 x 480 = 307200 pixels, the limit is 1000"):
        read(path, MediaPolicy(max_pixels=1000, isolate_videos=False))
    with pytest.raises(MediaError, match=r"take 3686400 bytes, the limit is 1000000"):
        read(path, MediaPolicy(decode_memory=10**6, isolate_videos=False), nframes=4, resize=False)
    hours = [0, 1000, 3_600_000 * 900]  # a frame after 900 hours
    video = read(write_video(tmp_path / "long.mkv", number=3, pts=hours))
    assert video.frames.shape[0] == 2
    assert video.times == (0.0, 3_240_000.0)


def stuck(clip: Path, monkeypatch: pytest.MonkeyPatch, code: str, **policy: Any) -> tuple[str, float]:
    """The message and the seconds when the decoding process runs `code` instead."""
    monkeypatch.setattr(video_process, "BOOT", code)
    begin = time.monotonic()
    with pytest.raises(MediaError) as caught:
        read(clip, MediaPolicy(**policy))
    return str(caught.value), time.monotonic() - begin


def test_a_decoder_that_hangs(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message, seconds = stuck(clip, monkeypatch, "while True: pass", decode_timeout=0.5)
    assert "longer than the limit of 0.5 s" in message
    assert seconds < 5


def test_a_decoder_that_crashes(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message, _ = stuck(clip, monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert "crashed (signal 11)" in message
    assert "oops" in stuck(clip, monkeypatch, "import sys; sys.exit('oops')")[0]
    assert "failed" in stuck(clip, monkeypatch, "print('P{not json')")[0]


def test_a_decoder_that_wants_too_much_memory(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of the process itself, with a reader that asks for all there is."""
    code = video_process.BOOT.replace(
        "v.main()", "C = v.Clip; v.Clip = lambda request: (bytearray(6 * 2**30), C(request))[1]; v.main()"
    )
    message, _ = stuck(clip, monkeypatch, code, decode_memory=2**30)
    assert "takes more memory than is allowed" in message


def test_no_process_is_left(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when the caller is interrupted nor when it waits no more."""
    made: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def kept(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        made.append(start(*args, **kwargs))
        return made[-1]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", kept)
    monkeypatch.setattr(video_process, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(clip, MediaPolicy())
    assert made[0].returncode is not None


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Decoding 120 frames of 1280 x 720 (316 MiB in RGB) to 8 small ones stays far below holding them."""
    path = write_video(tmp_path / "m.mp4", number=30, size=(720, 1280), options={"preset": "ultrafast"})
    code = (
        "import resource, sys; from qwenvl.media import MediaPolicy; from qwenvl.media.videos import *;"
        "import av; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "read_video(sys.argv[1], VideoOptions(nframes=30, max_pixels=100352), MediaPolicy(isolate_videos=False));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert int(result.stdout) < 60 * 1024, result.stderr  # KiB; 30 frames in RGB are 79 MiB


# Other libraries


@pytest.fixture
def fake_decord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module named decord of which a test writes the body."""
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setenv("FORCE_QWENVL_VIDEO_READER", "decord")
    (tmp_path / "modules").mkdir()
    yield tmp_path / "modules" / "decord.py"
    sys.modules.pop("decord", None)


@pytest.mark.feature(69)
def test_the_environment_chooses(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyav", "torchvision", ""):
        monkeypatch.setenv("FORCE_QWENVL_VIDEO_READER", name)
        assert seen(read(clip, nframes=4).frames) == [0, 10, 19, 29]
    monkeypatch.setenv("FORCE_QWENVL_VIDEO_READER", "ffmpeg")
    with pytest.raises(ValueError, match="'ffmpeg': expected one of torchcodec, decord, torchvision, pyav"):
        read(clip)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("FORCE_QWENVL_VIDEO_READER", "torchcodec")
    with pytest.raises(ValueError, match="torchcodec is not installed: pip install torchcodec"):
        read(clip)


FAKE = """
import numpy as np
class Frame:
    def __init__(self, i): self.shape, self.i = (48, 64, 3), i
    def asnumpy(self): return np.full(self.shape, 8 * self.i + 100, np.uint8)
class VideoReader:
    def __init__(self, path, num_threads=0): pass
    def __len__(self): return 16
    def __getitem__(self, i): return Frame(i)
    def get_avg_fps(self): return 8.0
    def get_frame_timestamp(self, indices): return np.stack([indices / 8, (indices + 1) / 8], 1)
"""


@pytest.mark.feature(69)
def test_decord_is_asked(clip: Path, fake_decord: Path) -> None:
    fake_decord.write_text(FAKE)
    video = read(clip, MediaPolicy(), nframes=4)
    assert [int(frame.mean()) for frame in video.frames] == [100, 140, 180, 220]
    assert video.times == (0.0, 0.625, 1.25, 1.875)


@pytest.mark.feature(69)
@pytest.mark.parametrize("where", ["def __init__(self, path, num_threads=0): raise RuntimeError('no good')", "frame"])
def test_a_library_that_fails_is_replaced(clip: Path, fake_decord: Path, where: str) -> None:
    body = FAKE.replace("def __init__(self, path, num_threads=0): pass", where) if where != "frame" else FAKE
    if where == "frame":
        body = body.replace(
            "return Frame(i)", "\n        if i > 3: raise RuntimeError('no good')\n        return Frame(i)"
        )
    fake_decord.write_text(body)
    with pytest.warns(UserWarning, match=r"decord could not read .*clip\.mp4 \(no good\): PyAV reads it instead"):
        video = read(clip, MediaPolicy(), nframes=4)
    assert seen(video.frames)[-1] == (29 if where != "frame" else 15)


@pytest.mark.feature(69)
def test_a_library_that_crashes_is_replaced(clip: Path, fake_decord: Path) -> None:
    fake_decord.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    with pytest.warns(UserWarning, match="decord could not read"):
        video = read(clip, MediaPolicy(), nframes=4)
    assert seen(video.frames) == [0, 10, 19, 29]


@pytest.mark.feature(69)
def test_the_real_decord(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("decord")
    monkeypatch.setenv("FORCE_QWENVL_VIDEO_READER", "decord")
    video = read(clip, MediaPolicy(), nframes=8)
    assert seen(video.frames) == list(video.indices) == [0, 4, 8, 12, 17, 21, 25, 29]
