"""Writes docs/features.md: every documented feature, and the tests that show it.

    python tests/feature_table.py     or: make features

In: docs/features.json (number, name and expected behaviour of each feature) and the markers
`@pytest.mark.feature(26, 27)` in the tests, on a function, a class, a parameter or, as `pytestmark`, a whole file.
Out: docs/features.md. Nothing is imported or run: the tests' source is read.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA, TABLE = ROOT / "docs" / "features.json", ROOT / "docs" / "features.md"
NAMED = 2  # tests named in each file; of the others, the number

HEADING = """# Features

Each documented feature of Qwen2.5-VL and Qwen2-VL, what it is expected to do, and the tests that show that it does.
A test names its rows with `@pytest.mark.feature(26, 27)`. This file is written by `make features` from those markers
and from `features.json`, and a test holds it to them.
"""


@dataclass(frozen=True, order=True)
class Evidence:
    """A test that shows a feature: its file, from the repository's root, and its name."""

    path: str
    test: str


def read_groups() -> list[dict[str, Any]]:
    """Groups of rows: {"group": heading, "rows": [{"row": number, "feature": name, "expected": behaviour}]}."""
    return json.loads(DATA.read_text("utf-8"))


def find_evidence(folder: Path = ROOT / "tests") -> dict[int, list[Evidence]]:
    """Row -> the tests marked with it, by file and in the order of the file."""
    found: dict[int, list[Evidence]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        name = path.relative_to(folder.parent).as_posix()
        for rows, test in _marked(tree.body, set()):
            for row in rows:
                found.setdefault(row, []).append(Evidence(name, test))
    return found


def _marked(body: list[ast.stmt], around: set[int]) -> Iterator[tuple[set[int], str]]:
    """(rows, name) of every test function, `around` being the rows that hold for all of them."""
    for statement in body:
        if isinstance(statement, ast.Assign) and "pytestmark" in map(ast.unparse, statement.targets):
            around = around | _rows(statement.value)
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            yield from _marked(statement.body, around | _rows(*statement.decorator_list))
        elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name.startswith("test"):
            yield around | _rows(*statement.decorator_list), statement.name


def _rows(*marks: ast.expr) -> set[int]:
    """The numbers in every `pytest.mark.feature(...)` within the expressions."""
    rows: set[int] = set()
    for call in (node for mark in marks for node in ast.walk(mark)):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.feature":
            rows |= {ast.literal_eval(number) for number in call.args}
    return rows


def write_table(groups: list[dict[str, Any]], evidence: dict[int, list[Evidence]]) -> str:
    """The text of docs/features.md."""
    rows = [row["row"] for group in groups for row in group["rows"]]
    parts = [HEADING, f"{len(set(rows) & set(evidence))} of {len(rows)} rows are shown by tests.\n"]
    for group in groups:
        lines = [f"## {group['group']}", "", "| row | feature | expected | shown by |", "|---|---|---|---|"]
        for row in group["rows"]:
            shown = _links(evidence.get(row["row"], []))
            lines.append(f"| {row['row']} | {row['feature']} | {row['expected']} | {shown} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _links(tests: list[Evidence]) -> str:
    """Each file as a link, with its first tests by name."""
    if not tests:
        return "not yet"
    files = dict.fromkeys(test.path for test in tests)
    cells = []
    for path in files:
        names = list(dict.fromkeys(test.test for test in tests if test.path == path))
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        cells.append(f"[{path.removeprefix('tests/')}](../{path}): {', '.join(names[:NAMED])}{more}")
    return "<br>".join(cells)


def main() -> None:
    """Writes the table where it belongs."""
    TABLE.write_text(write_table(read_groups(), find_evidence()), "utf-8")


if __name__ == "__main__":
    main()
