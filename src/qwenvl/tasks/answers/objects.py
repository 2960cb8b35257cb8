"""Places written as JSON or Python: objects with keys such as "bbox_2d", and lists of numbers without any.

In: nodes. Out: Written, in the order of their numbers in the text.

    [{"bbox_2d": [x1, y1, x2, y2], "label": "cup"}, {"point_2d": [x, y], "label": "cup"}]
    {"label": "cup", "boxes": [[x1, y1, x2, y2], [x1, y1, x2, y2]]}      several of one label
    {"cups": [{"bbox_2d": ...}], "jars": [[x1, y1, x2, y2]]}             labels as keys
    {"label": "car", "bbox_2d": ..., "parts": [{"label": "wheel", "bbox_2d": ...}]}
    [[x1, y1, x2, y2], ["cup", x1, y1, x2, y2]]                          taken when they fit into the picture
Numbers may be texts, corners may be pairs or named (x1, xmin, left, x and width), quads and polygons come as Boxes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from qwenvl.tasks.answers.nodes import Fields, Items, Node, Scalar, plain
from qwenvl.tasks.answers.written import Number, Written, numbers_within, only_counts, to_float

_BOX_KEYS = frozenset(
    ("bbox2d", "bbox", "bboxes", "bboxes2d", "box2d", "box", "boxes", "boxes2d", "boundingbox", "boundingboxes",
     "boundingbox2d", "rect", "rectangle", "xyxy", "bboxxyxy", "databbox")
)  # fmt: skip
_POINT_KEYS = frozenset(("point2d", "point", "points", "points2d", "keypoint", "coordinate", "coordinate2"))
_POLYGON_KEYS = frozenset(("quad", "quad2d", "quadrilateral", "polygon", "polygon2d", "poly", "vertices"))
_VAGUE_KEYS = frozenset(("coordinates", "coords", "position", "location"))  # a place if they have four numbers
_LABEL_KEYS = (
    "label", "text_content", "text", "ref", "alt", "name", "object", "category", "class", "class_name", "phrase",
    "description", "type", "sub_label", "action",
)  # fmt: skip
_LABEL_LISTS = frozenset(
    ("label", "labels", "names", "texts", "text_content", "text_contents", "categories", "classes")
)
_COLLECTIONS = frozenset(
    ("objects", "items", "results", "result", "detections", "annotations", "instances", "data", "places", "elements",
     "predictions", "output", "outputs", "answer", "answers", "regions", "lines", "words", "list", "arguments")
)  # fmt: skip
_CORNERS = (
    ("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"),
    ("x0", "y0", "x1", "y1"), ("xleft", "ytop", "xright", "ybottom"),
)  # fmt: skip
_SIZES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
_CORNER_NAMES = frozenset(name for names in _CORNERS + _SIZES for name in names)

Shape = list[Number]


def key_pattern() -> re.Pattern[str]:
    """What begins an object that has lost its braces: a place's key with its colon, and a label's in front of it."""
    place = r"[\"'“]?(?:bbox_2d|bbox|box_2d|point_2d|quad_2d)[\"'”]?\s*[:：=]"  # noqa: RUF001
    label = r"[\"'“]?(?:label|text_content)[\"'”]?\s*[:：]\s*[\"'“]?[^\"'“”\[\]{}\n]{0,80}[\"'”]?\s*[,，]?\s*"  # noqa: RUF001
    return re.compile(rf"(?<![\w])(?:{label})?{place}")


def written_places(text: str, nodes: Sequence[Node]) -> list[Written]:
    """Every place in the nodes of a text."""
    found = [written for node in nodes for written in _Walk(text).node(node, "")]
    return sorted(found, key=lambda written: written.at)


class _Walk:
    """The text that the nodes are of: texts with numbers are read again, where they stand."""

    def __init__(self, text: str) -> None:
        self.text = text

    def node(self, node: Node, label: str) -> Iterator[Written]:
        if isinstance(node, Fields):
            groups = _groups(node.pairs)
            for number, pairs in enumerate(groups):
                yield from self._item(node, pairs, label, cut=node.cut and number == len(groups) - 1)
            for inner in node.loose:
                yield from self.node(inner, "")
        elif isinstance(node, Items):
            bare = self._bare(node, label)
            if bare is not None:
                yield bare
                return
            for inner in node.items:
                yield from self.node(inner, label)

    def _item(self, node: Fields, pairs: list[tuple[str, Node]], label: str, cut: bool) -> Iterator[Written]:
        """The places of one object: its own, and those of objects within it. Where there is a box, a polygon beside it
        is a further field."""
        said = _label(pairs)
        own: list[Shape] = []
        inner: list[Written] = []
        others: list[tuple[str, Node]] = []
        labels_as_keys = not said and all(isinstance(value, Items) for _, value in pairs)
        keys = [_plain_key(key) for key, _ in pairs]
        every = [self._shapes(key, value) for key, (_, value) in zip(keys, pairs, strict=True)]
        boxed = any(shapes and key in _BOX_KEYS for key, shapes in zip(keys, every, strict=True))
        for plain_key, shapes, (key, value) in zip(keys, every, pairs, strict=True):
            if boxed and plain_key in _POLYGON_KEYS:
                shapes = []
            own += shapes
            within: list[Written] = []
            if not shapes and not isinstance(value, Scalar) and not (boxed and plain_key in _POLYGON_KEYS):
                within = list(self.node(value, said or (label if _is_collection(key) else key)))
                if not labels_as_keys:
                    within = [written for written in within if written.sure or _is_collection(key)]
            inner += within
            if not shapes and not within and key != "label" and plain_key not in _BOX_KEYS | _POINT_KEYS:
                others.append((key, value))
        unused = frozenset[str]()
        if not own and (own := self._corners_of(pairs)):
            unused = _CORNER_NAMES
        names = _names(pairs, len(own))
        if names is not None:
            unused |= _LABEL_LISTS
        if own and not cut:
            extra = {key: plain(value) for key, value in others if _plain_key(key) not in unused}
            for name, shape in zip(names or [said or label] * len(own), own, strict=True):
                yield Written(name, tuple(shape), "resized", node.start, node.end, extra)
        yield from inner

    def _shapes(self, key: str, value: Node) -> list[Shape]:
        if key in _BOX_KEYS:
            return self._read("box", value)
        if key in _POINT_KEYS:
            return self._read("points" if key.startswith("points") else "point", value)
        if key in _POLYGON_KEYS:
            return self._read("polygon", value)
        if key in _VAGUE_KEYS:
            return [shape for shape in self._read("box", value) if len(shape) == 4]
        return []

    def _read(self, kind: str, value: Node) -> list[Shape]:
        """The shapes that a value writes: one, or several in a list."""
        if isinstance(value, Fields):
            named = self._corners_of(value.pairs)
            return named if named or not kind.startswith("point") else self._named_point(value.pairs)
        flat = self._flat(value)
        if flat is not None:
            return _split(kind, flat)
        if not isinstance(value, Items):
            return []
        parts = [self._flat(item) for item in value.items]
        if parts and all(part is not None and len(part) == 2 for part in parts):
            corners = [number for part in parts for number in part or ()]
            return _split("points" if kind == "point" else kind, corners)
        return [shape for item in value.items for shape in self._read(kind, item)]

    def _flat(self, node: Node) -> Shape | None:
        """The numbers of a list of numbers, or of a text that holds nothing else; None for all else."""
        if isinstance(node, Scalar):
            return numbers_within(self.text, *self._inside(node)) if isinstance(node.value, str) else None
        if not isinstance(node, Items) or not node.items:
            return None
        found: Shape = []
        for item in node.items:
            number = self._number(item)
            if number is None:
                return None
            found.append(number)
        return found

    def _number(self, node: Node) -> Number | None:
        if not isinstance(node, Scalar) or isinstance(node.value, bool):
            return None
        if isinstance(node.value, int | float):
            return Number(to_float(str(node.value)), node.start, node.end)
        if isinstance(node.value, str):
            one = only_counts(numbers_within(self.text, *self._inside(node)), 1)
            return one[0] if one else None
        return None

    def _inside(self, node: Scalar) -> tuple[int, int]:
        """The characters of a text between its quotes, of which the last one may be missing."""
        quotes = "\"'“‘”’„＂"  # noqa: RUF001
        start = node.start + (self.text[node.start] in quotes)
        return start, max(start, node.end - (self.text[node.end - 1] in quotes))

    def _corners_of(self, pairs: Sequence[tuple[str, Node]]) -> list[Shape]:
        """Corners or sizes by name: x1, y1, x2, y2."""
        if len(pairs) < 4:
            return []
        named = {_plain_key(key): self._number(value) for key, value in pairs}
        for names in _CORNERS:
            found = [number for name in names if (number := named.get(name)) is not None]
            if len(found) == 4:
                return [found]
        for names in _SIZES:
            found = [number for name in names if (number := named.get(name)) is not None]
            if len(found) == 4:
                x, y, wide, high = found
                return [
                    [x, y, Number(x.value + wide.value, wide.start, wide.end),
                     Number(y.value + high.value, high.start, high.end)]
                ]  # fmt: skip
        return []

    def _named_point(self, pairs: Sequence[tuple[str, Node]]) -> list[Shape]:
        named = {_plain_key(key): self._number(value) for key, value in pairs}
        x, y = named.get("x"), named.get("y")
        return [[x, y]] if x is not None and y is not None else []

    def _bare(self, node: Items, label: str) -> Written | None:
        """[x1, y1, x2, y2], with its label in front or behind, or beside it: ["cup", [x1, y1, x2, y2]]."""
        if not 2 <= len(node.items) <= 5:
            return None
        texts = [item for item in node.items if isinstance(item, Scalar) and isinstance(item.value, str)]
        rest = [item for item in node.items if item is not texts[0]] if len(texts) == 1 else list(node.items)
        if len(rest) == 1 and len(texts) == 1 and isinstance(rest[0], Items):
            rest = rest[0].items
        if len(rest) != 4:
            return None
        shape = self._flat(Items(rest, node.start, node.end))
        if shape is None:
            return None
        said = texts[0].value.strip() if len(texts) == 1 else label
        return Written(said, tuple(shape), "resized", node.start, node.end, sure=False)


def _split(kind: str, flat: Shape) -> list[Shape]:
    count = len(flat)
    if kind == "points":
        return [flat[i : i + 2] for i in range(0, count, 2)] if count % 2 == 0 else []
    if kind == "point":
        return [flat] if count in (2, 4) else []
    if kind == "polygon":
        return [flat] if count >= 4 and count % 2 == 0 else []
    return [flat] if count == 4 or (count >= 6 and count % 2 == 0) else []


def _groups(pairs: list[tuple[str, Node]]) -> list[list[tuple[str, Node]]]:
    """Fields of one item each: a key that comes again begins the next one (a bracket between them is missing)."""
    groups: list[list[tuple[str, Node]]] = [[]]
    seen: set[str] = set()
    for key, value in pairs:
        if key in seen:
            groups.append([])
            seen.clear()
        seen.add(key)
        groups[-1].append((key, value))
    return groups


def _label(pairs: Sequence[tuple[str, Node]]) -> str:
    values = {name: value for key, value in reversed(pairs) if (name := key.lower()) in _LABEL_KEYS}
    for key in _LABEL_KEYS if values else ():
        value = values.get(key)
        if isinstance(value, Scalar) and value.value is not None:
            return str(value.value).strip()
        if isinstance(value, Items) and value.items and all(isinstance(item, Scalar) for item in value.items):
            return ", ".join(str(plain(item)) for item in value.items)
    return ""


def _names(pairs: Sequence[tuple[str, Node]], count: int) -> list[str] | None:
    """The labels of several places of one object, where there is one for each."""
    for key, value in pairs:
        if _plain_key(key) in _LABEL_LISTS and isinstance(value, Items) and len(value.items) == count > 1:
            return [str(plain(item)).strip() for item in value.items]
    return None


def _plain_key(key: str) -> str:
    """A key without case and marks: "BBox_2D" -> "bbox2d"."""
    return "".join(filter(str.isalnum, key.lower()))


def _is_collection(key: str) -> bool:
    return _plain_key(key) in _COLLECTIONS
