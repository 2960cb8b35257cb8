"""An answer, whole or in pieces -> its text and its calls.

In: what a model writes. Out: text without calls, calls, events. One reader does both: however the text is cut into
pieces, the calls are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from qwenvl.tasks.answers.literals import Node, read
from qwenvl.tasks.calls.body import CLOSE, OPEN, Body, all_but_a_brace, begun_tag
from qwenvl.tasks.calls.events import (
    ArgumentsDelta,
    CallBegin,
    CallBroken,
    CallEnd,
    CallEvent,
    TextDelta,
    ToolCall,
)
from qwenvl.tasks.calls.reading import calls_in, read_calls, strict, valid_end

_EMPTY_FENCE = re.compile(r"```\w*\s*(?:```|$)")


def parse_calls(text: str, names: Collection[str] = ()) -> tuple[str, list[ToolCall]]:
    """(the text without its calls, the calls in order). names: tools that there are; with them, an answer without any
    tag may also hold calls of these as bare or fenced JSON. Never raises."""
    stream = CallStream(names)
    stream.feed(text)
    stream.close()
    return stream.text, stream.calls


class CallStream:
    """The same piece by piece: `feed` what comes, then `close`; both return events.

    However the text is cut into pieces, calls and text are those of parse_calls. A call in no tag, or in one that was
    not opened, is found when its text has gone out as TextDelta already; `text` is the text without it. Names and
    arguments go out as soon as they are sure: a member of the arguments when it is whole.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self.calls: list[ToolCall] = []
        self._names = frozenset(names)
        self._buffer = ""
        self._body: Body | None = None
        self._begun = 0  # calls that have an index
        self._said: list[str] = []  # text before the last tag
        self._recent = ""  # text behind it
        self._space = ""  # space that goes out when text follows
        self._gap = False  # a call stands behind the text
        self._events: list[CallEvent] = []

    @property
    def text(self) -> str:
        """The text so far without the calls."""
        return "".join(self._said) + self._recent

    def feed(self, piece: str) -> list[CallEvent]:
        """What the next piece of the answer tells."""
        self._buffer += piece
        return self._run(False)

    def close(self) -> list[CallEvent]:
        """What the end of the answer tells."""
        self._run(True)
        if self._space and not self._gap:
            self._put(self._space)
        self._space = ""
        if self._names and not self.calls and OPEN not in self.text:
            self._untagged()
        events, self._events = self._events, []
        return events

    def _run(self, final: bool) -> list[CallEvent]:
        while self._read_body(final) if self._body is not None else self._read_text(final):
            pass
        if final:
            return self._events
        events, self._events = self._events, []
        return events

    def _read_text(self, final: bool) -> bool:
        """Read up to a tag or the end. False: nothing more can be read now."""
        buffer = self._buffer
        found = [(at, tag) for tag in (OPEN, CLOSE) if (at := buffer.find(tag)) >= 0]
        if not found:
            keep = 0 if final else begun_tag(buffer)
            self._say(buffer[: len(buffer) - keep])
            self._buffer = buffer[len(buffer) - keep :]
            return False
        at, tag = min(found)
        rest = buffer[at + len(tag) :]
        first = rest.lstrip()[:1]
        if tag == OPEN and not first and not final:
            self._say(buffer[:at])
            self._buffer = buffer[at:]
            return False  # what follows says whether it is a call
        self._say(buffer[:at])
        self._buffer = rest
        if tag == CLOSE:
            self._unopened()
        elif first and first in "{[`":
            self._body = Body()
        else:
            self._say(tag)  # the word for it, not a call
        return True

    def _read_body(self, final: bool) -> bool:
        """Read a call's body up to its end. False: it goes on."""
        body = self._body
        assert body is not None
        body.scan(self._buffer, final)
        for event in body.take(self._begun):
            self._emit(event)
        if body.end is None and not final:
            return False
        end, tag = body.end or body.first_close or (valid_end(self._buffer), "")
        if end == 0:
            end = len(self._buffer)
        valid = end < len(self._buffer)
        raw = self._buffer[:end]
        self._buffer = self._buffer[end + len(tag if tag == CLOSE else "") :]
        self._body = None
        calls = read_calls(raw, bool(tag)) if tag or valid or body.depth <= 0 else all_but_a_brace(raw)
        self._finish(raw, tag, body, calls)
        return True

    def _finish(self, raw: str, tag: str, body: Body, calls: list[ToolCall]) -> None:
        written = OPEN + raw + (tag if tag == CLOSE else "")
        if body.name is not None and not calls:
            self._put_aside(written)
            self._events.append(CallBroken(self._begun, written))
            self._begun += 1
        elif not calls:
            self._say(written)
        for place, call in enumerate(calls):
            self._begin_gap()
            if place == 0 and body.name is not None:
                call = ToolCall(body.name, body.arguments(call.arguments), call.raw)
                self._add(call, body)
            else:
                self._add(call, None)

    def _add(self, call: ToolCall, body: Body | None) -> None:
        """The events of a call, less those that went out while it came."""
        index = self._begun
        self._begun += 1
        self.calls.append(call)
        if body is None:
            self._emit(CallBegin(index, call.name))
            self._emit(ArgumentsDelta(index, call.arguments_json))
        elif not body.closed:
            rest = {key: value for key, value in call.arguments.items() if key not in body.members}
            text = json.dumps(rest, ensure_ascii=False)
            if body.members:
                text = ", " + text[1:] if rest else "}"
            self._emit(ArgumentsDelta(index, text))
        self._emit(CallEnd(index, call))

    def _emit(self, event: CallEvent) -> None:
        if isinstance(event, CallBegin):
            self._begin_gap()
        self._events.append(event)

    def _begin_gap(self) -> None:
        """A call stands here: space on both sides of it is no text."""
        self._said.append(self._recent)
        self._recent, self._space = "", ""
        self._gap = True

    def _say(self, text: str) -> None:
        """Text goes out, but for the space at its end, which may stand before a call."""
        text = self._space + text
        if self._gap:
            text = text.lstrip()
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            between = "\n" if self._gap and self.text else ""
            self._gap = False
            self._put(between + shown)

    def _put(self, text: str) -> None:
        self._recent += text
        self._events.append(TextDelta(text))

    def _put_aside(self, text: str) -> None:
        """Text that is part of the answer, but told as an event of its own."""
        self._said.append(("\n" if self.text else "") + text)
        self._gap = True

    def _unopened(self) -> None:
        """A closing tag alone: the calls right before it, where there are any."""
        last: list[tuple[Node, list[ToolCall]]] = []
        for node in read(self._recent):
            calls = calls_in(node, self._recent)
            last = [*last, (node, calls)] if calls else []
        if not last or self._recent[last[-1][0].end :].strip(" \n`"):
            self._say(CLOSE)
            self._said.append(self._recent)  # read once, so that many tags take no more than linear time
            self._recent = ""
            return
        self._recent = self._recent[: last[0][0].start].rstrip(" \n`")
        for _, calls in last:
            for call in calls:
                self._begin_gap()
                self._add(call, None)

    def _untagged(self) -> None:
        """Calls of known tools that stand in the text as JSON, each at the start of a line."""
        text, kept, at = self.text, [], 0
        for node in read(text):
            line = text[text.rfind("\n", 0, node.start) + 1 : node.start]
            calls = calls_in(node, text) if not line.strip(" \t`") else []
            if node.end == len(text) and calls and strict(text[node.start :]) is None:
                calls = all_but_a_brace(text[node.start :])
            if calls and all(call.name in self._names for call in calls):
                kept.append(text[at : node.start])
                at = node.end
                for call in calls:
                    self._add(call, None)
        if self.calls:
            self._said, self._recent = [_EMPTY_FENCE.sub("", "".join(kept) + text[at:]).strip()], ""
