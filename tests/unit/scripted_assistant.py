"""A stand-in for Assistant: the texts of a script, with the sizes that the pictures really have.

assistant = ScriptedAssistant(['[{"bbox_2d": [0, 0, 28, 28], "label": "dot"}]'])
assistant.ask([picture], "Where?").sizes       # as the processor would resize it
assistant.asked[0].question                    # what was asked
ScriptedAssistant(lambda asked: "yes" if "red" in asked.question else "no")
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwenvl.media import Video, VideoOptions, load_image, read_video, smart_resize
from qwenvl.media.kinds import is_video
from qwenvl.media.sampling import IMAGE_MAX_PIXELS, IMAGE_MIN_PIXELS
from qwenvl.tasks.answer import Answer
from qwenvl.tasks.ask import question_messages
from qwenvl.types import Completion, FinishReason, ImageSize, SamplingParams


@dataclass
class Asked:
    """One question as it came: the whole conversation, its last user text, its pictures and videos, and the options."""

    messages: list[dict[str, Any]]
    question: str
    media: list[Any]
    sampling: SamplingParams
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Written:
    """A scripted answer that needs more than its text. probability: of every token (logprobs when they are asked
    for)."""

    text: str
    finish_reason: FinishReason = "stop"
    probability: float = 0.5


class Characters:
    """A tokenizer of one id a character."""

    def decode(self, token_ids: Sequence[int], /, *, skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, token_ids))


@dataclass
class ScriptedAssistant:
    """answers: texts (or Written, or an exception to raise) in the order they are asked for, the last one again and
    again; or a function of Asked. min_pixels, max_pixels: the checkpoint's own limits."""

    answers: Sequence[str | Written | Exception] | Callable[[Asked], str | Written]
    min_pixels: int = IMAGE_MIN_PIXELS
    max_pixels: int = IMAGE_MAX_PIXELS
    asked: list[Asked] = field(default_factory=list)

    def ask(
        self, media: Sequence[Any], question: str, sampling: SamplingParams | None = None, **options: Any
    ) -> Answer:
        return self.reply(question_messages(media, question, **options), sampling)

    def ask_many(
        self, questions: Sequence[tuple[Sequence[Any], str]], sampling: SamplingParams | None = None, **options: Any
    ) -> list[Answer]:
        return [self.ask(media, text, sampling, **options) for media, text in questions]

    def reply(
        self,
        messages: list[dict[str, Any]],
        sampling: SamplingParams | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
    ) -> Answer:
        parts = [p for m in messages for p in ([] if isinstance(m["content"], str) else m["content"])]
        pictures = [p for p in parts if "image" in p]
        videos = [self._video(p) for p in parts if "video" in p]
        last = next(m for m in reversed(messages) if m["role"] in ("user", "tool"))["content"]
        text = last if isinstance(last, str) else "".join(p.get("text", "") for p in last)
        media = [p["image"] for p in pictures] + videos
        asked = Asked(messages, text, media, sampling or SamplingParams(), tools)
        self.asked.append(asked)
        written = self._next(asked)
        answer = Answer(
            self._completion(written, asked.sampling), [self._size(p) for p in pictures], tokenizer=Characters()
        )
        for video in videos:
            high, wide = video.frames.shape[1:3]
            answer.video_sizes.append(ImageSize(video.width, video.height, wide, high))
            answer.video_times.append(video.times)
        return answer

    def reply_many(
        self, conversations: Sequence[list[dict[str, Any]]], sampling: SamplingParams | None = None, **options: Any
    ) -> list[Answer]:
        return [self.reply(messages, sampling, **options) for messages in conversations]

    def reply_each(
        self, conversations: Sequence[list[dict[str, Any]]], sampling: SamplingParams | None = None, **options: Any
    ) -> list[Answer | Exception]:
        outcomes: list[Answer | Exception] = []
        for messages in conversations:
            try:
                outcomes.append(self.reply(messages, sampling, **options))
            except ValueError as error:
                outcomes.append(error)
        return outcomes

    def stream_reply(
        self, messages: list[dict[str, Any]], sampling: SamplingParams | None = None, **options: Any
    ) -> ScriptedStream:
        return ScriptedStream(self.reply(messages, sampling, **options))

    def stream(
        self, media: Sequence[Any], question: str, sampling: SamplingParams | None = None, **options: Any
    ) -> ScriptedStream:
        return ScriptedStream(self.ask(media, question, sampling, **options))

    def _next(self, asked: Asked) -> Written:
        if callable(self.answers):
            found: str | Written | Exception = self.answers(asked)
        else:
            found = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(found, Exception):
            raise found
        return found if isinstance(found, Written) else Written(found)

    @staticmethod
    def _completion(written: Written, sampling: SamplingParams) -> Completion:
        ids = [ord(char) for char in written.text]
        logprobs = [math.log(written.probability)] * len(ids) if sampling.logprobs else None
        return Completion(ids, written.text, written.finish_reason, logprobs, prompt_tokens=1)

    def _size(self, item: dict[str, Any]) -> ImageSize:
        picture = load_image(item["image"])
        return self._fit(picture.width, picture.height, item)

    def _fit(self, width: int, height: int, item: dict[str, Any]) -> ImageSize:
        least, most = item.get("min_pixels", self.min_pixels), item.get("max_pixels", self.max_pixels)
        high, wide = smart_resize(height, width, min_pixels=least, max_pixels=most)
        return ImageSize(width, height, wide, high)

    @staticmethod
    def _video(item: dict[str, Any]) -> Video:
        source = item["video"]
        if isinstance(source, Video):
            return source
        names = ("fps", "nframes", "max_frames", "min_pixels", "max_pixels", "total_pixels", "video_start", "video_end")
        assert is_video(source)
        return read_video(source, VideoOptions(**{name: item[name] for name in names if name in item}))


@dataclass
class ScriptedStream:
    """The answer word by word."""

    answer: Answer

    def __iter__(self) -> Iterator[str]:
        yield from re.findall(r"\s*\S+|\s+$", self.answer.text)
