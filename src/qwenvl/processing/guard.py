"""Keeps what users typed apart from what the chat template wrote, so that no user text becomes a control token.

The strings of a conversation are searched for spellings of added tokens, whole ones and beginnings at a string's end
(two items in a row could make a whole one). They are hidden behind marks while the template is rendered, and come
back as pieces that the tokenizer takes as plain text. In what users and tools say and in tool schemas this concerns
every added token; system prompts and answers may hold marks of content (<tool_call>, <|box_start|>), which are part
of how the model writes, but nothing that makes turns or places for pictures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, TypeAlias

Piece: TypeAlias = tuple[str, bool]  # text, and whether the spelling of an added token in it counts as the token
Messages: TypeAlias = list[dict[str, Any]]
Tools: TypeAlias = list[dict[str, Any]] | None
MARKS = range(0xF0000, 0xFFFFE)  # private-use characters
TRUSTED_ROLES = ("system", "assistant")


class Guard:
    """added: the spellings of all added tokens; control: of those that nobody may type."""

    def __init__(self, added: Collection[str], control: Collection[str]) -> None:
        self._added, self._control = _Spellings(added), _Spellings(control)

    def render(self, template: Callable[[Messages, Tools], str], messages: Messages, tools: Tools) -> list[Piece]:
        """template(messages, tools) as pieces; joined they are its text. It is called with copies in which parts of
        strings are replaced by marks."""
        strings = list(_strings([messages, tools]))
        mark = next(c for c in map(chr, MARKS) if not any(c in s for s in strings))
        hidden: list[str] = []

        def hide(part: str) -> str:
            hidden.append(part)
            return f"{mark}{len(hidden) - 1}{mark}"

        marked = []
        for message in messages:
            spellings = self._control if message.get("role") in TRUSTED_ROLES else self._added
            marked.append(_mapped(partial(spellings.replace, change=hide), message))
        schemas = _mapped(partial(self._added.replace, change=hide), tools)
        pieces = re.split(f"{mark}(\\d+){mark}", template(marked, schemas))
        return [(hidden[int(p)], False) if i % 2 else (p, True) for i, p in enumerate(pieces)]


class _Spellings:
    """Finds some tokens in text, and what may be the beginning of one at its end."""

    def __init__(self, tokens: Collection[str]) -> None:
        longest_first = sorted(tokens, key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._starts = {token[:n] for token in tokens for n in range(1, len(token))}
        self._reach = max(map(len, tokens), default=1) - 1

    def replace(self, text: str, change: Callable[[str], str]) -> str:
        tail = next((n for n in range(min(len(text), self._reach), 0, -1) if text[-n:] in self._starts), 0)
        body, end = text[: len(text) - tail], text[len(text) - tail :]
        return self._whole.sub(lambda match: change(match.group()), body) + (change(end) if end else "")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _mapped(change: Callable[[str], str], value: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_mapped(change, key): _mapped(change, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(change, inner) for inner in value]
    return value
