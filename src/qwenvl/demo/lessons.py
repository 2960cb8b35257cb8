"""What the bundled model is taught, step by step: fresh pictures, cards, pairs and clips with questions and answers.

It learns to look first: for LOOKING steps only the tower is trained, by the auxiliary loss, on pictures without
questions (half of the cost of a full step). Then it learns to answer, beginning with one large thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from qwenvl.demo.cards import Card, sample_page, sample_receipt, sample_sign
from qwenvl.demo.clips import Clip, clip_video, sample_clip
from qwenvl.demo.drawing import pick
from qwenvl.demo.gaze import LEVELS, Gaze
from qwenvl.demo.happenings import CLIP_KINDS, sample_comparison, sample_happening
from qwenvl.demo.lettering import LETTERS
from qwenvl.demo.pairs import sample_pair
from qwenvl.demo.questions import Exchange, sample_exchange
from qwenvl.demo.reading import nothing_to_read, sample_reading
from qwenvl.demo.sights import (
    Sights,
    Spots,
    cell_targets,
    clip_spots,
    clip_targets,
    gazes,
    letter_gazes,
    letter_targets,
    pair_spots,
    pair_targets,
    picture_spots,
)
from qwenvl.demo.world import MAX_THINGS, Picture, sample_foreign, sample_picture
from qwenvl.training.data import Encoder, Sample, Turn


@dataclass(frozen=True)
class Lesson:
    """A stretch of the curriculum: up to which step, how many things a picture shows, the share of pictures with large
    ones, and how often each kind of short question is asked. clips, pairs, cards: their share of the samples. plain:
    share of the signs with large letters, black on white or white on black. looks: pictures a step without a question,
    most of them pages of text."""

    until: int
    max_things: int
    large: float
    kinds: Mapping[str, float]
    clips: float = 0.0
    pairs: float = 0.0
    cards: float = 0.0
    plain: float = 0.0
    looks: int = 0


LOOKING, PICTURES = 3000, 24  # steps of looking only, and how many pictures each has
LOOK_CARDS, PLAIN = 0.75, 0.8  # share of cards among them, and of plain signs among the first cards
FIRST = {"colour": 1, "shape": 1, "exists": 1, "point": 1}
WHOLE = {"count": 1.5, "colour": 1, "shape": 1.5, "exists": 2, "where": 1.5, "relation": 2, "point": 1}
LONG = ("describe", "locate", "locate")  # every sample has one of these
# share of samples that begin with it; the short answers can be read off it there, so mostly it is last
LONG_FIRST = 0.35
LESSONS = (
    Lesson(LOOKING + 150, 1, 0.7, FIRST),
    Lesson(LOOKING + 400, 2, 0.4, WHOLE),
    Lesson(LOOKING + 1200, MAX_THINGS, 0.15, WHOLE, clips=0.1, pairs=0.1, cards=0.5, plain=0.5),
    Lesson(10**9, MAX_THINGS, 0.15, WHOLE, clips=0.15, pairs=0.15, cards=0.4, plain=0.1),
)
LETTER = LEVELS.index("a_letter_here")
RECEIPTS = 0.6  # share of cards
SIGN_KINDS = {"read": 0.78, "spot": 0.18, "describe text": 0.04}
RECEIPT_KINDS = {"extract": 0.5, "field": 0.08, "read": 0.3, "spot": 0.1, "describe text": 0.02}  # read: many letters
SPOILT, SPOILT_LETTERS = 0.5, 0.15  # share of cards with wrong letters in the answer so far, and of its letters
NO_TEXT = 0.06  # share of pictures without text that are asked for it
FOREIGN, IDENTITY = 0.04, 0.04  # share of samples: pictures outside the world, questions without a picture
EMPTY = 0.05  # share of pictures that may show nothing


def some_card(rng: np.random.Generator, plain: float) -> Card:
    """A receipt or a sign; `plain`: share of signs that are plain."""
    if rng.random() < RECEIPTS * (1 - plain):
        return sample_receipt(rng)
    return sample_sign(rng, plain=rng.random() < plain)


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
            return [self._look(rng, PLAIN if step < self._looking / 2 else 0.0) for _ in range(PICTURES)]
        lesson = next(x for x in self._lessons if step < x.until)
        samples = [self._look(rng, lesson.plain) for _ in range(lesson.looks)]
        used = sum(len(sample.token_ids) for sample in samples)
        while used < self._budget:
            samples.append(self._sample(rng, lesson))
            used += len(samples[-1].token_ids)
        return samples

    def _look(self, rng: np.random.Generator, plain: float) -> Sample:
        """A picture with no question: nothing in it carries an answer. plain: share of the signs that are."""
        u = rng.random()
        if u < LOOK_CARDS:
            card = sample_page(rng, plain=rng.random() < plain) if rng.random() < 0.9 else sample_receipt(rng)
            sights = Sights(cell_targets(card), [], letter_targets(card))
            sample = self._encoder.encode([card.image], [Turn("", "", images=1)], sights)
        else:
            picture = sample_foreign(rng) if u > 1 - FOREIGN else sample_picture(rng)
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
        draw -= lesson.pairs
        if draw < lesson.cards:
            return self._card(rng, lesson)
        if draw - lesson.cards < FOREIGN:
            picture = sample_foreign(rng)
            return self._picture(rng, picture, ["foreign"] * 2)
        least = 0 if rng.random() < EMPTY else 1
        picture = sample_picture(rng, lesson.max_things, min_things=least, large=rng.random() < lesson.large)
        names = list(lesson.kinds)
        weights = np.array(list(lesson.kinds.values()))
        kinds = list(rng.choice(names, self._turns, replace=False, p=weights / weights.sum()))
        kinds.insert(0 if rng.random() < LONG_FIRST else len(kinds), LONG[int(rng.integers(len(LONG)))])
        if rng.random() < NO_TEXT:
            kinds[0] = "no text"
        return self._picture(rng, picture, kinds)

    def _card(self, rng: np.random.Generator, lesson: Lesson) -> Sample:
        """A card with one question; two where both are about single fields."""
        card = some_card(rng, lesson.plain)
        shares = RECEIPT_KINDS if card.values else SIGN_KINDS
        kind = str(rng.choice(list(shares), p=np.array(list(shares.values()))))
        asked = [x for _ in range(1 + (kind == "field")) if (x := sample_reading(rng, card, kind)) is not None]
        turns = [Turn(x.question, x.answer, images=int(i == 0), cuts=x.cuts) for i, x in enumerate(asked)]
        sample = self._encoder.encode([card.image], turns)
        looks = letter_gazes(asked, sample, card, self._encode)
        shown = self._spoilt(rng, sample, looks) if rng.random() < SPOILT else None
        return replace(sample, extra=Sights(cell_targets(card), looks, letter_targets(card)), shown=shown)

    def _spoilt(self, rng: np.random.Generator, sample: Sample, looks: list[Gaze]) -> torch.Tensor:
        """Some letters of the answer replaced by others, so that where to go on is not told by them alone."""
        shown = sample.token_ids.clone()
        for gaze in looks:
            if gaze.level == LETTER and bool(sample.answer[gaze.token]) and rng.random() < SPOILT_LETTERS:
                shown[gaze.token] = self._encode(pick(rng, LETTERS))[0]
        return shown

    def _picture(self, rng: np.random.Generator, picture: Picture, kinds: list[str]) -> Sample:
        made = (nothing_to_read(rng) if kind == "no text" else sample_exchange(rng, picture, kind) for kind in kinds)
        asked = [x for x in made if x is not None]
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
