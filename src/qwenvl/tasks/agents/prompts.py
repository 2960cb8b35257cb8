"""The conversation of one step, as the official agents write it.

In: the task, what was done so far, a screenshot and the size that the model sees it in. Out: messages and tools.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qwenvl.tasks.agents.actions import Size
from qwenvl.tasks.agents.schemas import Schema, Tool, computer_use, mobile_use
from qwenvl.tasks.calls import ToolCall

if TYPE_CHECKING:
    from PIL.Image import Image

SYSTEM = "You are a helpful assistant."


def tool_schema(tool: Tool, seen: Size) -> Schema:
    """The tool of a device whose screen the model sees in this size."""
    return computer_use(*seen) if tool == "computer_use" else mobile_use(*seen)


def written_call(call: ToolCall) -> str:
    """A call as it stands in the progress: one line of JSON."""
    return json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)


def progress(done: Sequence[str]) -> str:
    """What was done, in the words in which the models were trained to read it."""
    steps = "".join(f"Step {number}: {line}; " for number, line in enumerate(done, 1))
    return f"Task progress (You have done the following operation on the current device): {steps}"


def step_messages(
    task: str, done: Sequence[str], screenshot: Image, min_pixels: int, max_pixels: int
) -> list[dict[str, Any]]:
    """System, then the user's task with what was done so far, then the screenshot with the limits it is resized by."""
    picture = {"type": "image", "image": screenshot, "min_pixels": min_pixels, "max_pixels": max_pixels}
    text = {"type": "text", "text": f"The user query:  {task}\n{progress(done)}"}
    return [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
        {"role": "user", "content": [text, picture]},
    ]
