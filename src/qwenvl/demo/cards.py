"""Pictures with text: signs of one to three lines, and receipts with a shop, a date, items and a total.

Capitals are at least LEAST_CAPITALS pixels high, in the picture as drawn and as the model sees it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from qwenvl.demo.drawing import COLOURS, RGB, Ground, distance, finish, ground, jitter, pick, uniform
from qwenvl.demo.lettering import LETTERS, Letter, Line, length, some_font, write
from qwenvl.demo.world import Picture, resized_size, sample_size

LEAST_CAPITALS, MOST_CAPITALS = 14, 40  # pixels
CONTRAST = 170.0  # least distance between ink and ground
RANDOM = 0.2  # share of lines that are random letters, in training; half of it elsewhere


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS = _words(
    """EXIT OPEN CLOSED STOP PUSH PULL SALE CAFE COFFEE TEA BREAD MILK EGGS RICE SALT SUGAR WATER JUICE APPLE BANANA
    CHEESE BUTTER SOUP SALAD PIZZA PASTA FISH MEAT CAKE COOKIE LEMON ORANGE GRAPES TOMATO POTATO ONION CARROT BEANS
    HONEY CANDY BEER WINE COLA PAPER PEN BOOK SOAP BAG BOX LAMP HAT SHIRT SHOES SOCKS TOY BALL TICKET PARKING TAXI BUS
    TRAIN GATE ROOM FLOOR LIFT STAIRS DOOR KEY DESK OFFICE HOTEL BANK SHOP STORE MARKET BAKERY GARDEN STREET PARK
    SCHOOL MUSEUM CINEMA LIBRARY STATION AIRPORT HARBOR BRIDGE RIVER LAKE BEACH NORTH SOUTH EAST WEST LEFT RIGHT UP
    DOWN IN OUT ON OFF YES NO HELLO WELCOME THANK YOU PLEASE WAIT HERE DANGER WARNING CAUTION HOT COLD NEW OLD BIG
    SMALL FREE FULL EMPTY LOW HIGH FAST SLOW RED BLUE GREEN WHITE BLACK GOLD SILVER SUN MOON STAR SKY RAIN SNOW WIND
    FIRE TREE ROSE CORNER CITY TOWN HOUSE HOME WORLD TIME DAY NIGHT WEEK MONTH YEAR MONDAY FRIDAY SUNDAY MAY JUNE JULY
    TOTAL CASH CARD TAX DATE CHANGE PRICE ITEM QTY"""
)
ITEMS = _words(
    """COFFEE TEA BREAD MILK EGGS RICE SALT SUGAR WATER JUICE APPLE BANANA CHEESE BUTTER SOUP SALAD PIZZA PASTA FISH
    MEAT CAKE COOKIE LEMON TOMATO POTATO ONION CARROT BEANS HONEY CANDY BEER WINE COLA PAPER PEN BOOK SOAP BAG LAMP HAT
    SHIRT SHOES SOCKS TOY BALL"""
)
FIRST_NAMES = _words(
    """CORNER CITY TOWN GREEN BLUE RED GOLD SILVER STAR SUN MOON LAKE RIVER PARK NORTH SOUTH EAST WEST OLD NEW ROSE
    BEACH HARBOR GARDEN"""
)
SECOND_NAMES = _words("CAFE SHOP STORE MARKET BAKERY BOOKS FOODS HOTEL BAR")
FIELDS = ("company", "date", "total", "number")


@dataclass
class Card(Picture):
    """A picture with text. lines: from top to bottom. values: of a receipt, the part that each field is read from."""

    lines: list[Line] = field(default_factory=list)
    values: dict[str, Line] = field(default_factory=dict)


def price(rng: np.random.Generator, most: int = 100) -> str:
    """'3.50', '12.99'."""
    cents = pick(rng, (0, 50, 99, 25, 75, int(uniform(rng, 0, 100))))
    return f"{int(uniform(rng, 1, most if rng.random() < 0.5 else 10))}.{cents:02d}"


def date(rng: np.random.Generator) -> str:
    """'2024-03-12' or '12/03/2024'."""
    year, month, day = int(uniform(rng, 2015, 2031)), int(uniform(rng, 1, 13)), int(uniform(rng, 1, 29))
    return f"{year}-{month:02d}-{day:02d}" if rng.random() < 0.5 else f"{day:02d}/{month:02d}/{year}"


def phrase(rng: np.random.Generator, random: float = RANDOM) -> str:
    """A line of a sign: words, numbers, prices, dates, times, or with probability `random` letters at random."""
    if rng.random() < random:
        signs = LETTERS if rng.random() < 0.3 else LETTERS[:36]
        return "".join(pick(rng, signs) for _ in range(2 + int(rng.random() * 6)))
    u = rng.random()
    if u < 0.4:
        return pick(rng, WORDS)
    if u < 0.6:
        return f"{pick(rng, WORDS)} {pick(rng, WORDS)}"
    if u < 0.7:
        return f"{pick(rng, WORDS)} {int(uniform(rng, 1, 100))}"
    if u < 0.78:
        return pick(rng, ("", "", "$")) + price(rng)
    if u < 0.84:
        return date(rng)
    if u < 0.9:
        return f"{int(uniform(rng, 0, 24)):02d}:{int(uniform(rng, 0, 60)):02d}"
    if u < 0.95:
        return str(int(uniform(rng, 1, 10 ** int(uniform(rng, 1, 6)))))
    return f"{pick(rng, (5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80))}%" + pick(rng, ("", " OFF"))


def sample_sign(rng: np.random.Generator, training: bool = True, plain: bool = False) -> Card:
    """A fresh sign of one to three lines. plain: large letters of one font, black on white or white on black, to begin
    with."""
    while True:
        size = sample_size(rng, training)
        count = pick(rng, (1, 1, 1, 1, 2, 2, 2, 3, 3))
        found = _sign(
            rng, size, [phrase(rng, RANDOM if training else RANDOM / 2) for _ in range(count)], training, plain
        )
        if found is not None:
            return found


def _sign(
    rng: np.random.Generator, size: tuple[int, int], texts: list[str], training: bool, plain: bool
) -> Card | None:
    """The sign with these texts, or None where they have no room."""
    name, least = some_font(rng, training and not plain), math.ceil(_least(size) * (1.5 if plain else 1))
    scale = resized_size(*size)[1] / size[1]
    spacing = uniform(rng, 1.45, 2.2)  # distance of lines in heights of capitals
    wide = max(length(name, 50, text) for text in texts) / 50
    high = 1 + spacing * (len(texts) - 1)
    most = int(min((size[0] - 10) / wide, (size[1] - 10) / high, MOST_CAPITALS / scale))
    if most < least:
        return None
    capitals = least + int(rng.random() * (most - least + 1))
    under = _plain_ground(rng, size) if plain else ground(rng, *size)
    ink = _ink(rng, under)
    if ink is None:
        return None
    widths = [length(name, capitals, text) for text in texts]
    block_x = 5 + rng.random() * max(0.0, size[0] - 10 - max(widths))
    top = 5 + rng.random() * max(0.0, size[1] - 10 - high * capitals)
    centred, lines = rng.random() < 0.5, []
    for i, (text, width) in enumerate(zip(texts, widths, strict=True)):
        x = block_x + ((max(widths) - width) / 2 if centred else 0)
        lines.append(write(under.image, text, round(x), round(top + i * spacing * capitals), name, capitals, ink))
    if rng.random() < 0.12:
        ImageDraw.Draw(under.image).rectangle((1, 1, size[0] - 2, size[1] - 2), outline=ink, width=pick(rng, (1, 2)))
    return _card(rng, under.image, size, lines, {})


def sample_page(rng: np.random.Generator, plain: bool = False) -> Card:
    """A page full of words and random letters, for training alone: many letters to look at. plain: as of a sign."""
    while True:
        size = int(uniform(rng, 150, 260)), int(uniform(rng, 112, 260))
        name, least = some_font(rng, not plain), _least(size) * (1.3 if plain else 1)
        capitals = int(least * uniform(rng, 1, 1.9))
        under = _plain_ground(rng, size) if plain else ground(rng, *size)
        ink = _ink(rng, under)
        pitch = capitals * uniform(rng, 1.4, 2.0)
        if ink is None:
            continue
        lines, y = [], 4 + rng.random() * (pitch - capitals)
        while y + capitals + 4 < size[1]:
            text, x = "", 4 + rng.random() * capitals
            for _ in range(8):
                longer = (text + " " if text else "") + phrase(rng, random=0.5)
                if x + length(name, capitals, longer) + 4 < size[0]:
                    text = longer
            if text:
                lines.append(write(under.image, text, round(x), round(y), name, capitals, ink))
            y += pitch
        if lines:
            return _card(rng, under.image, size, lines, {})


def sample_receipt(rng: np.random.Generator, training: bool = True) -> Card:
    """A fresh receipt: the company at the top, a date, at times a number, items with prices, the total at the end."""
    while True:
        rows, kinds = _rows(rng)
        found = _receipt(rng, rows, kinds, training)
        if found is not None:
            return found


def _rows(rng: np.random.Generator) -> tuple[list[tuple[str, str]], list[str]]:
    """Texts at the left and at the right of each row, and the field that a row holds ("" = none)."""
    first, second = pick(rng, FIRST_NAMES), pick(rng, SECOND_NAMES)
    rows, kinds = [(f"{first} {second}" if rng.random() < 0.8 else first, "")], ["company"]
    if rng.random() < 0.9:
        rows.append((pick(rng, ("", "DATE")), date(rng)) if rng.random() < 0.3 else (date(rng), ""))
        kinds.append("date")
    if rng.random() < 0.4:
        rows.append(("NO", str(int(uniform(rng, 100, 10000)))))
        kinds.append("number")
    prices = [price(rng, 30) for _ in range(1 + int(rng.random() * 3))]
    for paid in prices:
        rows.append((pick(rng, ITEMS), paid))
        kinds.append("")
    rows.append(("TOTAL", f"{pick(rng, ('', '', '$'))}{sum(float(paid) for paid in prices):.2f}"))
    return rows, [*kinds, "total"]


def _receipt(rng: np.random.Generator, rows: list[tuple[str, str]], kinds: list[str], training: bool) -> Card | None:
    """The receipt on a page of some size that it fits, or None."""
    width = int(uniform(rng, 190, 330))
    height = int(uniform(rng, 130, min(336, 110_000 / width)))
    size, name = (width, height), some_font(rng, training)
    least = _least(size)
    spacing = uniform(rng, 1.45, 1.9)
    wide = max(length(name, 50, f"{a}  {b}" if a and b else a + b) for a, b in rows) / 50
    most = int(min((width - 12) / wide, (height - 12) / (1 + spacing * (len(rows) - 1)), 26))
    if most < least:
        return None
    capitals = least + int(rng.random() ** 0.6 * (most - least + 1))
    under = ground(rng, width, height)
    ink = _ink(rng, under)
    if ink is None:
        return None
    high = (1 + spacing * (len(rows) - 1)) * capitals
    top = 6 + rng.random() * min(30.0, height - 12 - high)
    need = math.ceil(wide * capitals)
    left = 6 + rng.random() * min(20.0, max(0, width - 12 - need))
    right = width - 6 - rng.random() * min(20.0, max(0.0, width - 6 - left - need))
    centred, lines, values = rng.random() < 0.5, [], {}
    for i, ((a, b), kind) in enumerate(zip(rows, kinds, strict=True)):
        y = round(top + i * spacing * capitals)
        x = (left + right - length(name, capitals, a)) / 2 if kind == "company" and centred else left
        parts = [write(under.image, a, round(x), y, name, capitals, ink)] if a else []
        if b:
            parts.append(write(under.image, b, round(right - length(name, capitals, b)), y, name, capitals, ink))
        lines.append(_joined(parts))
        if kind:
            values[kind] = parts[-1]
        if kind == "total" and rng.random() < 0.4:
            rule = round(y - 0.25 * spacing * capitals)
            ImageDraw.Draw(under.image).line((left, rule, right, rule), fill=ink)
    return _card(rng, under.image, size, lines, values)


def _joined(parts: list[Line]) -> Line:
    """Parts of a row as one line, with one space between them."""
    letters = list(parts[0].letters)
    for part in parts[1:]:
        a, b = letters[-1].box, part.letters[0].box
        letters += [Letter(" ", (a[2], a[1], max(b[0], a[2] + 1), a[3])), *part.letters]
    return Line(tuple(letters))


def _least(size: tuple[int, int]) -> int:
    """Least height of capitals in ORIGINAL pixels: LEAST_CAPITALS there and in the resized picture."""
    return math.ceil(LEAST_CAPITALS * max(1.0, size[1] / resized_size(*size)[1], size[0] / resized_size(*size)[0]))


def _plain_ground(rng: np.random.Generator, size: tuple[int, int]) -> Ground:
    tone = (255, 255, 255) if rng.random() < 0.75 else (0, 0, 0)
    return Ground(Image.new("RGB", size, tone), (tone,))


def _ink(rng: np.random.Generator, under: Ground) -> RGB | None:
    """A colour that is read easily on the ground: black or white mostly."""
    for _ in range(4):
        u = rng.random()
        tone = (0, 0, 0) if u < 0.5 else (255, 255, 255) if u < 0.75 else pick(rng, COLOURS[pick(rng, tuple(COLOURS))])
        tone = jitter(rng, tone, 20)
        if all(abs(_light(tone) - _light(t)) >= 95 and distance(tone, t) >= CONTRAST for t in under.tones):
            return tone
    return None


def _light(tone: RGB) -> float:
    """Luminance, 0..255."""
    return 0.3 * tone[0] + 0.59 * tone[1] + 0.11 * tone[2]


def _card(
    rng: np.random.Generator, image: Image.Image, size: tuple[int, int], lines: list[Line], values: dict[str, Line]
) -> Card:
    return Card(np.asarray(finish(rng, image)), [], *size, *resized_size(*size), "card", lines, values)
