"""What generate(return_dict_in_generate=True) returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenvl.model.outputs import ModelOutput


@dataclass(eq=False)
class GenerateDecoderOnlyOutput(ModelOutput):
    """Answers, R = B * num_return_sequences rows.

    sequences: int64 [R, S + new]. scores: one float32 [R, vocabulary] a token, what the token was chosen from: after
    all processors, -inf for what was cut off. logits: the same of the model's own. Where a row is over, the pad token
    has 0 and all others -inf. logprobs: float32 [R, new], log-softmax of the model's own logits at the token, 0 where
    the row is over. attentions, hidden_states and past_key_values are always None.
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: None = None
    hidden_states: None = None
    past_key_values: None = None
    logprobs: Tensor | None = None


@dataclass(eq=False)
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """Answers of a beam search, the best first for each prompt; R = B * num_return_sequences rows.

    sequences_scores: float32 [R], sum of log-probabilities / length ** length_penalty. scores: one float32
    [B * num_beams, vocabulary] a step, processed log-probabilities of each beam's next token. beam_indices: int64
    [R, new], the row of `scores` that each token was chosen from, -1 behind the end.
    """

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: None = None
    hidden_states: None = None
    past_key_values: None = None


GenerateOutput = GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput


def joined(prompts: Tensor, answers: Sequence[Sequence[int]], pad: int | None) -> Tensor:
    """Prompts [R, S] and answers side by side, int64 [R, S + longest answer]."""
    longest = max(len(answer) for answer in answers)
    if pad is None and any(len(answer) != longest for answer in answers):
        raise ValueError("answers of different lengths need a pad token, and the model's config has none: pass one")
    filled = [[*answer, *[pad or 0] * (longest - len(answer))] for answer in answers]
    return torch.cat((prompts, torch.tensor(filled, dtype=prompts.dtype, device=prompts.device)), dim=1)


def by_step(rows: Sequence[Sequence[Tensor]], pad: int | None) -> tuple[Tensor, ...]:
    """rows[r][step], each [..., vocabulary], as one tensor a step with all rows under one another; filled up as the
    class above says."""
    longest = max(len(row) for row in rows)
    over = torch.full_like(rows[0][0], float("-inf"))
    over[..., pad or 0] = 0.0
    steps = ([row[step] if step < len(row) else over for row in rows] for step in range(longest))
    return tuple(torch.stack(step).flatten(0, -2) for step in steps)


def compute_transition_scores(
    sequences: Tensor,
    scores: Sequence[Tensor],
    beam_indices: Tensor | None = None,
    normalize_logits: bool = False,
) -> Tensor:
    """The score of each generated token, float32 [R, new]: `scores` at the tokens of `sequences`, as documented.

    beam_indices: those of a beam search's output; 0 where they are -1. normalize_logits: log-softmax first.
    """
    stacked = torch.stack(list(scores))  # [new, rows, vocabulary]
    if normalize_logits:
        stacked = stacked.log_softmax(dim=-1)
    new = stacked.shape[0] if beam_indices is None else int((beam_indices >= 0).sum(-1).max())
    tokens = sequences[:, sequences.shape[1] - new :].to(stacked.device)
    if beam_indices is None:
        rows = torch.arange(len(tokens), device=stacked.device).unsqueeze(1).expand_as(tokens)
    else:
        rows = beam_indices[:, :new].to(stacked.device)
    found = stacked[torch.arange(new, device=stacked.device).expand_as(tokens), rows.clamp(min=0), tokens]
    return torch.where(rows < 0, 0.0, found)
