"""Downloads: what an address may reach, how much may come, how long it may take, and what messages give away."""

from __future__ import annotations

import base64
import gzip
import io
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from qwenvl.media import MediaError, MediaPolicy, load_image, open_media

RED = (255, 0, 0)
LOCAL = MediaPolicy(allow_private=True)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), RED).save(buffer, "PNG")
    return buffer.getvalue()


PNG = picture()
PACKED = {"gzip": gzip.compress(PNG), "deflate": zlib.compress(PNG), "br": PNG}
HEAD = b"HTTP/1.1 200 OK\r\n"


class _Site(BaseHTTPRequestHandler):
    """Good and bad answers by path; remembers what it was asked."""

    asked: list[tuple[str, str, str]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Host"], self.headers.get("Authorization", "")))
        _, name, *rest = self.path.split("/")
        getattr(self, f"give_{name.partition('?')[0]}", self.give_nothing)(*rest)

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, piece: bytes, times: int) -> None:
        for _ in range(times):
            self.wfile.write(piece)
            time.sleep(0.05)

    def give_picture(self) -> None:
        self.send(200, PNG)

    def give_nothing(self, *rest: str) -> None:
        self.send(404, b"no")

    def give_to(self, status: str, *target: str) -> None:
        self.send(int(status), b"moved", Location="/".join(target).replace("|", "/"))

    def give_loop(self) -> None:
        self.send(302, Location="/loop")

    def give_leak(self, scheme: str, host: str) -> None:
        self.send(302, Location=f"{scheme}://x:s3cret@{host}/?s3cret")

    def give_lost(self) -> None:
        self.send(302)

    def give_slow(self) -> None:
        self.send(200)
        self.drip(b"x", 40)

    def give_slowhead(self) -> None:
        self.wfile.write(HEAD)
        self.drip(b"X-A: b\r\n", 40)

    def give_endless(self) -> None:
        self.send(200)
        while True:
            self.wfile.write(bytes(10_000))

    def give_large(self) -> None:
        self.send(200, b"", Content_Length="1000000000000")

    def give_short(self) -> None:
        self.send(200, PNG[:-5], Content_Length=str(len(PNG)))

    def give_long(self) -> None:
        self.send(200, PNG + b"more", Content_Length=str(len(PNG)))

    def give_packed(self, coding: str) -> None:
        self.send(200, PACKED[coding], Content_Encoding=coding)

    def give_unpackable(self) -> None:
        self.send(200, b"no gzip at all", Content_Encoding="gzip")

    def give_cut(self) -> None:
        self.send(200, PACKED["gzip"][:-12], Content_Encoding="gzip")

    def give_bomb(self) -> None:
        self.send(200, gzip.compress(bytes(30_000_000)), Content_Encoding="gzip")

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet: clients that hang up are what is tested."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(_Site, "asked", [], raising=False)
    server = _Server(("127.0.0.1", 0), _Site)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the names of the test resolve to: one answer a look-up, the last again and again; others do not exist."""
    real, table = socket.getaddrinfo, dict[str, list[str]]()

    def look_up(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        text = host.decode() if isinstance(host, bytes) else host
        if text in table:
            answers = table[text]
            text = answers.pop(0) if len(answers) > 1 else answers[0]
        elif not text.replace(".", "").isdigit() and ":" not in text:
            raise socket.gaierror(-2, "Name or service not known")
        return [row for address in text.split() for row in real(address, port, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


@pytest.mark.feature(55, 70)
def test_a_picture_comes_over_http(site: str) -> None:
    assert load_image(f"{site}/picture", LOCAL).getcolors() == [(600, RED)]
    assert load_image(f"{site.replace('http', 'HTTP')}/picture?a=b#c", LOCAL).size == (30, 20)


@pytest.mark.parametrize(
    ("path", "policy", "says"),
    [
        ("/picture", MediaPolicy(), "private address 127.0.0.1"),
        ("/picture", MediaPolicy.for_server(), "private address 127.0.0.1"),
        ("/picture", replace(LOCAL, allow_http=False), "web addresses are not allowed"),
        ("/picture", replace(LOCAL, max_bytes=20), "limit of 20 bytes"),
        ("/none", LOCAL, "status 404"),
        ("/loop", LOCAL, "more than 5 times"),
        ("/to/302/|picture", replace(LOCAL, max_redirects=0), "more than 0 times"),
        ("/lost", LOCAL, "no new address"),
        ("/to/302/file:||||etc|passwd", LOCAL, "redirects to file:////etc/passwd: expected http"),
        ("/to/301/data:image|png;base64,aaaa", LOCAL, "redirects to data:.*expected http"),
        ("/to/301/ftp:||127.0.0.1|a", LOCAL, "expected http"),
        ("/to/307/http:||[::1", LOCAL, "not a valid address"),
        ("/slow", replace(LOCAL, timeout=0.2), "longer than the limit of 0.2 s"),
        ("/slowhead", replace(LOCAL, timeout=0.2), "longer than the limit of 0.2 s"),
        ("/endless", replace(LOCAL, max_bytes=10**6), "limit of 1000000 bytes"),
        ("/large", LOCAL, "limit of 67108864 bytes"),
        ("/short", LOCAL, "could not be fetched: peer closed connection"),
        ("/packed/br", LOCAL, "packed as 'br'"),
        ("/unpackable", LOCAL, "cannot be unpacked"),
        ("/cut", LOCAL, "cut off"),
        ("/bomb", replace(LOCAL, max_bytes=10**6), "limit of 1000000 bytes"),
    ],
)
def test_bad_answers_are_one_clear_line(site: str, path: str, policy: MediaPolicy, says: str) -> None:
    started = time.monotonic()
    with pytest.raises(MediaError, match=says) as found:
        load_image(site + path, policy)
    assert "\n" not in str(found.value)
    assert time.monotonic() - started < 1.5


def test_an_early_refusal_reads_no_body(site: str) -> None:
    """/large sends no body at all: without a look at Content-Length this would wait, and end as cut off."""
    with pytest.raises(MediaError, match="larger"):
        load_image(f"{site}/large", LOCAL)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_packed_answers_are_unpacked(site: str, coding: str) -> None:
    assert load_image(f"{site}/packed/{coding}", LOCAL).getcolors() == [(600, RED)]


def test_what_comes_after_the_stated_length_is_ignored(site: str) -> None:
    with open_media(f"{site}/long", LOCAL) as path:
        assert path.read_bytes() == PNG


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(site: str, status: int) -> None:
    for target in ("|picture", site.replace("/", "|") + "|picture"):
        assert load_image(f"{site}/to/{status}/{target}", LOCAL).size == (30, 20)


def test_a_redirect_is_checked_like_a_new_address(
    site: str, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first host is public (and leads here by a hooked connection), the redirect names the cloud's own address."""
    _lead_here(site, monkeypatch)
    names["outside.example"] = ["93.184.216.34"]
    for target in ("http:||169.254.169.254|meta", "http:||127.0.0.1|a", "||localhost|a", "http:||inner.example|a"):
        names["inner.example"], names["localhost"] = ["10.1.2.3"], ["127.0.0.1"]
        with pytest.raises(MediaError, match="points to the private address"):
            load_image(f"http://outside.example/to/302/{target}")


