"""A PDF's pages as pictures, drawn in a process of their own: bounded in time and memory, and its crashes are not the
caller's. A page on which the process ends is an error of that page; the next one gets a new process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import IO, Any

from qwenvl.media.policy import MediaError, MediaPolicy
from qwenvl.tasks.parsing.pages import Budget, PageImage, PdfPlace
from qwenvl.tasks.parsing.pdf_render import Renderer

# The caller's own import path, however it was made.
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from qwenvl.tasks.parsing.pdf_render import main; main()"
)


@dataclass(frozen=True)
class PdfLimits:
    """What a PDF may take. max_pages: that are read in one run. page_seconds: for drawing one page. memory: bytes that
    drawing may take. isolate: in a process of its own; False saves its start, and crashes with what crashes PDFium."""

    max_bytes: int = 2**30
    max_pages: int = 10_000
    page_seconds: float = 60.0
    memory: int = 2 * 2**30
    isolate: bool = True


class PdfFile:
    """An open PDF; see pages.PageFile. name: for messages. Raises MediaError, ValueError without pypdfium2."""

    def __init__(self, path: str, name: str, digest: str, password: str | None, policy: MediaPolicy, limits: PdfLimits):
        if find_spec("pypdfium2") is None:
            raise ValueError(f'{name} is a PDF, and reading it needs pypdfium2: pip install "qwenvl[documents]"')
        self.name, self.digest, self._limits = name, digest, limits
        self._open = {"path": path, "name": name, "password": password, "max_pixels": policy.max_pixels}
        self._process: subprocess.Popen[bytes] | None = None
        self._here: Renderer | None = None
        if limits.isolate and sys.executable:  # an interpreter inside another program cannot be started again
            self.count = self._start()
        else:
            self._here = Renderer(path, name, password, policy.max_pixels)
            self.count = self._here.pages

    def page(self, number: int, budget: Budget) -> PageImage:
        """A page drawn within the budget. MediaError says why it cannot be."""
        from PIL import Image

        wanted: dict[str, Any] = {"page": number, **asdict(budget)}
        if self._here is not None:
            known, pixels = self._here.page(wanted.pop("page"), **wanted)
        else:
            known, pixels = self._ask(number, wanted)
        image = Image.frombytes("RGB", (known["width"], known["height"]), pixels)
        place = PdfPlace(tuple(known["points"]), tuple(known["box"]), known["rotation"])
        return PageImage(number, image, place, known["text"])

    def close(self) -> None:
        if self._here is not None:
            self._here.close()
        self._end()

    def _start(self) -> int:
        """Start a process and open the file in it; the number of pages."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", BOOT, json.dumps(sys.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        record = self._exchange({**self._open, "memory": self._limits.memory}, b"I", f"opening {self.name}")
        return int(record[0]["pages"])

    def _ask(self, number: int, wanted: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if self._process is None:
            self._start()
        return self._exchange(wanted, b"P", f"drawing page {number} of {self.name}")

    def _exchange(self, request: dict[str, Any], letter: bytes, doing: str) -> tuple[dict[str, Any], bytes]:
        """The record that answers a request. The process is ended where it gives none in time."""
        process, late = self._process, threading.Event()
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._limits.page_seconds, end)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            found = process.stdout.read(1)
            record = _line(process.stdout)
            if found == b"E":
                raise MediaError(record["text"] if record["known"] else f"{doing} failed: {record['text']}")
            if found != letter:
                raise EOFError
            return record, _exactly(process.stdout, record["width"] * record["height"] * 3) if letter == b"P" else b""
        except (EOFError, OSError):
            self._end()
            if late.is_set():
                raise MediaError(
                    f"{doing} took longer than {self._limits.page_seconds:g} seconds: it is left out"
                ) from None
            raise MediaError(
                f"{doing} ended its process: the file is damaged, or takes more than {self._limits.memory} bytes"
            ) from None
        finally:
            timer.cancel()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        process.wait()


def _line(answer: IO[bytes]) -> dict[str, Any]:
    line = answer.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return dict(json.loads(line))


def _exactly(answer: IO[bytes], size: int) -> bytes:
    data = answer.read(size)
    if len(data) != size:
        raise EOFError
    return data
