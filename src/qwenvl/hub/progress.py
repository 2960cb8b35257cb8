"""How far a long piece of work is: a line with bytes and the time left on stderr, where that is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET = "HF_HUB_DISABLE_PROGRESS_BARS"


@contextmanager
def byte_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function to call with bytes that were done (less than 0: that were lost); safe from several threads.

    The line is gone when the block ends. Nothing is drawn where stderr is no terminal, nor for a total of 0.
    """
    if total <= 0 or not sys.stderr.isatty() or os.environ.get(QUIET, "").upper() in ("1", "TRUE", "YES", "ON"):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task(title, total=total)
        yield lambda done: bar.advance(line, done)
