"""How far a model's answers are from another's: the same prompts and answers read by both, their next tokens compared.

    reference, model = Assistant("demo"), Assistant("demo", quantize="int4")
    requests = [reference.prepare([picture], "Describe this image.")[0]]
    reference.engine.run(requests)
    divergence(model.model, reference.model, requests).mean

Made for quantized weights; any two models with one vocabulary will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.types import PackedBatch, SeqInfo

if TYPE_CHECKING:
    from qwenvl.engine import Request
    from qwenvl.engine.runner import Model


@dataclass(frozen=True)
class Divergence:
    """Over all tokens of all answers. mean, worst: the Kullback-Leibler divergence of the next token's distribution
    from the reference's, KL(reference || model), in nats. agreement: share of tokens that both find likeliest."""

    mean: float
    worst: float
    agreement: float
    tokens: int


@torch.no_grad()
def divergence(model: Model, reference: Model, requests: Sequence[Request]) -> Divergence:
    """Compare `model` with `reference` on answered requests; the answers are given to both, token by token.

    ValueError when no request has an answer.
    """
    answered = [request for request in requests if request.output_ids]
    return divergence_from(model, answered, (answer_logits(reference, request) for request in answered))


@torch.no_grad()
def divergence_from(model: Model, requests: Sequence[Request], logits: Iterable[Tensor]) -> Divergence:
    """The same with what answer_logits() gave for the reference, so that it need not be in memory any more."""
    distances, agreed = [], []
    for request, wanted in zip(requests, logits, strict=True):
        found = answer_logits(model, request)
        log_found, log_wanted = (F.log_softmax(logits.double(), -1) for logits in (found, wanted))
        distances.append(F.kl_div(log_found, log_wanted, reduction="none", log_target=True).sum(-1))
        agreed.append(found.argmax(-1) == wanted.argmax(-1))
    if not distances:
        raise ValueError("none of the requests has an answer: run them in an engine first")
    distance = torch.cat(distances)
    return Divergence(
        float(distance.mean()), float(distance.max()), float(torch.cat(agreed).double().mean()), len(distance)
    )


def answer_logits(model: Model, request: Request) -> Tensor:
    """Logits float32 [answer tokens, vocabulary] by one plain forward over prompt and answer: row i is what the model
    expects where the answer has its token i."""
    return model.run(answer_batch(model, request))


def answer_batch(model: Model, request: Request) -> PackedBatch:
    """Prompt and answer of a request in one batch, without a cache, its pictures through the tower; logits are wanted
    of what comes before each token of the answer."""
    first, last = len(request.prompt_ids) - 1, request.num_tokens - 1
    embeds, places = [], []
    for item in request.items:
        grid = torch.tensor([item.grid], device=model.device)
        affine = () if item.affine is None else (item.affine,)
        embeds.append(model.encode_vision(item.patches.to(model.device), grid, *affine))
        places.append(torch.arange(item.start, item.start + item.tokens, device=model.device))
    return PackedBatch(
        token_ids=torch.tensor(request.token_ids(0, last), device=model.device),
        positions=request.positions_of(0, last).to(model.device),
        seq=SeqInfo.from_lengths([last]),
        vision_embeds=torch.cat(embeds) if embeds else None,
        vision_index=torch.cat(places) if places else None,
        logits_index=torch.arange(first, last, device=model.device),
    )
