"""Any error of the hubs' libraries -> a reason in one line that says what to do. Told apart by name: no library is
imported, and their versions differ in what is derived from what."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from qwenvl.hub.transfer import DamagedError, RefusedError

_AWAY = {"ConnectError", "ConnectionError", "NetworkError", "TransportError", "TimeoutException", "Timeout"}
_NONE = {"RepositoryNotFoundError", "NotExistError"}
_GATED = {"GatedRepoError"}  # derived from RepositoryNotFoundError in the library
_OFFLINE = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "CacheNotFound"}


@dataclass(frozen=True)
class Asked:
    """What was asked for, and where. revision: as the user gave it. cache: the folder that is written to."""

    repo: str
    revision: str | None
    hub: str
    cache: str
    login: str
    offline: str = ""


def failed(asked: Asked, error: Exception) -> ValueError:
    """The error that the user sees."""
    names = _names(error)
    if names & _NONE and not names & _GATED:
        what = "is not a local folder, and could not be found on"
        return ValueError(
            f"{asked.repo!r} {what} {asked.hub}: check the name, give a folder, or, if it is private, {asked.login}"
        )
    return ValueError(f"{asked.repo!r} could not be had from {asked.hub}: {_reason(asked, error)}")


def _reason(asked: Asked, error: Exception) -> str:
    names, status = _names(error), _status(error)
    if isinstance(error, DamagedError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None and (said := _of_disk(asked, error)):
        return said
    if names & _GATED:
        return f"its owners grant access on request: ask for it at {asked.hub}/{asked.repo}, then {asked.login}"
    if "RevisionNotFoundError" in names:
        return f"it has no revision {asked.revision!r}: leave the revision out, or give a branch, tag or commit it has"
    if "LocalTokenNotFoundError" in names or status in (401, 403):
        return f"access denied{f' ({status})' if status else ''}: {asked.login}"
    if names & _OFFLINE:
        return f"it is not in the cache ({asked.cache}), and the network is switched off: {asked.offline}"
    if status == 404:
        return f"a file of its list is not there ({_first_line(error)}): try again later, or another revision"
    if status == 429:
        return "too many requests (429): wait a few minutes, or log in for a higher limit"
    if status is not None and status >= 500:
        return f"the hub is in trouble ({status}): try again later; what came is kept"
    if names & _AWAY:
        return f"no connection ({_first_line(error)}): check the network and the address; what came is kept"
    return _first_line(error)


def _of_disk(asked: Asked, error: OSError) -> str:
    """The reason for an error of the file system; "" for the network's."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename or asked.cache}): free some space, or give another cache_dir"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        said = f"{error.strerror}: {error.filename or asked.cache}"
        return f"the cache cannot be written ({said}): give a cache_dir that you may write to"
    return ""


def _status(error: Exception) -> int | None:
    """The status of the answer behind an error of any library, or of the errors that it was made of."""
    if isinstance(error, RefusedError):
        return error.status
    for holder in (error, getattr(error, "response", None)):
        if isinstance(status := getattr(holder, "status_code", None), int):
            return status
    return None


def _names(error: Exception) -> set[str]:
    """The names of an error's class and of those it is derived from."""
    return {kind.__name__ for kind in type(error).__mro__}


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[1].startswith("- "):  # ModelScope's list of the files that failed
        lines[0] += f" ({lines[1][2:]})"
    return lines[0].removeprefix("Got: ").rstrip(".") if lines else type(error).__name__
