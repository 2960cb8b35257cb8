"""ModelScope's library as far as we use it, for where it is not installed: the same names and signatures, over a
FakeHub. What the real one does beside (locks, retries, regions) is its own affair."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen


class NotExistError(Exception):
    """As modelscope_hub.errors has it."""


class FileDownloadError(Exception):
    """The same."""


class CacheNotFound(Exception):  # noqa: N818
    """The same."""


@dataclass
class FileInfo:
    path: str
    size: int
    sha256: str | None
    is_dir: bool = False


def _get(url: str, token: str | None) -> bytes:
    try:
        with urlopen(Request(url, headers={"Cookie": f"m_session_id={token}"} if token else {})) as answer:
            return bytes(answer.read())
    except HTTPError as error:
        raise NotExistError(f"HTTP {error.code}") from error


class HubApi:
    def __init__(self, token: str | None = None, endpoint: str | None = None, **others: Any) -> None:
        self.token, self.endpoint = token, endpoint or os.environ["MODELSCOPE_ENDPOINT"]

    def resolve_endpoint_for_read(self, repo_id: str, *, repo_type: str = "model") -> str:
        return self.endpoint

    def list_repo_files(
        self, repo_id: str, repo_type: str, *, revision: str | None = None, recursive: bool = True
    ) -> list[FileInfo]:
        said = _get(f"{self.endpoint}/api/v1/models/{repo_id}/repo/files?Revision={revision}", self.token)
        return [FileInfo(f["Path"], f["Size"], f["Sha256"]) for f in json.loads(said)["Data"]["Files"]]


def snapshot_download(
    model_id: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    user_agent: Any = None,
    local_files_only: bool | None = False,
    cookies: Any = None,
    ignore_file_pattern: Any = None,
    allow_file_pattern: Any = None,
    local_dir: str | None = None,
    allow_patterns: list[str] | str | None = None,
    ignore_patterns: list[str] | str | None = None,
    max_workers: int | None = None,
    repo_id: str | None = None,
    repo_type: str | None = None,
    progress_callbacks: Any = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """{cache}/models/{owner}--{name}/snapshots/{revision}, with the files that match, each checked by its SHA-256."""
    assert model_id is not None
    base = Path(cache_dir or os.environ["MODELSCOPE_CACHE"])
    folder = base / "models" / model_id.replace("/", "--") / "snapshots" / (revision or "master")
    if local_files_only:
        if not folder.is_dir():
            raise CacheNotFound(f"Cannot find cached snapshot for model repo {model_id!r}")
        return str(folder)
    api = HubApi(token, endpoint)
    for info in api.list_repo_files(model_id, "model", revision=revision):
        patterns = [allow_patterns] if isinstance(allow_patterns, str) else allow_patterns
        target = folder / info.path
        if patterns is not None and not any(fnmatch(info.path, pattern) for pattern in patterns):
            continue
        if target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == info.sha256:
            continue
        body = _get(
            f"{api.endpoint}/api/v1/models/{model_id}/repo?Revision={revision}&FilePath={quote(info.path)}", token
        )
        if hashlib.sha256(body).hexdigest() != info.sha256:
            raise FileDownloadError(f"1 file(s) failed to download\n  - {info.path}: SHA256 checksum mismatch")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)
    return str(folder)


def modules() -> dict[str, ModuleType]:
    """What to put into sys.modules."""
    old, new = ModuleType("modelscope"), ModuleType("modelscope_hub")
    old.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    new.HubApi = HubApi  # type: ignore[attr-defined]
    return {"modelscope": old, "modelscope_hub": new}
