"""The dataclasses that cross rooms. Nothing here computes, and nothing here knows another room.

Legend for shapes, used in every room: B batch, T packed tokens, L tokens of one request, N rows of logits,
P patches, V vision tokens (P / 4), H heads, D head size or model width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Affine = tuple[tuple[float, ...], tuple[float, ...]]  # (scale, shift) of uint8 pixels, by channel
FinishReason = Literal["stop", "length", "loop", "abort", "error"]


@dataclass(frozen=True)
class ImageSize:
    """Sizes of one picture in pixels: as it came (upright), and as the model sees it (multiples of 28).

    A coordinate in an answer is in resized pixels; `x * width / resized_width` brings it back.
    """

    width: int
    height: int
    resized_width: int
    resized_height: int


@dataclass(frozen=True)
class SeqInfo:
    """Where each sequence of a packed batch begins and ends.

    cu_q: new tokens, cumulative, B + 1 integers from 0 to T.
    cu_k: keys (cached + new), cumulative, B + 1 integers. Without a cache cu_k == cu_q.
    Example: a 5-token prompt beside a decode step on 9 cached tokens: cu_q (0, 5, 6), cu_k (0, 5, 15).
    """

    cu_q: tuple[int, ...]
    cu_k: tuple[int, ...]

    @property
    def q_lens(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.cu_q, self.cu_q[1:], strict=False))

    @property
    def k_lens(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.cu_k, self.cu_k[1:], strict=False))

    @property
    def max_q(self) -> int:
        return max(self.q_lens, default=0)

    @property
    def max_k(self) -> int:
        return max(self.k_lens, default=0)

    @staticmethod
    def from_lengths(new: list[int], cached: list[int] | None = None) -> SeqInfo:
        """SeqInfo of sequences with `new[i]` new tokens behind `cached[i]` cached ones."""
        cached = cached or [0] * len(new)
        cu_q, cu_k = [0], [0]
        for n, c in zip(new, cached, strict=True):
            cu_q.append(cu_q[-1] + n)
            cu_k.append(cu_k[-1] + n + c)
        return SeqInfo(tuple(cu_q), tuple(cu_k))


class KVView(Protocol):
    """The part of a KV cache that one packed batch reads and writes."""

    @property
    def runs(self) -> list[list[tuple[int, int]]]:
        """Where the tokens of each sequence lie in the storage, new ones included: (first place, how many)."""

    def storage(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all sequences, each [kv heads, places, D]."""

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Store new keys and values, each [T, kv heads, D], behind what is cached."""

    def read(self, layer: int, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of sequence `index`, new tokens included: each [kv heads, k_len, D]."""

    def read_batch(self, layer: int, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Keys and values of several sequences, each [n, kv heads, longest k_len, D]; the tail of the shorter ones is
        undefined and must be masked."""


@dataclass
class PackedBatch:
    """What the text model runs on: flat tokens of several sequences, one behind the other.

    token_ids: int64 [T].  positions: int64 [3, T] (rows: time, height, width).
    kv: None for training and scoring; else keys are read from and written to it.
    vision_embeds: [V, D] rows put in place of the tokens at vision_index (int64 [V], positions in 0..T).
    logits_index: int64 [N], the rows wanted; None = all T.
    inputs_embeds: [T, D] in place of the embedding of token_ids (documented argument of forward).
    reach: how many positions the whole prompt of each sequence takes, where the batch holds a part of it only; the
        rotary scalings that depend on the length of a request need it (model/rope_types.py).
    rotation, layout: what the model makes of positions and of seq (cos and sin [T, 1, D / 2]; a Plan of
        model/attention.py), where the caller has them ready: a CUDA graph can make no tensors from numbers.
    """

    token_ids: Tensor
    positions: Tensor
    seq: SeqInfo
    kv: KVView | None = None
    vision_embeds: Tensor | None = None
    vision_index: Tensor | None = None
    logits_index: Tensor | None = None
    inputs_embeds: Tensor | None = None
    reach: tuple[int, ...] | None = None
    rotation: tuple[Tensor, Tensor] | None = None
    layout: Any = None


@dataclass(frozen=True)
class LoopRule:
    """When an answer that ends in exact copies of one piece is a loop (engine/loops.py has the rule, and what it leaves
    alone): at least `tokens` tokens of them, or `copies` copies where these are shorter; and `rows` copies where the
    piece is as dull as an empty row of a table.

    The defaults suit a page of 2048 picture tokens, the most that is used for documents: three tokens of text for each
    of them, more equal cells than a row has, and more equal rows than it has lines.
    """

    tokens: int = 6144
    copies: int = 512
    rows: int = 120

    def __post_init__(self) -> None:
        for name, value, least in (("tokens", self.tokens, 64), ("copies", self.copies, 8), ("rows", self.rows, 8)):
            if value < least:
                raise ValueError(f"LoopRule {name}={value} is not valid: expected at least {least}")


@dataclass(frozen=True)
class Grammar:
    """What an answer may be; the engine lets no token come that leaves it (engine/grammar.py).

    kind: "json_schema" (source: a JSON Schema, as text), "json" (any JSON object; no source), "regex" (Rust's syntax)
    or "lark" (llguidance's dialect). JSON is written on one line, with ", " and ": ", and in the schema's order.
    In a schema, an array with "format": "bbox_2d" is a box [x1, y1, x2, y2] in the picture as the model sees it,
    0 <= x1 < x2 <= width, 0 <= y1 < y2 <= height, and one with "point_2d" a point [x, y] in it (with Qwen2-VL, whose
    places are thousandths of the sides, width = height = 1000). "picture": which
    picture or video of the prompt, counted from 0 (from -1 at the end); not needed where all are of one size.
    before, after: text around the JSON, in which added tokens (<tool_call>) count as such. thought: any text may come
    first; a number: of at most so many tokens.
    """

    kind: Literal["json_schema", "json", "regex", "lark"]
    source: str = ""
    before: str = ""
    after: str = ""
    thought: bool | int = False

    def __post_init__(self) -> None:
        if self.kind not in ("json_schema", "json", "regex", "lark"):
            raise ValueError(f"grammar kind {self.kind!r} is not known: expected json_schema, json, regex or lark")
        if (self.kind == "json") == bool(self.source):
            wanted = "no source" if self.source else "a source"
            raise ValueError(f"a grammar of kind {self.kind!r} needs {wanted}")
        if self.kind in ("regex", "lark") and (self.before or self.after or self.thought):
            raise ValueError(f"before, after and thought are for JSON: write them into the {self.kind} grammar")
        if self.thought < 0:
            raise ValueError(f"thought={self.thought} is not valid: expected True, False, or how many tokens at most")
        if self.thought and not self.before:
            raise ValueError("thought=True needs before: the text that ends the thought")

    @classmethod
    def json_schema(
        cls, schema: Mapping[str, Any], *, before: str = "", after: str = "", thought: bool | int = False
    ) -> Grammar:
        """The JSON that a schema allows. ValueError for what is no JSON."""
        try:
            source = json.dumps(schema, ensure_ascii=False)
        except TypeError as error:
            raise ValueError(f"the schema is no JSON: {error}") from None
        return cls("json_schema", source, before, after, thought)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. temperature 0 = greedy. top_k 0, top_p 1, min_p 0 and typical_p 1 = off.

    repetition_penalty divides positive logits (multiplies negative ones) of every token seen in prompt or
    answer (Keskar et al. 2019, CTRL). typical_p: Meister et al. 2022. no_repeat_ngram_size n: no n tokens in a row
    come twice in prompt and answer. bad_words: token sequences that are not written. suppress_tokens: ids that are
    not drawn; begin_suppress_tokens: not as the first one. min_new_tokens: no end before so many. forced_eos: one of
    these is the last of max_new_tokens. stop: strings that end the answer and are cut from it.
    stop_loops: end an answer that repeats itself without end (finish_reason "loop"), by this rule; None = never.
    grammar: what the answer may be. It decides first, so that everything else chooses among what it allows.
    logprobs, keep_scores, keep_logits: what is kept beside the tokens (the last two are a row of the vocabulary each).
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    typical_p: float = 1.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_eos: tuple[int, ...] = ()
    keep_scores: bool = False
    keep_logits: bool = False
    stop_loops: LoopRule | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        checks: list[tuple[str, Any, bool, str]] = [
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (off) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0"),
            ("typical_p", self.typical_p, 0 < self.typical_p <= 1, "in (0, 1]"),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size, self.no_repeat_ngram_size >= 0, "0 (off) or more"),
            ("min_new_tokens", self.min_new_tokens, self.min_new_tokens >= 0, "0 (off) or more"),
            ("bad_words", self.bad_words, all(self.bad_words), "sequences of at least one token id"),
            ("forced_eos", self.forced_eos, not (self.forced_eos and self.grammar), "none beside a grammar"),
        ]
        for name, value, good, wanted in checks:
            if not good:
                raise ValueError(f"{name}={value!r} is not valid: expected {wanted}")


@dataclass
class Completion:
    """The answer to one request: ids without the stop token, text, why it ended, and token log-probabilities.

    An answer that ended as a "loop" holds what came before it and one copy of what was repeated. closed: of an answer
    under a grammar that was cut off, the text with the shortest end found that makes it whole; None otherwise.
    """

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason = "stop"
    logprobs: list[float] | None = None
    prompt_tokens: int = 0
    error: str | None = None
    closed: str | None = None
