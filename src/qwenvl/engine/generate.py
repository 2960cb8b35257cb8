"""The documented `model.generate(**inputs, ...)`: the engine with one request a row.

There is no second decoding loop here. options.py reads the options, hooks.py carries the caller's own functions,
beam.py searches with num_beams, outputs.py is what comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .beam import BeamSearch
from .detokenizer import Decoder
from .engine import Engine
from .hooks import Criterion, PrefixAllowed, Processor, row_hooks
from .inputs import split_batch
from .options import Options, read_options
from .outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput,
    GenerateOutput,
    by_step,
    joined,
)
from .request import Request
from .runner import Model
from .streamers import Streamer

MAX_RUNNING = 32  # rows computed together; more wait for a slot, which changes memory and not answers


def generate(
    model: Model,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    pixel_values: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    pixel_values_videos: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Tensor | list[float] | None = None,
    inputs_embeds: Tensor | None = None,
    *,
    inputs: Tensor | None = None,
    generation_config: Any = None,
    logits_processor: Sequence[Processor] | Processor | None = None,
    stopping_criteria: Sequence[Criterion] | Criterion | None = None,
    prefix_allowed_tokens_fn: PrefixAllowed | None = None,
    streamer: Streamer | None = None,
    tokenizer: Decoder | None = None,
    **options: Any,
) -> Any:
    """Answer each prompt. Returns int64 [B * num_return_sequences, S + new] on the inputs' device: the prompts as they
    came (padding included), then the answers, stop token included, filled up with pad_token_id on the right. With
    return_dict_in_generate=True a GenerateDecoderOnlyOutput (or GenerateBeamDecoderOnlyOutput) that holds them.

    input_ids (or `inputs`), attention_mask: [B, S], padded on either side; pictures and videos in order of the prompts.
    inputs_embeds [B, S, D] go in place of the embeddings of input_ids; without input_ids only new tokens come back.

    options, each of which may also stand in generation_config (an object or a dict) or in the model's own:
    - length: max_new_tokens, or max_length that counts prompt (with padding) and answer; 20 new tokens, with a
      warning, where neither is given; min_new_tokens, min_length; max_time in seconds; eos_token_id (one or several),
      pad_token_id, forced_eos_token_id; stop_strings, which need tokenizer.
    - choice: do_sample=False is greedy; temperature, top_k (50 when sampling), top_p, min_p, typical_p; seed: each row
      draws as it does alone with that seed, the r-th of num_return_sequences with seed + r; without one
      torch.manual_seed decides.
    - repetition_penalty, no_repeat_ngram_size, bad_words_ids, suppress_tokens, begin_suppress_tokens.
    - num_beams, with length_penalty, early_stopping and num_return_sequences.
    - output_scores, output_logits, logprobs and renormalize_logits, for return_dict_in_generate.
    logits_processor: functions (input_ids [1, S + n], scores [1, vocabulary]) -> scores; stopping_criteria: functions
    (input_ids [1, S + n], scores so far or None) -> bool; prefix_allowed_tokens_fn(row, ids [S + n]) -> the ids that
    may come next. Each row is a call of its own, so that a batch answers as its rows do alone.
    streamer takes one prompt at a time.

    Raises ValueError for inputs that do not agree (with both numbers) and for options that are not supported;
    RuntimeError when a row cannot be computed, with the row and the reason.
    """
    input_ids = input_ids if input_ids is not None else inputs
    prompts, rows = _rows(
        model,
        input_ids,
        inputs_embeds,
        attention_mask,
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        pixel_values_videos=pixel_values_videos,
        video_grid_thw=video_grid_thw,
        second_per_grid_ts=second_per_grid_ts,
    )
    width = prompts.shape[1] if inputs_embeds is None else inputs_embeds.shape[1]
    read = read_options(model, options, generation_config, width)
    if read.params.stop and tokenizer is None:
        raise ValueError(f"stop_strings={list(read.params.stop)} need text: pass tokenizer=processor.tokenizer")
    deadline = None if read.max_time is None else time.monotonic() + read.max_time
    copies = read.copies if read.num_beams == 1 else 1
    requests = [
        Request.from_inputs(
            row,
            model.config,
            replace(read.params, seed=None if read.params.seed is None else read.params.seed + copy),
            hooks=row_hooks(prompts[i], i, logits_processor, stopping_criteria, prefix_allowed_tokens_fn, deadline),
        )
        for i, row in enumerate(rows)
        for copy in range(copies)
    ]
    if streamer is not None and (len(requests) != 1 or read.num_beams > 1):
        raise ValueError(
            f"streamer takes one answer, got {len(requests) * read.num_beams}: generate without it, or one prompt at "
            "a time without num_beams"
        )
    output: GenerateOutput
    if read.num_beams > 1:
        output = _searched(model, requests, read, prompts, tokenizer)
    else:
        output = _answered(model, requests, read, prompts, tokenizer, streamer)
    return output if read.as_dict else output.sequences


def _rows(
    model: Model, ids: Tensor | None, embeds: Tensor | None, mask: Tensor | None, **media: Any
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The prompts that come back, int64 [B, S] (S = 0 where only embeddings are given), and one dict a prompt."""
    if ids is None and embeds is None:
        raise ValueError("generate() needs input_ids: expected int64 [batch, length] from the processor")
    prompts = ids
    if embeds is not None:
        if embeds.ndim != 3 or (ids is not None and ids.shape != embeds.shape[:2]):
            raise ValueError(
                f"inputs_embeds has shape {tuple(embeds.shape)}: expected [batch, length, width]"
                + ("" if ids is None else f" beside input_ids of {tuple(ids.shape)}")
            )
        if ids is None:
            ids = _places(model, embeds)
            prompts = ids[:, :0]
    assert ids is not None
    assert prompts is not None
    rows = split_batch(model.config, ids, mask, **media)
    for i, row in enumerate(rows):
        if embeds is not None:
            row["inputs_embeds"] = embeds[i] if mask is None else embeds[i][mask[i].bool()]
            row["has_ids"] = prompts.shape[1] > 0
    return prompts, rows


