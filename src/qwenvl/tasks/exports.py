"""Places in the formats of other tools: supervision's Detections, COCO, YOLO.

In: places in original pixels, with the size of their picture. Out: an object, a dict for JSON, lines of text.
Does not know where places come from; `supervision` is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qwenvl.tasks.places import Box, Place

if TYPE_CHECKING:
    import numpy as np
    from supervision import Detections


def to_detections(
    places: Sequence[Place], size: tuple[int, int] | None = None, classes: Sequence[str] | None = None
) -> Detections:
    """supervision's Detections (pip install "qwenvl[detections]"): xyxy in original pixels, class_id, the label under
    data["class_name"], confidence where every place has one.

    size: (width, height) of the picture; with it, places get masks if any of them has a polygon. classes: the labels in
    the order of their class_id; None = those of the places as they come. Raises ValueError for points, which have no
    box, and a label that is not in `classes`; ImportError without supervision.
    """
    try:
        from supervision import Detections
    except ImportError as error:
        raise ImportError('to_detections needs supervision: pip install "qwenvl[detections]"') from error
    import numpy as np

    boxes = _boxes(places, "supervision's Detections")
    names = _classes(boxes, classes)
    if not boxes:
        return Detections.empty()
    known = [box.confidence for box in boxes if box.confidence is not None]
    return Detections(
        xyxy=np.array([box.corners for box in boxes], dtype=np.float32),
        confidence=np.array(known, dtype=np.float32) if len(known) == len(boxes) else None,
        class_id=np.array([names.index(box.label) for box in boxes], dtype=int),
        mask=_masks(boxes, size) if size is not None and any(box.polygon for box in boxes) else None,
        data={"class_name": np.array([box.label for box in boxes])},
    )


def _masks(boxes: Sequence[Box], size: tuple[int, int]) -> np.ndarray:
    """bool [n, height, width]: what lies within each polygon, or box."""
    import numpy as np
    from PIL import Image, ImageDraw

    masks = []
    for box in boxes:
        canvas = Image.new("1", size)
        pen = ImageDraw.Draw(canvas)
        if box.polygon:
            pen.polygon(box.polygon, fill=1)
        else:
            pen.rectangle((box.x1, box.y1, box.x2 - 1, box.y2 - 1), fill=1)
        masks.append(np.array(canvas, dtype=bool))
    return np.stack(masks)


def to_coco(
    pictures: Iterable[tuple[str, tuple[int, int], Sequence[Place]]], classes: Sequence[str] | None = None
) -> dict[str, Any]:
    """A COCO dataset, for json.dump. pictures: (file name, (width, height), places) of each.

    Ids count from 1; categories are `classes`, or the labels as they come. bbox is [x, y, width, height] in original
    pixels; "score" is the confidence; a polygon is the segmentation; a point is a keypoint of its own with a bbox
    without area. Raises ValueError for a label that is not in `classes`.
    """
    listed = list(pictures)
    names = _classes([place for _, _, places in listed for place in places], classes)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, (width, height), places) in enumerate(listed, 1):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for place in places:
            own = {"id": len(annotations) + 1, "image_id": number, "category_id": names.index(place.label) + 1}
            annotations.append({**own, **_annotation(place)})
    pointed = {place.label for _, _, places in listed for place in places if not isinstance(place, Box)}
    categories: list[dict[str, Any]] = [
        {"id": number, "name": name, "supercategory": "", **({"keypoints": ["point"]} if name in pointed else {})}
        for number, name in enumerate(names, 1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(place: Place) -> dict[str, Any]:
    row: dict[str, Any] = {"iscrowd": 0, "segmentation": []}
    if isinstance(place, Box):
        numbers = (place.x1, place.y1, place.x2 - place.x1, place.y2 - place.y1)
        row |= {"bbox": [round(number, 2) for number in numbers], "area": round(place.area, 2)}
        if place.polygon:
            row["segmentation"] = [[round(number, 2) for corner in place.polygon for number in corner]]
    else:
        x, y = round(place.x, 2), round(place.y, 2)
        row |= {"bbox": [x, y, 0, 0], "area": 0, "keypoints": [x, y, 2], "num_keypoints": 1}
    if place.confidence is not None:
        row["score"] = round(place.confidence, 4)
    return row


def to_yolo(places: Sequence[Place], size: tuple[int, int], classes: Sequence[str]) -> list[str]:
    """Lines of a YOLO label file: class, middle x, middle y, width, height, as shares of the picture's sides.

    size: (width, height) of the picture. classes: the labels in the order of their number. Raises ValueError for
    points, which have no box, and a label that is not in `classes`.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"size={size} has no area: give the width and height of the picture")
    boxes = _boxes(places, "YOLO")
    names = _classes(boxes, classes)
    lines = []
    for box in boxes:
        (x, y), wide, high = box.centre, box.x2 - box.x1, box.y2 - box.y1
        shares = (x / width, y / height, wide / width, high / height)
        lines.append(" ".join([str(names.index(box.label)), *(f"{share:.6f}" for share in shares)]))
    return lines


def _boxes(places: Sequence[Place], what: str) -> list[Box]:
    boxes = [place for place in places if isinstance(place, Box)]
    if len(boxes) != len(places):
        raise ValueError(f"{what} takes boxes, and {len(places) - len(boxes)} of {len(places)} places are points")
    return boxes


def _classes(places: Sequence[Place], classes: Sequence[str] | None) -> list[str]:
    """The labels by their number. ValueError for one that is not among the classes given."""
    labels = list(dict.fromkeys(place.label for place in places))
    if classes is None:
        return labels
    unknown = [label for label in labels if label not in classes]
    if unknown:
        raise ValueError(f"no such class: {', '.join(map(repr, unknown))}; there are {', '.join(map(repr, classes))}")
    return list(classes)
