"""Are a model's files what the hub says they are?

What is known of a file comes from the hub's list, which `Record` keeps beside the snapshot; else from the cache itself:
a blob is named by its hash, and a download into a folder leaves a note of each. Hashes are SHA-256 for large files, and
git's SHA-1 of a blob for small ones. Files are read in blocks, several at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qwenvl.hub.progress import byte_bar

if TYPE_CHECKING:
    from hashlib import _Hash
    from io import BufferedIOBase

BLOCK = 8 * 2**20
READERS = 4
LONG = 2**30  # bytes from which a check is worth a line of progress
NOTES = Path(".cache", "huggingface", "download")
WEIGHTS = (".safetensors", ".gguf", ".bin")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Known:
    """What a file has to be. hash: SHA-256 (64 digits), git's SHA-1 (40 digits), or None where the hub gives none."""

    size: int | None = None
    hash: str | None = None


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, in a sentence. kind "unknown" means that it cannot be told: no hash is known for the
    file, or, where `file` is empty, for the whole folder."""

    file: str
    kind: Literal["missing", "size", "hash", "unknown"]
    text: str

    def __str__(self) -> str:
        return self.text


def verify(folder: str | Path, on_progress: Callable[[int], None] | None = None) -> list[Problem]:
    """Read every file of a model whose hash is known, and say what is wrong; [] is a model as the hub has it.

    folder: what `resolve` returned, a download into a folder of one's own (local_dir), or any other. on_progress:
    called with bytes that were read, from several threads; left out, a line on the terminal. Needs no network.
    """
    root = snapshot_of(Path(folder))
    known = known_files(root)
    if not any(item.hash for item in known.values()):
        text = f"no hashes are known for {root}: it was not fetched from a hub, or by a program that keeps none"
        return [Problem("", "unknown", text)]
    present = {name: item for name, item in known.items() if (root / name).exists()}
    problems = _missing(root, known)
    unknown = [name for name in _weights(root) if not known.get(name, Known()).hash]
    problems += [Problem(name, "unknown", f"{root / name}: no hash is known for it") for name in unknown]
    return problems + _wrong(root, present, on_progress)


def snapshot_of(path: Path) -> Path:
    """The folder of a model that a file or folder belongs to: a snapshot of a hub's cache, or its own folder."""
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and folder.is_dir():
            return folder
    return path if path.is_dir() else path.parent


def known_files(root: Path) -> dict[str, Known]:
    """{name: what is known of it} for the files of a folder, and those that belong there. Reads no contents."""
    found: dict[str, Known] = {}
    for note in sorted((root / NOTES).rglob("*.metadata")):
        lines = note.read_text(encoding="utf-8").split("\n")  # the commit, the hash, the time
        if len(lines) > 1 and _HASH.fullmatch(lines[1]):
            found[note.relative_to(root / NOTES).as_posix().removesuffix(".metadata")] = Known(None, lines[1])
    if root.parent.name == "snapshots":
        for path in _files(root):
            blob = Path(os.readlink(path)).name if path.is_symlink() else ""
            if _HASH.fullmatch(blob):
                found[path.relative_to(root).as_posix()] = Known(None, blob)
    record = Record.read(root)
    listed = {n: k for n, k in record.files.items() if n in found or (root / n).exists() or n in record.wanted}
    return found | {name: item for name, item in listed.items() if item.hash or name not in found}


def check(root: Path, known: Mapping[str, Known], others: bool = True) -> list[Problem]:
    """What is wrong with the files of a snapshot, of which those that were found right before and have not changed
    since are not read again. others: False leaves it at the sizes of those that were not."""
    record = Record.read(root)
    problems = _missing(root, known)
    new = {name: item for name, item in known.items() if (root / name).exists() and not record.has_seen(root, name)}
    if not new or not others:
        sizes = {name: Known(item.size) for name, item in new.items()}
        return problems + _wrong(root, sizes, None)
    wrong = _wrong(root, new, None)
    for name in set(new) - {problem.file for problem in wrong}:
        record.see(root, name)
    record.write(root)
    return problems + wrong


