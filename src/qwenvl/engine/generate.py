"""The documented `model.generate(**inputs, ...)`: the engine with one request a row.

There is no second decoding loop here, only the reading of options. An explicit argument wins over the
generation_config given, that over the model's own, that over the documented default.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qwenvl.types import SamplingParams

from .detokenizer import Decoder
from .engine import Engine, default_eos_ids
from .inputs import split_batch
from .request import Request
from .runner import Model
from .streamers import Streamer

DEFAULT_MAX_LENGTH = 20  # prompt and answer together, as documented
DEFAULT_TOP_K = 50  # as documented, when sampling
MAX_RUNNING = 32  # rows computed together; more wait for a slot, which changes memory and not answers

# Options of the documented generate() that are not built, with the values that ask for nothing.
_NOT_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None, []),
    "begin_suppress_tokens": (None, []),
    "constraints": (None,),
    "diversity_penalty": (None, 0.0),
    "early_stopping": (None, False),
    "encoder_repetition_penalty": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "force_words_ids": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1.0),
    "length_penalty": (None, 1.0),
    "logits_processor": (None, []),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "num_beam_groups": (None, 1),
    "num_beams": (None, 1),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "output_logits": (None, False),
    "output_scores": (None, False),
    "penalty_alpha": (None, 0.0),
    "prompt_lookup_num_tokens": (None,),
    "return_dict_in_generate": (None, False),
    "sequence_bias": (None, {}),
    "stopping_criteria": (None, []),
    "suppress_tokens": (None, []),
    "typical_p": (None, 1.0),
}


def generate(
    model: Model,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    pixel_values: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    pixel_values_videos: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Tensor | list[float] | None = None,
    *,
    generation_config: Any = None,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    seed: int | None = None,
    num_return_sequences: int | None = None,
    streamer: Streamer | None = None,
    stop_strings: str | Sequence[str] | None = None,
    tokenizer: Decoder | None = None,
    use_cache: bool | None = None,
    **unsupported: Any,
) -> Tensor:
    """Answer each prompt. Returns int64 [B * num_return_sequences, S + new] on input_ids' device: the prompts
    as they came (padding included), then the answers, stop token included, filled up with pad_token_id on the
    right.

    input_ids, attention_mask: [B, S], padded on either side; pictures and videos in order of the prompts.
    Each row has positions of its own, so that a batch answers as its rows do alone. max_length counts prompt
    (with padding) and answer; without a limit anywhere it is 20, with a warning. do_sample=False is greedy.
    seed: each row draws as it does alone with that seed; the r-th of num_return_sequences uses seed + r.
    Without a seed torch.manual_seed decides. stop_strings need tokenizer. streamer takes one prompt at a
    time.

    Raises ValueError for inputs that do not agree (with both numbers) and for options that are not supported;
    RuntimeError when a row cannot be computed, with the row and the reason.
    """
    if input_ids is None:
        raise ValueError("generate() needs input_ids: expected int64 [batch, length] from the processor")
    settings = _Settings(generation_config, getattr(model, "generation_config", None))
    settings.refuse(unsupported)
    if use_cache is False:
        warnings.warn("use_cache=False has no effect: the answer is the same, and a cache is always used", stacklevel=2)
    rows = split_batch(
        model.config,
        input_ids,
        attention_mask,
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        pixel_values_videos=pixel_values_videos,
        video_grid_thw=video_grid_thw,
        second_per_grid_ts=second_per_grid_ts,
    )
    params = SamplingParams(
        max_new_tokens=_max_new_tokens(settings, max_new_tokens, max_length, input_ids.shape[1]),
        repetition_penalty=float(settings.get("repetition_penalty", repetition_penalty, 1.0)),
        seed=seed,
        stop=_strings(settings.get("stop_strings", stop_strings, ())),
        **_draw_options(settings, do_sample, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p),
    )
    if params.stop and tokenizer is None:
        raise ValueError(f"stop_strings={list(params.stop)} need text: pass tokenizer=processor.tokenizer")
    copies = int(settings.get("num_return_sequences", num_return_sequences, 1))
    if copies < 1 or (copies > 1 and params.temperature == 0):
        raise ValueError(
            f"num_return_sequences={copies} is not valid here: expected 1, or more with do_sample=True "
            "(greedy answers are all the same)"
        )
    requests = [
        Request.from_inputs(row, model.config, replace(params, seed=None if seed is None else seed + copy))
        for row in rows
        for copy in range(copies)
    ]
    eos = settings.get("eos_token_id", eos_token_id, None)
    eos_ids = default_eos_ids(model) if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    pad = settings.get("pad_token_id", pad_token_id, getattr(model.config, "pad_token_id", None))
    pad = pad if pad is not None else next(iter(eos_ids), None)
    engine = Engine(
        model,
        tokenizer if params.stop else None,
        max_running=min(len(requests), MAX_RUNNING),
        eos_token_ids=eos_ids,
    )
    if streamer is None:
        engine.run(requests)
    else:
        _run_streamed(engine, requests, streamer, input_ids)
    for i, request in enumerate(requests):
        if request.error is not None:
            raise RuntimeError(f"prompt {i // copies} failed: {request.error}") from request.exception
    return _joined(input_ids.repeat_interleave(copies, dim=0), [request.output_ids for request in requests], pad)


class _Settings:
    """Generation settings in order of precedence; each source is an object, a dict or None."""

    def __init__(self, *sources: Any) -> None:
        self._sources = [source for source in sources if source is not None]

    def get(self, name: str, explicit: Any, default: Any) -> Any:
        """The explicit value, else the first source's that has one, else the default."""
        if explicit is not None:
            return explicit
        for source in self._sources:
            value = source.get(name) if isinstance(source, dict) else getattr(source, name, None)
            if value is not None:
                return value
        return default

    def refuse(self, unsupported: dict[str, Any]) -> None:
        """ValueError for options, explicit or in a source, that ask for what is not built."""
        for name in unsupported:
            if name not in _NOT_SUPPORTED:
                raise ValueError(
                    f"generate() does not know the option {name!r}: it is not supported (yet); leave it out"
                )
        for name, neutral in _NOT_SUPPORTED.items():
            value = self.get(name, unsupported.get(name), None)
            if value not in neutral:
                raise ValueError(
                    f"generate({name}={value!r}) is not supported yet: leave it out or pass {neutral[-1]!r}"
                )


