"""What the bundled model is taught, step by step: fresh pictures, pairs and clips with questions and answers.

It learns to look first: for LOOKING steps only the tower is trained, by the auxiliary loss, on pictures without
questions (a third of the cost of a full step). Then it learns to answer, beginning with one large thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from qwenvl.demo.clips import Clip, clip_video, sample_clip
from qwenvl.demo.drawing import pick
from qwenvl.demo.happenings import CLIP_KINDS, sample_comparison, sample_happening
from qwenvl.demo.pairs import sample_pair
from qwenvl.demo.questions import Exchange, sample_exchange
from qwenvl.demo.sights import (
    Sights,
    Spots,
    cell_targets,
    clip_spots,
    clip_targets,
    gazes,
    pair_spots,
    pair_targets,
    picture_spots,
)
from qwenvl.demo.world import MAX_THINGS, Picture, sample_foreign, sample_picture
from qwenvl.training.data import Encoder, Sample, Turn


@dataclass(frozen=True)
class Lesson:
    """A stretch of the curriculum: up to which step, how many things a picture shows, the share of pictures with large
    ones, and how often each kind of short question is asked. clips, pairs: their share of the samples."""

    until: int
    max_things: int
    large: float
    kinds: Mapping[str, float]
    clips: float = 0.0
    pairs: float = 0.0


LOOKING, PICTURES = 1800, 20  # steps of looking only, and how many pictures each has
FIRST = {"colour": 1, "shape": 1, "exists": 1, "point": 1}
WHOLE = {"count": 1.5, "colour": 1, "shape": 1.5, "exists": 2, "where": 1.5, "relation": 2, "point": 1}
LONG = ("describe", "locate")  # every sample has one of these
# share of samples that begin with it; the short answers can be read off it there, so mostly it is last
LONG_FIRST = 0.35
LESSONS = (
    Lesson(LOOKING + 150, 1, 0.7, FIRST),
    Lesson(LOOKING + 400, 2, 0.4, WHOLE),
    Lesson(10**9, MAX_THINGS, 0.15, WHOLE, clips=0.2, pairs=0.25),
)
FOREIGN, IDENTITY = 0.04, 0.04  # share of samples: pictures outside the world, questions without a picture
EMPTY = 0.05  # share of pictures that may show nothing


class World:
    """A training source (see training.data.Source) that draws new pictures for every step."""

    def __init__(
        self,
        encoder: Encoder,
        seed: int,
        token_budget: int = 3000,
        turns: int = 4,
        looking: int = LOOKING,
        lessons: tuple[Lesson, ...] = LESSONS,
    ) -> None:
        self._encoder, self._seed, self._budget, self._turns = encoder, seed, token_budget, turns
        self._looking, self._lessons = looking, lessons
        self._encode = partial(encoder.processor.tokenizer.encode, special=False)

    def batch(self, step: int) -> list[Sample]:
        """Samples of about token_budget tokens in all; a pure function of (seed, step)."""
        rng = np.random.default_rng([self._seed, step])
        if step < self._looking:
            return [self._look(rng) for _ in range(PICTURES)]
        lesson = next(x for x in self._lessons if step < x.until)
        samples: list[Sample] = []
        used = 0
        while used < self._budget:
            samples.append(self._sample(rng, lesson))
            used += len(samples[-1].token_ids)
        return samples

    def _look(self, rng: np.random.Generator) -> Sample:
        """A picture with no question: nothing in it carries an answer."""
        picture = sample_foreign(rng) if rng.random() < FOREIGN else sample_picture(rng)
        sample = self._encoder.encode([picture.image], [Turn("", "", images=1)], Sights(cell_targets(picture), []))
        return replace(sample, answer=torch.zeros_like(sample.answer))

    def _sample(self, rng: np.random.Generator, lesson: Lesson) -> Sample:
        draw = rng.random()
        if draw < IDENTITY:
            exchanges = [sample_exchange(rng, None, "identity") for _ in range(2)]
            return self._encoder.encode([], [Turn(e.question, e.answer) for e in exchanges])
        draw -= IDENTITY
        if draw < lesson.clips:
            return self._clip(rng)
        draw -= lesson.clips
        if draw < lesson.pairs:
            return self._pair(rng)
        if draw - lesson.pairs < FOREIGN:
            picture = sample_foreign(rng)
            return self._picture(rng, picture, ["foreign"] * 2)
        least = 0 if rng.random() < EMPTY else 1
        picture = sample_picture(rng, lesson.max_things, min_things=least, large=rng.random() < lesson.large)
        names = list(lesson.kinds)
        weights = np.array(list(lesson.kinds.values()))
        kinds = list(rng.choice(names, self._turns, replace=False, p=weights / weights.sum()))
        kinds.insert(0 if rng.random() < LONG_FIRST else len(kinds), LONG[int(rng.integers(len(LONG)))])
        return self._picture(rng, picture, kinds)

    def _picture(self, rng: np.random.Generator, picture: Picture, kinds: list[str]) -> Sample:
        asked = [x for x in (sample_exchange(rng, picture, kind) for kind in kinds) if x is not None]
        turns = [Turn(x.question, x.answer, images=int(i == 0)) for i, x in enumerate(asked)]
        sample = self._encoder.encode([picture.image], turns)
        return self._with_sights(sample, asked, cell_targets(picture), picture_spots(picture))

    def _clip(self, rng: np.random.Generator) -> Sample:
        clip = sample_clip(rng)
        kinds = list(rng.permutation([*CLIP_KINDS, pick(rng, CLIP_KINDS)]))
        asked = [x for x in (self._about(rng, clip, kind) for kind in kinds) if x is not None]
        turns = [Turn(x.question, x.answer, videos=int(i == 0)) for i, x in enumerate(asked)]
        sample = self._encoder.encode([], turns, videos=[clip_video(clip)])
        return self._with_sights(sample, asked, clip_targets(clip), clip_spots(clip))

    def _about(self, rng: np.random.Generator, clip: Clip, kind: str) -> Exchange | None:
        """A question about what happens, at times one about a thing in the last frame."""
        if rng.random() > 0.15:
            return sample_happening(rng, clip, kind)
        return sample_exchange(rng, clip.picture(-1), pick(rng, ("colour", "shape", "exists")))

    def _pair(self, rng: np.random.Generator) -> Sample:
        pair = sample_pair(rng)
        kinds = list(rng.permutation(["differs", "differs", "which"]))
        asked = [sample_comparison(rng, pair, kind) for kind in kinds]
        turns = [Turn(x.question, x.answer, images=2 * int(i == 0)) for i, x in enumerate(asked)]
        sample = self._encoder.encode([p.image for p in pair.pictures], turns)
        return self._with_sights(sample, asked, pair_targets(pair), pair_spots(pair))

    def _with_sights(self, sample: Sample, asked: list[Exchange], cells: torch.Tensor, spots: Spots) -> Sample:
        return replace(sample, extra=Sights(cells, gazes(asked, sample, spots, self._encode)))
