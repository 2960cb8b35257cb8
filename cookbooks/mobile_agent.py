# %% [markdown]
# # Mobile agent
#
# The same loop as for a computer, with the tool `mobile_use`: tap, swipe, type, the system's buttons, opening
# apps by name.
#
#     python cookbooks/mobile_agent.py                 a drawn phone, answers written by hand
#     python cookbooks/mobile_agent.py --model Qwen/Qwen2.5-VL-7B-Instruct --adb any --task "Turn on the torch"
#
# With `--adb` (a serial number, or "any" where one phone is plugged in) it acts on a real one, through the `adb`
# program. The bundled model knows no phones: what it would have to say is written by hand here.

# %%
from contextlib import closing

from by_hand import Call, calls
from qwenvl.tasks.agents import AdbDevice, Agent, Button, Device, Field, Scene, SimulatedDevice, mobile_use, replay
from setting import start, title

here = start("mobile-agent", "An agent on a phone.", adb='A phone\'s serial number, or "any".', task="What to do.")
SCREEN = (360, 640)
task = here.more["task"] or "Make a note that says: buy milk."

# %% [markdown]
# ## A phone without a phone
# Scenes with buttons and fields, and what leads from one to another.

# %%
PHONE = {
    "home": Scene(
        "Home", (Button("Clock", (40, 140, 160, 240), "clock"), Button("Notes", (200, 140, 320, 240), "notes"))
    ),
    "clock": Scene("Clock", lines=("12:00",)),
    "notes": Scene("Notes", (Button("New note", (90, 520, 270, 580), "note"),)),
    "note": Scene("Note", (Button("Save", (90, 520, 270, 580), "saved"),), (Field("note", (20, 120, 340, 180)),)),
    "saved": Scene("Saved", lines=("{note}",)),
}


def device() -> Device:
    serial = here.more["adb"]
    if serial is not None:
        return AdbDevice(None if serial == "any" else serial)
    return SimulatedDevice(PHONE, first="home", size=SCREEN, tool="mobile_use")


# %% [markdown]
# ## What the model is told
# The tool's description names the size of the screen as the model sees it, and the actions that there are.

# %%
title("The tool")
schema = mobile_use(364, 644)["function"]
actions = schema["parameters"]["properties"]["action"]["enum"]
print(f"{schema['name']}: {', '.join(actions)}")

# %% [markdown]
# ## Answers, written by hand

# %%
STEPS: list[Call] = [
    ("Notes are in the app Notes.", {"action": "open", "text": "Notes"}),
    ("A new one is needed.", {"action": "click", "coordinate": (180, 550)}),
    ("The field is empty; it must be tapped first.", {"action": "click", "coordinate": (180, 150)}),
    ("", {"action": "type", "text": "buy milk"}),
    ("", {"action": "click", "coordinate": (180, 550)}),
    ("The note is saved.", {"action": "terminate", "status": "success"}),
]
written = calls("mobile_use", STEPS, SCREEN)

# %% [markdown]
# ## The run

# %%
title(f"Task: {task}")
assistant = here.assistant_or(written, "phones")
with closing(device()) as phone:
    run = Agent(
        assistant, phone, task, trace=here.fresh("trace"), max_steps=15,
        on_step=lambda step: print(f"step {step.number}: {step.thought or '-'}\n  {step.shown} -> {step.action}"),
    ).run()  # fmt: skip
    print(f"{run.status}: {run.reason}")
    print(f"the phone shows: {phone.state()}")

# %% [markdown]
# ## Once more, without a model

# %%
if here.more["adb"] is None:
    title("Replay")
    with closing(device()) as phone:
        again = replay(here.path("trace"), phone)
    print(f"same end: {again.same} ({again.done} actions)")
