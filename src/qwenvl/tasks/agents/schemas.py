"""The two tools of the official agents, as function schemas for the chat template.

In: width and height of the screen as the model sees it (the resized screenshot), in pixels. Out: a schema.
The models were trained on tools of these names, fields and meanings (the cookbooks "Computer-Use Agent" and "Mobile
Agent"); the descriptions say the same in other words. A screen that is resized to 1316 x 728 is told as that: the
coordinates that come back are pixels of it.
"""

from __future__ import annotations

from typing import Any, Literal

Tool = Literal["computer_use", "mobile_use"]
Schema = dict[str, Any]

STATUSES = ("success", "failure")
SYSTEM_BUTTONS = ("Back", "Home", "Menu", "Enter")
_WAITING = (
    "* Some applications may take time to start or to process actions, so you may need to wait and take successive "
    "screenshots to see what your actions did."
)
_AIM = (
    "* Make sure to click any buttons, links, icons, etc with the cursor tip in the center of the element. Do not "
    "click boxes on their edges unless asked to."
)
_TERMINATE = "End the current task and report whether it was completed."
_STATUS = {"description": "How the task ended. Required only by `action=terminate`.", "type": "string"}


def computer_use(width: int, height: int) -> Schema:
    """The schema of computer_use for a screen of this size."""
    description = (
        "Use a mouse and a keyboard to interact with a computer, and take screenshots.",
        "* This is an interface to a desktop GUI. You have no access to a terminal or an applications menu: click on "
        "desktop icons to start applications.",
        _WAITING + " If nothing opens after a click, try to wait and take another screenshot.",
        f"* The screen's resolution is {width}x{height}.",
        "* Before you move the cursor to click on an element such as an icon, consult a screenshot to determine the "
        "coordinates of the element.",
        "* If a program or a link did not load after you clicked on it, even after waiting, adjust the cursor position "
        "so that its tip falls on the element that you want to click.",
        _AIM,
    )
    actions = {
        "key": "Press the given keys down in their order, then release them in reverse order.",
        "type": "Type a string of text on the keyboard.",
        "mouse_move": "Move the cursor to an (x, y) pixel coordinate on the screen.",
        "left_click": "Click the left mouse button.",
        "left_click_drag": "Press the left button, drag the cursor to an (x, y) pixel coordinate, release it.",
        "right_click": "Click the right mouse button.",
        "middle_click": "Click the middle mouse button.",
        "double_click": "Double-click the left mouse button.",
        "scroll": "Scroll with the wheel of the mouse.",
        "wait": "Wait some seconds for the change to happen.",
        "terminate": _TERMINATE,
    }
    fields = {
        "keys": _field("Required only by `action=key`.", "array"),
        "text": _field("Required only by `action=type`.", "string"),
        "coordinate": _field(
            "(x, y): The x (pixels from the left edge) and y (pixels from the top edge) coordinates to move the mouse "
            "to. Required only by `action=mouse_move` and `action=left_click_drag`.",
            "array",
        ),
        "pixels": _field(
            "How far to scroll. Positive values scroll up, negative values scroll down. Required only by "
            "`action=scroll`.",
            "number",
        ),
        "time": _field("The seconds to wait. Required only by `action=wait`.", "number"),
        "status": {**_STATUS, "enum": list(STATUSES)},
    }
    return _schema("computer_use", "\n".join(description), actions, fields)


def mobile_use(width: int, height: int) -> Schema:
    """The schema of mobile_use for a screen of this size."""
    description = (
        "Use a touchscreen to interact with a mobile device, and take screenshots.",
        "* This is an interface to a mobile device with a touchscreen: you can click, type, swipe and so on.",
        _WAITING,
        f"* The screen's resolution is {width}x{height}.",
        _AIM,
    )
    actions = {
        "key": "Send a key event to the device, by its adb name. Examples: `volume_up`, `volume_down`, `power`, "
        "`camera`, `clear`.",
        "click": "Click the point on the screen with coordinate (x, y).",
        "long_press": "Press the point on the screen with coordinate (x, y) for the given seconds.",
        "swipe": "Swipe from the point with coordinate (x, y) to the point with coordinate2 (x2, y2).",
        "type": "Input the text into the active input box.",
        "system_button": "Press a button of the system.",
        "open": "Open an app on the device.",
        "wait": "Wait some seconds for the change to happen.",
        "terminate": _TERMINATE,
    }
    fields = {
        "coordinate": _field(
            "(x, y): The x (pixels from the left edge) and y (pixels from the top edge) coordinates of the point. "
            "Required only by `action=click`, `action=long_press` and `action=swipe`.",
            "array",
        ),
        "coordinate2": _field(
            "(x, y): The x (pixels from the left edge) and y (pixels from the top edge) coordinates where it ends. "
            "Required only by `action=swipe`.",
            "array",
        ),
        "text": _field("Required only by `action=key`, `action=type` and `action=open`.", "string"),
        "time": _field("The seconds. Required only by `action=long_press` and `action=wait`.", "number"),
        "button": {
            "description": "Back goes to the screen before, Home to the home screen, Menu opens the menu of background "
            "apps, Enter presses enter. Required only by `action=system_button`.",
            "enum": list(SYSTEM_BUTTONS),
            "type": "string",
        },
        "status": {**_STATUS, "enum": list(STATUSES)},
    }
    return _schema("mobile_use", "\n".join(description), actions, fields)


def _field(description: str, kind: str) -> Schema:
    return {"description": description, "type": kind}


def _schema(name: Tool, description: str, actions: dict[str, str], fields: dict[str, Schema]) -> Schema:
    """As the official agents write it: the keys beside name, description and parameters too, in their order."""
    listed = "\n".join(f"* `{action}`: {meaning}" for action, meaning in actions.items())
    action = {
        "description": f"The action to perform. The available actions are:\n{listed}",
        "enum": list(actions),
        "type": "string",
    }
    parameters = {"properties": {"action": action, **fields}, "required": ["action"], "type": "object"}
    return {
        "type": "function",
        "function": {
            "name_for_human": name,
            "name": name,
            "description": description,
            "parameters": parameters,
            "args_format": "Format the arguments as a JSON object.",
        },
    }
