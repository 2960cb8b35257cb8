"""The README's Python runs as it stands, and its shell lines name verbs and options that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from qwenvl.checkpoint.hub import demo_folder

README = (Path(__file__).parents[2] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))


@pytest.mark.skipif(
    not (demo_folder() / "model.safetensors").is_file(), reason="this checkout has no bundled checkpoint"
)
@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_of_the_readme(number: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PYTHON[number]], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"[A-Z]\w+ .*\.", done.stdout), done.stdout  # a sentence


def test_shell_of_the_readme_names_what_there_is() -> None:
    program = Path(sysconfig.get_path("scripts")) / "qwenvl"
    lines = [line for line in SHELL.splitlines() if line]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line.split("| qwenvl")[-1].removeprefix("qwenvl"), comments=True)
        verb, options = words[0], [word for word in words if word.startswith("--")]
        said = subprocess.run([program, verb, "--help"], capture_output=True, text=True, timeout=60, check=True)
        for option in options:
            assert option in said.stdout, line
