"""Inputs of the verbs: files, folders, patterns and addresses -> a plain list; and the loop over that list.

In: what the user typed. Out: names that the media and document rooms can open, in an order that people expect, each
once; then a record for every one of them. Nothing is opened here, so that ten thousand names cost next to nothing.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

if TYPE_CHECKING:
    from qwenvl.media.kinds import SourceKind

_ADDRESS = re.compile(r"(https?://|file:|data:)", re.IGNORECASE)
_PICTURES: tuple[SourceKind, ...] = ("image",)
_NAMES = {"image": "picture", "video": "video", "pdf": "PDF"}
# What verbs write beside a picture NAME.png, and the folders that `parse` writes for a document NAME.
_DRAWN = ("-boxes", "-text")
_FOLDERS = ("-crops", "-overlay", "-pages")
# No input after it fares better: no room, no writing there, no reader.
_ENDS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EPIPE)


def expand(sources: list[str], kinds: Collection[SourceKind] = _PICTURES, names: TextIO | None = None) -> list[str]:
    """Every single input that `sources` stand for, in order, each once.

    A file is taken by its name, whatever it ends with, as its content decides what it is. A folder gives the files of
    these kinds within it and the folders below it, in natural order (page-2 before page-10); so does a pattern (*, ?,
    [...], ** for any depth) that the shell has left as it was. Hidden files are passed over, and in folders what an
    earlier run wrote beside its input (NAME-boxes.png, NAME-text.png, NAME-pages/ ...). http(s)://, file:// and
    data: addresses are passed on. "-" stands for a list of such names, one a line, read from `names` (stdin); a file
    in that list that does not exist is passed on, so that it fails alone.
    Raises ValueError for a name that does not exist, a folder or pattern that gives nothing, and when all that is left
    is plainly of another kind.
    """
    from qwenvl.media.kinds import kind_of

    found: dict[str, str] = {}
    for source in sources:
        if source == "-":
            listed = [line.strip() for line in (names or sys.stdin) if line.strip()]
            if not listed:
                raise ValueError("- reads the names of inputs from stdin, one a line, and there were none")
        else:
            listed = [source]
        for one in (one for name in listed for one in _expand_one(name, kinds, listed=source == "-")):
            found.setdefault(one if _ADDRESS.match(one) else os.path.abspath(one), one)
    if found and all(kind_of(one) not in (None, *kinds) for one in found.values()):
        first = next(iter(found.values()))
        kind = kind_of(first)
        assert kind is not None
        raise ValueError(f"{_short(first)} is a {_NAMES[kind]}: expected a {wanted(kinds)}")
    return list(found.values())


def wanted(kinds: Collection[SourceKind]) -> str:
    """Kinds in words: "picture or PDF"."""
    return " or ".join(_NAMES[kind] for kind in kinds)


def _expand_one(source: str, kinds: Collection[SourceKind], listed: bool) -> Iterator[str]:
    if _ADDRESS.match(source):
        yield source
        return
    if not source:
        raise ValueError(f"the name of an input is empty: expected a {wanted(kinds)}, a folder or a pattern")
    path = Path(source)
    try:
        is_folder, is_there = path.is_dir(), os.path.lexists(path)
    except (OSError, ValueError) as error:  # a name that is too long, or has a zero byte
        if listed:
            yield source
            return
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{_short(source)} is no possible name of a file: {reason}") from None
    if is_folder:
        yield from _of_folder(path, kinds)
    elif is_there or (listed and not glob.has_magic(source)):
        yield source
    elif glob.has_magic(source):
        yield from _of_pattern(source, kinds)
    else:
        raise ValueError(f"{_short(source)} does not exist: expected a {wanted(kinds)}, a folder or a pattern")


def _of_folder(folder: Path, kinds: Collection[SourceKind]) -> Iterator[str]:
    files = list(_files_below(folder, kinds))
    if not files:
        raise ValueError(
            f"the folder {_short(str(folder))} and those below it have no {wanted(kinds)}: "
            f"looked for names that end with {_endings(kinds)}"
        )
    yield from sorted(files, key=natural)


def _files_below(folder: Path, kinds: Collection[SourceKind]) -> Iterator[str]:
    """Files of these kinds, hidden ones and folders behind links left out (a link may lead back up)."""
    from qwenvl.media.kinds import kind_of

    for root, folders, files in os.walk(folder):
        stems = {os.path.splitext(name)[0] for name in files}
        folders[:] = [name for name in folders if not name.startswith(".") and not _made(name, _FOLDERS, stems)]
        for name in files:
            stem, ending = os.path.splitext(name)
            if (
                not name.startswith(".")
                and kind_of(name) in kinds
                and not (ending == ".png" and _made(stem, _DRAWN, stems))
            ):
                yield os.path.join(root, name)


def _made(stem: str, endings: Collection[str], beside: Collection[str]) -> bool:
    """Whether a name says that a verb wrote it for another file, and that file is beside it."""
    return any(stem.endswith(ending) and stem.removesuffix(ending) in beside for ending in endings)


def _of_pattern(pattern: str, kinds: Collection[SourceKind]) -> Iterator[str]:
    """What a pattern matches, as if the shell had written it out; of files, those of these kinds."""
    from qwenvl.media.kinds import kind_of

    matches = glob.glob(pattern, recursive=True)
    files = {name for name in matches if os.path.isfile(name) and kind_of(name) in kinds}
    files.update(one for name in matches if os.path.isdir(name) for one in _files_below(Path(name), kinds))
    if not files:
        others = f"matches {len(matches)} names, none of them a {wanted(kinds)}" if matches else "matches nothing"
        raise ValueError(f"{_short(pattern)} {others}: looked for names that end with {_endings(kinds)}")
    yield from sorted(files, key=natural)


def natural(name: str) -> tuple[list[list[tuple[int, int, str]]], str]:
    """Sorts names part by part, the numbers in them by value: a2.png before a10.png."""
    parts = [re.findall(r"\d+|\D+", part.casefold()) for part in Path(name).parts]
    return [[(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in part] for part in parts], name


def _endings(kinds: Collection[SourceKind]) -> str:
    from qwenvl.media.kinds import ENDINGS

    return ", ".join(ending for kind in kinds for ending in ENDINGS[kind])


def _short(name: str) -> str:
    from qwenvl.media.policy import shown

    return shown(name)


@dataclass(frozen=True)
class Record:
    """What came of one input: data for --json, text for people (several lines or none, without the last newline)."""

    data: dict[str, Any]
    text: str = ""


def each(
    sources: list[str], work: Callable[[str], Record], as_json: bool, *, headings: bool = True, progress: bool = True
) -> int:
    """Do the work for every source and print its record; returns the exit code, 1 when some failed, else 0.

    as_json: one object a line, with "source" first, and "error" in place of the rest where it failed. Otherwise the
    text, under a line "SOURCE:" where there are several (without `headings`: never). A failure (what `app.main` turns
    into a line) is told on stderr and the others go on; that of a single source is raised, to end as any mistake does,
    and so is one that all others would meet too, such as a full disk.
    On terminals, stderr shows how far it is and how long it will still take (`progress`: not where the work itself
    shows something).
    """
    from qwenvl.cli.app import one_line

    line = Progress(len(sources) if progress and sys.stderr.isatty() else 0, sys.stderr)
    failed = 0
    for number, source in enumerate(sources):
        line.show(number, source)
        try:
            record = work(source)
        except (ValueError, OSError, MemoryError, ArithmeticError) as error:
            hopeless = isinstance(error, OSError) and error.errno in _ENDS
            if len(sources) == 1 or hopeless or os.environ.get("QWENVL_DEBUG"):
                line.clear()
                if len(sources) > 1 and hopeless:
                    print(f"qwenvl: stopped at input {number + 1} of {len(sources)}, {_short(source)}", file=sys.stderr)
                raise
            failed += 1
            says = one_line(error)
            record = Record({"error": says})
            line.clear()
            print(f"qwenvl: {says if says.startswith(source) else f'{_short(source)}: {says}'}", file=sys.stderr)
            if not as_json:
                continue
        line.clear()
        if as_json:
            print(_json({"source": source, **record.data}), flush=True)
            continue
        if headings and len(sources) > 1:
            print(f"{_short(source)}:")
        if record.text:
            print(record.text, flush=True)
    if failed:
        print(f"qwenvl: {failed} of {len(sources)} inputs failed", file=sys.stderr)
    return 1 if failed else 0


def _json(record: dict[str, Any]) -> str:
    """One line. A file's name that is no text (bytes of another encoding) is written as escapes, which read back."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(record)
    return line


