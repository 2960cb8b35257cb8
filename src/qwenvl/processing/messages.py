"""Conversations as the documents write them -> a plain form: checked items, and the pictures and videos they name.

An item may have a "type" or be known by its key: text, image or image_url, video or video_url; where it says its type,
its source may also be called url or path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from os import PathLike
from typing import Any

from qwenvl.media.policy import MediaError
from qwenvl.media.resize import smart_resize
from qwenvl.media.sampling import IMAGE_MAX_PIXELS, IMAGE_MIN_PIXELS

IMAGE_SOURCES = ("image", "url", "path", "image_url")
VIDEO_SOURCES = ("video", "url", "path", "video_url")
ROLES = ("system", "user", "assistant", "tool")
FIELDS = ("role", "content", "tool_calls", "tool_call_id", "name")
OPTIONS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
COUNTS = (*OPTIONS, "nframes", "min_frames", "max_frames", "total_pixels")
SECONDS = ("video_start", "video_end")
RATES = ("fps", "sample_fps", "raw_fps")
VIDEO_OPTIONS = (*COUNTS, *SECONDS, *RATES)
MANY = 10**12  # no count, rate or time is as large


@dataclass
class PictureItem:
    """A picture in a conversation: where it comes from (None: handed over beside the text), and its own limits.

    size: (height, width) asked for by resized_height and resized_width, as multiples of 28. where: its place, for
    messages of errors.
    """

    source: Any
    min_pixels: int | None = None
    max_pixels: int | None = None
    size: tuple[int, int] | None = None
    where: str = ""


@dataclass
class VideoItem:
    """A video in a conversation. options: fields of VideoOptions that the item sets; of frames, fps tells how many a
    second they are."""

    source: Any
    options: dict[str, Any] = field(default_factory=dict)
    metadata: Any = None
    where: str = ""


@dataclass
class Talk:
    """A conversation in plain form: messages with items of type text, image and video only, and what these are, in
    order of appearance."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[PictureItem] = field(default_factory=list)
    videos: list[VideoItem] = field(default_factory=list)


@contextmanager
def named(where: str) -> Iterator[None]:
    """A ValueError inside becomes one that begins with the place."""
    try:
        yield
    except ValueError as error:
        if not where:
            raise
        kind = MediaError if isinstance(error, MediaError) else ValueError
        raise kind(f"{where}: {error}") from error


def read_conversation(messages: Any, place: str = "") -> Talk:
    """The plain form. place: "conversation N" where there are several. Raises ValueError that names the message, the
    item and the field for what is not understood."""
    with named(place):
        if not isinstance(messages, list | tuple) or not all(isinstance(m, Mapping) for m in messages):
            wrong = [m for m in messages if not isinstance(m, Mapping)] if isinstance(messages, list | tuple) else []
            found = _kind(messages) + (f" with {_kind(wrong[0])}" if wrong else "")
            raise ValueError(f"a conversation is a list of messages (dicts), not {found}")
        if not messages:
            raise ValueError("the conversation is empty: expected at least one message")
    talk = Talk()
    for number, message in enumerate(messages):
        where = f"{place}, message {number}" if place else f"message {number}"
        _only(message, FIELDS, where)
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"{where} has role {_short(role)}: expected one of {', '.join(ROLES)}")
        _check_calls(message.get("tool_calls"), where)
        if content is None and not message.get("tool_calls"):
            raise ValueError(f"{where} has no content: expected a string or a list of items")
        if isinstance(content, list | tuple):
            content = [_read_item(item, f"{where}, item {i}", talk) for i, item in enumerate(content)]
        elif content is not None and not isinstance(content, str):
            raise ValueError(f"{where}: content is {_kind(content)}, expected a string or a list of items")
        talk.messages.append({**message, "content": content if content is not None else ""})
    return talk


def _read_item(item: Any, where: str, talk: Talk) -> dict[str, Any]:
    """The plain form of an item; a picture or video is added to the talk."""
    if isinstance(item, str):
        return {"type": "text", "text": item}
    if not isinstance(item, Mapping):
        raise ValueError(f"{where} is {_kind(item)}, expected a dict with text, image or video")
    kind = item.get("type")
    if kind is None:
        kind = next((k for k in ("image", "image_url", "video", "video_url", "text") if k in item), None)
    if not isinstance(kind, str) or kind not in ("image", "image_url", "video", "video_url", "text"):
        raise ValueError(
            f"{where} has type {_short(kind)} and keys {_names(item)}: expected an item of type text, image or video"
        )
    if kind == "text":
        _only(item, ("type", "text"), where)
        if not isinstance(item.get("text"), str):
            raise ValueError(f'{where}: "text" is {_kind(item.get("text"))}, expected a string')
        return {"type": "text", "text": item["text"]}
    if kind in ("image", "image_url"):
        talk.pictures.append(_picture(item, where))
        return {"type": "image"}
    talk.videos.append(_video(item, where))
    return {"type": "video"}


