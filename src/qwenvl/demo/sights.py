"""What there is to see in a sample, token by token: the truths that the auxiliary losses teach."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qwenvl.demo.cards import Card
from qwenvl.demo.clips import DIRECTIONS, STEP, Clip
from qwenvl.demo.focus import answer_spans, question_spans
from qwenvl.demo.gaze import Gaze
from qwenvl.demo.lettering import LETTERS
from qwenvl.demo.pairs import Pair
from qwenvl.demo.questions import Exchange
from qwenvl.demo.world import COLOURS, SHAPES, Picture, Thing
from qwenvl.training.data import Sample, pieces

CELL = 28  # pixels of one vision token's side
PLACES = 8  # ordinal classes of the centre tokens
WIDTH = 20  # columns of the targets
APPEARS, CHANGES = 1 + len(DIRECTIONS), 2 + len(DIRECTIONS)  # events after "none" and the directions
EVENTS = 3 + len(DIRECTIONS)
UNKNOWN = -1.0
IN_QUARTER = 2  # letters that are told apart in a quarter of a vision token

Spots = Callable[[Exchange, int, Thing], tuple[int, ...]]


@dataclass(frozen=True)
class Sights:
    """What the auxiliary losses know of a sample. cells: see cell_targets. gazes: where its words look. letters: see
    letter_targets; None where there is no text."""

    cells: Tensor
    gazes: list[Gaze]
    letters: Tensor | None = None


def cell_targets(picture: Picture) -> Tensor:
    """What lies on each vision token: float32 [V, 20] with columns shape, colour (0 = nothing, else 1 + index),
    is centre, ordinal of the thing, its box from the token's centre (left, top, right, bottom, pixels), its box in the
    picture (x1, y1, x2, y2, pixels of the resized picture), what answers say: box and point on the grid; what happens
    here (none, a direction, appears, changes) and when (in units of STEP); UNKNOWN where that cannot be seen."""
    rows, columns = picture.resized_height // CELL, picture.resized_width // CELL
    targets = np.zeros((rows, columns, WIDTH), np.float32)
    targets[:, :, 18:] = UNKNOWN
    x, y = np.meshgrid(np.arange(columns) * CELL + CELL / 2, np.arange(rows) * CELL + CELL / 2)
    best = np.full((rows, columns), 0.25 * CELL * CELL)
    for place, thing in enumerate(picture.things):
        x1, y1, x2, y2 = picture.resized_box(thing)
        covered = np.clip(np.minimum(x2, x + CELL / 2) - np.maximum(x1, x - CELL / 2), 0, CELL) * np.clip(
            np.minimum(y2, y + CELL / 2) - np.maximum(y1, y - CELL / 2), 0, CELL
        )
        centre = np.zeros((rows, columns), bool)
        centre[picture.cell(thing)] = True
        mine = (covered > best) | centre
        best = np.where(centre, np.inf, np.where(mine, covered, best))
        values = np.empty((int(mine.sum()), 18), np.float32)
        values[:, 0], values[:, 1] = 1 + SHAPES.index(thing.shape), 1 + list(COLOURS).index(thing.colour)
        values[:, 2], values[:, 3] = centre[mine], min(place, PLACES - 1)
        values[:, 4], values[:, 5] = x[mine] - x1, y[mine] - y1
        values[:, 6], values[:, 7] = x2 - x[mine], y2 - y[mine]
        values[:, 8:] = (x1, y1, x2, y2, *picture.answer_box(thing), *picture.answer_point(thing))
        targets[mine, :18] = values
    return torch.from_numpy(targets.reshape(-1, WIDTH))


def letter_targets(card: Card) -> Tensor:
    """Which letters have their middle in each quarter of a vision token: int64 [V, 4 quarters * IN_QUARTER], 0 = none,
    else 1 + index into LETTERS. Quarters in reading order, their letters from left to right."""
    rows, columns = card.resized_height // CELL, card.resized_width // CELL
    targets = np.zeros((2 * rows, 2 * columns, IN_QUARTER), np.int64)
    for letter in (letter for line in card.lines for letter in line.letters if letter.text != " "):
        x, y = card.to_resized(*letter.centre)
        quarter = targets[2 * y // CELL, 2 * x // CELL]
        free = np.flatnonzero(quarter == 0)
        if len(free):
            quarter[free[0]] = 1 + LETTERS.index(letter.text)
    cells = targets.reshape(rows, 2, columns, 2, IN_QUARTER).transpose(0, 2, 1, 3, 4)
    return torch.from_numpy(cells.reshape(rows * columns, 4 * IN_QUARTER).copy())


def clip_targets(clip: Clip) -> Tensor:
    """cell_targets of every step (things as they stand in its second frame), with what happens and when."""
    targets = torch.cat([cell_targets(clip.picture(frame)) for frame in range(1, len(clip.frames), 2)])
    targets[:, 18] = 0
    for actor in clip.actors:
        for step in range(len(clip.frames) // 2):
            spot = clip.spot(actor, 2 * step + 1)
            if spot is None:
                continue
            if actor.motion != "still":
                targets[spot, 18] = 1 + DIRECTIONS.index(actor.motion) if step else UNKNOWN
            elif actor.first and actor.first // 2 == step:
                targets[spot, 18], targets[spot, 19] = APPEARS, round(clip.appears(actor) / STEP)
    return targets


def pair_targets(pair: Pair) -> Tensor:
    """cell_targets of both pictures; the second one's say where it differs."""
    first, second = (cell_targets(picture) for picture in pair.pictures)
    second[:, 18] = 0
    changed = pair.after or pair.before
    if changed is not None:
        second[picture_spot(pair.pictures[1], changed), 18] = CHANGES
    return torch.cat((first, second))


