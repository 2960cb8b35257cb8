# %% [markdown]
# # Computer use
#
# A task in words, a screen, and a model that says where to click: screenshot, answer, action, until it is done.
# The model sees the screen resized and answers in pixels of what it sees; the action comes out in pixels of the
# real screen.
#
#     python cookbooks/computer_use.py                 a drawn screen, answers written by hand
#     python cookbooks/computer_use.py --browser       the same form as a page in Chromium
#     python cookbooks/computer_use.py --model Qwen/Qwen2.5-VL-7B-Instruct --url URL --task "Open the imprint"
#
# The bundled model knows no screens. What it would have to say is written by hand here, for one task on one form.

# %%
from contextlib import closing

from by_hand import Call, calls
from form import serve_form
from qwenvl.tasks.agents import Agent, BrowserDevice, Device, Proposal, SimulatedDevice, replay, sample_form
from setting import start, title

here = start(
    "computer-use", "An agent on a screen.", flags={"browser": "A real page in Chromium."},
    url="A page to act on, with --model.", task="What to do.",
)  # fmt: skip
SCREEN = (640, 400)
task = here.more["task"] or "Sign up as Ada, with the password ada-1815."

# %% [markdown]
# ## The answers
# A thought, and a call of the tool `computer_use`, as checkpoints write them. The places are those of the form,
# brought to the size in which the screenshot is seen.

# %%
STEPS: list[Call] = [
    ("The name field comes first.", {"action": "left_click", "coordinate": (320, 130)}),
    ("", {"action": "type", "text": "Ada"}),
    ("Now the password.", {"action": "left_click", "coordinate": (320, 210)}),
    ("", {"action": "type", "text": "ada-1815"}),
    ("Both are filled in.", {"action": "left_click", "coordinate": (320, 295)}),
    ("It says Thank you: done.", {"action": "terminate", "status": "success"}),
]
written = calls("computer_use", STEPS, SCREEN)

# %% [markdown]
# ## The device
# Drawn with PIL, or a page in Chromium, which may leave neither its host nor be typed into without a look at what
# is risky.


# %%
def device(url: str | None) -> Device:
    if url is not None:
        return BrowserDevice(url, width=SCREEN[0], height=SCREEN[1])
    return SimulatedDevice(sample_form(), size=SCREEN)


def allowed(proposal: Proposal) -> bool:
    """A person would be asked here; `qwenvl act` does."""
    if proposal.risk:
        print(f"  (allowed, though it {proposal.risk})")
    return True


# %% [markdown]
# ## The run
# Every step goes into a folder: what was answered, the action in both spaces, and a picture with the click
# marked.

# %%
assistant = here.assistant_or(written, "screens")
with serve_form() as form:
    url = here.more["url"] or (form.url if here.more["browser"] else None)
    title(f"Task: {task}")
    with closing(device(url)) as screen:
        run = Agent(
            assistant, screen, task, approve=allowed, trace=here.fresh("trace"), max_steps=15,
            on_step=lambda step: print(f"step {step.number}: {step.thought or '-'}\n  {step.shown} -> {step.action}"),
        ).run()  # fmt: skip
        print(f"{run.status}: {run.reason}")
    if here.more["browser"]:
        print(f"the page received: {form.received}")

    # %% [markdown]
    # ## Once more
    # A trace does the same again without a model, and compares where it ends.

    # %%
    title("Replay")
    with closing(device(url)) as screen:
        again = replay(here.path("trace"), screen)
    print(f"same end: {again.same} ({again.done} actions, last screen {again.similarity:.0%} alike)")
