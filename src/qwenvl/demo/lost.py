"""What packing a model's weights lost: its answers before, then what the packed model makes of the same prompts.

The answers and logits of the model as it was are taken first, so that both need never be in memory:

    before = ask(Assistant(folder), asked, 32)
    compare(Assistant(packed), before).to_dict()

For any model: the samples that come with the package, or the caller's own pictures. For the bundled model: fresh
pictures of its world, which it knows, and then answers are also compared by meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwenvl.demo.agreement import ALL, same_meaning
from qwenvl.demo.divergence import Divergence, answer_logits, divergence_from
from qwenvl.demo.evaluate import TASKS, held_out, media_of
from qwenvl.demo.samples import PICTURES
from qwenvl.types import SamplingParams

if TYPE_CHECKING:
    from qwenvl.engine import Request
    from qwenvl.tasks import Assistant

PROMPTS = (
    "Describe this image.",
    "What is in the picture, and where?",
    "How many things are there in the picture? Name their colours.",
    "Locate everything in the picture and give the boxes as JSON.",
    "Is there any text in the picture? If so, read it.",
)
SEED = 2_000  # of the questions that a loss is measured on


@dataclass(frozen=True)
class Asked:
    """A question about pictures or videos. kind: of agreement.same_meaning; "" compares plain text."""

    media: Sequence[Any]
    question: str
    kind: str = ""


@dataclass(frozen=True)
class Before:
    """What a model answered. logits: of each answer, float32 [tokens, vocabulary] as answer_logits() gives them."""

    asked: list[Asked]
    requests: list[Request]
    logits: list[Tensor]
    texts: list[str]


@dataclass(frozen=True)
class Lost:
    """divergence: of the next tokens, on the answers given before. same_letters, same_meaning: how many of `answers`
    free-running answers stayed the same."""

    divergence: Divergence
    answers: int
    same_letters: int
    same_meaning: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Divergences in nats."""
        found = self.divergence
        return {
            "mean_divergence": found.mean, "worst_divergence": found.worst, "same_likeliest_token": found.agreement,
            "tokens": found.tokens, "answers": self.answers, "same_answers": self.same_letters,
            "same_meanings": self.same_meaning,
        }  # fmt: skip

    def __str__(self) -> str:
        """Example: KL 0.0069 nats (worst 1.47), same likeliest token 98.6 % of 5,849, same answer 8 of 10"""
        found = self.divergence
        said = f"KL {found.mean:.2g} nats (worst {found.worst:.2g})"
        share = f"same likeliest token {100 * found.agreement:.1f} % of {found.tokens:,}"
        return f"{said}, {share}, same answer {self.same_letters} of {self.answers}"


def of_the_world(count: int, seed: int) -> list[Asked]:
    """`count` questions of the bundled model's world, of all its tasks in turn."""
    asked, names = [], list(TASKS)
    for i in range(count):
        scene, exchange = held_out(names[i % len(names)], seed, i // len(names))
        asked.append(Asked(media_of(scene), exchange.question, exchange.kind))
    return asked


def about(media: Sequence[Any], questions: Sequence[str], count: int) -> list[Asked]:
    """Up to `count` pairs of a picture or video and a question, as many different pictures as there are."""
    most = min(count, len(media) * len(questions))
    pairs = ((i % len(media), (i % len(media) + i // len(media)) % len(questions)) for i in range(most))
    return [Asked([media[i]], questions[j]) for i, j in pairs]


def samples() -> list[Any]:
    """The pictures that come with the package."""
    return sorted(PICTURES.glob("*.png"))


def prepared(assistant: Assistant, asked: Sequence[Asked], max_new_tokens: int) -> list[Request]:
    """Requests for the questions, answered greedily."""
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    requests = [assistant.prepare(one.media, one.question, sampling)[0] for one in asked]
    assistant.engine.run(requests)
    return requests


@torch.no_grad()
def ask(assistant: Assistant, asked: Sequence[Asked], max_new_tokens: int = 32) -> Before:
    """The model's own answers, each of at most max_new_tokens; what is kept of a token is its logits, 4 bytes for each
    entry of the vocabulary."""
    requests = prepared(assistant, asked, max_new_tokens)
    kept = [i for i, request in enumerate(requests) if request.output_ids]
    logits = [answer_logits(assistant.model, requests[i]) for i in kept]
    texts = [requests[i].completion().text for i in kept]
    return Before([asked[i] for i in kept], [requests[i] for i in kept], logits, texts)


def compare(assistant: Assistant, before: Before, max_new_tokens: int = 32) -> Lost:
    """What another model makes of the same prompts. ValueError when no question was answered before."""
    found = divergence_from(assistant.model, before.requests, before.logits)
    texts = [request.completion().text for request in prepared(assistant, before.asked, max_new_tokens)]
    pairs = list(zip(before.asked, before.texts, texts, strict=True))
    letters = sum(a == b for _, a, b in pairs)
    return Lost(found, len(pairs), letters, sum(same_meaning(one.kind or ALL, a, b) for one, a, b in pairs))