@dataclass
class Record:
    """What we know of a snapshot. files: the hub's list; wanted: those that were asked for so far; seen: name -> the
    size and time of change with which a file was found right."""

    files: dict[str, Known] = field(default_factory=dict)
    wanted: set[str] = field(default_factory=set)
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    @staticmethod
    def places(root: Path) -> tuple[Path, Path]:
        """Beside the snapshot; and in the user's own cache, for where only others may write."""
        own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwenvl" / "hub"
        key = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:32]
        in_cache = root.parent.name == "snapshots"
        beside = root.parent.parent / ".qwenvl" / f"{root.name}.json" if in_cache else root / ".qwenvl.json"
        return beside, own / f"{key}.json"

    @classmethod
    def read(cls, root: Path) -> Record:
        """What is on disk; empty when there is none, or it does not read: then files are checked again."""
        for place in cls.places(root):
            try:
                said = json.loads(place.read_text(encoding="utf-8"))
                files = {name: Known(item["size"], item["hash"]) for name, item in said["files"].items()}
                seen = {name: (int(size), int(time)) for name, (size, time) in said["seen"].items()}
                return cls(files, set(said["wanted"]), seen)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
        return cls()

    def write(self, root: Path) -> None:
        """Keep it, with what another process kept meanwhile. Where nobody lets us write, it is known until we end."""
        before = Record.read(root)
        said = {
            "files": {name: asdict(item) for name, item in sorted((before.files | self.files).items())},
            "wanted": sorted(before.wanted | self.wanted),
            "seen": dict(sorted((before.seen | self.seen).items())),
        }
        for place in self.places(root):
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                draft = place.with_name(f"{place.name}.{os.getpid()}.{threading.get_ident()}")
                draft.write_text(json.dumps(said, indent=1), encoding="utf-8")
                draft.replace(place)
                return
            except OSError:
                continue

    def see(self, root: Path, name: str) -> None:
        self.seen[name] = _state(root / name)

    def has_seen(self, root: Path, name: str) -> bool:
        return self.seen.get(name) == _state(root / name)


def new_digest(expected: str, size: int) -> _Hash:
    """The empty digest of the kind that `expected` is of. size: of the whole file; git hashes it first."""
    if len(expected) == 64:
        return hashlib.sha256()
    digest = hashlib.sha1(usedforsecurity=False)
    digest.update(b"blob %d\0" % size)
    return digest


def feed(digest: _Hash, file: BufferedIOBase, report: Callable[[int], None]) -> int:
    """Put what an open file still has into a digest, a block at a time. Returns how many bytes that were."""
    total, buffer = 0, memoryview(bytearray(BLOCK))
    while count := file.readinto(buffer):
        digest.update(buffer[:count])
        report(count)
        total += count
    return total


def _wrong(root: Path, known: Mapping[str, Known], on_progress: Callable[[int], None] | None) -> list[Problem]:
    """The files, all there, whose size or contents are not as known; the large ones first, several at a time."""
    sizes = {name: (root / name).stat().st_size for name in known}
    names = sorted(known, key=lambda name: -sizes[name])
    total = sum(size for name, size in sizes.items() if known[name].hash)
    with byte_bar("checking", total if total >= LONG and on_progress is None else 0) as bar:
        report = on_progress or bar
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(lambda name: _differs(root, name, known[name], sizes[name], report), names)
            return [problem for problem in found if problem is not None]


def _differs(root: Path, name: str, known: Known, size: int, report: Callable[[int], None]) -> Problem | None:
    if known.size is not None and known.size != size:
        return Problem(name, "size", f"{root / name} has {size:,} bytes, expected {known.size:,}")
    if known.hash is None:
        return None
    digest = new_digest(known.hash, size)
    with (root / name).open("rb") as file:
        feed(digest, file, report)
    if digest.hexdigest() == known.hash:
        return None
    kind = "SHA-256" if len(known.hash) == 64 else "git hash"
    return Problem(name, "hash", f"{root / name} has the {kind} {digest.hexdigest()}, expected {known.hash}")


def _missing(root: Path, known: Iterable[str]) -> list[Problem]:
    return [Problem(n, "missing", f"{root / n} is missing") for n in sorted(known) if not (root / n).exists()]


def _weights(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in _files(root) if path.suffix in WEIGHTS]


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() or path.is_symlink())


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
