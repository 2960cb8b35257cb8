"""The picture of a run: how many times as good we are in each line, and how costs grow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwenvl.bench.conductor import Plan
from qwenvl.bench.summary import Line


def draw_chart(path: Path, plan: Plan, lines: Sequence[Line]) -> Path:
    """Writes a PNG. ValueError when matplotlib (the extra `train`) is missing."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError('the picture needs matplotlib: pip install "qwenvl[train]"') from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    growing = [name for name, phase in plan.phases.items() if phase.axis and any(x.phase == name for x in lines)]
    compared = [line for line in lines if line.phase not in growing]
    panels = 1 + len(growing)
    figure, axes = pyplot.subplots(
        panels, 1, figsize=(9, 1.5 + 0.32 * len(compared) + 3 * len(growing)), layout="constrained", squeeze=False,
        gridspec_kw={"height_ratios": [1.5 + 0.32 * len(compared), *[3] * len(growing)]},
    )  # fmt: skip
    _ratios(axes[0][0], compared)
    for place, name in zip(axes[1:, 0], growing, strict=True):
        _growth(place, plan.phases[name].axis, [line for line in lines if line.phase == name])
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _ratios(axes: Any, lines: Sequence[Line]) -> None:
    """One bar a line and peer, from the middle (as good) to the right (we are better)."""
    peers = list(dict.fromkeys(row for line in lines for row, cell in line.cells.items() if cell.ratio is not None))
    height = 0.8 / max(1, len(peers))
    for i, peer in enumerate(peers):
        found = [(place, line.cells[peer].ratio) for place, line in enumerate(lines) if peer in line.cells]
        shown = [(place, ratio) for place, ratio in found if ratio is not None]
        axes.barh(
            [place + (i + 0.5) * height - 0.4 for place, _ in shown],
            [ratio.median - 1 for _, ratio in shown],
            height,
            left=1,
            xerr=[
                [ratio.median - ratio.least for _, ratio in shown],
                [ratio.most - ratio.median for _, ratio in shown],
            ],
            label=peer,
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(lines)), [f"{line.what.label}, {line.point}" for line in lines], fontsize=7)
    axes.set(xlabel="times as good as the peer")
    axes.invert_yaxis()
    if peers:
        axes.set_xscale("log")
        for labels in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            labels(lambda value, _: f"{value:g}")
        axes.legend(fontsize=7)


def _growth(axes: Any, axis: str, lines: Sequence[Line]) -> None:
    for row in dict.fromkeys(row for line in lines for row in line.cells):
        shown = [line for line in lines if row in line.cells]
        axes.plot([line.x for line in shown], [line.cells[row].value.median for line in shown], marker="o", label=row)
    axes.set(xlabel=axis, ylabel=f"{lines[0].what.label}, {lines[0].what.unit}", ylim=(0, None), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
