"""Blocks -> Markdown, HTML, JSON, text, crops and overlays, and back where there is a way back."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from document_outline import Case, cases, outline
from PIL import Image, ImageChops

from qwenvl.tasks.documents import (
    Block,
    Cell,
    Document,
    Mark,
    Page,
    crop_blocks,
    crop_names,
    from_json,
    merge_pages,
    overlay,
    read_answer,
    to_html,
    to_json,
    to_markdown,
    to_text,
)
from qwenvl.types import ImageSize

pytestmark = pytest.mark.feature(85, 91)

SIZE = ImageSize(200, 300, 196, 308)


def document(*blocks: Block, source: str = "scan.png") -> Document:
    return Document(source, (Page(1, SIZE, blocks),))


def parsed(case: Case) -> Document:
    return Document("scan.png", (Page(1, case.size, tuple(read_answer(case.answer, case.size)), answer=case.answer),))


def visible(text: str) -> str:
    return re.sub(r"[\s*_`~$|#>\\-]|<!--.*?-->", "", text)


TABLE = Block("table", rows=((Cell("Name", header=True), Cell("Sum", header=True)), (Cell("a|b\nc"), Cell("1"))))


def test_markdown_of_every_kind() -> None:
    nested = Block("list", children=(Block("item", "inner"),))
    blocks = (
        Block("heading", "Report", level=2),
        Block("paragraph", "See x2 here", (Mark("sup", 5, 6), Mark("bold", 7, 11))),
        Block("list", ordered=True, start=3, children=(Block("item", "one", children=(nested,)), Block("item", "two"))),
        TABLE,
        Block("formula", "E = mc^2"),
        Block("figure", children=(Block("caption", "Figure 1"),)),
        Block("chemistry", "C=O"),
        Block("music", "X:1\nK:C"),
        Block("code", "a ``` b", attributes={"language": "sh"}),
        Block("quote", "one\ntwo"),
        Block("remark", "I hope this helps."),
    )
    assert (
        to_markdown(document(*blocks))
        == """## Report

See x<sup>2</sup> **here**

3. one
   - inner
4. two

| Name | Sum |
| --- | --- |
| a\\|b<br>c | 1 |

$$
E = mc^2
$$

Figure 1

`C=O`

```abc
X:1
K:C
```

