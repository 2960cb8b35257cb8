"""What `qwenvl plan` says beside what is measured: peak memory and seconds of an answer, for models of three sizes.

    python bench/plan.py [--folder FOLDER] [--models demo 300m 3b-slice] [--quantize none int8 int4] [--tokens 16]
                         [--cases picture pictures video] [--threads N] [--calibrate]

Checkpoints other than the bundled one are random and made once in FOLDER (3b-slice: 2.3 GB). Each row is a fresh
process that loads the model with an Assistant and asks twice, about other pictures of the same sizes: seconds are those
of the second answer, as the plan is for a model that has answered before, and so is the peak (VmHWM), for which all
mapped weights have been read then. Prompt lookup is off. The plan is made in another fresh process before. Linux only,
for the peak.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

QUESTION = "What is in the picture?"
CASES = {"picture": ((1024, 768),), "pictures": ((1024, 768), (640, 480)), "video": "video", "large": ((2048, 1536),)}
FRAMES, RATE, FRAME = 64, 8, (640, 360)  # of the video; 2 frames a second are taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "qwenvl-plan")
    parser.add_argument("--models", nargs="+", default=["demo", "300m", "3b-slice"])
    parser.add_argument("--quantize", nargs="+", default=["none", "int8", "int4"])
    parser.add_argument("--cases", nargs="+", default=["picture", "pictures", "video"], choices=list(CASES))
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch has them")
    parser.add_argument("--calibrate", action="store_true")
    given = parser.parse_args()
    head = (
        "model",
        "weights",
        "case",
        "peak MB",
        "said",
        "ratio",
        "first s",
        "said",
        "ratio",
        "token ms",
        "said",
        "ratio",
    )
    print("".join(f"{name:>10}" for name in head), flush=True)
    worst = {"peak": 0.0, "first_token": 0.0, "decode": 0.0, "total": 0.0}
    for name in given.models:
        model = model_folder(name, given.folder)
        for word in given.quantize:
            for case in given.cases:
                row = compare(model, None if word == "none" else word, case, given.folder, given)
                show(name, word, case, row)
                for figure in worst:
                    worst[figure] = max(worst[figure], abs(row[figure][1] / row[figure][0] - 1))
    print("largest difference: " + ", ".join(f"{name} {value:.0%}" for name, value in worst.items()))
    return 0


def model_folder(name: str, folder: Path) -> str:
    """The bundled model, a size of bench/checkpoint.py, or a folder."""
    if name == "demo" or Path(name).is_dir():
        return name
    from qwenvl.bench.checkpoint import checkpoint

    return str(checkpoint(name, folder))


def compare(model: str, word: str | None, case: str, folder: Path, given: Any) -> dict[str, tuple[float, float]]:
    """Figure -> (measured, said)."""
    files = [media(case, folder, round_) for round_ in range(2)]
    asked = {"model": model, "quantize": word, "files": files, "tokens": given.tokens, "threads": given.threads}
    said = _child("plan", {**asked, "calibrate": given.calibrate})
    got = _child("answer", asked)
    return {name: (got[name], said[name]) for name in ("peak", "first_token", "decode", "total")}


def _child(what: str, asked: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", what, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} {asked} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(name: str, word: str, case: str, row: dict[str, tuple[float, float]]) -> None:
    units = {"peak": 1e-6, "first_token": 1.0, "decode": 1e3}
    cells = [f"{name:>10}{word:>10}{case:>10}"]
    for figure, unit in units.items():
        got, said = row[figure]
        digits = 0 if figure == "peak" else 2
        cells.append(f"{got * unit:>10.{digits}f}{said * unit:>10.{digits}f}{said / got:>10.2f}")
    print("".join(cells), flush=True)


def media(case: str, folder: Path, round_: int) -> list[str]:
    """Files of a case, other ones in each round."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(round_)
    if CASES[case] == "video":
        path = folder / f"clip-{round_}.mp4"
        if not path.exists():
            write_clip(path, draw)
        return [str(path)]
    files = []
    for i, size in enumerate(CASES[case]):
        path = folder / f"{case}-{round_}-{i}.jpg"
        if not path.exists():
            small = Image.fromarray(draw.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8))
            small.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        files.append(str(path))
    return files


def write_clip(path: Path, draw: Any) -> None:
    import av
    import numpy as np
    from PIL import Image

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *FRAME, "yuv420p"
        for _ in range(FRAMES):
            small = Image.fromarray(draw.integers(0, 256, (9, 16, 3), dtype=np.uint8))
            out.mux(stream.encode(av.VideoFrame.from_image(small.resize(FRAME, Image.Resampling.BICUBIC))))
        out.mux(stream.encode(None))


def child(what: str, asked: dict[str, Any]) -> dict[str, float]:
    """In a fresh process: the plan, or the answer as it is."""
    import torch

    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    if what == "plan":
        from qwenvl.planning import plan

        made = plan(
            asked["model"], asked["files"][1], QUESTION, max_new_tokens=asked["tokens"], quantize=asked["quantize"],
            calibrate=asked["calibrate"],
        )  # fmt: skip
        assert made.seconds is not None
        times = made.seconds
        return {"peak": made.peak_bytes, "first_token": times.first_token, "decode": times.decode, "total": times.total}
    return answer(asked)


def answer(asked: dict[str, Any]) -> dict[str, float]:
    from qwenvl.machine import peak_bytes
    from qwenvl.media import VideoOptions, read_video
    from qwenvl.media.kinds import is_video
    from qwenvl.tasks import Assistant
    from qwenvl.types import SamplingParams

    assistant = Assistant(asked["model"], quantize=asked["quantize"], draft_tokens=0)
    sampling = SamplingParams(max_new_tokens=asked["tokens"], ignore_eos=True)
    found: dict[str, float] = {}
    for files in asked["files"]:
        shown = [read_video(name, VideoOptions()) if is_video(name) else name for name in files]
        stream = assistant.stream(shown, QUESTION, sampling)
        for _ in stream:
            pass
        given = stream.answer
        steps = max(len(given.completion.token_ids) - 1, 1)
        found["first_token"], found["total"] = given.first_token_seconds, given.seconds
        found["decode"] = (given.seconds - given.first_token_seconds) / steps
    found["peak"] = float(peak_bytes() or 0)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        sys.exit(main())