def _max_new_tokens(settings: _Settings, new: int | None, length: int | None, prompt: int) -> int:
    """The answer's limit, from max_new_tokens or max_length (which counts the prompt's padded length too)."""
    if new is not None and length is not None:
        warnings.warn(f"max_new_tokens={new} is used, max_length={length} is not: give one of them", stacklevel=3)
    if new is None and length is None:
        new, length = settings.get("max_new_tokens", None, None), settings.get("max_length", None, None)
    if new is not None:
        return int(new)
    if length is None:
        length = DEFAULT_MAX_LENGTH
        warnings.warn(
            f"neither max_new_tokens nor max_length is set: prompt and answer together end at {length} "
            "tokens; set max_new_tokens",
            stacklevel=3,
        )
    if length <= prompt:
        raise ValueError(f"max_length={length} leaves no room behind a prompt of {prompt} tokens: set max_new_tokens")
    return length - prompt


def _draw_options(settings: _Settings, do_sample: bool | None, **explicit: float | None) -> dict[str, Any]:
    """temperature, top_k, top_p and min_p of SamplingParams; temperature 0 without do_sample."""
    if not settings.get("do_sample", do_sample, False):
        given = [f"{name}={value}" for name, value in explicit.items() if value not in (None, 0)]
        if given:
            warnings.warn(
                f"{', '.join(given)} has no effect without do_sample=True: the answer is greedy", stacklevel=3
            )
        return {"temperature": 0.0}
    return {
        "temperature": float(settings.get("temperature", explicit["temperature"], 1.0)),
        "top_k": int(settings.get("top_k", explicit["top_k"], DEFAULT_TOP_K)),
        "top_p": float(settings.get("top_p", explicit["top_p"], 1.0)),
        "min_p": float(settings.get("min_p", explicit["min_p"], 0.0)),
    }


def _strings(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _run_streamed(engine: Engine, requests: list[Request], streamer: Streamer, input_ids: Tensor) -> None:
    """One request, its tokens put into the streamer as they come."""
    if len(requests) != 1:
        raise ValueError(
            f"streamer takes one answer, got {len(requests)}: generate without it, or one prompt at a time"
        )
    try:
        streamer.put(input_ids.cpu())
        for event in engine.stream(requests[0]):
            if event.token_id is not None:
                streamer.put(torch.tensor([event.token_id]))
    finally:
        streamer.end()


def _joined(prompts: Tensor, answers: list[list[int]], pad: int | None) -> Tensor:
    """Prompts [B, S] and answers side by side, int64 [B, S + longest answer]."""
    longest = max(len(answer) for answer in answers)
    if pad is None and any(len(answer) != longest for answer in answers):
        raise ValueError("answers of different lengths need a pad token, and the model's config has none: pass one")
    filled = [answer + [pad or 0] * (longest - len(answer)) for answer in answers]
    return torch.cat((prompts, torch.tensor(filled, dtype=prompts.dtype, device=prompts.device)), dim=1)
