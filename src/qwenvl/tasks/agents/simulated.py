"""A device without a screen: scenes with buttons and fields, drawn with PIL, and what leads from one to another.

In: scenes, which one comes first. Out: a Device for tests and for trying agents: no browser, no phone, always the same
pictures and the same ends.

    device = SimulatedDevice(sample_form())
    device.act(Action("left_click", coordinate=(320, 130)))
    device.act(Action("type", text="Ada"))
    device.texts["name"] == "Ada"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwenvl.tasks.agents.actions import Action, ActionError, Size
from qwenvl.tasks.agents.keys import browser_key
from qwenvl.tasks.agents.schemas import Tool

if TYPE_CHECKING:
    from PIL.Image import Image

Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2


@dataclass(frozen=True)
class Button:
    """Clicked, it leads to the scene `to`; "" stays. risk: what the device says a person may want to be asked."""

    label: str
    box: Rectangle
    to: str = ""
    risk: str = ""


@dataclass(frozen=True)
class Field:
    """A field that is typed into once it was clicked. name: under which its text is kept, on any scene."""

    name: str
    box: Rectangle
    secret: bool = False


@dataclass(frozen=True)
class Scene:
    """One screen. submit: where Enter in a field leads. lines: text that stands on it; {name} is a field's text."""

    title: str
    buttons: tuple[Button, ...] = ()
    fields: tuple[Field, ...] = ()
    lines: tuple[str, ...] = ()
    submit: str = ""


def sample_form() -> dict[str, Scene]:
    """A form with a name, a password and a button, and what comes behind it; the first scene is "form"."""
    return {
        "form": Scene(
            "Sign up",
            buttons=(
                Button("Send", (240, 270, 400, 320), "sent", "submits a form"),
                Button("Help", (520, 20, 620, 60), "help"),
            ),
            fields=(Field("name", (160, 105, 480, 155)), Field("password", (160, 185, 480, 235), secret=True)),
            submit="sent",
        ),
        "sent": Scene("Thank you", (Button("Again", (240, 270, 400, 320), "form"),), lines=("Welcome, {name}!",)),
        "help": Scene("Help", (Button("Close", (240, 270, 400, 320), "form"),), lines=("Fill in and send.",)),
    }


