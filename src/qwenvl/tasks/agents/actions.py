"""Actions: the arguments of a tool call -> a checked Action, and its coordinates from one screen to another.

In: "computer_use" or "mobile_use" and arguments as a model wrote them. Out: Action, or an ActionError whose text can be
told to the model.
Does not know devices: it says what is wanted, not how it is done.

Written forms that are read beside the documented ones: coordinates as text ("(12, 34)", "[12, 34]"), as {"x", "y"} and
as a box (its centre); keys as one text ("ctrl+c") and under "text"; numbers as text. A field that the action does not
use is left aside: models add empty ones.
FIELDS is the one table of what a field may be: how it is read, what is said where it makes no sense, and what the
grammar of constrained answers (grammar.py) lets a model write.
Example: read_action("computer_use", {"action": "left_click", "coordinate": [658, 364]})
        .scaled((1316, 728), (1920, 1080))
    -> Action("left_click", coordinate=(960.0, 540.0))
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from qwenvl.tasks.agents.schemas import STATUSES, SYSTEM_BUTTONS

Size = tuple[int, int]
XY = tuple[float, float]

LONGEST_WAIT = 60.0
LONGEST_TEXT, LONGEST_SCROLL = 2000, 100_000  # characters and pixels that a constrained answer may write
DEFAULT_WAIT = 2.0  # seconds of a wait or a long press that does not say how long
# What each action must have, and what it may have.
_COMPUTER: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "key": (("keys",), ()),
    "type": (("text",), ()),
    "mouse_move": (("coordinate",), ()),
    "left_click": ((), ("coordinate",)),
    "left_click_drag": (("coordinate",), ("coordinate2",)),
    "right_click": ((), ("coordinate",)),
    "middle_click": ((), ("coordinate",)),
    "double_click": ((), ("coordinate",)),
    "scroll": (("pixels",), ("coordinate",)),
    "wait": ((), ("time",)),
    "terminate": (("status",), ()),
}
_MOBILE: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "key": (("text",), ()),
    "click": (("coordinate",), ()),
    "long_press": (("coordinate",), ("time",)),
    "swipe": (("coordinate", "coordinate2"), ()),
    "type": (("text",), ()),
    "system_button": (("button",), ()),
    "open": (("text",), ()),
    "wait": ((), ("time",)),
    "terminate": (("status",), ()),
}
ACTIONS: Mapping[str, Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "computer_use": _COMPUTER,
    "mobile_use": _MOBILE,
}
_ALIASES = {"keys": ("keys", "key", "text"), "text": ("text", "keys"), "coordinate2": ("coordinate2", "coordinates2")}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class ActionError(ValueError):
    """What was asked for cannot be done; the text says why and what could be, in words for the model."""


@dataclass(frozen=True)
class Action:
    """One action. Coordinates are (x, y) in pixels of some screen: the one that the model saw as read_action makes
    them, the device's own behind `scaled`. A click without one happens where the cursor is. time: seconds. pixels: how
    far to scroll, upwards where positive. left_click_drag: to coordinate, or from coordinate to coordinate2."""

    action: str
    coordinate: XY | None = None
    coordinate2: XY | None = None
    text: str | None = None
    keys: tuple[str, ...] | None = None
    pixels: float | None = None
    time: float | None = None
    button: str | None = None
    status: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, for JSON."""
        named = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Action:
        """What to_dict wrote. ValueError for fields of another name."""
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        try:
            return cls(**known)
        except TypeError as error:
            raise ValueError(f"not an action: {dict(fields)} ({error})") from None

    def scaled(self, seen: Size, screen: Size) -> Action:
        """The same action in pixels of a screen of size `screen`, for one in pixels of a picture of it of size `seen`
        (both width, height); coordinates beyond the picture are brought to its border."""
        moved = {
            name: _onto(value, seen, screen)
            for name, value in (("coordinate", self.coordinate), ("coordinate2", self.coordinate2))
            if value is not None
        }
        pixels = self.pixels if self.pixels is None else round(self.pixels * screen[1] / seen[1], 2)
        return replace(self, **moved, pixels=pixels)  # type: ignore[arg-type]

    def __str__(self) -> str:
        parts = [self.action]
        for name, value in self.to_dict().items():
            if name in ("coordinate", "coordinate2"):
                parts.append(f"({value[0]:g}, {value[1]:g})")
            elif name == "keys":
                parts.append("+".join(value))
            elif name != "action":
                parts.append(repr(value) if name == "text" else f"{value:g}" if isinstance(value, float) else value)
        return " ".join(parts)


def _onto(point: XY, seen: Size, screen: Size) -> XY:
    """A point of the picture on the screen, within its borders, to a hundredth of a pixel."""
    return tuple(  # type: ignore[return-value]
        round(min(max(value * there / here, 0.0), there - 1.0), 2)
        for value, here, there in zip(point, seen, screen, strict=True)
    )


