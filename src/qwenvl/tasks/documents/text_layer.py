"""A page's blocks and its picture -> where each word stands.

In: a Page, and its picture as grey values. Out: Word objects in pixels of the picture.
A model gives boxes of blocks, not of words. Lines and gaps are looked up in the picture's ink within the box; where
that does not fit the text, words are spread over the box in proportion to their length. Text without a box goes between
its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from qwenvl.tasks.documents.blocks import Bbox, Block, Page
from qwenvl.tasks.documents.ink import Stretch, extent_of, ink_of, inked, lines_of, parted, without_rules
from qwenvl.tasks.documents.letters import SPACE, Unit, is_rtl, merged, units_of, visual_order, width_of
from qwenvl.tasks.documents.tables import columns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LINE = 1.25  # height of a line, in sizes of its letters


@dataclass(frozen=True)
class Word:
    """Text without spaces, and its box. follows: it is followed by a space in its line. rtl: written right to left."""

    text: str
    x: float
    y: float
    width: float
    height: float
    follows: bool = True

    @property
    def rtl(self) -> bool:
        return is_rtl(self.text)


@dataclass(frozen=True)
class _Part:
    """A stretch of text, with the place that it is known to have."""

    text: str
    box: Bbox | None
    block: Block | None = None  # a table or block with parts of its own


def words_of(page: Page, grey: NDArray[np.uint8]) -> list[Word]:
    """The words of the page, in reading order, in pixels of `grey`."""
    height, width = grey.shape
    across = width / page.size.width if page.size is not None else 1.0
    down = height / page.size.height if page.size is not None else 1.0
    layer = _Layer(grey, across, down)
    blocks = [block for block in page.blocks if block.kind != "remark"]
    frame = (0.0, 0.0, float(width), float(height))
    if not any(block.box is not None for block in page.walk()):
        return layer.text("\n".join(block.plain_text() for block in blocks), frame)
    return layer.parts([layer.part(block) for block in blocks], frame)


class _Layer:
    def __init__(self, grey: NDArray[np.uint8], across: float, down: float) -> None:
        self.grey = grey
        self.across = across
        self.down = down

    def scaled(self, box: Bbox | None) -> Bbox | None:
        if box is None:
            return None
        return box[0] * self.across, box[1] * self.down, box[2] * self.across, box[3] * self.down

    def part(self, block: Block) -> _Part:
        plain = not block.rows and not block.children
        return _Part(block.text if plain else block.plain_text(), self.scaled(block.box), None if plain else block)

    def parts(self, parts: Sequence[_Part], frame: Bbox) -> list[Word]:
        """Words of parts below each other in `frame`; those without a box share what their neighbours leave."""
        words: list[Word] = []
        at = 0
        while at < len(parts):
            box = parts[at].box
            if box is not None:
                words.extend(self.place(parts[at], box))
                at += 1
                continue
            end = next((i for i in range(at, len(parts)) if parts[i].box is not None), len(parts))
            before = parts[at - 1].box if at else None
            after = parts[end].box if end < len(parts) else None
            words.extend(self._shared(parts[at:end], _between(before, after, frame)))
            at = end
        return words

    def _shared(self, parts: Sequence[_Part], frame: Bbox) -> list[Word]:
        x1, top, x2, bottom = frame
        whole = sum(_weight(part.text) for part in parts) or 1.0
        words: list[Word] = []
        for part in parts:
            height = (bottom - top) * _weight(part.text) / whole
            words.extend(self.place(part, (x1, top, x2, top + height)))
            top, whole = top + height, max(whole - _weight(part.text), 1e-9)
        return words

    def place(self, part: _Part, box: Bbox) -> list[Word]:
        block = part.block
        if block is None:
            return self.text(part.text, box)
        if block.kind == "table" and block.rows:
            captions = [self.part(child) for child in block.children]
            placed = [caption for caption in captions if caption.box is not None]
            loose = [caption for caption in captions if caption.box is None]
            share = 0.9 * len(loose) / (len(loose) + len(block.rows))
            edge = box[1] + (box[3] - box[1]) * share
            above = self._shared(loose, (box[0], box[1], box[2], edge)) if loose else []
            return [*self.parts(placed, box), *above, *self._table(block, (box[0], edge, box[2], box[3]))]
        own = [_Part(block.text, None)] if block.text else []
        return self.parts([*own, *map(self.part, block.children)], box)

    def _table(self, block: Block, box: Bbox) -> list[Word]:
        """Cells by their boxes, or on the grid that the ink shows, or on an even one."""
        wide = columns(block)
        inner = _Layer(without_rules(self.grey, _whole(box)), self.across, self.down)
        rows = inner._rows(box, len(block.rows))
        across = inner._columns(box, block, wide)
        words: list[Word] = []
        below: dict[int, int] = {}  # column -> rows that a cell above still covers
        for at, row in enumerate(block.rows):
            column = 0
            for cell in row:
                while below.get(column, 0) > at:
                    column += 1
                if column >= wide:
                    break
                last = min(column + cell.colspan, wide) - 1
                bottom = rows[min(at + cell.rowspan, len(rows)) - 1][1]
                place = self.scaled(cell.box) or (across[column][0], rows[at][0], across[last][1], bottom)
                words.extend(inner.text(cell.plain_text(), place))
                if cell.rowspan > 1:
                    below.update(dict.fromkeys(range(column, last + 1), at + cell.rowspan))
                column = last + 1
        return words

    def _rows(self, box: Bbox, count: int) -> list[tuple[float, float]]:
        ink = ink_of(self.grey, _whole(box))
        found = parted(inked(ink, 1), count, 1) if ink.size else None
        if found is None:
            return _even(box[1], box[3], [1.0] * count)
        return _edges(found, box[1], box[3])

    def _columns(self, box: Bbox, block: Block, count: int) -> list[tuple[float, float]]:
        ink = ink_of(self.grey, _whole(box))
        found = parted(inked(ink, 0), count, 3) if ink.size and count else None
        if found is not None:
            return _edges(found, box[0], box[2])
        widths = [1.0] * count
        for row in block.rows:
            if all(cell.colspan == 1 for cell in row):
                for column, cell in enumerate(row[:count]):
                    longest = max(map(width_of, cell.text.split("\n")))
                    widths[column] = max(widths[column], min(longest, 40.0))
        return _even(box[0], box[2], widths)

    def text(self, text: str, box: Bbox) -> list[Word]:
        """Words of a text in its box, line by line."""
        hard = [units for units in map(units_of, text.split("\n")) if units]
        if not hard:
            return []
        ink = ink_of(self.grey, _whole(box))
        found = self._lines(ink, hard, box)
        if found is None:
            found = _estimated(hard, box)
        words: list[Word] = []
        for units, line, seen in found:
            words.extend(self._line(units, line, seen))
        return words

    def _lines(
        self, ink: NDArray[np.bool_], hard: Sequence[Sequence[Unit]], box: Bbox
    ) -> list[tuple[Sequence[Unit], Bbox, NDArray[np.bool_] | None]] | None:
        """(units, box, ink) for each line that the ink shows; None where that cannot be this text."""
        bands = lines_of(ink)
        extents = [extent_of(ink[start:end]) for start, end in bands]
        if not bands or any(extent is None for extent in extents):
            return None
        placed: list[tuple[Stretch, Stretch]] = [(b, e) for b, e in zip(bands, extents, strict=True) if e is not None]
        if len(placed) == len(hard):
            shares = [list(units) for units in hard]
        else:
            shares = _shares([unit for units in hard for unit in units], [end - start for _, (start, end) in placed])
        if not _fits(shares, placed):
            return None
        left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
        lines: list[tuple[Sequence[Unit], Bbox, NDArray[np.bool_] | None]] = []
        for units, ((start, end), (first, last)) in zip(shares, placed, strict=True):
            where = (float(left + first), float(top + start), float(left + last), float(top + end))
            lines.append((units, where, ink[start:end, first:last]))
        return lines

    def _line(self, units: Sequence[Unit], box: Bbox, ink: NDArray[np.bool_] | None) -> list[Word]:
        """Words of one line, between the gaps of its ink, or in proportion to their length."""
        words = merged(units)
        if not words:
            return []
        order = visual_order(words)
        x1, y1, x2, y2 = box
        places = self._gaps([words[at] for at in order], ink, y2 - y1)
        if places is None:
            whole = sum(word.width for word in words) + 0.25 * (len(words) - 1)
            scale = (x2 - x1) / whole
            places, at = [], 0.0
            for index in order:
                places.append((at, at + words[index].width * scale))
                at += (words[index].width + 0.25) * scale
        placed = dict(zip(order, places, strict=True))
        return [
            Word(word.text, x1 + placed[at][0], y1, placed[at][1] - placed[at][0], y2 - y1, word.spaced)
            for at, word in enumerate(words)
        ]

    def _gaps(
        self, words: Sequence[Unit], ink: NDArray[np.bool_] | None, height: float
    ) -> list[tuple[float, float]] | None:
        if ink is None or not ink.size:
            return None
        found = parted(inked(ink, 0), len(words), 0.1 * height)
        if found is None:
            return None
        scale = sum(end - start for start, end in found) / sum(word.width for word in words)
        ratios = [(end - start) / (word.width * scale) for word, (start, end) in zip(words, found, strict=True)]
        if min(ratios) < 0.3 or max(ratios) > 3.0:
            return None
        return [(float(start), float(end)) for start, end in found]


def _shares(units: Sequence[Unit], widths: Sequence[int]) -> list[list[Unit]]:
    """Units for lines of these widths, in proportion."""
    scale = sum(unit.width + SPACE * unit.spaced for unit in units) / sum(widths)
    shares: list[list[Unit]] = []
    at, taken, wanted = 0, 0.0, 0.0
    for number, width in enumerate(widths):
        wanted += width * scale
        share = []
        last = number == len(widths) - 1
        while at < len(units) and (last or taken + (units[at].width / 2) < wanted):
            share.append(units[at])
            taken += units[at].width + SPACE * units[at].spaced
            at += 1
        shares.append(share)
    return shares


def _fits(shares: Sequence[Sequence[Unit]], placed: Sequence[tuple[Stretch, Stretch]]) -> bool:
    """Could the lines seen hold this text? Every one has some, and letters are neither squeezed nor stretched much."""
    if any(not share for share in shares):
        return False
    wide = sum(end - start for _, (start, end) in placed)
    high = sorted(end - start for (start, end), _ in placed)[len(placed) // 2]
    expected = sum(unit.width + SPACE * unit.spaced for share in shares for unit in share) * high * 1.1
    return 0.4 < wide / max(expected, 1e-9) < 2.5


def _estimated(
    hard: Sequence[Sequence[Unit]], box: Bbox
) -> list[tuple[Sequence[Unit], Bbox, NDArray[np.bool_] | None]]:
    """Lines as tall as lets the text fill the box."""
    x1, y1, x2, y2 = box
    wide, high = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
    total = sum(unit.width + SPACE * unit.spaced for units in hard for unit in units)
    size = math.sqrt(wide * high / (_LINE * max(total, 0.1)))
    count = min(max(len(hard), round(high / (_LINE * size)), 1), sum(map(len, hard)))
    flat = [unit for units in hard for unit in units]
    shares = [list(units) for units in hard] if count == len(hard) else _shares(flat, [100] * count)
    step = high / count
    lines: list[tuple[Sequence[Unit], Bbox, NDArray[np.bool_] | None]] = []
    for at, share in enumerate(shares):
        length = sum(unit.width + SPACE * unit.spaced for unit in share) * step / _LINE
        right = x1 + min(wide, max(length, 1.0))
        left = x1
        if share and is_rtl(share[0].text):
            left, right = x2 - (right - x1), x2
        lines.append((share, (left, y1 + at * step + 0.1 * step, right, y1 + (at + 1) * step - 0.1 * step), None))
    return lines


def _between(before: Bbox | None, after: Bbox | None, frame: Bbox) -> Bbox:
    """The place between two neighbours; a narrow strip below the first where they leave none."""
    x1, top, x2, bottom = frame
    beside = before or after
    if beside is not None:
        x1, x2 = max(x1, beside[0]), min(x2, beside[2])
    if before is not None:
        top = min(before[3], bottom)
    if after is not None:
        bottom = max(min(after[1], bottom), top)
    if bottom - top < 4:
        bottom = top + 4
    return (x1, top, x2, bottom) if x2 > x1 else (frame[0], top, frame[2], bottom)


def _weight(text: str) -> float:
    return max(1.0, width_of(text))


def _even(start: float, end: float, weights: Sequence[float]) -> list[tuple[float, float]]:
    whole = sum(weights) or 1.0
    parts = []
    at = start
    for weight in weights:
        parts.append((at, at + (end - start) * weight / whole))
        at = parts[-1][1]
    return parts


def _edges(found: Sequence[Stretch], start: float, end: float) -> list[tuple[float, float]]:
    """Stretches of ink, relative to `start`, widened to the middle of the gaps between them."""
    origin = max(0, math.floor(start))
    middles = [origin + (one[1] + two[0]) / 2 for one, two in pairwise(found)]
    edges = [start, *middles, end]
    return list(pairwise(edges))


def _whole(box: Bbox) -> tuple[int, int, int, int]:
    return math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
