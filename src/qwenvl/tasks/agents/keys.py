"""Names of keys: as models write them (those of xdotool, pyautogui and adb) -> as the devices want them.

In: "ctrl", "Return", "page_down", "é". Out: Playwright's names ("Control", "Enter", "PageDown") or Android's key codes
("KEYCODE_VOLUME_UP"), or an ActionError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from qwenvl.tasks.agents.actions import ActionError

_PLAYWRIGHT: Mapping[str, tuple[str, ...]] = {
    "Control": ("ctrl", "control", "controll", "controlr", "ctrll", "ctrlr"),
    "Alt": ("alt", "altl", "altr", "option", "opt"),
    "Shift": ("shift", "shiftl", "shiftr"),
    "Meta": ("meta", "super", "superl", "superr", "win", "windows", "winleft", "cmd", "command"),
    "Enter": ("enter", "return", "kpenter", "numpadenter", "linefeed"),
    "Tab": ("tab",),
    "Escape": ("escape", "esc"),
    "Backspace": ("backspace",),
    "Delete": ("delete", "del"),
    "Insert": ("insert", "ins"),
    "Space": ("space", "spacebar"),
    "ArrowUp": ("arrowup", "up", "uparrow"),
    "ArrowDown": ("arrowdown", "down", "downarrow"),
    "ArrowLeft": ("arrowleft", "left", "leftarrow"),
    "ArrowRight": ("arrowright", "right", "rightarrow"),
    "PageUp": ("pageup", "pgup", "prior"),
    "PageDown": ("pagedown", "pgdn", "pgdown", "next"),
    "Home": ("home",),
    "End": ("end",),
    "CapsLock": ("capslock",),
    "ContextMenu": ("contextmenu", "menu", "apps"),
    "+": ("plus",),
    "-": ("minus", "hyphen"),
    "=": ("equal", "equals"),
    ",": ("comma",),
    ".": ("period", "dot"),
    "/": ("slash",),
    "\\": ("backslash",),
    ";": ("semicolon",),
    "'": ("apostrophe", "quote"),
    "`": ("grave", "backquote"),
    "[": ("bracketleft",),
    "]": ("bracketright",),
    **{f"F{n}": (f"f{n}",) for n in range(1, 13)},
}
_ANDROID: Mapping[str, str] = {
    "ESC": "ESCAPE",
    "RETURN": "ENTER",
    "BACKSPACE": "DEL",
    "DELETE": "FORWARD_DEL",
    "UP": "DPAD_UP",
    "DOWN": "DPAD_DOWN",
    "LEFT": "DPAD_LEFT",
    "RIGHT": "DPAD_RIGHT",
    "MUTE": "VOLUME_MUTE",
    "RECENT": "APP_SWITCH",
    "RECENTS": "APP_SWITCH",
    "PAGEUP": "PAGE_UP",
    "PAGEDOWN": "PAGE_DOWN",
}


def browser_key(name: str) -> str:
    """Playwright's name of a key. A single character is its own name. ActionError for one that no keyboard has."""
    if len(name) == 1:
        return "Space" if name == " " else name
    folded = re.sub(r"[\s_-]", "", name).lower()
    for key, names in _PLAYWRIGHT.items():
        if folded in names:
            return key
    raise ActionError(f"unknown key {name!r}: expected a character or a name such as ctrl, shift, enter, tab, esc, up")


def android_key(name: str) -> str:
    """Android's code of a key: what `input keyevent` takes. ActionError for what cannot be one; whether the device
    knows it, the device says."""
    word = re.sub(r"[\s-]+", "_", name.strip()).upper().removeprefix("KEYCODE_")
    if not re.fullmatch(r"[A-Z0-9_]{1,40}", word):
        raise ActionError(
            f"unknown key {name!r}: expected the name of an Android key event, such as volume_up, power, enter, del"
        )
    if word.isdigit() and len(word) > 1:
        return word  # a code by its number; one digit is the digit's own key
    return f"KEYCODE_{_ANDROID.get(word, word)}"
