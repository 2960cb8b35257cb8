"""Pages that are done, in files: a run that was stopped goes on where it was.

Every page is a file of its own, page-0001.json, which appears as a whole or not at all, so that no page is lost once it
is told and none comes twice. It is used again only under the same key: the same content, page, model and settings.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from qwenvl.tasks.documents import Page, page_from_dict, page_to_dict
from qwenvl.whole_file import write_whole

FORMAT = 1  # changes when pages are read or written in another way


class PageStore:
    """The folder of one document's pages, made when the first one is saved. about: what its answers depend on, but for
    the number of the page; anything that JSON can hold."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._folder, self._about = folder, about

    def load(self, number: int) -> Page | None:
        """A page that is done; None where there is none, it is another one's, or it failed."""
        try:
            found = json.loads(self._file(number).read_text("utf-8"))
            if found["key"] != self._key(number) or found["failed"]:
                return None
            return page_from_dict(found["page"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not one of ours
            return None

    def save(self, page: Page, failed: bool) -> None:
        """Write a page. failed: it has no answer, and is tried again by the next run."""
        text = json.dumps(
            {"key": self._key(page.number), "failed": failed, "page": page_to_dict(page)}, ensure_ascii=False, indent=1
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._file(page.number), text.encode("utf-8", "surrogatepass"))

    def _file(self, number: int) -> Path:
        return self._folder / f"page-{number:04d}.json"

    def _key(self, number: int) -> str:
        known = json.dumps({**self._about, "page": number, "format": FORMAT}, sort_keys=True, default=str)
        return hashlib.sha256(known.encode()).hexdigest()
