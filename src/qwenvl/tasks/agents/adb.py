"""An Android device, driven by the command line tool adb.

In: Actions in pixels of the device's screen, in its current orientation. Out: taps, swipes, texts, key events, apps
started; pictures by screencap. Nothing is installed on the device, and no shell command is built from the model's words
but by the rules here: names of keys and apps must look like names, texts are quoted.

    with AdbDevice() as device:            # the only one that is attached; AdbDevice("emulator-5554") names one
        device.act(Action("click", coordinate=(540, 1200)))

Text beyond ASCII: `input text` cannot write it. Where ADBKeyboard is the keyboard in use (com.android.adbkeyboard), it
does; else such a text is an ActionError that says so.
"""

from __future__ import annotations

import base64
import re
import shlex
import subprocess
import time
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, Self

from qwenvl.tasks.agents.actions import Action, ActionError, Size
from qwenvl.tasks.agents.devices import DeviceLostError
from qwenvl.tasks.agents.keys import android_key
from qwenvl.tasks.agents.schemas import Tool

if TYPE_CHECKING:
    from PIL.Image import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_KEYBOARD = "com.android.adbkeyboard/.AdbIME"
_SWIPE_MS = 500
_LONGEST_TEXT = 400  # characters in one `input text`; commands of devices are limited
_BUTTONS = {"Back": "KEYCODE_BACK", "Home": "KEYCODE_HOME", "Menu": "KEYCODE_APP_SWITCH", "Enter": "KEYCODE_ENTER"}
_PACKAGE = re.compile(r"[A-Za-z]\w*(?:\.\w+)+")
_GONE = re.compile(
    r"device '.*' not found|device offline|no devices|device unauthorized|closed$|device not found", re.I
)
# Apps that are called otherwise than their package; the rest is found by what is installed.
_APPS: Mapping[str, str] = {
    "chrome": "com.android.chrome",
    "playstore": "com.android.vending",
    "phone": "com.google.android.dialer",
    "messages": "com.google.android.apps.messaging",
    "files": "com.google.android.documentsui",
    "filemanager": "com.google.android.documentsui",
    "clock": "com.google.android.deskclock",
    "gmail": "com.google.android.gm",
    "maps": "com.google.android.apps.maps",
    "photos": "com.google.android.apps.photos",
    "youtube": "com.google.android.youtube",
}


