"""One file over http, into place: resumed where it stopped, hashed while it arrives, never in place unless right.

The hub's own library starts a file anew when its process ended in the middle of it, and compares sizes only. Here the
bytes that came stay in `<name>.incomplete` and only the rest is asked for; a file that is not what the hub's list
says is thrown away and fetched once more, then refused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl.hub.integrity import feed, new_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from hashlib import _Hash
    from io import BufferedRandom

    import httpx

RETRIES = 5  # in a row, without a byte in between
LONGEST_WAIT = 30.0  # seconds, whatever a server asks for
FIRST_WAIT = 0.5  # seconds, doubled with every retry
_MAY_PASS = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Item:
    """A file to fetch. name: for messages. hash: as in integrity.Known."""

    name: str
    url: str
    target: Path
    size: int
    hash: str


class RefusedError(Exception):
    """The server answered with a status that is none of success, after the retries that it deserves."""

    def __init__(self, status: int, name: str, said: str) -> None:
        super().__init__(f"the server answers {status} {said} for {name}")
        self.status = status


class DamagedError(Exception):
    """What came is not what the hub's list says, twice."""


class StoppedError(Exception):
    """Somebody set the event."""


class _BrokenError(Exception):
    """The connection ended before the file did, or an answer that may pass: worth another try."""

    def __init__(self, last: Exception, wait: float | None = None) -> None:
        super().__init__(str(last))
        self.last, self.wait = last, wait


def fetch(
    client: httpx.Client,
    headers: Mapping[str, str],
    item: Item,
    report: Callable[[int], None],
    stop: threading.Event,
    fresh: bool = False,
) -> None:
    """Bring a file to its target. fresh: from its first byte on, whatever is there.

    report: told the bytes that are there, and -n when n are given up. Raises RefusedError, DamagedError, StoppedError,
    OSError, or httpx.TransportError. Processes that do the same at once write the same bytes to the same places: the
    caller's lock is there to save work, not to keep files right.
    """
    partial = item.target.with_name(f"{item.target.name}.incomplete")
    problem = ""
    for attempt in range(2):
        if fresh or attempt:
            partial.unlink(missing_ok=True)
        digest = new_digest(item.hash, item.size)
        with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            done, problem = _complete(client, headers, item, file, digest, report, stop)
            file.flush()
            os.fsync(file.fileno())  # it is remembered as right, so it has to be on the disk
        if not problem and digest.hexdigest() != item.hash:
            problem = f"the hash {digest.hexdigest()}, expected {item.hash}"
        if not problem:
            _place(partial, item.target)
            return
        report(-done)
    partial.unlink(missing_ok=True)
    raise DamagedError(
        f"{item.name} came twice with {problem}: it is damaged on the server or on the way; try again later"
    )


def _place(partial: Path, target: Path) -> None:
    try:
        os.replace(partial, target)
    except FileNotFoundError:
        if not target.exists():  # otherwise another process was first
            raise


def _complete(
    client: httpx.Client,
    headers: Mapping[str, str],
    item: Item,
    file: BufferedRandom,
    digest: _Hash,
    report: Callable[[int], None],
    stop: threading.Event,
) -> tuple[int, str]:
    """Fill up a partial file, whose digest is taken on the way.

    Returns (the bytes it has, "" or what is wrong with their number). It stays open throughout: another process that
    was first, on a disk whose locks do not hold, may have renamed it.
    """
    if os.fstat(file.fileno()).st_size > item.size:
        file.truncate(0)
    done, tries = feed(digest, file, report), 0
    while done < item.size:
        before = done
        try:
            rest = {"Range": f"bytes={done}-"} if done else {}
            with _answer(client, {**headers, **rest}, item) as answer:
                if wrong := _wrong_size(answer, item):
                    return done, wrong
                for chunk in _rest(answer, done, stop):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    report(len(chunk))
                    if done > item.size:
                        return done, f"more than the expected {item.size:,} bytes"
        except _BrokenError as error:
            tries = 0 if done > before else tries + 1
            if tries > RETRIES:
                raise error.last from error
            wait = FIRST_WAIT * 2 ** max(tries - 1, 0) if error.wait is None else error.wait
            if stop.wait(min(wait, LONGEST_WAIT)):
                raise StoppedError from error
    return done, ""


@contextmanager
def _answer(client: httpx.Client, headers: dict[str, str], item: Item) -> Iterator[httpx.Response]:
    """The server's answer. _BrokenError for what another try may cure, RefusedError for other answers than the file."""
    import httpx

    try:
        with client.stream("GET", item.url, headers={**headers, "Accept-Encoding": "identity"}) as answer:
            said = answer.headers.get("X-Error-Message", answer.reason_phrase)
            if answer.status_code in _MAY_PASS:
                raise _BrokenError(RefusedError(answer.status_code, item.name, said), _asked_wait(answer))
            if answer.status_code not in (200, 206, 416):
                raise RefusedError(answer.status_code, item.name, said)
            yield answer
    except httpx.TransportError as error:  # no connection, none any more, too slow, or a body that ends early
        raise _BrokenError(error) from error


def _wrong_size(answer: httpx.Response, item: Item) -> str:
    """ "" or how the size that the server announces differs from the list's."""
    if answer.status_code == 416:
        return f"less than the expected {item.size:,} bytes"
    announced = answer.headers.get("Content-Range", "").rpartition("/")[2] if answer.status_code == 206 else None
    announced = announced or answer.headers.get("Content-Length", "")
    wrong = announced.isdecimal() and int(announced) != item.size
    return f"{int(announced):,} bytes, expected {item.size:,}" if wrong else ""


def _rest(answer: httpx.Response, start: int, stop: threading.Event) -> Iterator[bytes]:
    """The bytes of an answer from `start` on: a server that knows no ranges sends those before, too."""
    before = start if answer.status_code == 200 else 0
    for chunk in answer.iter_raw():
        if stop.is_set():
            raise StoppedError
        if before < len(chunk):
            yield chunk[before:]
        before = max(before - len(chunk), 0)


def _asked_wait(answer: httpx.Response) -> float | None:
    """The seconds of Retry-After; None where it is not there, or a date."""
    said = answer.headers.get("Retry-After", "")
    return float(said) if said.isdecimal() else None
