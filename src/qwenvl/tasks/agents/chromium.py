"""Chromium and Playwright: found or missed with what to do, which addresses are allowed, and when a page has come.

Knows Playwright's objects, and imports it in one place only, when it is first needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Frame, Page, Request

PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome", "microsoft-edge")


def find_chromium(executable: str | None = None) -> str | None:
    """Path of a Chromium: the one named, else the first that the system has; None where it has none."""
    names = (executable,) if executable else PROGRAMS
    return next((path for name in names if (path := shutil.which(name))), None)


def program(executable: str | None) -> str:
    """As find_chromium; ValueError where there is none."""
    found = find_chromium(executable)
    if found is None:
        looked = executable or ", ".join(PROGRAMS)
        raise ValueError(
            f"no Chromium was found ({looked}): install one (Debian: apt-get install chromium), or name it"
        )
    return found


def playwright() -> Any:
    """The module playwright.sync_api."""
    try:
        from playwright import sync_api
    except ImportError:
        raise ValueError('driving a browser needs Playwright: pip install "qwenvl[agents]"') from None
    return sync_api


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@dataclass(frozen=True)
class Addresses:
    """Which pages may be opened: those of `hosts` and their subdomains, "*" for all; files only where it says so."""

    hosts: tuple[str, ...]
    files: bool = False

    @classmethod
    def of(cls, url: str, hosts: Sequence[str] | None, files: bool) -> Self:
        """Without hosts, that of the first address."""
        own = urlsplit(url).hostname
        return cls(tuple(hosts) if hosts is not None else (own,) if own else (), files)

    def wrong(self, url: str) -> str:
        """Why an address may not be opened; "" for one that may."""
        parts = urlsplit(url)
        if parts.scheme == "file":
            return "" if self.files else f"files are not allowed here: {url}"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return f"{url[:200]!r} is not allowed: expected an http:// or https:// address"
        host = parts.hostname.lower()
        if any(name == "*" or host == name or host.endswith(f".{name}") for name in map(str.lower, self.hosts)):
            return ""
        return f"the host {host} is not allowed: allowed are {', '.join(self.hosts) or 'none'}"

    def resolver_rules(self) -> list[str]:
        """Arguments for Chromium to find no other host at all."""
        if "*" in self.hosts:
            return []
        kept = [f"EXCLUDE {name}, EXCLUDE *.{name}" for name in self.hosts]
        return [f"--host-resolver-rules={', '.join(['MAP * ~NOTFOUND', *kept])}"]


class Loading:
    """Pages that were asked for and do not show yet. Told by the context's events; true while there are any."""

    def __init__(self, context: BrowserContext) -> None:
        self._requests: set[Request] = set()
        context.on("request", self._asked)
        context.on("response", lambda response: self._ended(response.request, response.status in (204, 205)))
        context.on("requestfailed", lambda request: self._ended(request, True))

    def __bool__(self) -> bool:
        return bool(self._requests)

    def watch(self, page: Page) -> None:
        """A page that was opened: it shows what it was opened for when it is first heard of."""
        self._requests = {r for r in self._requests if frame_of(r) not in (None, page.main_frame)}
        page.on("framenavigated", self._shown)

    def forget(self) -> None:
        self._requests.clear()

    def _asked(self, request: Request) -> None:
        """A redirect is another request for the same page."""
        if is_page(request):
            if request.redirected_from is not None:
                self._requests.discard(request.redirected_from)
            self._requests.add(request)

    def _ended(self, request: Request, without_page: bool) -> None:
        if without_page:
            self._requests.discard(request)

    def _shown(self, frame: Frame) -> None:
        self._requests = {r for r in self._requests if frame_of(r) not in (None, frame)}


def is_page(request: Request) -> bool:
    """Whether this loads a page, not a frame or another part of one."""
    frame = frame_of(request) if request.is_navigation_request() else None
    return request.is_navigation_request() and (frame is None or frame.parent_frame is None)


def frame_of(request: Request) -> Frame | None:
    """Where it will show; None for a page that is just being opened."""
    try:
        return request.frame
    except playwright().Error:
        return None
