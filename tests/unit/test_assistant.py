"""Assistant: questions in, answers with sizes out (a scripted model, the real engine, no checkpoint)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from scripted import ASK, IMAGE, ByteTokenizer, ScriptedModel, script

from qwenvl.engine import Engine
from qwenvl.processing import BatchFeature
from qwenvl.tasks import Answer, Assistant, Box
from qwenvl.tasks.answer import token_offsets
from qwenvl.tasks.ask import question_messages
from qwenvl.types import Completion, Grammar, ImageSize, SamplingParams

BOXES = '[{"bbox_2d": [14, 14, 28, 28], "label": "dot"}]'


class Processor:
    """Renders [system] pictures question as bytes; every picture is seen as 56 x 28 pixels, two tokens."""

    tokenizer = ByteTokenizer()

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> BatchFeature:
        assert options["tokenize"]
        assert options["add_generation_prompt"]
        system = "".join(m["content"] for m in messages if m["role"] == "system")
        content = messages[-1]["content"]
        pictures = [part["image"] for part in content if part["type"] == "image"]
        assert all(isinstance(picture, Image.Image) for picture in pictures)
        ids = [*system.encode(), *[IMAGE, IMAGE] * len(pictures), *content[-1]["text"].encode(), ASK]
        inputs = {"input_ids": torch.tensor([ids])}
        if pictures:
            inputs["image_grid_thw"] = torch.tensor([[1, 2, 4]] * len(pictures))
            inputs["pixel_values"] = torch.full((8 * len(pictures), 1176), 1000.0)
        return BatchFeature(inputs, [ImageSize(picture.width, picture.height, 56, 28) for picture in pictures])


@pytest.fixture
def assistant() -> Assistant:
    model = ScriptedModel(script({"Hi": "Hello there", "Where?": BOXES, "Be brief.Hi": "Hi"}))
    model.config.vision_config.patch_size = 14
    return Assistant.from_parts(model, Processor(), max_running=2)  # type: ignore[arg-type]


def test_an_answer_without_a_picture(assistant: Assistant) -> None:
    answer = assistant.ask([], "Hi")
    assert (answer.text, answer.sizes, answer.completion.finish_reason) == ("Hello there", [], "stop")
    assert answer.to_dict()["answer_tokens"] == 11
    assert "places" not in answer.to_dict()


@pytest.mark.feature(86)
def test_places_are_in_pixels_of_the_picture_given(assistant: Assistant) -> None:
    answer = assistant.ask([Image.new("RGB", (112, 112))], "Where?")
    assert answer.sizes == [ImageSize(112, 112, 56, 28)]
    assert answer.places() == [Box("dot", 28, 56, 56, 112, (14, 14, 28, 28))]
    assert answer.to_dict()["places"][0]["box"] == [28, 56, 56, 112]
    assert answer.to_dict()["sizes"] == [{"width": 112, "height": 112, "resized": [56, 28]}]


@pytest.mark.feature(96)
def test_the_stream_says_the_same_piece_by_piece(assistant: Assistant) -> None:
    stream = assistant.stream([], "Hi")
    with pytest.raises(ValueError, match="not finished"):
        _ = stream.answer
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.answer.text == assistant.ask([], "Hi").text
    assert 0 < stream.answer.first_token_seconds <= stream.answer.seconds


def test_many_questions_are_answered_in_their_order(assistant: Assistant) -> None:
    picture = Image.new("RGB", (56, 28))
    answers = assistant.ask_many([([], "Hi"), ([picture], "Where?"), ([], "Hi")])
    assert [answer.text for answer in answers] == ["Hello there", BOXES, "Hello there"]
    assert [len(answer.sizes) for answer in answers] == [0, 1, 0]


def test_sampling_and_system_reach_the_engine(assistant: Assistant) -> None:
    assert assistant.ask([], "Hi", SamplingParams(max_new_tokens=3)).text == "Hel"
    assert assistant.ask([], "Hi", system="Be brief.").text == "Hi"


def test_what_cannot_be_answered_raises(assistant: Assistant) -> None:
    with pytest.raises(ValueError, match="question is empty"):
        assistant.ask([], "  ")
    assistant.engine = Engine(assistant.model, Processor.tokenizer, capacity=2)
    with pytest.raises(ValueError, match="capacity"):
        assistant.ask([], "Hi")
    with pytest.raises(ValueError, match="capacity"):
        list(assistant.stream([], "Hi"))


def test_a_reply_is_the_answer_to_the_same_conversation(assistant: Assistant) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    assert assistant.reply(messages).text == "Hi" == assistant.ask([], "Hi", system="Be brief.").text
    stream = assistant.stream_reply(messages)
    assert "".join(stream) == "Hi" == stream.answer.text


def test_limits_of_a_question_are_those_of_its_pictures() -> None:
    picture, clip = Image.new("RGB", (40, 40)), [Image.new("RGB", (40, 40))] * 2
    (message,) = question_messages([picture, clip], "Which?", None, 784, None)
    assert [part.get("min_pixels") for part in message["content"]] == [784, None, None]
    assert not any("max_pixels" in part for part in message["content"])


def test_every_token_knows_what_it_wrote() -> None:
    text = "a\N{EURO SIGN}b"
    assert token_offsets(ByteTokenizer(), list(text.encode())) == [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert token_offsets(ByteTokenizer(), list(text.encode())[:3]) == [(0, 1), (1, 2), (1, 2)]  # cut inside a character
    assert token_offsets(ByteTokenizer(), [300, 97]) == [(0, 5), (5, 6)]  # control tokens count
    answer = Answer(Completion([300, 97], "a"), tokenizer=ByteTokenizer())
    assert (answer.text, answer.raw, answer.offsets) == ("a", "<300>a", [(0, 5), (5, 6)])
    with pytest.raises(ValueError, match="tokenizer"):
        _ = Answer(Completion([97], "a")).offsets


@pytest.mark.parametrize("count", [1, 3])
def test_a_question_that_fails_fails_alone(assistant: Assistant, count: int) -> None:
    """reply_each gives the error in its place; reply_many raises it. So it is with what only the engine refuses."""
    bad = question_messages(["no picture"], "Hi")
    asked = [question_messages([], "Hi")] * (count - 1) + [bad]
    outcomes = assistant.reply_each(asked)
    assert [one.text for one in outcomes[:-1] if isinstance(one, Answer)] == ["Hello there"] * (count - 1)
    assert isinstance(outcomes[-1], AssertionError)
    with pytest.raises(AssertionError):
        assistant.reply_many(asked)
    refused = SamplingParams(grammar=Grammar("lark", "start: undefined_rule"))
    outcomes = assistant.reply_each([question_messages([], "Hi")] * count, refused)
    assert all(isinstance(one, ValueError) for one in outcomes)
    assert assistant.ask([], "Hi").text == "Hello there"
