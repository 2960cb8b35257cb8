"""Token ids -> text, piece by piece: never half a character, never a part of a stop string.

The tokenizer is only asked to `decode` ids whose bytes are joined before they become characters (byte-level
BPE).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """What text needs of a tokenizer (processing.Tokenizer has it)."""

    def decode(self, token_ids: Sequence[int], /, *, skip_special_tokens: bool = ...) -> str: ...


class Detokenizer:
    """Incremental decode: the pieces joined equal one decode of all ids.

    Ids wait until the bytes at their end are a whole character. A decoder writes the first bytes of an
    unfinished character as one replacement character at the end, so exactly that one is withheld. Example:
    the three bytes of the euro sign as three tokens give "", "", and the sign.
    """

    def __init__(self, tokenizer: Decoder, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._waiting: list[int] = []
        self._given = 0  # characters of the waiting ids that were given out already

    def push(self, token_id: int) -> str:
        """The text that this token completes, often ""."""
        self._waiting.append(token_id)
        text = self._tokenizer.decode(self._waiting, skip_special_tokens=self._skip)
        if text.endswith(REPLACEMENT):
            piece = text[self._given : -1]
            self._given += len(piece)
            return piece
        piece = text[self._given :]
        self._waiting, self._given = [], 0
        return piece

    def flush(self) -> str:
        """What is left at the end: a replacement character where the answer ended inside a character."""
        text = self._tokenizer.decode(self._waiting, skip_special_tokens=self._skip) if self._waiting else ""
        piece = text[self._given :]
        self._waiting, self._given = [], 0
        return piece


class StopStrings:
    """Cuts text at the stop string that is complete first (of two that end together, the longer one).

    Text that may be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise ValueError(f"stop={tuple(stops)!r} has an empty string: expected strings of at least one character")
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is certain, whether a stop string was met). After True nothing more may be pushed."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                self._held = text[-length:]
                return text[:-length], False
        self._held = ""
        return text, False

    def flush(self) -> str:
        """The text held back, when the answer has ended in another way."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """Text of one answer: detokenizer and stop strings behind one another."""

    def __init__(self, tokenizer: Decoder, stops: Sequence[str] = (), skip_special_tokens: bool = True) -> None:
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens)
        self._stops = StopStrings(stops)
        self._stopped = False

    def push(self, token_id: int) -> tuple[str, bool]:
        """(new text, whether a stop string ends the answer here)."""
        text, self._stopped = self._stops.push(self._detokenizer.push(token_id))
        return text, self._stopped

    def flush(self) -> str:
        """The rest of the text at the end of the answer; nothing after a stop string."""
        if self._stopped:
            return ""
        text, stopped = self._stops.push(self._detokenizer.flush())
        return text if stopped else text + self._stops.flush()
