"""generation_config.json: how a checkpoint wants to be asked, as an object whose values may be set."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from qwenvl.gguf_folder import resolve
from qwenvl.hub import PROCESSOR_FILES

GENERATION_NAME = "generation_config.json"

# The options of generate() that may stand in a generation config. None = not said there.
OPTION_NAMES = frozenset({
    "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "do_sample", "early_stopping", "eos_token_id",
    "forced_eos_token_id", "length_penalty", "logprobs", "max_length", "max_new_tokens", "max_time", "min_length",
    "min_new_tokens", "min_p", "no_repeat_ngram_size", "num_beams", "num_return_sequences", "output_logits",
    "output_scores", "pad_token_id", "renormalize_logits", "repetition_penalty", "return_dict_in_generate", "seed",
    "stop_strings", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p", "use_cache",
})  # fmt: skip

# Options that are not built, with the values that ask for nothing. generate() refuses any other value.
NOT_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "assistant_model": (None,),
    "assistant_tokenizer": (None,),
    "cache_implementation": (None, "dynamic"),
    "compile_config": (None,),
    "constraints": (None, []),
    "custom_generate": (None,),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None, []),
    "forced_bos_token_id": (None,),
    "guidance_scale": (None, 1.0),
    "low_memory": (None, False),
    "negative_prompt_ids": (None,),
    "num_beam_groups": (None, 1),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "penalty_alpha": (None, 0.0),
    "prompt_lookup_num_tokens": (None,),
    "remove_invalid_values": (None, False),
    "sequence_bias": (None, {}),
    "token_healing": (None, False),
    "top_h": (None,),
    "watermarking_config": (None,),
}

# What other programs write into the file for themselves.
_NOTES = ("transformers_version", "_from_model_config", "_commit_hash", "chat_format")


class GenerationConfig:
    """Defaults of generate(), as documented: GenerationConfig(do_sample=True, temperature=0.7).

    Every option is an attribute, None where nothing is said. It is what `model.generation_config` holds and what
    `generate(generation_config=...)` takes; an argument of generate() goes before it. Raises ValueError for an option
    that generate() does not know.
    """

    def __init__(self, **options: Any) -> None:
        self.extra: dict[str, Any] = {}
        for name in sorted(OPTION_NAMES | NOT_SUPPORTED.keys()):
            setattr(self, name, None)
        self.update(**options)

    def update(self, **options: Any) -> None:
        """Set several options. Raises ValueError for one that generate() does not know."""
        for name, value in options.items():
            if name in _NOTES:
                self.extra[name] = value
            elif name in OPTION_NAMES or name in NOT_SUPPORTED:
                setattr(self, name, value)
            else:
                raise ValueError(f"{name}={value!r} is not an option of generate(): leave it out")

    def __getattr__(self, name: str) -> Any:  # for type checkers, and a helpful error
        raise AttributeError(f"GenerationConfig has no option {name!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Of the keys of a generation_config.json. Keys that mean nothing to generate() are kept, with a warning."""
        known = {n: v for n, v in values.items() if n in OPTION_NAMES or n in NOT_SUPPORTED or n in _NOTES}
        made = cls(**known)
        made.extra |= {name: value for name, value in values.items() if name not in known}
        if len(known) < len(values):
            strange = ", ".join(sorted(values.keys() - known.keys()))
            warnings.warn(f"{GENERATION_NAME} has {strange}, which has no effect on generate()", stacklevel=2)
        return made

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Of a folder, a hub id or "demo". Raises ValueError when it has no generation_config.json."""
        folder = resolve(model, revision, token, local_files_only, patterns=PROCESSOR_FILES, cache_dir=cache_dir)
        path = folder / GENERATION_NAME
        if not path.is_file():
            raise ValueError(f"{folder} has no {GENERATION_NAME}: expected a checkpoint's folder or hub id")
        return cls.from_file(path)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Of one file; ValueError when it is not an object of keys."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds a {type(values).__name__}: expected an object of keys")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """The options that say something, and what else the file held."""
        said = {name: value for name, value in vars(self).items() if name != "extra" and value is not None}
        return {**said, **self.extra}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write generation_config.json into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / GENERATION_NAME).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GenerationConfig):
            return self.to_dict() == other.to_dict()
        return self.to_dict() == dict(other) if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"
