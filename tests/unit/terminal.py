"""A program on a pseudo terminal, driven as a person would: wait for what it shows, type, press keys."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from types import TracebackType

CTRL_C, CTRL_D = "\x03", "\x04"
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


class Terminal:
    """with Terminal([program, ...]) as terminal: terminal.wait_for("> "); terminal.type("hello\\r")."""

    def __init__(self, command: list[str], seconds: float = 60, **env: str) -> None:
        import fcntl
        import termios

        self.shown, self._seen, self._seconds = "", 0, seconds
        self._own, side = os.openpty()
        self.process = subprocess.Popen(
            command, stdin=side, stdout=side, stderr=side, env={**os.environ, "TERM": "dumb", **env},
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(side)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def wait_for(self, text: str) -> str:
        """Read until `text` is shown behind what was waited for before; returns what was shown up to its end."""
        end = time.monotonic() + self._seconds
        while (place := self.shown.find(text, self._seen)) < 0:
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"{text!r} did not come; shown since:\n{self.shown[self._seen :]}")
        begin, self._seen = self._seen, place + len(text)
        return self.shown[begin : self._seen]

    def end(self) -> int:
        """Read to the end; the exit code."""
        end = time.monotonic() + self._seconds
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(timeout=self._seconds)

    def _read(self, seconds: float) -> bool:
        if seconds <= 0 or not select.select([self._own], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._own, 4096)
        except OSError:  # the program has ended
            return False
        self.shown = _CODES.sub("", self.shown + data.decode(errors="replace")).replace("\r\n", "\n")
        return bool(data)
