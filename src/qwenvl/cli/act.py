"""`qwenvl act "task" --url ADDRESS | --adb`: an agent in a browser or on a phone, asked about before it acts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenvl.cli.inputs import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxPixelsOption,
    MemoryOption,
    MinPixelsOption,
    ModelOption,
    QuantizeOption,
    check_limits,
    check_load,
    check_memory,
    find_model,
    start_assistant,
)

if TYPE_CHECKING:
    from qwenvl.tasks.agents import AdbDevice, Agent, BrowserDevice, Proposal, Step


_PAGE = (("view", "1280x800"), ("scale", 1.0))  # what they are when they are not given


def act(
    task: Annotated[
        str | None, typer.Argument(help='What to do, for example "Sign up as Ada".', show_default=False)
    ] = None,
    url: Annotated[str | None, typer.Option(help="Where a browser begins. Needs Playwright and Chromium.")] = None,
    adb: Annotated[bool, typer.Option("--adb", help="Act on the Android device that is attached.")] = False,
    serial: Annotated[str | None, typer.Option(help="Which Android device, as `adb devices` lists it.")] = None,
    model: ModelOption = "demo",
    yes: Annotated[bool, typer.Option("--yes", help="Act without asking.")] = False,
    ask: Annotated[str, typer.Option(help="What is asked about before it is done: all, or risky.")] = "all",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the first action and do nothing.")] = False,
    max_steps: Annotated[int, typer.Option(help="Stop after so many actions.")] = 25,
    trace: Annotated[
        Path | None, typer.Option(help="A new folder for steps and pictures; it holds what was typed.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Do what this trace did, without a model, and compare the ends.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Hosts to open pages of; the first address's by default.")
    ] = None,
    isolate: Annotated[bool, typer.Option("--isolate", help="Reach no other hosts at all.")] = False,
    allow_files: Annotated[bool, typer.Option("--allow-files", help="Open file:// addresses too.")] = False,
    browser: Annotated[str | None, typer.Option(help="The Chromium to use; found by name when not given.")] = None,
    view: Annotated[str, typer.Option(help="Size of the page in CSS pixels.")] = "1280x800",
    scale: Annotated[float, typer.Option(help="Device pixels of a CSS pixel.")] = 1.0,
    window: Annotated[bool, typer.Option("--window", help="Show the browser's window.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of one answer.")] = 512,
    constrained: Annotated[
        bool | None,
        typer.Option(
            "--constrained/--no-constrained",
            help="Let the model write nothing but thoughts and one valid action; on where llguidance is installed.",
            show_default=False,
        ),
    ] = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Carry out a task: one line an action, then how it ended. Exit code 0 when the model says success.

    With --dry-run the first action is printed and nothing is done; else every action is asked about, unless --yes.
    """
    recorded = _recorded(replay, task is not None or yes or dry_run or trace is not None)
    if url is None and not adb and serial is None:
        url, serial = recorded.get("url"), recorded.get("serial")
    page = {
        "view": view, "scale": scale, "allow": allow, "isolate": isolate, "allow_files": allow_files,
        "browser": browser, "window": window,
    }  # fmt: skip
    options = _screen_options(url, adb or serial is not None, page, recorded)
    if replay is not None:
        _replay(replay, lambda: _open(url, serial, options), as_json)
        return

    from qwenvl.types import SamplingParams

    task = _checked_task(task, ask, max_steps, trace)
    if not yes and not dry_run and not sys.stdin.isatty():
        raise ValueError("there is no terminal to ask on before it acts: give --yes to act unasked, or --dry-run")
    if model == "demo":
        raise ValueError("the bundled model knows no tools: name a checkpoint of Qwen2.5-VL with --model")
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    constrained = _constrained(constrained, max_new_tokens)
    check_limits(min_pixels, max_pixels)
    check_load(dtype, device, quantize)
    check_memory(memory)
    found = find_model(model)

    from qwenvl.tasks.agents import Agent, ask_when_risky

    with _open(url, serial, options) as screen:
        assistant = start_assistant(found, dtype, device, quantize=quantize, memory=memory)
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        agent = Agent(
            assistant,
            screen,
            task,
            max_steps=max_steps,
            dry_run=dry_run,
            constrained=constrained,
            approve=None if yes else ask_when_risky(_confirm) if ask == "risky" else _confirm,
            trace=trace,
            sampling=sampling,
            on_step=None if as_json else _print_step,
            **{name: value for name, value in limits.items() if value is not None},
        )
        _run(agent, {"model": model, "task": task, "trace": str(trace) if trace else None}, as_json)


