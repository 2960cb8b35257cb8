"""A picture and a wish -> boxes and points in original pixels, drawn (inventory rows 86, 95).

How answers are read: test_answers.py has the corpus and the fuzzing.
"""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scripted_assistant import Asked, ScriptedAssistant, Written

from qwenvl.tasks.draw import draw_boxes, label_plates
from qwenvl.tasks.grounding import LOCATE_PROMPT, POINT_PROMPT, Box, Point, locate, parse_boxes, places_to_dicts
from qwenvl.tasks.places import overlap, reading_order
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
        ('[{"bbox_2d": "1 2 3 x"}]', []),
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
        "{" * 15_000 + "}" * 15_000,
        "[" * 30_000,
        '{"' * 15_000,
        "a" * 30_000,
        "(" * 30_000,
        "[{}," * 8_000,
        "{'a':" * 8_000,
        "<points " * 4_000,
        '{"a":1}' * 4_000,
    ],
)
def test_hostile_text_takes_no_long_time(text: str) -> None:
    start = time.process_time()
    assert parse_boxes(text, SIZE) == []
    assert time.process_time() - start < 2


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


# locate, with an assistant.

PICTURE = Image.new("RGB", (280, 196), "white")


def boxes(*items: tuple[str, tuple[float, ...]]) -> str:
    return json.dumps([{"bbox_2d": list(numbers), "label": label} for label, numbers in items])


@pytest.mark.feature(86)
def test_small_pictures_are_enlarged_and_boxes_come_back_in_their_own_pixels() -> None:
    assistant = ScriptedAssistant([boxes(("cup", (0, 0, 518, 392)))])
    (box,) = locate(assistant, PICTURE, "cup")
    (asked,) = assistant.asked
    assert asked.messages[0]["content"][0]["min_pixels"] == 1024 * 28 * 28
    assert asked.question == LOCATE_PROMPT.format(what="cup")
    size = assistant.ask([PICTURE], "?", min_pixels=1024 * 28 * 28).sizes[0]
    assert size.resized_width * size.resized_height >= 1024 * 28 * 28
    assert isinstance(box, Box)
    assert box.corners == pytest.approx((0, 0, 518 / size.resized_width * 280, 392 / size.resized_height * 196))
    assert box.resized == (0, 0, 518, 392)


def test_pictures_are_left_alone_where_they_should_be() -> None:
    small = ScriptedAssistant([boxes()], max_pixels=336 * 336)
    assert locate(small, PICTURE, "cup") == []
    assert "min_pixels" not in small.asked[0].messages[0]["content"][0]
    wide = ScriptedAssistant([boxes()])
    locate(wide, PICTURE, "cup", min_tokens=None)
    assert "min_pixels" not in wide.asked[0].messages[0]["content"][0]
    with pytest.raises(ValueError, match="min_tokens=0 is not valid"):
        locate(wide, PICTURE, "cup", min_tokens=0)


@pytest.mark.feature(86)
def test_confidence_comes_with_the_places() -> None:
    assistant = ScriptedAssistant([Written(boxes(("cup", (0, 0, 56, 56))), probability=0.7)])
    assert locate(assistant, PICTURE, "cup")[0].confidence == pytest.approx(0.7)
    assert assistant.asked[0].sampling.logprobs
    assert locate(assistant, PICTURE, "cup", confidence=False)[0].confidence is None
    assert not assistant.asked[1].sampling.logprobs
    assert places_to_dicts(locate(assistant, PICTURE, "cup"))[0]["confidence"] == 0.7


@pytest.mark.feature(86)
def test_several_things_are_asked_for_one_by_one() -> None:
    def answer(asked: Asked) -> str:
        return boxes(("", (0, 0, 56, 56))) if "cup" in asked.question else boxes(("blue jar", (56, 0, 112, 56)))

    found = locate(ScriptedAssistant(answer), PICTURE, ["the cup", "jar"])
    assert [place.label for place in found] == ["cup", "blue jar"]  # the model's own label where it gives one
    with pytest.raises(ValueError, match="what to locate is empty"):
        locate(ScriptedAssistant(answer), PICTURE, ["cup", " "])
    with pytest.raises(ValueError, match="what to locate is empty"):
        locate(ScriptedAssistant(answer), PICTURE, [])


def test_an_item_written_again_is_given_once() -> None:
    twice = boxes(("cup", (0, 0, 56, 56)), ("cup", (0, 0, 56, 56)), ("jar", (0, 0, 56, 56)))
    assert [place.label for place in locate(ScriptedAssistant([twice]), PICTURE, "thing")] == ["cup", "jar"]


@pytest.mark.feature(86)
def test_points_are_asked_for_and_made_of_boxes() -> None:
    assistant = ScriptedAssistant(
        ['[{"point_2d": [56, 84], "label": "cup"}]', boxes(("cup", (0, 0, 112, 56)))], max_pixels=300 * 300
    )
    assert locate(assistant, PICTURE, "the cup", as_points=True) == [Point("cup", 56, 84, (56, 84))]
    assert locate(assistant, PICTURE, "the cup", as_points=True) == [Point("cup", 56, 28, (56, 28))]
    assert assistant.asked[0].question == POINT_PROMPT.format(what="cup")


def test_thousandths_of_a_qwen2_vl_checkpoint_in_json() -> None:
    assistant = ScriptedAssistant([boxes(("cup", (100, 200, 500, 1000)))])
    assistant.model = SimpleNamespace(config=SimpleNamespace(model_type="qwen2_vl"))  # type: ignore[attr-defined]
    (box,) = locate(assistant, PICTURE, "cup")
    assert isinstance(box, Box)
    assert box.corners == pytest.approx((28, 39.2, 140, 196))


