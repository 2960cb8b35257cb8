"""Decoding in a process of its own: bounded in time and memory, and its crashes are not the caller's.

The process gets a ClipRequest as JSON on its standard input. It answers with records on its standard output, one
letter and then: P, a line of JSON, the plan; F, the bytes of one frame; D, a line of JSON, times and notes; E, a line
of JSON, an error. It imports no torch unless a reader does, so it starts in a fraction of a second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import suppress
from dataclasses import asdict, replace
from typing import IO, Any

import numpy as np

from qwenvl.media.policy import MediaError
from qwenvl.media.sampling import Video, VideoOptions
from qwenvl.media.video_clip import Clip, ClipPlan, ClipRequest, finished, read_here, too_long

# The caller's own import path, however it was made.
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from qwenvl.media import video_process as v; v.main()"
SPARE = 2**30  # bytes of address space for the interpreter and its libraries
LOG_BYTES = 2**20
PIPE_BYTES = 2**20


def read_apart(request: ClipRequest) -> Video:
    """The sampled frames, decoded in another process that ends with this call, whatever happens. Raises MediaError."""
    if not sys.executable:  # an interpreter inside another program cannot be started again
        return read_here(request)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    late = threading.Event()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", BOOT, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
        )

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(request.timeout, end)
        timer.daemon = True
        timer.start()
        try:
            return _exchange(process, request)
        except (EOFError, OSError, ValueError) as error:
            if late.is_set():
                raise MediaError(too_long(request)) from None
            if not isinstance(error, EOFError | OSError):
                raise
            process.wait()
            why = _last_words(process.returncode, log)
            if request.reader != "pyav":
                failed = f"{request.reader} could not read {request.name} ({why}): PyAV reads it instead"
                warnings.warn(failed, stacklevel=4)
                return read_apart(replace(request, reader="pyav"))
            raise MediaError(f"decoding {request.name} failed: {why}") from None
        finally:
            timer.cancel()
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            process.wait()


def _exchange(process: subprocess.Popen[bytes], request: ClipRequest) -> Video:
    """Sends the request, reads the records. EOFError or OSError: the process is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(asdict(request)).encode())
    process.stdin.close()
    answer: Any = process.stdout
    _expect(b"P", answer)
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in _line(answer).items()}
    plan = ClipPlan(**known)
    frames = np.empty(plan.shape, np.uint8)
    for frame in frames:
        _expect(b"F", answer)
        view, done = memoryview(frame.reshape(-1).data), 0
        while done < len(view):
            got = answer.readinto(view[done:])
            if not got:
                raise EOFError
            done += got
    _expect(b"D", answer)
    end = _line(answer)
    return finished(plan, frames, end["times"], end["notes"])


def _expect(letter: bytes, answer: IO[bytes]) -> None:
    """Reads the letter of the next record; an error record is raised."""
    found = answer.read(1)
    if found == b"E":
        error = _line(answer)
        raise (MediaError if error["media"] else ValueError)(error["text"])
    if found != letter:
        raise EOFError


def _line(answer: IO[bytes]) -> dict[str, Any]:
    line = answer.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    try:
        return dict(json.loads(line))
    except ValueError:
        raise EOFError from None


def _last_words(code: int, log: IO[bytes]) -> str:
    """Why the process ended, in one line."""
    if code < 0:
        return f"the decoder crashed (signal {-code}); the file is damaged or needs too much memory"
    log.seek(0)
    lines = log.read(LOG_BYTES).decode(errors="replace").strip().splitlines()
    return f"its process ended with code {code}" + (f" ({lines[-1][:200]})" if lines else "")


def main() -> None:
    """What the process does: one request, then the end."""
    sys.tracebacklimit = 0
    # What libraries print must not come between the records.
    answer = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    received = json.loads(sys.stdin.buffer.read())
    request = ClipRequest(**(received | {"options": VideoOptions(**received["options"])}))
    _limit(request)
    _widen(answer)
    try:
        _answer(request, answer)
    except BrokenPipeError:
        return  # nobody waits any more
    except MemoryError:
        _send(answer, b"E", {"media": True, "text": f"decoding {request.name} takes more memory than is allowed"})
    except Exception as error:
        text = str(error) if isinstance(error, ValueError) else f"decoding {request.name} failed: {error!r}"
        _send(answer, b"E", {"media": isinstance(error, MediaError) or not isinstance(error, ValueError), "text": text})


def _answer(request: ClipRequest, answer: IO[bytes]) -> None:
    clip = Clip(request)
    _send(answer, b"P", asdict(clip.plan))
    times = []
    for seconds, frame in clip.frames():
        times.append(seconds)
        _write(answer, b"F")
        _write(answer, np.ascontiguousarray(frame).reshape(-1).data)
    _send(answer, b"D", {"times": times, "notes": clip.notes})


def _send(answer: IO[bytes], letter: bytes, value: dict[str, Any]) -> None:
    _write(answer, letter + json.dumps(value).encode() + b"\n")


def _write(answer: IO[bytes], data: bytes | memoryview) -> None:
    view = memoryview(data)
    while len(view):
        view = view[answer.write(view) :]


def _limit(request: ClipRequest) -> None:
    """Bounds that the system holds, where it can: memory, time, and no files written."""
    try:
        import resource
        import signal
    except ImportError:
        return  # the caller's clock remains
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: LOG_BYTES,
        resource.RLIMIT_CPU: int(request.timeout * (os.cpu_count() or 1)) + 1,
    }
    if request.reader == "pyav":  # torch reserves far more addresses than it uses
        bounds[resource.RLIMIT_AS] = request.memory + SPARE
    for bound, value in bounds.items():
        hard = resource.getrlimit(bound)[1]
        with suppress(OSError, ValueError):
            resource.setrlimit(bound, (value if hard == resource.RLIM_INFINITY else min(value, hard),) * 2)
    signal.setitimer(signal.ITIMER_REAL, request.timeout + 5)  # should the caller be gone


def _widen(answer: IO[bytes]) -> None:
    """A larger pipe: fewer changes between the processes."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(answer.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
