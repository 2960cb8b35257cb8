"""A stand-in for a model: answers that were written by hand, with the sizes that the pictures would have.

It is for what the bundled model was never taught, so that a cookbook can show what becomes of an answer. Whatever uses
it says so (`Setting.assistant_or`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qwenvl import Completion, ImageSize, SamplingParams, load_image, smart_resize
from qwenvl.tasks import Answer


@dataclass(frozen=True)
class Asked:
    """A question as it came: its text, and the sizes of its pictures. number: how many were asked before."""

    text: str
    sizes: list[ImageSize]
    number: int


@dataclass
class Scripted:
    """The part of an Assistant that the tasks use. write(asked) -> the text of the answer."""

    write: Callable[[Asked], str]
    answered: int = 0

    def reply(
        self, messages: list[dict[str, Any]], sampling: SamplingParams | None = None, *, tools: Any = None
    ) -> Answer:
        parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
        sizes = [_size(part) for part in parts if "image" in part]
        text = "".join(part["text"] for part in parts if "text" in part)
        written = self.write(Asked(text, sizes, self.answered))
        self.answered += 1
        return Answer(Completion([ord(char) for char in written], written), sizes)

    def ask(
        self, media: Sequence[Any], question: str, sampling: SamplingParams | None = None, **options: Any
    ) -> Answer:
        content = [{"type": "image", "image": item, **options} for item in media]
        return self.reply([{"role": "user", "content": [*content, {"type": "text", "text": question}]}], sampling)

    def ask_many(
        self, questions: Sequence[tuple[Sequence[Any], str]], sampling: SamplingParams | None = None, **options: Any
    ) -> list[Answer]:
        return [self.ask(media, text, sampling, **options) for media, text in questions]

    def stream_reply(
        self, messages: list[dict[str, Any]], sampling: SamplingParams | None = None, *, tools: Any = None
    ) -> ScriptedStream:
        return ScriptedStream(self.reply(messages, sampling, tools=tools))


@dataclass
class ScriptedStream:
    """The answer in pieces of a few words."""

    answer: Answer

    def __iter__(self) -> Iterator[str]:
        yield from re.findall(r"(?s).{1,24}", self.answer.text)


Call = tuple[str, dict[str, Any]]  # a thought, and the arguments of a call; coordinates in pixels of the screen


def calls(tool: str, steps: Sequence[Call], screen: tuple[int, int]) -> Callable[[Asked], str]:
    """Answers that call a tool, one after the other, as checkpoints write them: coordinates in pixels of the screenshot
    as it is seen."""

    def write(asked: Asked) -> str:
        thought, arguments = steps[min(asked.number, len(steps) - 1)]
        seen = asked.sizes[-1]
        if "coordinate" in arguments:
            x, y = arguments["coordinate"]
            place = [round(x * seen.resized_width / screen[0]), round(y * seen.resized_height / screen[1])]
            arguments = {**arguments, "coordinate": place}
        call = json.dumps({"name": tool, "arguments": arguments})
        return f"{thought}\n<tool_call>\n{call}\n</tool_call>".strip()

    return write


def _size(part: dict[str, Any]) -> ImageSize:
    picture = load_image(part["image"])
    limits = {name: part[name] for name in ("min_pixels", "max_pixels") if part.get(name) is not None}
    high, wide = smart_resize(picture.height, picture.width, **limits)
    return ImageSize(picture.width, picture.height, wide, high)
