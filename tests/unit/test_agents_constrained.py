"""Agents whose answers are held to a grammar: whatever can be written is an action, with its points on the screen."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from scripted_assistant import ScriptedAssistant
from test_agents import DONE, SIGN_UP, call

from qwenvl.cli import act as verb
from qwenvl.tasks import Assistant
from qwenvl.tasks.agents import Action, Agent, SimulatedDevice, read_action, sample_form
from qwenvl.tasks.agents.actions import ACTIONS, FIELDS
from qwenvl.tasks.agents.grammar import action_grammar, arguments_schema
from qwenvl.tasks.agents.prompts import step_messages
from qwenvl.tasks.agents.schemas import Tool
from qwenvl.tasks.calls import parse_calls
from qwenvl.types import Grammar, SamplingParams


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant("demo", max_running=25)


@pytest.mark.parametrize("tool", ["computer_use", "mobile_use"])
def test_every_action_has_its_branch(tool: Tool) -> None:
    """The schema of the arguments says of each action what the table says."""
    branches = {branch["properties"]["action"]["const"]: branch for branch in arguments_schema(tool)["anyOf"]}
    assert list(branches) == list(ACTIONS[tool])
    for name, (required, optional) in ACTIONS[tool].items():
        assert set(branches[name]["required"]) == {"action", *required}
        assert set(branches[name]["properties"]) == {"action", *required, *optional}
    assert {field for pair in ACTIONS[tool].values() for fields in pair for field in fields} <= set(FIELDS)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (call(action="left_click", coordinate=[10, 20]), True),
        (call(action="left_click"), True),
        (call(action="scroll", coordinate=[10, 20], pixels=-300), True),
        (call(action="key", keys=["ctrl", "c"]), True),
        (call(action="key", keys=["+"]), True),
        (call(action="type", text="Ada\n"), True),
        (call(action="wait", time=2), True),
        (DONE, True),
        ("I see a form.\nIt has <b>two</b> fields.\n" + call(action="wait"), True),
        (call(action="left_click", coordinate=[10, 252]), False),  # below the screen
        (call(action="left_click", coordinate=[-1, 20]), False),
        (call(action="type"), False),
        (call(action="type", text=""), False),
        (call(action="terminate", status="done"), False),
        (call(action="fly"), False),
        (call(action="wait", text="no such field"), False),
        (call(action="click", coordinate=[10, 20]), False),  # of the other tool
        ("I see a form.", False),
        (DONE + " And more.", False),
    ],
)
def test_what_may_be_written(assistant: Assistant, text: str, allowed: bool) -> None:
    """On a screen of 252 pixels' height as the model sees it, 392 wide."""
    guide = assistant.engine._grammars.start(action_grammar("computer_use"), SamplingParams(), ((392, 252),))
    ids = assistant.processor.tokenizer.encode(text)
    fits = len(guide.agree(tuple(ids))) == len(ids)
    for token in ids if fits else ():
        guide.take(token)
    assert (fits and guide.may_end) == allowed
    if allowed:
        _, calls = parse_calls(text, ["computer_use"])
        read_action("computer_use", calls[0].arguments)


def answers(assistant: Assistant, tool: Tool, grammar: Grammar, seeds: range, tokens: int) -> list[Any]:
    device = SimulatedDevice(sample_form())
    messages = step_messages("Sign up as Ada", [], device.screenshot(), 4 * 28 * 28, 144 * 28 * 28)
    jobs = [
        assistant.prepare_reply(
            messages, SamplingParams(max_new_tokens=tokens, temperature=1.0, seed=seed, grammar=grammar)
        )
        for seed in seeds
    ]
    done = assistant.engine.run([request for request, _ in jobs])
    return list(zip(done, (seen.sizes[-1] for _, seen in jobs), strict=True))


