"""Answers -> blocks: recorded-style answers, every prefix of well-formed ones, and thousands of damaged ones."""

from __future__ import annotations

import html
import random
import re
import time
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest
from document_mutations import mutations
from document_outline import Case, cases, outline

from qwenvl.tasks.documents import Block, Document, Mark, Page, from_json, read_answer, to_html, to_json, to_markdown
from qwenvl.types import ImageSize

pytestmark = pytest.mark.feature(85, 91)

SIZE = ImageSize(504, 770, 1008, 1540)  # an original pixel is two resized ones


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_recorded_answer(case: Case) -> None:
    assert outline(read_answer(case.answer, case.size)) == case.blocks


def test_the_corpus_is_as_large_as_we_say() -> None:
    assert len(cases()) >= 50


@dataclass
class Written:
    """A well-formed answer, the visible text before each of its characters, and where its blocks end."""

    rng: random.Random
    text: str = ""
    seen: list[tuple[int, str]] = field(default_factory=list)  # (end, text that is visible there)
    ends: list[int] = field(default_factory=list)

    def tag(self, tag: str) -> None:
        self.text += tag

    def say(self, words: int) -> None:
        for _ in range(words):
            word = self.rng.choice(
                ["total", "12.50", "Müller", "合计", "x&y", "a<b", "§ 4", "Straße", "no.", "€", "שלום"]
            )
            for letter in word + " ":
                self.text += html.escape(letter, quote=False)
                self.seen.append((len(self.text), letter))

    def box(self) -> str:
        x, y = self.rng.randint(0, 900), self.rng.randint(0, 1400)
        return f' data-bbox="{x} {y} {x + self.rng.randint(1, 90)} {y + self.rng.randint(1, 90)}"'

    def block(self) -> None:
        self.rng.choice([self.paragraph, self.heading, self.list, self.table, self.figure, self.formula])()
        self.ends.append(len(self.text))
        self.tag(" \n ")

    def paragraph(self) -> None:
        self.tag(f"<p{self.box()}>")
        self.say(self.rng.randint(1, 8))
        self.tag("<b>")
        self.say(1)
        self.tag("</b><br/>")
        self.say(2)
        self.tag("</p>")

    def heading(self) -> None:
        self.tag(f"<h2{self.box()}>")
        self.say(3)
        self.tag("</h2>")

    def list(self) -> None:
        self.tag(f"<ol{self.box()}>")
        for _ in range(self.rng.randint(1, 3)):
            self.tag(f"<li{self.box()}>")
            self.say(2)
            self.tag("<ul><li>")
            self.say(1)
            self.tag("</li></ul></li>")
        self.tag("</ol>")

    def table(self) -> None:
        self.tag(f"<table{self.box()}><thead><tr><th>")
        self.say(1)
        self.tag('</th><th colspan="2">')
        self.say(2)
        self.tag("</th></tr></thead><tbody>")
        for _ in range(self.rng.randint(1, 3)):
            self.tag("<tr><td>")
            self.say(1)
            self.tag("</td><td>")
            self.say(1)
            self.tag("</td></tr>")
        self.tag("</tbody></table>")

    def figure(self) -> None:
        box = self.box()
        self.tag(f'<div class="image caption"{box}><img{box}/><p>')
        self.say(3)
        self.tag("</p></div>")

    def formula(self) -> None:
        self.tag(f'<div class="formula.machine_printed"{self.box()}><div>')
        self.say(2)
        self.tag("</div></div>")


def written(seed: int) -> Written:
    answer = Written(random.Random(seed))
    answer.tag("```html\n<html><body>\n")
    for _ in range(8):
        answer.block()
    answer.tag("</body></html>\n```")
    return answer


def visible(text: str) -> str:
    return re.sub(r"\s+", "", text)


def everything(blocks: list[Block]) -> str:
    return visible("".join(block.plain_text() for block in blocks))


@pytest.mark.parametrize("seed", range(4))
def test_every_prefix_keeps_its_text_and_its_complete_blocks(seed: int) -> None:
    answer = written(seed)
    whole = read_answer(answer.text, SIZE)
    assert len(whole) == len(answer.ends)
    for cut in range(0, len(answer.text) + 1, 1 if seed == 0 else 7):
        blocks = read_answer(answer.text[:cut], SIZE)
        expected = visible("".join(letter for end, letter in answer.seen if end <= cut))
        found = everything(blocks)
        assert found.startswith(expected), answer.text[:cut][-80:]
        assert re.fullmatch(r"(&\w*)?", found[len(expected) :]), answer.text[:cut][
            -80:
        ]  # half an entity stays as it is
        complete = sum(end <= cut for end in answer.ends)
        assert blocks[:complete] == whole[:complete], answer.text[:cut][-80:]


def check(text: str) -> None:
    blocks = read_answer(text, SIZE)
    for block in blocks:
        for part in block.walk():
            for box in (part.box, part.image_box):
                assert box is None or (0 <= box[0] < box[2] <= 504 and 0 <= box[1] < box[3] <= 770)
            assert all(0 <= mark.start < mark.end <= len(part.text) for mark in part.marks)


