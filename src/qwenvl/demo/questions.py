"""Questions about pictures of the bundled model's world, each with its one exact answer.

An `Exchange` is one question with its answer. Answers are short and regular; boxes and points in answers are
whole RESIZED pixels, in the fenced JSON that Qwen2.5-VL writes. `grade` (see grading.py) compares by meaning.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np

from qwenvl.demo import phrases
from qwenvl.demo.drawing import COLOURS, SHAPES, pick
from qwenvl.demo.grading import grade
from qwenvl.demo.lettering import Letter
from qwenvl.demo.world import Picture, Thing

__all__ = ["KINDS", "Exchange", "describe", "grade", "possible", "sample_exchange"]

KINDS = (
    "describe", "count", "colour", "shape", "exists", "where", "relation", "locate", "point",
    "identity", "foreign",
)  # fmt: skip
COLOUR_NAMES = tuple(COLOURS)
CLEAR = 0.06  # share of the side by which a centre must be clear of the 3 x 3 lines to be asked for
APART = 0.12  # share of the side by which two centres must differ to be compared


@dataclass(frozen=True)
class Look:
    """Characters [start, end) of a question or an answer, and the letters of the picture that they are about.

    spelled: they are one letter, copied; end may be one past the text: the end of the answer.
    """

    start: int
    end: int
    letters: tuple[Letter, ...]
    spelled: bool = False


@dataclass(frozen=True)
class Exchange:
    """One question and its exact answer. targets: the things the answer is about (count: those counted).

    mentions: words of the question that name things of the picture, in order, with the things that they name.
    seeks: parts of the question that name text of the picture. looks: parts of the answer that are read from it, in
    order.
    """

    kind: str
    question: str
    answer: str
    targets: tuple[Thing, ...] = ()
    mentions: tuple[tuple[str, tuple[Thing, ...]], ...] = ()
    seeks: tuple[Look, ...] = ()
    looks: tuple[Look, ...] = ()

    @property
    def cuts(self) -> tuple[int, ...]:
        """Where letters that are copied one by one begin and end (see training.data.Turn)."""
        return tuple(sorted({place for look in self.looks if look.spelled for place in (look.start, look.end)}))


def possible(picture: Picture | None, kind: str) -> bool:
    """Can `sample_exchange` ask a question of this kind about the picture (None = no picture)?"""
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not known: expected one of {', '.join(KINDS)}")
    if kind == "identity":
        return picture is None
    if picture is None or picture.kind != ("foreign" if kind == "foreign" else "scene"):
        return False
    if kind == "colour":
        return any(_unique_shapes(picture))
    if kind == "shape":
        return any(_unique_colours(picture))
    if kind == "where":
        return any(_clear(picture, t) for t in _unique_names(picture))
    if kind == "relation":
        return bool(_pairs(picture))
    return True


@overload
def sample_exchange(rng: np.random.Generator, picture: None, kind: Literal["identity"]) -> Exchange: ...
@overload
def sample_exchange(rng: np.random.Generator, picture: Picture | None, kind: str) -> Exchange | None: ...
def sample_exchange(rng: np.random.Generator, picture: Picture | None, kind: str) -> Exchange | None:
    """A random question of the kind with its answer; None where `possible` says no.

    kind "identity" is asked without a picture (picture None); every other kind needs one.
    """
    if not possible(picture, kind):
        return None
    return _identity(rng) if picture is None else _MAKERS[kind](rng, picture)


def style(rng: np.random.Generator, text: str) -> str:
    """The question as users type it: at times in lower case, without its last mark, polite or in capitals."""
    u = rng.random()
    if u < 0.18:
        text = text.lower()
    elif u < 0.21:
        text = text.upper()
    elif u < 0.25:
        text = "Please " + text[0].lower() + text[1:] if not text.endswith("?") else text[:-1] + ", please?"
    if rng.random() < 0.2:
        text = text.rstrip(".?!")
    return text


def article(name: str) -> str:
    """'a red circle', 'an orange star'."""
    return ("an " if name[0] in "aeiou" else "a ") + name


def position(picture: Picture, thing: Thing) -> str:
    """Where the centre lies on a 3 x 3 grid: 'top left', 'top', ... 'center' ... 'bottom right'."""
    x, y = thing.centre
    column, row = min(int(3 * x / picture.width), 2), min(int(3 * y / picture.height), 2)
    words = f"{('top', '', 'bottom')[row]} {('left', '', 'right')[column]}".strip()
    return words or "center"


def place(picture: Picture, thing: Thing) -> str:
    """'in the center', 'at the top left' ..."""
    words = position(picture, thing)
    return "in the center" if words == "center" else f"at the {words}"


def describe(picture: Picture) -> str:
    """The canonical description of a scene."""
    parts = [f"{article(t.name)} {place(picture, t)}" for t in picture.things]
    if not parts:
        return "There is nothing in the picture."
    if len(parts) == 1:
        return f"There is one object: {parts[0]}."
    return f"There are {phrases.NUMBERS[len(parts)]} objects: {', '.join(parts[:-1])} and {parts[-1]}."


def boxes_json(picture: Picture, things: tuple[Thing, ...]) -> str:
    """The fenced JSON list of boxes."""
    return fenced([f'{{"bbox_2d": {json.dumps(picture.answer_box(t))}, "label": "{t.name}"}}' for t in things])


def points_json(picture: Picture, things: tuple[Thing, ...]) -> str:
    """The fenced JSON list of points."""
    return fenced([f'{{"point_2d": {json.dumps(picture.answer_point(t))}, "label": "{t.name}"}}' for t in things])


def fenced(rows: list[str]) -> str:
    """A fenced JSON list of rows that are JSON already."""
    return "```json\n[\n\t" + ",\n\t".join(rows) + "\n]\n```" if rows else "```json\n[]\n```"


# ---- what can be asked about


def _unique_shapes(picture: Picture) -> list[Thing]:
    counts = Counter(t.shape for t in picture.things)
    return [t for t in picture.things if counts[t.shape] == 1]


def _unique_colours(picture: Picture) -> list[Thing]:
    counts = Counter(t.colour for t in picture.things)
    return [t for t in picture.things if counts[t.colour] == 1]


def _unique_names(picture: Picture) -> list[Thing]:
    counts = Counter(t.name for t in picture.things)
    return [t for t in picture.things if counts[t.name] == 1]


def _clear(picture: Picture, thing: Thing) -> bool:
    """Is the centre clear of the lines of the 3 x 3 grid?"""
    x, y = thing.centre
    spots = (x / picture.width, y / picture.height)
    return all(abs(s - line) >= CLEAR for s in spots for line in (1 / 3, 2 / 3))


def _pairs(picture: Picture) -> list[tuple[Thing, Thing, str]]:
    """(a, b, side): a is clearly on that side of b; both named uniquely."""
    found = []
    things = _unique_names(picture)
    for a in things:
        for b in things:
            (ax, ay), (bx, by) = a.centre, b.centre
            if (bx - ax) / picture.width >= APART:
                found.append((a, b, "left"))
            if (ax - bx) / picture.width >= APART:
                found.append((a, b, "right"))
            if (by - ay) / picture.height >= APART:
                found.append((a, b, "above"))
            if (ay - by) / picture.height >= APART:
                found.append((a, b, "below"))
    return found


def _absent_name(rng: np.random.Generator, picture: Picture) -> str:
    """A 'colour shape' that is not in the picture; mostly one whose colour or shape is."""
    names = {t.name for t in picture.things}
    while True:
        colour, shape = pick(rng, COLOUR_NAMES), pick(rng, SHAPES)
        if picture.things and rng.random() < 0.85:
            near = pick(rng, picture.things)
            if rng.random() < 0.5:
                colour = near.colour
            else:
                shape = near.shape
        if f"{colour} {shape}" not in names:
            return f"{colour} {shape}"


def _short_name(rng: np.random.Generator, picture: Picture, thing: Thing) -> str:
    """'red circle', or at times only 'circle' / 'red object' where that is unique."""
    u = rng.random()
    if u < 0.2 and sum(t.shape == thing.shape for t in picture.things) == 1:
        return thing.shape
    if u < 0.3 and sum(t.colour == thing.colour for t in picture.things) == 1:
        return f"{thing.colour} {pick(rng, phrases.OBJECT_WORDS)}"
    return thing.name


def _ask(rng: np.random.Generator, templates: tuple[str, ...], **words: str) -> str:
    return style(rng, pick(rng, templates).format(**words))


# ---- one maker for each kind


def _describe(rng: np.random.Generator, picture: Picture) -> Exchange:
    return Exchange("describe", _ask(rng, phrases.DESCRIBE), describe(picture), tuple(picture.things))


def _group(rng: np.random.Generator, picture: Picture, empty: float) -> tuple[str | None, str | None]:
    """A colour and a shape (None = any) that select some things; with probability `empty` one at random."""
    at_random = rng.random() < empty or not picture.things
    thing = None if at_random else pick(rng, picture.things)
    colour = thing.colour if thing else pick(rng, COLOUR_NAMES)
    shape = thing.shape if thing else pick(rng, SHAPES)
    u = rng.random()
    if u < 0.28:
        return None, None
    if u < 0.55:
        return None, shape
    if u < 0.82:
        return colour, None
    return colour, shape


def _matching(picture: Picture, colour: str | None, shape: str | None) -> tuple[Thing, ...]:
    return tuple(t for t in picture.things if colour in (None, t.colour) and shape in (None, t.shape))


def _count(rng: np.random.Generator, picture: Picture) -> Exchange:
    colour, shape = _group(rng, picture, 0.18)
    found = _matching(picture, colour, shape)
    prefix = f"{colour} " if colour else ""
    asked = prefix + (phrases.PLURALS[shape] if shape else pick(rng, phrases.OBJECT_WORDS) + "s")
    noun = shape or "object"
    told = prefix + (noun if len(found) == 1 else phrases.PLURALS[noun])
    answer = f"There is 1 {told}." if len(found) == 1 else f"There are {len(found)} {told}."
    return Exchange("count", _ask(rng, phrases.COUNT, things=asked), answer, found, ((asked, found),))


def _colour(rng: np.random.Generator, picture: Picture) -> Exchange:
    thing = pick(rng, _unique_shapes(picture))
    return Exchange(
        "colour",
        _ask(rng, phrases.COLOUR, shape=thing.shape),
        f"The {thing.shape} is {thing.colour}.",
        (thing,),
        ((thing.shape, (thing,)),),
    )


def _shape(rng: np.random.Generator, picture: Picture) -> Exchange:
    thing = pick(rng, _unique_colours(picture))
    question = _ask(rng, phrases.SHAPE, colour=thing.colour, thing=pick(rng, phrases.OBJECT_WORDS))
    answer = f"The {thing.colour} object is {article(thing.shape)}."
    return Exchange("shape", question, answer, (thing,), ((thing.colour, (thing,)),))


def _exists(rng: np.random.Generator, picture: Picture) -> Exchange:
    present = rng.random() < 0.5 and bool(picture.things)
    name = pick(rng, picture.things).name if present else _absent_name(rng, picture)
    u = rng.random()
    colour, shape = name.split()
    if u < 0.15 and bool(_matching(picture, None, shape)) == present:
        name = shape
    elif u < 0.27 and bool(_matching(picture, colour, None)) == present:
        name = f"{colour} {pick(rng, phrases.OBJECT_WORDS)}"
    targets = tuple(t for t in picture.things if t.name == f"{colour} {shape}") if present else ()
    question = _ask(rng, phrases.EXISTS, a_thing=article(name))
    return Exchange("exists", question, "Yes." if present else "No.", targets, ((name, targets),))


def _where(rng: np.random.Generator, picture: Picture) -> Exchange:
    thing = pick(rng, [t for t in _unique_names(picture) if _clear(picture, t)])
    answer, name = f"The {thing.name} is {place(picture, thing)}.", _short_name(rng, picture, thing)
    return Exchange("where", _ask(rng, phrases.WHERE, thing=name), answer, (thing,), ((name, (thing,)),))


def _relation(rng: np.random.Generator, picture: Picture) -> Exchange:
    a, b, side = pick(rng, _pairs(picture))
    true = rng.random() < 0.5
    said = side if true else {"left": "right", "right": "left", "above": "below", "below": "above"}[side]
    names = [_short_name(rng, picture, t) for t in (a, b)]
    question = _ask(rng, phrases.RELATION, a=names[0], b=names[1], side=pick(rng, phrases.SIDES[said]))
    mentions = ((names[0], (a,)), (names[1], (b,)))
    return Exchange("relation", question, "Yes." if true else "No.", (a, b), mentions)


def _locate(rng: np.random.Generator, picture: Picture) -> Exchange:
    names = _unique_names(picture)
    if rng.random() < 0.45 and names:
        thing = pick(rng, names)
        name = _short_name(rng, picture, thing)
        question = _ask(rng, phrases.LOCATE_ONE, thing=name)
        return Exchange("locate", question, boxes_json(picture, (thing,)), (thing,), ((name, (thing,)),))
    if rng.random() < 0.08:
        return Exchange(
            "locate", _ask(rng, phrases.LOCATE_ONE, thing=_absent_name(rng, picture)), boxes_json(picture, ())
        )
    colour, shape = _group(rng, picture, 0.08)
    if rng.random() < 0.3:
        colour = shape = None
    prefix = f"{colour} " if colour else ""
    thing_word = shape or pick(rng, phrases.OBJECT_WORDS)
    plural = phrases.PLURALS.get(thing_word, thing_word + "s")
    found = _matching(picture, colour, shape)
    question = _ask(rng, phrases.LOCATE_ALL, thing=prefix + thing_word, things=prefix + plural)
    return Exchange("locate", question, boxes_json(picture, found), found, ((prefix + thing_word, found),))


def _point(rng: np.random.Generator, picture: Picture) -> Exchange:
    names = _unique_names(picture)
    if not names or rng.random() < 0.06:
        return Exchange("point", _ask(rng, phrases.POINT, thing=_absent_name(rng, picture)), points_json(picture, ()))
    thing = pick(rng, names)
    name = _short_name(rng, picture, thing)
    question = _ask(rng, phrases.POINT, thing=name)
    return Exchange("point", question, points_json(picture, (thing,)), (thing,), ((name, (thing,)),))


def _identity(rng: np.random.Generator) -> Exchange:
    questions, answer = pick(rng, tuple(phrases.IDENTITY.values()))
    return Exchange("identity", style(rng, pick(rng, questions)), answer)


def _foreign(rng: np.random.Generator, picture: Picture) -> Exchange:
    """Any question of the other kinds, with names made up."""
    a, b = (f"{pick(rng, COLOUR_NAMES)} {pick(rng, SHAPES)}" for _ in range(2))
    colour, shape = a.split()
    thing = pick(rng, phrases.OBJECT_WORDS)
    side = pick(rng, phrases.SIDES[pick(rng, tuple(phrases.SIDES))])
    kind = pick(
        rng,
        (
            "describe",
            "describe",
            "count",
            "colour",
            "shape",
            "exists",
            "where",
            "relation",
            "locate",
            "point",
        ),
    )
    u = rng.random()
    name, plural = (a, f"{colour} {phrases.PLURALS[shape]}") if u < 0.5 else (thing, thing + "s")
    question = {
        "describe": lambda: _ask(rng, phrases.DESCRIBE),
        "count": lambda: _ask(rng, phrases.COUNT, things=plural),
        "colour": lambda: _ask(rng, phrases.COLOUR, shape=shape),
        "shape": lambda: _ask(rng, phrases.SHAPE, colour=colour, thing=thing),
        "exists": lambda: _ask(rng, phrases.EXISTS, a_thing=article(a)),
        "where": lambda: _ask(rng, phrases.WHERE, thing=a),
        "relation": lambda: _ask(rng, phrases.RELATION, a=a, b=b, side=side),
        "locate": lambda: _ask(rng, phrases.LOCATE_ALL if u < 0.7 else phrases.LOCATE_ONE, thing=name, things=plural),
        "point": lambda: _ask(rng, phrases.POINT, thing=a),
    }[kind]()
    return Exchange("foreign", question, phrases.FOREIGN)


_MAKERS: dict[str, Callable[[np.random.Generator, Picture], Exchange]] = {
    "describe": _describe, "count": _count, "colour": _colour, "shape": _shape, "exists": _exists,
    "where": _where, "relation": _relation, "locate": _locate, "point": _point, "foreign": _foreign,
}  # fmt: skip
