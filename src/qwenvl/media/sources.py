"""Addresses -> bytes or a local file, within the policy."""

from __future__ import annotations

import base64
import binascii
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote
from urllib.request import url2pathname

from qwenvl.media.policy import DEFAULT_POLICY, Kind, MediaError, MediaPolicy, check_file, shown

__all__ = ["MediaError", "MediaPolicy", "open_media", "read_bytes", "shown"]


def read_bytes(source: str | os.PathLike[str], policy: MediaPolicy, kind: Kind = "picture") -> bytes:
    """The bytes behind a path, file:// path, data: address or http(s) address. Raises MediaError."""
    text = os.fspath(source)
    scheme = _scheme(text, kind)
    if scheme == "data":
        return _data_bytes(text, policy, kind)
    if scheme == "http":
        parts: list[bytes] = []
        _fetch(text, policy, kind, parts.append)
        return b"".join(parts)
    path = _file(text, policy, kind)
    try:
        size = path.stat().st_size
        if size > policy.bytes_of(kind):
            raise MediaError(f"{shown(str(path))} has {size} bytes, the limit is {policy.bytes_of(kind)}")
        return path.read_bytes()
    except OSError as error:  # no permission
        raise MediaError(f"{shown(str(path))} cannot be read: {error.strerror}") from None


@contextmanager
def open_media(
    source: str | os.PathLike[str] | bytes | bytearray, policy: MediaPolicy = DEFAULT_POLICY, kind: Kind = "video"
) -> Iterator[Path]:
    """The local file behind a source, as a context: a file itself, or what was downloaded or given as data in a
    temporary file that goes away at the end. Raises MediaError.

    source: path, file:// path, http(s) address, data: address or bytes. Nothing is held in memory as a whole but
    data: addresses and bytes.
    """
    data = bytes(source) if isinstance(source, bytes | bytearray) else None
    text = "" if isinstance(source, bytes | bytearray) else os.fspath(source)
    scheme = "data" if data is not None else _scheme(text, kind)
    if scheme == "file":
        yield _file(text, policy, kind)
        return
    handle, name = tempfile.mkstemp(prefix="qwenvl-", suffix=f".{kind}")
    try:
        with os.fdopen(handle, "wb") as file:
            if scheme == "http":
                _fetch(text, policy, kind, file.write)
            else:
                file.write(_data_bytes(text, policy, kind) if data is None else _within(data, policy, kind))
        yield Path(name)
    finally:
        os.unlink(name)


def _scheme(text: str, kind: Kind) -> str:
    """data, http or file. Raises MediaError for others."""
    if not text:
        raise MediaError(f"the name of the {kind} is empty: expected a path or an address")
    scheme = text.split(":", 1)[0].lower() if ":" in text[:8] else ""
    if scheme == "data":
        return "data"
    if scheme in ("http", "https"):
        return "http"
    if "://" in text and scheme != "file":
        raise MediaError(f"{shown(text)} cannot be fetched: expected a path, file://, http(s):// or data: address")
    return "file"


def _fetch(text: str, policy: MediaPolicy, kind: Kind, write: Callable[[bytes], object]) -> None:
    if not policy.allow_http:
        raise MediaError(f"{shown(text)}: web addresses are not allowed here; send the data itself (data: or bytes)")
    from qwenvl.media.download import download

    download(text, policy, kind, write)


def _file(text: str, policy: MediaPolicy, kind: Kind) -> Path:
    """The path of a regular file that may be read."""
    path = Path(text)
    if text[:5].lower() == "file:":
        local = re.match(r"file:(?://(?:localhost)?)?(?=/)(?!//)", text, re.IGNORECASE)
        if local is None:
            raise MediaError(f"{shown(text)} is on another machine or not absolute: expected file:///path")
        rest = text[local.end() :]
        as_it_is = policy.allow_files and os.path.isfile(rest)  # some write the path without escaping it
        path = Path(rest if as_it_is else url2pathname(rest))
    name = shown(str(path))
    check_file(path, policy)
    try:
        if path.is_dir():
            raise MediaError(f"{name} is a folder: expected a {kind} file")
        if not path.is_file():
            says = "is no regular file" if path.exists() else "does not exist"
            raise MediaError(f"{name} {says}: expected a {kind} file")
    except OSError as error:  # no permission, a name that is too long
        raise MediaError(f"{name} cannot be read: {error.strerror}") from None
    return path


def _within(data: bytes, policy: MediaPolicy, kind: Kind) -> bytes:
    if len(data) > policy.bytes_of(kind):
        raise MediaError(f"the {kind} has {len(data)} bytes, the limit is {policy.bytes_of(kind)}")
    return data


def _data_bytes(text: str, policy: MediaPolicy, kind: Kind) -> bytes:
    """data:[type][;base64],... as browsers and the Qwen documents write it (also `data:image;base64,`)."""
    head, comma, body = text.partition(",")
    if not comma or not head.endswith(";base64"):
        wanted = "image" if kind == "picture" else "video"
        raise MediaError(
            f"the address {text[:40]!r}... is not data:{wanted}/...;base64,...: encode the {kind} in base64"
        )
    size, limit = len(body) * 3 // 4, policy.bytes_of(kind)
    if size > limit:
        raise MediaError(f"the data: {kind} has about {size} bytes, the limit is {limit}")
    try:
        return base64.b64decode("".join(unquote(body).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"the data: {kind} is not valid base64 ({error}): encode the {kind}'s bytes again") from None
