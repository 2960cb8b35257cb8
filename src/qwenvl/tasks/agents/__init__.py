"""Room agents: a task in words in, actions on a screen out, until it is done.

In: an object that answers conversations with tools, a device, a task. Out: AgentRun (status, steps, reason) and a trace
folder that can be looked at and replayed.
Does not know models or engines (it takes what has a `reply`), and of a device only its pictures, its size and `act`.

    schemas.py, actions.py   what the model is told it can do, and what it asked for, checked
    agent.py, prompts.py     the loop: screenshot -> answer -> action -> act, with approval, limits and feedback
    trace.py, replay.py      what was done, in files; doing it again
    devices.py               what a device is; browser.py (Chromium), adb.py (Android), simulated.py (no screen at all)
"""

from __future__ import annotations

from qwenvl.tasks.agents.actions import Action, ActionError, read_action
from qwenvl.tasks.agents.adb import AdbDevice
from qwenvl.tasks.agents.agent import Agent, AgentRun, Proposal, Step, ask_when_risky
from qwenvl.tasks.agents.browser import BrowserDevice
from qwenvl.tasks.agents.devices import Device, DeviceLostError
from qwenvl.tasks.agents.replay import Replay, replay
from qwenvl.tasks.agents.schemas import computer_use, mobile_use
from qwenvl.tasks.agents.simulated import Button, Field, Scene, SimulatedDevice, sample_form

__all__ = [
    "Action",
    "ActionError",
    "AdbDevice",
    "Agent",
    "AgentRun",
    "BrowserDevice",
    "Button",
    "Device",
    "DeviceLostError",
    "Field",
    "Proposal",
    "Replay",
    "Scene",
    "SimulatedDevice",
    "Step",
    "ask_when_risky",
    "computer_use",
    "mobile_use",
    "read_action",
    "replay",
    "sample_form",
]
