"""Traces: what an agent did, in a folder that people look at and that replays.

    run.json           task, device, how it ended, and where the device was then
    steps.jsonl        a step a line: answer, action in both spaces, sizes, error
    step-001.png       the screen before the step
    step-001-act.jpg   the same with the action drawn in
    end.png            the screen at the end

A trace holds what was typed, passwords included, and pictures of the screen: the folder is for its owner alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl.tasks.agents.actions import Action, Size
from qwenvl.tasks.agents.devices import Device, DeviceLostError
from qwenvl.whole_file import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

_RED, _WHITE = "#D5202A", "#FFFFFF"


@dataclass
class Trace:
    """A folder being written."""

    folder: Path
    head: dict[str, Any]

    @classmethod
    def create(cls, folder: str | Path, task: str, device: Device) -> Trace:
        """A new trace. ValueError where the folder has one already."""
        folder = Path(folder)
        if (folder / "run.json").exists() or (folder / "steps.jsonl").exists():
            raise ValueError(f"{folder} holds a trace already: name another folder, or remove it")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        head = {"task": task, "device": device.describe(), "tool": device.tool, "size": list(device.size)}
        trace = cls(folder, {**head, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "status": "running"})
        trace._write()
        (folder / "steps.jsonl").touch()
        return trace

    def add(self, step: Mapping[str, Any], action: Action | None, screen: Image) -> None:
        """One step, with the screen before it; whole on the disk when this returns."""
        name = f"step-{step['step']:03d}"
        screen.save(self.folder / f"{name}.png", compress_level=1)
        drawn = f"{name}-act.jpg" if action else None
        if action and drawn:
            caption = f"{step['step']}. {action}" + (f" - {step['error']}" if step["error"] else "")
            draw_action(screen, action, tuple(step["sizes"]["device"]), caption).save(self.folder / drawn, quality=88)
        pictures = {"screen": f"{name}.png", "drawn": drawn}
        with (self.folder / "steps.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**step, "pictures": pictures}, ensure_ascii=False) + "\n")

    def finish(self, status: str, reason: str, device: Device) -> None:
        """How it ended, and the screen then, where the device still answers."""
        self.head |= {"status": status, "reason": reason, "state": None, "end": None}
        try:
            self.head["state"] = device.state()
            device.screenshot().save(self.folder / "end.png", compress_level=1)
            self.head["end"] = "end.png"
        except DeviceLostError:
            pass  # the reason says so
        self._write()

    def _write(self) -> None:
        text = json.dumps(self.head, ensure_ascii=False, indent=2)
        write_whole(self.folder / "run.json", f"{text}\n".encode())


@dataclass(frozen=True)
class Recorded:
    """A trace that was read: its head, and the actions that were done, in pixels of the device."""

    head: dict[str, Any]
    actions: list[Action]
    folder: Path

    @property
    def size(self) -> Size:
        width, height = self.head["size"]
        return width, height

    def end_screen(self) -> Image | None:
        from PIL import Image as Pictures

        if not self.head.get("end"):
            return None
        with Pictures.open(self.folder / "end.png") as picture:
            return picture.convert("RGB")


def read_trace(folder: str | Path) -> Recorded:
    """ValueError for a folder that is no trace, with the line that is wrong."""
    folder = Path(folder)
    if not (folder / "run.json").is_file() or not (folder / "steps.jsonl").is_file():
        raise ValueError(f"{folder} is no trace: it has no run.json and steps.jsonl")
    try:
        head = json.loads((folder / "run.json").read_text("utf-8"))
        width, height = head["size"]
        head["size"] = [int(width), int(height)]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / 'run.json'} is not what a trace has: it may be cut off") from None
    actions: list[Action] = []
    for number, line in enumerate((folder / "steps.jsonl").read_text("utf-8").splitlines(), 1):
        try:
            step = json.loads(line)
            if step["acted"] and step["action"]["action"] != "terminate":
                actions.append(Action.from_dict(step["action"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / 'steps.jsonl'}, line {number} is not a step: {error}") from None
    return Recorded(head, actions, folder)


def draw_action(screen: Image, action: Action, device: Size, caption: str = "") -> Image:
    """A copy of the screenshot with the places of an action marked: a ring where it clicks, an arrow where it drags.

    action: in pixels of a device of size `device`, which the screenshot may be larger than.
    """
    from PIL import ImageDraw, ImageFont

    canvas = screen.convert("RGB").copy()
    pen = ImageDraw.Draw(canvas)
    scale = max(1.0, min(canvas.size) / 500)
    places = [
        (p[0] * canvas.width / device[0], p[1] * canvas.height / device[1])
        for p in (action.coordinate, action.coordinate2)
        if p is not None
    ]
    for colour, width in ((_WHITE, round(6 * scale)), (_RED, round(3 * scale))):
        for x, y in places:
            radius = 14 * scale
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
            pen.line((x - 4 * scale, y, x + 4 * scale, y), fill=colour, width=max(1, width // 2))
            pen.line((x, y - 4 * scale, x, y + 4 * scale), fill=colour, width=max(1, width // 2))
        if len(places) == 2:
            pen.line((*places[0], *places[1]), fill=colour, width=width)
    if caption:
        font = ImageFont.load_default(size=round(15 * scale))
        shown = caption if len(caption) <= 110 else caption[:107] + "..."
        left, top, right, bottom = pen.textbbox((0, 0), shown, font=font)
        pen.rectangle((0, 0, right - left + 8, bottom - top + 8), fill=_RED)
        pen.text((4 - left, 4 - top), shown, fill=_WHITE, font=font)
    return canvas
