"""Places of HTML elements: data-bbox="x1 y1 x2 y2" as the QwenVL HTML format has it, and data-polygon.

In: text. Out: Written; the label is the element's own text, without that of elements within it that have a place of
their own. `extra` has the tag, and the class where there is one. Documents are read by `tasks/documents/`: this is for
answers of which only the places are wanted.

    <p data-bbox="10 20 300 40">Total</p> -> "Total" at 10 20 300 40, extra {"tag": "p"}
"""

from __future__ import annotations

import html
import re
from collections import Counter
from dataclasses import dataclass, field

from qwenvl.tasks.answers.tagged import _ATTRIBUTE
from qwenvl.tasks.answers.written import Number, Written, numbers_within

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)\b([^<>]*)(>?)")
_PLACES = ("data-bbox", "bbox", "data-polygon")
_EMPTY = frozenset(("img", "br", "hr", "input", "meta", "link", "col"))
_SPACE = re.compile(r"\s+")


@dataclass(slots=True)
class _Element:
    tag: str
    start: int
    numbers: list[Number] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    name: str = ""
    holder: _Element | None = None  # the nearest element with a place, itself included

    def written(self, end: int) -> Written:
        said = _SPACE.sub(" ", html.unescape(" ".join(self.text) or self.name)).strip()
        return Written(said, tuple(self.numbers), "resized", self.start, end, self.extra)


def html_places(text: str) -> list[Written]:
    """Every element with a place, in the order of the text. What is not closed ends with the text."""
    if "bbox" not in text and "polygon" not in text:
        return []
    found: list[Written] = []
    open_elements: list[_Element] = []
    counts: Counter[str] = Counter()
    at = 0
    for match in _TAG.finditer(text):
        _say(open_elements, text[at : match.start()])
        at = match.end()
        tag = match[2].lower()
        if match[1]:
            if counts[tag]:
                _close(open_elements, counts, tag, match.end(), found)
            continue
        element = _element(text, match, tag)
        if element.numbers and (tag in _EMPTY or match[3].endswith("/")):
            found.append(element.written(match.end()))
        elif tag not in _EMPTY and not match[3].endswith("/"):
            element.holder = element if element.numbers else open_elements[-1].holder if open_elements else None
            open_elements.append(element)
            counts[tag] += 1
    _say(open_elements, text[at:].removesuffix("```"))
    while open_elements:
        _end(open_elements.pop(), len(text), found)
    return sorted(found, key=lambda written: written.at)


def _say(open_elements: list[_Element], words: str) -> None:
    if words and open_elements and open_elements[-1].holder is not None:
        open_elements[-1].holder.text.append(words)


def _close(open_elements: list[_Element], counts: Counter[str], tag: str, end: int, found: list[Written]) -> None:
    while True:
        element = open_elements.pop()
        counts[element.tag] -= 1
        _end(element, end, found)
        if element.tag == tag:
            return


def _end(element: _Element, end: int, found: list[Written]) -> None:
    if element.numbers:
        found.append(element.written(end))


def _element(text: str, match: re.Match[str], tag: str) -> _Element:
    element = _Element(tag, match.start(), extra={"tag": tag})
    for one in _ATTRIBUTE.finditer(text, *match.span(3)):
        name, group = one[1].lower(), 2 if one[2] is not None else 3
        if one[group] is None:
            continue
        if name == "class":
            element.extra["class"] = one[group]
        elif name in ("label", "alt") and one[group].strip():
            element.name = one[group]
        elif name in _PLACES and not element.numbers:
            numbers = numbers_within(text, *one.span(group)) or []
            if len(numbers) == 4 or (name == "data-polygon" and len(numbers) >= 6 and len(numbers) % 2 == 0):
                element.numbers = numbers
    return element
