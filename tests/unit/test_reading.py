"""Text of pictures, whole and with boxes (inventory row 87)."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from scripted_assistant import ScriptedAssistant, Written

from qwenvl.tasks.reading import read_text, spot_text

PICTURE = Image.new("RGB", (280, 140))
LINES = json.dumps(
    [
        {"bbox_2d": [28, 84, 140, 112], "text_content": "second"},
        {"bbox_2d": [28, 28, 140, 56], "text_content": "first"},
        {"bbox_2d": [28, 28, 140, 56], "text_content": "first"},
        {"bbox_2d": [28, 28, 140, 56], "text_content": ""},
    ]
)


@pytest.mark.feature(87)
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("NO ENTRY\nexcept bicycles\n", "NO ENTRY\nexcept bicycles"),
        ("```\nprint('a')\n```", "print('a')"),
        ("```python\nx = 1\n\ny = 2\n```\n", "x = 1\n\ny = 2"),
        ("Run ```ls``` now", "Run ```ls``` now"),
        ("", ""),
    ],
)
def test_the_whole_text(answer: str, text: str) -> None:
    assistant = ScriptedAssistant([answer])
    assert read_text(assistant, PICTURE) == text
    assert assistant.asked[0].question == "Read all the text in the image."
    assert assistant.asked[0].messages[0]["content"][0]["min_pixels"] == 1024 * 784


@pytest.mark.feature(87)
@pytest.mark.parametrize("level", ["line", "word"])
def test_spotting(level: str) -> None:
    assistant = ScriptedAssistant([Written(LINES, probability=0.25)], max_pixels=300 * 300)
    boxes = spot_text(assistant, PICTURE, level)  # type: ignore[arg-type]
    assert [(box.label, box.corners) for box in boxes] == [
        ("second", (28, 84, 140, 112)),
        ("first", (28, 28, 140, 56)),
    ]
    assert [box.confidence for box in boxes] == pytest.approx([0.25, 0.25])
    wanted = f"Spotting all the text in the image with {level}-level, and output in JSON format."
    assert assistant.asked[0].question == wanted
    ordered = spot_text(assistant, PICTURE, level, in_reading_order=True, confidence=False)  # type: ignore[arg-type]
    assert [box.label for box in ordered] == ["first", "second"]
    assert ordered[0].confidence is None
    assert not assistant.asked[1].sampling.logprobs


def test_another_level_is_refused() -> None:
    with pytest.raises(ValueError, match="level='page' is not known: expected 'line' or 'word'"):
        spot_text(ScriptedAssistant(["[]"]), PICTURE, "page")  # type: ignore[arg-type]