def test_damaged_answers_never_raise() -> None:
    for text in mutations(1000, seed=1):
        check(text)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_50000_damaged_answers_never_raise_and_are_quick() -> None:
    for number, text in enumerate(mutations(50_000, seed=2)):
        start = time.process_time()
        check(text)
        assert time.process_time() - start < 1.0, text
        if number % 25 == 0:
            document = Document("x", (Page(1, SIZE, tuple(read_answer(text, SIZE)), answer=text),))
            assert from_json(to_json(document)) == document
            to_html(document, boxes=True, crops="crops")
            to_markdown(document, crops="crops")


BOMBS = [
    "<div>",
    "<table><tr><td>",
    "<ul><li>a",
    "<",
    "<b ",
    "<!-- ",
    '<p class="',
    "<style>a",
    "<script>",
    "```html\n<p>\n",
    "**a ",
    "[a](",
    "> ",
    "- a\n  ",
    "$$a\n",
    "| a | b |\n",
    "\\begin{tabular}{c} a & b \\\\ ",
    "<tr><td rowspan=999 colspan=999>a",
    "<b><p></b>",
    "&amp",
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_time_grows_with_length_only(bomb: str) -> None:
    def seconds(length: int) -> float:
        text = (bomb * (length // len(bomb) + 1))[:length]
        tries = []
        for _ in range(2):
            start = time.process_time()
            read_answer(text, SIZE)
            tries.append(time.process_time() - start)
        return min(tries)

    assert (
        seconds(12_000) < 6 * seconds(3_000) + 0.05
    )  # four times the length; a quadratic reader takes 16 times as long


@pytest.mark.parametrize(
    "said",
    ["if x<y then z", "a vector<int> here", "mail <ann@example.org> now", "3 < 4", "a <b and c", "List<String> items"],
)
def test_brackets_that_are_no_tags_stay(said: str) -> None:
    assert read_answer(f"<p>{said}</p>", SIZE) == [Block("paragraph", said)]


def test_what_html_parser_loses() -> None:
    """Why the reader of tags is our own: the library's takes what follows a "<" for a tag."""

    class Library(HTMLParser):
        text = ""

        def handle_data(self, data: str) -> None:
            self.text += data

    broken = '<p data-bbox="2 2 20 20">if x<y then z</p><p data-bbox="2 30 20 50" The bracket is missing.</p>'
    library = Library()
    library.feed(broken)
    library.close()
    assert "then z" not in library.text
    assert [block.text for block in read_answer(broken, SIZE)] == ["if x<y then z", "The bracket is missing."]


def test_frames() -> None:
    answer = '<p data-bbox="100 200 500 400">x</p>'
    assert read_answer(answer, SIZE)[0].box == (50, 100, 250, 200)
    assert read_answer(answer, SIZE, frame="thousandths")[0].box == pytest.approx((50.4, 154, 252, 308))
    bare = read_answer(answer)[0]
    assert bare.box is None
    assert bare.resized == (100, 200, 500, 400)


def test_nothing_and_blanks() -> None:
    assert read_answer("", SIZE) == []
    assert read_answer(" \n\t ", SIZE) == []
    assert read_answer("```html\n```", SIZE) == []
    assert read_answer("<html><body></body></html>", SIZE) == []


def test_markdown_marks_are_where_they_belong() -> None:
    block = read_answer("**Sum** of `x_1` and *y*, snake_case_name, 2 * 3 * 4, \\*star\\*", SIZE)[0]
    assert block.text == "Sum of x_1 and y, snake_case_name, 2 * 3 * 4, *star*"
    assert block.marks == (Mark("bold", 0, 3), Mark("code", 7, 10), Mark("italic", 15, 16))


def test_fenced_code_in_a_fenced_page() -> None:
    blocks = read_answer("```markdown\n# Title\n\n```python\nx = 1\n```\n\nEnd.\n```\nBye.", SIZE)
    assert [(block.kind, block.text) for block in blocks] == [
        ("heading", "Title"),
        ("code", "x = 1"),
        ("paragraph", "End."),
        ("paragraph", "Bye."),
    ]


def test_a_spanned_latex_row_is_not_lost() -> None:
    table = read_answer("\\begin{tabular}{cc}\na & \\textbf{b} \\\\\n\\end{tabular}", SIZE)[0]
    assert [[cell.text for cell in row] for row in table.rows] == [["a", "b"]]
    assert table.rows[0][1].marks == (Mark("bold", 0, 1),)


def test_paragraphs_without_ends_are_not_nested() -> None:
    blocks = read_answer("".join(f'<p data-bbox="0 {n} 8 {n + 2}">line {n}' for n in range(300)), SIZE)
    assert [block.text for block in blocks] == [f"line {n}" for n in range(300)]
    assert all(block.box is not None for block in blocks)


def test_deep_nesting_keeps_text() -> None:
    blocks = read_answer("<div>" * 5000 + "deep" + "</div>" * 5000 + "<p>after</p>", SIZE)
    assert [block.text for block in blocks] == ["deep", "after"]
    assert everything(read_answer("<b>" * 3000 + "x" + "<table><tr><td>" * 500 + "y", SIZE)) == "xy"
