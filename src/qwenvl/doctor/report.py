"""A report as lines of text, as a table for a terminal, and as JSON (Report.to_dict)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwenvl.doctor.checks import Report

if TYPE_CHECKING:
    from rich.table import Table

WORDS = {"ok": "ok", "warning": "warning", "fault": "FAULT", "skipped": "skipped"}
COLOURS = {"ok": "green", "warning": "yellow", "fault": "bold red", "skipped": "dim"}


def lines(report: Report) -> list[str]:
    """One line a check, with what to do below it, and the verdict."""
    out = []
    for one in report.findings:
        out.append(f"{WORDS[one.verdict]:<8} {one.check:<15} {one.found}")
        if one.advice and one.verdict in ("warning", "fault"):
            out.append(f"{'':<24} -> {one.advice}")
    return [*out, summary(report)]


def table(report: Report) -> Table:
    """The same for rich."""
    from rich.table import Table
    from rich.text import Text

    made = Table("", "check", "found", box=None, pad_edge=False, header_style="bold")
    for one in report.findings:
        colour = COLOURS[one.verdict]
        found = Text(one.found, "dim" if one.verdict == "skipped" else "")
        if one.advice and one.verdict in ("warning", "fault"):
            found.append(f"\n-> {one.advice}", "italic")
        made.add_row(Text(WORDS[one.verdict], colour), Text(one.check), found)
    return made


def summary(report: Report) -> str:
    """The verdict in a line."""
    counts = [(len(report.of("fault")), "fault"), (len(report.of("warning")), "warning")]
    bad = " and ".join(f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts if count)
    skipped = len(report.of("skipped"))
    left = f", {skipped} checks skipped" if skipped else ""
    passed = len(report.of("ok"))
    return f"{report.case.path}: {bad or 'healthy'}, {passed} checks passed{left}, {report.seconds:.1f} s"
