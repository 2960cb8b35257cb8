"""One model loaded once and asked often: what the shell and most Python callers want.

In: a model's name or folder, then pictures, videos and questions. Out: Answer (text, ids, sizes, seconds), whole or
streamed.
It holds a processor, a model and an engine and adds no behaviour of its own: the three may be used alone just as well.

    assistant = Assistant("demo")
    assistant.ask(["drawing.png"], "How many circles are there?").text
    assistant.ask(["clip.mp4"], "When does the red circle appear?").text
    for piece in assistant.stream(["drawing.png"], "Describe the picture."):
        print(piece, end="")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl.tasks.grounding import Box, Point, parse_boxes, places_to_dicts
from qwenvl.types import Completion, ImageSize, SamplingParams

if TYPE_CHECKING:
    from PIL.Image import Image

    from qwenvl.engine import Engine, Request
    from qwenvl.media import Video
    from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
    from qwenvl.processing import Qwen2_5_VLProcessor, Qwen2VLProcessor
    from qwenvl.quantization import QuantizeOptions

    Model = Qwen2_5_VLForConditionalGeneration | Qwen2VLForConditionalGeneration
    Processor = Qwen2_5_VLProcessor | Qwen2VLProcessor
    Frame = Image | str | Path | bytes
    Media = Frame | Video | Sequence[Frame]


@dataclass
class Answer:
    """An answer and what it is about. sizes: of the pictures, in order; video_sizes and video_times (seconds
    of the frames) of the videos.

    seconds: from the question to the last token; first_token_seconds: to the first one. Loading is not counted.
    """

    completion: Completion
    sizes: list[ImageSize] = field(default_factory=list)
    video_sizes: list[ImageSize] = field(default_factory=list)
    video_times: list[tuple[float, ...]] = field(default_factory=list)
    seconds: float = 0.0
    first_token_seconds: float = 0.0

    @property
    def text(self) -> str:
        return self.completion.text

    def places(self, picture: int = 0) -> list[Box | Point]:
        """Boxes and points of the text, in original pixels of the picture of this index."""
        return parse_boxes(self.text, self.sizes[picture])

    def to_dict(self) -> dict[str, Any]:
        """For JSON. "places" is there when there is one picture, so that it is clear which one they lie in."""
        report: dict[str, Any] = {
            "answer": self.text,
            "finish_reason": self.completion.finish_reason,
            "prompt_tokens": self.completion.prompt_tokens,
            "answer_tokens": len(self.completion.token_ids),
            "seconds": round(self.seconds, 3),
            "first_token_seconds": round(self.first_token_seconds, 3),
            "sizes": [_size(s) for s in self.sizes],
        }
        if self.video_sizes:
            times = zip(self.video_sizes, self.video_times, strict=True)
            report["videos"] = [{**_size(s), "seconds": [round(t, 3) for t in moments]} for s, moments in times]
        if len(self.sizes) == 1:
            report["places"] = places_to_dicts(self.places())
        return report


def _size(size: ImageSize) -> dict[str, Any]:
    return {"width": size.width, "height": size.height, "resized": [size.resized_width, size.resized_height]}


@dataclass(frozen=True)
class Seen:
    """Sizes and times of what a question is about, as in Answer."""

    sizes: list[ImageSize]
    video_sizes: list[ImageSize]
    video_times: list[tuple[float, ...]]


class AnswerStream:
    """Pieces of text as they are written; `answer` is there once they have all been read."""

    def __init__(self, pieces: Iterator[str], request: Request, seen: Seen, started: float) -> None:
        self._pieces, self._request, self._seen, self._started = pieces, request, seen, started
        self._first: float | None = None

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if self._first is None:
                self._first = time.perf_counter() - self._started
            yield piece
        self._seconds = time.perf_counter() - self._started

    @property
    def answer(self) -> Answer:
        """The whole answer. ValueError while pieces are left to read."""
        return _answer(self._request.completion(), self._seen, self._seconds, self._first or self._seconds)


def _answer(completion: Completion, seen: Seen, seconds: float, first: float) -> Answer:
    return Answer(completion, seen.sizes, seen.video_sizes, seen.video_times, seconds, first)


def _engine(
    model: Model, processor: Processor, max_running: int, draft_tokens: int | None, memory: int | str | None = None
) -> Engine:
    from qwenvl.engine import Engine
    from qwenvl.engine.lookup import default_draft

    draft = default_draft(model) if draft_tokens is None else draft_tokens
    return Engine(model, processor.tokenizer, max_running=max_running, draft_tokens=draft, memory=memory)


class _Job:
    """A question that is prepared when it is called, in whatever thread; what came of it is kept."""

    def __init__(self, prepare: Callable[[], tuple[Request, Seen]]) -> None:
        self._prepare = prepare
        self._made: tuple[Request, Seen] | None = None
        self._error: Exception | None = None

    def __call__(self) -> Request:
        try:
            self._made = self._prepare()
        except Exception as error:
            self._error = error
            raise
        return self._made[0]

    def answer(self, completion: Completion, seconds: float) -> Answer:
        """Raises what preparing or computing raised."""
        error = self._error or (self._made[0].exception if self._made else None)
        if error is not None:
            raise error
        assert self._made is not None
        return _answer(completion, self._made[1], seconds, seconds)


class Assistant:
    """A model with its processor and an engine. Not thread-safe.

    model: "demo" (bundled), a checkpoint's folder, or its name on the hub. dtype: "auto" (the checkpoint's),
    "float32", "bfloat16" or "float16". min_pixels, max_pixels: area limits in place of the checkpoint's.
    max_running: how many questions of `ask_many` are computed together. quantize: "int8" or "int4" packs the weights
    while they are loaded (load_model). on_progress(bytes done, bytes in all) is told how far loading is. draft_tokens:
    most tokens guessed from the prompt and checked together; None = 8 where that cannot change an answer, else none.
    memory: what this process may have, bytes or such as "4GB": a question that can never fit in it is a ValueError.
    """

    def __init__(
        self,
        model: str | Path = "demo",
        *,
        dtype: str = "auto",
        device: str = "cpu",
        attn_implementation: str = "sdpa",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_running: int = 8,
        on_progress: Callable[[int, int], None] | None = None,
        quantize: str | QuantizeOptions | None = None,
        draft_tokens: int | None = None,
        memory: int | str | None = None,
    ) -> None:
        from qwenvl.checkpoint import load_model, resolve
        from qwenvl.processing import AutoProcessor

        folder = resolve(model)
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
        self.processor = AutoProcessor.from_pretrained(folder, **given)
        self.model = load_model(folder, dtype, attn_implementation, device, on_progress, quantize)
        self.engine = _engine(self.model, self.processor, max_running, draft_tokens, memory)

    @classmethod
    def from_parts(
        cls, model: Model, processor: Processor, max_running: int = 8, draft_tokens: int | None = None
    ) -> Assistant:
        """An assistant of a model and a processor that are loaded already."""
        assistant = cls.__new__(cls)
        assistant.model, assistant.processor = model, processor
        assistant.engine = _engine(model, processor, max_running, draft_tokens)
        return assistant

    def ask(
        self,
        media: Sequence[Media],
        question: str,
        sampling: SamplingParams | None = None,
        *,
        system: str | None = None,
    ) -> Answer:
        """The answer to a question about pictures and videos (any number, also none); greedy unless `sampling` says
        otherwise.

        media: pictures as `load_image` takes them, and videos: paths and addresses that end like one, lists of frames,
        what `read_video` returns. Raises ValueError for what cannot be asked, such as a prompt that is too long.
        """
        return self.ask_many([(media, question)], sampling, system=system)[0]

    def ask_many(
        self,
        questions: Sequence[tuple[Sequence[Media], str]],
        sampling: SamplingParams | None = None,
        *,
        system: str | None = None,
    ) -> list[Answer]:
        """Answers to (media, question) pairs, computed together and given in their order; each is as if asked
        alone. Pictures are fetched, decoded and resized while others are computed. Their `seconds` are those of the
        whole call."""
        started = time.perf_counter()
        jobs = [_Job(partial(self.prepare, media, text, sampling, system=system)) for media, text in questions]
        completions = self.engine.run([job() for job in jobs] if len(jobs) == 1 else jobs)
        seconds = time.perf_counter() - started
        return [job.answer(completion, seconds) for job, completion in zip(jobs, completions, strict=True)]

    def stream(
        self,
        media: Sequence[Media],
        question: str,
        sampling: SamplingParams | None = None,
        *,
        system: str | None = None,
    ) -> AnswerStream:
        """As `ask`, piece by piece: iterate over it, then read its `answer`."""
        started = time.perf_counter()
        request, seen = self.prepare(media, question, sampling, system=system)
        return AnswerStream(self._pieces(request), request, seen, started)

    def _pieces(self, request: Request) -> Iterator[str]:
        for event in self.engine.stream(request):
            if event.text:
                yield event.text
        if request.exception is not None:
            raise request.exception

    def prepare(
        self,
        media: Sequence[Media],
        question: str,
        sampling: SamplingParams | None = None,
        *,
        system: str | None = None,
    ) -> tuple[Request, Seen]:
        """The engine's request for a question, and what it is about."""
        import torch

        from qwenvl.engine import Request
        from qwenvl.media.kinds import is_video

        if not question.strip():
            raise ValueError("the question is empty: write one")
        content: list[dict[str, Any]] = []
        for item in media:
            kind = "video" if is_video(item) else "image"
            content.append({"type": kind, kind: str(item) if isinstance(item, Path) else item})
        content.append({"type": "text", "text": question})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            pixel_dtype=torch.uint8,
        )  # fmt: skip
        seen = Seen(inputs.image_sizes, inputs.video_sizes, inputs.video_times)
        return Request.from_inputs(inputs, self.model.config, sampling), seen
