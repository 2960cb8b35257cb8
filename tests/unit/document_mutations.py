"""Damaged answers: what cuts, splices and mistakes make of recorded ones. Seeded, so that a failure comes again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from document_outline import cases

_PIECES = (
    *(
        "<",
        ">",
        '"',
        "'",
        "&",
        "</",
        "/>",
        "<!--",
        "-->",
        "<p>",
        "</p>",
        "<td>",
        "</tr>",
        "<table>",
        "</table>",
        "<li>",
    ),
    *("<div class='image'>", "<img", "data-bbox=", 'data-bbox="1 2', "rowspan=99999999", "```", "```html\n", "</html>"),
    *(
        "<style>",
        "<script>",
        "&#99999999;",
        "&#xD800;",
        "\x00",
        "\ud800",
        "\u202e",
        "🎉",
        "|",
        "$$",
        "\n\n",
        "- ",
        "# ",
    ),
    *("\\begin{tabular}", "\\multirow{3}{*}{", "![a](b)", "**", "`", "<!-- Image (1,2,3,4) -->", "9" * 400, "\ufdd0"),
)


def mutations(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    answers = [case.answer for case in cases()]
    ways: tuple[Callable[[random.Random, str, list[str]], str], ...] = (
        _cut,
        _drop,
        _insert,
        _splice,
        _swap,
        _repeat,
        _nest,
    )
    for _ in range(count):
        text = rng.choice(answers)
        for _ in range(rng.randint(1, 4)):
            text = rng.choice(ways)(rng, text, answers)[:20_000]
        yield text


def _cut(rng: random.Random, text: str, _: list[str]) -> str:
    return text[: rng.randint(0, len(text))]


def _drop(rng: random.Random, text: str, _: list[str]) -> str:
    start = rng.randint(0, len(text))
    return text[:start] + text[start + rng.randint(1, 12) :]


def _insert(rng: random.Random, text: str, _: list[str]) -> str:
    at = rng.randint(0, len(text))
    return text[:at] + rng.choice(_PIECES) + text[at:]


def _splice(rng: random.Random, text: str, answers: list[str]) -> str:
    other = rng.choice(answers)
    return text[: rng.randint(0, len(text))] + other[rng.randint(0, len(other)) :]


def _swap(rng: random.Random, text: str, _: list[str]) -> str:
    letters = list(text)
    for _ in range(min(6, len(letters))):
        letters[rng.randrange(len(letters))] = rng.choice("<>\"'/= \nabz09&;-|#*`$\\")
    return "".join(letters)


def _repeat(rng: random.Random, text: str, _: list[str]) -> str:
    start = rng.randint(0, len(text))
    return text[:start] + text[start : start + rng.randint(1, 60)] * rng.randint(2, 40) + text[start:]


def _nest(rng: random.Random, text: str, _: list[str]) -> str:
    tag = rng.choice(["div", "table", "td", "ul", "li", "b", "blockquote", "table><tr><td"])
    at = rng.randint(0, len(text))
    return text[:at] + f"<{tag}>" * rng.randint(2, 300) + text[at:]