class AdbDevice:
    """One device. serial: as `adb devices` lists it; None where only one is attached. adb: the program. settle:
    seconds to wait behind an action. timeout: seconds for one command. apps: names of apps -> packages, before our own.

    Raises ValueError where adb or the device is missing, with what to do; later, DeviceLostError.
    """

    tool: Tool = "mobile_use"

    def __init__(
        self,
        serial: str | None = None,
        *,
        adb: str = "adb",
        settle: float = 1.0,
        timeout: float = 30.0,
        apps: Mapping[str, str] | None = None,
    ) -> None:
        self._adb, self._settle, self._timeout = adb, settle, timeout
        self._apps = {**_APPS, **{_folded(name): package for name, package in (apps or {}).items()}}
        self.serial = self._find(serial)
        self._physical = self._wm_size()
        self.size: Size = self._oriented(self.screenshot().size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def screenshot(self) -> Image:
        """The screen as it is held now."""
        from PIL import Image as Pictures

        data = self._run("exec-out", "screencap", "-p")
        start = data.find(_PNG)  # some devices write a warning first
        if start < 0:
            raise DeviceLostError(f"the device {self.serial} gave no picture of its screen: {_shown(data)}")
        try:
            with Pictures.open(BytesIO(data[start:])) as picture:
                shot = picture.convert("RGB")
        except OSError as error:
            raise DeviceLostError(f"the picture of the screen of {self.serial} is broken: {error}") from None
        self.size = self._oriented(shot.size)
        return shot

    def act(self, action: Action) -> str:
        match action.action:
            case "click":
                self._input("tap", *_xy(action.coordinate))
            case "long_press":
                place = _xy(action.coordinate)
                self._input("swipe", *place, *place, str(round(1000 * (action.time or 1.0))))
            case "swipe":
                self._input("swipe", *_xy(action.coordinate), *_xy(action.coordinate2), str(_SWIPE_MS))
            case "type":
                self._type(action.text or "")
            case "key":
                self._key(action.text or "")
            case "system_button":
                self._input("keyevent", _BUTTONS[action.button or ""])
            case "open":
                self._open(action.text or "")
            case "wait":
                time.sleep(action.time or 0.0)
                return ""
            case other:
                raise ActionError(f"a phone cannot do {other!r}")
        time.sleep(self._settle)
        return ""

    def risk(self, action: Action) -> str:
        """What a screen shows is not known here, so only what leaves the app or turns the device off."""
        if action.action == "open":
            return "opens an app"
        return "sends a key of the device" if action.action == "key" else ""

    def state(self) -> dict[str, Any]:
        """The activity in front."""
        text = self._shell("dumpsys activity activities").decode(errors="replace")
        found = re.search(r"(?:topResumedActivity|mResumedActivity|ResumedActivity)\S*\s*\S*\{\S+ \S+ (\S+?)[ }]", text)
        return {"activity": found[1] if found else ""}

    def describe(self) -> dict[str, Any]:
        return {"kind": "adb", "serial": self.serial}

    def close(self) -> None:
        """Nothing is held: adb's server goes on for others."""

    # what is done

    def _type(self, text: str) -> None:
        """Line by line, with Enter between; tabs as the key."""
        if not text.isascii():
            self._type_any(text)
            return
        bad = next((char for char in text if not char.isprintable() and char not in "\n\t"), None)
        if bad is not None:
            raise ActionError(f"the text holds {bad!r}, which cannot be typed")
        for part in re.split(r"([\n\t])", text):
            if part in ("\n", "\t"):
                self._input("keyevent", "KEYCODE_ENTER" if part == "\n" else "KEYCODE_TAB")
                continue
            for piece in _typed_pieces(part):
                self._shell(f"input text {shlex.quote(piece)}")

    def _type_any(self, text: str) -> None:
        keyboard = self._shell("settings get secure default_input_method").decode(errors="replace").strip()
        if keyboard != _KEYBOARD:
            raise ActionError(
                f"the text {text!r} has letters beyond ASCII, which this device's keyboard ({keyboard or 'unknown'}) "
                "cannot take over adb: type without them, or let the owner turn on ADBKeyboard"
            )
        packed = base64.b64encode(text.encode()).decode()
        self._shell(f"am broadcast -a ADB_INPUT_B64 --es msg {packed}")

    def _key(self, name: str) -> None:
        if _folded(name) == "clear":  # the field: to its end, then delete backwards; KEYCODE_CLEAR does nothing on most
            self._input("keyevent", "KEYCODE_MOVE_END", *["KEYCODE_DEL"] * 60)
            return
        code = android_key(name)
        said = self._input("keyevent", code)
        if "Error" in said or "Unknown" in said:
            raise ActionError(f"the device knows no key {name!r}")

    def _open(self, name: str) -> None:
        """The app of this name or package: ours or the caller's word for it, else the only one installed that has the
        name in its package."""
        package = name if _PACKAGE.fullmatch(name) else None
        if package is None:
            installed = self._launchable()
            known = self._apps.get(_folded(name))
            found = [known] if known in installed else [p for p in installed if _folded(name) in _folded(p)]
            if not _folded(name) or len(found) != 1:
                few = ", ".join((found or installed)[:12])
                raise ActionError(f"{len(found)} apps match {name!r}: give one of these packages: {few}")
            package = found[0]
        said = self._shell(f"monkey -p {shlex.quote(str(package))} -c android.intent.category.LAUNCHER 1")
        if b"No activities found" in said or b"monkey aborted" in said:
            raise ActionError(f"there is no app {package!r} on the device that could be opened")

    def _launchable(self) -> list[str]:
        """Packages that the home screen could open."""
        query = "cmd package query-activities --brief -a android.intent.action.MAIN -c android.intent.category.LAUNCHER"
        lines = self._shell(query).decode(errors="replace").splitlines()
        return list(dict.fromkeys(line.strip().split("/")[0] for line in lines if re.fullmatch(r"\s*[\w.]+/\S+", line)))

    # how it is done

    def _input(self, *words: str) -> str:
        return self._shell(" ".join(("input", *words))).decode(errors="replace")

    def _shell(self, command: str) -> bytes:
        """A command on the device. What the caller puts in is quoted by then."""
        return self._run("shell", command)

    def _run(self, *words: str) -> bytes:
        """ActionError for a command that fails, DeviceLostError where the device is not there."""
        code, out, error = self._call("-s", self.serial, *words)
        if code == 0:
            return out
        said = _shown(error or out)
        if _GONE.search(said) or words[0] == "exec-out":
            raise DeviceLostError(f"the device {self.serial} does not answer: {said}")
        raise ActionError(f"the device refused {words[-1].split(' ')[0]!r}: {said}")

    def _call(self, *words: str) -> tuple[int, bytes, bytes]:
        try:
            done = subprocess.run(
                [self._adb, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=self._timeout, check=False
            )
        except (FileNotFoundError, PermissionError):
            raise ValueError(
                f"the program {self._adb!r} cannot be started: install adb (Debian: apt-get install adb), or name it"
            ) from None
        except subprocess.TimeoutExpired:
            raise DeviceLostError(f"adb {words[-1]!r} took more than {self._timeout:g} s and was ended") from None
        return done.returncode, done.stdout, done.stderr

    def _find(self, serial: str | None) -> str:
        code, out, error = self._call("devices")
        if code != 0:
            raise ValueError(f"adb devices failed: {_shown(error or out)}")
        rows = [line.split() for line in out.decode(errors="replace").splitlines()[1:] if len(line.split()) >= 2]
        states = {row[0]: row[1] for row in rows}
        ready = [name for name, state in states.items() if state == "device"]
        if serial is None and len(ready) == 1:
            return ready[0]
        listed = ", ".join(f"{name} ({state})" for name, state in states.items()) or "none"
        if serial is None:
            raise ValueError(f"adb has {len(ready)} devices ready, so one must be named by its serial: {listed}")
        if states.get(serial) != "device":
            help_ = "allow this computer on its screen" if states.get(serial) == "unauthorized" else "attach it"
            raise ValueError(f"adb has no device {serial!r} ready ({help_}); it has: {listed}")
        return serial

    def _wm_size(self) -> Size | None:
        """Width and height in which the device takes input, as it is built to be held."""
        text = self._shell("wm size").decode(errors="replace")
        found = dict(re.findall(r"(Physical|Override) size: (\d+x\d+)", text))
        size = found.get("Override") or found.get("Physical")
        return (int(size.split("x")[0]), int(size.split("x")[1])) if size else None

    def _oriented(self, shot: Size) -> Size:
        """The input size, lying as the screenshot does: pictures may be larger than what taps are counted in."""
        if self._physical is None:
            return shot
        small, large = sorted(self._physical)
        return (large, small) if shot[0] > shot[1] else (small, large)


def _folded(name: str) -> str:
    return re.sub(r"[\s_.-]", "", name).lower()


def _xy(point: tuple[float, float] | None) -> tuple[str, str]:
    assert point is not None
    return str(int(point[0])), str(int(point[1]))


def _typed_pieces(text: str) -> list[str]:
    """What `input text` is given: %s is its word for a space, so that the two letters themselves are typed apart."""
    pieces = [part.replace(" ", "%s") for part in re.split(r"(?<=%)(?=s)", text)]
    return [p for piece in pieces for p in re.findall(rf"(?:%s|.){{1,{_LONGEST_TEXT}}}", piece)]


def _shown(data: bytes) -> str:
    text = " ".join(data.decode(errors="replace").split())
    return text if len(text) <= 200 else text[:197] + "..."