````sh
a ``` b
````

> one
> two
"""
    )


def test_markdown_links_crops_and_names_pages() -> None:
    figure = Block("figure", box=(10, 10, 50, 50))
    pages = (Page(1, SIZE, (figure,)), Page(2, SIZE, error="cut off -- too long"), Page(3, SIZE, (figure,)))
    text = to_markdown(Document("x.pdf", pages), crops="x-crops", page_breaks=True)
    assert "![figure](x-crops/page-0001-figure-01.png)" in text
    assert "<!-- page 2: cut off - - too long -->" in text
    assert "<!-- page 3 -->\n\n![figure](x-crops/page-0003-figure-01.png)" in text


def test_spans_make_an_html_table() -> None:
    table = Block("table", rows=((Cell("a", colspan=2),), (Cell("b"), Cell("c"))))
    text = to_markdown(document(table))
    assert '<td colspan="2">a</td>' in text
    assert "| b" not in text


@pytest.mark.parametrize(
    "said",
    [
        *("# no heading", "- no item", "1. no item", "12) no item", "> no quote", "--- ", "| no | table |", "=== "),
        *("2 * 3 *4* 5", "a _b_ c", "`tick`", "[a](b)", "~~gone~~", "<b>tag</b>", "&amp;", "one\n- two", "C:\\dir"),
        *("5 < 6 > 4", "$5 and $6", "x\n===", "*", "snake_case_name"),
    ],
)
def test_what_looks_like_markdown_is_read_back_as_it_was(said: str) -> None:
    text = to_markdown(document(Block("paragraph", said.strip())))
    blocks = read_answer(text)
    assert [block.kind for block in blocks] == ["paragraph"]
    assert re.sub(r"\s+", " ", blocks[0].text) == re.sub(r"\s+", " ", said.strip())


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_html_with_boxes_is_read_back_as_it_was(case: Case) -> None:
    whole = parsed(case)
    page = whole.pages[0]
    blocks = tuple(block for block in page.blocks if block.kind != "remark")
    original = ImageSize(case.size.width, case.size.height, case.size.width, case.size.height)
    text = to_html(replace(whole, pages=(replace(page, blocks=blocks),)), boxes=True)
    again = [block for block in read_answer(text, original) if block.kind != "remark"]
    assert outline(again) == outline(list(blocks))


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_markdown_holds_all_text(case: Case) -> None:
    whole = parsed(case)
    again = "".join(block.plain_text() for block in read_answer(to_markdown(whole)))
    assert visible(again) == visible(whole.text())


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_json_is_read_back_equal(case: Case) -> None:
    whole = replace(parsed(case), metadata={"model": "demo", "seconds": 1.5})
    assert from_json(to_json(whole)) == whole
    assert from_json(to_json(whole, indent=None)) == whole


def test_html_is_clean() -> None:
    answer = (
        '<style>p{}</style><p data-bbox="1 2 3 4" style="color:red" onclick="x()">a &lt; b</p><div class="formula.'
        'machine_printed" data-bbox="1 2 3 4">x</div><script>alert(1)</script><a href="javascript:x">y</a>'
    )
    text = to_html(document(*read_answer(answer, SIZE), source="<scan>"))
    assert "<p>a &lt; b</p>" in text
    assert '<div class="formula">x</div>' in text
    assert "<title>&lt;scan&gt;</title>" in text
    assert not re.search(r"data-bbox|style|color|script|onclick|machine", text)


def test_html_without_contents_is_what_the_cookbook_makes() -> None:
    answer = (
        '<div class="image caption" data-bbox="1 2 3 4"><img data-bbox="1 2 3 4"/><p>words</p></div>'
        '<div class="chart" format="x"><img/><table><tr><td>5</td></tr></table></div>'
        '<div class="music sheet" format="abc notation"><div>X:1</div></div>'
        '<div class="chemical formula" format="smile"><div>CC</div></div><p>kept</p>'
    )
    text = to_html(document(*read_answer(answer, SIZE)), contents=False)
    assert text.split("<section")[1].split("\n", 1)[1].split("</section>")[0] == (
        '<div class="image"></div>\n<div class="chart"></div>\n<div class="music sheet"></div>\n'
        '<div class="chemical formula"></div>\n<p>kept</p>\n'
    )


def test_text() -> None:
    pages = (
        Page(1, SIZE, (Block("heading", "A", level=1), TABLE, Block("remark", "no"))),
        Page(2, SIZE, (Block("quote", "B"),)),
    )
    assert to_text(Document("x", pages)) == "A\n\nName\tSum\na|b c\t1\n\fB\n"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"format": "other"}, "no parsed document"),
        ([], "no parsed document"),
        ({"format": "qwenvl-document", "version": 9, "pages": []}, "version 9"),
        ({"pages": [{"number": 0}]}, "whole number from 1"),
        ({"pages": [{"number": 1, "colour": 2}]}, "unknown fields colour"),
        ({"pages": [{"number": 1, "blocks": [{"kind": "poem"}]}]}, "'poem'; expected one of heading"),
        ({"pages": [{"number": 1, "blocks": [{"kind": "paragraph", "box": [1, 2]}]}]}, "2 numbers; expected x1"),
        ({"pages": [{"number": 1, "blocks": [{"kind": "paragraph", "text": 5}]}]}, "expected text"),
        ({"pages": [{"number": 1, "blocks": [{"kind": "table", "rows": [5]}]}]}, "expected a list"),
        ({"pages": [{"number": 1, "size": {"width": 1}}]}, "expected width, height"),
        ({"pages": [{"number": 1, "blocks": [{"kind": "item", "marks": [["loud", 1, 2]]}]}]}, "a mark of"),
    ],
)
def test_json_of_something_else_is_refused(value: Any, says: str) -> None:
    if isinstance(value, dict) and "format" not in value:
        value = {"format": "qwenvl-document", "version": 1, **value}
    with pytest.raises(ValueError, match=re.escape(says)):
        from_json(json.dumps(value))


def test_crops_are_the_parts_of_the_picture(tmp_path: Path) -> None:
    image = Image.new("RGB", (400, 600), "white")  # twice the size that the boxes speak of
    image.paste("red", (40, 40, 120, 80))
    inner = Block("table", box=(25, 60, 35, 70), rows=((Cell("x"),),))
    page = Page(
        7,
        SIZE,
        (
            Block("paragraph", "no crop", box=(0, 0, 10, 10)),
            Block("figure", box=(20, 20, 60, 40)),
            Block("chart", box=(20, 50, 60, 80), children=(inner,)),
            Block("figure"),
            Block("figure", box=(100, 100, 150, 200), image_box=(100, 100, 150, 150)),
        ),
    )
    names = [name for _, name in crop_names(page)]
    assert names == [f"page-0007-{name}.png" for name in ("figure-01", "chart-01", "table-01", "figure-02")]
    paths = crop_blocks(image, page, tmp_path / "new", margin=0)
    assert [path.name for path in paths] == names
    with Image.open(paths[0]) as crop:
        assert crop.size == (80, 40)
        assert crop.getcolors() == [(3200, (255, 0, 0))]
    with Image.open(paths[3]) as crop:
        assert crop.size == (100, 100)  # the picture, without its caption
    assert [path.name for path in crop_blocks(image, page, tmp_path, kinds=["table"])] == ["page-0007-table-01.png"]


def test_overlay_outlines_blocks() -> None:
    image = Image.new("RGB", (400, 600), "white")
    page = Page(1, SIZE, (Block("table", box=(50, 50, 150, 100)), Block("paragraph", "x", box=(50, 150, 150, 200))))
    drawn = overlay(image, page)
    assert drawn.size == image.size
    assert image.getcolors() == [(240_000, (255, 255, 255))]
    assert drawn.getpixel((200, 200)) == (0, 158, 115)  # the lower edge of the table, at twice the size
    assert drawn.getpixel((200, 400)) == (0, 114, 178)
    box = ImageChops.difference(image, drawn).getbbox()
    assert box is not None
    assert box[0] >= 99
    assert box[2] <= 302


def flow(*pages: tuple[Block, ...]) -> list[list[Block]]:
    merged = merge_pages(Document("x", tuple(Page(n, SIZE, blocks) for n, blocks in enumerate(pages, start=1))))
    return [list(page.blocks) for page in merged.pages]


def test_paragraphs_go_on_over_the_page() -> None:
    head = Block("paragraph", "Annual report")
    one, two = flow(
        (head, Block("paragraph", "The water was meas"), Block("paragraph", "Page 1 of 2")),
        (head, Block("paragraph", "ured daily, and the"), Block("remark", "done")),
    )
    assert [block.text for block in one] == ["Annual report", "The water was meas ured daily, and the", "Page 1 of 2"]
    assert one[1].attributes == {"until_page": "2"}
    assert [block.text for block in two] == ["Annual report", "done"]


@pytest.mark.parametrize(
    ("one", "two", "whole"),
    [
        ("a long sen-", "tence here", "a long sentence here"),
        ("本文讨论了水的", "质量问题", "本文讨论了水的质量问题"),
        ("It ended.", "then more", None),
        ("It goes on", "But Not So", None),
    ],
)
def test_when_paragraphs_go_on(one: str, two: str, whole: str | None) -> None:
    first, second = flow((Block("paragraph", one),), (Block("paragraph", two),))
    assert [block.text for block in first] == [whole or one]
    assert [block.text for block in second] == ([] if whole else [two])


def test_tables_go_on_over_pages() -> None:
    def table(*rows: tuple[str, ...], head: bool = False) -> Block:
        return Block(
            "table", rows=tuple(tuple(Cell(t, header=head and i == 0) for t in row) for i, row in enumerate(rows))
        )

    one, two, three = flow(
        (table(("Name", "Sum"), ("a", "1"), head=True),),
        (table(("Name", "Sum"), ("b", "2"), head=True),),
        (table(("c", "3")), Block("paragraph", "End.")),
    )
    assert [[cell.text for cell in row] for row in one[0].rows] == [["Name", "Sum"], ["a", "1"], ["b", "2"], ["c", "3"]]
    assert one[0].attributes == {"until_page": "3"}
    assert two == []
    assert [block.kind for block in three] == ["paragraph"]
    apart = flow((table(("a", "b")),), (table(("a", "b", "c")),))
    assert [len(blocks) for blocks in apart] == [1, 1]
    other_head = flow((table(("a", "b"), head=True),), (table(("c", "d"), ("1", "2"), head=True),))
    assert [len(blocks) for blocks in other_head] == [1, 1]


def test_a_missing_page_ends_what_is_open() -> None:
    pages = (
        Page(1, SIZE, (Block("paragraph", "goes on"),)),
        Page(2, None, error="broken"),
        Page(3, SIZE, (Block("paragraph", "but where"),)),
    )
    assert merge_pages(Document("x", pages)) == Document("x", pages)


def test_overlapping_marks_are_nested() -> None:
    block = Block("paragraph", "abcdef", (Mark("bold", 0, 4), Mark("italic", 2, 6)))
    assert "<p><b>ab<i>cd</i></b><i>ef</i></p>" in to_html(document(block))


def test_what_lies_on_its_own_page_stays_there() -> None:
    """A paragraph with a picture in it: its box would be taken for one on the page before."""

    def document(*children: Block) -> Document:
        pages = (
            Page(1, SIZE, (Block("paragraph", "It goes on"),)),
            Page(2, SIZE, (Block("paragraph", "here", children=children),)),
        )
        return Document("x", pages)

    assert [len(page.blocks) for page in merge_pages(document()).pages] == [1, 0]
    assert [len(page.blocks) for page in merge_pages(document(Block("figure", box=(1, 1, 2, 2)))).pages] == [1, 1]