@dataclass
class SimulatedDevice:
    """See the module. tool: which tool it understands. actions: what was done, in order. fails: actions that this
    device cannot do, and what it says then."""

    scenes: Mapping[str, Scene]
    first: str = "form"
    size: Size = (640, 400)
    tool: Tool = "computer_use"
    fails: Mapping[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    cursor: tuple[float, float] = (0.0, 0.0)
    seconds: float = 0.0  # waited; no real time goes by

    def __post_init__(self) -> None:
        if self.first not in self.scenes:
            raise ValueError(f"there is no scene {self.first!r}: there are {', '.join(self.scenes)}")
        self.scene = self.first
        self.focus = ""
        self._way: list[str] = []

    def screenshot(self) -> Image:
        """The scene, with what was typed; dots for a secret."""
        from PIL import Image as Pictures
        from PIL import ImageDraw, ImageFont

        picture = Pictures.new("RGB", self.size, "#F4F4F0")
        pen = ImageDraw.Draw(picture)
        font, scene = ImageFont.load_default(size=20), self.scenes[self.scene]
        pen.text((24, 24), scene.title, fill="black", font=font)
        for place, line in enumerate(scene.lines):
            pen.text((160, 120 + 36 * place), line.format_map(_Texts(self.texts)), fill="black", font=font)
        for entry in scene.fields:
            pen.rectangle(
                entry.box, fill="white", outline="#0072B2" if entry.name == self.focus else "#888888", width=2
            )
            pen.text((24, entry.box[1] + 12), entry.name, fill="black", font=font)
            text = self.texts.get(entry.name, "")
            pen.text((entry.box[0] + 8, entry.box[1] + 12), "*" * len(text) if entry.secret else text, "black", font)
        for button in scene.buttons:
            pen.rounded_rectangle(button.box, 8, fill="#0072B2")
            middle = ((button.box[0] + button.box[2]) / 2, (button.box[1] + button.box[3]) / 2)
            pen.text(middle, button.label, fill="white", font=font, anchor="mm")
        return picture

    def act(self, action: Action) -> str:
        """As a real device would; scrolling, dragging and other buttons change nothing here."""
        if action.action in self.fails:
            raise ActionError(self.fails[action.action])
        self.actions.append(action)
        if action.coordinate is not None:
            self.cursor = action.coordinate2 or action.coordinate
        match action.action:
            case "left_click" | "double_click" | "click" | "long_press":
                return self._click()
            case "type":
                return self._type(action.text or "")
            case "key":
                keys = action.keys or (action.text or "",)
                return self._key(browser_key(keys[-1]) if len(keys) == 1 else "")
            case "system_button":
                return self._key({"Enter": "Enter", "Back": "Back", "Home": "Home"}.get(action.button or "", ""))
            case "open":
                return self._open(action.text or "")
            case "wait":
                self.seconds += action.time or 0.0
        return ""

    def risk(self, action: Action) -> str:
        """A button's own risk; typing a secret; Enter where it submits."""
        if action.action in ("left_click", "double_click", "click"):
            button = _at(self.scenes[self.scene].buttons, action.coordinate or self.cursor)
            return button.risk if button else ""
        if action.action == "type" and any(f.name == self.focus and f.secret for f in self.scenes[self.scene].fields):
            return "types into a password field"
        enter = action.keys == ("Enter",) or action.button == "Enter"
        return "submits a form" if enter and self.focus and self.scenes[self.scene].submit else ""

    def state(self) -> dict[str, Any]:
        return {"scene": self.scene, "title": self.scenes[self.scene].title, "texts": dict(self.texts)}

    def describe(self) -> dict[str, Any]:
        return {"kind": "simulated", "first": self.first}

    def close(self) -> None:
        """Nothing is held."""

    def _click(self) -> str:
        scene = self.scenes[self.scene]
        entry = _at(scene.fields, self.cursor)
        self.focus = entry.name if entry else ""
        button = _at(scene.buttons, self.cursor)
        if button is not None and button.to:
            self._go(button.to)
        return ""

    def _type(self, text: str) -> str:
        if not self.focus:
            return "nothing is focused, so the text went nowhere"
        lines = text.split("\n")
        self.texts[self.focus] = self.texts.get(self.focus, "") + lines[0]
        return self._key("Enter") if len(lines) > 1 else ""

    def _key(self, key: str) -> str:
        scene = self.scenes[self.scene]
        if key == "Enter" and self.focus and scene.submit:
            self._go(scene.submit)
        elif key == "Backspace" and self.focus:
            self.texts[self.focus] = self.texts.get(self.focus, "")[:-1]
        elif key == "Tab" and scene.fields:
            names = [entry.name for entry in scene.fields]
            self.focus = names[(names.index(self.focus) + 1) % len(names) if self.focus in names else 0]
        elif key == "Back" and self._way:
            self.scene, self.focus = self._way.pop(), ""
        elif key == "Home":
            self._go(self.first)
        return ""

    def _open(self, name: str) -> str:
        found = next((key for key, scene in self.scenes.items() if name.lower() in (key, scene.title.lower())), None)
        if found is None:
            raise ActionError(f"there is no app {name!r}: there are {', '.join(self.scenes)}")
        self._go(found)
        return ""

    def _go(self, scene: str) -> None:
        self._way.append(self.scene)
        self.scene, self.focus = scene, ""


class _Texts(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return ""


def _at(things: tuple[Any, ...], point: tuple[float, float]) -> Any:
    """The thing whose box holds the point; None where there is none."""
    x, y = point
    return next((t for t in things if t.box[0] <= x <= t.box[2] and t.box[1] <= y <= t.box[3]), None)
