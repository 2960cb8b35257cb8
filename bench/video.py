"""How long it takes to sample a one-hour 1080p file to 768 frames, and how much memory.

    python bench/video.py [--frames 768] [--hours 1] [--peer PYTHON] [--rounds 1]

The file is made once and kept in the temporary folder: ten seconds of H.264 at 25 frames a second, repeated. Each
reader runs in a fresh process; its peak memory is counted with the processes that it starts, from a bare interpreter
with numpy as zero. --peer names a Python that has qwen-vl-utils and decord; the two functions that qwen-vl-utils takes
from torchvision are replaced by torch's own where torchvision is missing (on bytes, which is quicker and smaller than
torchvision's detour through floats).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

RATE, SECONDS, WIDTH, HEIGHT = 25, 10, 1920, 1080
MIB = 2**20

OURS = """
import json, sys, time
import numpy
from qwenvl.media import MediaPolicy
from qwenvl.media.videos import VideoOptions, read_video
options, policy = VideoOptions(nframes={frames}), MediaPolicy(isolate_videos={apart})
print("ready", flush=True); sys.stdin.readline()
start = time.perf_counter()
video = read_video({path!r}, options, policy)
print(json.dumps([time.perf_counter() - start, list(video.frames.shape), video.fps]), flush=True); sys.stdin.readline()
"""

PEER = """
import importlib.machinery, json, sys, time, types
import numpy, torch
try:
    import torchvision
except ImportError:
    def resize(video, size, interpolation=None, antialias=True):
        return torch.nn.functional.interpolate(video, size, mode="bicubic", antialias=antialias)
    def module(name, **names):
        made = types.ModuleType(name)
        made.__dict__.update(names, __spec__=importlib.machinery.ModuleSpec(name, None), __path__=[])
        sys.modules[name] = made
        return made
    functional = module("torchvision.transforms.functional", resize=resize)
    mode = types.SimpleNamespace(BICUBIC="bicubic")
    transforms = module("torchvision.transforms", functional=functional, InterpolationMode=mode)
    module("torchvision", transforms=transforms, io=module("torchvision.io"), __version__="0.20.0")
from qwen_vl_utils import fetch_video
print("ready", flush=True); sys.stdin.readline()
start = time.perf_counter()
video, fps = fetch_video({{"video": {path!r}, "nframes": {frames}}}, return_video_sample_fps=True)
print(json.dumps([time.perf_counter() - start, list(video.shape), fps]), flush=True); sys.stdin.readline()
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=768)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peer", help="a Python with qwen-vl-utils and decord")
    chosen = parser.parse_args()
    path = str(made_video(chosen.hours))
    size = os.path.getsize(path) / MIB
    print(
        f"{chosen.hours:g} h of {WIDTH} x {HEIGHT} H.264 at {RATE} frames a second, {size:.0f} MiB, to {chosen.frames}"
    )
    runs = {
        "qwenvl": (sys.executable, OURS.format(path=path, frames=chosen.frames, apart=True)),
        "qwenvl, same process": (sys.executable, OURS.format(path=path, frames=chosen.frames, apart=False)),
    }
    if chosen.peer:
        runs["qwen-vl-utils, decord"] = (chosen.peer, PEER.format(path=path, frames=chosen.frames))
    print(f"{'reader':<24}{'seconds':>9}{'CPU s':>8}{'peak MiB':>10}{'MiB of frames':>15}  frames")
    for _ in range(chosen.rounds):
        for name, (python, code) in runs.items():
            seconds, cpu, peak, shape, fps, room = run(python, code)
            print(
                f"{name:<24}{seconds:>9.1f}{cpu:>8.1f}{peak:>10.0f}{room:>15.0f}  {shape} at {fps:.4f} a second",
                flush=True,
            )


def made_video(hours: float) -> Path:
    """The file, made when it is not there: one closed group of pictures, its packets written again and again."""
    import av

    path = Path(tempfile.gettempdir()) / f"qwenvl-bench-{hours:g}h.mp4"
    if path.exists():
        return path
    short, part = path.with_suffix(".short.mp4"), path.with_suffix(".part.mp4")
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    options = {"preset": "veryfast", "crf": "28", "g": "250"} if codec == "libx264" else {"g": "250"}
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    with av.open(str(short), "w") as out:
        stream = out.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(RATE * SECONDS):
            flow = [(rows + 3 * i) // 6 % 256, (columns + 5 * i) // 8 % 256, (rows + columns - 4 * i) // 12 % 256]
            frame = np.stack(flow, -1).astype(np.uint8)
            x, y = 4 * i % (WIDTH - 400), 2 * i % (HEIGHT - 300)
            frame[y : y + 300, x : x + 400] = noise[:300, :400] // 2 + 60
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    with av.open(str(short)) as source, av.open(str(part), "w") as out:
        video = source.streams.video[0]
        target = out.add_stream_from_template(video)
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in source.demux(video) if p.size]
        once = int(SECONDS / video.time_base)
        for i in range(round(hours * 3600 / SECONDS)):
            for data, pts, dts, key in packets:
                packet = av.Packet(data)
                packet.stream, packet.time_base = target, video.time_base
                packet.pts, packet.dts, packet.is_keyframe = pts + i * once, dts + i * once, key
                out.mux(packet)
    short.unlink()
    return part.rename(path)


def run(python: str, code: str) -> tuple[float, float, float, list[int], float, float]:
    """(seconds, seconds of all cores with the start of the interpreter, peak MiB above the start, shape, frames a
    second, MiB of the frames themselves)."""
    used = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    process = subprocess.Popen(
        [python, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"{python} could not start its reader")
    before, peak, over = resident(process.pid), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    over.set()
    watcher.join()
    process.stdin.write("\n")
    process.stdin.close()
    process.wait()
    seconds, shape, fps = json.loads(answer)
    width = 4 if "torch" in code else 1
    cpu = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - used
    return seconds, cpu, peak[0] - before, shape, fps, float(np.prod(shape)) * width / MIB


def resident(pid: int) -> float:
    """MiB that a process and its children hold (Linux)."""
    total = 0.0
    for one in (pid, *children(pid)):
        try:
            pages = int(Path(f"/proc/{one}/statm").read_text().split()[1])
        except OSError:
            continue
        total += pages * os.sysconf("SC_PAGE_SIZE") / MIB
    return total


def children(pid: int) -> list[int]:
    try:
        found = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [below for child in found for below in (child, *children(child))]


if __name__ == "__main__":
    main()