def _places(model: Any, embeds: Tensor) -> Tensor:
    """Ids int64 [B, S] for prompts of embeddings alone: placeholder ids where an embedding is a placeholder's, which
    is where pictures go, and 0 elsewhere."""
    ids = torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    embedding = model.get_input_embeddings()
    for token in (model.config.image_token_id, model.config.video_token_id, model.config.vision_start_token_id):
        mine = embedding(torch.tensor(token, device=embeds.device)).to(embeds.dtype)
        ids = ids.masked_fill((embeds == mine).all(dim=-1), token)
    return ids


def _answered(
    model: Model,
    requests: list[Request],
    options: Options,
    prompts: Tensor,
    tokenizer: Decoder | None,
    streamer: Streamer | None,
) -> GenerateDecoderOnlyOutput:
    """One answer for each request, by the engine."""
    engine = Engine(
        model,
        tokenizer if options.params.stop else None,
        max_running=min(len(requests), MAX_RUNNING),
        eos_token_ids=options.eos_ids,
    )
    if streamer is None:
        engine.run(requests)
    else:
        _run_streamed(engine, requests[0], streamer, prompts)
    for i, request in enumerate(requests):
        if request.error is not None:
            raise RuntimeError(f"prompt {i // options.copies} failed: {request.error}") from request.exception
    pad, kept = options.pad, options.params
    scores = by_step([r.output_scores for r in requests], pad) if kept.keep_scores else None
    if scores is not None and options.renormalize:
        scores = tuple(step.log_softmax(dim=-1) for step in scores)
    return GenerateDecoderOnlyOutput(
        sequences=joined(
            prompts.repeat_interleave(options.copies, dim=0), [request.output_ids for request in requests], pad
        ),
        scores=scores,
        logits=by_step([r.output_logits for r in requests], pad) if kept.keep_logits else None,
        logprobs=_padded([r.output_logprobs for r in requests]).to(prompts.device) if kept.logprobs else None,
    )


def _searched(
    model: Model, requests: list[Request], options: Options, prompts: Tensor, tokenizer: Decoder | None
) -> GenerateBeamDecoderOnlyOutput:
    """The best answers for each request, by beam search."""
    try:
        searches = BeamSearch(model, options, _stops(options, tokenizer)).run(requests)
    except FloatingPointError as error:
        raise RuntimeError(f"beam search failed: {error}") from error
    best = [one for search in searches for one in search.done[: options.copies]]
    offsets = [i * options.num_beams - search.first for i, search in enumerate(searches)]
    rows = [offset for offset in offsets for _ in range(options.copies)]
    origins = [[beam + shift for beam in one.origins] for one, shift in zip(best, rows, strict=True)]
    kept, device = options.params, prompts.device
    return GenerateBeamDecoderOnlyOutput(
        sequences=joined(prompts.repeat_interleave(options.copies, dim=0), [one.answer for one in best], options.pad),
        sequences_scores=torch.tensor([one.score for one in best], device=device) if kept.keep_scores else None,
        scores=by_step([search.scores for search in searches], options.pad) if kept.keep_scores else None,
        logits=by_step([search.logits for search in searches], options.pad) if kept.keep_logits else None,
        beam_indices=_padded(origins, -1).to(device),
    )


def _stops(options: Options, tokenizer: Decoder | None) -> Callable[[list[int]], bool] | None:
    """Whether the text of answer ids holds a stop string."""
    if not options.params.stop or tokenizer is None:
        return None
    decode = tokenizer.decode
    return lambda ids: any(stop in decode(ids, skip_special_tokens=True) for stop in options.params.stop)


def _run_streamed(engine: Engine, request: Request, streamer: Streamer, prompts: Tensor) -> None:
    """One request, its tokens put into the streamer as they come."""
    try:
        streamer.put(prompts.cpu())
        for event in engine.stream(request):
            if event.token_id is not None:
                streamer.put(torch.tensor([event.token_id]))
    finally:
        streamer.end()


def _padded(rows: Sequence[Sequence[Any]], fill: Any = 0.0) -> Tensor:
    """Rows of numbers as one tensor, filled up on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
