"""Streamers as the documented generate() takes them: an object with put(ids) and end().

generate() puts the prompt first, [1, S], then each token as it is drawn, then calls end().
"""

from __future__ import annotations

from collections.abc import Iterator
from queue import Queue
from typing import Protocol

from torch import Tensor

from .detokenizer import Decoder, Detokenizer


class Streamer(Protocol):
    """What generate(streamer=...) needs."""

    def put(self, value: Tensor) -> None:
        """Token ids int64 [1, S] (the prompt) or [1] (a new token), on the CPU."""

    def end(self) -> None:
        """The answer is over, or has failed."""


class TextStreamer:
    """Prints the answer to standard output while it is written.

    tokenizer: a tokenizer or a processor. skip_prompt: leave the prompt out. skip_special_tokens: leave control tokens
    such as <|im_end|> out. clean_up_tokenization_spaces: only False, as text that was shown is not changed any more.
    """

    def __init__(
        self,
        tokenizer: Decoder,
        skip_prompt: bool = False,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        if clean_up_tokenization_spaces:
            raise ValueError("clean_up_tokenization_spaces=True is not supported in a stream: leave it out")
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens)
        self._skip_next = self._skip_prompt = skip_prompt

    def put(self, value: Tensor) -> None:
        if value.ndim == 2 and value.shape[0] != 1:
            raise ValueError(f"a text streamer takes one prompt at a time, got a batch of {value.shape[0]}")
        skip, self._skip_next = self._skip_next, False
        if not skip:
            self.on_finalized_text("".join(self._detokenizer.push(token) for token in value.flatten().tolist()))

    def end(self) -> None:
        self._skip_next = self._skip_prompt
        self.on_finalized_text(self._detokenizer.flush(), stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Where text goes that will not change any more; subclasses send it elsewhere."""
        print(text, end="\n" if stream_end else "", flush=True)


class TextIteratorStreamer(TextStreamer):
    """An iterator over the pieces of the answer, for a reader in another thread than generate().

    timeout: seconds to wait for a piece; then queue.Empty is raised. None waits for ever.
    """

    def __init__(
        self,
        tokenizer: Decoder,
        skip_prompt: bool = False,
        timeout: float | None = None,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, skip_special_tokens, clean_up_tokenization_spaces)
        self._pieces: Queue[str | None] = Queue()
        self._timeout = timeout

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._pieces.put(text)
        if stream_end:
            self._pieces.put(None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self._pieces.get(timeout=self._timeout)
        if piece is None:
            raise StopIteration
        return piece
