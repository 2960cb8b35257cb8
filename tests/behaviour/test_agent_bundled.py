"""The agent's conversation through the real processor and engine.

The bundled model knows no tools and writes no call; what is shown is that tools and pictures go together, and that the
sizes that the model is told are those that it sees.
"""

from __future__ import annotations

import pytest

from qwenvl.tasks import Assistant
from qwenvl.tasks.agents import Agent, SimulatedDevice, computer_use, sample_form
from qwenvl.tasks.agents.prompts import step_messages
from qwenvl.types import SamplingParams


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant("demo")


@pytest.mark.feature(97)
@pytest.mark.parametrize("max_pixels", [40_000, 150_000])
def test_the_loop_runs_on_a_real_assistant(assistant: Assistant, max_pixels: int) -> None:
    device = SimulatedDevice(sample_form())
    run = Agent(
        assistant, device, "Sign up", max_steps=2, max_pixels=max_pixels, sampling=SamplingParams(max_new_tokens=8)
    ).run()
    assert run.status == "limit"
    assert device.actions == []
    assert all(step.error.startswith("the answer has no tool call") for step in run.steps)
    wide, high = run.steps[0].sizes["seen"]
    assert wide * high <= max_pixels
    assert (wide % 28, high % 28) == (0, 0)


@pytest.mark.feature(97)
def test_the_prompt_is_letter_by_letter_the_official_one(assistant: Assistant) -> None:
    screen = SimulatedDevice(sample_form()).screenshot()
    messages = step_messages(
        "Sign up", ['{"name": "computer_use", "arguments": {"action": "wait"}}'], screen, 3136, 40_000
    )
    text = assistant.processor.apply_chat_template(messages, tools=[computer_use(252, 140)], add_generation_prompt=True)
    head, tools, rest = (
        text.partition("<tools>\n")[0],
        text.split("<tools>\n")[1].split("\n</tools>")[0],
        text.split("</tools>\n\n")[1],
    )
    assert head == (
        "<|im_start|>system\nYou are a helpful assistant.\n\n# Tools\n\nYou may call one or more functions to assist "
        "with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n"
    )
    assert tools.startswith(
        '{"type": "function", "function": {"name_for_human": "computer_use", "name": "computer_use", '
    )
    assert tools.endswith('"args_format": "Format the arguments as a JSON object."}}')
    assert "\n" not in tools
    assert rest == (
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
        'XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nThe user query:  Sign up\nTask progress (You have done the following operation on the "
        'current device): Step 1: {"name": "computer_use", "arguments": {"action": "wait"}}; '
        "<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    )
