"""An answer's text -> tags and text, for HTML as models write it: whole, broken or cut off.

In: a string. Out: tokens in order, each with its place in the string. Linear in its length; never raises.
Does not know which tag may stand in which, nor what tags mean.

Why not html.parser: to it every "<" before a letter begins a tag, so "if x<y then" and "vector<int>" lose text, a
quote or bracket that is missing swallows what follows, and an unfinished tag differs between Python versions.
Here a tag is a name that HTML knows, and what is not an attribute ends it:

    <p data-bbox="1 2 3 4" Hello</p>   -> open p (with its box), text " Hello", close p
    a<b and vector<int>                -> text
    <p>one</p><p data-bb               -> the unfinished tag at the end is left out: it says nothing yet
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

_NAMES = frozenset(
    """
    a abbr address article aside b big blockquote body br button caption center cite code col colgroup
    dd del details dfn div dl dt em fieldset figcaption figure font footer form h1 h2 h3 h4 h5 h6 head
    header hr html i iframe img input ins kbd label legend li link main mark math meta nav noscript ol
    optgroup option p path picture pre q s samp script section select small source span strike strong
    style sub summary sup svg table tbody td textarea tfoot th thead time title tr tt u ul var video wbr
    formula chart
    """.split()  # noqa: SIM905
)
_RAW = frozenset({"style", "script"})  # what they hold is not text of the page
_LONE = frozenset({"nowrap", "checked", "selected", "disabled", "hidden", "reversed", "readonly", "border", "controls"})
_ATTRIBUTE_NAMES = (
    "class",
    "data-bbox",
    "data-polygon",
    "style",
    "colspan",
    "rowspan",
    "format",
    "src",
    "alt",
    "id",
    "href",
)

_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)(?![\w:.@-])")
_PIECE = re.compile(r"</?[A-Za-z]*[1-6]?\Z|<!-{0,2}\Z|<\Z")
_DECLARATION = re.compile(r"<(?:!doctype|\?xml)\b[^<>]*>?|<!\[CDATA\[", re.IGNORECASE)
_LINE_END = re.compile(r"$", re.MULTILINE)
_END = re.compile(r"\s*(/?)\s*>")
_NAME = re.compile(r"\s*([A-Za-z_][-\w:.@]*)\s*(=?)\s*")
_PLACES = re.compile(r"""["']?([-\d\s.,;()\[\]]*)["']?""")
_QUOTED = re.compile(r""""([^"<>]*)"|'([^'<>]*)'|"([^"<]*)"(?=\s*(?:/?>|[-\w]+=))|'([^'<]*)'(?=\s*(?:/?>|[-\w]+=))""")
_UNCLOSED = re.compile(r"""["'](?:([^"'<>]*)(?=>)|([^"'<>\s]*))""")
_CUT_VALUE = re.compile(r"""["'][^"'<>]*\Z""")
_BARE = re.compile(r"""[^\s"'<>=`]+""")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


@dataclass(frozen=True, slots=True)
class Token:
    """source[start:end] as what it is. text: of texts and comments, entities resolved. closed: written as <name/>."""

    kind: Literal["text", "open", "close", "comment"]
    start: int
    end: int
    name: str = ""
    text: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    closed: bool = False


def scan(source: str) -> Iterator[Token]:
    """The tokens of `source`. Declarations, styles and scripts are passed over."""
    reader = _Reader(source)
    at = text_from = 0
    while (at := source.find("<", at)) >= 0:
        token, end = reader.markup(at)
        if end is None:
            at += 1  # a character like any other
            continue
        if at > text_from:
            yield _text(source, text_from, at)
        if token is not None:
            yield token
        at = text_from = end
    if text_from < len(source):
        yield _text(source, text_from, len(source))


def _text(source: str, start: int, end: int) -> Token:
    return Token("text", start, end, text=_ENTITY.sub(lambda match: html.unescape(match[0]), source[start:end]))


class _Reader:
    """Reads what begins with "<". It remembers where the last ends are, so that no search is made in vain twice."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.last = {"-->": source.rfind("-->")}

    def markup(self, at: int) -> tuple[Token | None, int | None]:
        """(token or None, its end), or (None, None) where "<" is only a character."""
        source = self.source
        if source.startswith("<!--", at):
            return self._comment(at)
        tag = _TAG.match(source, at)
        if tag is None or tag[2].lower() not in _NAMES:
            declaration = _DECLARATION.match(source, at)
            if declaration is not None:
                return None, declaration.end()
            piece = _PIECE.match(source, at)
            if piece is not None and _begins_a_tag(piece[0]):
                return None, len(source)
            return None, None
        name = tag[2].lower()
        if tag[1]:
            end = _END.match(source, tag.end())
            return Token("close", at, tag.end(), name), end.end() if end else tag.end()
        return self._open(at, name, tag.end())

    def _comment(self, at: int) -> tuple[Token | None, int]:
        """A comment; one that is never closed ends with its line, so that it hides nothing else."""
        if at + 4 <= self.last["-->"]:
            end = self.source.find("-->", at + 4)
            return Token("comment", at, end + 3, text=self.source[at + 4 : end]), end + 3
        line = _LINE_END.search(self.source, at)
        end = line.start() if line else len(self.source)
        return Token("comment", at, end, text=self.source[at + 4 : end]), end

    def _open(self, at: int, name: str, inside: int) -> tuple[Token | None, int | None]:
        attributes: dict[str, str] = {}
        while True:
            end = _END.match(self.source, inside)
            if end is not None:
                token = Token("open", at, end.end(), name, attributes=attributes, closed=bool(end[1]))
                return token, self._after_raw(name, end.end())
            read = self._attribute(inside, attributes)
            if read is None:
                break
            inside = read
        if self._cut(inside):
            return None, len(self.source)
        if not attributes:
            return None, None  # "a <b and c": no tag
        return Token("open", at, inside, name, attributes=attributes), self._after_raw(name, inside)

    def _attribute(self, at: int, attributes: dict[str, str]) -> int | None:
        """Read one attribute into `attributes` and give its end; None where there is none, or only half of one."""
        name = _NAME.match(self.source, at)
        if name is None:
            return None
        key = name[1].lower()
        if not name[2]:
            if key not in _LONE:
                return None
            attributes[key] = ""
            return name.end(1)
        if _CUT_VALUE.match(self.source, name.end()):
            return None
        patterns = (_PLACES,) if "bbox" in key or "polygon" in key else (_QUOTED, _UNCLOSED, _BARE)
        for pattern in patterns:
            value = pattern.match(self.source, name.end())
            if value is not None:
                break
        else:
            return None
        end = value.end()
        if end == len(self.source):
            return None  # cut off within its value
        held = next((group for group in value.groups() if group is not None), "") if value.re.groups else value[0]
        attributes.setdefault(key, html.unescape(held).strip())
        return end

    def _cut(self, at: int) -> bool:
        """Is what begins at `at` an attribute that the end of the answer cuts off?"""
        name = _NAME.match(self.source, at)
        if name is None:
            return not self.source[at:].strip(" \t\r\n/\"'") if len(self.source) - at < 8 else False
        if name[2]:
            return self._reaches_the_end(name.end())
        return name.end() == len(self.source) and any(known.startswith(name[1].lower()) for known in _ATTRIBUTE_NAMES)

    def _reaches_the_end(self, at: int) -> bool:
        for pattern in (_PLACES, _QUOTED, _UNCLOSED, _BARE):
            value = pattern.match(self.source, at)
            if value is not None and value.end() == len(self.source):
                return True
        rest = self.source[at : at + 400]
        return at + len(rest) == len(self.source) and "<" not in rest and ">" not in rest

    def _after_raw(self, name: str, at: int) -> int:
        """Past the content of a style or script; one that is never closed ends at the next tag."""
        if name not in _RAW:
            return at
        closing = f"</{name}"
        if closing not in self.last:
            ends = (match.start() for match in re.finditer(closing, self.source, re.IGNORECASE))
            self.last[closing] = max(ends, default=-1)
        if at <= self.last[closing]:
            found = re.compile(closing, re.IGNORECASE).search(self.source, at)
            return found.start() if found else at
        following = self.source.find("<", at)
        return following if following >= 0 else len(self.source)


def _begins_a_tag(piece: str) -> bool:
    name = piece.lstrip("</").lower()
    return piece.startswith("<!") or any(known.startswith(name) for known in _NAMES)
