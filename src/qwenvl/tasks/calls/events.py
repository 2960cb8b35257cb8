"""What is told of tool calls: the call itself, and the events of an answer that comes piece by piece."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A call. raw: the JSON as it was written, without its tags."""

    name: str
    arguments: dict[str, Any]
    raw: str = field(default="", compare=False)

    @property
    def arguments_json(self) -> str:
        """The arguments as JSON text, as the OpenAI format wants them."""
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True)
class TextDelta:
    """More text of the answer."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """A call has begun: the how-many-th of the answer, from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """More of the JSON text of a call's arguments. Joined, the deltas of a call are valid JSON, equal to its
    arguments, even where the model wrote damaged JSON."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """A call is whole."""

    index: int
    call: ToolCall


@dataclass(frozen=True)
class CallBroken:
    """A call that had begun cannot be read to its end; raw: what was written, tags included."""

    index: int
    raw: str


CallEvent = TextDelta | CallBegin | ArgumentsDelta | CallEnd | CallBroken
