"""What a device is: something with a screen that can be looked at and acted on.

In: Actions in pixels of the device's own screen. Out: pictures of the screen, and errors of two kinds: ActionError for
what it cannot do (the model is told), DeviceLostError when it is gone (the run ends).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from qwenvl.tasks.agents.actions import Action, Size
from qwenvl.tasks.agents.schemas import Tool

if TYPE_CHECKING:
    from PIL.Image import Image


class DeviceLostError(ConnectionError):
    """The device does not answer any more: closed, unplugged, crashed."""


class Device(Protocol):
    """A screen and what acts on it. size: (width, height) of the space in which it takes coordinates, which a
    screenshot may have more pixels than (a browser's CSS pixels, at two device pixels each)."""

    @property
    def tool(self) -> Tool:
        """Which of the two tools it understands."""

    @property
    def size(self) -> Size: ...

    def screenshot(self) -> Image:
        """What the screen shows now, RGB."""

    def act(self, action: Action) -> str:
        """Do it, and wait until the screen has settled. The answer is a note for the model ("" for none), such as that
        a dialog came up. Never called with terminate."""

    def risk(self, action: Action) -> str:
        """Why a person may want to be asked first; "" for no reason. Nothing is done."""

    def state(self) -> dict[str, Any]:
        """Where it is, in a few words of text, by which two ends of the same way can be compared: url, title."""

    def describe(self) -> dict[str, Any]:
        """What it is, for the trace: kind, and what is needed to make it again."""

    def close(self) -> None: ...
