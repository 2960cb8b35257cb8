"""Conversations as the documents write them -> a plain form: checked items, and the pictures they name.

An item may have a "type" or be known by its key: text, image (also as url, path or image_url), video.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwenvl.media.resize import smart_resize

SOURCES = ("image", "url", "path", "image_url")
ROLES = ("system", "user", "assistant", "tool")
FIELDS = ("role", "content", "tool_calls", "tool_call_id", "name")
OPTIONS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
ITEM_MIN, ITEM_MAX = 4 * 28 * 28, 16384 * 28 * 28  # limits for resized_height x resized_width, in pixels


@dataclass
class PictureItem:
    """A picture in a conversation: where it comes from (None: handed over beside the text), and its own limits.

    size: (height, width) asked for by resized_height and resized_width, as multiples of 28.
    """

    source: Any
    min_pixels: int | None = None
    max_pixels: int | None = None
    size: tuple[int, int] | None = None


def read_conversation(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[PictureItem]]:
    """(messages with items of type text and image only, their pictures in order of appearance).

    Raises ValueError that names the message and the field for what is not understood.
    """
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError(f"a conversation is a list of messages (dicts), not {type(messages).__name__}")
    plain, pictures = [], []
    for number, message in enumerate(messages):
        where = f"message {number}"
        _only(message, FIELDS, where)
        if message.get("role") not in ROLES:
            raise ValueError(f"{where} has role {message.get('role')!r}: expected one of {', '.join(ROLES)}")
        content = message.get("content")
        if content is None and not message.get("tool_calls"):
            raise ValueError(f"{where} has no content: expected a string or a list of items")
        if isinstance(content, list):
            items = []
            for place, item in enumerate(content):
                text, picture = _read_item(item, f"{where}, item {place}")
                items.append({"type": "image"} if picture else {"type": "text", "text": text})
                if picture:
                    pictures.append(picture)
            content = items
        elif content is not None and not isinstance(content, str):
            raise ValueError(f"{where}: content is {type(content).__name__}, expected a string or a list of items")
        plain.append({**message, "content": content if content is not None else ""})
    return plain, pictures


def _read_item(item: Any, where: str) -> tuple[str, PictureItem | None]:
    """(text, None) or ("", picture)."""
    if isinstance(item, str):
        return item, None
    if not isinstance(item, dict):
        raise ValueError(f"{where} is {type(item).__name__}, expected a dict with text, image or video")
    kind = item.get("type") or next(
        (k for k in ("image", "image_url", "video", "video_url", "text") if k in item), None
    )
    if kind == "text":
        _only(item, ("type", "text"), where)
        if not isinstance(item.get("text"), str):
            raise ValueError(f'{where}: "text" is {type(item.get("text")).__name__}, expected a string')
        return item["text"], None
    if kind in ("image", "image_url"):
        _only(item, ("type", *SOURCES, *OPTIONS), where)
        return "", _picture(item, where)
    if kind in ("video", "video_url"):
        raise ValueError(f"{where}: video input is not supported yet in this version")
    raise ValueError(
        f"{where} has type {kind!r} and keys {sorted(item)}: expected an item of type text, image or video"
    )


def _picture(item: dict[str, Any], where: str) -> PictureItem:
    given = [name for name in SOURCES if item.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"{where} names its picture twice ({', '.join(given)}): give one")
    source = item[given[0]] if given else None
    if isinstance(source, dict):
        _only({name: v for name, v in source.items() if (name, v) != ("detail", "auto")}, ("url",), where)
        source = source.get("url")
    for name in OPTIONS:
        value = item.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{where}: {name}={value!r}, expected a number of pixels, 1 or more")
    height, width = item.get("resized_height"), item.get("resized_width")
    if (height is None) != (width is None):
        raise ValueError(f"{where}: resized_height and resized_width belong together, one of them is missing")
    if height is not None and any(item.get(name) is not None for name in ("min_pixels", "max_pixels")):
        raise ValueError(f"{where}: give resized_height and resized_width, or min_pixels and max_pixels, not both")
    size = smart_resize(height, width, min_pixels=ITEM_MIN, max_pixels=ITEM_MAX) if height and width else None
    return PictureItem(source, item.get("min_pixels"), item.get("max_pixels"), size)


def _only(item: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(item) - set(known))
    if unknown:
        raise ValueError(f"{where} has unknown fields {', '.join(unknown)}: expected some of {', '.join(known)}")
