"""Where a call ends, and what of it is sure before that.

In: the text behind an opening tag, as it grows. Out: its end, its name, its members.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from qwenvl.tasks.answers.literals import Fields, read
from qwenvl.tasks.calls.events import ArgumentsDelta, CallBegin, CallEvent, ToolCall
from qwenvl.tasks.calls.reading import ARGUMENTS, calls_in, strict

OPEN, CLOSE = "<tool_call>", "</tool_call>"

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\\n]|\\.)+")\s*,\s*"arguments"\s*:\s*\{')
_LONGEST_HEAD = 400
_MARKS = re.compile(r'["\\{}\[\],<]')


class Body:
    """What stands behind an opening tag, and how far it is scanned: in a text or not, how deep in brackets, and which
    members of the arguments are whole.

    end: (where it ends, the tag there), outside of any text; or at a line that begins with a tag, since no JSON text
    goes over lines. first_close: the first closing tag within a text, where it ends if no other end comes.
    """

    def __init__(self) -> None:
        self.at, self.depth, self.in_text = 0, 0, False
        self.end: tuple[int, str] | None = None
        self.first_close: tuple[int, str] | None = None
        self.name: str | None = None
        self.members: dict[str, Any] = {}
        self.closed = False  # all members went out
        self._start: int | None = None  # of the member that is read
        self._told = False
        self._ready: list[str] = []

    def scan(self, text: str, final: bool) -> None:
        """Go on in `text`, which is the body so far and maybe more."""
        if self.name is None and self.at <= _LONGEST_HEAD:
            self._read_head(text[:_LONGEST_HEAD])
        while self.end is None:
            mark = _MARKS.search(text, self.at)
            if mark is None:
                self.at = len(text)
                return
            at, char = mark.start(), mark[0]
            self.at = at
            if char == "<":
                if not final and begun_tag(text[at:]) == len(text) - at:
                    return  # the next piece says whether it is a tag
                self._tag(text, at)
            elif char == "\\":
                if at + 1 == len(text):
                    return
                self.at = at + 2 if self.in_text else at + 1
            else:
                self._mark(text, at, char)

    def take(self, index: int) -> Iterator[CallEvent]:
        """What became sure since it was last taken."""
        if self.name is not None and not self._told:
            self._told = True
            yield CallBegin(index, self.name)
        ready, self._ready = self._ready, []
        if ready:
            yield ArgumentsDelta(index, "".join(ready))

    def arguments(self, repaired: dict[str, Any]) -> dict[str, Any]:
        """What the arguments are: what went out stays as it is, the rest is what the repair of the whole found."""
        return dict(self.members) if self.closed else {**repaired, **self.members}

    def _read_head(self, text: str) -> None:
        head = _HEAD.match(text)
        name = strict(head[1]) if head is not None else None
        if head is not None and isinstance(name, str) and name.strip():
            self.name, self._start = name.strip(), head.end()

    def _tag(self, text: str, at: int) -> None:
        tag = next((t for t in (OPEN, CLOSE) if text.startswith(t, at)), None)
        line = text.rfind("\n", 0, at)
        if tag is None:
            self.at = at + 1
        elif not self.in_text or (line >= 0 and not text[line:at].strip()):
            self.end = (at, tag)
        else:
            if tag == CLOSE and self.first_close is None:
                self.first_close = (at, tag)
            self.at = at + len(tag)

    def _mark(self, text: str, at: int, char: str) -> None:
        self.at = at + 1
        if char == '"':
            self.in_text = not self.in_text
        elif self.in_text:
            return
        elif char in "{[":
            self.depth += 1
        elif char == ",":
            if self.depth == 2:
                self._member(text[self._start : at] if self._start is not None else None, at)
        else:
            self.depth -= 1
            if self.depth == 1 and self._start is not None:
                self._member(text[self._start : at], at)
                if self._start is not None:
                    self._ready.append("}" if self.members else "{}")
                    self.closed, self._start = True, None

    def _member(self, text: str | None, at: int) -> None:
        """One member of the arguments, if it is valid as it stands; else nothing more is sure."""
        if text is None:
            return
        self._start = at + 1
        if not text.strip() and not self.members and self.depth == 1:
            return
        found = strict("{" + text + "}")
        if not isinstance(found, dict) or len(found) != 1:
            self._start = None
            return
        self._ready.append((", " if self.members else "{") + text.strip())
        self.members |= found


def all_but_a_brace(body: str) -> list[ToolCall]:
    """The call of a text that ends without a closing tag and with brackets open: where only the last brace is missing,
    and the arguments are whole, it has one meaning."""
    scan = Body()
    scan.scan(body, True)
    if scan.in_text or scan.depth > 1:
        return []
    nodes = read(body)
    if len(nodes) != 1 or not isinstance(nodes[0], Fields):
        return []
    whole = any(key in ARGUMENTS and isinstance(value, Fields) for key, value in nodes[0].pairs)
    return calls_in(nodes[0], body) if whole else []


def begun_tag(text: str) -> int:
    """How many characters at the end of the text may be the beginning of a tag."""
    for length in range(min(len(CLOSE) - 1, len(text)), 0, -1):
        if any(tag.startswith(text[-length:]) for tag in (OPEN, CLOSE)):
            return length
    return 0
