"""Markdown within a line -> text without its signs, and marks.

In: a line or paragraph as written, inline HTML tags and entities included. Out: Rich text.
Signs that come in pairs only are taken away; anything else stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from qwenvl.tasks.documents.blocks import Mark, MarkKind
from qwenvl.tasks.documents.inline import Rich, inline
from qwenvl.tasks.documents.tree import build

# The lengths are bounded so that signs without a partner cost little.
_SIGNS = re.compile(
    r"(?P<code>`)(?P<code_text>[^`\n]{1,300})`"
    r"|(?P<formula>\$)(?P<formula_text>(?! )[^$\n]{1,300}(?<! ))\$(?!\d)"
    r"|\\\((?P<paren_text>[^\n]{1,300}?)\\\)"
    r"|\*\*(?P<bold_text>(?=\S)[^\n]{1,400}?(?<=\S))\*\*(?!\*)"
    r"|(?<!\w)__(?P<bold2_text>(?=\S)[^\n]{1,400}?(?<=\S))__(?!\w)"
    r"|~~(?P<strike_text>(?=\S)[^~\n]{1,400}(?<=\S))~~"
    r"|(?<![\w*])\*(?P<italic_text>(?=[^\s*])[^*\n]{1,400}(?<=[^\s*]))\*(?![\w*])"
    r"|(?<![\w_])_(?P<italic2_text>(?=[^\s_])[^_\n]{1,400}(?<=[^\s_]))_(?![\w_])"
    r"|(?<!!)\[(?P<link_text>[^\[\]\n]{1,400})(?<!\\)\]\((?P<target>(?:https?://|mailto:|#|/|\./)[^()\s]{0,2000})\)"
    r"|\\(?P<escaped_text>[*_#|\[\]~`>=+.)-])"
)
_KINDS: dict[str, MarkKind | None] = {
    "code_text": "code",
    "formula_text": "formula",
    "paren_text": "formula",
    "bold_text": "bold",
    "bold2_text": "bold",
    "strike_text": "strike",
    "italic_text": "italic",
    "italic2_text": "italic",
    "link_text": "link",
    "escaped_text": None,
}
_DEEPEST = 4


def rich(source: str) -> Rich:
    """The text of `source` and its marks."""
    return without_signs(inline(build(source).children))


def without_signs(text: Rich) -> Rich:
    """`text` with Markdown's signs turned into marks."""
    found = list(_pairs(text.text, 0, len(text.text), 0))
    if not found:
        return text
    kept: list[tuple[int, int]] = []  # of the characters that stay
    at = 0
    for start, end in sorted(gap for _, gaps in found for gap in gaps):
        kept.append((at, start))
        at = end
    kept.append((at, len(text.text)))
    moved: list[int] = []
    length = 0
    for start, end in kept:
        moved.extend([length] * (start - len(moved)))
        moved.extend(range(length, length + end - start))
        length += end - start
    moved.extend([length] * (len(text.text) + 1 - len(moved)))
    marks = [*text.marks, *(mark for mark, _ in found if mark is not None)]
    placed = [replace(mark, start=moved[mark.start], end=moved[mark.end]) for mark in marks]
    inside = sorted((m for m in placed if m.start < m.end), key=lambda mark: (mark.start, -mark.end))
    return Rich("".join(text.text[start:end] for start, end in kept), tuple(inside))


def _pairs(text: str, start: int, end: int, depth: int) -> Iterator[tuple[Mark | None, list[tuple[int, int]]]]:
    """(mark, the two stretches of signs around it) for each pair of signs in text[start:end], and within them."""
    for match in _SIGNS.finditer(text, start, end):
        group = next(name for name in _KINDS if match[name] is not None)
        inner = match.span(group)
        gaps = [(match.start(), inner[0]), (inner[1], match.end())]
        kind = _KINDS[group]
        yield Mark(kind, *inner, match["target"] or "") if kind else None, gaps
        if depth < _DEEPEST and kind not in (None, "code", "formula"):
            yield from _pairs(text, *inner, depth + 1)
