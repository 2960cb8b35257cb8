"""Lines -> a table in Markdown and on the terminal, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl.bench.conductor import Plan, Run
from qwenvl.bench.summary import Cell, Line, Spread, is_ours, reference

if TYPE_CHECKING:
    from rich.table import Table


def cells(line: Line, rows: Sequence[str]) -> list[str]:
    """A line as the words of a table: what, unit, then one cell a row."""
    shown = [_cell(line.cells[row], is_ours(row)) if row in line.cells else "-" for row in rows]
    return [f"{line.what.label}, {line.point}", line.what.unit, *shown]


def _cell(cell: Cell, ours: bool) -> str:
    text = f"{_number(cell.value.median)} ({_range(cell.value)})"
    if cell.ratio is not None:
        text += f"; {cell.ratio.median:.2f} x ({cell.ratio.least:.2f} to {cell.ratio.most:.2f})"
    elif ours and cell.share is not None:
        text += f"; {cell.share:.0%}"
    return text


def _range(value: Spread) -> str:
    return f"{_number(value.least)} to {_number(value.most)}"


def _number(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def heading(rows: Sequence[str]) -> list[str]:
    return ["what", "unit", *rows]


def markdown(plan: Plan, run: Run, lines: Sequence[Line], facts: dict[str, str]) -> str:
    """The whole report as Markdown."""
    rows = list(run.about)
    parts = ["# Benchmark", "", "; ".join(f"{name} {text}" for name, text in facts.items()), ""]
    parts += [f"Model {plan.model.name}, {plan.threads} threads, {plan.rounds} rounds.", ""]
    for row, about in run.about.items():
        against = reference(row, run.about)
        compared = f", compared with {against}" if against else ""
        note = f" ({about['note']})" if about.get("note") else ""
        parts.append(f"- {row}: version {about.get('version')}, {about.get('weights')}{compared}{note}")
    parts += [
        "",
        "Median (least to most); for rows of qwenvl the share of what the machine's limits allow, for peers how",
    ]
    parts += ["many times as good qwenvl is, round by round.", ""]
    for name, phase in plan.phases.items():
        found = [line for line in lines if line.phase == name]
        if not found:
            continue
        limits = run.limits[name]
        parts += [f"## {name}: {phase.about}", "", f"Limits: {limits.gflops:.0f} GFLOP/s, {limits.gbs:.1f} GB/s.", ""]
        parts += [_row(heading(rows)), _row(["---"] * (len(rows) + 2))]
        parts += [*(_row(cells(line, rows)) for line in found), ""]
    if run.problems:
        parts += ["## What did not run", "", *(f"- {row}, {where}: {what}" for row, where, what in run.problems), ""]
    return "\n".join(parts)


def _row(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def table(run: Run, lines: Sequence[Line]) -> Table:
    """The same for the terminal."""
    from rich.table import Table

    rows = list(run.about)
    made = Table(*heading(rows))
    last = ""
    for line in lines:
        if last not in ("", line.phase):
            made.add_section()
        made.add_row(*cells(line, rows))
        last = line.phase
    return made


def write_json(path: Path, plan: Plan, run: Run, lines: Sequence[Line], facts: dict[str, str], seed: int) -> None:
    """Everything: machine, plan, limits, each run's figure, and the summary."""
    content: dict[str, Any] = {
        "machine": facts,
        "model": str(plan.model),
        "threads": plan.threads,
        "rounds": plan.rounds,
        "seed": seed,
        "workload": asdict(plan.workload),
        "rows": run.about,
        "limits": {name: asdict(limits) for name, limits in run.limits.items()},
        "lines": [{**asdict(line), "unit": line.what.unit, "label": line.what.label} for line in lines],
        "records": [asdict(record) for record in run.records],
        "problems": [dict(zip(("row", "where", "what"), one, strict=True)) for one in run.problems],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
