"""`qwenvl doctor MODEL`: is it what it should be? Checks, findings, and what to do."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenvl.cli.inputs import SMALL, DeviceOption, DtypeOption, JsonOption, QuantizeOption, check_load

if TYPE_CHECKING:
    from qwenvl.doctor import Case, Report

FAULTY = 1


def doctor(
    model: Annotated[str, typer.Argument(help="demo, a checkpoint's folder, or its name on the hub.")] = "demo",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out what reads all weights or computes for long.")
    ] = False,
    golden: Annotated[
        Path | None,
        typer.Option(help="Compare logits with this file, written by --write-golden; demo: the shipped one."),
    ] = None,
    write_golden: Annotated[
        Path | None, typer.Option(help="Write the logits of this model, here and now, to a file and stop.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Examine a checkpoint on this machine: files, tokenizer, template, preprocessing, weights, numbers, agreement of
    the ways to compute, known logits, speed. Exit code 1 when there is a fault."""
    check_load(dtype, device, quantize)
    if golden is not None and write_golden is not None:
        raise ValueError("--golden and --write-golden exclude each other: compare with a file, or write one")
    from qwenvl.checkpoint.hub import DEMO, resolve

    if golden is not None and str(golden) != DEMO and not golden.is_file():
        raise ValueError(f"--golden {golden} is not there: write it with --write-golden on a machine you trust")
    path = resolve(model)

    from qwenvl.doctor import Case
    from qwenvl.doctor.golden import shipped

    chosen = shipped() if golden is not None and str(golden) == DEMO else golden
    case = Case(path, dtype, _device(path, device, quantize), quantize, quick, chosen)
    if write_golden is not None:
        from qwenvl.doctor.golden import write

        write(case, write_golden)
        print(f"wrote {write_golden}")
        return
    report = _examined(case, quiet=as_json)
    if as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        _show(report)
    if report.verdict == "fault":
        raise typer.Exit(FAULTY)


def _device(path: Path, device: str, quantize: str | None) -> str:
    """Where to load it, and on how many threads: a small model stays on one thread of the CPU, as in other verbs."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch sees no such GPU here; use --device cpu")
    weights = [path] if path.is_file() else path.glob("*.safetensors")
    small = 0 < sum(file.stat().st_size for file in weights) < 2 * SMALL
    if small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    if device != "auto":
        return device
    return "cuda" if not small and quantize in (None, "none") and torch.cuda.is_available() else "cpu"


def _examined(case: Case, quiet: bool) -> Report:
    """The report; on a terminal the running check is told on stderr."""
    from qwenvl.doctor import examine

    if quiet or not sys.stderr.isatty():
        return examine(case)
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        return examine(case, on_check=status.update)


def _show(report: Report) -> None:
    from qwenvl.doctor.report import lines, summary, table

    if not sys.stdout.isatty():
        print("\n".join(lines(report)))
        return
    from rich.console import Console

    Console().print(table(report))
    print(summary(report))
