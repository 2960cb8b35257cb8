"""Texts that go in a loop, and honest ones that repeat themselves a lot, with a tokenizer to cut them up.

The tokenizer is the pre-tokenizer of Qwen2 (letters with one sign before them, single digits, groups of signs, white
space): markup and common words are one token each in its vocabulary too, so lengths in tokens are near the real ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_PIECES = re.compile(r"[^\r\n\w]?[^\W\d_]+|\d| ?[^\s\w]+[\r\n]*|_+|\s*[\r\n]+|\s+(?!\S)|\s+")

PAGE = """```html
<html><body>
<h1 data-bbox="104 88 902 131">Annual report of the waterworks</h1>
<p data-bbox="104 160 902 301">In the year under review the works delivered 4,812,000 cubic metres to 31,204 houses, a
little more than in the year before. Three pumps were replaced, and one reservoir was cleaned and sealed again.</p>
<h2 data-bbox="104 330 500 360">Deliveries by quarter</h2>
<table data-bbox="104 380 902 600"><tr><th>Quarter</th><th>Volume</th></tr><tr><td>1</td><td>1,100,000</td></tr>
<tr><td>2</td><td>1,250,000</td></tr><tr><td>3</td><td>1,380,000</td></tr><tr><td>4</td><td>1,082,000</td></tr></table>
"""

PARAGRAPH = (
    '<p data-bbox="104 640 902 722">The board thanks all who have worked for the company in this year, which was not '
    "an easy one, and above all the teams of the northern district, who repaired the main under the river in nine days "
    "of frost without a single house being cut off for longer than a night.</p>\n"
)


class Pieces:
    """Text -> ids and back; ids are numbered as they come."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        pieces = _PIECES.findall(text)
        assert "".join(pieces) == text
        return [self._ids.setdefault(piece, len(self._ids)) for piece in pieces]

    def decode(self, ids: list[int]) -> str:
        words = list(self._ids)
        return "".join(words[i] for i in ids)


def _row(cells: list[str]) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _section(words: int) -> str:
    """A section of about so many tokens in which hardly anything repeats."""
    letters = "abcdefghijklmnopqrstuvwxyzàéîöüß"
    return "<h2>Findings</h2>\n" + "".join(f" of {letters[i % 32]}x{letters[i // 32]}" for i in range(words // 2))


def loops() -> Iterator[tuple[str, str]]:
    """(name, the piece that comes again and again)."""
    yield "one sign", "!"
    yield "one word", " is"
    yield "two words", " the the of"
    yield "a digit", "3"
    yield "empty lines", "<br>\n"
    yield "an empty cell", "<td></td>"
    yield "a cell with zero", "<td>0</td>"
    yield "a cell with an amount", "<td>0.00</td>"
    yield "an empty row of twelve", _row([""] * 12)
    yield "an empty row of forty", _row([""] * 40)
    yield "a row with words", _row(["Bolt M6", "steel", "zinc plated", "0.12", "in stock"])
    yield "a list item", "<li>See the table on the next page.</li>\n"
    yield "a sentence", " The picture shows a page of a report in which the numbers are given by quarter."
    yield "a sentence in Japanese", "この表は各四半期の供給量を示している。"
    yield "a lazy picture", "![](image.png)\n\n"
    yield "a paragraph with its place", PARAGRAPH
    yield "two lines in turn", "<p>Yes, as agreed.</p>\n<p>No, see the annex.</p>\n"
    yield "a table of twelve rows", "<table>" + "".join(_row([f"{i}", "0", "0"]) for i in range(12)) + "</table>\n"
    yield "zeros with a heading between", "<h3>Zeros</h3>" + _row(["0"] * 60) * 4
    yield "a record of JSON", '{"name": "pump", "state": "replaced", "cost": null},\n'
    yield "spaces of a formula", r"\quad \quad "
    yield "a long section", _section(900)
    yield "the longest section", _section(1900)


def honest() -> Iterator[tuple[str, str]]:
    """(name, a document that may come as it is)."""
    yield "300 zeros in one row", "<table>" + _row(["0"] * 300) + "</table>"
    yield "300 amounts in one row", "<table>" + _row(["0.00"] * 300) + "</table>"
    yield "five rows of 300 zeros", "<table>" + _row(["0"] * 300) * 5 + "</table>"
    yield "40 x 40 zeros", "<table>" + _row(["0"] * 40) * 40 + "</table>"
    yield "60 x 60 zeros", "<table>" + _row(["0"] * 60) * 60 + "</table>"
    yield "120 x 3 zeros", "<table>" + _row(["0"] * 3) * 120 + "</table>"
    yield "an empty ledger of 60 rows", "<table>" + _row([""] * 8) * 60 + "</table>"
    yield "an empty ledger of 100 wide rows", "<table>" + _row([""] * 31) * 100 + "</table>"
    names = [
        f"{a}{b}" for a in ("Anna", "Bela", "Carl", "Dora", "Emil", "Fred") for b in ("son", "ov", "sen", "ini", "")
    ]
    yield "an attendance list", "<table>" + "".join(_row([name] + [""] * 31) for name in names * 3) + "</table>"
    weeks = "".join(_row([str(d) if 0 < (d := 7 * w + i - 2) < 32 else "" for i in range(7)]) for w in range(6))
    yield "a calendar of ten years", "".join(f"<h2>{m}</h2><table>{weeks}</table>" for m in range(120))
    yield "a price list, one price", "".join(_row([f"Article {i}", "piece", "9.99"]) for i in range(800))
    yield "a phone book", "".join(f"<p>Smith, J., 12 High Street ... 555-{i:04d}</p>\n" for i in range(900))
    yield (
        "equal lines at other places",
        "".join(f'<p data-bbox="100 {20 + 3 * i} 900 {34 + 3 * i}">no entry</p>\n' for i in range(600)),
    )
    yield "records with ids", "[" + ",\n".join(f'{{"id": {i}, "state": "ok", "cost": 0}}' for i in range(900)) + "]"
    yield "a log", "".join(f"12:{i // 60:02d}:{i % 60:02d} INFO connection closed, retry\n" for i in range(900))
    yield "a hundred lines", "I will not write on the blackboard while the teacher is away.\n" * 100
    yield "a sheet of labels", "<p>Waterworks Ltd, 12 High Street, Springfield</p>\n" * 189
    yield "lines to fill in", "Name: ____________ Date: ____________\n" * 120
    yield "a dump of memory", "".join(f"{i:08x}  " + "00 " * 16 + "\n" for i in range(0, 4096, 16))
    yield "dashes in Markdown", "| - | - | - | - | - | - | - | - |\n" * 100
    yield "a song", "Around the world, around the world\n" * 144
    yield "questions to tick", "".join(f"{i}. ( ) A ( ) B ( ) C ( ) D\n" for i in range(500))
    unit = r" \\ ".join(" & ".join("1" if i == j else "0" for j in range(60)) for i in range(60))
    yield "a unit matrix", r"$$\begin{pmatrix}" + unit + r"\end{pmatrix}$$"
    art = [". " * (40 - i // 2) + "# " * i + ". " * (40 - i // 2) + "\n" for i in range(80)]
    yield "a picture of signs", "".join(art + art[::-1])
    yield "leaders in a table of contents", "".join(f"Chapter {i} {'. ' * 60}{4 * i}\n" for i in range(120))
    yield "ten equal cards", (PARAGRAPH * 3) * 10