class Progress:
    """One line on a terminal: how many of `total` are done, which one is next, and the time left; below two, none.

    Plain text and not rich's bar: that one sends what is printed to stdout to its own stream while it is shown.
    """

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total, self._stream, self._started = total, stream, time.perf_counter()

    def show(self, done: int, source: str) -> None:
        if self._total < 2:
            return
        left = ""
        if done:
            seconds = (time.perf_counter() - self._started) / done * (self._total - done)
            left = f"  {int(seconds) // 60}:{int(seconds) % 60:02d} left"
        name = Path(source.split("?")[0]).name if source[:5].lower() != "data:" else "data:"
        self._stream.write(f"\r\x1b[K[{done + 1}/{self._total}] {name[-40:]}{left}")
        self._stream.flush()

    def clear(self) -> None:
        if self._total >= 2:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def outputs(sources: list[str], ending: str, out: Path | None = None, option: str = "--out") -> list[Path]:
    """The file that goes with each source, in the order of the sources: `output_names`, in a folder.

    out: the folder for them (made when it does not exist), or, for one source, the file itself where its name has an
    ending; None = the current folder. Raises ValueError, with the name of the option, for a folder that cannot be or
    cannot be written to, and for a file that is one of the sources (without an ending: `spare` is the caller's).
    """
    if out is not None and len(sources) == 1 and out.suffix and not out.is_dir():
        if not out.parent.is_dir():
            raise ValueError(f"{option} {out}: the folder {out.parent} does not exist")
        files = [out]
    else:
        if out is not None and out.exists() and not out.is_dir():
            several = f", and there are {len(sources)} inputs" if len(sources) > 1 else ""
            raise ValueError(f"{option} {out} is a file{several}: give a folder")
        folder = out or Path()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{option} {folder}: the folder cannot be made: {error.strerror}") from None
        files = [folder / name for name in output_names(sources, ending)]
    parent = files[0].parent if files else Path()
    if not os.access(parent, os.W_OK):
        where = f"{option} {out}" if out is not None else f"the current folder, {parent.absolute()},"
        raise ValueError(f"{where} cannot be written to: give {option} another folder")
    if ending:
        spare(sources, files, option)
    return files


def spare(sources: list[str], files: Iterable[Path], option: str = "--out") -> None:
    """ValueError when a file that is to be written is one of the sources."""
    paths = (url2pathname(urlsplit(s).path) if s[:5].lower() == "file:" else s for s in sources)
    inputs = {os.path.realpath(path) for path in paths if not _ADDRESS.match(path)}
    for file in files:
        if os.path.realpath(file) in inputs:
            raise ValueError(
                f"{file} is one of the inputs and would be written over: give {option} another folder or name"
            )


def output_names(sources: list[str], ending: str) -> list[str]:
    """A name for each source: its own with `ending` ("-boxes.png", ".md") in place of its own, and a number where two
    would be one."""
    taken: set[str] = set()
    found: list[str] = []
    for source in sources:
        stem = "picture" if source[:5].lower() == "data:" else Path(source.split("?")[0]).stem or "picture"
        name, number = f"{stem}{ending}", 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}{_numbered(ending, number)}"
        taken.add(name.casefold())
        found.append(name)
    return found


def _numbered(ending: str, number: int) -> str:
    """A number before the file's ending: ("-boxes.png", 2) -> "-boxes-2.png"."""
    head, dot, last = ending.rpartition(".")
    return f"{head}-{number}{dot}{last}"
