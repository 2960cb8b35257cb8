"""A scripted adb: a program that writes down what it is called with and answers as a phone would.

fake = FakeAdb(tmp_path)                       # a phone of 1080 x 2400 named "phone1"
AdbDevice(adb=fake.program, settle=0)
fake.commands                                  # what the device was told, without "-s phone1 shell"
fake.answer("wm size", "Physical size: 720x1280")     # another answer, from now on
fake.gone()                                    # unplugged: every command fails from now on
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

_PROGRAM = """#!{python}
import json, sys, time
folder = {folder!r}
words = sys.argv[1:]
with open(folder + "/calls.jsonl", "a") as calls:
    calls.write(json.dumps(words) + "\\n")
with open(folder + "/script.json") as script:
    script = json.load(script)
if words[:1] == ["devices"]:
    sys.stdout.write("List of devices attached\\n" + "".join(f"{{n}}\\t{{s}}\\n" for n, s in script["devices"].items()))
    sys.exit(0)
if words[:1] == ["-s"]:
    if script["devices"].get(words[1]) != "device":
        sys.stderr.write(f"error: device '{{words[1]}}' not found\\n")
        sys.exit(1)
    words = words[2:]
if words[:3] == ["exec-out", "screencap", "-p"]:
    sys.stdout.buffer.write(script["before"].encode() + open(folder + "/screen.png", "rb").read())
    sys.exit(0)
command = " ".join(words[1:])
for start, (out, code) in script["answers"].items():
    if command.startswith(start):
        time.sleep(float(out) if code == "sleep" else 0)
        (sys.stderr if code else sys.stdout).write(out)
        sys.exit(0 if code == "sleep" else code)
"""


class FakeAdb:
    """See the module."""

    def __init__(
        self, folder: Path, size: tuple[int, int] = (1080, 2400), devices: dict[str, str] | None = None
    ) -> None:
        self.folder = folder / "adb"
        self.folder.mkdir()
        self._script: dict[str, object] = {
            "devices": {"phone1": "device"} if devices is None else devices,
            "before": "",
            "answers": {"wm size": [f"Physical size: {size[0]}x{size[1]}\n", 0]},
        }
        self.screen(Image.new("RGB", size, "#204060"))
        self._write()
        self.program = str(self.folder / "adb")
        Path(self.program).write_text(_PROGRAM.format(python=sys.executable + " -ISE", folder=str(self.folder)))
        Path(self.program).chmod(0o755)

    def answer(self, start: str, out: str, code: int | str = 0) -> None:
        """What commands that begin so say from now on; code "sleep": take as many seconds."""
        answers = self._script["answers"]
        assert isinstance(answers, dict)
        answers[start] = [out, code]
        self._write()

    def screen(self, picture: Image.Image, before: str = "") -> None:
        """What screencap gives, with what it writes before the picture."""
        picture.save(self.folder / "screen.png", compress_level=1)
        self._script["before"] = before
        self._write()

    def gone(self) -> None:
        self._script["devices"] = {}
        self._write()

    def forget(self) -> None:
        """Begin `commands` anew."""
        (self.folder / "calls.jsonl").write_text("")

    @property
    def commands(self) -> list[str]:
        """Commands of the shell so far, less those that only look."""
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        words = [json.loads(line) for line in lines]
        shell = [w[3] for w in words if w[:1] == ["-s"] and w[2] == "shell"]
        return [
            command for command in shell if not command.startswith(("wm size", "dumpsys", "cmd package", "settings"))
        ]

    def _write(self) -> None:
        (self.folder / "script.json").write_text(json.dumps(self._script))
