"""What the answer to a page depends on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from qwenvl.tasks.parsing.pages import Budget
from qwenvl.types import LoopRule, SamplingParams

# What the models were trained on for documents.
SYSTEM = (
    "You are an AI specialized in recognizing and extracting text from images. Your mission is to analyze the image "
    "document and generate the result in QwenVL Document Parser HTML format using specified tags while maintaining "
    "user privacy and data integrity."
)
PROMPT = "QwenVL HTML "
TOKEN_PIXELS = 28 * 28  # of a picture, for one token
NUDGE = 64  # tokens that are drawn at random behind a loop


@dataclass(frozen=True)
class ParseSettings:
    """How pages are asked for. Every field is part of the key under which a finished page is known again.

    min_pixels, max_pixels: area that a page is brought to. dpi: of PDF pages, within these limits; None = 300.
    max_new_tokens: of one page's answer. loops: when an answer counts as one that repeats itself without end; None = it
    may. retries: how often such an answer goes on from behind the first copy, its next NUDGE tokens drawn with
    `temperature`, and greedily from there; 0 = the first copy is its end. text_layer: compare with the page's own text.
    skip_blank: a page of one colour is not asked about. frame: what the model's coordinates are in, "resized" pixels
    (Qwen2.5-VL) or "thousandths" (Qwen2-VL).
    """

    prompt: str = PROMPT
    system: str | None = SYSTEM
    min_pixels: int = 512 * TOKEN_PIXELS
    max_pixels: int = 2048 * TOKEN_PIXELS
    dpi: float | None = None
    max_new_tokens: int = 16384
    loops: LoopRule | None = field(default_factory=LoopRule)
    retries: int = 1
    temperature: float = 0.7
    text_layer: bool = False
    skip_blank: bool = True
    frame: Literal["resized", "thousandths"] = "resized"

    def __post_init__(self) -> None:
        checks: list[tuple[str, Any, bool, str]] = [
            ("prompt", self.prompt, bool(self.prompt.strip()), "what to ask for"),
            ("min_pixels", self.min_pixels, 1 <= self.min_pixels <= self.max_pixels, "1 to max_pixels"),
            ("dpi", self.dpi, self.dpi is None or (self.dpi > 0 and math.isfinite(self.dpi)), "above 0"),
            ("retries", self.retries, self.retries >= 0, "0 or more"),
            ("temperature", self.temperature, self.temperature > 0, "above 0"),
            ("frame", self.frame, self.frame in ("resized", "thousandths"), "resized or thousandths"),
        ]
        for name, value, good, wanted in checks:
            if not good:
                raise ValueError(f"{name}={value!r} is not valid: expected {wanted}")
        self.sampling(self.max_new_tokens)  # says what is wrong with the number

    @property
    def budget(self) -> Budget:
        """How large pages are drawn."""
        return Budget(self.min_pixels, self.max_pixels, self.dpi, self.text_layer)

    def sampling(self, most: int, nudge: int | None = None) -> SamplingParams:
        """How the next `most` tokens are chosen: greedily, or by chance where it is the nudge of this number."""
        if nudge is None:
            return SamplingParams(max_new_tokens=most, stop_loops=self.loops)
        few = min(most, NUDGE)
        return SamplingParams(max_new_tokens=few, temperature=self.temperature, seed=nudge, stop_loops=self.loops)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and for the key."""
        return asdict(self)
