"""The options of the documented generate(), read and checked.

An explicit argument wins over the generation_config given, that over the model's own, that over the documented
default. An option that is not built is an error that names it; an option without effect is a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qwenvl.checkpoint.generation_config import NOT_SUPPORTED, OPTION_NAMES
from qwenvl.types import SamplingParams

from .end_ids import default_eos_ids

DEFAULT_NEW_TOKENS = 20  # as documented, with a warning
DEFAULT_TOP_K = 50  # as documented, when sampling

# Inputs that programs pass on and that are computed here anyway, or mean nothing here.
_COMPUTED_HERE = frozenset({"cache_position", "logits_to_keep", "mm_token_type_ids", "return_dict", "rope_deltas"})
_ONLY_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "disable_compile": (None, True, False),
    "labels": (None,),
    "past_key_values": (None,),
    "position_ids": (None,),
    "synced_gpus": (None, False),
    "token_type_ids": (None,),
    "use_model_defaults": (None, True),
}
_SAMPLING = {"temperature": (1.0, 0.0), "top_k": (0,), "top_p": (1.0,), "min_p": (0.0,), "typical_p": (1.0,)}


@dataclass(frozen=True)
class Options:
    """How generate() answers. params are those of every answer, seed apart; copies answers come back for a prompt.

    early_stopping: True, False or "never". pad: what fills rows up, None where nothing is known.
    """

    params: SamplingParams
    eos_ids: tuple[int, ...]
    pad: int | None
    copies: int
    num_beams: int
    length_penalty: float
    early_stopping: bool | str
    max_time: float | None
    as_dict: bool
    renormalize: bool


class Settings:
    """Values by name: explicit ones, then those of the sources; each source is an object, a mapping or None."""

    def __init__(self, explicit: Mapping[str, Any], *sources: Any) -> None:
        self.explicit = {name: value for name, value in explicit.items() if value is not None}
        self._sources = [source for source in sources if source is not None]

    def get(self, name: str, default: Any = None) -> Any:
        """The explicit value, else the first source's that has one, else the default."""
        if name in self.explicit:
            return self.explicit[name]
        for source in self._sources:
            value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
            if value is not None:
                return value
        return default

    def refuse(self) -> None:
        """ValueError for options, explicit or in a source, that ask for what is not built."""
        for name, value in self.explicit.items():
            if name in _ONLY_NEUTRAL and not _among(value, _ONLY_NEUTRAL[name]):
                raise ValueError(f"generate({name}=...) is not supported: leave it out")
            if not (name in OPTION_NAMES or name in NOT_SUPPORTED or name in _COMPUTED_HERE or name in _ONLY_NEUTRAL):
                raise ValueError(
                    f"generate() does not know the option {name!r}: it is not supported (yet); leave it out"
                )
        for name, neutral in NOT_SUPPORTED.items():
            value = self.get(name)
            if not _among(value, neutral):
                raise ValueError(
                    f"generate({name}={value!r}) is not supported yet: leave it out or pass {neutral[-1]!r}"
                )


def read_options(model: Any, explicit: Mapping[str, Any], generation_config: Any, width: int) -> Options:
    """The options of one call. width: columns of the prompts, which max_length and min_length count too."""
    settings = Settings(explicit, generation_config, getattr(model, "generation_config", None))
    settings.refuse()
    beams = int(settings.get("num_beams", 1))
    sampled = bool(settings.get("do_sample", False))
    _warn(settings, beams, sampled)
    eos = settings.get("eos_token_id")
    eos_ids = default_eos_ids(model) if eos is None else _ids(eos)
    pad = settings.get("pad_token_id", getattr(model.config, "pad_token_id", None))
    as_dict = bool(settings.get("return_dict_in_generate", False))
    new = _max_new_tokens(settings, width)
    least = settings.get("min_new_tokens")
    params = SamplingParams(
        max_new_tokens=new,
        repetition_penalty=float(settings.get("repetition_penalty", 1.0)),
        seed=settings.get("seed"),
        stop=_strings(settings.get("stop_strings", ())),
        logprobs=as_dict and bool(settings.get("logprobs", False)),
        no_repeat_ngram_size=int(settings.get("no_repeat_ngram_size", 0)),
        min_new_tokens=max(int(settings.get("min_length", 0)) - width, 0) if least is None else int(least),
        bad_words=tuple(tuple(word) for word in settings.get("bad_words_ids", ())),
        suppress_tokens=_ids(settings.get("suppress_tokens", ())),
        begin_suppress_tokens=_ids(settings.get("begin_suppress_tokens", ())),
        forced_eos=_ids(settings.get("forced_eos_token_id", ())),
        keep_scores=as_dict and bool(settings.get("output_scores", False)),
        keep_logits=as_dict and bool(settings.get("output_logits", False)),
        **(_draw_options(settings) if sampled else {"temperature": 0.0}),
    )
    copies = int(settings.get("num_return_sequences", 1))
    _check_counts(copies, beams, params, settings)
    return Options(
        params=params,
        eos_ids=eos_ids,
        pad=int(pad) if pad is not None else next(iter(eos_ids), None),
        copies=copies,
        num_beams=beams,
        length_penalty=float(settings.get("length_penalty", 1.0)),
        early_stopping=settings.get("early_stopping", False),
        max_time=settings.get("max_time"),
        as_dict=as_dict,
        renormalize=bool(settings.get("renormalize_logits", False)),
    )


