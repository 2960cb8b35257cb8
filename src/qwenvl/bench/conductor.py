"""The run: phases in turn, and within each point one run of every row after another, so that a busy machine slows all.

Before each phase the machine's own limits are measured. All processes but the one that works are stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwenvl.bench.phases import Draws, Limits, Phase, Point
from qwenvl.bench.process import Process, Row, RunnerError
from qwenvl.bench.work import Work
from qwenvl.bench.workload import PROMPT, Workload

LIMITS = Path(__file__).with_name("limits.py")


@dataclass(frozen=True)
class Record:
    """One figure of one run of one row, in the metric's base unit (seconds, tokens a second, bytes)."""

    phase: str
    point: str
    metric: str
    row: str
    round: int
    value: float


@dataclass
class Run:
    """All that a run gave. about: what rows said of themselves. problems: row, where, what (each once)."""

    records: list[Record] = field(default_factory=list)
    limits: dict[str, Limits] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What to run on which model. work: of that model. folder: for logs; cache: for converted weights."""

    rows: Sequence[Row]
    phases: dict[str, Phase]
    workload: Workload
    work: Work
    model: Path
    rounds: int
    threads: int
    cache: Path
    folder: Path


class Conductor:
    """Runs a plan. tell(text): what is going on, for the terminal."""

    def __init__(self, plan: Plan, draws: Draws, tell: Callable[[str], None]) -> None:
        self._plan, self._draws, self._tell = plan, draws, tell
        self._live: dict[str, Process] = {}
        self.run = Run()

    def play(self) -> Run:
        """The whole run; what fails is noted in `problems`, and the rest goes on."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            meter = stack.enter_context(self._start(Row("limits", LIMITS, self._plan.rows[0].python)))
            meter.ask("load")
            ready = [row for row in self._plan.rows if self._introduce(row)]
            for name, phase in self._plan.phases.items():
                found = meter.ask("limits")
                self.run.limits[name] = Limits(found["gflops"], found["gbs"])
                self._phase(name, phase, ready)
        return self.run

    def _start(self, row: Row) -> Process:
        plan = self._plan
        log = plan.folder / f"{row.name.replace(' ', '-')}.log"
        return Process(row, plan.model, plan.cache / row.name.replace(" ", "-"), plan.threads, log)

    def _introduce(self, row: Row) -> bool:
        """Whether a row can run at all; lets it convert its weights."""
        self._tell(f"{row.name}: preparing")
        (self._plan.cache / row.name.replace(" ", "-")).mkdir(parents=True, exist_ok=True)
        with self._start(row) as process:
            try:
                self.run.about[row.name] = process.ask("about")
                process.ask("prepare")
            except RunnerError as error:
                self._note(row, "prepare", error)
                return False
        return True

    def _phase(self, name: str, phase: Phase, rows: list[Row]) -> None:
        points = phase.points(self._plan.workload, self._plan.work)
        able = {row.name: row for row in rows if phase.fresh or self._loaded(row)}
        left = {(row, point.label) for row in able for point in points}
        for round_ in range(-1, min(self._plan.rounds, phase.most_rounds)):
            for number, point in enumerate(points):
                if round_ < 0 and number >= phase.warm:
                    continue
                command = point.command(self._draws)
                for row in able.values():
                    if (row.name, point.label) not in left:
                        continue
                    self._tell(f"{name}, {point.label}, round {round_ + 1}: {row.name}")
                    try:
                        answer = self._fresh(row, command) if phase.fresh else self._live[row.name].ask(**command)
                        self._keep(name, phase, point, row, round_, command, answer)
                    except RunnerError as error:
                        self._note(row, f"{name}, {point.label}", error)
                        left.discard((row.name, point.label))
                        if not phase.fresh and not self._live[row.name].alive:
                            left = {(other, label) for other, label in left if other != row.name}

    def _keep(
        self,
        name: str,
        phase: Phase,
        point: Point,
        row: Row,
        round_: int,
        command: dict[str, Any],
        answer: dict[str, Any],
    ) -> None:
        if round_ < 0:
            return
        for metric, value in phase.read(command, answer).items():
            self.run.records.append(Record(name, point.label, metric, row.name, round_, value))

    def _loaded(self, row: Row) -> bool:
        """Whether the row's long-lived process is there; starts it, and lets it answer once, when it is not."""
        if row.name in self._live and self._live[row.name].alive:
            return True
        self._tell(f"{row.name}: loading")
        process = self._live[row.name] = self._start(row)
        try:
            process.ask("load")
            picture = self._draws.picture(self._plan.workload.small)
            process.ask("answer", picture=picture, prompt=PROMPT, new_tokens=2)
        except RunnerError as error:
            self._note(row, "load", error)
            return False
        return True

    def _fresh(self, row: Row, command: dict[str, Any]) -> dict[str, Any]:
        """The answer of a process that was started for it, with the time since then and its peak memory."""
        with self._start(row) as process:
            process.ask("load")
            answer = process.ask(**command)
            return {**answer, "since_start": process.seconds, "peak_bytes": process.peak_bytes()}

    def _note(self, row: Row, where: str, error: RunnerError) -> None:
        self.run.problems.append((row.name, where, f"not supported: {error}" if error.unsupported else str(error)))

    def _close(self) -> None:
        for process in self._live.values():
            process.close()