def _picture(item: Mapping[str, Any], where: str) -> PictureItem:
    _only(item, ("type", *IMAGE_SOURCES, *OPTIONS), where)
    name, source = _source(item, IMAGE_SOURCES, where, "picture")
    _check_numbers(item, where)
    size = _fixed_size(item, where)
    return PictureItem(source, item.get("min_pixels"), item.get("max_pixels"), size, f"{where}, {name}")


def _video(item: Mapping[str, Any], where: str) -> VideoItem:
    _only(item, ("type", *VIDEO_SOURCES, *VIDEO_OPTIONS), where)
    name, source = _source(item, VIDEO_SOURCES, where, "video")
    _check_numbers(item, where)
    size = _fixed_size(item, where)
    is_file = isinstance(source, str | PathLike | bytes | bytearray)
    options = {name: item[name] for name in VIDEO_OPTIONS if item.get(name) is not None}
    own, _ = options.pop("sample_fps", None), options.pop("raw_fps", None)
    if is_file and (own or item.get("raw_fps")):
        raise ValueError(f"{where}: sample_fps and raw_fps tell of frames that are given; for a file give fps")
    if own is not None:
        options["fps"] = own
    if "fps" in options and "nframes" in options:
        raise ValueError(f"{where}: fps and nframes exclude each other, give one")
    if size:
        options["resized_height"], options["resized_width"] = size
    return VideoItem(source, options, None, f"{where}, {name}")


def _source(item: Mapping[str, Any], names: tuple[str, ...], where: str, kind: str) -> tuple[str, Any]:
    """(field, where the picture or video comes from, None for a placeholder)."""
    given = [name for name in names if item.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"{where} names its {kind} twice ({', '.join(given)}): give one")
    if not given:
        return names[0], None
    source = item[given[0]]
    if isinstance(source, Mapping):
        auto = "detail" in source and isinstance(source["detail"], str) and source["detail"] == "auto"
        _only({k: v for k, v in source.items() if k != "detail" or not auto}, ("url",), where)  # auto asks for nothing
        source = source.get("url")
        if not isinstance(source, str):
            raise ValueError(f"{where}: {given[0]} has no text under url")
    return given[0], source


def _check_numbers(item: Mapping[str, Any], where: str) -> None:
    for name in COUNTS:
        value = item.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, Integral) or not 0 < int(value) < MANY
        ):
            raise ValueError(f"{where}: {name}={_short(value)}, expected a whole number from 1 to {MANY}")
    for name in (*RATES, *SECONDS):
        value, least = item.get(name), "above 0" if name in RATES else "of seconds, 0 or more"
        if value is None:
            continue
        good = not isinstance(value, bool) and isinstance(value, float | int) and 0 <= value < MANY
        if not good or (name in RATES and value == 0):
            raise ValueError(f"{where}: {name}={_short(value)}, expected a number {least}")


def _fixed_size(item: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """(height, width) by resized_height and resized_width."""
    height, width = item.get("resized_height"), item.get("resized_width")
    if (height is None) != (width is None):
        raise ValueError(f"{where}: resized_height and resized_width belong together, one of them is missing")
    if height is None or width is None:
        return None
    if any(item.get(name) is not None for name in ("min_pixels", "max_pixels")):
        raise ValueError(f"{where}: give resized_height and resized_width, or min_pixels and max_pixels, not both")
    with named(f"{where}, resized_height x resized_width"):
        return smart_resize(height, width, min_pixels=IMAGE_MIN_PIXELS, max_pixels=IMAGE_MAX_PIXELS)


def _check_calls(calls: Any, where: str) -> None:
    """tool_calls: a list of {"name", "arguments"} or {"function": {...}}."""
    if calls is None:
        return
    if not isinstance(calls, list | tuple):
        raise ValueError(f"{where}: tool_calls is {_kind(calls)}, expected a list of calls")
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if (
            not isinstance(function, Mapping)
            or not isinstance(function.get("name"), str)
            or not isinstance(function.get("arguments"), str | Mapping)
        ):
            raise ValueError(
                f'{where}: tool_calls[{i}] is no call, expected {{"name": text, "arguments": dict or text}}'
            )


def _only(item: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = [name for name in item if not isinstance(name, str) or name not in known]
    if unknown:
        raise ValueError(
            f"{where} has unknown fields {', '.join(sorted(map(_word, unknown)))}: expected some of {', '.join(known)}"
        )


def _names(item: Mapping[str, Any]) -> list[str]:
    return sorted(map(_word, item))


def _word(name: Any) -> str:
    """A field's name as it stands in a message."""
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= 80 else _short(name)


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _short(value: Any) -> str:
    """The value as it stands in a message, on one line and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:80] + "..."
