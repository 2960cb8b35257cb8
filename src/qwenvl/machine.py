"""How much memory there is, what this process has of it, and which machine this is. Standard library only.

Linux: /proc and the limits of control groups, versions 1 and 2. macOS: sysctl. Windows: GlobalMemoryStatusEx. What
cannot be found out is None, never a guess.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
NO_LIMIT = 2**60  # control groups of version 1 write a number near 2**63 for "none"
GROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
FILE_OF_WEIGHTS = (".safetensors", ".gguf")


def parse_bytes(given: int | str, name: str = "memory") -> int:
    """Bytes of a number or of "4GB", "3.5 GiB", "800M" (B may be left out; Ki, Mi, Gi and Ti are powers of 1024).
    ValueError for anything else, and below 1."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(given).lower())
    size = int(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
    if size < 1:
        raise ValueError(f"{name}={given!r} is not an amount of memory: expected bytes, or such as 4GB or 3.5GiB")
    return size


def shown(size: float) -> str:
    """Bytes for people, in powers of 1000: "812 MB", "4.1 GB"."""
    for unit, step in (("TB", 1e12), ("GB", 1e9)):
        if abs(size) >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size / 1e6:.0f} MB" if abs(size) >= 1e7 else f"{size / 1e6:.1f} MB"


def available_memory() -> int | None:
    """Bytes that a new process could have now: what is free or can be freed, within the limits of the control groups
    that this process is in. None where that cannot be found out."""
    free = _free()
    left = [room for room in _group_rooms() if room is not None]
    known = [*([] if free is None else [free]), *left]
    return min(known, default=None)


def _free() -> int | None:
    if sys.platform == "darwin":
        return _macos_free()
    if sys.platform == "win32":
        return _windows_free()
    found = _first(r"MemAvailable:\s+(\d+) kB", PROC / "meminfo")
    return None if found is None else int(found) * 1024


def _macos_free() -> int | None:
    """Free, inactive and speculative pages, as vm_stat tells."""
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(["vm_stat"], capture_output=True, text=True, timeout=5, check=True).stdout
        size = re.search(r"page size of (\d+) bytes", told)
        pages = re.findall(r"Pages (?:free|inactive|speculative):\s+(\d+)", told)
        if size and pages:
            return int(size[1]) * sum(map(int, pages))
    return None


def _windows_free() -> int | None:
    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong), ("numbers", ctypes.c_ulonglong * 7)]

    status = Status(length=ctypes.sizeof(Status))
    kernel = getattr(ctypes, "windll", None)
    if kernel is None or not kernel.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.numbers[1])  # total, then available physical memory


def _group_rooms() -> Iterator[int | None]:
    """What each control group above this process leaves: its limit less what is used and cannot be dropped."""
    with suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            number, kinds, path = line.split(":", 2)
            if number == "0" and not kinds:
                yield from _rooms(GROUPS, path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in kinds.split(","):
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
                yield from _rooms(GROUPS / "memory", path, *names)


def _rooms(base: Path, path: str, limit: str, usage: str, droppable: str) -> Iterator[int | None]:
    folder = base / path.lstrip("/")
    for place in (folder, *folder.parents):
        if place != base and base not in place.parents:
            return
        most, used = _number(place / limit), _number(place / usage)
        if most is not None and used is not None and most < NO_LIMIT:
            cached = _first(rf"^{droppable} (\d+)", place / "memory.stat")
            yield max(most - used + int(cached or 0), 0)


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None  # no such file, or "max"


def _first(pattern: str, path: Path) -> str | None:
    with suppress(OSError):
        found = re.search(pattern, path.read_text(errors="replace"), re.MULTILINE)
        return found[1] if found else None
    return None


def resident_bytes() -> int | None:
    """Bytes of memory that this process has now, mapped files included; None where the system does not tell."""
    found = _first(r"VmRSS:\s+(\d+) kB", PROC / "self" / "status")
    return None if found is None else int(found) * 1024


def peak_bytes() -> int | None:
    """The most that this process has had (VmHWM); None where the system does not tell."""
    found = _first(r"VmHWM:\s+(\d+) kB", PROC / "self" / "status")
    return None if found is None else int(found) * 1024


def mapped_weights() -> tuple[list[tuple[int, int]], int] | None:
    """(address ranges that files of weights are mapped to, bytes of them in memory); None without /proc."""
    ranges: list[tuple[int, int]] = []
    resident, inside = 0, False
    try:
        lines = (PROC / "self" / "smaps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if found:
            inside = line.endswith(FILE_OF_WEIGHTS)
            if inside:
                ranges.append((int(found[1], 16), int(found[2], 16)))
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return ranges, resident


def machine_name() -> str:
    """What speeds depend on: processor, system, and the cores that this process may use."""
    processor = _first(r"model name\s*:\s*(.+)", PROC / "cpuinfo") or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor}, {platform.system()}, {cores} cores"


def cache_folder() -> Path:
    """Where this user's programs keep what can be made again; QWENVL_CACHE names another place."""
    if "QWENVL_CACHE" in os.environ:
        return Path(os.environ["QWENVL_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData" / "Local"))) / "qwenvl"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "qwenvl"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwenvl"
