"""The cookbooks run as they are, with the bundled model, and write what they say."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from qwenvl.checkpoint.hub import demo_folder

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cookbooks"
COOKBOOKS = sorted(path.stem for path in FOLDER.glob("*.py") if "# %% [markdown]" in path.read_text("utf-8"))
BY_HAND = "WRITTEN BY HAND"  # what a cookbook says of answers that no model gave

needs_model = pytest.mark.skipif(
    not (demo_folder() / "model.safetensors").is_file(), reason="this checkout has no bundled checkpoint"
)


def test_the_seven_cookbooks_of_the_documents_are_there() -> None:
    assert COOKBOOKS == [
        "computer_use",
        "document_parsing",
        "mobile_agent",
        "object_grounding",
        "ocr_and_extraction",
        "universal_recognition",
        "video_understanding",
    ]
    page = (ROOT / "docs/cookbooks.md").read_text("utf-8")
    assert [name for name in COOKBOOKS if f"cookbooks/{name}.py" not in page] == []


@pytest.mark.parametrize("name", COOKBOOKS)
def test_a_cookbook_begins_with_prose_and_is_short(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text("utf-8")
    assert text.startswith("# %% [markdown]\n# # ")
    assert text.count("# %% [markdown]") >= 3
    assert len(text.splitlines()) <= 130
    assert f"python cookbooks/{name}.py" in text
    ast.parse(text)


@dataclass
class Cooked:
    """What a cookbook printed, and the files that it wrote, by their names below its folder."""

    text: str
    folder: Path
    files: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.files = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())


def cook(name: str, folder: Path, *arguments: str) -> Cooked:
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--out", str(folder / "results"), *arguments], cwd=folder,
        capture_output=True, text=True, timeout=110, check=False, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert {p.name for p in folder.iterdir()} <= {"results"}  # nothing beside --out
    return Cooked(done.stdout, folder / "results")


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"-?\d+", text)]


@pytest.mark.slow
@needs_model
@pytest.mark.feature(84)
def test_universal_recognition(tmp_path: Path) -> None:
    cooked = cook("universal_recognition", tmp_path)
    assert BY_HAND not in cooked.text
    assert "red circle" in cooked.text
    assert "(pictures encoded for these questions and the ones above: 3)" in cooked.text
    assert len([name for name in cooked.files if name.endswith("-objects.png")]) == 3


@pytest.mark.slow
@needs_model
@pytest.mark.feature(86)
def test_object_grounding(tmp_path: Path) -> None:
    cooked = cook("object_grounding", tmp_path)
    assert BY_HAND not in cooked.text
    (box,) = re.findall(r"red circle: \[(.*)\]", cooked.text)
    (large,) = re.findall(r"1120 x 840: \[(.*)\]", cooked.text)
    assert max(abs(4 * one - other) for one, other in zip(numbers(box), numbers(large), strict=True)) <= 80
    assert "-> cup: [100, 50, 200, 150]" in cooked.text
    assert cooked.files == ["boxes.png", "coco.json", "yolo.txt"]
    assert json.loads((cooked.folder / "coco.json").read_text())["annotations"]


@pytest.mark.slow
@needs_model
@pytest.mark.feature(85)
def test_document_parsing(tmp_path: Path) -> None:
    cooked = cook("document_parsing", tmp_path)
    assert BY_HAND in cooked.text
    markdown = (cooked.folder / "parsed.md").read_text("utf-8")
    for part in ("# Growth on a Window Sill", "| Plant", "the light in the afternoon", "h(t) = a"):
        assert part in markdown
    assert {"parsed.html", "parsed.json", "parsed.pdf", "parsed.txt", "report.pdf"} <= set(cooked.files)
    with Image.open(cooked.folder / "parsed-overlay/page-0001.png") as page:
        assert page.height > page.width
    assert [name for name in cooked.files if name.startswith("parsed-crops/")]


@pytest.mark.slow
@needs_model
@pytest.mark.feature(87)
def test_ocr_and_extraction(tmp_path: Path) -> None:
    cooked = cook("ocr_and_extraction", tmp_path)
    assert BY_HAND not in cooked.text
    (extracted,) = re.findall(r"extracted: (.*)", cooked.text)
    assert list(json.loads(extracted)) == ["company", "date", "total"]
    assert cooked.text.count("in truth:") == 3
    assert {"page-0.png", "page-1.png", "spotted-0.png", "spotted-1.png"} <= set(cooked.files)


@pytest.mark.slow
@needs_model
@pytest.mark.feature(88)
def test_video_understanding(tmp_path: Path) -> None:
    cooked = cook("video_understanding", tmp_path)
    assert BY_HAND not in cooked.text
    assert "8 frames from 2.00 to 4.00 s of 5.00 s" in cooked.text
    assert "== When: blue square appears" in cooked.text
    if "no events were told" not in cooked.text:
        assert {"events.srt", "sheet.png"} <= set(cooked.files)
        assert [name for name in cooked.files if name.startswith("clips/")]


@pytest.mark.slow
@needs_model
@pytest.mark.feature(89)
def test_mobile_agent(tmp_path: Path) -> None:
    cooked = cook("mobile_agent", tmp_path)
    assert BY_HAND in cooked.text
    assert "success: The note is saved." in cooked.text
    assert "'note': 'buy milk'" in cooked.text
    assert "same end: True (5 actions)" in cooked.text
    assert "trace/steps.jsonl" in cooked.files


@pytest.mark.slow
@needs_model
@pytest.mark.feature(90)
def test_computer_use(tmp_path: Path) -> None:
    cooked = cook("computer_use", tmp_path)
    assert BY_HAND in cooked.text
    assert "success: It says Thank you: done." in cooked.text
    assert "(allowed, though it types into a password field)" in cooked.text
    assert "same end: True (5 actions, last screen 100% alike)" in cooked.text


@pytest.mark.slow
@needs_model
@pytest.mark.feature(90)
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium on this machine")
def test_computer_use_in_a_browser(tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    cooked = cook("computer_use", tmp_path, "--browser")
    assert "the page received: {'name': 'Ada', 'password': 'ada-1815'}" in cooked.text
    assert "same end: True" in cooked.text


@pytest.mark.slow
@needs_model
def test_cookbooks_take_pictures_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    own = tmp_path / "own" / "mine.png"
    Image.new("RGB", (280, 280), "white").save(own)
    (tmp_path / "work").mkdir()
    cooked = cook("universal_recognition", tmp_path / "work", str(own))
    assert "mine.png:" in cooked.text
    assert "mine-objects.png" in cooked.files
