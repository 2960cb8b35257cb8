"""What may be read: the policy, its checks, and how addresses stand in messages."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["picture", "video", "document"]
SHOWN = 160  # characters of an address in a message
OUTSIDE = tuple(
    ipaddress.ip_network(block)
    for block in (
        "64:ff9b::/96",  # NAT64: an IPv4 address in IPv6 clothes, which may be a private one
        "2002::/16",  # 6to4: the same
        "2001::/32",  # Teredo: the same
        "fec0::/10",  # site-local, deprecated and still private
    )
)


class MediaError(ValueError):
    """Media that cannot be had or read. The message is one line: what came, what was expected, what to do."""


@dataclass(frozen=True)
class MediaPolicy:
    """What may be read, and how much. The defaults suit a program that runs for its own user; a service that reads
    what strangers name takes `MediaPolicy.for_server()`.

    allow_files: local paths and file:// addresses; allowed_folders: only those below these folders (links are
    followed first). allow_http: http:// and https:// addresses; allowed_domains: only these hosts and the names below
    them. allow_private: hosts on loopback, private, link-local and other networks that are not the public internet,
    and IPv6 addresses that carry an IPv4 address (NAT64, 6to4, Teredo).
    use_proxies: go through the proxies that the environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY). A
    proxy looks names up by itself, so the address that was checked here need not be the one it connects to.
    max_bytes: of a picture, after unpacking; max_video_bytes: of a video that is downloaded or given as data (a local
    video is read where it lies, of any length). max_pixels: of a picture or a frame, seen in the header, before
    anything is decoded; the default is also the most that Pillow opens. timeout, video_timeout: seconds for the whole
    download of a picture or video, all redirects together. max_redirects: each is checked like a new address.
    isolate_videos: videos are decoded in a process of their own, which can be ended and takes its crashes with it;
    False saves its start. decode_timeout: seconds for decoding one video. decode_memory: the most bytes that a
    video's frames take, and with isolate_videos also the decoding itself.
    """

    allow_files: bool = True
    allowed_folders: tuple[str | os.PathLike[str], ...] | None = None
    allow_http: bool = True
    allowed_domains: tuple[str, ...] | None = None
    allow_private: bool = False
    use_proxies: bool = True
    max_bytes: int = 64 * 2**20
    max_video_bytes: int = 2 * 2**30
    max_pixels: int = 178_956_970
    timeout: float = 20.0
    video_timeout: float = 300.0
    max_redirects: int = 5
    isolate_videos: bool = True
    decode_timeout: float = 1200.0
    decode_memory: int = 4 * 2**30

    def __post_init__(self) -> None:
        for field in ("allowed_folders", "allowed_domains"):
            value = getattr(self, field)
            if isinstance(value, str | os.PathLike):
                raise ValueError(f"{field} is {os.fspath(value)!r}: expected a tuple of them, such as ({value!r},)")

    @classmethod
    def for_server(cls, **changes: Any) -> MediaPolicy:
        """No local files, no private networks, no proxies, and less of everything; `changes` are fields.

        Example: MediaPolicy.for_server(allowed_domains=("example.org",)).
        """
        strict: dict[str, Any] = {
            "allow_files": False,
            "use_proxies": False,
            "max_bytes": 20 * 2**20,
            "max_video_bytes": 512 * 2**20,
            "max_pixels": 50_000_000,
            "timeout": 10.0,
            "video_timeout": 60.0,
            "max_redirects": 3,
            "decode_timeout": 120.0,
            "decode_memory": 2 * 2**30,
        }
        return cls(**(strict | changes))

    def bytes_of(self, kind: Kind) -> int:
        """The most bytes of a picture, or of a video or document."""
        return self.max_bytes if kind == "picture" else self.max_video_bytes

    def seconds_of(self, kind: Kind) -> float:
        """The longest download of a picture, or of a video or document."""
        return self.timeout if kind == "picture" else self.video_timeout


DEFAULT_POLICY = MediaPolicy()


def shown(address: str) -> str:
    """An address as it stands in a message: one line, not too long, without the login and the query of an address
    with :// (both may hold secrets)."""
    if re.match(r"(?!file:)[a-z][a-z0-9+.-]*://", address, re.IGNORECASE):
        address = re.sub(r"//[^/?#]*@", "//", address, count=1)
        address = re.sub(r"[?#].*", "?...", address, count=1, flags=re.DOTALL)
    text = "".join(c if c.isprintable() else "?" for c in address[: SHOWN + 1])
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def check_file(path: Path, policy: MediaPolicy) -> None:
    """MediaError when the policy does not let the path be read. Says nothing about whether it exists."""
    name = shown(str(path))
    if not policy.allow_files:
        raise MediaError(f"{name}: local files are not allowed here; send the data itself (data: or bytes)")
    if policy.allowed_folders is None:
        return
    try:
        real = path.resolve()
        inside = any(real.is_relative_to(Path(folder).resolve()) for folder in policy.allowed_folders)
    except (OSError, ValueError, RuntimeError):  # a name that is too long, a zero byte, links in a ring
        raise MediaError(f"{name} cannot be read: expected a path") from None
    if not inside:
        raise MediaError(f"{name} is outside the folders that may be read here")


def check_host(host: str, policy: MediaPolicy, name: str) -> None:
    """MediaError when the policy names domains and the host is in none of them."""
    if policy.allowed_domains is None:
        return
    plain = host.lower().rstrip(".")
    for domain in policy.allowed_domains:
        wanted = domain.lower().rstrip(".").removeprefix("*.").lstrip(".")
        if plain == wanted or plain.endswith("." + wanted):
            return
    raise MediaError(f"{name}: the host {shown(host)} is not among the domains that are allowed here")


def addresses_of(host: str, port: int, policy: MediaPolicy, name: str, known: bool = True) -> list[str]:
    """The host's addresses, looked up once; whoever connects must connect to these and not to the name again.

    Raises MediaError for one with any address that the policy refuses, and for an unknown host; with known=False the
    latter gives none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        if not known:
            return []
        raise MediaError(f"{name}: the host {shown(host)} is not known") from None
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    for address in addresses:
        if not policy.allow_private and not is_public(address):
            raise MediaError(f"{name} points to the private address {address}: private networks are not allowed here")
    return addresses


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, and shows itself as what it is."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    special = ip.is_multicast or ip.is_reserved or ip.is_link_local or ip.is_loopback or ip.is_unspecified
    return ip.is_global and not special and not any(ip in block for block in OUTSIDE)