@pytest.mark.slow
@pytest.mark.feature(90, 97)
@pytest.mark.parametrize("tool", ["computer_use", "mobile_use"])
def test_a_model_without_tools_writes_valid_actions(assistant: Assistant, tool: Tool) -> None:
    """100 of 100 at temperature 1 by a model that never saw a tool, half of them with thoughts first."""
    found: list[Action] = []
    for thought, seeds in ((False, range(50)), (20, range(50, 100))):
        for completion, size in answers(assistant, tool, action_grammar(tool, thought), seeds, 2500):
            assert completion.finish_reason == "stop"
            _, calls = parse_calls(completion.text, [tool])
            assert len(calls) == 1, completion.text
            action = read_action(tool, calls[0].arguments)
            for point in (action.coordinate, action.coordinate2):
                assert point is None or (0 <= point[0] < size.resized_width and 0 <= point[1] < size.resized_height)
            found.append(action)
    assert len(found) == 100


def test_one_valid_action_by_a_model_without_tools(assistant: Assistant) -> None:
    for completion, _ in answers(assistant, "mobile_use", action_grammar("mobile_use", 5), range(3), 2500):
        _, calls = parse_calls(completion.text, ["mobile_use"])
        read_action("mobile_use", calls[0].arguments)


def test_an_agent_asks_for_it() -> None:
    scripted = ScriptedAssistant(SIGN_UP)
    device = SimulatedDevice(sample_form())
    run = Agent(scripted, device, "Sign up as Ada", constrained=True, sampling=SamplingParams(seed=7)).run()
    assert run.status == "success"
    assert {asked.sampling.grammar for asked in scripted.asked} == {action_grammar("computer_use", 256)}
    assert {asked.sampling.seed for asked in scripted.asked} == {7}
    free = ScriptedAssistant(SIGN_UP)
    Agent(free, SimulatedDevice(sample_form()), "Sign up as Ada").run()
    assert {asked.sampling.grammar for asked in free.asked} == {None}


def test_what_cannot_be_constrained_is_refused() -> None:
    device = SimulatedDevice(sample_form())
    with pytest.raises(ValueError, match="max_new_tokens=200 leaves no thought"):
        Agent(ScriptedAssistant([]), device, "x", constrained=True, sampling=SamplingParams(max_new_tokens=200))
    sampling = SamplingParams(grammar=Grammar("json"))
    with pytest.raises(ValueError, match="a grammar of its own"):
        Agent(ScriptedAssistant([]), device, "x", constrained=True, sampling=sampling)
    with pytest.raises(ValueError, match="thought=-1"):
        Grammar.json_schema({}, before="x", thought=-1)


def test_the_verb_constrains_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [verb._constrained(asked, 512) for asked in (None, True, False)] == [True, True, False]
    assert verb._constrained(None, 200) is False
    with pytest.raises(ValueError, match="--max-new-tokens 200"):
        verb._constrained(True, 200)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert verb._constrained(None, 512) is False
    with pytest.raises(ValueError, match="needs llguidance"):
        verb._constrained(True, 512)


def test_the_arguments_are_json(assistant: Assistant) -> None:
    assert json.loads(json.dumps(arguments_schema("computer_use"))) == arguments_schema("computer_use")


@pytest.mark.parametrize("tool", ["computer_use", "mobile_use"])
def test_whatever_the_grammar_allows_is_read(assistant: Assistant, tool: Tool) -> None:
    """Walks through the grammar that take any allowed token with equal chance, control tokens and odd bytes too."""
    luck, width, height = Random(1), 140, 84
    seen: set[str] = set()
    for _ in range(60):
        guide = assistant.engine._grammars.start(action_grammar(tool, 3), SamplingParams(), ((width, height),))
        ids: list[int] = []
        while not guide.complete:
            allowed = (~guide.banned()).nonzero()[0]
            ids.append(luck.choice(allowed.tolist()))
            guide.take(ids[-1])
            assert len(ids) < 3000
        text = assistant.processor.tokenizer.decode(ids, skip_special_tokens=False)
        _, calls = parse_calls(text, [tool])
        assert len(calls) == 1, text
        action = read_action(tool, calls[0].arguments)
        for point in (action.coordinate, action.coordinate2):
            assert point is None or (0 <= point[0] < width and 0 <= point[1] < height)
        seen.add(action.action)
    assert len(seen) >= 7, seen
