"""Answers -> boxes and points in original pixels (inventory rows 86, 95)."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwenvl.tasks.draw import draw_boxes
from qwenvl.tasks.grounding import LOCATE_PROMPT, Box, Point, locate, parse_boxes, places_to_dicts
from qwenvl.types import ImageSize

SIZE = ImageSize(200, 100, 224, 112)
CUP = Box("cup", 50.0, 25.0, 100.0, 50.0, (56, 28, 112, 56))
JAR = Box("jar", 0.0, 0.0, 25.0, 25.0, (0, 0, 28, 28))
CUP_ITEM = '{"bbox_2d": [56, 28, 112, 56], "label": "cup"}'
JAR_ITEM = '{"bbox_2d": [0, 0, 28, 28], "label": "jar"}'


@pytest.mark.feature(86)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"[{CUP_ITEM}, {JAR_ITEM}]", [CUP, JAR]),
        (f"```json\n[\n\t{CUP_ITEM},\n\t{JAR_ITEM}\n]\n```", [CUP, JAR]),
        (f"Here they are:\n```\n[{CUP_ITEM}]\n```\nThat's all.", [CUP]),
        (CUP_ITEM, [CUP]),
        (f"{CUP_ITEM}\n{JAR_ITEM}", [CUP, JAR]),
        (f'{{"objects": [{CUP_ITEM}, {JAR_ITEM}], "count": 2}}', [CUP, JAR]),
        (f"[{CUP_ITEM}, {JAR_ITEM},]", [CUP, JAR]),
        ('[{"bbox_2d": [56, 28, 112, 56,], "label": "cup",},]', [CUP]),
        ("[{'bbox_2d': [56, 28, 112, 56], 'label': 'cup', 'hidden': None}]", [CUP]),
        ("[{'bbox_2d': (56, 28, 112, 56), 'label': 'cup', 'hidden': false,}]", [CUP]),
        (f'[{CUP_ITEM}, {{"bbox_2d": [0, 0, 28', [CUP]),
        (f'[{CUP_ITEM}, {{"bbox_2d": [0, 0, 28, 28], "label": "ja', [CUP]),
        (f'{{"objects": [{CUP_ITEM}, {{"bbox_2d": [0, 0', [CUP]),
        (f'{{"bbox_2d": [1, 2, "label": "broken"}}\n{CUP_ITEM}', [CUP]),
        (f"{{it's here}} {CUP_ITEM}", [CUP]),
        (f'{{"note": "an open quote\n{CUP_ITEM}', [CUP]),
        ('{"bbox": [56, 28, 112, 56], "label": "cup"}', [CUP]),
        ('{"bbox_2d": [112, 56, 56, 28], "label": "cup"}', [Box("cup", 50, 25, 100, 50, (112, 56, 56, 28))]),
        ('{"bbox_2d": [-9, 28, 999, 56], "label": "cup"}', [Box("cup", 0, 25, 200, 50, (-9, 28, 999, 56))]),
        ("[]", []),
        ("There is no cup.", []),
        ("", []),
        ('[{"bbox_2d": [1, 2, 3], "label": "three numbers"}]', []),
        ('[{"bbox_2d": [1, 2, true, 4], "label": "no number"}]', []),
        ('[{"bbox_2d": "1 2 3 4"}]', []),
        ('[{"bbox_2d": [300, 10, 400, 50], "label": "outside the picture"}]', []),
        ('[{"bbox_2d": [NaN, 0, 5, Infinity]}]', []),
        ('{"bbox_2d": [0, 0, 28, 1' + "0" * 400 + '], "label": "long"}', []),
    ],
)
def test_boxes_as_models_write_them(text: str, expected: list[Box]) -> None:
    assert parse_boxes(text, SIZE) == expected


@pytest.mark.feature(86)
def test_worked_pair_of_the_notebooks() -> None:
    # 640 x 428 is seen as 644 x 420; the box [146, 137, 615, 415] of the original is written [147, 134, 619, 407].
    (box,) = parse_boxes('[{"bbox_2d": [147, 134, 619, 407]}]', ImageSize(640, 428, 644, 420))
    assert isinstance(box, Box)
    assert [round(v) for v in (box.x1, box.y1, box.x2, box.y2)] == [146, 137, 615, 415]


def test_extra_fields_and_other_labels_are_kept() -> None:
    (box,) = parse_boxes('[{"bbox_2d": [0, 0, 28, 28], "text_content": "EXIT", "sub_label": 7}]', SIZE)
    assert (box.label, dict(box.extra)) == ("EXIT", {"text_content": "EXIT", "sub_label": 7})
    assert places_to_dicts([box])[0] == {
        "label": "EXIT",
        "box": [0.0, 0.0, 25.0, 25.0],
        "resized": [0.0, 0.0, 28.0, 28.0],
        "extra": {"text_content": "EXIT", "sub_label": 7},
    }


@pytest.mark.feature(86)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"point_2d": [112, 56], "label": "cup"}]', [Point("cup", 100, 50, (112, 56))]),
        ('[{"point_2d": [999, -5], "label": "cup"}]', [Point("cup", 200, 0, (999, -5))]),
        ('<points x="112" y="56" alt="a cup">cup</points>', [Point("cup", 100, 50, (112, 56))]),
        (
            '<points x1="112" y1="56" x2="0" y2="28" x3="x" y3="1" alt="cup"></points>',
            [Point("cup", 100, 50, (112, 56)), Point("cup", 0, 25, (0, 28))],
        ),
        ('<points x="112" alt="no y">cup</points>', []),
    ],
)
def test_points(text: str, expected: list[Point]) -> None:
    assert parse_boxes(text, SIZE) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(250,100),(500,900)<|box_end|>",
        "cat(250,100),(500,900)",  # the same with control tokens skipped
        "<|object_ref_start|> cat <|object_ref_end|><|box_start|>(500, 900), (250, 100)<|box_end|>",
    ],
)
def test_thousandths_of_qwen2_vl(text: str) -> None:
    (box,) = parse_boxes(text, SIZE)
    assert isinstance(box, Box)
    assert (box.label, box.x1, box.y1, box.x2, box.y2) == ("cat", 50, 10, 100, 90)


def test_two_boxes_of_qwen2_vl_in_one_line() -> None:
    boxes = parse_boxes("cat(0,0),(500,500), dog(500,500),(1000,1000)", SIZE)
    assert [(box.label, places_to_dicts([box])[0]["box"]) for box in boxes] == [
        ("cat", [0, 0, 100, 50]),
        ("dog", [100, 50, 200, 100]),
    ]


numbers = st.one_of(st.integers(-50, 400), st.floats(allow_nan=True, allow_infinity=True))


@given(items=st.lists(st.lists(numbers, min_size=3, max_size=5), max_size=4), cut=st.integers(0, 200))
def test_what_comes_back_lies_in_the_picture(items: list[list[float]], cut: int) -> None:
    text = json.dumps([{"bbox_2d": item, "label": "x"} for item in items])
    for box in parse_boxes(text[: len(text) - cut] if cut < len(text) else text, SIZE):
        assert isinstance(box, Box)
        assert 0 <= box.x1 < box.x2 <= SIZE.width
        assert 0 <= box.y1 < box.y2 <= SIZE.height


@given(text=st.text(alphabet="{}[]\",:'\\ab12.-()<>|\n" + "box_2dpoint", max_size=200))
def test_no_text_is_an_error(text: str) -> None:
    assert isinstance(parse_boxes(text, SIZE), list)


@pytest.mark.parametrize(
    "text",
    [
        "{" * 60_000 + "}" * 60_000,
        "[" * 120_000,
        '{"' * 60_000,
        "a" * 120_000,
        "(" * 120_000,
        "[{}," * 30_000,
        "{'a':" * 30_000,
        "<points " * 15_000,
        '{"a":1}' * 15_000,
    ],
)
def test_hostile_text_takes_no_long_time(text: str) -> None:
    start = time.perf_counter()
    assert parse_boxes(text, SIZE) == []
    assert time.perf_counter() - start < 5


@pytest.mark.feature(86)
def test_locate_asks_once_and_reads_the_answer() -> None:
    asked = []

    def ask(pictures: list[str], question: str) -> SimpleNamespace:
        asked.append((pictures, question))
        return SimpleNamespace(text=f"[{CUP_ITEM}]", sizes=[SIZE])

    assert locate(ask, "picture", "the cup.") == [CUP]
    assert asked == [(["picture"], LOCATE_PROMPT.format(what="cup"))]
    with pytest.raises(ValueError, match="what to locate is empty"):
        locate(ask, "picture", "  ")


def test_drawing_leaves_the_picture_alone_and_marks_the_copy() -> None:
    picture = Image.new("RGB", (200, 100), "white")
    marked = draw_boxes(picture, [CUP, Point("dot", 150, 80, (168, 90)), Box("", 0, 0, 200, 100, (0, 0, 224, 112))])
    assert picture.getcolors() == [(20_000, (255, 255, 255))]
    assert marked.size == picture.size
    assert marked.getpixel((75, 25)) == marked.getpixel((75, 50)) == (0xD5, 0x5E, 0x00)  # the box, in its colour
    assert marked.getpixel((150, 80)) == (0x00, 0x72, 0xB2)  # another label, another colour
    assert marked.getpixel((75, 38)) == (255, 255, 255)  # nothing is filled


def test_drawing_at_the_very_edge() -> None:
    box = Box("a label far wider than the picture it stands in", 9, 0, 10, 1, (0, 0, 0, 0))
    assert draw_boxes(Image.new("L", (10, 10)), [box]).mode == "RGB"
