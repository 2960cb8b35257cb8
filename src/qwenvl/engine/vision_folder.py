"""Embeddings of pictures in files, which outlive the process and are shared by processes.

One safetensors file an item, folder/<fingerprint>/<first two of the key>/<key>.safetensors, readable by its owner only
(embeddings tell about pictures). Files are written beside their place and renamed, so that nobody reads half of one,
and carry a checksum. Nothing here ever fails a request: what cannot be read is not there, what cannot be written is
not kept, and one warning says so.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

NAME = "embeds"
SUFFIX = ".safetensors"
CHECK_BYTES = 8  # hex digits of the crc32 behind the file's last byte
STALE_SECONDS = 3600.0  # files that nobody went on writing for so long are left over


class VisionFolder:
    """Embeddings by key, below `folder`, for one tower.

    fingerprint: of the tower (see vision_cache.tower_fingerprint). max_bytes: of all files in `folder`, those of other
    towers included; the ones whose last use is longest ago go first. Each process counts for itself and looks again
    after a tenth of max_bytes was written, so n processes exceed the bound by at most n tenths.
    """

    def __init__(self, folder: Path, max_bytes: int, fingerprint: str) -> None:
        if not is_hex(fingerprint):
            raise ValueError(f"fingerprint={fingerprint!r}: files need the one that tower_fingerprint(model) returns")
        self._root, self._max_bytes, self._fingerprint = folder, max_bytes, fingerprint
        self._room = 0  # bytes that may be written before the files are counted again
        self._warned = False

    def read(self, key: str) -> Tensor | None:
        """The embeddings of a key, None when there are none. A damaged file is removed."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        body, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
        try:
            if check != _checksum(body):
                raise ValueError("the checksum does not fit")
            embeds = load(body)[NAME]
        except (ValueError, KeyError, SafetensorError):
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # the time of last use
        return embeds

    def write(self, key: str, embeds: Tensor) -> None:
        """Keep embeddings [V, D] under a key; nothing happens when they are there, or are larger than the bound."""
        path = self._path(key)
        try:
            if path.exists():
                return
            body = save({NAME: embeds.detach().cpu().contiguous()})
            size = len(body) + CHECK_BYTES
            if size > self._max_bytes:
                return
            if size > self._room:
                self._make_room(size)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_whole(path, body)
            self._room -= size
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(f"embeddings are not kept in {self._root}: {error}", stacklevel=4)

    def _path(self, key: str) -> Path:
        return self._root / self._fingerprint / key[:2] / f"{key}{SUFFIX}"

    def _make_room(self, size: int) -> None:
        """Count the files, and remove those of longest ago until `size` and a tenth of the bound fit beside them."""
        tenth, now = self._max_bytes // 10, time.time()
        files: list[tuple[float, int, str]] = []
        for entry in _files(self._root):
            with suppress(OSError):
                about = entry.stat()
                if entry.name.endswith(SUFFIX):
                    files.append((about.st_mtime, about.st_size, entry.path))
                elif now - about.st_mtime > STALE_SECONDS:
                    os.unlink(entry.path)
        left = self._max_bytes - size - sum(bytes for _, bytes, _ in files)
        for _, bytes, path in sorted(files) if left < 0 else ():
            with suppress(FileNotFoundError):
                os.unlink(path)
            left += bytes
            if left >= tenth:
                break
        self._room = size + max(0, min(left, tenth))


def is_hex(text: str) -> bool:
    """Whether it is made of hexadecimal digits only, and so is safe in a path."""
    return bool(text) and not set(text) - set("0123456789abcdef")


def _checksum(data: bytes) -> bytes:
    return f"{zlib.crc32(data):08x}".encode()


def _files(root: Path) -> list[os.DirEntry[str]]:
    """The cache's files: two folders below the root, and nothing else that may lie there."""
    found: list[os.DirEntry[str]] = []
    folders = [str(root)]
    for depth in range(3):
        below: list[str] = []
        for folder in folders:
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if depth < 2 and entry.is_dir(follow_symlinks=False) and is_hex(entry.name):
                        below.append(entry.path)
                    elif depth == 2 and entry.is_file(follow_symlinks=False) and is_hex(entry.name.split(".")[0]):
                        found.append(entry)
        folders = below
    return found


def _write_whole(path: Path, body: bytes) -> None:
    """Write a file that is there whole or not at all."""
    handle, name = tempfile.mkstemp(".tmp", f"{path.stem}.", path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
            file.write(_checksum(body))
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
