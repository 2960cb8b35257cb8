"""The program as the shell sees it: arguments, exit codes, one line for a mistake (no model is run here)."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from qwenvl.cli.inputs import check_limits, is_media, split_question, start_assistant
from qwenvl.config import Qwen2_5_VLConfig

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "qwenvl")
MOST_SECONDS, MOST_BYTES = 2.0, 300 * 2**20


@dataclass
class Finished:
    """What a run of the program left: streams, exit code, wall seconds, peak resident bytes of its process."""

    code: int
    out: str
    err: str
    seconds: float
    peak: int


# Runs the program from a process of its own, as Linux counts the memory of who starts a process to that process.
LAUNCHER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[2:], stdin=sys.stdin, capture_output=True, text=True)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
with open(sys.argv[1], "w") as file:
    json.dump([done.returncode, done.stdout, done.stderr, seconds, peak], file)
"""


def run(*arguments: str, stdin: str = "", cwd: Path | None = None, **env: str) -> Finished:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [sys.executable, "-c", LAUNCHER, str(report), PROGRAM, *arguments],
            input=stdin.encode(),
            cwd=cwd,
            env={**os.environ, **env},
            check=True,
        )
        return Finished(*json.loads(report.read_text()))


def write_weights(path: Path, cut: int = 0) -> None:
    """A safetensors file with one tensor of four float32, short of its last `cut` bytes."""
    header = json.dumps({"lm_head.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(16)
    path.write_bytes(content[: len(content) - cut])


def write_bomb(path: Path, side: int) -> None:
    """A valid one-bit PNG of side x side black pixels: some 100 kB that would be gigabytes as RGB."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    squeeze, row = zlib.compressobj(1), bytes(1 + (side + 7) // 8)
    pixels = b"".join(squeeze.compress(row * 100) for _ in range(side // 100)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures good and bad, and checkpoints: whole/, shard-lost/, cut/, wrong/, no-weights/."""
    folder = tmp_path_factory.mktemp("place")
    Image.new("RGB", (60, 40), "white").save(folder / "good.png")
    Image.linear_gradient("L").resize((400, 300)).save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text("This is no picture.\n")
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (1, 5000)).save(folder / "thin.png")
    write_bomb(folder / "bomb.png", 30_000)
    for name in ("whole", "shard-lost", "cut", "wrong", "no-weights"):
        Qwen2_5_VLConfig().save_pretrained(folder / name)
    write_weights(folder / "whole" / "model.safetensors")
    write_weights(folder / "cut" / "model.safetensors", cut=9)
    write_weights(folder / "wrong" / "model.safetensors")
    config = json.loads((folder / "wrong" / "config.json").read_text())
    (folder / "wrong" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": -3}))
    write_weights(folder / "shard-lost" / "model-00001-of-00002.safetensors")
    shards = {"lm_head.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (folder / "shard-lost" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return folder


ASK = ["ask", "--model", "whole"]
MISTAKES = {
    "text as png": ([*ASK, "text.png", "What?"], r"text\.png"),
    "empty file": ([*ASK, "empty.png", "What?"], r"empty\.png"),
    "truncated jpeg": ([*ASK, "cut.jpg", "What?"], r"cut\.jpg"),
    "too thin": ([*ASK, "thin.png", "What?"], "1 x 5000"),
    "bomb": ([*ASK, "bomb.png", "What?"], r"bomb\.png.* pixels"),
    "lost picture": ([*ASK, "lost.png", "What?"], r"lost\.png"),
    "a folder as picture": ([*ASK, "whole", "What?"], "whole"),
    "empty prompt": ([*ASK, "good.png", ""], "question is empty"),
    "blank prompt": ([*ASK, "good.png", " \n "], "question is empty"),
    "empty stdin": ([*ASK, "good.png", "-"], "question is empty"),
    "no question at all": ([*ASK], "question is empty"),
    "unknown model": (["ask", "--model", "no-such-model", "good.png", "What?"], "no-such-model"),
    "unknown folder": (["ask", "--model", "./no/such/folder", "good.png", "What?"], "no/such/folder"),
    "unknown on the hub": (["ask", "--model", "nobody/no-such-model", "good.png", "What?"], "nobody/no-such-model"),
    "a file as model": (["ask", "--model", "good.png", "good.png", "What?"], r"good\.png"),
    "missing shard": (["ask", "--model", "shard-lost", "good.png", "What?"], "model-00002-of-00002"),
    "cut weights": (["ask", "--model", "cut", "good.png", "What?"], r"model\.safetensors"),
    "no weights": (["ask", "--model", "no-weights", "good.png", "What?"], "no weights"),
    "wrong config": (["ask", "--model", "wrong", "good.png", "What?"], "num_hidden_layers"),
    "no tokens": ([*ASK, "--max-new-tokens", "0", "good.png", "What?"], "max_new_tokens"),
    "temperature": ([*ASK, "--temperature", "-1", "good.png", "What?"], "temperature"),
    "top-p": ([*ASK, "--top-p", "2", "good.png", "What?"], "top_p"),
    "dtype": ([*ASK, "--dtype", "int3", "good.png", "What?"], "int3"),
    "device": ([*ASK, "--device", "abacus", "good.png", "What?"], "abacus"),
    "limits": ([*ASK, "--min-pixels", "9", "--max-pixels", "8", "good.png", "What?"], "min-pixels"),
    "locate nothing": (["locate", "--model", "whole", "good.png", " "], "empty"),
    "locate in a lost picture": (["locate", "--model", "whole", "lost.png", "cat"], r"lost\.png"),
    "locate to nowhere": (["locate", "--model", "whole", "--out", "no/a.png", "good.png", "cat"], "no/a.png"),
    "info of nothing": (["info", "nothing"], "nothing"),
    "eval of an unknown task": (["eval", "demo", "--task", "fly"], "fly"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_costs_little(name: str, place: Path) -> None:
    arguments, said = MISTAKES[name]
    done = run(*arguments, cwd=place, HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.code, done.out) == (2, ""), done
    assert done.err.startswith("qwenvl: "), done
    assert done.err.count("\n") == 1, done
    assert "Traceback" not in done.err
    assert re.search(said, done.err), done
    assert done.peak < MOST_BYTES, done
    quickest = done.seconds
    for _ in range(2):  # the machine may be busy with something else at this very moment
        if quickest >= MOST_SECONDS:
            quickest = min(quickest, run(*arguments, cwd=place, HF_ENDPOINT="http://127.0.0.1:9").seconds)
    assert quickest < MOST_SECONDS


def test_debug_shows_where_a_mistake_was_found(place: Path) -> None:
    done = run(*ASK, "lost.png", "What?", cwd=place, QWENVL_DEBUG="1")
    assert done.code == 1
    assert "Traceback" in done.err


@pytest.mark.parametrize(
    "arguments", [["fly"], ["ask", "--wings"], ["eval", "moon"], ["eval", "demo", "--pictures", "0"]]
)
def test_wrong_words_are_a_usage_error(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Error" in done.err
    assert "Traceback" not in done.err


def test_version_and_help() -> None:
    assert run("--version").out.startswith("qwenvl 0.")
    for verb in ("ask", "locate", "info", "eval", "demo"):
        assert verb in run("--help").out
        assert run(verb, "--help").code == 0


def test_ctrl_c_is_130() -> None:
    process = subprocess.Popen([PROGRAM, "ask", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1.0)  # it waits for a question on stdin
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, b"Traceback" in err) == (130, False)


def test_info_reads_headers_only(place: Path) -> None:
    done = run("info", "whole", "--json", cwd=place)
    report = json.loads(done.out)
    assert done.peak < MOST_BYTES
    assert report["parameters"] == 4
    assert report["parameters_by_part"] == {"vision tower": 0, "decoder": 0, "head": 4}
    assert report["dtypes_of_files"] == {"F32": 4}
    assert report["decoder"]["layers"] == Qwen2_5_VLConfig().text_config.num_hidden_layers
    assert report["chat_template"] is None
    assert report["files"]["model.safetensors"] == (place / "whole/model.safetensors").stat().st_size
    plain = run("info", "whole", cwd=place)
    assert plain.code == 0
    assert "layers 80" in plain.out


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("a.png", True),
        ("somewhere/A.JPEG", True),
        ("https://host/x", True),
        ("data:image/png;base64,AAAA", True),
        ("clip.MP4", True),
        ("What is in a.png", False),
        ("Why?", False),
        ("", False),
        ("x" * 5000, False),
        ("nul\0", False),
    ],
)
def test_what_counts_as_a_picture(argument: str, expected: bool) -> None:
    assert is_media(argument) is expected


def test_the_last_argument_is_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_question(["a.png", "b.png", " Which? "], False) == (["a.png", "b.png"], "Which?")
    assert split_question(["Who are you?"], True) == ([], "Who are you?")
    for arguments, pictures in ((["a.png", "-"], ["a.png"]), (["a.png", "b.png"], ["a.png", "b.png"]), ([], [])):
        monkeypatch.setattr("sys.stdin", io.StringIO("From stdin?\n"))
        assert split_question(arguments, True) == (pictures, "From stdin?")
    with pytest.raises(ValueError, match="no question"):
        split_question(["a.png"], False)


@pytest.mark.parametrize(
    ("parameters", "set_by_user", "expected"), [(4_000_000, None, [1]), (4_000_000, "2", []), (4_000_000_000, None, [])]
)
def test_a_small_model_runs_on_one_thread(
    parameters: int, set_by_user: str | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("qwenvl.tasks.Assistant", lambda folder, **options: (folder, options["device"]))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    found = SimpleNamespace(parameters=parameters, folder="here")
    assert start_assistant(found) == ("here", "cpu")  # type: ignore[arg-type,comparison-overlap]
    assert asked == expected
    with pytest.raises(ValueError, match="--device cuda: torch sees no such GPU"):
        start_assistant(found, device="cuda")  # type: ignore[arg-type]


def test_limits() -> None:
    check_limits(None, 10)
    check_limits(10, 10)
    with pytest.raises(ValueError, match="--max-pixels 0"):
        check_limits(None, 0)
