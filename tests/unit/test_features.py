"""The table of features: what it says is what the tests' markers say, and the rows that are built are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_table import ROOT, TABLE, Evidence, find_evidence, read_groups, write_table

BUILT = {*range(1, 79), 94, 96}
# Skipped where the documents are not, so no row rests on it alone.
DOCUMENTS = "tests/behaviour/test_documents.py"


def test_the_table_is_what_the_generator_writes() -> None:
    assert TABLE.read_text("utf-8") == write_table(read_groups(), find_evidence()), "run `make features`"


def test_every_row_is_there_once() -> None:
    rows = [row["row"] for group in read_groups() for row in group["rows"]]
    assert rows == list(range(1, 101))
    for group in read_groups():
        for row in group["rows"]:
            assert row["feature"], row
            assert row["expected"], row
            assert "|" not in row["feature"] + row["expected"], row


def test_every_built_row_is_shown() -> None:
    shown = {row for row, tests in find_evidence().items() if any(test.path != DOCUMENTS for test in tests)}
    assert sorted(BUILT - shown) == []


def test_no_test_names_a_row_that_there_is_not() -> None:
    assert sorted(set(find_evidence()) - set(range(1, 101))) == []


def test_links_of_the_table_lead_somewhere() -> None:
    for tests in find_evidence().values():
        for test in tests:
            assert (ROOT / test.path).is_file()


def test_markers_are_found_wherever_they_stand(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    (folder / "unit").mkdir(parents=True)
    (folder / "unit" / "test_some.py").write_text(
        "import pytest\n"
        "pytestmark = [pytest.mark.slow, pytest.mark.feature(1)]\n"
        "@pytest.mark.feature(2, 3)\n"
        "def test_a(): ...\n"
        "def helper(): ...\n"
        "@pytest.mark.feature(4)\n"
        "class TestB:\n"
        "    @pytest.mark.parametrize('x', [pytest.param(0, marks=pytest.mark.feature(5))])\n"
        "    def test_c(self, x): ...\n"
    )
    a, c = Evidence("tests/unit/test_some.py", "test_a"), Evidence("tests/unit/test_some.py", "test_c")
    assert find_evidence(folder) == {1: [a, c], 2: [a], 3: [a], 4: [c], 5: [c]}


@pytest.mark.parametrize(
    ("count", "cell"),
    [
        (0, "not yet"),
        (2, "[unit/test_x.py](../tests/unit/test_x.py): test_0, test_1"),
        (5, "[unit/test_x.py](../tests/unit/test_x.py): test_0, test_1 and 3 more"),
    ],
)
def test_a_row_of_the_table(count: int, cell: str) -> None:
    groups = [{"group": "Group", "rows": [{"row": 7, "feature": "name", "expected": "behaviour"}]}]
    evidence = {7: [Evidence("tests/unit/test_x.py", f"test_{i}") for i in range(count)]} if count else {}
    text = write_table(groups, evidence)
    assert f"| 7 | name | behaviour | {cell} |\n" in text
    assert f"{bool(count):d} of 1 rows" in text
