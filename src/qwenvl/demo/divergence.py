"""How far a model's answers are from another's: the same prompts and answers read by both, their next tokens compared.

    reference, model = Assistant("demo"), Assistant("demo", quantize="int4")
    requests = [reference.prepare([picture], "Describe this image.")[0]]
    reference.engine.run(requests)
    divergence(model.model, reference.model, requests).mean

Made for quantized weights; any two models with one vocabulary will do.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    if not answered:
        raise ValueError(f"none of the {len(requests)} requests has an answer: run them in an engine first")
    distances, agreed = [], []
    for request in answered:
        found, wanted = answer_logits(model, request), answer_logits(reference, request)
        log_found, log_wanted = (F.log_softmax(logits.double(), -1) for logits in (found, wanted))
        distances.append(F.kl_div(log_found, log_wanted, reduction="none", log_target=True).sum(-1))
        agreed.append(found.argmax(-1) == wanted.argmax(-1))
    distance = torch.cat(distances)
    return Divergence(
        float(distance.mean()), float(distance.max()), float(torch.cat(agreed).double().mean()), len(distance)
    )


def answer_logits(model: Model, request: Request) -> Tensor:
    """Logits float32 [answer tokens, vocabulary] by one plain forward over prompt and answer: row i is what the model
    expects where the answer has its token i."""
    first, last = len(request.prompt_ids) - 1, request.num_tokens - 1
    embeds, places = [], []
    for item in request.items:
        grid = torch.tensor([item.grid], device=model.device)
        affine = () if item.affine is None else (item.affine,)
        embeds.append(model.encode_vision(item.patches.to(model.device), grid, *affine))
        places.append(torch.arange(item.start, item.start + item.tokens, device=model.device))
    batch = PackedBatch(
        token_ids=torch.tensor(request.token_ids(0, last), device=model.device),
        positions=request.positions_of(0, last).to(model.device),
        seq=SeqInfo.from_lengths([last]),
        vision_embeds=torch.cat(embeds) if embeds else None,
        vision_index=torch.cat(places) if places else None,
        logits_index=torch.arange(first, last, device=model.device),
    )
    return model.run(batch)
