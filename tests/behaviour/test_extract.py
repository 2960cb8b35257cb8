"""Extraction on the bundled model, through Python and through the program: at temperature 1 every result fits its
schema, whatever the model would have liked to write."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import BaseModel, Field
from tiny import tiny_model
from typer.testing import CliRunner

from qwenvl.cli.app import app
from qwenvl.demo.samples import PICTURES
from qwenvl.engine.lookup import DRAFT_TOKENS
from qwenvl.tasks import Assistant
from qwenvl.tasks.extraction import BBox2D, Point2D, extract, extract_many, labels_grammar, wanted
from qwenvl.tasks.extraction.extract import extraction_of
from qwenvl.tasks.extraction.prompts import question
from qwenvl.types import Grammar, SamplingParams

SHAPES = PICTURES / "three-shapes.png"  # 280 x 210, seen as 280 x 224
MARKS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
FIELDS = ["company", "date", "total"]


class Find(BaseModel):
    bbox_2d: BBox2D
    label: Literal["circle", "square", "triangle", "star"]


class Scene(BaseModel):
    finds: list[Find] = Field(min_length=1, max_length=4)
    centre: Point2D | None = None


class Line(BaseModel):
    name: str = Field(max_length=30)
    price: Decimal = Field(ge=0, le=1000)
    parts: list[Line] = Field(default=[], max_length=2)


class Receipt(BaseModel):
    company: str = Field(max_length=60)
    date: datetime.date | None
    lines: list[Line] = Field(max_length=3)
    paid: bool


WISHES = (
    FIELDS,
    Scene,
    Receipt,
    {"anyOf": [{"const": "nothing"}, {"type": "array", "items": {"enum": [1, 2, "größe"]}}]},
)


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant("demo", max_running=16)


def valid(assistant: Assistant, runs: int, seed: int) -> int:
    """How many of `runs` answers at temperature 1 fit: what does not raises. Places lie in the picture."""
    torch.manual_seed(seed)
    fit = 0
    for number, wish in enumerate(WISHES):
        want = wanted(wish)
        share = runs // len(WISHES) + (number < runs % len(WISHES))
        sampling = SamplingParams(
            temperature=1.0, max_new_tokens=160, logprobs=True, grammar=Grammar.json_schema(want.schema)
        )
        for answer in assistant.ask_many([([SHAPES], question(want))] * share, sampling):
            found = extraction_of(want, answer)
            if wish is Scene:
                for find in found.value.finds:
                    x1, y1, x2, y2 = find.bbox_2d
                    assert 0 <= x1 < x2 <= 280
                    assert 0 <= y1 < y2 <= 210
            fit += 1
    return fit


@pytest.mark.feature(87, 95)
def test_sixty_of_sixty_runs_are_valid(assistant: Assistant) -> None:
    assert valid(assistant, 60, 0) == 60


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.feature(87, 95)
def test_a_thousand_of_a_thousand_runs_are_valid(assistant: Assistant) -> None:
    assert valid(assistant, 1000, 1) == 1000


@pytest.mark.feature(86)
def test_labelled_boxes_at_temperature_one(assistant: Assistant) -> None:
    torch.manual_seed(0)
    sampling = SamplingParams(
        temperature=1.0, max_new_tokens=120, grammar=labels_grammar(["star", "moon"], least=1, most=2)
    )
    asked = "Detect all shapes and output their bounding boxes in JSON."
    for answer in assistant.ask_many([([SHAPES], asked)] * 8, sampling):
        for find in json.loads(answer.text):
            assert find["label"] in ("star", "moon")
            x1, y1, x2, y2 = find["bbox_2d"]
            assert 0 <= x1 < x2 <= 280
            assert 0 <= y1 < y2 <= 224


def test_drafts_change_the_steps_and_not_the_answer() -> None:
    want, texts = wanted(Receipt), []
    sampling = SamplingParams(temperature=1.0, seed=5, max_new_tokens=60, grammar=Grammar.json_schema(want.schema))
    for draft in (0, DRAFT_TOKENS):
        helper = Assistant("demo", dtype="float32", draft_tokens=draft)
        texts.append(helper.ask([SHAPES], question(want), sampling).text)
    assert texts[0] == texts[1]


@pytest.mark.feature(86, 95)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_boxes_of_both_families(family: str) -> None:
    """Qwen2-VL's places are thousandths of the sides, Qwen2.5-VL's are pixels: what a random model writes at
    temperature 1 lies in the picture, and comes back in its original pixels."""
    demo = Assistant("demo")
    ids = {name: getattr(demo.model.config, name) for name in MARKS}
    ids["eos_token_id"] = demo.processor.tokenizer.eos_token_id
    model = tiny_model(family, vocab_size=demo.model.config.text_config.vocab_size, **ids)
    helper = Assistant.from_parts(model, demo.processor)
    sides = (1000, 1000) if family == "qwen2_vl" else (280, 224)
    seen = []
    for seed in range(8):
        found = extract(helper, SHAPES, Scene, sampling=SamplingParams(temperature=1.0, max_new_tokens=200, seed=seed))
        written = json.loads(found.text)
        for find, placed in zip(written["finds"], found.data["finds"], strict=True):
            x1, y1, x2, y2 = find["bbox_2d"]
            assert 0 <= x1 < x2 <= sides[0]
            assert 0 <= y1 < y2 <= sides[1]
            back = [
                v * side / number for v, side, number in zip((x1, y1, x2, y2), (280, 210) * 2, sides * 2, strict=True)
            ]
            assert placed["bbox_2d"] == pytest.approx(back, abs=0.006)
            seen.append((x2, y2))
    assert any(x > 280 or y > 224 for x, y in seen) == (family == "qwen2_vl")


def test_many_are_as_each_alone(assistant: Assistant, tmp_path: Path) -> None:
    """In order, one that fails alone, and no more opened than are computed together."""
    broken, names = tmp_path / "broken.png", ["three-shapes", "two-circles", "three-shapes"]
    broken.write_bytes(b"no picture")
    pictures: list[Any] = [PICTURES / f"{name}.png" for name in names]
    pictures[1:1] = [broken, []]
    opened = []

    def each() -> Iterator[Any]:
        for number, picture in enumerate(pictures):
            opened.append(number)
            yield picture

    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}}
    results = extract_many(assistant, each(), schema, together=3)
    first = next(results)
    assert opened == [0, 1, 2]
    every = [first, *results]
    assert [isinstance(one, Exception) for one in every] == [False, True, True, False, False]
    assert "broken.png" in str(every[1])
    assert "there is no picture" in str(every[2])
    for picture, one in zip(pictures, every, strict=True):
        if not isinstance(one, Exception):
            alone = extract(assistant, picture, schema)
            assert (alone.data, alone.text) == (one.data, one.text)
            assert alone.confidence == pytest.approx(one.confidence, abs=0.02)
    with pytest.raises(ValueError, match="together=0"):
        extract_many(assistant, [], schema, together=0)
    with pytest.raises(ValueError, match="none of them empty"):
        extract_many(assistant, [], [""])


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["extract", *arguments])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.feature(95)
def test_the_program_writes_json_and_tables(tmp_path: Path) -> None:
    code, out, _ = run(str(SHAPES), "--fields", "company, date")
    assert code == 0
    assert [*json.loads(out)] == ["company", "date"]
    pictures = [str(SHAPES), str(PICTURES / "two-circles.png")]
    code, out, _ = run(*pictures, "--fields", "company,date", "--csv")
    table = list(csv.reader(io.StringIO(out)))
    assert table[0] == ["source", "company", "date"]
    assert [line[0] for line in table[1:]] == pictures
    code, out, err = run(*pictures, "--fields", "company,date", "--json", "--max-new-tokens", "7")
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["source"] for r in records] == pictures
    assert [r["complete"] for r in records] == [False, False]
    assert "date" in err
    schema = tmp_path / "schema.json"
    schema.write_text(
        json.dumps({"type": "object", "properties": {"bbox_2d": {"type": "array"}}, "required": ["bbox_2d"]})
    )
    code, out, _ = run(str(SHAPES), "--schema", str(schema))
    x1, y1, x2, y2 = json.loads(out)["bbox_2d"]
    assert 0 <= x1 < x2 <= 280
    assert 0 <= y1 < y2 <= 210


def test_a_picture_that_fails_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten pictures, which are two batches; the broken one is told as it is when it is the only one."""
    for number in range(10):
        shutil.copy(SHAPES, tmp_path / f"p{number}.png")
    (tmp_path / "p4.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    code, out, err = run(".", "--fields", "a", "--json", "--max-new-tokens", "5")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [r["source"] for r in records] == [f"./p{number}.png" for number in range(10)]
    assert [r["source"] for r in records if "error" in r] == ["./p4.png"]
    assert "message 0" not in err + records[4]["error"]
    assert "p4.png" in err


def test_a_model_class_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wish_of_mine.py").write_text(
        "from pydantic import BaseModel\nclass Card(BaseModel):\n    number: int\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code, out, _ = run(str(SHAPES), "--model-class", "wish_of_mine:Card")
    assert code == 0
    assert type(json.loads(out)["number"]) is int
    for wrong in ("wish_of_mine:Nothing", "wish_of_mine", "no_such_module:Card", "json:dumps"):
        with pytest.raises(ValueError, match=r"--model-class"):
            run(str(SHAPES), "--model-class", wrong)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing says what to extract"),
        (["--fields", "a", "--schema", "x"], "--fields and --schema say"),
        (["--fields", "a,,b"], "none of them empty"),
        (["--fields", "a", "--csv", "--json"], "two forms"),
        (["--schema", "missing.json"], "missing.json"),
        (["--schema", str(SHAPES)], "is no JSON"),
        (["--fields", "a", "--temperature", "-1"], "temperature"),
    ],
)
def test_mistakes_are_told(arguments: list[str], says: str) -> None:
    with pytest.raises((ValueError, OSError), match=says):
        run(str(SHAPES), *arguments)


def test_mistakes_are_found_before_torch_is_imported() -> None:
    code = (
        "import sys\nfrom qwenvl.cli.app import app\n"
        "try: app(['extract', 'nope.png', '--fields', 'a'], standalone_mode=False)\n"
        "except ValueError as error: print(error)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    assert "nope.png does not exist" in done.stdout
