"""The front door: an answer's text -> blocks.

In: what a model wrote about one page. Out: blocks in the order written, boxes in original pixels.
Takes off the fence around the page first; what is said around the fence is a remark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from qwenvl.tasks.documents.blocks import Block
from qwenvl.tasks.documents.frames import Frame, FrameKind
from qwenvl.tasks.documents.html import read_html
from qwenvl.types import ImageSize

_OPENING = re.compile(
    r"(?:^|(?<=\n))[ \t]*(```|~~~|''')[ \t]*(html|xml|markdown|md|latex|qwenvl)?[ \t]*(?:\n|(?=<)|\Z)", re.I
)
_TAGS = re.compile(r"<(?:!doctype|html|body|p|div|h[1-6]|table|ol|ul)\b", re.IGNORECASE)
_PAGE = re.compile(r"<(?:html|body)\b|data-bbox", re.IGNORECASE)


def read_answer(text: str, size: ImageSize | None = None, *, frame: FrameKind = "resized") -> list[Block]:
    """The blocks that `text` describes, in the order written. Never raises; broken or cut-off answers are repaired.

    text: QwenVL HTML, other HTML, Markdown or plain text, with or without fences; prose around it becomes a "remark".
    size: of the page's picture; without it blocks have `resized` but no `box`.
    frame: what coordinates are in: pixels of the resized picture (Qwen2.5-VL) or thousandths (Qwen2-VL, later models).

        read_answer('<p data-bbox="28 28 112 56">Total: 5</p>', ImageSize(200, 100, 224, 112))
        -> [Block("paragraph", "Total: 5", box=(25.0, 25.0, 100.0, 50.0), resized=(28, 28, 112, 56))]
    """
    if text.strip() in ("`", "``"):
        return []  # a fence that was just begun
    place = Frame(size, frame)
    parts = list(_parts(text))
    framed = any(fenced and _PAGE.search(part) for part, fenced in parts)
    plain = not _TAGS.search(text)
    blocks: list[Block] = []
    for part, fenced in parts:
        if framed and not fenced and not _TAGS.search(part):
            said = part.strip()
            blocks.extend([Block("remark", said)] if said else [])
        else:
            blocks.extend(read_html(part, place, keep_lines=plain))
    return blocks


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """(text, does it stand in a fence) in order. Fences around code are not taken off."""
    at = 0
    for fence in _OPENING.finditer(text):
        if fence.start() < at:
            continue
        begins = text[fence.end() : fence.end() + 400].lstrip()
        if not (_TAGS.match(begins) or (fence[2] or "").lower() in ("markdown", "md", "latex", "qwenvl")):
            continue
        yield text[at : fence.start()], False
        end, at_next = _closing(text, fence)
        yield text[fence.end() : end], True
        at = at_next
    yield text[at:], False


def _closing(text: str, fence: re.Match[str]) -> tuple[int, int]:
    """(where what stands in the fence ends, where the text goes on); fences of code within it are counted."""
    signs = fence[1]
    depth = 0
    for line in re.compile(rf"(?P<opens>(?:^|(?<=\n))[ \t]*)?{signs}(?P<name>[\w+-]*)[ \t]*(?:\n|\Z)").finditer(
        text, fence.end()
    ):
        if line["name"] and line["opens"] is not None:
            depth += 1
        elif depth and line["opens"] is not None:
            depth -= 1
        elif not line["name"]:
            return line.start(), line.end()
    unfinished = re.compile(rf"\n[ \t]*{signs[0]}{{1,2}}\Z").search(text, fence.end())
    return (unfinished.start(), len(text)) if unfinished else (len(text), len(text))
