"""A conversation of several turns about pictures and videos.

In: pictures and videos, then questions. Out: answers piece by piece; the conversation as the documents write it, to
keep in a file and take up again. Pictures are opened once and stay as they were. What the turns before computed is
found again in the engine's cache, so a question costs what is new in it.
Does not know: terminals, and how an answer is computed: it takes an object that answers.

    chat = Chat.of(Assistant("demo"))
    chat.attach("image", "drawing.png", load_image("drawing.png"))
    for piece in chat.stream("How many circles are there?"):
        print(piece, end="")
    print("".join(chat.stream("And squares?")))
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from qwenvl.tasks.answer import Answer, Stream
from qwenvl.types import SamplingParams
from qwenvl.whole_file import write_whole

if TYPE_CHECKING:
    from qwenvl.tasks.ask import Assistant

Kind = Literal["image", "video"]
ROOM = 128  # positions that must be left for an answer, where --max-new-tokens does not ask for less
AROUND = 16  # most tokens that a chat template writes around a message


class Replies(Protocol):
    """What a chat needs of an assistant."""

    def stream_reply(self, messages: list[dict[str, Any]], sampling: SamplingParams | None = None) -> Stream: ...


@dataclass(frozen=True)
class Item:
    """A picture or video of a conversation. source: where it came from, as it is written into files. content: the
    opened picture or video. options: of the item, such as fps."""

    kind: Kind
    source: str
    content: Any
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """A question with its pictures and videos, and its answer; stopped: which somebody stopped."""

    items: tuple[Item, ...]
    question: str
    answer: str
    stopped: bool = False


class TooLongError(ValueError):
    """The conversation and the question take `needed` of `limit` positions; without the `oldest` turns they fit."""

    def __init__(self, needed: int, limit: int, oldest: int) -> None:
        turns = "the oldest turn" if oldest == 1 else f"the oldest {oldest} turns"
        super().__init__(
            f"the conversation takes {needed} positions with room for an answer, and this model has {limit}: "
            f"it goes on without {turns}"
        )
        self.needed, self.limit, self.oldest = needed, limit, oldest


class Chat:
    """A growing conversation. assistant: who answers. limit: positions that the model has (a token is one; a picture
    takes the longer of its sides in tokens); None = no end. count(messages): the positions that a conversation takes;
    needed with a limit."""

    def __init__(
        self,
        assistant: Replies,
        sampling: SamplingParams | None = None,
        *,
        system: str | None = None,
        limit: int | None = None,
        count: Callable[[list[dict[str, Any]]], int] | None = None,
    ) -> None:
        assert limit is None or count is not None
        self._assistant, self.sampling, self.system = assistant, sampling or SamplingParams(), system
        self.limit, self._count = limit, count
        self.turns: list[Turn] = []
        self.pending: list[Item] = []
        self.last: Answer | None = None  # of the last turn, where it was answered here and to its end
        self._taken: int | None = 0  # at most so many positions are taken by the turns; None = not known

    @classmethod
    def of(cls, assistant: Assistant, sampling: SamplingParams | None = None, *, system: str | None = None) -> Chat:
        """A chat with a loaded model, within the positions that its configuration is made for."""

        def count(messages: list[dict[str, Any]]) -> int:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a prompt is too long is said by us
                request, _ = assistant.prepare_reply(messages)
            return request.num_tokens + request.delta

        limit = int(assistant.model.config.text_config.context_length)
        return cls(assistant, sampling, system=system, limit=limit, count=count)

    @property
    def items(self) -> list[Item]:
        """The pictures and videos of all turns, in order."""
        return [item for turn in self.turns for item in turn.items]

    def attach(self, kind: Kind, source: str, content: Any, **options: Any) -> None:
        """Put a picture or video before the next question."""
        self.pending.append(Item(kind, source, content, options))

    def stream(self, question: str) -> Generator[str, None, None]:
        """The pieces of the answer. Once they are read, the turn belongs to the conversation.

        Closed or interrupted (KeyboardInterrupt) before the end, it keeps what was written until then; nothing, where
        nothing was. Raises ValueError for a question that cannot be asked (the conversation stays as it was), and
        TooLongError where it can without the oldest turns.
        """
        if not question.strip():
            raise ValueError("the question is empty: write one")
        messages = self.messages(question)
        sampling = self._within_limit(question, messages)
        stream = self._assistant.stream_reply(messages, sampling)
        pieces: list[str] = []
        try:
            for piece in stream:
                pieces.append(piece)
                yield piece
        except (GeneratorExit, KeyboardInterrupt):
            if any(pieces):
                self._keep(question, "".join(pieces), None)
            raise
        self._keep(question, stream.answer.text, stream.answer)

    def _keep(self, question: str, text: str, answer: Answer | None) -> None:
        self.turns.append(Turn(tuple(self.pending), question, text, stopped=answer is None))
        self.pending, self.last = [], answer
        if answer is None:
            self._taken = None
        else:
            self._taken = answer.completion.prompt_tokens + len(answer.completion.token_ids) + AROUND

    def _within_limit(self, question: str, messages: list[dict[str, Any]]) -> SamplingParams:
        """Sampling with no more tokens than there is room for. Raises as `stream` does, without room for an answer."""
        if self.limit is None or self._count is None:
            return self.sampling
        most = self.sampling.max_new_tokens
        if self._taken is not None and not self.pending:  # a token has at least a byte, and at most one position
            bound = self._taken + len(question.encode()) + len((self.system or "").encode()) + 4 * AROUND
            if bound + most <= self.limit:
                return self.sampling
        room, needed = min(ROOM, most), self._count(messages)
        if needed + room <= self.limit:
            return replace(self.sampling, max_new_tokens=min(most, self.limit - needed))
        for oldest in range(1, len(self.turns) + 1):
            if self._count(self.messages(question, oldest)) + room <= self.limit:
                raise TooLongError(needed + room, self.limit, oldest)
        alone = self._count(self.messages(question, len(self.turns)))
        raise ValueError(
            f"the question and its pictures take {alone} positions, and this model has {self.limit} with {room} of "
            "them for the answer: ask with fewer or smaller pictures"
        )

    def messages(self, question: str | None = None, start: int = 0) -> list[dict[str, Any]]:
        """The conversation as the assistant takes it, from the turn `start` on; with a question, that follows it."""
        messages = self._written(self.turns[start:], _opened)
        if question is not None:
            messages.append(_user(self.pending, question, _opened))
        return messages

    def _written(self, turns: list[Turn], write: Callable[[Item], dict[str, Any]]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        for turn in turns:
            messages.append(_user(turn.items, turn.question, write))
            messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def undo(self) -> Turn | None:
        """Take the last turn back; its pictures and videos are put before the next question. None: there was none."""
        if not self.turns:
            return None
        turn = self.turns.pop()
        self.pending = [*turn.items, *self.pending]
        self.last, self._taken = None, None
        return turn

    def drop(self, oldest: int) -> list[Turn]:
        """Take the oldest turns out, with their pictures and videos."""
        dropped, self.turns = self.turns[:oldest], self.turns[oldest:]
        self._taken = None
        if not self.turns or any(turn.items for turn in dropped):
            self.last = None  # its pictures are counted from the beginning of the conversation
        return dropped

    def clear(self) -> None:
        """Forget all turns, and what was to come before the next question; the system prompt stays."""
        self.turns, self.pending, self.last, self._taken = [], [], None, 0

    def set_system(self, text: str | None) -> None:
        """Another system prompt; None = the chat template's own."""
        self.system, self._taken = text, None if self.turns else 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation as JSON: {"messages": as the documents write them}, files with their whole paths.
        Pictures and videos are named and not copied."""
        written = self._written(self.turns, _named)
        text = json.dumps({"messages": written}, ensure_ascii=False, indent=1) + "\n"
        write_whole(Path(path), text.encode())

    def load(self, path: str | os.PathLike[str], opened: Callable[[Kind, str, dict[str, Any]], Any]) -> None:
        """Take up a conversation that `save` wrote, or a list of messages, in place of this one.

        opened(kind, source, options) -> the picture or video. Raises ValueError, and what `opened` raises, for a file
        that is none or pictures that are not there any more; this conversation then stays as it was.
        """
        system, turns = read_turns(Path(path), opened)
        self.clear()
        self.system, self.turns, self._taken = system, turns, None


def _user(items: Iterable[Item], question: str, write: Callable[[Item], dict[str, Any]]) -> dict[str, Any]:
    return {"role": "user", "content": [*map(write, items), {"type": "text", "text": question}]}


def _opened(item: Item) -> dict[str, Any]:
    """The item with what was opened; the options of a video were for opening it."""
    return {"type": item.kind, item.kind: item.content, **(item.options if item.kind == "image" else {})}


def _named(item: Item) -> dict[str, Any]:
    """The item as it stands in a file."""
    is_address = re.match(r"(https?://|file:|data:)", item.source, re.IGNORECASE)
    source = item.source if is_address else os.path.abspath(item.source)
    return {"type": item.kind, item.kind: source, **item.options}


def read_turns(path: Path, opened: Callable[[Kind, str, dict[str, Any]], Any]) -> tuple[str | None, list[Turn]]:
    """(system prompt, turns) of a file with a conversation. ValueError where it is none that a chat can take up."""
    from qwenvl.processing.messages import read_conversation

    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no conversation: {error}") from None
    messages: Any = data.get("messages") if isinstance(data, dict) else data
    try:
        read_conversation(messages)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    system = None
    if messages[0]["role"] == "system":
        system, messages = _text(messages[0], path), messages[1:]
    roles = [message["role"] for message in messages]
    if len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(f"{path}: expected user and assistant in turn, up to an answer; found {', '.join(roles[:12])}")
    pairs = zip(messages[::2], messages[1::2], strict=True)
    return system, [Turn(tuple(_items(ask, path, opened)), _text(ask, path), _text(say, path)) for ask, say in pairs]


def _parts(message: dict[str, Any]) -> list[Any]:
    content = message["content"]
    return [content] if isinstance(content, str) else list(content)


def _text(message: dict[str, Any], path: Path) -> str:
    if message.get("tool_calls"):
        raise ValueError(f"{path}: a message calls tools, and a chat has none")
    return "".join(p if isinstance(p, str) else p.get("text", "") for p in _parts(message))


def _items(message: dict[str, Any], path: Path, opened: Callable[[Kind, str, dict[str, Any]], Any]) -> Iterator[Item]:
    for part in _parts(message):
        if isinstance(part, str) or "text" in part:
            continue
        kind: Kind = "video" if "video" in str(part.get("type")) or "video" in part or "video_url" in part else "image"
        names = (kind, f"{kind}_url", "url", "path")
        source = next((part[name] for name in names if part.get(name) is not None), None)
        source = source.get("url") if isinstance(source, dict) else source
        if not isinstance(source, str):
            raise ValueError(f"{path}: a {kind} names no file or address")
        options = {name: value for name, value in part.items() if name not in ("type", *names)}
        yield Item(kind, source, opened(kind, source, options), options)
