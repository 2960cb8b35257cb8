"""Coordinates as a model wrote them -> pixels of the original page.

In: numbers and the ImageSize of the page. Out: boxes and polygons, clamped to the page, corners in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qwenvl.tasks.documents.blocks import Bbox
from qwenvl.tasks.documents.tree import box_of, numbers_of
from qwenvl.types import ImageSize

FrameKind = Literal["resized", "thousandths"]


@dataclass(frozen=True)
class Frame:
    """Where coordinates lie. size None: nothing is known of the page, boxes stay as written only."""

    size: ImageSize | None
    kind: FrameKind = "resized"

    def box(self, written: Bbox | None) -> Bbox | None:
        """In original pixels; None where nothing of it lies on the page."""
        if written is None or self.size is None:
            return None
        x1, x2 = sorted(self._x(x) for x in written[0::2])
        y1, y2 = sorted(self._y(y) for y in written[1::2])
        return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None

    def boxes(self, attributes: Mapping[str, str]) -> tuple[Bbox | None, Bbox | None]:
        """(box in original pixels, box as written) of a tag."""
        written = box_of(attributes)
        return self.box(written), written

    def polygon(self, attributes: Mapping[str, str]) -> tuple[tuple[float, float], ...]:
        corners = numbers_of(attributes.get("data-polygon", ""))
        if self.size is None or len(corners) < 6 or len(corners) % 2:
            return ()
        return tuple(self._points(corners))

    def _points(self, corners: Sequence[float]) -> list[tuple[float, float]]:
        return [(self._x(x), self._y(y)) for x, y in zip(corners[::2], corners[1::2], strict=True)]

    def _x(self, x: float) -> float:
        assert self.size is not None
        across = self.size.resized_width if self.kind == "resized" else 1000
        return min(max(x * self.size.width / across, 0.0), float(self.size.width))

    def _y(self, y: float) -> float:
        assert self.size is not None
        down = self.size.resized_height if self.kind == "resized" else 1000
        return min(max(y * self.size.height / down, 0.0), float(self.size.height))
