"""Records -> medians, ratios and shares."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenvl.bench.conductor import Plan, Run
from qwenvl.bench.figures import METRICS, Metric
from qwenvl.bench.work import WIDTH

OURS = "qwenvl"


@dataclass(frozen=True)
class Spread:
    """Median, least and most of some values."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: list[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Cell:
    """What one row reached in one line. value: in the metric's unit.

    ratio: how many times as good the row of ours with the same weights is, round by round; None for rows of ours.
    share: of what the limits of the same run allow, 0 to 1; None where that is not known.
    """

    value: Spread
    ratio: Spread | None
    share: float | None


@dataclass(frozen=True)
class Line:
    """One metric of one point, for every row that has it. x: place on the axis of a growth phase."""

    phase: str
    point: str
    metric: str
    x: float
    cells: Mapping[str, Cell]

    @property
    def what(self) -> Metric:
        return METRICS[self.metric]


def reference(row: str, about: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The row of ours that a peer is compared with: that with the same kind of weights, else the first one."""
    ours = [name for name in about if is_ours(name)]
    if is_ours(row) or not ours:
        return None
    same = [name for name in ours if about[name].get("weights") == about[row].get("weights")]
    return (same or ours)[0]


def is_ours(row: str) -> bool:
    return row.split()[0] == OURS


def summarize(plan: Plan, run: Run) -> list[Line]:
    """The lines of the table, in the order of phases and points."""
    values: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    for record in run.records:
        key = (record.phase, record.point, record.metric)
        values.setdefault(key, {}).setdefault(record.row, {})[record.round] = record.value
    lines = []
    for name, phase in plan.phases.items():
        for point in phase.points(plan.workload, plan.work):
            for metric in METRICS:
                rows = values.get((name, point.label, metric))
                if rows is None:
                    continue
                cells = {}
                for row, rounds in rows.items():
                    weights = str(run.about[row].get("weights"))
                    best = point.best(run.limits[name], weights).get(metric) if weights in WIDTH else None
                    against = rows.get(reference(row, run.about) or "")
                    cells[row] = _cell(METRICS[metric], rounds, against, best)
                lines.append(Line(name, point.label, metric, point.x, cells))
    return lines


def _cell(metric: Metric, rounds: dict[int, float], against: dict[int, float] | None, best: float | None) -> Cell:
    value = Spread.of([value * metric.scale for value in rounds.values()])
    ratio = None
    common = sorted(rounds.keys() & against.keys()) if against is not None else []
    if against is not None and common:
        pairs = [(against[i], rounds[i]) if metric.higher_is_better else (rounds[i], against[i]) for i in common]
        ratio = Spread.of([a / b for a, b in pairs])
    share = None
    if best is not None:
        median = statistics.median(rounds.values())
        share = median / best if metric.higher_is_better else best / median
    return Cell(value, ratio, share)