def _lead_here(site: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every connection ends at the test's server; the list tells where it was meant to go."""
    real, wanted, here = socket.create_connection, list[tuple[str, int]](), site.rsplit(":", 1)

    def connect(address: tuple[str, int], *args: Any, **options: Any) -> socket.socket:
        wanted.append(address)
        return real(("127.0.0.1", int(here[1])), *args, **options)

    monkeypatch.setattr(socket, "create_connection", connect)
    return wanted


def test_names_that_resolve_to_private_addresses_are_refused(names: dict[str, list[str]]) -> None:
    names["inner.example"] = ["10.0.0.7"]
    names["mixed.example"] = ["93.184.216.34 10.0.0.7"]
    for name in names:
        with pytest.raises(MediaError, match=r"private address 10\.0\.0\.7"):
            load_image(f"https://{name}/a.png")
    with pytest.raises(MediaError, match="not known"):
        load_image("http://nowhere.example/a.png")


def test_rebinding_gains_nothing(site: str, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Public at the check, private ever after: the connection goes to the address that was checked, by name."""
    names["pictures.example"] = ["93.184.216.34", "127.0.0.1"]
    wanted = _lead_here(site, monkeypatch)
    assert load_image("http://pictures.example:8080/picture").size == (30, 20)
    assert wanted == [("93.184.216.34", 8080)]
    assert names["pictures.example"] == ["127.0.0.1"]  # looked up once
    assert _Site.asked == [("/picture", "pictures.example:8080", "")]
    with pytest.raises(MediaError, match=r"private address 127\.0\.0\.1"):
        load_image("http://pictures.example:8080/picture")


def test_tls_goes_by_the_name(names: dict[str, list[str]], site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names["pictures.example"] = ["93.184.216.34"]
    wanted, asked = _lead_here(site, monkeypatch), list[str]()

    class Context:
        def set_alpn_protocols(self, protocols: list[str]) -> None:
            """As httpcore asks."""

        def wrap_socket(self, sock: socket.socket, server_hostname: str) -> None:
            asked.append(server_hostname)
            raise ssl.SSLError("enough")

    monkeypatch.setattr("httpx.create_ssl_context", Context)
    with pytest.raises(MediaError, match=r"could not be fetched: .*enough"):
        load_image("https://pictures.example/picture")
    assert (wanted, asked) == ([("93.184.216.34", 443)], ["pictures.example"])


def test_the_next_address_is_tried(site: str, names: dict[str, list[str]]) -> None:
    names["two.example"] = ["127.0.0.9 127.0.0.1"]  # the server listens on the second only
    assert load_image(f"http://two.example:{site.rsplit(':')[-1]}/picture", LOCAL).size == (30, 20)


def test_domains_may_be_listed(site: str, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    _lead_here(site, monkeypatch)
    for name in ("good.example", "www.good.example", "notgood.example"):
        names[name] = ["93.184.216.34"]
    policy = MediaPolicy(allowed_domains=("Good.example",))
    for name in ("good.example", "www.good.example", "GOOD.example"):
        names.setdefault(name, ["93.184.216.34"])
        assert load_image(f"http://{name}/picture", policy).size == (30, 20)
    for address in ("http://notgood.example/picture", "http://good.example/to/302/http:||notgood.example|picture"):
        with pytest.raises(MediaError, match=r"notgood.example is not among the domains"):
            load_image(address, policy)


def test_logins_reach_their_host_and_no_message(site: str, names: dict[str, list[str]]) -> None:
    port = site.rsplit(":")[-1]
    names["one.example"], names["two.example"] = ["127.0.0.1"], ["127.0.0.1"]
    login = f"http://us%40er:s3cret@one.example:{port}"
    assert load_image(f"{login}/to/302/|picture?sig=s3cret", LOCAL).size == (30, 20)
    assert load_image(f"{login}/to/302/http:||two.example:{port}|picture", LOCAL).size == (30, 20)
    basic = "Basic " + base64.b64encode(b"us@er:s3cret").decode()
    assert [asked[2] for asked in _Site.asked] == [basic, basic, basic, ""]
    for path, policy in (
        ("/none?token=s3cret", LOCAL),
        ("/picture#s3cret", MediaPolicy()),
        ("/slow?s3cret", replace(LOCAL, timeout=0.1)),
        ("/leak/http/two.example", replace(LOCAL, max_redirects=0)),
        ("/leak/http/three.example", LOCAL),
        ("/leak/ftp/two.example", LOCAL),
        ("/leak/http/[::1", LOCAL),
        (":notaport/picture", LOCAL),
    ):
        with pytest.raises(MediaError) as found:
            load_image(login + path, policy)
        assert "s3cret" not in str(found.value)


def test_proxies_of_the_environment(
    site: str, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A proxy is asked for names that only it knows; private ones stay refused; a server's policy goes past it."""
    monkeypatch.setattr(_Site, "do_GET", lambda self: (self.asked.append(self.path), self.send(200, PNG)))
    monkeypatch.setenv("http_proxy", site.removeprefix("http://"))
    names["inner.example"] = ["10.0.0.1"]
    assert load_image("http://far.example/picture").size == (30, 20)
    assert _Site.asked == ["http://far.example/picture"]
    with pytest.raises(MediaError, match="private"):
        load_image("http://inner.example/picture")
    with pytest.raises(MediaError, match="not known"):
        load_image("http://far.example/picture", MediaPolicy.for_server())
    monkeypatch.setenv("no_proxy", "far.example")
    with pytest.raises(MediaError, match="not known"):
        load_image("http://far.example/picture")
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", "socks5://us:s3cret@127.0.0.1:1")
    with pytest.raises(MediaError, match="the proxy of the environment is socks5://") as found:
        load_image("http://far.example/picture")
    assert "s3cret" not in str(found.value)
    assert len(_Site.asked) == 1


SOURCES: dict[str, Callable[[str, Path], Any]] = {
    "http": lambda site, path: f"{site}/picture",
    "data": lambda site, path: "data:video/mp4;base64," + base64.b64encode(PNG).decode(),
    "bytes": lambda site, path: PNG,
}


@pytest.mark.feature(70)
@pytest.mark.parametrize("source", SOURCES)
def test_open_media_gives_a_file_that_goes_away(site: str, tmp_path: Path, source: str) -> None:
    given = SOURCES[source](site, tmp_path)
    with open_media(given, LOCAL) as path:
        assert path.read_bytes() == PNG
    assert not path.exists()
    with pytest.raises(KeyError), open_media(given, LOCAL) as path:
        raise KeyError
    assert not path.exists()
    before = set(path.parent.glob("qwenvl-*"))
    with pytest.raises(MediaError, match="limit"), open_media(given, replace(LOCAL, max_video_bytes=20)):
        pass
    assert set(path.parent.glob("qwenvl-*")) == before
