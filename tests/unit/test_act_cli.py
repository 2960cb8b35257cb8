"""`qwenvl act`: mistakes before anything is loaded, approval on the terminal, dry run, traces, replay, JSON."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from fake_adb import FakeAdb
from scripted_assistant import ScriptedAssistant
from test_agents import SIGN_UP
from typer.testing import CliRunner, Result

from qwenvl.cli import act as verb
from qwenvl.cli.app import app
from qwenvl.tasks.agents import AdbDevice, SimulatedDevice, sample_form


class Screen(SimulatedDevice):
    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screens(monkeypatch: pytest.MonkeyPatch) -> list[Screen]:
    """The verb on simulated screens, with a scripted model; what was opened."""
    opened: list[Screen] = []

    def open_screen(url: str | None, serial: str | None, options: dict[str, Any]) -> Screen:
        opened.append(Screen(sample_form()))
        return opened[-1]

    monkeypatch.setattr(verb, "_open", open_screen)
    monkeypatch.setattr(verb, "find_model", lambda name: name)
    monkeypatch.setattr(verb, "start_assistant", lambda *_, **__: ScriptedAssistant(SIGN_UP))
    return opened


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["act", *arguments])


RUN = ("Sign up as Ada", "--url", "http://localhost:1", "--model", "a-checkpoint")


@pytest.mark.feature(90, 97)
def test_a_task(screens: list[Screen], tmp_path: Path) -> None:
    done = call(*RUN, "--yes", "--trace", str(tmp_path / "t"))
    assert done.exit_code == 0, done.exception
    lines = done.stdout.splitlines()
    assert [line.split("\t")[0] for line in lines[:4]] == ["1", "2", "3", "4"]
    assert lines[1] == "2\ttype 'Ada'"
    assert lines[-1] == "success: All is done."
    assert screens[0].state()["scene"] == "sent"

    again = call("--replay", str(tmp_path / "t"), "--url", "http://localhost:1")
    assert again.exit_code == 0, again.exception
    assert again.stdout.splitlines()[-1] == "ended in the same place"
    (tmp_path / "t" / "run.json").write_text((tmp_path / "t" / "run.json").read_text().replace("Thank you", "Sorry"))
    other = call("--replay", str(tmp_path / "t"), "--url", "http://localhost:1", "--json")
    assert other.exit_code == 1
    report = json.loads(other.stdout)
    assert (report["same"], report["differences"]) == (False, ["title is 'Thank you', it was 'Sorry'"])


def test_json_is_one_object(screens: list[Screen]) -> None:
    report = json.loads(call(*RUN, "--yes", "--json").stdout)
    assert (report["status"], report["task"], len(report["steps"])) == ("success", "Sign up as Ada", 4)
    assert report["steps"][1]["action"] == {"action": "type", "text": "Ada"}


def test_a_dry_run(screens: list[Screen]) -> None:
    done = call(*RUN, "--dry-run")
    assert done.exit_code == 0
    assert re.search(r"^dry-run: would do: left_click \(3", done.stdout, re.MULTILINE)
    assert screens[0].actions == []


@pytest.mark.parametrize(
    ("options", "typed", "code", "acts"),
    [
        ([], "y\nyes\ny\n", 0, 3),
        ([], "y\nn\n", 1, 1),
        ([], "", 1, 0),
        (["--ask", "risky"], "y\n", 0, 3),
        (["--ask", "risky"], "no\n", 1, 2),
    ],
)
def test_a_person_is_asked(
    screens: list[Screen], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str], typed: str, code: int, acts: int,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    with pytest.raises((SystemExit, typer.Exit)) as ended:
        app(["act", *RUN, *options], standalone_mode=True)
    assert ended.value.code == code
    assert len(screens[0].actions) == acts
    assert "[y/N]" in capsys.readouterr().err


def test_no_terminal_no_action(screens: list[Screen]) -> None:
    done = call(*RUN)
    assert "no terminal to ask on" in str(done.exception)
    assert screens == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task", "--yes", "--model", "x"], "name one device: --url ADDRESS"),
        (["task", "--url", "http://a", "--adb", "--yes"], "name one device"),
        (["--url", "http://a", "--yes", "--model", "x"], "no task: say what to do"),
        ([" ", "--url", "http://a", "--yes", "--model", "x"], "no task"),
        (["task", "--url", "http://a", "--yes"], "the bundled model knows no tools"),
        (["task", "--adb", "--scale", "2", "--isolate", "--yes"], "--scale, --isolate is for browsers"),
        (["task", "--url", "http://a", "--view", "big"], "--view big is no size"),
        (["task", "--url", "http://a", "--view", "0x10"], "--view 0x10 is no size"),
        (["task", "--url", "http://a", "--ask", "never"], "--ask never is not known"),
        (["task", "--url", "http://a", "--max-steps", "0"], "--max-steps 0: expected 1 or more"),
        (["task", "--replay", "nowhere"], "leave out the task"),
        (["--replay", "nowhere"], "nowhere is no trace"),
        (["task", "--url", "ftp://a", "--yes", "--model", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_told_first(arguments: list[str], message: str) -> None:
    assert message in str(call(*arguments).exception)


def test_a_trace_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    done = call(*RUN, "--yes", "--trace", str(tmp_path))
    assert "holds a trace already" in str(done.exception)


def test_what_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qwenvl.tasks.agents as agents

    made: list[Any] = []
    monkeypatch.setattr(agents, "BrowserDevice", lambda *given, **options: made.append((given, options)))
    options = verb._screen_options
    page = {"view": "800x600", "scale": 2.0, "allow": ["a.b"], "isolate": True, "allow_files": False,
        "browser": None, "window": False}  # fmt: skip
    verb._open("http://a", None, options("http://a", False, dict(page), {}))
    assert made == [(("http://a",), {
        "width": 800, "height": 600, "scale": 2.0, "executable": None, "allowed": ["a.b"], "allow_files": False,
        "isolate": True, "headless": True})]  # fmt: skip
    recorded = {
        "kind": "browser",
        "url": "http://a",
        "width": 640,
        "height": 480,
        "scale": 2.0,
        "allowed": ["c"],
        "allow_files": True,
    }
    plain = {"view": "1280x800", "scale": 1.0, "allow": None, "isolate": False, "allow_files": False,
        "browser": None, "window": False}  # fmt: skip
    found = options("http://a", False, plain, recorded)
    assert (found["width"], found["scale"], found["allowed"], found["allow_files"]) == (640, 2.0, ["c"], True)
    fake = FakeAdb(tmp_path)
    monkeypatch.setattr(agents, "AdbDevice", lambda serial: AdbDevice(serial, adb=fake.program))
    assert verb._open(None, "phone1", {}).serial == "phone1"