def read_action(tool: str, arguments: Mapping[str, Any]) -> Action:
    """The action that a call of `tool` asks for, in the pixels that the model saw.

    Raises ActionError for an unknown tool or action, and for a field that is missing or makes no sense.
    """
    if tool not in ACTIONS:
        raise ActionError(f"there is no tool {tool!r}: call {' or '.join(ACTIONS)}")
    known = ACTIONS[tool]
    name = arguments.get("action")
    if not isinstance(name, str) or name not in known:
        raise ActionError(f"unknown action {name!r}: expected one of {', '.join(known)}")
    required, optional = known[name]
    fields: dict[str, Any] = {}
    for field in (*required, *optional):
        value = next(
            (arguments[alias] for alias in _ALIASES.get(field, (field,)) if not _empty(arguments, alias)), None
        )
        if value is not None:
            fields[field] = FIELDS[field].read(value, f"{name}: {field}")
        elif field in required and not (field == "text" and arguments.get("text") == ""):
            raise ActionError(f"{name} needs {field}: {FIELDS[field].wanted}")
    if name in ("wait", "long_press"):
        fields.setdefault("time", DEFAULT_WAIT)
    return Action(name, **fields)


def _empty(arguments: Mapping[str, Any], name: str) -> bool:
    value = arguments.get(name)
    return value is None or (isinstance(value, str | list | tuple | dict) and len(value) == 0)


def _wrong(value: Any, where: str) -> ActionError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ActionError(f"{where} is {shown}, expected {FIELDS[where.rpartition(' ')[2]].wanted}")


def _number(value: Any, where: str) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise _wrong(value, where)
    return float(value)


def _point(value: Any, where: str) -> XY:
    """Two numbers are a point, four a box whose centre is meant."""
    given = value
    if isinstance(value, Mapping):
        value = [value.get("x"), value.get("y")]
    elif isinstance(value, str):
        value = _NUMBER.findall(value)
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, list | tuple) or len(value) not in (2, 4):
        raise _wrong(given, where)
    try:
        numbers = [_number(v, where) for v in value]
    except ActionError:
        raise _wrong(given, where) from None
    if len(numbers) == 4:
        return (numbers[0] + numbers[2]) / 2, (numbers[1] + numbers[3]) / 2
    return numbers[0], numbers[1]


def _text(value: Any, where: str) -> str:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)  # a model that types 42 means its digits
    if not isinstance(value, str):
        raise _wrong(value, where)
    return value


def _keys(value: Any, where: str) -> tuple[str, ...]:
    """Key names, one each: ["ctrl+c"], "ctrl+c" and ["ctrl", "c"] are the same; "+" and "ctrl++" know the key +."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(k, str | int) for k in listed) or not listed:
        raise _wrong(value, where)
    keys: list[str] = []
    for chord in map(str, listed):
        if len(chord) == 1:
            keys.append(chord)
            continue
        plus = chord.endswith("++") or chord.strip() == "+"
        keys += [key.strip() for key in chord.rstrip("+").split("+") if key.strip()] + ["+"] * plus
    if not keys:
        raise _wrong(value, where)
    return tuple(keys)


def _time(value: Any, where: str) -> float:
    seconds = _number(value, where)
    if not 0 <= seconds <= LONGEST_WAIT:
        raise _wrong(value, where)
    return seconds


def _one_of(names: tuple[str, ...]) -> Any:
    def read(value: Any, where: str) -> str:
        found = next((n for n in names if isinstance(value, str) and value.strip().lower() == n.lower()), None)
        if found is None:
            raise _wrong(value, where)
        return found

    return read


@dataclass(frozen=True)
class Field:
    """A field of an action. read(value, where) -> what it means, or ActionError; wanted: what is expected, in words;
    schema: what a constrained answer writes."""

    read: Callable[[Any, str], Any]
    wanted: str
    schema: Mapping[str, Any]


_ON_SCREEN = {"type": "array", "format": "point_2d", "picture": -1}  # the last picture of the prompt
# In the order in which they are written.
FIELDS: Mapping[str, Field] = {
    "keys": Field(
        _keys,
        'a list of key names, such as ["ctrl", "c"]',
        {"type": "array", "items": {"type": "string", "pattern": r"^\S{1,24}$"}, "minItems": 1, "maxItems": 6},
    ),
    "text": Field(_text, "a text", {"type": "string", "minLength": 1, "maxLength": LONGEST_TEXT}),
    "coordinate": Field(_point, "[x, y] in pixels of the screenshot", _ON_SCREEN),
    "coordinate2": Field(_point, "[x, y] in pixels of the screenshot, where it ends", _ON_SCREEN),
    "pixels": Field(
        _number,
        "a number, above 0 to scroll up, below 0 to scroll down",
        {"type": "integer", "minimum": -LONGEST_SCROLL, "maximum": LONGEST_SCROLL},
    ),
    "time": Field(
        _time,
        f"seconds, from 0 to {LONGEST_WAIT:g}",
        {"type": "integer", "minimum": 0, "maximum": int(LONGEST_WAIT)},
    ),
    "button": Field(_one_of(SYSTEM_BUTTONS), f"one of {', '.join(SYSTEM_BUTTONS)}", {"enum": list(SYSTEM_BUTTONS)}),
    "status": Field(_one_of(STATUSES), f"one of {', '.join(STATUSES)}", {"enum": list(STATUSES)}),
}
