"""http(s) -> bytes: bounded in size, time and redirects, and connected only to addresses that were checked.

Each hop looks its host up once, checks what it got, and connects to that; the name is never looked up again, so a host
that changes its answer (DNS rebinding) gains nothing. The Host header and the TLS certificate still go by the name.
"""

from __future__ import annotations

import base64
import ssl
import time
import zlib
from collections.abc import Callable, Iterable
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from qwenvl.media.policy import Kind, MediaError, MediaPolicy, addresses_of, check_host, shown

PIECE = 64 * 2**10
REDIRECTS = (301, 302, 303, 307, 308)


def download(address: str, policy: MediaPolicy, kind: Kind, write: Callable[[bytes], object]) -> None:
    """GET the address and hand its body to `write`, piece by piece. Raises MediaError."""
    from qwenvl import __version__

    name, clock = shown(address), _Clock(policy.seconds_of(kind), shown(address))
    url = _parsed(address, name)
    try:
        for _ in range(policy.max_redirects + 1):
            with (
                _connections(url, policy, clock) as pool,
                pool.stream("GET", _core_url(url), headers=_headers(url, f"qwenvl/{__version__}")) as response,
            ):
                if response.status in REDIRECTS:
                    url = _next(url, response)
                    continue
                if response.status != 200:
                    here = shown(str(url))
                    raise MediaError(f"{here} answered with status {response.status}: expected 200 and a {kind}")
                return _body(response, policy.bytes_of(kind), name, write)
    except httpcore.TimeoutException:
        raise clock.over() from None
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
        reason = shown(str(error).split("\n")[0]) or type(error).__name__
        raise MediaError(f"{name} could not be fetched: {reason}") from None
    raise MediaError(f"{name} redirects more than {policy.max_redirects} times: give the address it leads to")


class _Clock:
    """The time left for the whole download: look-ups, hops and body together."""

    def __init__(self, seconds: float, name: str) -> None:
        self._end, self._seconds, self._name = time.monotonic() + seconds, seconds, name

    def left(self) -> float:
        """Seconds, more than 0. Raises MediaError when there are none."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise self.over()
        return seconds

    def over(self) -> MediaError:
        return MediaError(f"{self._name} took longer than the limit of {self._seconds:g} s")


def _parsed(address: str, name: str) -> httpx.URL:
    try:
        url = httpx.URL(address)
        host = url.raw_host
    except (httpx.InvalidURL, ValueError):  # its message may quote a password
        raise MediaError(f"{name} could not be fetched: it is not a valid address") from None
    if not host:
        raise MediaError(f"{name} has no host: expected http(s)://host/path")
    return url


def _core_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _headers(url: httpx.URL, agent: str) -> list[tuple[bytes, bytes]]:
    """No compression asked for: pictures and videos are packed already. A login in the address goes to that host."""
    headers = [(b"Host", url.netloc), (b"User-Agent", agent.encode()), (b"Accept", b"*/*")]
    headers.append((b"Accept-Encoding", b"identity"))
    if url.username or url.password:
        login = base64.b64encode(f"{url.username}:{url.password}".encode())
        headers.append((b"Authorization", b"Basic " + login))
    return headers


def _next(url: httpx.URL, response: httpcore.Response) -> httpx.URL:
    """Where a redirect leads; it is checked like any address when it is connected to."""
    location = _by_name(response).get(b"location", b"").decode("utf-8", "replace")
    here = shown(str(url))
    if not location:
        raise MediaError(f"{here} answered with status {response.status} and no new address: expected 200")
    try:
        target = url.join(location)
    except (httpx.InvalidURL, ValueError):
        raise MediaError(f"{here} redirects to {shown(location)}, which is not a valid address") from None
    if target.scheme not in ("http", "https"):
        raise MediaError(f"{here} redirects to {shown(location)}: expected http:// or https://")
    return _parsed(str(target), shown(location))


def _connections(url: httpx.URL, policy: MediaPolicy, clock: _Clock) -> httpcore.ConnectionPool:
    """Connections to the url's checked addresses, or to the proxy of the environment."""
    name, host = shown(str(url)), url.raw_host.decode("ascii")
    check_host(host, policy, name)
    port = url.port or (443 if url.scheme == "https" else 80)
    proxy = _proxy_of(url) if policy.use_proxies else None
    context = httpx.create_ssl_context() if url.scheme == "https" else None
    if proxy is None:
        checked = addresses_of(host, port, policy, name)
        return httpcore.ConnectionPool(ssl_context=context, network_backend=_Backend(checked, clock))
    addresses_of(host, port, policy, name, known=False)  # a proxy may know names that this machine does not
    login = (proxy.username.encode(), proxy.password.encode()) if proxy.username else None
    own = addresses_of(proxy.raw_host.decode("ascii"), proxy.port or 80, MediaPolicy(allow_private=True), "the proxy")
    return httpcore.HTTPProxy(
        _core_url(proxy), proxy_auth=login, ssl_context=context, network_backend=_Backend(own, clock)
    )


