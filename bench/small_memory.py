"""Does a model answer on a machine with little memory? A picture is asked about in a control group with a limit.

    python bench/small_memory.py FOLDER [--limit 4GiB] [--quantize int4] [--device auto] [--tokens 16]

Linux only, as root: a child of this process's own memory group gets the limit (swap included), a fresh process loads
and asks inside, and the group is removed. The page cache counts against a group, so the pages of the checkpoint are
dropped before: what is read is read from the disk, and charged to the run. Prints one line of JSON: the seconds and the
peaks of loading and answering, what of it is the process's own and what is pages of files, and the page faults.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qwenvl.machine import parse_bytes

MOUNT = Path("/sys/fs/cgroup")
KILLED = -9


class Group:
    """A control group for memory, of either version. Raises OSError where none can be made."""

    def __init__(self, limit: int) -> None:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        own = next((path for _, names, path in lines if "memory" in names.split(",")), None)
        self._old = own is not None  # version 1 has a tree of its own for memory
        base = MOUNT / "memory" if self._old else MOUNT
        found = own if own is not None else next((path for _, names, path in lines if not names), "/")
        self.path = base / found.lstrip("/") / f"small-memory-{os.getpid()}"
        self.path.mkdir()
        try:
            for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if self._old else ("memory.max",):
                self._write(name, limit)
            if not self._old:
                self._write("memory.swap.max", 0)
        except OSError:
            self.remove()
            raise

    def _write(self, name: str, value: int) -> None:
        target = self.path / name
        if target.exists() or "memsw" not in name:
            target.write_text(str(value))

    def figures(self) -> dict[str, int]:
        """Bytes: the peak of all that counts; nothing where version 2 is too old to tell."""
        top = self.path / ("memory.max_usage_in_bytes" if self._old else "memory.peak")
        return {"peak": int(top.read_text())} if top.exists() else {}

    def remove(self) -> None:
        for _ in range(50):
            with suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.1)


@contextmanager
def group(limit: int) -> Iterator[Group]:
    made = Group(limit)
    try:
        yield made
    finally:
        made.remove()


def drop_pages(folder: Path) -> None:
    """Take the folder's files out of the page cache, so that reading them is charged to who reads."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, limit: int, options: list[str]) -> dict[str, Any]:
    """One run under the limit; {"killed": True} where the system ended it."""
    drop_pages(folder)
    with group(limit) as made:
        inside = [sys.executable, __file__, str(folder), "--inside", str(made.path / "cgroup.procs"), *options]
        done = subprocess.run(inside, stdout=subprocess.PIPE, text=True)
        figures: dict[str, Any] = {"limit": limit, **made.figures()}
    if done.returncode == KILLED:
        return {**figures, "killed": True}
    if done.returncode:
        raise SystemExit(f"the run failed with {done.returncode}")
    return {**figures, "killed": False, **json.loads(done.stdout.splitlines()[-1])}


def ask(folder: Path, quantize: str | None, device: str, tokens: int, size: tuple[int, ...]) -> dict[str, Any]:
    """Load and answer in this process, and say what it took."""
    begun, faults = time.perf_counter(), _faults()
    from qwenvl.bench.pictures import draw
    from qwenvl.tasks.ask import Assistant
    from qwenvl.types import SamplingParams

    assistant = Assistant(folder, quantize=quantize, device=device)
    report: dict[str, Any] = {"load": _phase(begun, faults)}
    begun, faults = time.perf_counter(), _faults()
    stream = assistant.stream(
        [draw(size[0], size[1], 0)], "Describe this image.", SamplingParams(max_new_tokens=tokens)
    )
    list(stream)
    report["ask"], answer = _phase(begun, faults), stream.answer
    report["first_token"], ids = round(answer.first_token_seconds, 2), answer.completion.token_ids
    report["tokens"], report["prompt_tokens"] = len(ids), answer.completion.prompt_tokens
    report["tokens_per_second"] = round((len(ids) - 1) / max(answer.seconds - answer.first_token_seconds, 1e-9), 2)
    report["ids"] = ids
    return report


def _faults() -> tuple[int, int]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_majflt, usage.ru_minflt


def _phase(begun: float, faults: tuple[int, int]) -> dict[str, Any]:
    """Seconds and page faults since then, and where the memory of this process stands (bytes)."""
    major, minor = (now - then for now, then in zip(_faults(), faults, strict=True))
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    memory = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[0].startswith(("VmHWM", "Rss"))}
    out: dict[str, Any] = {"seconds": round(time.perf_counter() - begun, 2), "major_faults": major}
    out["major_share"] = round(major / max(1, major + minor), 4)
    return {**out, "own": memory["RssAnon"], "files": memory["RssFile"], "most_resident": memory["VmHWM"]}


def parsed(size: str) -> int:
    """Bytes of "4GiB", "4GB", "500 MB"."""
    try:
        return parse_bytes(size, "--limit")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--limit", type=parsed, default=parsed("4GiB"))
    options.add_argument("--quantize", default=None)
    options.add_argument("--device", default="cpu", help="cpu, or auto: what does not fit lies on the disk")
    options.add_argument("--tokens", type=int, default=16)
    options.add_argument("--picture", default="1024x768")
    options.add_argument("--inside", type=Path, default=None, help=argparse.SUPPRESS)
    given = options.parse_args()
    size = tuple(int(side) for side in given.picture.split("x"))
    if given.inside is not None:
        given.inside.write_text(str(os.getpid()))
        print(json.dumps(ask(given.folder, given.quantize, given.device, given.tokens, size)))
        return
    passed = [x for name in ("quantize", "device", "tokens", "picture") if getattr(given, name) is not None
              for x in (f"--{name}", str(getattr(given, name)))]  # fmt: skip
    try:
        print(json.dumps(measure(given.folder, given.limit, passed)))
    except PermissionError as error:
        raise SystemExit(f"no control group can be made here: {error}") from error


if __name__ == "__main__":
    main()
