"""The Android device against a scripted adb: what it tells the phone, and what it makes of failures."""

from __future__ import annotations

import base64
import json
import shlex
from pathlib import Path

import pytest
from fake_adb import FakeAdb
from PIL import Image
from scripted_assistant import ScriptedAssistant

from qwenvl.tasks.agents import Action, ActionError, AdbDevice, Agent, DeviceLostError, replay

APPS = """  2 activities found:
  com.android.chrome/com.google.android.apps.chrome.Main
  com.android.settings/.Settings
  org.example.notes/.MainActivity
  org.example.notes.pro/.MainActivity
  com.google.android.documentsui/.Files
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeAdb, AdbDevice]:
    """A phone that no test unplugs."""
    fake = FakeAdb(tmp_path_factory.mktemp("phone"))
    fake.answer("cmd package query-activities", APPS)
    fake.answer("settings get secure default_input_method", "com.example/.Keys\n")
    return fake, AdbDevice(adb=fake.program, settle=0)


@pytest.fixture
def fake(tmp_path: Path) -> FakeAdb:
    return FakeAdb(tmp_path)


@pytest.fixture
def phone(fake: FakeAdb) -> AdbDevice:
    return AdbDevice(adb=fake.program, settle=0)


@pytest.mark.feature(89)
@pytest.mark.parametrize(
    ("action", "commands"),
    [
        (Action("click", (540.6, 1200.2)), ["input tap 540 1200"]),
        (Action("long_press", (10, 20), time=1.5), ["input swipe 10 20 10 20 1500"]),
        (Action("swipe", (540, 1800), (540, 600)), ["input swipe 540 1800 540 600 500"]),
        (Action("type", text="hello world"), ["input text hello%sworld"]),
        (Action("type", text="a\nb\tc"), ["input text a", "input keyevent KEYCODE_ENTER", "input text b",
            "input keyevent KEYCODE_TAB", "input text c"]),
        (Action("type", text="100%s & $(reboot); 'x' \"y\" `z` \\ |<>*?~#"), ["input text 100%",
            "input text 's%s&%s$(reboot);%s'\"'\"'x'\"'\"'%s\"y\"%s`z`%s\\%s|<>*?~#'"]),
        (Action("type", text=""), []),
        (Action("key", text="volume_up"), ["input keyevent KEYCODE_VOLUME_UP"]),
        (Action("key", text="KEYCODE_POWER"), ["input keyevent KEYCODE_POWER"]),
        (Action("key", text="Return"), ["input keyevent KEYCODE_ENTER"]),
        (Action("key", text="26"), ["input keyevent 26"]),
        (Action("key", text="7"), ["input keyevent KEYCODE_7"]),
        (Action("system_button", button="Back"), ["input keyevent KEYCODE_BACK"]),
        (Action("system_button", button="Home"), ["input keyevent KEYCODE_HOME"]),
        (Action("system_button", button="Menu"), ["input keyevent KEYCODE_APP_SWITCH"]),
        (Action("system_button", button="Enter"), ["input keyevent KEYCODE_ENTER"]),
        (Action("open", text="Settings"), ["monkey -p com.android.settings -c android.intent.category.LAUNCHER 1"]),
        (Action("open", text="Chrome"), ["monkey -p com.android.chrome -c android.intent.category.LAUNCHER 1"]),
        (Action("open", text="File Manager"), [
            "monkey -p com.google.android.documentsui -c android.intent.category.LAUNCHER 1"]),
        (Action("open", text="org.example.notes"), [
            "monkey -p org.example.notes -c android.intent.category.LAUNCHER 1"]),
        (Action("wait", time=0.0), []),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_every_action(shared: tuple[FakeAdb, AdbDevice], action: Action, commands: list[str]) -> None:
    fake, phone = shared
    fake.forget()
    assert phone.act(action) == ""
    assert fake.commands == commands


def test_clear_empties_the_field(fake: FakeAdb, phone: AdbDevice) -> None:
    phone.act(Action("key", text="clear"))
    assert fake.commands == ["input keyevent KEYCODE_MOVE_END" + " KEYCODE_DEL" * 60]


def test_what_is_typed_reaches_the_phone_as_one_word_of_its_shell(fake: FakeAdb, phone: AdbDevice) -> None:
    wild = "".join(map(chr, range(32, 127))) + "%s%%s $HOME `id` $(id) ; rm -rf / && ' \" \\"
    phone.act(Action("type", text=wild))
    words = [shlex.split(command) for command in fake.commands]
    assert all(word[:2] == ["input", "text"] and len(word) == 3 for word in words)
    assert "".join(word[2].replace("%s", " ") for word in words) == wild


def test_long_texts_are_typed_in_parts(fake: FakeAdb, phone: AdbDevice) -> None:
    phone.act(Action("type", text="a b" * 500))
    assert len(fake.commands) > 2
    assert all(len(command) < 1300 for command in fake.commands)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (Action("key", text="up; reboot"), "unknown key"),
        (Action("key", text="$(reboot)"), "unknown key"),
        (Action("open", text="notes"), "2 apps match 'notes': give one of these packages: org.example.notes, org"),
        (Action("open", text="WhatsApp"), "0 apps match 'WhatsApp': .* com.android.chrome, com.android.settings"),
        (Action("open", text="; reboot"), "0 apps match"),
        (Action("open", text="..."), "apps match"),
        (Action("type", text="Größe"), r"beyond ASCII, which this device's keyboard \(com.example/.Keys\) cannot"),
        (Action("type", text="a\x07b"), r"cannot be typed"),
        (Action("scroll", pixels=3.0), "a phone cannot do 'scroll'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_done_is_told(shared: tuple[FakeAdb, AdbDevice], action: Action, message: str) -> None:
    fake, phone = shared
    fake.forget()
    with pytest.raises(ActionError, match=message):
        phone.act(action)
    assert fake.commands == []


def test_other_letters_through_the_keyboard_that_can(fake: FakeAdb, phone: AdbDevice) -> None:
    fake.answer("settings get secure default_input_method", "com.android.adbkeyboard/.AdbIME\n")
    phone.act(Action("type", text="Größe 北京\n"))
    (command,) = fake.commands
    assert command.startswith("am broadcast -a ADB_INPUT_B64 --es msg ")
    assert base64.b64decode(command.split()[-1]).decode() == "Größe 北京\n"


def test_keys_and_apps_that_the_phone_does_not_know(fake: FakeAdb, phone: AdbDevice) -> None:
    fake.answer("input keyevent", "Error: Unknown keycode: KEYCODE_NONSENSE\n")
    with pytest.raises(ActionError, match="knows no key 'nonsense'"):
        phone.act(Action("key", text="nonsense"))
    fake.answer("monkey", "** No activities found to run, monkey aborted.\n")
    with pytest.raises(ActionError, match=r"no app 'org\.missing\.app'"):
        phone.act(Action("open", text="org.missing.app"))
    fake.answer("input tap", "java.lang.SecurityException: no permission\n", 1)
    with pytest.raises(ActionError, match=r"refused 'input': java\.lang.SecurityException"):
        phone.act(Action("click", (1, 2)))


def test_the_screen_and_its_turns(fake: FakeAdb, phone: AdbDevice) -> None:
    assert phone.size == (1080, 2400)
    fake.screen(Image.new("RGB", (2400, 1080)), before="[Warning] Multiple displays were found.\n")
    assert phone.screenshot().size == (2400, 1080)
    assert phone.size == (2400, 1080)  # held across: taps are counted so too
    assert phone.describe() == {"kind": "adb", "serial": "phone1"}


def test_pictures_larger_than_the_input_space(tmp_path: Path) -> None:
    fake = FakeAdb(tmp_path)
    fake.answer("wm size", "Physical size: 1080x2400\nOverride size: 540x1200\n")
    phone = AdbDevice(adb=fake.program, settle=0)
    assert phone.screenshot().size == (1080, 2400)
    assert phone.size == (540, 1200)


def test_the_state_is_the_activity_in_front(fake: FakeAdb, phone: AdbDevice) -> None:
    record = "ActivityRecord{a1b2c3 u0 com.android.settings/.Settings t12}"
    fake.answer("dumpsys", f"  topResumedActivity={record}\n")
    assert phone.state() == {"activity": "com.android.settings/.Settings"}
    fake.answer("dumpsys", f"  mResumedActivity: {record}\n")
    assert phone.state() == {"activity": "com.android.settings/.Settings"}
    fake.answer("dumpsys", "")
    assert phone.state() == {"activity": ""}


@pytest.mark.parametrize(
    ("devices", "serial", "message"),
    [
        ({}, None, "0 devices ready, so one must be named by its serial: none"),
        ({"a": "device", "b": "device"}, None, r"2 devices ready, .*: a \(device\), b \(device\)"),
        ({"a": "unauthorized"}, None, r"0 devices ready.*a \(unauthorized\)"),
        ({"a": "unauthorized"}, "a", "allow this computer on its screen"),
        ({"a": "device"}, "b", r"no device 'b' ready \(attach it\); it has: a \(device\)"),
    ],
)
def test_which_device(tmp_path: Path, devices: dict[str, str], serial: str | None, message: str) -> None:
    fake = FakeAdb(tmp_path, devices=devices)
    with pytest.raises(ValueError, match=message):
        AdbDevice(serial, adb=fake.program)


def test_one_of_several_by_its_serial(tmp_path: Path) -> None:
    fake = FakeAdb(tmp_path, devices={"a": "device", "b": "device", "c": "offline"})
    assert AdbDevice("b", adb=fake.program).serial == "b"
    (tmp_path / "one").mkdir()
    one = FakeAdb(tmp_path / "one", devices={"a": "device", "c": "offline"})
    assert AdbDevice(adb=one.program).serial == "a"


def test_no_adb_at_all() -> None:
    with pytest.raises(ValueError, match=r"'/nowhere/adb' cannot be started: install adb"):
        AdbDevice(adb="/nowhere/adb")


def test_a_phone_that_hangs_is_lost(tmp_path: Path) -> None:
    fake = FakeAdb(tmp_path)
    phone = AdbDevice(adb=fake.program, settle=0, timeout=1.0)
    fake.answer("input tap", "30", "sleep")
    with pytest.raises(DeviceLostError, match="took more than 1 s"):
        phone.act(Action("click", (1, 2)))


def call(**arguments: object) -> str:
    return "<tool_call>\n" + json.dumps({"name": "mobile_use", "arguments": arguments}) + "\n</tool_call>"


@pytest.mark.feature(89, 97)
def test_an_agent_on_a_phone(fake: FakeAdb, phone: AdbDevice, tmp_path: Path) -> None:
    """The screen of 1080 x 2400 is seen as 1092 x 2408; taps come back in the phone's pixels."""
    fake.answer("cmd package query-activities", APPS)
    model = ScriptedAssistant([
        call(action="open", text="Settings"),
        call(action="click", coordinate=[546, 1204]),
        call(action="swipe", coordinate=[546, 2000], coordinate2=[546, 5000]),
        call(action="terminate", status="success"),
    ])  # fmt: skip
    run = Agent(model, phone, "Open the settings", trace=tmp_path / "t").run()
    assert run.status == "success"
    told = [
        "monkey -p com.android.settings -c android.intent.category.LAUNCHER 1",
        "input tap 540 1200",
        "input swipe 540 1993 540 2399 500",
    ]
    assert fake.commands == told
    assert "resolution is 1092x2408" in model.asked[0].tools[0]["function"]["description"]
    assert model.asked[0].tools[0]["function"]["name"] == "mobile_use"
    assert replay(tmp_path / "t", phone).same
    assert fake.commands == told * 2


def test_a_phone_that_is_unplugged_ends_the_run(fake: FakeAdb, phone: AdbDevice, tmp_path: Path) -> None:
    def answer(asked: object) -> str:
        fake.gone()
        return call(action="click", coordinate=[5, 5])

    run = Agent(ScriptedAssistant(answer), phone, "Tap", trace=tmp_path / "t").run()
    assert run.status == "lost"
    assert "phone1 does not answer: error: device 'phone1' not found" in run.reason
    assert json.loads((tmp_path / "t" / "run.json").read_text())["status"] == "lost"
