"""Finding weights: whatever a model is called it is found, fetched once, resumed where it was interrupted, and never
used unless it is what the hub says; what goes wrong is one line that says what to do."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, QUIET_ENVIRONMENT, REPO, FakeHub, hash_of

from qwenvl.hub import integrity, resolve, transfer, verify
from qwenvl.hub.progress import byte_bar

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ALL = ("*.json", "*.safetensors")
Fetch = Callable[..., Path]


def contents(seed: int = 1) -> dict[str, bytes]:
    """A small repository: two shards, a file that is not wanted, one in a folder, an empty one."""
    chance = random.Random(seed)
    files = {"config.json": b'{"model_type": "qwen2_vl"}', "empty.json": b"", "notes.md": b"not wanted"}
    return files | {"more/extra.json": b"{}", FIRST: chance.randbytes(700_000), SECOND: chance.randbytes(200_000)}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(contents()) as server:
        yield server


@pytest.fixture
def fetch(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """resolve() of a model on the loopback hub, into a cache of the test's own, with short waits."""
    at_hub(monkeypatch, hub.url)

    def fetch(model: str = REPO, **options: Any) -> Path:
        return resolve(model, **{"patterns": ALL, "cache_dir": tmp_path / "cache", **options})

    return fetch


def at_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does before the library is imported."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "QWENVL_USE_MODELSCOPE", "QWENVL_HUB_VERIFY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.01)


def same(folder: Path, files: dict[str, bytes]) -> bool:
    """Whether the folder holds the wanted files, byte for byte, and no others."""
    there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return there == {name: body for name, body in files.items() if name != "notes.md"}


