"""One page's picture -> its Page: asked, watched for loops, read.

`answer_page` is a generator that gives control back after every piece of text, so that several pages can be answered in
turn by one engine, which computes them together. What goes wrong is told in the Page.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from qwenvl.tasks.ask import question_messages
from qwenvl.tasks.documents import Page, read_answer
from qwenvl.tasks.parsing.agreement import agreement, counting
from qwenvl.tasks.parsing.pages import PageImage
from qwenvl.tasks.parsing.settings import ParseSettings
from qwenvl.types import ImageSize, SamplingParams

if TYPE_CHECKING:
    from PIL.Image import Image

    from qwenvl.tasks.answer import Answer, Stream

ONE_COLOUR = 8  # levels of grey by which a blank page may differ


class Replies(Protocol):
    """What is needed of whoever answers; Assistant has it. A conversation that ends with an assistant's message is gone
    on with. Streams that are read in turn are computed together."""

    def stream_reply(self, messages: list[dict[str, Any]], sampling: SamplingParams | None = None) -> Stream: ...


@dataclass
class _Written:
    """What came of a question, of several answers where it was asked to go on."""

    text: str = ""
    finish_reason: str = ""
    size: ImageSize | None = None
    tokens: int = 0
    prompt_tokens: int = 0
    loops: int = 0
    seconds: float = field(default=0.0)


def answer_page(assistant: Replies, page: PageImage, settings: ParseSettings) -> Generator[None, None, Page]:
    """The Page of a picture. Raises what asking raises."""
    size = ImageSize(*page.image.size, *page.image.size)
    known: dict[str, Any] = {}
    points = None
    if page.place is not None:
        points = page.place.points
        known["pdf"] = {"box": list(page.place.box), "rotation": page.place.rotation}
    if settings.skip_blank and is_blank(page.image):
        return Page(page.number, size, points=points, metadata={**known, "finish_reason": "blank"})
    written = yield from _written(assistant, page.image, settings)
    blocks = tuple(read_answer(written.text, written.size or size, frame=settings.frame))
    known |= {
        "finish_reason": written.finish_reason,
        "prompt_tokens": written.prompt_tokens,
        "answer_tokens": written.tokens,
        "seconds": round(written.seconds, 3),
        "loops": written.loops,
    }
    done = Page(page.number, written.size or size, blocks, written.text, points, _why_not_whole(written), known)
    if settings.text_layer:
        known["text_layer"] = agreement(done.text(), page.text)
    return done


def failed_page(number: int, error: Exception) -> Page:
    """The Page of one that could not be had or answered."""
    says = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return Page(number, None, error=" ".join(says.split()))


def has_failed(page: Page) -> bool:
    """Whether a page has no answer, so that it is worth another try."""
    return "finish_reason" not in page.metadata


def is_blank(image: Image) -> bool:
    """Whether a page is of one colour, but for noise that cannot be seen."""
    low, high = image.convert("L").getextrema()
    return float(high) - float(low) <= ONE_COLOUR  # type: ignore[arg-type]


def _written(assistant: Replies, image: Image, settings: ParseSettings) -> Generator[None, None, _Written]:
    """Ask, and go on from behind a loop as often as the settings say."""
    limits = (settings.min_pixels, settings.max_pixels)
    question = question_messages([image], settings.prompt, settings.system, *limits)
    done = _Written()
    nudges = 0
    sampling = settings.sampling(settings.max_new_tokens)
    while True:
        begun = [{"role": "assistant", "content": done.text}] if done.text else []
        stream = assistant.stream_reply([*question, *begun], sampling)
        for _ in stream:
            yield
        _add(done, stream.answer)
        left = settings.max_new_tokens - done.tokens
        nudged = sampling.temperature > 0
        if left < 1 or not done.text:
            return done
        if done.finish_reason == "loop" and nudges < settings.retries:
            nudges += 1
            sampling = settings.sampling(left, nudge=nudges)
        elif done.finish_reason == "length" and nudged:
            sampling = settings.sampling(left)
        else:
            return done


def _add(done: _Written, answer: Answer) -> None:
    completion = answer.completion
    done.size = done.size or (answer.sizes[0] if answer.sizes else None)
    done.prompt_tokens = done.prompt_tokens or completion.prompt_tokens
    done.text += completion.text
    done.tokens += len(completion.token_ids)
    done.finish_reason = completion.finish_reason
    done.loops += completion.finish_reason == "loop"
    done.seconds += answer.seconds


def _why_not_whole(written: _Written) -> str:
    """What is said of an answer that did not end by itself; "" of one that did."""
    if written.finish_reason == "loop":
        return "the answer repeated itself without end: it was cut behind the first copy, and what follows is missing"
    if written.finish_reason != "length":
        return ""
    piece = counting(written.text)
    if piece:
        shown = " ".join(piece.split())[:60]
        return f"the answer went on counting until {written.tokens} tokens: {shown!r}; the page may hold fewer of them"
    return f"the answer was cut off after {written.tokens} tokens: raise max_new_tokens"
