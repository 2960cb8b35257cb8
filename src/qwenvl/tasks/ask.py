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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl.tasks.answer import Answer, AnswerStream, Seen, answer_about
from qwenvl.tasks.grounding import frame_of
from qwenvl.types import Completion, SamplingParams

if TYPE_CHECKING:
    from PIL.Image import Image

    from qwenvl.engine import Engine, Request
    from qwenvl.engine.detokenizer import Decoder
    from qwenvl.media import Video
    from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
    from qwenvl.processing import Qwen2_5_VLProcessor, Qwen2VLProcessor
    from qwenvl.quantization import QuantizeOptions

    Model = Qwen2_5_VLForConditionalGeneration | Qwen2VLForConditionalGeneration
    Processor = Qwen2_5_VLProcessor | Qwen2VLProcessor
    Frame = Image | str | Path | bytes
    Media = Frame | Video | Sequence[Frame]
    Messages = list[dict[str, Any]]
    Tools = list[dict[str, Any]] | None


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

    def outcome(self, completion: Completion, seconds: float, tokenizer: Decoder) -> Answer | Exception:
        """The answer, or what preparing or computing raised."""
        error = self._error or (self._made[0].exception if self._made else None)
        if error is not None:
            return error
        assert self._made is not None
        return answer_about(self._made[1], completion, seconds, seconds, tokenizer)


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
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Answer:
        """The answer to a question about pictures and videos (any number, also none); greedy unless `sampling` says
        otherwise.

        media: pictures as `load_image` takes them, and videos: paths and addresses that end like one, lists of frames,
        what `read_video` returns. min_pixels, max_pixels: area limits of this question's pictures in place of the
        checkpoint's. Raises ValueError for what cannot be asked, such as a prompt that is too long.
        """
        messages = question_messages(media, question, system, min_pixels, max_pixels)
        return self.reply_many([messages], sampling)[0]

    def ask_many(
        self,
        questions: Sequence[tuple[Sequence[Media], str]],
        sampling: SamplingParams | None = None,
        *,
        system: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> list[Answer]:
        """Answers to (media, question) pairs, computed together and given in their order; each is as if asked
        alone. Pictures are fetched, decoded and resized while others are computed. Their `seconds` are those of the
        whole call."""
        limits = (min_pixels, max_pixels)
        return self.reply_many([question_messages(m, text, system, *limits) for m, text in questions], sampling)

    def stream(
        self,
        media: Sequence[Media],
        question: str,
        sampling: SamplingParams | None = None,
        *,
        system: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> AnswerStream:
        """As `ask`, piece by piece: iterate over it, then read its `answer`."""
        return self.stream_reply(question_messages(media, question, system, min_pixels, max_pixels), sampling)

    def reply(self, messages: Messages, sampling: SamplingParams | None = None, *, tools: Tools = None) -> Answer:
        """The next message of a conversation.

        messages: as the documents write them, {"role", "content"} with text, image and video items and their options;
        a growing conversation that is given again is computed from where it grew. One that ends with an assistant's
        message is gone on with, and the answer is what follows. tools: function schemas, written into the prompt.
        Raises ValueError for what cannot be asked.
        """
        return self.reply_many([messages], sampling, tools=tools)[0]

    def reply_many(
        self, conversations: Sequence[Messages], sampling: SamplingParams | None = None, *, tools: Tools = None
    ) -> list[Answer]:
        """The next messages of several conversations, computed together as in `ask_many`. Raises what the first that
        failed met with."""
        answers = []
        for outcome in self.reply_each(conversations, sampling, tools=tools):
            if isinstance(outcome, Exception):
                raise outcome
            answers.append(outcome)
        return answers

    def reply_each(
        self, conversations: Sequence[Messages], sampling: SamplingParams | None = None, *, tools: Tools = None
    ) -> list[Answer | Exception]:
        """As `reply_many`, but one that fails fails alone: in its place is what it met with."""
        started = time.perf_counter()
        jobs = [_Job(partial(self.prepare_reply, messages, sampling, tools=tools)) for messages in conversations]
        if len(jobs) == 1:  # without threads
            try:
                completions = self.engine.run([jobs[0]()])
            except Exception as error:
                return [error]
        else:
            completions = self.engine.run(jobs)
        seconds = time.perf_counter() - started
        tokenizer = self.processor.tokenizer
        return [job.outcome(completion, seconds, tokenizer) for job, completion in zip(jobs, completions, strict=True)]

    def stream_reply(
        self, messages: Messages, sampling: SamplingParams | None = None, *, tools: Tools = None
    ) -> AnswerStream:
        """As `reply`, piece by piece: iterate over it, then read its `answer`."""
        started = time.perf_counter()
        request, seen = self.prepare_reply(messages, sampling, tools=tools)
        return AnswerStream(self._pieces(request), request, seen, started, self.processor.tokenizer)

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
        return self.prepare_reply(question_messages(media, question, system), sampling)

    def prepare_reply(
        self, messages: Messages, sampling: SamplingParams | None = None, *, tools: Tools = None
    ) -> tuple[Request, Seen]:
        """The engine's request for the next message of a conversation, and what it is about."""
        import torch

        from qwenvl.engine import Request

        begun = bool(messages) and messages[-1].get("role") == "assistant"
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=not begun, continue_final_message=begun, tokenize=True, return_dict=True,
            return_tensors="pt", pixel_dtype=torch.uint8, tools=tools,
        )  # fmt: skip
        seen = Seen(inputs.image_sizes, inputs.video_sizes, inputs.video_times, frame_of(self))
        return Request.from_inputs(inputs, self.model.config, sampling), seen


def question_messages(
    media: Sequence[Media],
    question: str,
    system: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> list[dict[str, Any]]:
    """The conversation that asks a question about pictures and videos. ValueError where the question is empty.

    Pictures carry the area limits; with none given, the processor's hold.
    """
    from qwenvl.media.kinds import is_video

    if not question.strip():
        raise ValueError("the question is empty: write one")
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    given = {name: value for name, value in limits.items() if value is not None}
    content: list[dict[str, Any]] = []
    for item in media:
        kind = "video" if is_video(item) else "image"
        source = str(item) if isinstance(item, Path) else item
        content.append({"type": kind, kind: source, **(given if kind == "image" else {})})
    content.append({"type": "text", "text": question})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return messages
