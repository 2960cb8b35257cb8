"""The loop of an agent: screenshot -> answer -> action -> act, until the task is done.

In: an object with `reply` (an Assistant), a device, a task. Out: AgentRun; with a trace folder, everything in files.

    with BrowserDevice("http://localhost:8000") as device:
        run = Agent(assistant, device, "Sign up as Ada", approve=ask_when_risky(my_question), trace="trace").run()
    run.status, run.reason

One answer, one action: the further calls of an answer were written for a screen that is gone, and are not acted. What
cannot be done (an unknown action, a missing field, no call at all) is told to the model in the progress of its next
prompt. The run ends when the model says so, and before that when a person says no, when the same action fails or
changes nothing `patience` times in a row, or when max_steps answers were given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from qwenvl.tasks.agents.actions import Action, ActionError, Size, read_action
from qwenvl.tasks.agents.devices import Device, DeviceLostError
from qwenvl.tasks.agents.grammar import CALL_TOKENS, action_grammar
from qwenvl.tasks.agents.prompts import step_messages, tool_schema, written_call
from qwenvl.tasks.agents.schemas import Tool
from qwenvl.tasks.agents.trace import Trace
from qwenvl.tasks.calls import ToolCall, parse_calls
from qwenvl.types import ImageSize, SamplingParams

if TYPE_CHECKING:
    from PIL.Image import Image

# What the processors of the official checkpoints resize by; both ends of the mapping must use the same.
MIN_PIXELS = 4 * 28 * 28
MAX_PIXELS = 16384 * 28 * 28

# How a run ended. success, failure: the model said so. limit: max_steps. stuck: no way on. refused: a person said no.
# dry-run: the first action is known, and nothing was done. lost: the device is gone.
Status = Literal["success", "failure", "limit", "stuck", "refused", "dry-run", "lost"]


class Reply(Protocol):
    @property
    def text(self) -> str: ...
    @property
    def sizes(self) -> list[ImageSize]: ...


class Replies(Protocol):
    """What an agent needs of an Assistant."""

    def reply(
        self,
        messages: list[dict[str, Any]],
        sampling: SamplingParams | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
    ) -> Reply: ...


@dataclass(frozen=True)
class Proposal:
    """What an agent is about to do, for a person to say yes or no. risk: why it may matter; "" where nothing speaks
    against it."""

    action: Action
    risk: str
    thought: str

    def __str__(self) -> str:
        return f"{self.action} ({self.risk})" if self.risk else str(self.action)


Approve = Callable[[Proposal], bool]


@dataclass
class Step:
    """One answer and what became of it. shown, action: the action in pixels of the picture that the model saw, and of
    the device; None where the answer had none. error: why it was not done. note: what the device said. changed:
    whether the screen looked different afterwards, where that is known."""

    number: int
    answer: str
    thought: str = ""
    call: ToolCall | None = None
    ignored: int = 0
    shown: Action | None = None
    action: Action | None = None
    risk: str = ""
    acted: bool = False
    error: str = ""
    note: str = ""
    changed: bool | None = None
    seconds: float = 0.0
    sizes: dict[str, Size] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the action in both spaces, with the sizes of the three (screenshot, seen, device)."""
        return {
            "step": self.number,
            "answer": self.answer,
            "thought": self.thought,
            "ignored_calls": self.ignored,
            "shown": self.shown.to_dict() if self.shown else None,
            "action": self.action.to_dict() if self.action else None,
            "risk": self.risk,
            "acted": self.acted,
            "error": self.error,
            "note": self.note,
            "changed": self.changed,
            "seconds": round(self.seconds, 3),
            "sizes": {name: list(size) for name, size in self.sizes.items()},
        }


@dataclass
class AgentRun:
    """How it went: status, one sentence why it ended, and every step."""

    status: Status
    reason: str
    steps: list[Step]

    def to_dict(self) -> dict[str, Any]:
        return {"status": self.status, "reason": self.reason, "steps": [step.to_dict() for step in self.steps]}


def ask_when_risky(ask: Approve) -> Approve:
    """Asks only about what the device calls a risk; all else is done."""
    return lambda proposal: not proposal.risk or ask(proposal)


