"""plan(): what a question needs on this machine, and what to change where it does not fit.

    >>> found = plan("demo", ["drawing.png"], "How many circles are there?")
    >>> found.prompt_tokens, found.fits
    (174, True)

Bytes are those of the process that answers (mapped weights count once they are read). Seconds are those of a model that
is loaded and has answered before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl.config import load_config
from qwenvl.machine import available_memory, parse_bytes
from qwenvl.planning.media import Header, Item, Limits, read_header, see_all
from qwenvl.planning.memory import FIXED, Config, Sizes, piece
from qwenvl.planning.weights import Weights, weights_of

if TYPE_CHECKING:
    from qwenvl.planning.seconds import Seconds
    from qwenvl.processing import Qwen2_5_VLProcessor

TOKENIZER = 10.0  # bytes of memory for a byte of tokenizer.json, measured 9.9 with 151,643 entries
TOKEN_BUDGET, VISION_BUDGET = 2048, 4096  # of the engine
QUESTION = "Describe the picture."


@dataclass(frozen=True)
class Bytes:
    """Memory of the answering process. base: Python, torch and the tokenizer; weights: all of them, in their
    precision, and touched: those that are read; media: pictures as they came and as patches, with their embeddings;
    cache: keys and values of prompt and answer; tower, prefill: the largest step of each; peak: the most at once."""

    base: int
    weights: int
    touched: int
    media: int
    cache: int
    tower: int
    prefill: int
    peak: int


@dataclass(frozen=True)
class Plan:
    """What a question needs. available: bytes that may be used (memory=, else what this machine has now; None: not
    known). seconds: None where they were not asked for. advice: what to change, each with what it makes of the peak;
    empty where it fits."""

    model: str
    dtype: str
    quantize: str | None
    items: tuple[Item, ...]
    text_tokens: int
    answer_tokens: int
    context: int
    bytes: Bytes
    available: int | None
    seconds: Seconds | None = None
    advice: tuple[str, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of text, pictures and videos."""
        return self.text_tokens + sum(item.tokens for item in self.items)

    @property
    def peak_bytes(self) -> int:
        return self.bytes.peak

    @property
    def fits(self) -> bool | None:
        """Whether the peak is within what is available; None where that is not known."""
        return None if self.available is None else self.bytes.peak <= self.available

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        items = [
            {"name": i.name, "kind": i.kind, "size": list(i.size), "resized": list(i.resized), "frames": i.frames,
             "grid": list(i.grid), "tokens": i.tokens}
            for i in self.items
        ]  # fmt: skip
        seconds = None
        if self.seconds is not None:
            seconds = {**asdict(self.seconds), "first_token": self.seconds.first_token}
            seconds = {name: round(value, 5) for name, value in seconds.items()}
        return {
            "model": self.model, "dtype": self.dtype, "quantize": self.quantize, "items": items,
            "prompt_tokens": self.prompt_tokens, "text_tokens": self.text_tokens, "answer_tokens": self.answer_tokens,
            "context": self.context, "bytes": asdict(self.bytes), "available_bytes": self.available, "fits": self.fits,
            "seconds": seconds, "advice": list(self.advice),
        }  # fmt: skip


@dataclass(frozen=True)
class Case:
    """All that the figures of a plan follow from: nothing here reads a file. base: bytes of the process before weights.
    text_tokens: of the prompt without pictures."""

    config: Config
    weights: Weights
    items: tuple[Item, ...]
    text_tokens: int
    answer_tokens: int
    base: int

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.config, self.weights.itemsize, self.weights.text is not None)

    @property
    def prompt_tokens(self) -> int:
        return self.text_tokens + sum(item.tokens for item in self.items)

    def bytes(self) -> Bytes:
        """The peak is that of the widest moment: pictures are read and cut one after the other, then the tower runs an
        item at a time, then the prompt is computed a chunk at a time; weights and what was made stay."""
        sizes = self.sizes
        held = sum(item.held_bytes for item in self.items)
        embeds = sum(sizes.embeds(item.patches) for item in self.items)
        reading = max((item.reading_bytes - item.held_bytes for item in self.items), default=0)
        tower = max((sizes.tower(piece(item.grid, VISION_BUDGET)) for item in self.items), default=0)
        prefill = sizes.prefill(min(self.prompt_tokens, TOKEN_BUDGET))
        cache = sizes.cache(self.prompt_tokens + self.answer_tokens - 1)
        steady = self.base + FIXED + self.weights.touched + held
        peak = steady + max(reading, tower + embeds, prefill + embeds + cache)
        return Bytes(self.base, self.weights.total, self.weights.touched, held + embeds, cache, tower, prefill, peak)


