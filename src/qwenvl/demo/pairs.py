"""Two pictures of the bundled model's world that differ in one thing, or in nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image

from qwenvl.demo.drawing import (
    COLOURS,
    RGB,
    Ground,
    Point,
    distance,
    fill_colour,
    finish,
    ground,
    pick,
    polygon,
    stamp,
)
from qwenvl.demo.world import Picture, Plan, Thing, of_some_size, place_things, resized_size

Change = Literal["colour", "missing", "extra", "none"]
CHANGES: tuple[Change, ...] = ("colour", "missing", "extra", "none")
OFTEN: tuple[Change, ...] = ("colour", *CHANGES)  # how often each: colours are the hardest to compare
LEAST_APART = 90  # colour distance between before and after


@dataclass
class Pair:
    """Two pictures of one size. before: the thing of the first picture that is changed or missing in the second;
    after: the thing of the second picture that is changed or new."""

    pictures: tuple[Picture, Picture]
    change: Change
    before: Thing | None = None
    after: Thing | None = None


@dataclass(frozen=True)
class _Painted:
    plan: Plan
    colour: str
    tone: RGB
    corners: tuple[Point, ...]


def sample_pair(rng: np.random.Generator) -> Pair:
    """A fresh pair with up to three things a picture, no two of one name in a picture."""
    return of_some_size(rng, 281, partial(_try, rng))


def _try(rng: np.random.Generator, width: int, height: int) -> Pair | None:
    change = pick(rng, OFTEN)
    count = 1 + int(rng.random() * 3)
    if change in ("missing", "extra"):
        count = max(count, 2)
    plans = place_things(rng, count, (width, height), resized_size(width, height), False)
    under = ground(rng, width, height)
    full = [_paint(rng, under, plan) for plan in plans]
    if len(full) < count or None in full:
        return None
    first = [p for p in full if p is not None]
    chosen = int(rng.integers(count))
    second = list(first)
    if change == "colour":
        other = _recolour(rng, under, first[chosen])
        if other is None:
            return None
        second[chosen] = other
    elif change == "missing":
        del second[chosen]
    elif change == "extra":
        del first[chosen]
    for side in (first, second):
        if len({(p.colour, p.plan.shape) for p in side}) < len(side):
            return None
    scale, size = pick(rng, (1, 2, 3)), (width, height, *resized_size(width, height))
    state = int(rng.integers(2**31))
    (one, seen), (two, seen_later) = (_draw(state, under, side, scale) for side in (first, second))
    before = seen[chosen] if change in ("colour", "missing") else None
    after = seen_later[chosen] if change in ("colour", "extra") else None
    pictures = [
        Picture(np.asarray(finish(rng, image)), things, *size) for image, things in ((one, seen), (two, seen_later))
    ]
    for picture in pictures:
        picture.things = sorted(picture.things, key=picture.cell)
    return Pair((pictures[0], pictures[1]), change, before, after)


def _paint(rng: np.random.Generator, under: Ground, plan: Plan) -> _Painted | None:
    colour = pick(rng, tuple(COLOURS))
    tone = fill_colour(rng, colour, under)
    return None if tone is None else _Painted(plan, colour, tone, polygon(rng, plan.shape))


def _recolour(rng: np.random.Generator, under: Ground, painted: _Painted) -> _Painted | None:
    colour = pick(rng, [name for name in COLOURS if name != painted.colour])
    tone = fill_colour(rng, colour, under)
    if tone is None or distance(tone, painted.tone) < LEAST_APART:
        return None
    return replace(painted, colour=colour, tone=tone)


def _draw(state: int, under: Ground, painted: list[_Painted], scale: int) -> tuple[Image.Image, list[Thing]]:
    """The picture and its things in the order of `painted`; the same plan is drawn alike every time."""
    image, things = under.image.copy(), []
    for p in painted:
        plan, rng = p.plan, np.random.default_rng([state, p.plan.x, p.plan.y])
        piece = stamp(rng, p.corners, plan.x, plan.y, plan.w, plan.h, scale)
        image.paste(p.tone, piece.at, piece.mask)
        things.append(Thing(plan.shape, p.colour, piece.box, piece.corners))
    return image, things
