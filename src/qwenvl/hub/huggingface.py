"""From the Hugging Face hub into the cache of its own library, which keeps its layout: blobs, snapshots, refs.

The hub's list names every file with its size and hash. Files that are not there are brought as blobs (transfer), which
the library then finds and links into the snapshot: the cache is one that any program can use. Where the hub gives no
hashes, or HF_XET_HIGH_PERFORMANCE asks for the library's own way, the library fetches, and the result is checked
afterwards.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl.hub.find import Choose, FetchOptions
from qwenvl.hub.integrity import Known, Problem, Record, check
from qwenvl.hub.progress import byte_bar
from qwenvl.hub.reasons import Asked, failed
from qwenvl.hub.transfer import DamagedError, Item
from qwenvl.hub.transfer import fetch as fetch_file

AT_ONCE = 4
LIST_SECONDS = 15
VERIFY = "QWENVL_HUB_VERIFY"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TRUE = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class Store:
    """A model's place in the cache, and how to get there."""

    repo: str
    options: FetchOptions
    cache: Path

    @property
    def folder(self) -> Path:
        return self.cache / f"models--{self.repo.replace('/', '--')}"

    @property
    def ref(self) -> Path | None:
        """The file that holds the commit of a branch or tag; None for a commit."""
        revision = self.options.revision or "main"
        return None if _COMMIT.fullmatch(revision) else self.folder / "refs" / revision

    def lock(self, blob: str) -> Path:
        return self.cache / ".locks" / self.folder.name / f"{blob}.lock"


def fetch(repo: str, options: FetchOptions, choose: Choose) -> tuple[Path, list[str]]:
    """(the snapshot's folder, the wanted files in it, all there and checked). ValueError otherwise."""
    from huggingface_hub import constants

    cache = Path(options.cache_dir or constants.HF_HUB_CACHE).expanduser()
    store = Store(repo, options, cache)
    hub, login = constants.ENDPOINT, "log in with `hf auth login`, or give a token that may read it"
    online = "leave out local_files_only and HF_HUB_OFFLINE once"
    asked = Asked(repo, options.revision, hub, str(cache), login, online)
    try:
        if options.local_files_only:
            return _cached(store, choose)
        try:
            commit, files = _list(store)
        except Exception as error:
            if options.force_download or "RevisionNotFoundError" in _kinds(error):
                raise
            return _cached(store, choose, error)
        return _up_to_date(store, commit, files, choose)
    except ValueError as error:
        if type(error) is ValueError:  # ours, or a wrong argument in the library's words
            raise
        raise failed(asked, error) from error
    except Exception as error:  # several libraries' errors: no network, no such model, no access, no disk space
        raise failed(asked, error) from error


def _list(store: Store) -> tuple[str, dict[str, Known]]:
    """(the commit, {name: what the hub knows of it}), in one request."""
    from huggingface_hub import HfApi

    options = store.options
    info = HfApi(token=options.token).model_info(
        store.repo, revision=options.revision, files_metadata=True, timeout=LIST_SECONDS
    )
    assert info.sha is not None
    files = {}
    for sibling in info.siblings or []:
        lfs = sibling.lfs
        files[sibling.rfilename] = Known(lfs.size, lfs.sha256) if lfs else Known(sibling.size, sibling.blob_id)
    return info.sha, files


def _up_to_date(store: Store, commit: str, files: dict[str, Known], choose: Choose) -> tuple[Path, list[str]]:
    """The snapshot of a commit with the wanted files; those that lack, or turn out damaged, are brought."""
    wanted = choose(list(files))
    snapshot = store.folder / "snapshots" / commit
    known = {name: files[name] for name in wanted}
    lacking = [name for name in wanted if store.options.force_download or not (snapshot / name).exists()]
    if lacking:
        _bring(store, commit, {name: files[name] for name in lacking}, store.options.force_download)
    record = Record.read(snapshot)
    if record.files != files or not record.wanted.issuperset(wanted):
        Record(files, set(wanted)).write(snapshot)
    _point(store, commit)
    damaged = check(snapshot, known, _checks_others())
    if damaged:
        _bring(store, commit, {problem.file: files[problem.file] for problem in damaged}, True)
        damaged = check(snapshot, known)
    if damaged:
        raise DamagedError(_list_problems(damaged) + "; it was fetched again and is no better: try again later")
    return snapshot, wanted


def _cached(store: Store, choose: Choose, why: Exception | None = None) -> tuple[Path, list[str]]:
    """The same without the network. why: what the network said, if it was asked."""
    from huggingface_hub import snapshot_download

    options = store.options
    try:
        found = snapshot_download(
            store.repo,
            revision=options.revision,
            cache_dir=store.cache,
            local_files_only=True,
            allow_patterns=[],  # completeness is for us to tell: we know which files are wanted
        )
    except Exception as error:
        raise (why or error) from error
    snapshot = Path(found)
    record = Record.read(snapshot)
    there = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    wanted = choose(sorted({*there, *record.files}))
    known = {name: record.files.get(name, _by_blob(snapshot / name)) for name in wanted}
    if lacking := [name for name in wanted if not (snapshot / name).exists()]:
        away = f" ({str(why).splitlines()[0]})" if why is not None and str(why) else ""
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ValueError(
            f"{store.repo!r} is in the cache without {lacking[0]}{more}, and the network is not to be had{away}: "
            f"go online once, then it is completed"
        ) from why
    if damaged := check(snapshot, known, _checks_others()):
        raise ValueError(f"{_list_problems(damaged)}; go online, and it is fetched again") from why
    return snapshot, wanted


