"""A trace, done again on a device, and whether it ended in the same place.

In: a trace folder and a device at the same start. Out: Replay. No model is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl.tasks.agents.actions import Action, ActionError
from qwenvl.tasks.agents.devices import Device
from qwenvl.tasks.agents.trace import read_trace

if TYPE_CHECKING:
    from PIL.Image import Image

ALIKE = 0.98  # a blinking cursor or a clock is less than two hundredths of a screen


@dataclass(frozen=True)
class Replay:
    """done: how many actions were done. state: where the device is now. differences: what is not as it was, in words;
    none when it ended in the same place. similarity: share of the last screen that looks the same, from 0 to 1; None
    where the trace has no last screen."""

    done: int
    state: dict[str, Any]
    differences: tuple[str, ...]
    similarity: float | None

    @property
    def same(self) -> bool:
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        similarity = None if self.similarity is None else round(self.similarity, 4)
        return {
            "same": self.same,
            "actions": self.done,
            "state": self.state,
            "differences": list(self.differences),
            "similarity": similarity,
        }


def replay(
    trace: str | Path,
    device: Device,
    *,
    on_action: Callable[[int, Action], None] | None = None,
    alike: float = ALIKE,
) -> Replay:
    """The actions of a trace once more, then the comparison of both ends.

    The device must stand where the trace began and have the same size. Raises ValueError where it cannot be replayed;
    an action that cannot be done any more ends it and is one of the differences.
    """
    recorded = read_trace(trace)
    if recorded.head.get("tool") != device.tool or recorded.size != tuple(device.size):
        raise ValueError(
            f"the trace is of {recorded.head.get('tool')} on {recorded.size[0]} x {recorded.size[1]}, the device is "
            f"{device.tool} on {device.size[0]} x {device.size[1]}: give a device of the same kind and size"
        )
    differences: list[str] = []
    done = 0
    for number, action in enumerate(recorded.actions, 1):
        if on_action is not None:
            on_action(number, action)
        try:
            device.act(action)
            done = number
        except ActionError as error:
            differences.append(f"action {number} of {len(recorded.actions)}, {action}: {error}")
            break
    state, before = device.state(), recorded.head.get("state") or {}
    for name in sorted({*state, *before}):
        if state.get(name) != before.get(name):
            differences.append(f"{name} is {state.get(name)!r}, it was {before.get(name)!r}")
    end = recorded.end_screen()
    similarity = None if end is None else screen_similarity(end, device.screenshot())
    if similarity is not None and similarity < alike:
        differences.append(f"the last screen is {similarity:.1%} like the one that was recorded, expected {alike:.0%}")
    return Replay(done, state, tuple(differences), similarity)


def screen_similarity(one: Image, other: Image) -> float:
    """Share of the pixels that are the same colour (each channel within 32 of 255); 0 for pictures of two sizes."""
    from PIL import ImageChops

    if one.size != other.size:
        return 0.0
    red, green, blue = ImageChops.difference(one.convert("RGB"), other.convert("RGB")).split()
    worst = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return sum(worst.histogram()[:33]) / (one.width * one.height)