def _check_counts(copies: int, beams: int, params: SamplingParams, settings: Settings) -> None:
    if beams < 1:
        raise ValueError(f"num_beams={beams} is not valid: expected at least 1")
    if copies < 1 or (beams == 1 and copies > 1 and params.temperature == 0):
        raise ValueError(
            f"num_return_sequences={copies} is not valid here: expected 1, or more with do_sample=True or num_beams "
            "(greedy answers are all the same)"
        )
    if beams > 1 and copies > beams:
        raise ValueError(f"num_return_sequences={copies} is more than num_beams={beams}: expected at most as many")
    if settings.get("early_stopping", False) not in (True, False, "never"):
        raise ValueError(f"early_stopping={settings.get('early_stopping')!r} is not valid: True, False or 'never'")
    if beams > 1 and params.logprobs:
        raise ValueError("logprobs=True is not supported with num_beams: pass output_scores=True")


def _warn(settings: Settings, beams: int, sampled: bool) -> None:
    """Tell of explicit options that change nothing."""
    explicit = settings.explicit
    if explicit.get("use_cache") is False:
        warnings.warn("use_cache=False has no effect: the answer is the same, and a cache is always used", stacklevel=4)
    given = [f"{name}={explicit[name]}" for name, off in _SAMPLING.items() if explicit.get(name, off[0]) not in off]
    if given and not sampled:
        warnings.warn(f"{', '.join(given)} has no effect without do_sample=True: the answer is greedy", stacklevel=4)
    if beams == 1:
        beamed = {"length_penalty": 1.0, "early_stopping": False}
        given = [f"{name}={explicit[name]}" for name, off in beamed.items() if explicit.get(name, off) != off]
        if given:
            warnings.warn(f"{', '.join(given)} has no effect without num_beams above 1", stacklevel=4)
    if not settings.get("return_dict_in_generate", False):
        kept = [name for name in ("output_scores", "output_logits", "logprobs") if explicit.get(name)]
        if kept:
            warnings.warn(f"{', '.join(kept)} has no effect without return_dict_in_generate=True", stacklevel=4)


def _max_new_tokens(settings: Settings, width: int) -> int:
    """The answer's limit, from max_new_tokens or max_length (which counts the prompt's padded length too)."""
    new, length = settings.explicit.get("max_new_tokens"), settings.explicit.get("max_length")
    if new is not None and length is not None:
        warnings.warn(f"max_new_tokens={new} is used, max_length={length} is not: give one of them", stacklevel=4)
    if new is None and length is None:
        new, length = settings.get("max_new_tokens"), settings.get("max_length")
    if new is not None:
        return int(new)
    if length is None:
        warnings.warn(
            f"neither max_new_tokens nor max_length is set: the answer ends after {DEFAULT_NEW_TOKENS} tokens; set "
            "max_new_tokens",
            stacklevel=4,
        )
        return DEFAULT_NEW_TOKENS
    if length <= width:
        raise ValueError(f"max_length={length} leaves no room behind a prompt of {width} tokens: set max_new_tokens")
    return int(length) - width


def _draw_options(settings: Settings) -> dict[str, Any]:
    return {
        "temperature": float(settings.get("temperature", 1.0)),
        "top_k": int(settings.get("top_k", DEFAULT_TOP_K)),
        "top_p": float(settings.get("top_p", 1.0)),
        "min_p": float(settings.get("min_p", 0.0)),
        "typical_p": float(settings.get("typical_p", 1.0)),
    }


def _among(value: Any, neutral: tuple[Any, ...]) -> bool:
    return value is None or (isinstance(value, bool | int | float | str | list | dict) and value in neutral)


def _ids(value: int | Sequence[int] | Tensor) -> tuple[int, ...]:
    if isinstance(value, Tensor):
        value = value.flatten().tolist()
    return (value,) if isinstance(value, int) else tuple(int(token) for token in value)


def _strings(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
