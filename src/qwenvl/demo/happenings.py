"""Questions about clips and about pairs of pictures, each with its one exact answer (see questions.py)."""

from __future__ import annotations

import numpy as np

from qwenvl.demo import phrases
from qwenvl.demo.clips import Actor, Clip
from qwenvl.demo.drawing import pick
from qwenvl.demo.pairs import Pair
from qwenvl.demo.questions import Exchange, article, describe, fenced, style
from qwenvl.demo.world import Thing

CLIP_KINDS = ("happens", "moves", "direction", "when", "query", "events")
PAIR_KINDS = ("differs", "which")
WAYS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
ORDINALS = ("first", "second")


def seconds(value: float) -> str:
    """'0.5 seconds', '1 second', '2 seconds'."""
    return f"{value:g} second" + ("" if value == 1 else "s")


def sample_happening(rng: np.random.Generator, clip: Clip, kind: str) -> Exchange | None:
    """A random question of the kind about a clip; None where it cannot be asked."""
    movers = [a for a in clip.actors if a.motion != "still"]
    late = [a for a in clip.actors if a.first]
    if kind == "happens":
        found = movers + late
        answer = " ".join([_moves(a) for a in movers] + [_appears(clip, a) for a in late])
        return Exchange(kind, style(rng, pick(rng, phrases.HAPPENS)), answer, _things(found))
    if kind == "moves":
        answer = " ".join(_moves(a) for a in movers) or "Nothing moves."
        return Exchange(kind, style(rng, pick(rng, phrases.MOVES)), answer, _things(movers))
    if kind == "events":
        answer = events_json(clip, movers + late)
        return Exchange(kind, pick(rng, phrases.EVENTS), answer, tuple(a.thing for a in movers + late))
    if kind == "query":
        return _query(rng, clip, pick(rng, movers + late))
    if kind not in ("direction", "when"):
        raise ValueError(f"kind {kind!r} is not known: expected one of {', '.join(CLIP_KINDS)}")
    likely = movers if kind == "direction" else late
    actor = pick(rng, likely if likely and rng.random() < 0.85 else clip.actors)
    name = _name(rng, clip, actor)
    if kind == "direction":
        question = pick(rng, phrases.DIRECTION)
        answer = _moves(actor)
    else:
        question = pick(rng, phrases.WHEN)
        answer = _appears(clip, actor)
    thing = actor.thing
    return Exchange(kind, style(rng, question.format(thing=name)), answer, (thing,), ((name, (thing,)),))


def sample_comparison(rng: np.random.Generator, pair: Pair, kind: str) -> Exchange:
    """A random question of the kind about a pair. "which": one of the pictures is to be described."""
    if kind == "differs":
        targets = tuple(t for t in (pair.before, pair.after) if t is not None)
        return Exchange(kind, style(rng, pick(rng, phrases.DIFFERS)), difference(pair), targets)
    if kind != "which":
        raise ValueError(f"kind {kind!r} is not known: expected one of {', '.join(PAIR_KINDS)}")
    number = int(rng.integers(2))
    question = pick(rng, phrases.WHICH).format(ordinal=ORDINALS[number])
    picture = pair.pictures[number]
    return Exchange(f"which {ORDINALS[number]}", style(rng, question), describe(picture), tuple(picture.things))


def difference(pair: Pair) -> str:
    """The one sentence that says how the second picture differs from the first."""
    if pair.before and pair.after:
        colours = pair.before.colour, pair.after.colour
        return f"The {pair.before.shape} is {colours[0]} in the first picture and {colours[1]} in the second."
    if pair.before:
        return f"The {pair.before.name} is missing in the second picture."
    if pair.after:
        return f"The second picture also has {article(pair.after.name)}."
    return "The two pictures are the same."


def events_json(clip: Clip, actors: list[Actor]) -> str:
    """The fenced JSON list of what happens: each from when it begins to the end of the clip."""
    rows = []
    for actor in actors:
        told = f"The {actor.thing.name} appears." if actor.first else _moves(actor)
        begin, end = stamp(clip.appears(actor)), stamp(clip.end)
        rows.append(f'{{"start_time": "{begin}", "end_time": "{end}", "description": "{told}"}}')
    return fenced(rows)


def stamp(value: float) -> str:
    """Seconds as 'mm:ss.ff'."""
    return f"{int(value // 60):02d}:{value % 60:05.2f}"


def _query(rng: np.random.Generator, clip: Clip, actor: Actor) -> Exchange:
    """When something that happens does so."""
    name = actor.thing.name
    event = f"{name} appears" if actor.first else f"{name} moves {WAYS[actor.motion]}"
    answer = _appears(clip, actor) if actor.first else f"{_moves(actor)[:-1]} from 0 to {seconds(clip.end)}."
    question = pick(rng, phrases.QUERY).format(event=pick(rng, ("", "the ", "a ")) + event)
    return Exchange("query", question, answer, (actor.thing,), ((name, (actor.thing,)),))


def _moves(actor: Actor) -> str:
    if actor.motion == "still":
        return f"The {actor.thing.name} does not move."
    return f"The {actor.thing.name} moves {WAYS[actor.motion]}."


def _appears(clip: Clip, actor: Actor) -> str:
    if not actor.first:
        return f"The {actor.thing.name} is there from the start."
    return f"The {actor.thing.name} appears at {seconds(clip.appears(actor))}."


def _name(rng: np.random.Generator, clip: Clip, actor: Actor) -> str:
    """'red circle', or at times 'circle' where there is one."""
    shape = actor.thing.shape
    alone = sum(a.thing.shape == shape for a in clip.actors) == 1
    return shape if alone and rng.random() < 0.25 else actor.thing.name


def _things(actors: list[Actor]) -> tuple[Thing, ...]:
    return tuple(dict.fromkeys(a.thing for a in actors))
