"""From ModelScope through its library (the extra "modelscope"), into its own cache.

The library resumes and checks hashes, but it reads every file again at every start; so we ask for the list first, and
leave the library alone when all is there and was found right before.
"""

from __future__ import annotations

import glob
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from pathlib import Path
from typing import Any

from qwenvl.hub.find import Choose, FetchOptions
from qwenvl.hub.integrity import Known, Record, check
from qwenvl.hub.reasons import Asked, failed
from qwenvl.hub.transfer import DamagedError

BRANCH = "master"
HUB = "ModelScope"


def fetch(repo: str, options: FetchOptions, choose: Choose) -> tuple[Path, list[str]]:
    """(the snapshot's folder, the wanted files in it, all there and checked). ValueError otherwise."""
    if isinstance(options.token, bool):
        raise ValueError(
            f"token={options.token} is not for ModelScope: give a token, or log in with `modelscope login`"
        )
    with _quiet():
        download = _library()
        login = "log in with `modelscope login`, or give a token that may read it"
        cache = str(options.cache_dir or "MODELSCOPE_CACHE")
        asked = Asked(repo, options.revision or BRANCH, HUB, cache, login, "leave out local_files_only once")
        try:
            return _fetch(download, repo, options, choose)
        except ValueError as error:
            if type(error) is ValueError:
                raise
            raise failed(asked, error) from error
        except Exception as error:  # the library's own, those of requests, and the file system's
            raise failed(asked, error) from error


def _fetch(download: Any, repo: str, options: FetchOptions, choose: Choose) -> tuple[Path, list[str]]:
    where = {"revision": options.revision or BRANCH, "cache_dir": options.cache_dir and str(options.cache_dir)}
    there = _cached(download, repo, where)
    if options.local_files_only:
        if there is None:
            there = Path(download(repo, **where, local_files_only=True))  # says that there is none, and where
        return _offline(repo, there, choose, None)
    try:
        files = _list(repo, options)
    except Exception as error:
        if there is None or options.force_download:
            raise
        return _offline(repo, there, choose, error)
    wanted = choose(list(files))
    known = {name: files[name] for name in wanted}
    if options.force_download and there is not None:
        for name in wanted:
            (there / name).unlink(missing_ok=True)
    if there is None or check(there, known):  # whatever is wrong with them, the library fetches them again
        names = [glob.escape(name) for name in wanted]
        there = Path(download(repo, **where, token=options.token, allow_patterns=names))
    record = Record.read(there)
    if record.files != files or not record.wanted.issuperset(wanted):
        Record(files, set(wanted)).write(there)
    if damaged := check(there, known):
        raise DamagedError(f"{damaged[0]}; it was fetched again and is no better: try again later")
    return there, wanted


def _offline(repo: str, there: Path, choose: Choose, why: Exception | None) -> tuple[Path, list[str]]:
    """What the cache has, if that is all that is wanted."""
    record = Record.read(there)
    present = [path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()]
    wanted = choose(sorted({*present, *record.files}))
    if lacking := [name for name in wanted if not (there / name).exists()]:
        raise ValueError(
            f"{repo!r} is in the cache without {lacking[0]}, and the network is not to be had: go online once"
        ) from why
    if damaged := check(there, {name: record.files.get(name, Known()) for name in wanted}):
        raise ValueError(f"{damaged[0]}; go online, and it is fetched again") from why
    return there, wanted


def _list(repo: str, options: FetchOptions) -> dict[str, Known]:
    """{name: what ModelScope knows of it}, in one request."""
    make = import_module("modelscope_hub").HubApi
    api = make(token=options.token)
    api = make(token=options.token, endpoint=api.resolve_endpoint_for_read(repo))
    found = api.list_repo_files(repo, "model", revision=options.revision or BRANCH)
    return {item.path: Known(item.size, item.sha256) for item in found if not item.is_dir}


def _cached(download: Any, repo: str, where: dict[str, Any]) -> Path | None:
    """The snapshot's folder, if there is one."""
    try:
        return Path(download(repo, **where, local_files_only=True))
    except Exception:  # CacheNotFound, ValueError: it depends on the library's version
        return None


def _library() -> Any:
    """ModelScope's snapshot_download. ValueError that names the extra where it is not installed."""
    try:
        return import_module("modelscope").snapshot_download
    except ImportError as error:
        raise ValueError("ModelScope needs its library: pip install 'qwenvl[modelscope]'") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The library draws bars and logs on stderr wherever that goes: only a terminal shall have them."""
    if sys.stderr.isatty():
        yield
    else:
        with redirect_stderr(io.StringIO()):
            yield
