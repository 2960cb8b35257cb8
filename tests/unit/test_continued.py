"""A conversation that ends with an assistant's message is gone on with; a real engine parses pages together."""

from __future__ import annotations

from typing import Any

import pytest
from pdf_files import PdfPage, pdf_bytes

from qwenvl.demo.samples import PICTURES
from qwenvl.tasks import Assistant
from qwenvl.tasks.ask import question_messages
from qwenvl.tasks.parsing import ParseSettings, parse


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant("demo")


def test_an_answer_is_gone_on_with(assistant: Assistant) -> None:
    question = question_messages([PICTURES / "three-shapes.png"], "Describe the picture.")
    whole = assistant.reply(question).text
    cuts = [place for place, character in enumerate(whole) if character == " "]  # the same tokens on both sides
    assert cuts
    for cut in (cuts[0], cuts[-1]):
        begun = [*question, {"role": "assistant", "content": whole[:cut]}]
        assert whole[:cut] + assistant.reply(begun).text == whole


def test_pages_are_computed_together(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdfium2")
    running: list[int] = []
    step = assistant.engine.step

    def watched() -> Any:
        events = step()
        running.append(len(assistant.engine._scheduler.running))
        return events

    monkeypatch.setattr(assistant.engine, "step", watched)
    pages = [PdfPage(marks=[(20, 300, 100, 10 + 40 * i, (1, 0, 0))]) for i in range(4)]
    settings = ParseSettings(
        min_pixels=100, max_pixels=40_000, max_new_tokens=40, prompt="Describe the picture.", system=None
    )
    document = parse(assistant, pdf_bytes(pages), settings=settings, together=3)
    assert max(running) == 3
    assert [page.number for page in document.pages if page.answer] == [1, 2, 3, 4]
