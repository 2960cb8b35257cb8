"""A whole benchmark: a plan in, a report's files out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwenvl.bench.chart import draw_chart
from qwenvl.bench.conductor import Conductor, Plan, Run
from qwenvl.bench.machine import machine
from qwenvl.bench.phases import Draws
from qwenvl.bench.pictures import Album
from qwenvl.bench.report import markdown, write_json
from qwenvl.bench.summary import Line, summarize


@dataclass(frozen=True)
class Outcome:
    """What was measured, the files written, and why there is no picture ("" when there is one)."""

    run: Run
    lines: list[Line]
    files: list[Path]
    missing: str


def play(plan: Plan, seed: int, tell: Callable[[str], None]) -> Outcome:
    """Run a plan and write bench.md, bench.json and, where matplotlib is there, bench.png into its folder."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    for log in plan.folder.glob("*.log"):
        log.unlink()
    with tempfile.TemporaryDirectory() as pictures:
        run = Conductor(plan, Draws(Album(Path(pictures), seed)), tell).play()
    lines, facts = summarize(plan, run), machine()
    files = [plan.folder / "bench.md", plan.folder / "bench.json"]
    files[0].write_text(markdown(plan, run, lines, facts), "utf-8")
    write_json(files[1], plan, run, lines, facts, seed)
    try:
        files.append(draw_chart(plan.folder / "bench.png", plan, lines))
    except ValueError as error:
        return Outcome(run, lines, files, str(error))
    return Outcome(run, lines, files, "")
