"""One runner as its conductor sees it: a process that is stopped except while it obeys a command."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

LOOP = Path(__file__).with_name("runner.py")
LONGEST = 3600.0  # seconds that one command may take
QUIT = 10.0


class RunnerError(RuntimeError):
    """A command that failed, or a process that is gone; the message says what it said. unsupported: it cannot do it."""

    def __init__(self, message: str, unsupported: bool = False) -> None:
        super().__init__(message)
        self.unsupported = unsupported


@dataclass(frozen=True)
class Row:
    """A column of the table: which program, by which Python, in which variant ("" = the plain one)."""

    name: str
    file: Path
    python: str
    variant: str = ""


class Process:
    """A running row. `seconds` since it was started is what start-up is measured with."""

    def __init__(self, row: Row, model: Path, cache: Path, threads: int, log: Path) -> None:
        self.row, self._log = row, log
        command = [row.python, "-P", str(LOOP), str(row.file), "--model", str(model), "--threads", str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._started = time.perf_counter()
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [*command, "--variant", row.variant, "--cache", str(cache)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Let the process run until it has answered one command. RunnerError when it cannot."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"do": do, **values}).encode() + b"\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._line(do))
        except BrokenPipeError:
            raise RunnerError(self._gone(do)) from None
        finally:
            self._signal(signal.SIGSTOP)
        for kind in ("error", "unsupported"):
            if kind in answer:
                raise RunnerError(str(answer[kind]), kind == "unsupported")
        return answer

    def _line(self, do: str) -> bytes:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], LONGEST)
        if not ready:
            raise RunnerError(f"{do} took more than {LONGEST:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise RunnerError(self._gone(do))
        return line

    def _gone(self, do: str) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(QUIT)
        last = self._log.read_text("utf-8", "replace").strip().splitlines()[-1:]
        return f"the process ended during {do} with code {self._process.poll()}: {' '.join(last)}"

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def peak_bytes(self) -> int:
        """The most memory that the process and its living children have held, each at its own time (Linux)."""
        return sum(_peak(pid) for pid in _tree(self._process.pid))

    def close(self) -> None:
        """End the process and its children."""
        self._signal(signal.SIGCONT)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(QUIT)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in below:
        yield from _tree(int(child))


def _peak(pid: int) -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