def _proxy_of(url: httpx.URL) -> httpx.URL | None:
    """The proxy that the environment names for this address."""
    proxies = getproxies()
    given = proxies.get(url.scheme) or proxies.get("all")
    if not given or proxy_bypass(url.netloc.decode("ascii")):
        return None
    proxy = _parsed(given if "://" in given else f"http://{given}", "the proxy of the environment")
    if proxy.scheme not in ("http", "https"):
        raise MediaError(f"the proxy of the environment is {proxy.scheme}://: expected http://, or set NO_PROXY")
    return proxy


class _Backend(httpcore.NetworkBackend):
    """Connects to the addresses given, in turn, whatever name the connection is for."""

    def __init__(self, addresses: list[str], clock: _Clock) -> None:
        self._addresses, self._clock, self._sockets = addresses, clock, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        for place, address in enumerate(self._addresses):
            share = self._clock.left() / (len(self._addresses) - place)  # a dead address leaves time for the next
            try:
                stream = self._sockets.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if place + 1 == len(self._addresses):
                    raise
            else:
                return _Stream(stream, self._clock)
        raise AssertionError("a host without addresses")


class _Stream(httpcore.NetworkStream):
    """A stream whose every wait ends with the download's time, so that a slow drip ends too."""

    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock) -> None:
        self._stream, self._clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._clock.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._clock.left()), self._clock)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


def _by_name(response: httpcore.Response) -> dict[bytes, bytes]:
    return {key.lower(): value for key, value in response.headers}


def _body(response: httpcore.Response, limit: int, name: str, write: Callable[[bytes], object]) -> None:
    """The body, unpacked, within the limit: seen in Content-Length, else while it comes."""
    headers = _by_name(response)
    too_large = MediaError(f"{name} is larger than the limit of {limit} bytes")
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > limit:
        raise too_large
    coding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    packed = coding in ("gzip", "x-gzip", "deflate")
    if not packed and coding not in ("identity", ""):
        raise MediaError(f"{name} came packed as {shown(coding)!r}: expected gzip, deflate or nothing")
    unpack = zlib.decompressobj(47) if packed else None  # 47: gzip or zlib, as its header says
    came = written = 0
    for piece in response.iter_stream():
        came += len(piece)
        for part in _unpacked(unpack, piece, name) if unpack else (piece,):
            written += len(part)
            if max(came, written) > limit:
                raise too_large
            write(part)
    if unpack is not None and not unpack.eof:
        raise MediaError(f"{name} is cut off: its {coding} data has no end")


def _unpacked(unpack: zlib._Decompress, piece: bytes, name: str) -> Iterable[bytes]:
    """The data of a packed piece, never more than a little at once."""
    while piece and not unpack.eof:
        try:
            part = unpack.decompress(piece, PIECE)
        except zlib.error:
            raise MediaError(f"{name} is damaged: its packed data cannot be unpacked") from None
        piece = unpack.unconsumed_tail
        yield part
