"""Short videos of the bundled model's world: one thing moves, or one appears; the others stand still.

Sizes as in world.py: boxes in ORIGINAL pixels, the model sees RESIZED ones. A clip is a row of frames at `fps`; the
tower takes two frames together (a step).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image

from qwenvl.demo.drawing import (
    COLOURS,
    RGB,
    SHAPES,
    Ground,
    Stamp,
    fill_colour,
    finish,
    ground,
    pick,
    polygon,
    stamp,
    uniform,
)
from qwenvl.demo.world import FACTOR, GAP, Box, Picture, Thing, of_some_size
from qwenvl.media.resize import smart_resize
from qwenvl.media.videos import Video

CLIP_MIN_PIXELS, CLIP_MAX_PIXELS = 112 * 112, 196 * 196  # of a frame, as the model sees it
RATES = (2.0, 2.0, 2.0, 1.0, 4.0)  # frames a second
STEP = 0.5  # seconds: answers give times as multiples of this

Motion = Literal["still", "left", "right", "up", "down"]
DIRECTIONS: tuple[Motion, ...] = ("left", "right", "up", "down")


@dataclass(frozen=True)
class Actor:
    """A thing of a clip: as it stands in every frame (None before it appears), and how it moves."""

    frames: tuple[Thing | None, ...]
    motion: Motion

    @property
    def thing(self) -> Thing:
        """As it stands at last."""
        last = self.frames[-1]
        assert last is not None
        return last

    @property
    def first(self) -> int:
        """The frame in which it is first seen."""
        return next(i for i, thing in enumerate(self.frames) if thing is not None)


@dataclass
class Clip:
    """frames: uint8 [T, height, width, 3] in ORIGINAL pixels, T even; fps: frames a second."""

    frames: np.ndarray
    fps: float
    actors: list[Actor]
    width: int
    height: int
    resized_width: int
    resized_height: int

    @property
    def seconds(self) -> float:
        """Seconds of one step of two frames."""
        return 2 / self.fps

    @property
    def end(self) -> float:
        """Its length in seconds."""
        return len(self.frames) / self.fps

    def picture(self, frame: int) -> Picture:
        """A frame as a picture, with the things that are seen in it."""
        things = [thing for actor in self.actors if (thing := actor.frames[frame]) is not None]
        size = (self.width, self.height, self.resized_width, self.resized_height)
        picture = Picture(self.frames[frame], things, *size)
        things.sort(key=picture.cell)
        return picture

    def spot(self, actor: Actor, frame: int) -> int | None:
        """The vision token that holds the middle of the actor in the step of this frame; None when it is not seen."""
        thing = actor.frames[frame]
        if thing is None:
            return None
        x, y = thing.centre
        rows, columns = self.resized_height // FACTOR, self.resized_width // FACTOR
        row = min(rows - 1, int(y * self.resized_height / self.height) // FACTOR)
        column = min(columns - 1, int(x * self.resized_width / self.width) // FACTOR)
        return (frame // 2) * rows * columns + row * columns + column

    def appears(self, actor: Actor) -> float:
        """When the actor is first seen, in seconds, as answers give it."""
        return math.floor(actor.first / self.fps / STEP + 0.5) * STEP


def clip_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) of a frame as the bundled model sees it."""
    h, w = smart_resize(height, width, factor=FACTOR, min_pixels=CLIP_MIN_PIXELS, max_pixels=CLIP_MAX_PIXELS)
    return w, h


def sample_clip(rng: np.random.Generator) -> Clip:
    """A fresh clip of 4-12 frames with one or two things, no two of the same name; one moves or appears."""
    return of_some_size(rng, 337, partial(_try, rng))


@dataclass(frozen=True)
class _Painted:
    """An actor with what is pasted in every frame."""

    actor: Actor
    stamps: list[Stamp]
    tone: RGB


