"""Addresses -> bytes, within limits."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote
from urllib.request import url2pathname

SHOWN = 160  # characters of an address in a message
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses in IPv6 clothes


class MediaError(ValueError):
    """A picture that cannot be had or read. The message is one line: what came, what was expected, what to do."""


@dataclass(frozen=True)
class MediaPolicy:
    """What may be read, and how much. max_pixels is checked from the header, before anything is decoded; the default
    is also the most that Pillow opens.

    allow_files: local paths and file:// addresses. allow_private: http(s) hosts on loopback, private or link-local
    networks. timeout: seconds for a whole download.
    """

    allow_files: bool = True
    allow_private: bool = False
    max_bytes: int = 64 * 2**20
    max_pixels: int = 178_956_970
    timeout: float = 20.0


def shown(address: str) -> str:
    """An address as it stands in a message: one line, not too long."""
    text = "".join(c if c.isprintable() else "?" for c in address[: SHOWN + 1])
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def read_bytes(source: str | os.PathLike[str], policy: MediaPolicy) -> bytes:
    """The bytes behind a path, file:// path, data: address or http(s) address. Raises MediaError."""
    text = os.fspath(source)
    if not text:
        raise MediaError("the name of the picture is empty: expected a path or an address")
    scheme = text.split(":", 1)[0].lower() if ":" in text[:8] else ""
    if scheme == "data":
        return _data_bytes(text, policy)
    if scheme in ("http", "https"):
        return _download(text, policy)
    if scheme == "file":
        local = re.match(r"file:(?://(?:localhost)?)?(?=/)(?!//)", text, re.IGNORECASE)
        if local is None:
            raise MediaError(f"{shown(text)} is on another machine or not absolute: expected file:///path")
        rest = text[local.end() :]
        as_it_is = policy.allow_files and os.path.isfile(rest)  # some write the path without escaping it
        return _file_bytes(Path(rest if as_it_is else url2pathname(rest)), policy)
    if "://" in text:
        raise MediaError(f"{shown(text)} cannot be fetched: expected a path, file://, http(s):// or data: address")
    return _file_bytes(Path(text), policy)


def _file_bytes(path: Path, policy: MediaPolicy) -> bytes:
    name = shown(str(path))
    if not policy.allow_files:
        raise MediaError(f"{name}: local files are not allowed here; send the picture itself (data: or bytes)")
    try:
        if path.is_dir():
            raise MediaError(f"{name} is a folder: expected a picture file")
        if not path.is_file():
            kind = "is no regular file" if path.exists() else "does not exist"
            raise MediaError(f"{name} {kind}: expected a picture file")
        size = path.stat().st_size
        if size > policy.max_bytes:
            raise MediaError(f"{name} has {size} bytes, the limit is {policy.max_bytes}")
        return path.read_bytes()
    except OSError as error:  # no permission, a name that is too long
        raise MediaError(f"{name} cannot be read: {error.strerror}") from None


def _data_bytes(text: str, policy: MediaPolicy) -> bytes:
    """data:[type][;base64],... as browsers and the Qwen documents write it (also `data:image;base64,`)."""
    head, comma, body = text.partition(",")
    if not comma or not head.endswith(";base64"):
        raise MediaError(f"the address {text[:40]!r}... is not data:image/...;base64,...: encode the picture in base64")
    if len(body) * 3 // 4 > policy.max_bytes:
        raise MediaError(f"the data: picture has about {len(body) * 3 // 4} bytes, the limit is {policy.max_bytes}")
    try:
        return base64.b64decode("".join(unquote(body).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"the data: picture is not valid base64 ({error}): encode the picture's bytes again") from None


def _download(address: str, policy: MediaPolicy) -> bytes:
    """GET without redirects, bounded in size and time."""
    import time

    import httpx

    name = shown(address)
    deadline, parts, size = time.monotonic() + policy.timeout, [], 0
    try:
        url = httpx.URL(address)
        if not url.host:
            raise MediaError(f"{name} has no host: expected http(s)://host/path")
        if not policy.allow_private:
            _refuse_private(url.host, name)
        with httpx.stream("GET", url, timeout=policy.timeout, follow_redirects=False) as response:
            if response.has_redirect_location:
                target = shown(response.headers["location"])
                raise MediaError(f"{name} answered with status {response.status_code}: give the address {target}")
            if response.status_code != 200:
                raise MediaError(f"{name} answered with status {response.status_code}: expected 200 and a picture")
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > policy.max_bytes:
                    raise MediaError(f"{name} is larger than the limit of {policy.max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise MediaError(f"{name} took longer than the limit of {policy.timeout:g} s")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise MediaError(f"{name} could not be fetched: {error}") from None
    return b"".join(parts)


def _refuse_private(host: str, name: str) -> None:
    """MediaError when the host is not a public address."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        raise MediaError(f"{name}: the host {shown(host)} is not known") from None
    for text in found:
        ip = ipaddress.ip_address(text.split("%")[0])
        if not ip.is_global or ip.is_multicast or ip in NAT64:
            raise MediaError(f"{name} points to the private address {ip}: private networks are not allowed here")
