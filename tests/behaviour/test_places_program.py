"""Grounding and reading with the bundled model, as a user meets them (inventory rows 84, 86, 87)."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl.checkpoint.hub import demo_folder
from qwenvl.demo.samples import PICTURES
from qwenvl.demo.world import sample_picture
from qwenvl.tasks import Assistant, Box, Point, locate, spot_text
from qwenvl.tasks.places import overlap

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "qwenvl")
THREE = PICTURES / "three-shapes.png"  # a red circle, a blue square and a green triangle
pytestmark = pytest.mark.skipif(
    not (demo_folder() / "model.safetensors").is_file(), reason="this checkout has no bundled checkpoint"
)


def qwenvl(*arguments: str, cwd: Path) -> str:
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, cwd=cwd, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant("demo")


@pytest.mark.feature(84, 86)
def test_everything_in_a_picture_with_its_confidence(assistant: Assistant) -> None:
    found = locate(assistant, THREE, "object")
    assert sorted(place.label for place in found) == ["blue square", "green triangle", "red circle"]
    for place in found:
        assert isinstance(place, Box)
        assert place.confidence is not None
        assert 0.1 < place.confidence < 1
    plain = locate(assistant, THREE, "object", confidence=False)
    assert [(place.label, place.resized) for place in plain] == [(place.label, place.resized) for place in found]


@pytest.mark.feature(86)
def test_two_things_and_a_point(assistant: Assistant) -> None:
    found = locate(assistant, THREE, ["red circle", "blue square"])
    assert [place.label for place in found] == ["red circle", "blue square"]
    (point,) = locate(assistant, THREE, "red circle", as_points=True)
    assert isinstance(point, Point)
    box = found[0]
    assert isinstance(box, Box)
    assert box.x1 < point.x < box.x2
    assert box.y1 < point.y < box.y2


@pytest.mark.feature(86)
def test_locate_in_a_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Image.open(THREE).save(tmp_path / f"{name}.png")
    rows = [json.loads(line) for line in qwenvl("locate", ".", "red circle", "--json", cwd=tmp_path).splitlines()]
    assert [Path(row["source"]).name for row in rows] == ["one.png", "two.png"]
    assert rows[0]["places"] == rows[1]["places"]
    assert rows[0]["places"][0]["label"] == "red circle"
    assert (tmp_path / "two-boxes.png").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.feature(86)
def test_a_second_look_makes_boxes_tighter(assistant: Assistant) -> None:
    """Of 60 fresh pictures: as many things found, and their boxes better by a twentieth of IoU."""
    scores = []
    for refine in (False, True):
        hits: list[float] = []
        for seed in range(60):
            picture = sample_picture(np.random.default_rng([777, seed]), training=False)
            image = Image.fromarray(picture.image)
            boxes = [p for p in locate(assistant, image, "object", refine=refine) if isinstance(p, Box)]
            for thing in picture.things:
                truth = Box(thing.name, *thing.box, (0,) * 4)
                best = max((overlap(truth, box) for box in boxes if box.label == thing.name), default=0.0)
                hits += [best] if best >= 0.5 else []
        scores.append((len(hits), sum(hits) / len(hits)))
    (found, plain), (again, refined) = scores
    assert again >= found - 2
    assert refined > plain + 0.05


@pytest.mark.feature(87)
def test_reading_has_the_form_that_it_should(assistant: Assistant, tmp_path: Path) -> None:
    """How much is read rightly: the scores of the bundled model."""
    assert qwenvl("read", str(THREE), cwd=tmp_path).endswith("\n")
    assert isinstance(spot_text(assistant, THREE), list)
