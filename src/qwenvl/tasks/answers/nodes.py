"""Values as they stand in a text: each with the characters that wrote it.

In: nothing; `literals` makes them. Out: nodes, and `plain` makes Python values of them. Knows no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Scalar:
    """A text, number, true, false or null, at text[start:end]."""

    value: Any
    start: int
    end: int


@dataclass(slots=True)
class Items:
    """A list or tuple."""

    items: list[Node]
    start: int
    end: int


@dataclass(slots=True)
class Fields:
    """An object. pairs: keys with their values as written, a key more than once if it was; loose: objects within it
    that have no key; cut: the text ended within one of its fields."""

    pairs: list[tuple[str, Node]]
    loose: list[Node]
    start: int
    end: int
    cut: bool = False


Node = Scalar | Items | Fields


def plain(node: Node) -> Any:
    """A node as Python values. Of a key that was written twice, the last value counts."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    return {key: plain(value) for key, value in node.pairs}
