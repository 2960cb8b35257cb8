"""Agents without a screen: schemas, actions, the loop on a simulated device, traces and their replay."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scripted_assistant import Asked, ScriptedAssistant

from qwenvl.media.resize import smart_resize
from qwenvl.tasks.agents import (
    Action,
    ActionError,
    Agent,
    Proposal,
    SimulatedDevice,
    ask_when_risky,
    computer_use,
    mobile_use,
    read_action,
    replay,
    sample_form,
)
from qwenvl.tasks.agents.actions import ACTIONS
from qwenvl.tasks.agents.keys import android_key, browser_key
from qwenvl.tasks.agents.replay import screen_similarity
from qwenvl.tasks.agents.schemas import Tool
from qwenvl.tasks.agents.trace import draw_action, read_trace

SIZE = (640, 400)
NAME, PASSWORD, SEND = (320, 130), (320, 210), (320, 295)


def call(x: float = -1, y: float = -1, tool: Tool = "computer_use", **arguments: Any) -> str:
    """The answer that asks for this; x, y in pixels of the simulated device."""
    if x >= 0:
        high, wide = smart_resize(SIZE[1], SIZE[0])
        arguments["coordinate"] = [round(x * wide / SIZE[0]), round(y * high / SIZE[1])]
    return "<tool_call>\n" + json.dumps({"name": tool, "arguments": arguments}) + "\n</tool_call>"


DONE = "All is done.\n" + call(action="terminate", status="success")
SIGN_UP = [call(*NAME, action="left_click"), call(action="type", text="Ada"), call(*SEND, action="left_click"), DONE]


# schemas and actions


@pytest.mark.feature(89, 90)
@pytest.mark.parametrize(("make", "name"), [(computer_use, "computer_use"), (mobile_use, "mobile_use")])
def test_the_schemas_say_what_is_read(make: Any, name: str) -> None:
    """Every action and field of the tool is in the schema, and every one in the schema is read."""
    function = make(1316, 728)["function"]
    assert list(function) == ["name_for_human", "name", "description", "parameters", "args_format"]
    assert function["name"] == name
    assert "* The screen's resolution is 1316x728." in function["description"].split("\n")
    fields = function["parameters"]["properties"]
    assert fields["action"]["enum"] == list(ACTIONS[name])
    assert set(fields) == {"action"} | {f for needed, more in ACTIONS[name].values() for f in needed} | {
        f for _, more in ACTIONS[name].values() for f in more if f != "coordinate2" or name == "mobile_use"
    }
    assert function["parameters"]["required"] == ["action"]
    for action in ACTIONS[name]:
        assert f"* `{action}`: " in fields["action"]["description"]


@pytest.mark.feature(89, 90)
@pytest.mark.parametrize(
    ("tool", "arguments", "action"),
    [
        ("computer_use", {"action": "left_click", "coordinate": [12, 34]}, Action("left_click", (12, 34))),
        ("computer_use", {"action": "left_click"}, Action("left_click")),
        ("computer_use", {"action": "left_click", "coordinate": None, "text": ""}, Action("left_click")),
        ("computer_use", {"action": "right_click", "coordinate": ["12", "34.5"]}, Action("right_click", (12, 34.5))),
        ("computer_use", {"action": "middle_click", "coordinate": "(12, 34)"}, Action("middle_click", (12, 34))),
        ("computer_use", {"action": "double_click", "coordinate": {"x": 1, "y": 2}}, Action("double_click", (1, 2))),
        ("computer_use", {"action": "mouse_move", "coordinate": [[1, 2]]}, Action("mouse_move", (1, 2))),
        ("computer_use", {"action": "left_click", "coordinate": [10, 20, 30, 60]}, Action("left_click", (20, 40))),
        ("computer_use", {"action": "left_click_drag", "coordinate": [1, 2]}, Action("left_click_drag", (1, 2))),
        ("computer_use", {"action": "left_click_drag", "coordinate": [1, 2], "coordinate2": [3, 4]},
            Action("left_click_drag", (1, 2), (3, 4))),
        ("computer_use", {"action": "key", "keys": ["ctrl", "c"]}, Action("key", keys=("ctrl", "c"))),
        ("computer_use", {"action": "key", "keys": ["ctrl+shift+t"]}, Action("key", keys=("ctrl", "shift", "t"))),
        ("computer_use", {"action": "key", "text": "ctrl+c"}, Action("key", keys=("ctrl", "c"))),
        ("computer_use", {"action": "key", "keys": "ctrl++"}, Action("key", keys=("ctrl", "+"))),
        ("computer_use", {"action": "key", "keys": ["+"]}, Action("key", keys=("+",))),
        ("computer_use", {"action": "type", "text": "a\nb"}, Action("type", text="a\nb")),
        ("computer_use", {"action": "type", "text": 42}, Action("type", text="42")),
        ("computer_use", {"action": "type", "text": ""}, Action("type")),
        ("computer_use", {"action": "scroll", "pixels": -500}, Action("scroll", pixels=-500.0)),
        ("computer_use", {"action": "scroll", "pixels": "300", "coordinate": [5, 6]},
            Action("scroll", (5, 6), pixels=300.0)),
        ("computer_use", {"action": "wait", "time": 1.5}, Action("wait", time=1.5)),
        ("computer_use", {"action": "wait"}, Action("wait", time=2.0)),
        ("computer_use", {"action": "terminate", "status": "Success"}, Action("terminate", status="success")),
        ("mobile_use", {"action": "click", "coordinate": [12, 34]}, Action("click", (12, 34))),
        ("mobile_use", {"action": "long_press", "coordinate": [1, 2], "time": 3},
            Action("long_press", (1, 2), time=3.0)),
        ("mobile_use", {"action": "long_press", "coordinate": [1, 2]}, Action("long_press", (1, 2), time=2.0)),
        ("mobile_use", {"action": "swipe", "coordinate": [1, 2], "coordinate2": [3, 4]},
            Action("swipe", (1, 2), (3, 4))),
        ("mobile_use", {"action": "swipe", "coordinate": [1, 2], "coordinates2": [3, 4]},
            Action("swipe", (1, 2), (3, 4))),
        ("mobile_use", {"action": "type", "text": "hello"}, Action("type", text="hello")),
        ("mobile_use", {"action": "key", "text": "volume_up"}, Action("key", text="volume_up")),
        ("mobile_use", {"action": "system_button", "button": "back"}, Action("system_button", button="Back")),
        ("mobile_use", {"action": "open", "text": "Settings"}, Action("open", text="Settings")),
        ("mobile_use", {"action": "wait", "time": 5}, Action("wait", time=5.0)),
        ("mobile_use", {"action": "terminate", "status": "failure"}, Action("terminate", status="failure")),
    ],
)  # fmt: skip
def test_actions_are_read(tool: str, arguments: dict[str, Any], action: Action) -> None:
    assert read_action(tool, arguments) == action
    assert Action.from_dict(json.loads(json.dumps(action.to_dict()))) == action


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("browser_use", {"action": "left_click"}, "no tool 'browser_use': call computer_use or mobile_use"),
        ("computer_use", {"action": "tap"}, "unknown action 'tap': expected one of key, type, mouse_move"),
        ("computer_use", {}, "unknown action None"),
        ("computer_use", {"action": ["left_click"]}, "unknown action"),
        ("computer_use", {"action": "swipe", "coordinate": [1, 2]}, "unknown action 'swipe'"),
        ("mobile_use", {"action": "left_click", "coordinate": [1, 2]}, "expected one of key, click, long_press"),
        ("computer_use", {"action": "mouse_move"}, r"mouse_move needs coordinate: \[x, y\] in pixels"),
        ("computer_use", {"action": "key", "keys": []}, "key needs keys"),
        ("computer_use", {"action": "key", "keys": [None]}, "key: keys is .None., expected a list of key names"),
        ("computer_use", {"action": "type"}, "type needs text"),
        ("computer_use", {"action": "type", "text": {"a": 1}}, "type: text is"),
        ("computer_use", {"action": "scroll"}, "scroll needs pixels"),
        ("computer_use", {"action": "scroll", "pixels": True}, "pixels is True, expected a number"),
        ("computer_use", {"action": "scroll", "pixels": 1e300}, "expected a number"),
        ("computer_use", {"action": "left_click", "coordinate": [1]}, r"coordinate is \[1\], expected \[x, y\]"),
        ("computer_use", {"action": "left_click", "coordinate": [1, 2, 3]}, r"expected \[x, y\]"),
        ("computer_use", {"action": "left_click", "coordinate": ["a", "b"]}, r"expected \[x, y\]"),
        ("computer_use", {"action": "left_click", "coordinate": [float("nan"), 1]}, r"expected \[x, y\]"),
        ("computer_use", {"action": "left_click", "coordinate": "x" * 500}, r"'x{50,60}\.\.\., expected"),
        ("computer_use", {"action": "wait", "time": -1}, "time is -1, expected seconds, from 0 to 60"),
        ("computer_use", {"action": "wait", "time": 3600}, "expected seconds, from 0 to 60"),
        ("computer_use", {"action": "terminate"}, "terminate needs status: one of success, failure"),
        ("computer_use", {"action": "terminate", "status": "done"}, "status is 'done', expected one of success"),
        ("mobile_use", {"action": "click"}, "click needs coordinate"),
        ("mobile_use", {"action": "swipe", "coordinate": [1, 2]}, "swipe needs coordinate2"),
        ("mobile_use", {"action": "system_button", "button": "Power"}, "expected one of Back, Home, Menu, Enter"),
        ("mobile_use", {"action": "open"}, "open needs text"),
    ],
)
def test_what_is_no_action_is_told(tool: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ActionError, match=message):
        read_action(tool, arguments)


@pytest.mark.feature(89, 90)
@pytest.mark.parametrize(
    ("seen", "screen", "point", "there"),
    [
        ((1316, 728), (1920, 1080), (658, 364), (960, 540)),
        ((1092, 2408), (1080, 2400), (0, 0), (0, 0)),
        ((1092, 2408), (1080, 2400), (1092, 2408), (1079, 2399)),
        ((1092, 2408), (1080, 2400), (5000, -7), (1079, 0)),
        ((1596, 1204), (800, 600), (399, 301), (200, 150)),
    ],
)
def test_coordinates_come_back_to_the_screen(
    seen: tuple[int, int], screen: tuple[int, int], point: tuple[int, int], there: tuple[int, int]
) -> None:
    moved = Action("swipe", point, point).scaled(seen, screen)
    assert moved.coordinate == pytest.approx(there, abs=0.01)
    assert moved.coordinate2 == moved.coordinate
    assert Action("scroll", pixels=-301.0).scaled((1596, 1204), (800, 600)).pixels == -150.0


def test_names_of_keys() -> None:
    names = {"ctrl": "Control", "Control_L": "Control", "super": "Meta", "RETURN": "Enter", "page_down": "PageDown",
        "PgUp": "PageUp", "ArrowLeft": "ArrowLeft", "left": "ArrowLeft", "F5": "F5", "a": "a", "A": "A", "é": "é",
        " ": "Space", "space": "Space", "plus": "+", "BackSpace": "Backspace", "cmd": "Meta"}  # fmt: skip
    assert {name: browser_key(name) for name in names} == names
    assert android_key("volume up") == "KEYCODE_VOLUME_UP"
    for read in (browser_key, android_key):
        with pytest.raises(ActionError, match="unknown key"):
            read("no;key")


# the loop


def run(answers: Any, device: SimulatedDevice | None = None, **options: Any) -> tuple[Any, SimulatedDevice, Any]:
    device = device or SimulatedDevice(sample_form())
    model = ScriptedAssistant(answers)
    return Agent(model, device, "Sign up as Ada", **options).run(), device, model


@pytest.mark.feature(90, 97)
def test_a_task_from_begin_to_end() -> None:
    ended, device, _ = run(SIGN_UP)
    assert (ended.status, ended.reason) == ("success", "All is done.")
    assert device.state() == {"scene": "sent", "title": "Thank you", "texts": {"name": "Ada"}}
    assert [step.changed for step in ended.steps] == [True, True, True, None]
    assert [a.coordinate for a in device.actions] == [pytest.approx(NAME, abs=1), None, pytest.approx(SEND, abs=1)]


@pytest.mark.feature(89, 90, 97)
def test_the_conversation_is_the_official_one() -> None:
    """Text before the picture, the progress as one line of JSON a step, the resolution as the model sees it."""
    _, _, model = run(SIGN_UP)
    first, third = model.asked[0], model.asked[2]
    assert first.messages[0] == {
        "role": "system",
        "content": [{"type": "text", "text": "You are a helpful assistant."}],
    }
    assert [part["type"] for part in first.messages[1]["content"]] == ["text", "image"]
    progress = "\nTask progress (You have done the following operation on the current device): "
    assert first.question == f"The user query:  Sign up as Ada{progress}"
    high, wide = smart_resize(SIZE[1], SIZE[0])
    assert third.question == (
        f"The user query:  Sign up as Ada{progress}"
        'Step 1: {"name": "computer_use", "arguments": {"action": "left_click", "coordinate": '
        f"[{round(320 * wide / 640)}, {round(130 * high / 400)}]}}}}; "
        'Step 2: {"name": "computer_use", "arguments": {"action": "type", "text": "Ada"}}; '
    )
    assert first.tools == [computer_use(wide, high)]
    assert first.media[0].size == SIZE


def test_mistakes_are_told_to_the_model() -> None:
    answers = [
        "I do not know.",
        call(action="fly"),
        call(action="mouse_move"),
        call(tool="mobile_use", action="wait"),
        DONE,
    ]
    ended, device, model = run(answers)
    assert ended.status == "success"
    assert device.actions == []
    told = model.asked[4].question
    assert "Step 1: no tool call failed: the answer has no tool call: write one as JSON" in told
    assert "failed: unknown action 'fly': expected one of key, type" in told
    assert "failed: mouse_move needs coordinate: [x, y] in pixels of the screenshot; " in told
    assert "failed: there is no tool 'mobile_use' here: call computer_use; " in told


def test_what_the_device_says_is_told() -> None:
    device = SimulatedDevice(sample_form(), fails={"scroll": "there is nothing to scroll"})
    _, _, model = run([call(action="type", text="x"), call(action="scroll", pixels=1), DONE], device)
    assert "(nothing is focused, so the text went nowhere); " in model.asked[2].question
    assert "failed: there is nothing to scroll; " in model.asked[2].question


def test_one_answer_one_action() -> None:
    ended, device, _ = run([call(*NAME, action="left_click") + "\n" + call(action="type", text="x"), DONE])
    assert [a.action for a in device.actions] == ["left_click"]
    assert ended.steps[0].ignored == 1


def test_it_ends_when_nothing_helps() -> None:
    ended, device, _ = run([call(5, 390, action="left_click")])
    assert (ended.status, len(ended.steps)) == ("stuck", 3)
    assert "changed nothing 3 times: left_click (4.97, 389.8)" in ended.reason
    ended, _, _ = run(["What?"], patience=2)
    assert (ended.status, len(ended.steps)) == ("stuck", 2)
    ended, _, _ = run([call(action="fly")])
    assert ended.status == "stuck"
    assert ended.reason.startswith("the same thing failed 3 times: unknown action 'fly'")
    ended, device, _ = run([call(action="wait", time=1)], max_steps=5)
    assert (ended.status, device.seconds) == ("limit", 5.0)  # waiting for what is slow is no loop
    ended, _, _ = run(SIGN_UP, max_steps=2)
    assert (ended.status, len(ended.steps)) == ("limit", 2)
    assert ended.reason == "2 steps were made and the model did not end the task"


def test_the_model_may_give_up() -> None:
    ended, _, _ = run([call(action="terminate", status="failure")])
    assert (ended.status, ended.reason) == ("failure", "the model said failure")


def test_a_dry_run_does_nothing() -> None:
    ended, device, model = run(SIGN_UP, dry_run=True)
    assert (ended.status, len(ended.steps), device.actions) == ("dry-run", 1, [])
    assert ended.reason.startswith("would do: left_click (3")
    assert not ended.steps[0].acted
    assert device.state()["scene"] == "form"
    assert len(model.asked) == 1


def test_a_person_says_no() -> None:
    asked: list[Proposal] = []

    def answer(proposal: Proposal) -> bool:
        asked.append(proposal)
        return len(asked) < 3

    ended, device, _ = run([call(action="wait", time=1), *SIGN_UP], approve=answer)
    assert ended.status == "refused"
    assert ended.reason.startswith("not allowed: left_click (3")
    assert ended.reason.endswith("(submits a form)")
    assert [a.action for a in device.actions] == ["wait", "left_click", "type"]
    assert len(asked) == 3  # a wait is not asked about
    assert not ended.steps[-1].acted


def test_only_risks_are_asked_about() -> None:
    asked: list[str] = []

    def answer(proposal: Proposal) -> bool:
        asked.append(proposal.risk)
        return True

    answers = [
        call(*PASSWORD, action="left_click"),
        call(action="type", text="s"),
        call(action="key", keys=["Enter"]),
        DONE,
    ]
    ended, device, _ = run(answers, approve=ask_when_risky(answer))
    assert ended.status == "success"
    assert asked == ["types into a password field", "submits a form"]
    assert device.state()["scene"] == "sent"


def test_a_screen_that_is_resized_otherwise_is_an_error() -> None:
    class Other(ScriptedAssistant):
        def _fit(self, width: int, height: int, item: dict[str, Any]) -> Any:
            return super()._fit(width, height, {"max_pixels": 100_000})

    with pytest.raises(ValueError, match="resized to 392 x 224, and the model was told 644 x 392"):
        Agent(Other(SIGN_UP), SimulatedDevice(sample_form()), "Sign up").run()


def test_smaller_screenshots_map_back() -> None:
    def answer(asked: Asked) -> str:
        seen = asked.tools[0]["function"]["description"].split("resolution is ")[1].split(".")[0]
        wide, high = map(int, seen.split("x"))
        assert wide * high <= 50_000
        return call(action="left_click", coordinate=[round(320 * wide / 640), round(130 * high / 400)])

    device = SimulatedDevice(sample_form())
    Agent(ScriptedAssistant(answer), device, "Click", max_pixels=50_000, max_steps=1).run()
    assert device.actions[0].coordinate == pytest.approx(NAME, abs=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"task": " "}, "the task is empty"), ({"max_steps": 0}, "max_steps=0"), ({"patience": 0}, "patience=0")],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    task = options.pop("task", "Sign up")
    with pytest.raises(ValueError, match=message):
        Agent(ScriptedAssistant(SIGN_UP), SimulatedDevice(sample_form()), task, **options)


@pytest.mark.feature(89)
def test_a_simulated_phone() -> None:
    def touch(**arguments: Any) -> str:
        return call(tool="mobile_use", **arguments)

    answers = [touch(action="open", text="Help"), touch(action="system_button", button="Back"),
        touch(x=NAME[0], y=NAME[1], action="click"), touch(action="type", text="Ada\n"),
        touch(action="terminate", status="success")]  # fmt: skip
    device = SimulatedDevice(sample_form(), tool="mobile_use")
    ended, _, _ = run(answers, device)
    assert ended.status == "success"
    assert device.state() == {"scene": "sent", "title": "Thank you", "texts": {"name": "Ada"}}


# traces


@pytest.mark.feature(97)
def test_a_trace_has_both_spaces_and_pictures(tmp_path: Path) -> None:
    run([SIGN_UP[0], call(action="fly"), *SIGN_UP[1:]], trace=tmp_path / "t")
    head = json.loads((tmp_path / "t" / "run.json").read_text())
    steps = [json.loads(line) for line in (tmp_path / "t" / "steps.jsonl").read_text().splitlines()]
    assert (head["task"], head["status"], head["state"]["scene"]) == ("Sign up as Ada", "success", "sent")
    assert head["size"] == [640, 400]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5]
    assert steps[0]["sizes"] == {"screenshot": [640, 400], "seen": [644, 392], "device": [640, 400]}
    assert steps[0]["shown"]["coordinate"] == [322, 127]
    assert steps[0]["action"]["coordinate"] == pytest.approx([320, 129.59])
    assert (steps[1]["error"][:14], steps[1]["action"], steps[1]["acted"]) == ("unknown action", None, False)
    with (
        Image.open(tmp_path / "t" / "step-001-act.jpg") as drawn,
        Image.open(tmp_path / "t" / "step-001.png") as screen,
    ):
        assert drawn.size == screen.size == SIZE
        assert screen_similarity(screen, SimulatedDevice(sample_form()).screenshot()) == 1.0
        assert 0.5 < screen_similarity(drawn, screen) < 0.999
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o700
    with pytest.raises(ValueError, match="holds a trace already"):
        run(SIGN_UP, trace=tmp_path / "t")


@pytest.mark.feature(97)
def test_a_trace_replays(tmp_path: Path) -> None:
    run(SIGN_UP, trace=tmp_path / "t")
    device = SimulatedDevice(sample_form())
    again = replay(tmp_path / "t", device)
    assert (again.same, again.done, again.similarity) == (True, 3, 1.0)
    assert again.to_dict()["differences"] == []
    # a device that stands elsewhere ends elsewhere, and it is said how
    other = replay(tmp_path / "t", SimulatedDevice(sample_form(), first="help"))
    assert not other.same
    assert any(line.startswith("title is ") for line in other.differences)
    refusing = replay(tmp_path / "t", SimulatedDevice(sample_form(), fails={"type": "no keyboard"}))
    assert refusing.done == 1
    assert "action 2 of 3, type 'Ada': no keyboard" in refusing.differences


def test_a_screen_that_looks_otherwise_is_told(tmp_path: Path) -> None:
    run(SIGN_UP, trace=tmp_path / "t")
    Image.new("RGB", SIZE, "navy").save(tmp_path / "t" / "end.png")
    again = replay(tmp_path / "t", SimulatedDevice(sample_form()))
    assert len(again.differences) == 1
    assert "the last screen is" in again.differences[0]


def test_what_was_not_done_is_not_replayed(tmp_path: Path) -> None:
    run(SIGN_UP, trace=tmp_path / "t", approve=lambda proposal: not proposal.risk)
    assert [action.action for action in read_trace(tmp_path / "t").actions] == ["left_click", "type"]


def test_what_cannot_be_replayed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no trace"):
        read_trace(tmp_path)
    run(SIGN_UP, trace=tmp_path / "t")
    for device in (SimulatedDevice(sample_form(), size=(800, 600)), SimulatedDevice(sample_form(), tool="mobile_use")):
        with pytest.raises(ValueError, match="the trace is of computer_use on 640 x 400, the device is"):
            replay(tmp_path / "t", device)
    lines = (tmp_path / "t" / "steps.jsonl").read_text()
    (tmp_path / "t" / "steps.jsonl").write_text(lines[:-30])
    with pytest.raises(ValueError, match="line 4 is not a step"):
        read_trace(tmp_path / "t")
    (tmp_path / "t" / "run.json").write_text("{")
    with pytest.raises(ValueError, match="not what a trace has"):
        read_trace(tmp_path / "t")


def test_an_error_of_the_model_leaves_a_whole_trace(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        run([SIGN_UP[0], MemoryError("too long")], trace=tmp_path / "t")
    assert json.loads((tmp_path / "t" / "run.json").read_text())["reason"] == "MemoryError: too long"
    assert len(read_trace(tmp_path / "t").actions) == 1


def test_a_drawn_action_is_where_it_was(tmp_path: Path) -> None:
    """On a screenshot of two pixels a device pixel, a drag from (100, 50) to (200, 50)."""
    screen = Image.new("RGB", (800, 400), "black")
    drawn = draw_action(screen, Action("left_click_drag", (100, 50), (200, 50)), (400, 200))
    changed = [(x, y) for x in range(800) for y in range(400) if drawn.getpixel((x, y)) != (0, 0, 0)]
    assert min(x for x, _ in changed) in range(180, 190)
    assert max(x for x, _ in changed) in range(410, 421)
    assert drawn.getpixel((300, 100)) != (0, 0, 0)
    assert screen.getpixel((300, 100)) == (0, 0, 0)
