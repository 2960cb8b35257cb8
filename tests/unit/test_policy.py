"""What the policy lets through: folders, kinds of addresses, and networks."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qwenvl.media import MediaError, MediaPolicy, load_image, open_media
from qwenvl.media.policy import is_public, shown

PPM = b"P6 30 20 255 " + bytes(30 * 20 * 3)

PRIVATE = [
    "localhost", "[::1]", "10.0.0.1", "169.254.169.254", "[::ffff:127.0.0.1]", "0.0.0.0", "0x7f.1", "2130706433",
    "a@127.0.0.1", "[64:ff9b::7f00:1]", "224.0.0.1", "100.64.0.1", "[2002:7f00:1::]", "[fec0::1]", "[fd00::1]",
    "[fe80::1]", "[ff02::1]", "[2001::1]", "[::]", "240.0.0.1", "255.255.255.255", "192.168.1.1", "172.16.0.1",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_private_hosts_are_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *args, **options: pytest.fail("it connected"))
    with pytest.raises(MediaError, match="private"):
        load_image(f"http://{host}/a.png", MediaPolicy.for_server())


@pytest.mark.parametrize("address", ["93.184.216.34", "::ffff:8.8.8.8", "2606:4700::1111", "1.1.1.1"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


def test_open_media_reads_a_local_file_where_it_lies(tmp_path: Path) -> None:
    film = tmp_path / "a film.mp4"
    film.write_bytes(PPM)
    for source in (film, str(film), film.as_uri()):
        with open_media(source, MediaPolicy(max_video_bytes=1)) as path:
            assert path == film
        with pytest.raises(MediaError, match="not allowed"), open_media(source, MediaPolicy.for_server()):
            pass
    assert film.exists()
    with pytest.raises(MediaError, match="does not exist: expected a video file"), open_media(tmp_path / "no.mp4"):
        pass


def test_folders_may_be_listed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in" / "a.png", tmp_path / "out.png"
    inside.parent.mkdir()
    for path in (inside, outside):
        path.write_bytes(PPM)
    os.symlink(outside, tmp_path / "in" / "link.png")
    policy = MediaPolicy(allowed_folders=(tmp_path / "in",))
    assert load_image(inside, policy).size == (30, 20)
    assert load_image(f"file://{inside}", policy).size == (30, 20)
    for path in (outside, tmp_path / "in" / "link.png", f"{tmp_path}/in/../out.png", outside.as_uri(), "a\0b"):
        with pytest.raises(MediaError, match=r"outside the folders|cannot be read"):
            load_image(path, policy)
    for wrong in (str(tmp_path), tmp_path):
        with pytest.raises(ValueError, match="expected a tuple"):
            MediaPolicy(allowed_folders=wrong)  # type: ignore[arg-type]


def test_the_server_policy_takes_changes() -> None:
    policy = MediaPolicy.for_server(timeout=3.0, allow_private=True)
    assert (policy.allow_files, policy.use_proxies, policy.timeout, policy.allow_private) == (False, False, 3.0, True)
    with pytest.raises(TypeError, match="nonsense"):
        MediaPolicy.for_server(nonsense=1)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("https://us:s3cret@a.example/b.png?sig=s3cret#c", "https://a.example/b.png?..."),
        ("HTTP://us@a.example", "HTTP://a.example"),
        ("ftp://us:s3cret@a.example/b", "ftp://a.example/b"),
        ("http://a.example/b@c?d", "http://a.example/b@c?..."),
        ("file:///a#b?c@d.png", "file:///a#b?c@d.png"),
        ("a\nb?.png", "a?b?.png"),
        ("x" * 999, "x" * 160 + "..."),
    ],
)
def test_addresses_in_messages(address: str, text: str) -> None:
    assert shown(address) == text
