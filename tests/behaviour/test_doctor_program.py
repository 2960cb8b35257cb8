"""`qwenvl doctor` as a user meets it: what it prints, its exit codes, how long it takes."""

from __future__ import annotations

import json
import resource
import subprocess
import sysconfig
from pathlib import Path

import pytest

from qwenvl.checkpoint.hub import demo_folder

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "qwenvl")
MOST_SECONDS, MOST_QUICK_SECONDS = 10.0, 3.0

pytestmark = pytest.mark.skipif(
    not (demo_folder() / "model.safetensors").is_file(), reason="this checkout has no bundled checkpoint"
)


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, "doctor", *arguments], capture_output=True, text=True, timeout=100, check=False)


def processor_seconds() -> float:
    """What processes started here and ended have used; on a machine that does other things too, time says little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ill_copy(folder: Path) -> Path:
    """The bundled model whose template has no place for pictures."""
    folder.mkdir()
    for path in demo_folder().iterdir():
        (folder / path.name).symlink_to(path)
    text = json.loads((folder / "chat_template.json").read_text("utf-8"))["chat_template"]
    (folder / "chat_template.json").unlink()
    broken = text.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": broken}), "utf-8")
    return folder


def test_a_healthy_model_in_json() -> None:
    before = processor_seconds()
    done = doctor("demo", "--quick", "--json")
    assert processor_seconds() - before < MOST_QUICK_SECONDS
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["verdict"] == "ok"
    assert report["counts"]["fault"] == report["counts"]["warning"] == 0
    assert {"check", "looked_at", "verdict", "found", "advice"} == set(report["findings"][0])
    assert report["seconds"] > 0


def test_a_fault_is_exit_code_1_and_says_what_to_do(tmp_path: Path) -> None:
    done = doctor(str(ill_copy(tmp_path / "ill")), "--quick")
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    (row,) = [i for i, line in enumerate(lines) if line.startswith("FAULT    chat template")]
    assert "<image>" in lines[row]
    assert lines[row + 1].strip().startswith("-> take the chat template")
    assert "1 fault" in lines[-1]


def test_golden_answers_from_the_shell(tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    assert doctor("demo", "--write-golden", str(path)).stdout == f"wrote {path}\n"
    done = doctor("demo", "--quick", "--golden", str(path))
    assert done.returncode == 0
    assert f"places of {path.name} (bfloat16):" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("nowhere/",), "nowhere"),
        (("demo", "--golden", "missing.json"), "missing.json"),
        (("demo", "--golden", "a", "--write-golden", "b"), "exclude"),
        (("demo", "--dtype", "int3"), "int3"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments: tuple[str, ...], word: str) -> None:
    done = doctor(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert word in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_whole_examination_takes_less_than_ten_seconds() -> None:
    before = processor_seconds()
    done = doctor("demo")
    assert done.returncode == 0, done.stdout
    assert processor_seconds() - before < MOST_SECONDS
    assert "healthy" in done.stdout
