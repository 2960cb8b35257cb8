"""How much of a video a model is shown at once: what is recommended for finding moments, within what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenvl.media import VideoOptions

FPS = 2.0  # the least that is recommended for telling when something happens
MOST_FRAMES = 768
TOTAL_PIXELS = 20480 * 28 * 28  # of all frames of a look, two counting once: 20480 tokens
MIN_PIXELS = 16 * 28 * 28  # of a frame
MAX_PIXELS = 768 * 28 * 28
CONTEXT = 0.75  # share of the positions of a model that frames may take


@dataclass(frozen=True)
class View:
    """frames: most frames of one look, even. min_pixels, max_pixels: area of each. total_pixels: of all together, two
    counting once."""

    frames: int = MOST_FRAMES
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    total_pixels: int = TOTAL_PIXELS

    def options(self, frames: int | None = None) -> VideoOptions:
        """How the frames of a look of `frames` (None: as many as may be) become as large as they may."""
        from qwenvl.media import VideoOptions

        share = self.total_pixels * 2 // (frames or self.frames)
        return VideoOptions(min_pixels=self.min_pixels, max_pixels=max(self.min_pixels, min(self.max_pixels, share)))


def view_of(assistant: Any, max_frames: int | None = None) -> View:
    """What an assistant takes: the limits of its video processor and the positions of its model, where it has them.

    max_frames: most frames of one look, in place of the checkpoint's. Raises ValueError unless that is 4 or more.
    """
    if max_frames is not None and max_frames < 4:
        raise ValueError(f"max_frames={max_frames} of a look: expected 4 or more")
    videos = getattr(getattr(assistant, "processor", None), "video_processor", None)
    config = getattr(getattr(assistant, "model", None), "config", None)
    size = getattr(videos, "size", None) or {}
    low = max(MIN_PIXELS, size.get("shortest_edge", 0))
    high = max(low, min(MAX_PIXELS, size.get("longest_edge", MAX_PIXELS)))
    positions = getattr(config, "max_position_embeddings", None)
    total = TOTAL_PIXELS if positions is None else min(TOTAL_PIXELS, int(positions * CONTEXT) * 28 * 28)
    most = max_frames or min(MOST_FRAMES, getattr(videos, "max_frames", MOST_FRAMES))
    most = max(4, min(most, total * 2 // low))
    return View(most - most % 2, low, high, total)
