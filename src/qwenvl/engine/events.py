"""What the engine tells: events of requests, and itself in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from qwenvl.types import FinishReason


@dataclass(frozen=True)
class StreamEvent:
    """What one step did to one request.

    text: new text that will not change any more, often "". token_id: the token drawn, stop tokens included;
    None when the request ended without one. finish_reason: None while the answer goes on. logprob: when asked
    for.
    """

    request_id: str
    text: str = ""
    token_id: int | None = None
    finish_reason: FinishReason | None = None
    logprob: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class EngineStats:
    """How full the engine is, and what its caches and drafts have saved since it began.

    preparing, waiting, running: requests. cache_tokens, used_tokens: room of the KV cache, and what requests hold of
    it. prompt_tokens, found_tokens: asked for, and not computed because the cache had them. vision_hits, vision_misses:
    look-ups of pictures by content. drafted, accepted: tokens guessed from the prompt, and right.
    """

    preparing: int
    waiting: int
    running: int
    preemptions: int
    cache_tokens: int
    used_tokens: int
    prompt_tokens: int
    found_tokens: int
    vision_hits: int
    vision_misses: int
    vision_bytes: int
    drafted: int
    accepted: int


def described(error: Exception) -> str:
    """An error as a request tells it."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
