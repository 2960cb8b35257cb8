"""`qwenvl bench`: our times beside the peers' and the machine's own limits."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qwenvl.bench.conductor import Plan

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwenvl" / "bench"


def bench(
    model: Annotated[
        str | None, typer.Argument(help="A checkpoint's folder or name; none: one of --size with random weights.")
    ] = None,
    size: Annotated[
        str, typer.Option(help="3b-slice (2.2 GB) or tiny (small tasks, to try the program).")
    ] = "3b-slice",
    phases: Annotated[str, typer.Option(help="Some of the phases, with commas between; all: every one.")] = "all",
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each row that count.")] = 5,
    quantize: Annotated[str, typer.Option(help="Rows of qwenvl: some of none,int8,int4.")] = "none",
    peer: Annotated[
        list[str] | None, typer.Option(help="NAME[:VARIANT][=PYTHON], several times; none: no peer. Else those here.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each row; else all cores.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Draws the same pictures again.")] = None,
    cache: Annotated[Path, typer.Option(help="Where checkpoints, and the peers' weights, are kept.")] = CACHE,
    out: Annotated[Path, typer.Option(help="Folder for the report; made when it is missing.")] = Path("out/bench"),
) -> None:
    """Measure every phase of answering, beside the peers that are installed: a table, JSON and a picture."""
    from qwenvl.bench.phases import PHASES
    from qwenvl.bench.rows import our_rows, peer_rows
    from qwenvl.cli.inputs import find_model

    names = list(PHASES) if phases == "all" else phases.split(",")
    for name in names:
        if name not in PHASES:
            raise ValueError(f"--phases {name} is not known: expected some of {', '.join(PHASES)}")
    rows = [*our_rows(quantize.split(",")), *peer_rows(peer or [])]
    found = None if model is None else find_model(model).folder

    from qwenvl.bench.checkpoint import SIZES, checkpoint
    from qwenvl.bench.conductor import Plan
    from qwenvl.bench.work import Work
    from qwenvl.bench.workload import TINY, Workload
    from qwenvl.config import Qwen2_5_VLConfig, load_config

    if size not in SIZES:
        raise ValueError(f"--size {size} is not known: expected one of {', '.join(SIZES)}")
    folder = checkpoint(size, cache) if found is None else found
    config = load_config(folder)
    if not isinstance(config, Qwen2_5_VLConfig):
        raise ValueError(
            f"{folder} is a {config.model_type} checkpoint: expected qwen2_5_vl, whose work bench can count"
        )
    plan = Plan(
        rows,
        {name: PHASES[name] for name in names},
        TINY if size == "tiny" else Workload(),
        Work(config),
        folder,
        rounds,
        threads or _cores(),
        cache / "peers" / folder.name,
        out,
    )
    _show(plan, time.time_ns() % 2**31 if seed is None else seed)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _show(plan: Plan, seed: int) -> None:
    """Run the plan with its progress on stderr, then print the table and where the files are."""
    from rich.console import Console

    from qwenvl.bench.play import play
    from qwenvl.bench.report import table

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaving by an exception ends the stopped processes too
    with Console(stderr=True).status("starting") as status:
        outcome = play(plan, seed, status.update)
    Console().print(table(outcome.run, outcome.lines))
    for row, where, what in outcome.run.problems:
        print(f"{row}, {where}: {what}")
    if outcome.missing:
        print(outcome.missing)
    print(", ".join(map(str, outcome.files)))
