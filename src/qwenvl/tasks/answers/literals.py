"""Text -> the values written in it as JSON or Python, repaired where models go wrong.

In: any text. Out: nodes that know where in the text they stand; `plain` makes Python values of them, `read_values`
does both. Does not know what the values mean.

Prose around values is passed over. Repaired: fences, trailing and missing commas, single, smart and missing quotes,
quotes within texts, raw line ends in texts, names without quotes, comments behind // and #, brackets that are left out,
closed twice or crossed, full-width punctuation, JSON within a JSON string, and text that ends anywhere: what was
written whole before the end is there, the fields that were open are marked `cut`.

One pass over the text with a stack of its own, so that no text is too deep, and none takes more than linear time.
Valid JSON of up to 100 levels is always read as what it is: a repair needs something that JSON does not allow.

    read_values("Sure: [{'a': 1, \"b\": [2, 3,") -> [[{"a": 1, "b": [2, 3]}]]
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qwenvl.tasks.answers.nodes import Fields, Items, Node, Scalar, plain

_DEEPEST = 100  # brackets within brackets; deeper than any answer, and safe for recursion
_MOST_DIGITS = 300  # of a number; above, it is infinite
_DOUBLE, _SINGLE = '"“”„＂', "'‘’"  # noqa: RUF001
_KEY = r"[A-Za-z_][\w.\-]{0,40}(?: [\w.\-]{1,40}){0,3}"  # bounded, so that no match takes long
_CONSTANTS = {"true": True, "false": False, "null": None, "none": None, "nan": float("nan"), "infinity": float("inf")}

_SPACE = re.compile(r"(?:\s|//[^\n]*|#[^\n]*)+")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,9})?")
_BARE_KEY = re.compile(rf"({_KEY})[\"'“”]?\s*[:：]")  # noqa: RUF001
_BARE_TEXT = re.compile(r"[^,，\[\]{}\n\"“”]+")  # noqa: RUF001
_KEY_LIKE = re.compile(r"[^{}\[\]\"“”\n]{0,80}")
_FIELD = re.compile(rf"\s*+[,，]\s*+(?:[\"“'‘]{_KEY}[\"”'’]|{_KEY})\s*+[:：]")  # noqa: RUF001
_WORD = re.compile(r"\w+|.", re.DOTALL)
_COLON = re.compile(r"\s*[:：]")  # noqa: RUF001
_NO_COLON = re.compile(r"\s*+[\[{]")  # a key whose colon was left out
_RESET = re.compile(r"```|</")
# What may follow the quote that ends a text; any other quote stands within it.
_CLOSED = re.compile(
    r"\s*+(?:[}\])]|$|```|[,，]\s*+(?:[\"“'‘{\[(}\])\-\d]|$|//|#|" + _KEY + r"\s*+[:：,\]}]|true|false|null|None))"  # noqa: RUF001
    r"|[ \t]*+\n|\s*+[\"“'‘]" + _KEY + r"[\"”'’]\s*+[:：]|\s++[\"“'‘]"  # noqa: RUF001
)
# What no text that is open goes on with on the next line: a key or a bracket.
_NEXT_LINE = re.compile(r"[\"“'‘]" + _KEY + r"[\"”'’]\s*+[:：]|[{}\[\]]")  # noqa: RUF001
_ESCAPED = re.compile(r"[\[{](?:\s|\\[nrt]|[\[{]){0,20}(\\?)[\"']")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "'": "'", "\\": "\\", "/": "/"}


def read(text: str, starts: re.Pattern[str] | None = None) -> list[Node]:
    """The lists and objects of the text, in order. starts: what else begins an object, beside a bracket: the keys of
    an object that has lost its braces."""
    return _Reader(text, starts).read()


def read_values(text: str) -> list[Any]:
    """The lists and objects of the text as Python lists and dicts."""
    return [plain(node) for node in read(text)]


@dataclass(slots=True)
class _Open:
    """A bracket that is open. key: the one whose value comes next."""

    is_list: bool
    start: int
    implicit: bool = False
    key: str | None = None
    pairs: list[tuple[str, Node]] = field(default_factory=list)
    items: list[Node] = field(default_factory=list)
    cut: bool = False

    def put(self, node: Node) -> None:
        if self.is_list:
            self.items.append(node)
        elif self.key is not None:
            self.pairs.append((self.key, node))
            self.key = None
        elif self.pairs and (isinstance(node, Items) or _is_number(node)):
            # a value without a key belongs to the key before it: "bbox": 1, 2, 3, 4
            key, before = self.pairs[-1]
            if isinstance(before, Items) and before.start < 0:
                before.items.append(node)
                before.end = node.end
            elif isinstance(before, Items) or _is_number(before):
                self.pairs[-1] = (key, Items([before, node], -1, node.end))
        elif not isinstance(node, Scalar):
            self.items.append(node)

    def close(self, end: int) -> Node:
        if self.is_list:
            return Items(self.items, self.start, end)
        return Fields(self.pairs, self.items, self.start, end, self.cut)


def _is_number(node: Node) -> bool:
    return isinstance(node, Scalar) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


class _Reader:
    """One text and how far it is read. Every step of `read` moves `at` forward."""

    def __init__(self, text: str, starts: re.Pattern[str] | None) -> None:
        first = _ESCAPED.search(text)
        self.escaped = bool(first and first[1])
        if self.escaped:  # JSON within a string: its quotes are escaped; every character keeps its place
            text = re.sub(r"\\([\"'])", r" \1", text.replace("\\n", "  "))
        self.text, self.at = text, 0
        brackets = r"[\[{]"
        self.starts = re.compile(f"(?P<bracket>{brackets})|{starts.pattern}") if starts else re.compile(brackets)
        self.stack: list[_Open] = []
        self.done: list[Node] = []
        self.quotes = {True: _Quotes(text, _DOUBLE), False: _Quotes(text, _SINGLE)}
        self.breaks = list(_line_breaks(text))

    def read(self) -> list[Node]:
        text = self.text
        while self.at < len(text):
            if not self.stack:
                if not self._find_start():
                    break
                continue
            self._step(text[self.at])
        if self.stack and self.stack[-1].key is not None:
            self._mark_cut()
        self._finish(len(text))
        return self.done

    def _find_start(self) -> bool:
        found = self.starts.search(self.text, self.at)
        if found is None:
            return False
        self.at = found.start()
        if self.text[self.at] in "[{":
            self._open(self.text[self.at])
        else:
            self.stack.append(_Open(False, self.at, implicit=True))
        return True

    def _step(self, char: str) -> None:
        """Read one bracket, value or key, or pass over what is none."""
        if char in "[{(":
            self._open(char)
        elif char in "]})":
            self._close(char)
        elif char in _DOUBLE or char in _SINGLE:
            self._quoted(char in _DOUBLE)
        elif (space := _SPACE.match(self.text, self.at)) is not None:
            self.at = space.end()
            if self.stack[0].implicit and len(self.stack) == 1 and space[0].count("\n") > 1:
                self._finish(self.at)  # an object without braces ends at an empty line
        elif (number := _NUMBER.match(self.text, self.at)) is not None:
            self._number(number)
        elif char.isalpha() or char == "_" or (self.stack[-1].key is not None and char not in ",，:：`<"):  # noqa: RUF001
            self._word()
        elif _RESET.match(self.text, self.at):
            self._finish(self.at)  # the end of a fence or of a tag closes all
            self.at += 2
        else:
            self.at += 1
            if char in ",，" and self.stack[-1].key is not None:  # noqa: RUF001
                self.stack[-1].key = None  # a key without value

    def _open(self, char: str) -> None:
        if len(self.stack) >= _DEEPEST:
            self._finish(self.at)
        self.stack.append(_Open(char != "{", self.at))
        self.at += 1

    def _close(self, char: str) -> None:
        """A closing bracket closes what was left open within its pair; without a pair it means nothing."""
        as_list = char != "}"
        self.at += 1
        depth = next((i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i].is_list == as_list), None)
        if depth is None:
            return
        if _FIELD.match(self.text, self.at) and not self._in_object(depth):
            # fields go on behind it: it stands for another bracket, or is one too many
            if self.stack[-1].is_list and len(self.stack) > 1:
                self._pop(self.at)
            return
        while len(self.stack) > depth:
            self._pop(self.at)

    def _in_object(self, depth: int) -> bool:
        """Whether what is left when this bracket is closed is an object."""
        return depth > 0 and not self.stack[depth - 1].is_list

    def _pop(self, end: int) -> None:
        node = self.stack.pop().close(end)
        if self.stack:
            self.stack[-1].put(node)
        else:
            self.done.append(node)

    def _finish(self, end: int) -> None:
        while self.stack:
            self._pop(end)

    def _mark_cut(self) -> None:
        """The text ends within a value or key: the object around it has a field that is not whole."""
        for frame in reversed(self.stack):
            if not frame.is_list:
                frame.cut = True
                return

    def _key(self, name: str, end: int) -> None:
        """A key: of the object that is open, of the one around a list that was not closed, or of one without braces."""
        self.at = end
        while self.stack[-1].is_list and any(not frame.is_list for frame in self.stack):
            if all(map(_is_number, self.stack[-1].items)) and self.stack[-1].items:
                self._pop(end)
            else:
                break
        if self.stack[-1].is_list:
            self.stack.append(_Open(False, end, implicit=True))
        self.stack[-1].key = name

    def _number(self, match: re.Match[str]) -> None:
        frame = self.stack[-1]
        if not frame.is_list and frame.key is None:
            colon = _COLON.match(self.text, match.end())
            if colon is not None:
                self._key(match[0], colon.end())
                return
        self.at = match.end()
        if self.text.startswith("px", self.at):
            self.at += 2
        if self.at == len(self.text):
            self._mark_cut()  # a digit may be missing
        else:
            frame.put(Scalar(_as_number(match[0]), match.start(), match.end()))

    def _word(self) -> None:
        """A key or text without quotes, or a constant."""
        frame = self.stack[-1]
        key = _BARE_KEY.match(self.text, self.at) if frame.key is None else None
        if key is not None:
            self._key(key[1], key.end())
            return
        if not frame.is_list and frame.key is None:  # a word among keys: one may follow
            self.at = _past(_WORD, self.text, self.at)
            return
        start = self.at
        self.at = _past(_BARE_TEXT, self.text, start)
        if self.at == len(self.text) and not (frame.implicit and len(self.stack) == 1):
            self._mark_cut()
            frame.key = None
            return
        word = self.text[start : self.at].rstrip()
        frame.put(Scalar(_CONSTANTS.get(word.lower(), word), start, start + len(word)))

    def _quoted(self, double: bool) -> None:
        """A text in quotes, as key or value."""
        text, start, frame = self.text, self.at, self.stack[-1]
        if not double and start and text[start - 1].isalnum():
            self.at += 1  # the apostrophe of a word
            return
        end, closed = self.quotes[double].end(start), True
        line = bisect_right(self.breaks, start)
        stop = self.breaks[line] if line < len(self.breaks) else len(text)
        if end is None or end > stop:
            end, closed = stop, False
        colon = _COLON.match(text, end + 1) if closed else None
        if frame.is_list or frame.key is None:
            self._quoted_key_or_item(end, colon, closed, double)
        elif colon is not None:
            # the quote that ends this value is missing, and this one ends the key behind it
            last = max(text.rfind(quote, start + 1, end) for quote in (_DOUBLE if double else _SINGLE))
            value = text[start + 1 : last if last > 0 else end].rstrip(" ,，{}[]\n\t")  # noqa: RUF001
            self.at = start + 1 + len(value)
            frame.put(Scalar(_unescape(value), start, self.at))
        else:
            self._put_text(end, closed)

    def _quoted_key_or_item(self, end: int, colon: re.Match[str] | None, closed: bool, double: bool) -> None:
        text, start, frame = self.text, self.at, self.stack[-1]
        after = self.quotes[double].next(start) if not frame.is_list else None
        if after is not None and _NO_COLON.match(text, after + 1) and _KEY_LIKE.fullmatch(text, start + 1, after):
            self._key(self._said(start, after), after + 1)
            return
        plain_key = _KEY_LIKE.fullmatch(text, start + 1, end) is not None
        if colon is not None and (plain_key or self.quotes[double].next(start) == end):
            self._key(self._said(start, end), colon.end())
        elif frame.is_list and colon is None:
            self._put_text(end, closed)
        elif closed and plain_key:
            self.at = end + 1  # a text where a key was expected: it says nothing
        elif not closed and end == len(text):
            self._mark_cut()
            self.at = end
        else:
            self.at = start + 1  # no pair of quotes: go on within

    def _put_text(self, end: int, closed: bool) -> None:
        start = self.at
        if not closed and end < len(self.text):  # ended by its line: brackets behind it are not the text's
            end = start + 1 + len(self.text[start + 1 : end].rstrip(" \t,}])"))
        self.at = end + closed
        if not closed and end == len(self.text):
            self._mark_cut()
            self.stack[-1].key = None
            return
        self.stack[-1].put(Scalar(self._said(start, end), start, self.at))

    def _said(self, start: int, end: int) -> str:
        """The text between the quotes at `start` and `end`."""
        said = _unescape(self.text[start + 1 : end])
        return said.rstrip(" ") if self.escaped else said  # an escaped quote has left a space in front of it


def _past(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None
    return found.end()


def _line_breaks(text: str) -> Iterator[int]:
    for space in re.finditer(r"\s++", text):
        if "\n" in space[0] and _NEXT_LINE.match(text, space.end()):
            yield space.start()


class _Quotes:
    """Where the quotes of one kind stand, and which of them can end a text; found in one pass."""

    def __init__(self, text: str, kind: str) -> None:
        found = [m.start() for m in re.finditer(rf"\\.|[{kind}]", text, re.DOTALL) if m[0] in kind]
        self.all = found
        self.ends = [at for at in found if _CLOSED.match(text, at + 1) or _COLON.match(text, at + 1)]

    def next(self, start: int) -> int | None:
        """The quote behind the one at `start`."""
        index = bisect_left(self.all, start + 1)
        return self.all[index] if index < len(self.all) else None

    def end(self, start: int) -> int | None:
        """The quote that ends what the one at `start` began: the first that can; where none can, the next one."""
        index = bisect_left(self.ends, start + 1)
        return self.ends[index] if index < len(self.ends) else self.next(start)


def _as_number(text: str) -> int | float:
    if len(text) > _MOST_DIGITS:
        return float("inf")
    try:
        return int(text)
    except ValueError:
        return float(text)


def _unescape(text: str) -> str:
    """What a text in quotes says. Halves of a surrogate pair that are alone become U+FFFD."""
    if "\\" not in text:
        return text
    plain_text = _ESCAPE.sub(_escaped, text)
    return plain_text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _escaped(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    return chr(int(code, 16)) if code else _LETTERS.get(match[3], match[0])