def _bring(store: Store, commit: str, files: dict[str, Known], fresh: bool) -> None:
    """Files of a commit into its snapshot. fresh: anew, whatever the cache has."""
    from huggingface_hub.file_download import are_symlinks_supported

    snapshot = store.folder / "snapshots" / commit
    (store.folder / "blobs").mkdir(parents=True, exist_ok=True)
    ours = {name: item for name, item in files.items() if item.hash and item.size is not None}
    if os.environ.get("HF_XET_HIGH_PERFORMANCE", "").upper() in _TRUE:
        ours = {}
    if others := set(files) - set(ours):
        if fresh:  # where there are no links, the library leaves a file that is there as it is
            for name in others:
                (snapshot / name).unlink(missing_ok=True)
        _let_library(store, commit, others, fresh)
    if not ours:
        return
    right = _bring_blobs(store, commit, ours, fresh)
    if are_symlinks_supported(store.cache):
        _let_library(store, commit, set(ours))
    else:
        _move(store.folder / "blobs", snapshot, ours)
    record = Record.read(snapshot)
    for name, item in ours.items():
        if item.hash in right:
            record.see(snapshot, name)
    record.write(snapshot)


def _let_library(store: Store, commit: str, names: set[str], fresh: bool | None = None) -> None:
    """The hub's library puts files into the snapshot: it fetches them, fresh or not; None: their blobs are there, and
    it has to make links only, without a word."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    snapshot_download(
        store.repo,
        revision=commit,
        token=store.options.token,
        cache_dir=store.cache,
        allow_patterns=[glob.escape(name) for name in sorted(names)],
        force_download=bool(fresh),
        max_workers=AT_ONCE,
        tqdm_class=Silent if fresh is None or not sys.stderr.isatty() else tqdm,
    )


def _move(blobs: Path, snapshot: Path, files: dict[str, Known]) -> None:
    """Blobs to where they are looked for, on a disk that knows no links: such a cache keeps no blobs."""
    left = Counter(item.hash for item in files.values())
    for name, item in files.items():
        blob, target = blobs / str(item.hash), snapshot / name
        target.parent.mkdir(parents=True, exist_ok=True)
        left[item.hash] -= 1
        if left[item.hash]:  # equal files are one blob
            shutil.copyfile(blob, target)
        else:
            blob.replace(target)


def _bring_blobs(store: Store, commit: str, files: dict[str, Known], fresh: bool) -> set[str]:
    """Files of known hash into the cache's blobs, several at a time. Returns the hashes of those that were fetched
    here, and so were hashed while they arrived."""
    import httpx
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    blobs = store.folder / "blobs"
    items = {}  # by hash: equal files are one blob
    for name, known in files.items():
        assert known.hash is not None
        assert known.size is not None
        blob = blobs / known.hash
        if fresh or not blob.exists():
            items[known.hash] = Item(name, hf_hub_url(store.repo, name, revision=commit), blob, known.size, known.hash)
    _check_space(blobs, items.values())
    headers = build_hf_headers(token=store.options.token)
    timeout = httpx.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    stop = threading.Event()
    jobs: list[Future[str | None]] = []
    with (
        byte_bar(store.repo.rpartition("/")[2], sum(item.size for item in items.values())) as report,
        httpx.Client(follow_redirects=True, timeout=timeout) as client,  # a CDN is not told our token: httpx sees to it
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):

        def bring(item: Item) -> str | None:
            from huggingface_hub.utils import WeakFileLock

            lock = store.lock(item.hash)
            lock.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(lock):
                if not fresh and item.target.exists():  # another process brought it while we waited
                    return None
                fetch_file(client, headers, item, report, stop, fresh)
                return item.hash

        try:
            jobs += [pool.submit(bring, item) for item in sorted(items.values(), key=lambda item: -item.size)]
            return {brought for job in as_completed(jobs) if (brought := job.result()) is not None}
        except BaseException:
            stop.set()
            for job in jobs:
                job.cancel()
            raise


def _check_space(blobs: Path, items: Iterable[Item]) -> None:
    """ValueError when what is still to come is more than the disk has room for."""
    needed = 0
    for item in items:
        partial = blobs / f"{item.hash}.incomplete"
        needed += item.size - (partial.stat().st_size if partial.exists() else 0)
    free = shutil.disk_usage(blobs).free
    if needed > free:
        raise ValueError(
            f"{needed / 1e9:.1f} GB are still to come, and {blobs} has room for {free / 1e9:.1f} GB: free some space, "
            "or put the cache on another disk (cache_dir, or HF_HOME)"
        )


def _point(store: Store, commit: str) -> None:
    """Let the cache know which commit the revision is, so that it is found without the network."""
    ref = store.ref
    try:
        if ref is None or (ref.exists() and ref.read_text(encoding="utf-8") == commit):
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        draft = ref.with_name(f"{ref.name}.{os.getpid()}")
        draft.write_text(commit, encoding="utf-8")
        draft.replace(ref)
    except OSError:  # a cache that others may write only
        return


def _by_blob(path: Path) -> Known:
    """What a file's blob is named by."""
    blob = Path(os.readlink(path)).name if path.is_symlink() else ""
    return Known(None, blob if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob) else None)


def _checks_others() -> bool:
    return os.environ.get(VERIFY, "1") != "0"


def _list_problems(problems: list[Problem]) -> str:
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{problems[0]}{more}"


def _kinds(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}
