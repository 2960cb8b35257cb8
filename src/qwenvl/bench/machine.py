"""On what a run was made: processor, memory, system, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "numpy", "pillow", "tokenizers", "safetensors")


def machine() -> dict[str, str]:
    """Name -> what it is, in words; what cannot be found out is left out."""
    facts = {
        "processor": _first(r"model name\s*:\s*(.+)", "/proc/cpuinfo") or platform.processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }
    return {name: text for name, text in facts.items() if text}


def _first(pattern: str, path: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _memory() -> str:
    kilobytes = _first(r"MemTotal:\s+(\d+) kB", "/proc/meminfo")
    return f"{int(kilobytes) / 2**20:.1f} GiB" if kilobytes else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit of the checkout that the package lies in, with "+ changes" when files differ from it."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return f"{commit} + changes" if commit and git("status", "--porcelain") else commit
    except OSError:  # no git here
        return ""