class Agent:
    """A task for a model on a device. Runs once.

    approve(proposal) is asked before every action that touches the screen (not wait, not terminate); False ends the
    run. dry_run: the first action is made known and not done. trace: a folder, new or empty, for steps and pictures.
    min_pixels, max_pixels: by which screenshots are resized, as in the processor. on_step is told each step when it is
    over. patience: after how many equal actions without an effect the run ends. constrained: the model can write
    nothing but thoughts and then one action that can be read, with coordinates within the screenshot (needs
    qwenvl[grammar]); an answer that max_new_tokens cuts is still none.
    """

    def __init__(
        self,
        assistant: Replies,
        device: Device,
        task: str,
        *,
        max_steps: int = 25,
        dry_run: bool = False,
        approve: Approve | None = None,
        trace: str | Path | None = None,
        sampling: SamplingParams | None = None,
        min_pixels: int = MIN_PIXELS,
        max_pixels: int = MAX_PIXELS,
        patience: int = 3,
        constrained: bool = False,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        if not task.strip():
            raise ValueError('the task is empty: say what to do, for example "Sign up as Ada"')
        for name, value in (("max_steps", max_steps), ("patience", patience)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected 1 or more")
        self.assistant, self.device, self.task = assistant, device, task.strip()
        self.max_steps, self.dry_run, self.approve, self.patience = max_steps, dry_run, approve, patience
        if constrained:
            sampling = _constrained(sampling or SamplingParams(), device.tool)
        self.sampling, self.limits, self.on_step = sampling, (min_pixels, max_pixels), on_step
        self.steps: list[Step] = []
        self._done: list[str] = []  # the progress lines of the next prompt
        self._trace = Trace.create(trace, self.task, device) if trace is not None else None

    def run(self) -> AgentRun:
        """Until the end. Errors of the model's side (a prompt that does not fit) are raised; the trace is whole up to
        there."""
        try:
            status, reason = self._loop()
        except DeviceLostError as error:
            status, reason = "lost", str(error)
        except BaseException as error:
            self._finish("failure", f"{type(error).__name__}: {error}")
            raise
        return self._finish(status, reason)

    def _finish(self, status: Status, reason: str) -> AgentRun:
        run = AgentRun(status, reason, self.steps)
        if self._trace is not None:
            self._trace.finish(run.status, run.reason, self.device)
        return run

    def _loop(self) -> tuple[Status, str]:
        screen = self.device.screenshot()
        while len(self.steps) < self.max_steps:
            started = time.perf_counter()
            step = Step(len(self.steps) + 1, "")
            self._think(step, screen)
            end = self._end_before(step)
            after = screen if end else self._act(step, screen)
            step.seconds = time.perf_counter() - started
            self._record(step, screen)
            end = end or self._end_after(step)
            if end:
                return end
            screen = after
        return "limit", f"{self.max_steps} steps were made and the model did not end the task"

    def _think(self, step: Step, screen: Image) -> None:
        """Ask, and read the answer into `step`: action or error."""
        seen = self._seen(screen.size)
        schema = tool_schema(self.device.tool, seen)
        step.sizes = {"screenshot": screen.size, "seen": seen, "device": self.device.size}
        messages = step_messages(self.task, self._done, screen, *self.limits)
        answer = self.assistant.reply(messages, self.sampling, tools=[schema])
        if answer.sizes and (answer.sizes[-1].resized_width, answer.sizes[-1].resized_height) != seen:
            size = answer.sizes[-1]
            raise ValueError(
                f"the screenshot was resized to {size.resized_width} x {size.resized_height}, and the model was told "
                f"{seen[0]} x {seen[1]}: give the agent the min_pixels and max_pixels of the processor"
            )
        step.answer = answer.text
        step.thought, calls = parse_calls(answer.text, [self.device.tool])
        if not calls:
            step.error = "the answer has no tool call: write one as JSON within <tool_call></tool_call>"
            return
        step.call, step.ignored = calls[0], len(calls) - 1
        try:
            if step.call.name != self.device.tool:
                raise ActionError(f"there is no tool {step.call.name!r} here: call {self.device.tool}")
            step.shown = read_action(step.call.name, step.call.arguments)
            step.action = step.shown.scaled(seen, self.device.size)
        except ActionError as error:
            step.error = str(error)

    def _seen(self, size: Size) -> Size:
        from qwenvl.media.resize import smart_resize

        height, width = smart_resize(size[1], size[0], min_pixels=self.limits[0], max_pixels=self.limits[1])
        return width, height

    def _end_before(self, step: Step) -> tuple[Status, str] | None:
        """Whether it ends with this action, before anything is done."""
        action = step.action
        if action is None:
            return None
        if action.action == "terminate":
            step.acted = True
            said = " ".join(step.thought.split())
            return ("success" if action.status == "success" else "failure"), said or f"the model said {action.status}"
        step.risk = self.device.risk(action)
        if self.dry_run:
            return "dry-run", f"would do: {action}"
        if self.approve is not None and action.action != "wait":
            proposal = Proposal(action, step.risk, step.thought)
            if not self.approve(proposal):
                step.error = "refused"
                return "refused", f"not allowed: {proposal}"
        return None

    def _act(self, step: Step, screen: Image) -> Image:
        """Do it; the screen afterwards."""
        if step.action is not None:
            try:
                step.note = self.device.act(step.action)
                step.acted = True
            except ActionError as error:
                step.error = str(error)
        after = self.device.screenshot()
        step.changed = after.size != screen.size or after.tobytes() != screen.tobytes()
        return after

    def _record(self, step: Step, screen: Image) -> None:
        self.steps.append(step)
        self._done.append(_progress_line(step))
        if self._trace is not None:
            self._trace.add(step.to_dict(), step.action, screen)
        if self.on_step is not None:
            self.on_step(step)

    def _end_after(self, step: Step) -> tuple[Status, str] | None:
        """Whether the last steps were the same without an effect."""
        last = self.steps[-self.patience :]
        if len(last) < self.patience or not all(_same(step, other) for other in last):
            return None
        if all(other.error for other in last):
            return "stuck", f"the same thing failed {self.patience} times: {step.error}"
        if all(not other.changed for other in last) and step.action and step.action.action != "wait":
            return "stuck", f"the same action changed nothing {self.patience} times: {step.action}"
        return None


def _constrained(sampling: SamplingParams, tool: Tool) -> SamplingParams:
    """The same sampling under the grammar of a tool's actions."""
    if sampling.grammar is not None:
        raise ValueError("constrained=True brings a grammar of its own: leave out the one in sampling")
    thought = sampling.max_new_tokens - CALL_TOKENS
    if thought < 1:
        raise ValueError(
            f"max_new_tokens={sampling.max_new_tokens} leaves no thought before an action: give at least "
            f"{CALL_TOKENS + 1}, or constrained=False"
        )
    return replace(sampling, grammar=action_grammar(tool, thought))


def _same(step: Step, other: Step) -> bool:
    """Whether both did the same, or failed in the same way without an action."""
    if step.action is None or other.action is None:
        return step.action is other.action and step.error == other.error
    return step.action == other.action


def _progress_line(step: Step) -> str:
    line = written_call(step.call) if step.call else "no tool call"
    if step.error:
        return f"{line} failed: {step.error}"
    return f"{line} ({step.note})" if step.note else line
