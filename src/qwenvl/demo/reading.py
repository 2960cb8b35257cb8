"""Questions about cards: their text, where its lines stand, and the fields of a receipt (see questions.py)."""

from __future__ import annotations

import json

import numpy as np

from qwenvl.demo import phrases
from qwenvl.demo.cards import FIELDS, Card
from qwenvl.demo.drawing import pick
from qwenvl.demo.lettering import Line
from qwenvl.demo.questions import Exchange, Look, style
from qwenvl.demo.world import Picture, on_grid

CARD_KINDS = ("read", "spot", "extract", "field", "describe text")
NAMES = {
    "company": ("company", "company", "company", "shop", "store"),
    "date": ("date",),
    "total": ("total", "total", "total", "amount"),
    "number": ("number",),
}  # what a field is called


def sample_reading(rng: np.random.Generator, card: Card, kind: str) -> Exchange | None:
    """A random question of the kind about a card; None where it cannot be asked (fields of a card that has none)."""
    if kind not in CARD_KINDS:
        raise ValueError(f"kind {kind!r} is not known: expected one of {', '.join(CARD_KINDS)}")
    if kind == "read":
        answer, looks = read_lines(card.lines)
        return Exchange(kind, style(rng, pick(rng, phrases.READ)), answer, looks=looks)
    if kind == "spot":
        answer, looks = spotted(card)
        return Exchange(kind, style(rng, pick(rng, phrases.SPOT)), answer, looks=looks)
    if kind == "describe text":
        return Exchange(kind, style(rng, pick(rng, phrases.DESCRIBE)), phrases.TEXT)
    if not card.values:
        return None
    return _extract(rng, card) if kind == "extract" else _field(rng, card)


def nothing_to_read(rng: np.random.Generator) -> Exchange:
    """A question about text where there is none."""
    return Exchange("no text", style(rng, pick(rng, phrases.READ)), phrases.NO_TEXT)


def read_lines(lines: list[Line]) -> tuple[str, tuple[Look, ...]]:
    """The text, line by line, and where each letter is looked up."""
    text, looks = "", list[Look]()
    for i, line in enumerate(lines):
        if i:
            looks.append(Look(len(text), len(text) + 1, (lines[i - 1].letters[-1],), spelled=True))
            text += "\n"
        text = _spell(text, line, looks)
    looks.append(Look(len(text), len(text) + 1, (lines[-1].letters[-1],)))
    return text, tuple(looks)


def spotted(card: Card) -> tuple[str, tuple[Look, ...]]:
    """The fenced JSON list of lines, with their boxes on the grid, as locate's."""
    text, looks = "```json\n[\n\t", list[Look]()
    for i, line in enumerate(card.lines):
        text += ",\n\t" if i else ""
        numbers = json.dumps(line_box(card, line))
        start = len(text) + len('{"bbox_2d": ')
        looks.append(Look(start, start + len(numbers), (line.letters[0], line.letters[-1])))
        text = _spell(text + f'{{"bbox_2d": {numbers}, "text_content": "', line, looks)
        looks.append(Look(len(text), len(text) + 2, (line.letters[-1],)))
        text += '"}'
    return text + "\n]\n```", tuple(looks)


def line_box(card: Card, line: Line) -> tuple[int, int, int, int]:
    """The box of a line as answers give it: RESIZED pixels on the grid."""
    x1, y1, x2, y2 = resized_line(card, line)
    width, height = card.resized_width, card.resized_height
    return on_grid(x1, width), on_grid(y1, height), on_grid(x2, width), on_grid(y2, height)


def resized_line(card: Picture, line: Line) -> tuple[int, int, int, int]:
    """The box of a line in whole RESIZED pixels."""
    return card.to_resized(*line.box[:2]) + card.to_resized(*line.box[2:])


def _spell(text: str, line: Line, looks: list[Look]) -> str:
    """The text with the line behind it; a look for every letter is added."""
    for letter in line.letters:
        looks.append(Look(len(text), len(text) + 1, (letter,), spelled=True))
        text += letter.text
    return text


def _extract(rng: np.random.Generator, card: Card) -> Exchange:
    """Up to four fields in any order; one that the receipt does not have is answered with ""."""
    fields = [name for name in FIELDS if name in card.values or rng.random() < 0.12]
    if rng.random() < 0.4:
        fields = ["company", "date", "total"]
    else:
        fields = [str(name) for name in rng.permutation(fields)][: 1 + int(rng.random() * 4)]
    keys = [pick(rng, NAMES[name]) for name in fields]
    template = json.dumps(dict.fromkeys(keys, ""), separators=pick(rng, ((", ", ": "), (", ", ": "), (",", ":"))))
    question = pick(rng, phrases.EXTRACT).replace("{template}", template).replace("{keys}", ", ".join(keys))
    seeks, looks, answer = list[Look](), list[Look](), "{"
    for key, name in zip(keys, fields, strict=True):
        answer += f'{", " if len(answer) > 1 else ""}"{key}": "'
        found = card.values.get(name)
        if found is not None:
            place = question.rindex(f'"{key}"') + 1 if f'"{key}"' in question else question.rindex(key)
            seeks.append(Look(place, place + len(key), (found.letters[0],)))
            answer = _spell(answer, found, looks)
            looks.append(Look(len(answer), len(answer) + 1, (found.letters[-1],)))
        answer += '"'
    return Exchange("extract", question, answer + "}", seeks=tuple(seeks), looks=tuple(looks))


def _field(rng: np.random.Generator, card: Card) -> Exchange:
    """One field, asked for in words."""
    name = pick(rng, tuple(card.values))
    key = pick(rng, NAMES[name])
    question = style(rng, pick(rng, phrases.FIELD).format(key=key))
    answer, looks = read_lines([card.values[name]])
    place = question.lower().rindex(key)
    seeks = (Look(place, place + len(key), (card.values[name].letters[0],)),)
    return Exchange("field", question, answer, seeks=seeks, looks=looks)
