"""Places for other tools, read back by them (inventory row 95)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl.tasks.exports import to_coco, to_detections, to_yolo
from qwenvl.tasks.places import Box, Place, Point

CUP = Box("cup", 50.0, 25.0, 100.0, 50.0, (0,) * 4, confidence=0.75)
JAR = Box("jar", 0.0, 0.5, 25.25, 30.0, (0,) * 4, confidence=0.5)
KITE = Box("kite", 10, 10, 90, 60, (0,) * 4, polygon=((10, 10), (90, 20), (40, 60)))
DOT = Point("dot", 7.5, 9.25, (0, 0))
SIZE = (200, 100)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """supervision without OpenCV says so when it is imported."""
    pytest.importorskip("supervision", reason="extra 'detections'", exc_type=ImportError)


@pytest.mark.feature(95)
def test_detections() -> None:
    found = to_detections([CUP, JAR, CUP])
    assert found.xyxy.tolist() == [[50, 25, 100, 50], [0, 0.5, 25.25, 30], [50, 25, 100, 50]]
    assert found.class_id is not None
    assert found.class_id.tolist() == [0, 1, 0]
    assert found.confidence is not None
    assert found.confidence.tolist() == [0.75, 0.5, 0.75]
    assert found["class_name"].tolist() == ["cup", "jar", "cup"]
    assert found.mask is None
    assert found[found.confidence > 0.6].xyxy.shape == (2, 4)
    assert to_detections([JAR], classes=["cup", "jar"]).class_id.tolist() == [1]  # type: ignore[union-attr]
    assert to_detections([CUP, KITE]).confidence is None
    assert len(to_detections([])) == 0


def test_detections_with_masks() -> None:
    found = to_detections([KITE, CUP], SIZE)
    assert found.mask is not None
    assert found.mask.shape == (2, 100, 200)
    assert found.mask[1].sum() == 50 * 25
    half_of_the_cross_product = abs((90 - 10) * (60 - 10) - (40 - 10) * (20 - 10)) / 2
    assert found.mask[0].sum() == pytest.approx(half_of_the_cross_product, rel=0.1)
    assert to_detections([CUP], SIZE).mask is None


def test_without_supervision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r'pip install "qwenvl\[detections\]"'):
        to_detections([CUP])


@pytest.mark.parametrize("export", [to_detections, lambda places: to_yolo(places, SIZE, ["dot"])])
def test_points_are_no_boxes(export: object) -> None:
    with pytest.raises(ValueError, match="1 of 2 places are points"):
        export([CUP, DOT])  # type: ignore[operator]


def test_a_class_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no such class: 'jar'; there are 'cup'"):
        to_yolo([CUP, JAR], SIZE, ["cup"])
    with pytest.raises(ValueError, match="has no area"):
        to_yolo([CUP], (0, 100), ["cup"])


@pytest.mark.feature(95)
def test_coco() -> None:
    data = json.loads(json.dumps(to_coco([("a.png", SIZE, [CUP, DOT]), ("b.png", (50, 40), [KITE, CUP])])))
    assert [image["id"] for image in data["images"]] == [1, 2]
    assert data["images"][1] == {"id": 2, "file_name": "b.png", "width": 50, "height": 40}
    assert [c["name"] for c in data["categories"]] == ["cup", "dot", "kite"]
    assert data["categories"][1]["keypoints"] == ["point"]
    cup, dot, kite, other = data["annotations"]
    assert (cup["bbox"], cup["area"], cup["score"], cup["iscrowd"]) == ([50, 25, 50, 25], 1250, 0.75, 0)
    assert (dot["keypoints"], dot["num_keypoints"], dot["category_id"]) == ([7.5, 9.25, 2], 1, 2)
    assert kite["segmentation"] == [[10, 10, 90, 20, 40, 60]]
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3, 4]
    assert (other["image_id"], other["category_id"]) == (2, 1)


def corners(places: list[Place]) -> list[list[float]]:
    return [list(place.corners) for place in places if isinstance(place, Box)]


@pytest.mark.feature(95)
def test_coco_and_yolo_are_read_back(tmp_path: Path) -> None:
    """supervision's own readers, as an oracle."""
    import supervision as sv

    pictures = [("a.png", SIZE, [CUP, JAR]), ("b.png", SIZE, [JAR])]
    for name, size, _ in pictures:
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "coco.json").write_text(json.dumps(to_coco(pictures)))
    classes = ["jar", "cup"]
    (tmp_path / "labels").mkdir()
    for name, size, places in pictures:
        text = "".join(f"{line}\n" for line in to_yolo(places, size, classes))
        (tmp_path / "labels" / name).with_suffix(".txt").write_text(text)
    (tmp_path / "data.yaml").write_text(f"names: {classes}\n")
    coco = sv.DetectionDataset.from_coco(str(tmp_path), str(tmp_path / "coco.json"))
    yolo = sv.DetectionDataset.from_yolo(str(tmp_path), str(tmp_path / "labels"), str(tmp_path / "data.yaml"))
    for name, _, places in pictures:
        wanted = np.array(corners(list(places)))
        labels = [place.label for place in places]
        for data in (coco, yolo):
            found = next(a for path, a in data.annotations.items() if Path(path).name == name)
            np.testing.assert_allclose(found.xyxy, wanted, atol=0.01)
            assert found.class_id is not None
            assert [data.classes[i] for i in found.class_id] == labels