def plan(
    model: str | Path,
    media: Sequence[str | Path] = (),
    question: str = QUESTION,
    *,
    max_new_tokens: int = 512,
    limits: Limits | None = None,
    dtype: str = "auto",
    quantize: str | None = None,
    memory: int | str | None = None,
    system: str | None = None,
    timing: bool = True,
    calibrate: bool = False,
) -> Plan:
    """The plan of one question, from headers alone.

    model, media, question, system, dtype, quantize: as for Assistant and ask(). limits: of pictures and videos.
    max_new_tokens: of the answer; its time is that of all of them. memory: bytes that may be used, or such as "4GB";
    None: what this machine has. timing=False leaves the seconds out; calibrate=True measures the machine anew in place
    of taking the figures that are kept. Raises ValueError for a model or media that cannot be read, options that are
    not known and limits that make no sense.
    """
    from qwenvl.checkpoint import resolve
    from qwenvl.planning.calibration import base_bytes
    from qwenvl.processing import AutoProcessor

    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} is not valid: expected at least 1")
    room = available_memory() if memory is None else parse_bytes(memory)
    limits = limits or Limits()
    folder = resolve(model)
    config = load_config(folder)
    weights = weights_of(folder, config, dtype, quantize)
    processor = AutoProcessor.from_pretrained(folder)
    headers = [read_header(source) for source in media]
    table = folder / "tokenizer.json"
    vocabulary = int(TOKENIZER * table.stat().st_size) if table.is_file() else 0
    case = Case(
        config,
        weights,
        tuple(see_all(headers, processor.image_processor, processor.video_processor, limits)),
        text_tokens(processor, headers, question, system),
        max_new_tokens,
        base_bytes(calibrate) + vocabulary,
    )
    seconds = _seconds(case, calibrate) if timing else None
    found = Plan(
        str(model), weights.dtype, quantize, case.items, case.text_tokens, max_new_tokens,
        config.text_config.context_length, case.bytes(), room, seconds,
    )  # fmt: skip
    if found.fits is not False:
        return found
    from qwenvl.planning.advice import Choices, advise

    def weigh(word: str | None) -> Weights:
        return weights_of(folder, config, dtype, word)

    choices = Choices(headers, processor.image_processor, processor.video_processor, limits, quantize, weigh)
    assert room is not None
    return replace(found, advice=tuple(advise(case, choices, room)))


def text_tokens(processor: Qwen2_5_VLProcessor, headers: Sequence[Header], question: str, system: str | None) -> int:
    """Tokens of the prompt beside those of its pictures and videos."""
    if not question.strip():
        raise ValueError("the question is empty: write one")
    content: list[dict[str, Any]] = [{"type": header.kind, header.kind: header.name} for header in headers]
    messages: list[dict[str, Any]] = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return len(processor.tokenizer.encode(text)) - len(headers)


def _seconds(case: Case, calibrate: bool) -> Seconds:
    from qwenvl.planning.calibration import speeds
    from qwenvl.planning.seconds import estimate

    found = speeds(case.config, case.weights, calibrate)
    return estimate(
        case.config,
        case.weights,
        found,
        case.items,
        case.prompt_tokens,
        case.answer_tokens,
        TOKEN_BUDGET,
        VISION_BUDGET,
    )
