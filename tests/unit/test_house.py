"""The house: what importing costs, what may import what, and that the package names what it has."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import time
import tomllib
from pathlib import Path

import pytest

import qwenvl

ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(sysconfig.get_path("scripts")) / "qwenvl")
HEAVY = ("torch", "numpy", "PIL", "transformers", "tokenizers", "jinja2", "av", "httpx", "huggingface_hub", "rich")


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def best_seconds(command: list[str], rounds: int = 5) -> float:
    """The quickest of some runs: what the program itself takes on a machine that does other things too."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@pytest.mark.parametrize(
    "code",
    [
        "import qwenvl",
        "import qwenvl.types, qwenvl.config",
        "from qwenvl import SamplingParams, Qwen2_5_VLConfig",
        "import qwenvl.cli.app",
    ],
)
def test_light_imports_stay_light(code: str) -> None:
    loaded = run_python(f"{code}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])")
    assert loaded == ""


def test_tasks_import_no_torch() -> None:
    assert run_python("import qwenvl.tasks, sys; print('torch' in sys.modules)") == "False"


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom qwenvl.cli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    print([n for n in sys.argv[1:] if n in sys.modules])"
    )
    assert run_python(code, *HEAVY).splitlines()[-1] == "[]"


def test_import_takes_less_than_a_tenth_of_a_second() -> None:
    code = "import time; start = time.perf_counter(); import qwenvl; print(time.perf_counter() - start)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.1


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    assert best_seconds([PROGRAM, "--help"]) < 0.3


def test_every_name_of_the_package_is_there() -> None:
    assert [name for name in qwenvl.__all__ if not hasattr(qwenvl, name)] == []
    assert set(qwenvl.__all__) == set(qwenvl._ROOM_OF) | {"__version__"}
    assert set(qwenvl.__all__) <= set(dir(qwenvl))


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(qwenvl.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: (node.module or "").removeprefix("qwenvl.") for node in imports for alias in node.names}
    assert seen == qwenvl._ROOM_OF


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Qwen3'; it has .*AutoProcessor"):
        _ = qwenvl.Qwen3


def test_import_contracts() -> None:
    lint = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run(
        [str(lint), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_package_data_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = project["tool"]["setuptools"]["package-data"]["qwenvl.demo"]
    pictures = list((ROOT / "src/qwenvl/demo/pictures").iterdir())
    assert pictures
    assert all(any(path.match(pattern) for pattern in declared) for path in pictures)


def test_sample_pictures_are_what_their_program_draws() -> None:
    from PIL import Image, ImageChops

    from qwenvl.demo.samples import CLIP, PICTURES, SAMPLES

    assert sorted(path.name for path in PICTURES.iterdir()) == sorted([*SAMPLES, CLIP])
    for name, draw in SAMPLES.items():
        with Image.open(PICTURES / name) as shipped:
            worst = max(high for _, high in ImageChops.difference(shipped.convert("RGB"), draw()).getextrema())
        assert worst <= 2, name  # another Pillow may round its resampling differently


def test_the_sample_video_is_what_its_program_draws() -> None:
    import numpy as np

    from qwenvl.demo.samples import CLIP, CLIP_FRAMES, PICTURES, square_appears
    from qwenvl.media import VideoOptions, read_video

    video = read_video(PICTURES / CLIP, VideoOptions(nframes=CLIP_FRAMES, resize=False))
    assert len(video.frames) == CLIP_FRAMES
    for index in (0, 35, 36, CLIP_FRAMES - 1):
        drawn = np.asarray(square_appears(index)).astype(int)
        assert np.abs(video.frames[index] - drawn).mean() < 4, index


def test_every_file_stands_on_the_map_and_nothing_else() -> None:
    package = ROOT / "src/qwenvl"
    files = {path.relative_to(package) for path in package.rglob("*.py") if path.name != "__init__.py"}
    listed: set[Path] = set()
    room = Path()
    for line in (ROOT / "docs/structures.md").read_text().split("## Every file in a line")[1].splitlines():
        if line.startswith("### "):
            title = line.removeprefix("### ")
            room = Path("" if title == "src/qwenvl" else title)
        elif line.startswith("|") and room != Path("Beside the package"):
            names = re.findall(r"`([a-z_]+\.py)`", line.split("|")[1])
            listed |= {room / name for name in names}
    assert listed - {Path("__init__.py")} == files
