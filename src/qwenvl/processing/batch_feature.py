"""What a processor returns: a dict of tensors or lists that is also read by attribute and moved as a whole."""

from __future__ import annotations

from typing import Any, Self

import torch

from qwenvl.types import ImageSize


class BatchFeature(dict[str, Any]):
    """A dict with attribute access.

    Besides the keys, which are what forward() and generate() take, so that `model.generate(**inputs)` works:
    image_sizes: ImageSize of every picture, in order. video_sizes: the same of every video's frames. video_times:
    seconds of the frames of every video, so that a moment in an answer can be found in the file.
    """

    image_sizes: list[ImageSize]
    video_sizes: list[ImageSize]
    video_times: list[tuple[float, ...]]

    def __init__(
        self,
        data: dict[str, Any],
        image_sizes: list[ImageSize] | None = None,
        video_sizes: list[ImageSize] | None = None,
        video_times: list[tuple[float, ...]] | None = None,
    ) -> None:
        super().__init__(data)
        object.__setattr__(self, "image_sizes", image_sizes or [])
        object.__setattr__(self, "video_sizes", video_sizes or [])
        object.__setattr__(self, "video_times", video_times or [])

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no field {name!r}: there are {', '.join(self)}") from None

    def to(
        self,
        *where: torch.device | str | int | torch.dtype,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Move every tensor to a device; a dtype is applied to floating point tensors only, and never to
        second_per_grid_ts: half precision would shift the seconds of frames. Changes, returns self."""
        for x in where:
            if isinstance(x, torch.dtype) and dtype is None:
                dtype = x
            elif not isinstance(x, torch.dtype) and device is None:
                device = x
            else:
                raise ValueError(f"to() was given {x} besides another of its kind: expected one device and one dtype")
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                wanted = dtype if value.is_floating_point() and name != "second_per_grid_ts" else None
                self[name] = value.to(device=device, dtype=wanted)
        return self