def second_look(answer: str) -> list[Box | Point]:
    """A find at 50, 50 to 90, 90 of a picture of 420 x 420, and what a look at its crop (30, 30 to 111, 111) says; the
    crop is seen at 84 x 84."""
    first = boxes(("cup", (50, 50, 90, 90)))
    large = Image.new("RGB", (420, 420))
    assistant = ScriptedAssistant(lambda asked: first if asked.media[0].width == 420 else answer)
    found = locate(assistant, large, "cup", refine=True, min_tokens=None)
    assert [asked.media[0].size for asked in assistant.asked] == [(420, 420), (81, 81)]
    return found


@pytest.mark.feature(86)
def test_a_second_look_corrects_a_box() -> None:
    scale = 84 / 81
    (box,) = second_look(boxes(("mug", (18 * scale, 22 * scale, 62 * scale, 60 * scale))))
    assert isinstance(box, Box)
    assert box.corners == pytest.approx((48, 52, 92, 90))
    assert (box.label, box.resized) == ("cup", (50, 50, 90, 90))
    assert dict(box.extra) == {"first": [50, 50, 90, 90]}


@pytest.mark.parametrize("answer", ["[]", "I see nothing.", boxes(("cup", (0, 0, 20, 20)))])
def test_a_second_look_at_something_else_changes_nothing(answer: str) -> None:
    (box,) = second_look(answer)
    assert isinstance(box, Box)
    assert box.corners == pytest.approx((50, 50, 90, 90))
    assert dict(box.extra) == {}


def test_no_second_look_at_most_of_the_picture() -> None:
    assistant = ScriptedAssistant([boxes(("wall", (0, 0, 400, 400)))])
    assert len(locate(assistant, Image.new("RGB", (420, 420)), "wall", refine=True, min_tokens=None)) == 1
    assert len(assistant.asked) == 1


def test_a_second_look_at_a_point() -> None:
    answers = ['[{"point_2d": [210, 210], "label": "nose"}]', '[{"point_2d": [0, 0]}, {"point_2d": [56, 50]}]']
    assistant = ScriptedAssistant(answers)
    (point,) = locate(assistant, Image.new("RGB", (420, 420)), "nose", as_points=True, refine=True, min_tokens=None)
    assert assistant.asked[1].media[0].size == (106, 106)  # 157 to 263
    assert isinstance(point, Point)
    assert (point.x, point.y) == pytest.approx((157 + 56 / 112 * 106, 157 + 50 / 112 * 106))


def test_overlap() -> None:
    assert overlap(CUP, CUP) == 1
    assert overlap(CUP, JAR) == 0
    assert overlap(Box("", 0, 0, 10, 10, (0,) * 4), Box("", 5, 0, 15, 10, (0,) * 4)) == pytest.approx(1 / 3)


def test_reading_order_is_line_by_line() -> None:
    words = [
        ("d", 60, 41, 90, 60),
        ("b", 60, 3, 90, 18),
        ("a", 5, 0, 50, 20),
        ("c", 5, 40, 50, 58),
        ("e", 5, 80, 9, 99),
    ]
    order = reading_order([Box(name, *corners, (0,) * 4) for name, *corners in words])
    assert "".join(box.label for box in order) == "abcde"


# Drawing.


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


def crossing(plates: list[tuple[int, int, int, int]]) -> int:
    """How many pairs of labels overlap."""
    return sum(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for i, a in enumerate(plates) for b in plates[:i]
    )


def test_labels_do_not_overlap_where_there_is_room() -> None:
    stack = [Box(f"thing {i}", 100 + i, 100 + i, 160 + i, 160 + i, (0,) * 4) for i in range(40)]
    plates = label_plates((640, 480), stack, [(60, 16)] * 40)
    assert crossing(plates) == 0
    assert all(min(plate) >= 0 and plate[2] <= 640 and plate[3] <= 480 for plate in plates)
    near = [abs(x1 - 100) + abs(y1 - 100) for x1, y1, _, _ in plates]
    assert max(near) < 330  # none is sent across the picture
    points = [Point("p", 20 + i % 5, 20 + i % 3, (0, 0)) for i in range(30)]
    assert crossing(label_plates((640, 480), points, [(30, 14)] * 30)) == 0


def test_labels_in_a_picture_without_room() -> None:
    stack = [Box("thing", 0, 0, 30, 30, (0,) * 4) for _ in range(9)]
    plates = label_plates((40, 40), stack, [(38, 18)] * 9)
    assert len(plates) == 9
    assert crossing(plates[:2]) == 0
    assert label_plates((10, 10), stack[:1], [(38, 18)]) == [(0, 0, 38, 18)]


def test_drawing_confidence_and_polygons() -> None:
    place = Box("cup", 20, 40, 120, 90, (0,) * 4, confidence=0.5, polygon=((20, 40), (120, 45), (110, 90), (25, 85)))
    canvas = Image.new("RGB", (200, 100), "white")
    plain, told = draw_boxes(canvas, [place]), draw_boxes(canvas, [place], confidence=True)
    assert plain.tobytes() != told.tobytes()
    side = [plain.getpixel((70, y)) for y in range(38, 47)]
    assert side.index((0xD5, 0x5E, 0x00)) >= 3  # the polygon's side, not the rectangle's at 40
    with pytest.raises(OSError, match=r"resource|No such|open"):
        draw_boxes(canvas, [place], font="no-such-font.ttf")