def start(url: str, home: Path, *more: str) -> subprocess.Popen[str]:
    """A process of its own that fetches the model."""
    code = f"from qwenvl.hub import resolve; print(resolve({REPO!r}, patterns={ALL!r}))"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "QWENVL_"))}
    env |= {"HF_ENDPOINT": url, "HF_HOME": str(home), **QUIET_ENVIRONMENT}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def refused(fetch: Fetch, model: str = REPO, **options: Any) -> str:
    """The one line that a fetch ends with."""
    with pytest.raises(ValueError, match=REPO.split("/")[0]) as error:
        fetch(model, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- fetching


@pytest.mark.feature(4, 6)
def test_what_is_fetched_is_there_and_stays(hub: FakeHub, fetch: Fetch, tmp_path: Path) -> None:
    folder = fetch()
    assert same(folder, hub.files)
    asked = len(hub.log)
    assert fetch() == folder
    assert [request.path.lower() for request in hub.log[asked:]] == [f"/api/models/{REPO}?blobs=true"]
    asked = len(hub.log)
    assert fetch(local_files_only=True) == folder
    assert len(hub.log) == asked


def test_the_cache_is_one_that_the_hubs_own_library_uses(hub: FakeHub, fetch: Fetch, tmp_path: Path) -> None:
    from huggingface_hub import scan_cache_dir, snapshot_download

    folder = fetch()
    cache = tmp_path / "cache"
    assert Path(snapshot_download(REPO, cache_dir=cache, local_files_only=True, allow_patterns=ALL)) == folder
    (found,) = scan_cache_dir(cache).repos
    assert found.repo_id == REPO
    assert [(revision.commit_hash, set(revision.refs)) for revision in found.revisions] == [(COMMIT, {"main"})]
    assert not scan_cache_dir(cache).warnings


def test_what_the_library_fetched_is_used_and_checked(hub: FakeHub, fetch: Fetch, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(REPO, cache_dir=tmp_path / "cache", allow_patterns=ALL))
    sent = hub.sent(FIRST)
    assert fetch() == folder
    assert hub.sent(FIRST) == sent
    assert integrity.Record.read(folder).seen.keys() == hub.files.keys() - {"notes.md"}


def test_only_what_is_wanted_and_lacks_is_fetched(hub: FakeHub, fetch: Fetch) -> None:
    folder = fetch(patterns=("*.json",))
    assert not (folder / FIRST).exists()
    assert hub.sent(FIRST) == 0
    assert f"is in the cache without {FIRST} and 1 more" in refused(fetch, local_files_only=True)
    assert same(fetch(), hub.files)
    assert len(hub.got("config.json")) == 1


def test_revisions(hub: FakeHub, fetch: Fetch) -> None:
    hub.revisions = ("main", "v1.0")
    folder = fetch(revision="v1.0")
    assert fetch(revision="v1.0", local_files_only=True) == fetch(revision=COMMIT) == folder
    assert "has no revision 'v2'" in refused(fetch, revision="v2")
    hub.commit, hub.files = "f" * 40, contents(2)
    assert fetch().name == "f" * 40
    assert fetch(revision="v1.0", local_files_only=True) == folder  # still what it was when last seen


def test_force_download_fetches_again(hub: FakeHub, fetch: Fetch) -> None:
    folder = fetch()
    assert fetch(force_download=True) == folder
    assert [len(hub.got(name)) for name in (FIRST, SECOND, "config.json")] == [2, 2, 2]
    assert same(folder, hub.files)


def test_a_token_goes_to_the_hub_and_not_to_its_cdn(hub: FakeHub, fetch: Fetch) -> None:
    with FakeHub(hub.files) as cdn:
        hub.cdn = cdn.url
        cdn.cut[FIRST] = [100_000]
        assert same(fetch(token="secret"), hub.files)
        assert {request.authorization for request in hub.log} == {"Bearer secret"}
        assert {request.authorization for request in cdn.log} == {None}
        assert cdn.ranges_of(FIRST) == [None, "bytes=100000-"]


@pytest.mark.parametrize("without", ["hashes", "links", "our way"])
def test_where_we_cannot_fetch_the_library_does_and_we_check(
    hub: FakeHub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    if without == "hashes":
        hub.lists_hashes = False
    elif without == "links":
        monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda cache_dir=None: False)
    else:
        monkeypatch.setenv("HF_XET_HIGH_PERFORMANCE", "1")
    hub.flipped[FIRST] = 1
    folder = fetch()
    assert same(folder, hub.files) == (without != "hashes")
    if without == "links":
        assert not (folder / FIRST).is_symlink()
        (folder / SECOND).write_bytes(b"else")
        assert [problem.file for problem in verify(folder)] == [SECOND]


# --- interruptions


def test_a_cut_connection_is_taken_up_where_it_ended(hub: FakeHub, fetch: Fetch) -> None:
    hub.cut[FIRST] = [300_000, 1, 150_000]
    assert same(fetch(), hub.files)
    assert hub.ranges_of(FIRST) == [None, "bytes=300000-", "bytes=300001-", "bytes=450001-"]
    assert hub.sent(FIRST) == len(hub.files[FIRST])


def test_a_killed_fetch_is_taken_up_where_it_ended(hub: FakeHub, tmp_path: Path) -> None:
    hub.slow = 0.02
    first = start(hub.url, tmp_path)
    while hub.sent(FIRST) < 300_000:
        assert first.poll() is None, first.communicate()
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    (partial,) = (tmp_path / "hub").rglob(f"{hash_of(FIRST, hub.files[FIRST])}.incomplete")
    kept = partial.stat().st_size
    assert kept >= 200_000
    assert hub.files[FIRST].startswith(partial.read_bytes())
    hub.slow = 0.0
    asked = len(hub.log)
    out, _ = start(hub.url, tmp_path).communicate()
    assert same(Path(out.strip()), hub.files)
    again = [request for request in hub.log[asked:] if request.method == "GET" and FIRST in request.path]
    assert [(request.range, request.sent) for request in again] == [(f"bytes={kept}-", len(hub.files[FIRST]) - kept)]
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_server_without_ranges_sends_all_again(hub: FakeHub, fetch: Fetch) -> None:
    hub.knows_ranges = False
    hub.cut[FIRST] = [300_000]
    assert same(fetch(), hub.files)
    assert hub.sent(FIRST) == len(hub.files[FIRST]) + 300_000


def test_a_connection_that_brings_nothing_is_given_up_and_what_came_is_kept(hub: FakeHub, fetch: Fetch) -> None:
    hub.cut[FIRST] = [300_000] + [0] * 20
    assert "what came is kept" in refused(fetch)
    assert len(hub.got(FIRST)) == transfer.RETRIES + 2
    hub.cut.clear()
    asked = len(hub.got(FIRST))
    assert same(fetch(), hub.files)
    assert hub.ranges_of(FIRST)[asked:] == ["bytes=300000-"]


def test_answers_that_may_pass_are_asked_again(hub: FakeHub, fetch: Fetch) -> None:
    hub.statuses = {FIRST: [429, 503], SECOND: [500]}
    assert same(fetch(), hub.files)


def test_two_processes_at_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.slow = 0.01
    processes = [start(hub.url, tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert same(Path(said[0][0].strip()), hub.files)
    assert hub.sent(FIRST) == len(hub.files[FIRST])  # the second waited for the first


def test_two_processes_whose_locks_do_not_hold(
    hub: FakeHub, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems: both write, and the file is right all the same."""
    import contextlib
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr("huggingface_hub.utils.WeakFileLock", lambda path, **options: contextlib.nullcontext())
    hub.slow = 0.005
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: fetch(), range(2)))
    assert same(folders[0], hub.files)
    assert same(folders[1], hub.files)


# --- integrity


@pytest.mark.parametrize("name", [FIRST, "config.json"])
@pytest.mark.parametrize("how", ["flipped", "short"])
def test_a_damaged_file_is_refused_and_fetched_again(hub: FakeHub, fetch: Fetch, name: str, how: str) -> None:
    getattr(hub, how)[name] = 1
    assert same(fetch(), hub.files)
    assert len(hub.got(name)) == 2


@pytest.mark.parametrize("how", ["flipped", "short"])
def test_a_file_that_stays_damaged_is_an_error(hub: FakeHub, fetch: Fetch, tmp_path: Path, how: str) -> None:
    getattr(hub, how)[FIRST] = 9
    said = refused(fetch)
    assert FIRST in said
    assert (hash_of(FIRST, hub.files[FIRST]) if how == "flipped" else "699,999 bytes, expected 700,000") in said
    assert len(hub.got(FIRST)) == 2
    assert not list((tmp_path / "cache").rglob(f"{hash_of(FIRST, hub.files[FIRST])}*[!k]"))
    getattr(hub, how).clear()
    assert same(fetch(), hub.files)


def test_a_partial_file_that_is_wrong_is_thrown_away(hub: FakeHub, fetch: Fetch, tmp_path: Path) -> None:
    blobs = tmp_path / "cache" / "models--owner--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hash_of(FIRST, hub.files[FIRST])}.incomplete").write_bytes(b"other" * 1000)
    (blobs / f"{hash_of(SECOND, hub.files[SECOND])}.incomplete").write_bytes(bytes(300_000))  # more than there is
    assert same(fetch(), hub.files)
    assert hub.ranges_of(FIRST) == ["bytes=5000-", None]
    assert hub.ranges_of(SECOND) == [None]


def test_a_file_damaged_in_the_cache_is_fetched_again(hub: FakeHub, fetch: Fetch) -> None:
    folder = fetch()
    broken = bytearray(hub.files[FIRST])
    broken[5] ^= 1
    blob = (folder / FIRST).resolve()
    blob.write_bytes(broken)
    said = refused(fetch, local_files_only=True)
    assert FIRST in said
    assert hash_of(FIRST, hub.files[FIRST]) in said
    assert hash_of(FIRST, bytes(broken)) in said
    assert same(fetch(), hub.files)
    assert len(hub.got(FIRST)) == 2


def test_a_damaged_blob_that_others_left_is_not_taken_for_right(hub: FakeHub, fetch: Fetch, tmp_path: Path) -> None:
    blob = tmp_path / "cache" / "models--owner--tiny" / "blobs" / hash_of(FIRST, hub.files[FIRST])
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(len(hub.files[FIRST])))
    assert same(fetch(), hub.files)


def test_files_are_checked_once(hub: FakeHub, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    feed = integrity.feed

    def counted(digest: Any, file: Any, report: Any) -> int:
        read.append(Path(file.name).name)
        return feed(digest, file, report)

    monkeypatch.setattr(integrity, "feed", counted)
    fetch()
    assert read == []  # hashed while they arrived
    fetch()
    fetch(local_files_only=True)
    assert read == []
    os.utime((fetch() / FIRST).resolve())
    fetch(local_files_only=True)
    assert read == [FIRST]
    fetch(local_files_only=True)
    assert read == [FIRST]


def test_a_cache_that_may_only_be_read(
    hub: FakeHub, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked is kept in the user's own cache."""
    from huggingface_hub import snapshot_download

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    folder = Path(snapshot_download(REPO, cache_dir=tmp_path / "cache", allow_patterns=ALL))
    (folder.parent.parent / ".qwenvl").write_text("in the way")
    assert fetch() == fetch(local_files_only=True) == folder
    assert integrity.Record.read(folder).seen.keys() == hub.files.keys() - {"notes.md"}
    assert list((tmp_path / "own").rglob("*.json"))


def test_the_check_of_what_others_fetched_can_be_left_out(
    hub: FakeHub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = (fetch() / FIRST).resolve()
    blob.write_bytes(bytes(len(hub.files[FIRST])))
    monkeypatch.setenv("QWENVL_HUB_VERIFY", "0")
    fetch()
    blob.write_bytes(b"short")
    assert same(fetch(), hub.files)  # sizes cost nothing and are always looked at


def test_verify_a_snapshot(hub: FakeHub, fetch: Fetch) -> None:
    folder = fetch()
    assert verify(folder) == []
    blob = (folder / FIRST).resolve()
    blob.write_bytes(b"x" + hub.files[FIRST][1:])
    (folder / SECOND).resolve().write_bytes(hub.files[SECOND][:-1])
    (folder / "config.json").unlink()
    (folder / "own.safetensors").write_bytes(b"ours")
    problems = {problem.file: problem for problem in verify(folder)}
    assert {name: problem.kind for name, problem in problems.items()} == {
        FIRST: "hash",
        SECOND: "size",
        "config.json": "missing",
        "own.safetensors": "unknown",
    }
    assert hash_of(FIRST, hub.files[FIRST]) in str(problems[FIRST])
    assert "199,999 bytes, expected 200,000" in str(problems[SECOND])


def test_verify_what_the_library_fetched(hub: FakeHub, fetch: Fetch, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    cached = Path(snapshot_download(REPO, cache_dir=tmp_path / "cache", allow_patterns=ALL))
    local = Path(snapshot_download(REPO, local_dir=tmp_path / "local", allow_patterns=ALL))
    for folder in (cached, local):
        assert verify(folder) == []
        (folder / FIRST).resolve().write_bytes(bytes(700_000))
        assert [(problem.file, problem.kind) for problem in verify(folder)] == [(FIRST, "hash")]


def test_verify_says_where_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / FIRST).write_bytes(b"anything")
    (problem,) = verify(tmp_path)
    assert (problem.file, problem.kind) == ("", "unknown")
    assert "no hashes are known" in str(problem)
    assert [found.kind for found in verify(tmp_path / FIRST)] == ["unknown"]


# --- errors


def test_errors_say_what_to_do(hub: FakeHub, fetch: Fetch) -> None:
    assert "could not be found" in refused(fetch, "owner/none")
    assert "not in the cache" in refused(fetch, local_files_only=True)
    hub.gated = True
    assert "grant access on request" in (said := refused(fetch))
    assert f"{hub.url}/{REPO}" in said
    hub.gated = False
    for status, words in ((401, "log in"), (403, "log in"), (429, "too many requests"), (500, "in trouble")):
        hub.statuses = {"list": [status]}
        assert words in refused(fetch), status
        hub.statuses = {FIRST: [status] * 9}
        assert words in refused(fetch), status
    hub.statuses = {FIRST: [404]}
    assert FIRST in refused(fetch)
    assert same(fetch(), hub.files)


def test_errors_of_the_network(hub: FakeHub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    at_hub(monkeypatch, "http://127.0.0.1:9")
    assert "no connection" in refused(fetch)
    assert "127.0.0.1:9" in refused(fetch)
    at_hub(monkeypatch, hub.url)
    folder = fetch(patterns=("*.json",))
    at_hub(monkeypatch, "http://127.0.0.1:9")
    assert fetch(patterns=("*.json",)) == folder  # what is in the cache serves when the hub is away
    assert f"without {FIRST}" in refused(fetch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch(patterns=("*.json",)) == folder


def test_errors_of_the_disk(hub: FakeHub, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    said = refused(fetch, cache_dir=tmp_path / "file" / "cache")
    assert "cannot be written" in said
    assert "cache_dir" in said
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100_000}))
        assert "free some space" in refused(fetch)
    assert hub.sent(FIRST) == 0

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/blob")

    with monkeypatch.context() as patch:
        patch.setattr("qwenvl.hub.huggingface.fetch_file", full)
        assert "the disk is full (/cache/blob)" in refused(fetch)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_without_write_access(fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be written" in refused(fetch, cache_dir=tmp_path / "locked")


def test_local_names(tmp_path: Path) -> None:
    weights = tmp_path / "model-Q4_K_M.GGUF"
    weights.write_bytes(b"GGUF")
    assert resolve(weights) == weights
    for wrong, options, words in (
        (weights, {"revision": "main"}, "is a local file"),
        (tmp_path, {"force_download": True}, "force_download=True is for models on the hub"),
        (tmp_path / "none.gguf", {}, "not a folder"),
        ("owner/name:", {}, "not a folder"),
        ("hf://owner/name", {}, "not a folder"),
        ("modelscope://name", {}, "not a folder"),
    ):
        with pytest.raises(ValueError, match=words):
            resolve(wrong, **options)  # type: ignore[arg-type]


def test_importing_the_room_imports_no_library() -> None:
    heavy = ("huggingface_hub", "httpx", "torch", "rich", "numpy", "modelscope")
    code = f"import qwenvl.hub, sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- progress


def test_progress_is_for_terminals(hub: FakeHub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    plain, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stderr", plain)
    fetch()
    assert plain.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", terminal)
    fetch(force_download=True)
    assert "tiny" in terminal.getvalue()
    said = terminal.getvalue()
    with byte_bar("nothing to do", 0) as report:
        report(0)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    fetch(force_download=True)
    assert terminal.getvalue() == said
