"""What every cookbook begins with: which model, which inputs, where to write.

here = start("object-grounding", "Boxes and points.")        reads --model, --out and inputs
here.assistant                                               the model, loaded when it is first needed
here.assistant_or(script, "documents")                       a script where the bundled model was never taught that
here.path("boxes.png")                                       a file in the folder of outputs
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from by_hand import Asked, Scripted
from qwenvl import Assistant


@dataclass
class Setting:
    """model: "demo", or a checkpoint. inputs: the user's own files, in place of what is drawn here. more: the options
    that one cookbook alone has."""

    model: str
    out: Path
    inputs: list[str]
    more: dict[str, str | None] = field(default_factory=dict)

    @property
    def is_demo(self) -> bool:
        return self.model == "demo"

    @cached_property
    def assistant(self) -> Assistant:
        import torch

        if self.is_demo:
            torch.set_num_threads(1)  # a token of so small a model is not worth sharing out
        return Assistant(self.model, device="cuda" if torch.cuda.is_available() and not self.is_demo else "cpu")

    def assistant_or(self, script: Callable[[Asked], str], what: str) -> Any:
        """The model; for the bundled one, which was never taught `what`, answers that were written by hand."""
        if not self.is_demo:
            return self.assistant
        say(
            f"NOTE  The bundled model was never taught {what}. The answers below were WRITTEN BY HAND in the form that "
            "Qwen2.5-VL answers in, no model gave them: they show what is made of such answers. "
            "With a checkpoint the same code runs on its own: --model Qwen/Qwen2.5-VL-7B-Instruct"
        )
        return Scripted(script)

    def path(self, name: str) -> Path:
        self.out.mkdir(parents=True, exist_ok=True)
        return self.out / name

    def fresh(self, name: str) -> Path:
        """A folder in the folder of outputs; what an earlier run left in it is removed."""
        folder = self.path(name)
        if folder.is_dir():
            shutil.rmtree(folder)
        return folder


def start(name: str, about: str, *, flags: dict[str, str] | None = None, **more: str) -> Setting:
    """Read the command line. more, flags: further options, with and without a value, and their help, such as
    task="What to do."; all are in Setting.more."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("inputs", nargs="*", help="your own files, in place of what is drawn here")
    parser.add_argument("--model", "-m", default="demo", help="demo (bundled), a folder, or a name on the hub")
    parser.add_argument("--out", type=Path, default=Path("out") / "cookbooks" / name, help="the folder of outputs")
    for option, text in more.items():
        parser.add_argument(f"--{option}", help=text)
    for option, text in (flags or {}).items():
        parser.add_argument(f"--{option}", action="store_const", const="yes", help=text)
    given = [] if "ipykernel" in sys.modules else sys.argv[1:]  # in a notebook, argv is the kernel's
    options = vars(parser.parse_args(given))
    return Setting(options.pop("model"), options.pop("out"), options.pop("inputs"), options)


def title(text: str) -> None:
    print(f"\n== {text}")


def say(text: str) -> None:
    print(
        textwrap.fill(text, 110, subsequent_indent="      " if text.startswith("NOTE") else "", break_long_words=False)
    )