def _run(agent: Agent, head: dict[str, Any], as_json: bool) -> None:
    run = agent.run()
    if as_json:
        print(json.dumps({**head, **run.to_dict()}, ensure_ascii=False))
    else:
        print(f"{run.status}: {run.reason}")
        if head["trace"]:
            print(f"trace in {head['trace']}", file=sys.stderr)
    if run.status not in ("success", "dry-run"):
        raise typer.Exit(1)


def _print_step(step: Step) -> None:
    said = str(step.action) if step.action else "no action"
    behind = [text for text in (step.error, step.note, f"{step.ignored} more not done" if step.ignored else "") if text]
    print(step.number, said, *behind, sep="\t", flush=True)


def _confirm(proposal: Proposal) -> bool:
    """Asked on the terminal; anything but yes is no."""
    thought = " ".join(proposal.thought.split())
    if thought:
        print(thought, file=sys.stderr)
    print(f"Do {proposal}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _replay(folder: Path, open_device: Any, as_json: bool) -> None:
    from qwenvl.tasks.agents import replay

    with open_device() as screen:
        tell = None if as_json else lambda number, action: print(number, action, sep="\t", flush=True)
        done = replay(folder, screen, on_action=tell)
    if as_json:
        print(json.dumps({"trace": str(folder), **done.to_dict()}, ensure_ascii=False))
    else:
        for line in done.differences:
            print(f"differs: {line}")
        print("ended in the same place" if done.same else "ended elsewhere")
    if not done.same:
        raise typer.Exit(1)


def _checked_task(task: str | None, ask: str, max_steps: int, trace: Path | None) -> str:
    if task is None or not task.strip():
        raise ValueError('no task: say what to do, for example qwenvl act "Sign up as Ada" --url http://localhost:8000')
    if ask not in ("all", "risky"):
        raise ValueError(f"--ask {ask} is not known: expected all or risky")
    if max_steps < 1:
        raise ValueError(f"--max-steps {max_steps}: expected 1 or more")
    if trace is not None and (trace / "run.json").exists():
        raise ValueError(f"--trace {trace} holds a trace already: name another folder, or remove it")
    return task


def _constrained(asked: bool | None, max_new_tokens: int) -> bool:
    """Whether answers are held to a grammar: as asked, else where that is possible."""
    from importlib.util import find_spec

    from qwenvl.tasks.agents.grammar import CALL_TOKENS

    possible, room = find_spec("llguidance") is not None, max_new_tokens > CALL_TOKENS
    if asked and not possible:
        raise ValueError('--constrained needs llguidance: pip install "qwenvl[grammar]"')
    if asked and not room:
        raise ValueError(f"--max-new-tokens {max_new_tokens}: --constrained needs more than {CALL_TOKENS}")
    return possible and room if asked is None else asked


def _recorded(folder: Path | None, more: bool) -> dict[str, Any]:
    """The device of a trace to be replayed; nothing without one."""
    if folder is None:
        return {}
    from qwenvl.tasks.agents.trace import read_trace

    if more:
        raise ValueError("--replay does what a trace did: leave out the task, --yes, --dry-run and --trace")
    device = read_trace(folder).head.get("device")
    return device if isinstance(device, dict) else {}


def _screen_options(url: str | None, phone: bool, page: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """Options of the browser, checked; none for a phone. What is not given is as it was where a trace is replayed."""
    if (url is not None) == phone:
        raise ValueError("name one device: --url ADDRESS for a browser, or --adb for an Android device")
    if phone:
        given = [f"--{name.replace('_', '-')}" for name, value in page.items() if value and (name, value) not in _PAGE]
        if given:
            raise ValueError(f"{', '.join(given)} is for browsers: leave it out for an Android device")
        return {}
    if recorded.get("kind") == "browser" and all((name, page[name]) in _PAGE for name in ("view", "scale")):
        page |= {"view": f"{recorded['width']}x{recorded['height']}", "scale": recorded["scale"]}
    width, height = _view(page["view"])
    return {
        "width": width,
        "height": height,
        "scale": page["scale"],
        "executable": page["browser"],
        "allowed": page["allow"] or recorded.get("allowed"),
        "allow_files": page["allow_files"] or recorded.get("allow_files", False),
        "isolate": page["isolate"],
        "headless": not page["window"],
    }


def _open(url: str | None, serial: str | None, options: dict[str, Any]) -> BrowserDevice | AdbDevice:
    from qwenvl.tasks.agents import AdbDevice, BrowserDevice

    return BrowserDevice(url, **options) if url is not None else AdbDevice(serial)


def _view(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not cross or not (width.isdigit() and height.isdigit()) or not (0 < int(width) < 10_000 > int(height) > 0):
        raise ValueError(f"--view {text} is no size: expected WIDTHxHEIGHT, such as 1280x800")
    return int(width), int(height)