def _try(rng: np.random.Generator, width: int, height: int) -> Clip | None:
    """A clip of this size, or None where its things have no room."""
    count = 2 * int(uniform(rng, 2, 7))
    fps = pick(rng, RATES)
    under = ground(rng, width, height)
    acts = [pick(rng, ("move", "move", "appear"))]
    if rng.random() < 0.6:
        acts.append(pick(rng, ("still", "still", "still", "appear", "move")))
    painted: list[_Painted] = []
    taken: list[Box] = []
    for act in acts:
        side = int(uniform(rng, 0.24, 0.42) * min(width, height))
        motion: Motion = pick(rng, DIRECTIONS) if act == "move" else "still"
        path = _path(rng, motion, count, side, width, height)
        found = None if path is None else _paint(rng, under, act, motion, path, side)
        if path is None or found is None or any(found.actor.thing.name == p.actor.thing.name for p in painted):
            return None
        xs, ys = [x for x, _ in path], [y for _, y in path]
        swept = (min(xs), min(ys), max(xs) + side, max(ys) + side)
        if any(_near(swept, other) for other in taken):
            return None
        taken.append(swept)
        painted.append(found)
    state = int(rng.integers(2**31))  # noise and compression are alike in all frames
    frames = [np.asarray(finish(np.random.default_rng(state), _frame(under, painted, i))) for i in range(count)]
    return Clip(np.stack(frames), fps, [p.actor for p in painted], width, height, *clip_size(width, height))


def _paint(
    rng: np.random.Generator, under: Ground, act: str, motion: Motion, path: list[tuple[int, int]], side: int
) -> _Painted | None:
    """A thing on its path; None when its colour is not seen on the ground."""
    shape, colour = pick(rng, SHAPES), pick(rng, tuple(COLOURS))
    tone = fill_colour(rng, colour, under)
    if tone is None:
        return None
    corners, scale, state = polygon(rng, shape), pick(rng, (1, 3)), int(rng.integers(2**31))
    stamps = [stamp(np.random.default_rng(state), corners, x, y, side, side, scale) for x, y in path]
    begin = 1 + int(rng.random() * (len(path) - 1)) if act == "appear" else 0
    things = (None if i < begin else Thing(shape, colour, s.box, s.corners) for i, s in enumerate(stamps))
    return _Painted(Actor(tuple(things), motion), stamps, tone)


def _frame(under: Ground, painted: list[_Painted], number: int) -> Image.Image:
    image = under.image.copy()
    for p in painted:
        if p.actor.frames[number] is not None:
            image.paste(p.tone, p.stamps[number].at, p.stamps[number].mask)
    return image


def _near(a: Box, b: Box) -> bool:
    return a[0] < b[2] + GAP and b[0] < a[2] + GAP and a[1] < b[3] + GAP and b[1] < a[3] + GAP


def _path(
    rng: np.random.Generator, motion: Motion, count: int, side: int, width: int, height: int
) -> list[tuple[int, int]] | None:
    """Top left corners in every frame; None where there is no room to move clearly."""
    room_x, room_y = width - side - 4, height - side - 4
    if room_x < 1 or room_y < 1:
        return None
    x, y = 2 + rng.random() * room_x, 2 + rng.random() * room_y
    if motion == "still":
        return [(int(x), int(y))] * count
    along = room_x if motion in ("left", "right") else room_y
    far = uniform(rng, 0.35, 1.0) * along
    if far < 0.25 * min(width, height):
        return None
    start = 2 + rng.random() * (along - far)
    steps = [start + far * i / (count - 1) for i in range(count)]
    if motion in ("left", "up"):
        steps.reverse()
    return [(round(s), int(y)) for s in steps] if motion in ("left", "right") else [(int(x), round(s)) for s in steps]


def clip_video(clip: Clip) -> Video:
    """The clip as a video that was read."""
    count = len(clip.frames)
    times = tuple(i / clip.fps for i in range(count))
    return Video(
        clip.frames, times, tuple(range(count)), clip.fps, count / clip.fps, width=clip.width, height=clip.height
    )