def picture_spot(picture: Picture, thing: Thing) -> int:
    """The vision token that holds the middle of the thing."""
    row, column = picture.cell(thing)
    return row * (picture.resized_width // CELL) + column


def picture_spots(picture: Picture) -> Spots:
    """For questions about one picture."""
    return lambda exchange, level, thing: (picture_spot(picture, thing),)


def clip_spots(clip: Clip) -> Spots:
    """Names look at the thing in every step; answers at its first and last step, or at the step where it appears."""
    actors = {actor.thing: actor for actor in clip.actors}

    def spots(exchange: Exchange, level: int, thing: Thing) -> tuple[int, ...]:
        actor, last = actors[thing], len(clip.frames) - 1
        frames = range(1, last + 1, 2) if level == 0 else (1, last) if actor.first == 0 else (actor.first | 1,)
        return tuple(dict.fromkeys(s for f in frames if (s := clip.spot(actor, f)) is not None))

    return spots


def pair_spots(pair: Pair) -> Spots:
    """A difference is seen in the second picture (a missing thing where it was), a described picture in itself."""
    offset = pair.pictures[0].resized_width * pair.pictures[0].resized_height // CELL**2

    def spots(exchange: Exchange, level: int, thing: Thing) -> tuple[int, ...]:
        there = picture_spot(pair.pictures[0], thing)
        if exchange.kind == "which first":
            return (there,)
        if exchange.kind == "differs" and pair.change in ("colour", "missing"):
            return there, offset + there
        return (offset + there,)

    return spots


def gazes(
    exchanges: Sequence[Exchange], sample: Sample, spots: Spots, encode: Callable[[str], list[int]]
) -> list[Gaze]:
    """Which vision tokens each token of the sample is about."""
    found = []
    for i, exchange in enumerate(exchanges):
        for level, text, spans in (
            (0, exchange.question, question_spans(exchange)),
            (1, exchange.answer, answer_spans(exchange)),
        ):
            begin = sample.starts[2 * i + level]
            for span in spans:
                here = tuple(s for thing in span.things for s in spots(exchange, level, thing))
                last = begin + len(encode(text[: span.end])) - 1
                if level == 0:
                    found.append(Gaze(last, 0, here))
                else:
                    start = span.start - (span.start > 0 and text[span.start - 1] == " ")
                    first = begin + len(encode(text[:start]))
                    apart = exchange.kind in ("relation", "differs") and len(here) == 2
                    found += _answering(first, last, here, apart)
    return found


def _answering(first: int, last: int, spots: tuple[int, ...], apart: bool, level: int = 1) -> list[Gaze]:
    """Where to look for the answer's tokens first..last; each is predicted at the one before it. apart: one head looks
    at the first spot, another at the second, so that it is known which is which; the others at both."""
    places = range(first - 1, last)
    if not apart:
        return [Gaze(token, level, spots) for token in places]
    shares = ((0, spots[:1]), (1, spots[1:]), (2, spots))
    return [Gaze(token, level, here, head) for token in places for head, here in shares]


def letter_gazes(
    exchanges: Sequence[Exchange], sample: Sample, card: Card, encode: Callable[[str], list[int]]
) -> list[Gaze]:
    """Which vision tokens each token is about, of questions about text: a letter is predicted while looking at it, and
    once written it is looked at by an early layer."""
    columns = card.resized_width // CELL
    found = []
    for i, exchange in enumerate(exchanges):
        for level, text, looks in ((0, exchange.question, exchange.seeks), (1, exchange.answer, exchange.looks)):
            tokens = _token_places(text, exchange.cuts if level else (), encode)
            begin = sample.starts[2 * i + level]
            for look in looks:
                points = (card.to_resized(*letter.centre) for letter in look.letters)
                spots = tuple(dict.fromkeys(y // CELL * columns + x // CELL for x, y in points))
                first, last = begin + tokens(look.start), begin + tokens(look.end) - 1
                if level == 0 or look.spelled:
                    found.append(Gaze(last, 2, spots))
                if level == 1:
                    found += _answering(first, last, spots, len(spots) == 2, 3)
    return found


def _token_places(text: str, cuts: Sequence[int], encode: Callable[[str], list[int]]) -> Callable[[int], int]:
    """How many tokens stand before a character; one past the end of the text is the end token."""
    starts, counts = [0], [0]
    for part in pieces(text, cuts):
        starts.append(starts[-1] + len(part))
        counts.append(counts[-1] + len(encode(part)))

    def place(character: int) -> int:
        if character > len(text):
            return counts[-1] + 1
        at = bisect_right(starts, character) - 1
        rest = text[starts[at] : character]
        return counts[at] + (len(encode(rest)) if rest else 0)

    return place
