"""The loss curve of a run as a picture."""

from __future__ import annotations

import json
from pathlib import Path

SHARE = 0.03  # the smooth line is a running mean over this share of the run


def draw_curve(folder: Path) -> Path:
    """Reads log.jsonl of a training folder and writes curve.png: the answer loss, and a running mean of it.

    Needs matplotlib (the extra `train`); ValueError says so when it is missing, or when the log has no loss yet.
    """
    try:
        import matplotlib
    except ImportError:
        raise ValueError('the loss curve needs matplotlib: pip install "qwenvl[train]"') from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    points = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    if not points:
        raise ValueError(f"{folder / 'log.jsonl'} has no loss yet")
    steps, losses = zip(*points, strict=True)
    window = max(1, round(len(losses) * SHARE))
    means = [sum(losses[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(losses))]
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot(steps, losses, linewidth=0.5, alpha=0.35, color="tab:blue")
    axes.plot(steps, means, linewidth=1.5, color="tab:blue")
    axes.set(xlabel="step", ylabel="loss of the answers", yscale="log")
    axes.grid(alpha=0.3)
    path = folder / "curve.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
