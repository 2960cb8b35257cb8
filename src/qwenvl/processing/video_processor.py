"""Videos -> patches: files are sampled, frames are taken as they are; resize, cut, normalise."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl.gguf_folder import resolve
from qwenvl.media.pixels import resize_rgb
from qwenvl.media.policy import DEFAULT_POLICY, MediaPolicy
from qwenvl.media.videos import Video, VideoOptions, read_video
from qwenvl.processing.batch_feature import BatchFeature
from qwenvl.processing.clips import as_video, flat_videos
from qwenvl.processing.files import read_json
from qwenvl.processing.image_processor import channels_first, with_fast
from qwenvl.processing.pixels import FIELDS, PixelSettings, patchify_frames, wants_uint8, whole_number
from qwenvl.types import ImageSize

AT_ONCE = 8  # frames resized together
SAMPLING = ("nframes", "num_frames", "min_frames", "max_frames", "video_start", "video_end")
FILES = ("video_preprocessor_config.json", "processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Clip:
    """A video as the model sees it. patches: uint8 [P, 1176]; frames: how many, with what was filled up; times:
    seconds of each of them; size: of the frames as they came and as they are; fps: frames a second really there."""

    patches: Tensor
    frames: int
    times: tuple[float, ...]
    size: ImageSize
    fps: float
    indices: tuple[int, ...]
    duration: float


class Qwen2VLVideoProcessor(PixelSettings):
    """Videos -> pixel_values_videos, video_grid_thw and second_per_grid_ts, with the documented settings.

    min_pixels, max_pixels (see PixelSettings) limit one frame; a limit set alone takes the other along where they
    would cross. Frames that are handed over become what these limits say and nothing else; of files (paths,
    addresses, bytes) `fps` frames a second (None: 2) or num_frames are read, min_frames to max_frames, each at most
    768 x 28 x 28 pixels large and all together within media.videos' budget besides. fast is True by default: video
    frames were always resized by torch's kernel. do_sample_frames is kept as the file says it and changes nothing:
    files are sampled, frames are not.
    """

    kind = ("video_processor_type", "Qwen2VLVideoProcessor")
    default_limits = (128 * 28 * 28, 768 * 28 * 28)
    default_fast = True
    fields = (*FIELDS, "fps", "num_frames", "min_frames", "max_frames", "do_sample_frames")
    model_input_names = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")

    def __init__(
        self,
        *,
        fps: float | None = None,
        num_frames: int | None = None,
        min_frames: int = 4,
        max_frames: int = 768,
        do_sample_frames: bool = False,
        **settings: Any,
    ) -> None:
        self.fps, self.num_frames, self.min_frames, self.max_frames = fps, num_frames, min_frames, max_frames
        self.do_sample_frames = do_sample_frames
        super().__init__(**settings)

    def _check(self) -> None:
        super()._check()
        if self.fps is not None:
            positive("fps", self.fps)
        if self.fps is not None and self.num_frames is not None:
            raise ValueError(f"fps={self.fps} and num_frames={self.num_frames} exclude each other: give one")
        for name in ("min_frames", "max_frames", *(["num_frames"] if self.num_frames is not None else [])):
            whole_number(name, getattr(self, name))

    @classmethod
    def settle(cls, low: int | None, high: int | None, other_low: int, other_high: int) -> tuple[int, int]:
        if low is None and isinstance(high, int):
            return min(other_low, high), high
        if high is None and isinstance(low, int):
            return low, max(other_high, low)
        return super().settle(low, high, other_low, other_high)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, revision: str | None = None, token: str | bool | None = None,
        local_files_only: bool = False, cache_dir: str | Path | None = None, use_fast: bool | None = None,
        **changes: Any,
    ) -> Self:  # fmt: skip
        """Settings of a checkpoint's folder or hub id: video_preprocessor_config.json, else the "video_processor" part
        of processor_config.json, else preprocessor_config.json, which older folders have for pictures and videos;
        without all three the class's own. Other arguments as for the image processor."""
        folder = resolve(folder, revision, token, local_files_only, cache_dir)
        files = [read_json(folder / name) for name in FILES]
        if files[1] is not None:
            files[1] = files[1].get("video_processor")
        data = next((data for data in files if data is not None), {})
        return cls.from_dict(data, **with_fast(changes, use_fast))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes video_preprocessor_config.json."""
        path = Path(folder) / FILES[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", "utf-8")

    def changed(self, **changes: Any) -> Self:
        if changes.get("num_frames") is not None and self.fps is not None:
            other = copy.copy(self)
            other.fps = None  # the number that is asked for now goes before the rate in the settings
            return super(Qwen2VLVideoProcessor, other).changed(**changes)
        return super().changed(**changes)

    def prepare(
        self,
        source: Any,
        options: Mapping[str, Any] | None = None,
        policy: MediaPolicy = DEFAULT_POLICY,
        metadata: Any = None,
        first: bool | None = None,
    ) -> Clip:
        """One video. options: fields of VideoOptions, those that are None or missing by the settings.

        Frames that are handed over are not sampled: options for sampling warn, and fps tells how many a second they
        are (default 2). For a Video the rate is its own, whatever fps says.
        """
        options = {name: value for name, value in (options or {}).items() if value is not None}
        if is_file(source):
            video, given = self._read(source, options, policy), False
        else:
            warn_of_idle_options(options, [source])
            video, given = as_video(source, options.get("fps"), metadata, policy, first), True
        height, width = video.frames.shape[1:3]
        if given:
            height, width = self._size(video, options)
        frames = fill(torch.from_numpy(writable(video.frames)), self.temporal_patch_size)
        patches = patchify_frames(
            resize_frames(frames, height, width, self.fast), self.patch_size, self.merge_size, self.temporal_patch_size
        )
        times = video.times + video.times[-1:] * (len(frames) - len(video.times))
        size = ImageSize(video.width, video.height, width, height)
        return Clip(patches, len(frames), times, size, video.fps, video.indices, video.duration)

    def _read(self, source: Any, options: dict[str, Any], policy: MediaPolicy) -> Video:
        """A file's frames at their last size."""
        if "fps" not in options and "nframes" not in options:
            options = {**options, "fps": self.fps, "nframes": self.num_frames}
        if "resized_height" not in options:
            low, high = self.settle(options.get("min_pixels"), options.get("max_pixels"), *self.size.values())
            options = {**options, "min_pixels": low, "max_pixels": high, "resize": self.do_resize}
        if "nframes" not in options or options["nframes"] is None:
            options = {"min_frames": self.min_frames, "max_frames": self.max_frames} | options
        if isinstance(source, bytearray):
            source = bytes(source)
        video = read_video(source, VideoOptions(**options), policy)
        self.check_size(video.frames.shape[1:3], "the video")
        return video

    def _size(self, video: Video, options: dict[str, Any]) -> tuple[int, int]:
        """(height, width) that frames which were handed over become."""
        height, width = video.frames.shape[1:3]
        if "resized_height" in options:
            size = (options["resized_height"], options["resized_width"])
            self.check_size(size, "resized_height x resized_width")
            return size
        low, high = self.settle(options.get("min_pixels"), options.get("max_pixels"), *self.size.values())
        if "total_pixels" in options:
            share = options["total_pixels"] / len(video.frames) * self.temporal_patch_size
            high = int(max(min(high, share), low * 1.05))
        return self.target_size(height, width, low, high)

    def batch(
        self, clips: Sequence[Clip], return_tensors: str | None = "pt", pixel_dtype: torch.dtype = torch.float32
    ) -> BatchFeature:
        """pixel_values_videos float32 [P, 1176], video_grid_thw int64 [n, 3] and second_per_grid_ts (float32 [n], or a
        list without return_tensors) of prepared videos, at least one. With pixel_dtype uint8 the pixels are left as
        they are, and pixel_affine_videos, (scale, shift), makes values of them."""
        pixels = torch.cat([clip.patches for clip in clips]) if len(clips) > 1 else clips[0].patches
        grids = [self.grid(clip.frames, clip.size.resized_height, clip.size.resized_width) for clip in clips]
        seconds = [self.temporal_patch_size / clip.fps for clip in clips]
        raw = wants_uint8(pixel_dtype)
        data = {
            "pixel_values_videos": pixels if raw else self.normalize(pixels),
            "video_grid_thw": torch.tensor(grids),
            "second_per_grid_ts": torch.tensor(seconds) if return_tensors else seconds,
            **({"pixel_affine_videos": self.affine} if raw else {}),
        }
        return BatchFeature(data, video_sizes=[clip.size for clip in clips], video_times=[clip.times for clip in clips])

    def preprocess(
        self,
        videos: Any,
        *,
        fps: float | Sequence[float] | None = None,
        num_frames: int | None = None,
        video_metadata: Any = None,
        do_sample_frames: bool | None = None,
        return_metadata: bool = False,
        return_tensors: str | None = "pt",
        input_data_format: str | None = None,
        data_format: str | None = None,
        total_pixels: int | None = None,
        size: Mapping[str, int] | None = None,
        policy: MediaPolicy = DEFAULT_POLICY,
        pixel_dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> BatchFeature:
        """The batch of one video or several, also in nested lists; video_sizes and video_times of the result tell what
        became of each.

        videos: paths, addresses, bytes, Video, lists of frames, arrays or tensors [T, 3, H, W] or [T, H, W, 3] with
        values 0 to 255, or (any of them, metadata). fps: frames a second to read of files, and of frames how many a
        second they are; one number, or one per video. video_metadata: one per video, a mapping or object with fps,
        frames_indices and total_num_frames: how frames were sampled. return_metadata: adds "video_metadata".
        pixel_dtype: see batch(). The other arguments are settings of this processor, for this call.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors={return_tensors!r}: expected 'pt'")
        if data_format not in (None, "channels_first"):
            raise ValueError(f"data_format={data_format!r} is not supported: patches are always channels_first")
        given, _ = flat_videos(videos)
        if not given:
            raise ValueError("videos is empty: give at least one video")
        if fps is not None and num_frames is not None:
            raise ValueError("fps and num_frames exclude each other: give one")
        warn_of_idle_options({"num_frames": num_frames, **settings}, given)
        changed = self.changed(size=size, num_frames=num_frames, **settings)
        rates, about = per_video("fps", fps, len(given)), per_video("video_metadata", video_metadata, len(given))
        first = channels_first(input_data_format)
        clips = []
        for source, rate, metadata in zip(given, rates, about, strict=True):
            check_sampling(source, do_sample_frames)
            options = {"fps": rate, "total_pixels": total_pixels}
            clips.append(changed.prepare(source, options, policy, metadata, first))
        result = changed.batch(clips, return_tensors, pixel_dtype)
        if return_metadata:
            result["video_metadata"] = [clip_metadata(clip) for clip in clips]
        return result

    __call__ = preprocess


def clip_metadata(clip: Clip) -> dict[str, Any]:
    """What return_metadata tells of a video."""
    return {
        "sampled_fps": clip.fps,
        "frames_indices": list(clip.indices),
        "timestamps": list(clip.times),
        "duration": clip.duration,
        "width": clip.size.width,
        "height": clip.size.height,
    }


def is_file(source: Any) -> bool:
    """Whether it is read, and sampled, and not frames."""
    return isinstance(source, str | PathLike | bytes | bytearray)


def warn_of_idle_options(options: Mapping[str, Any], sources: Sequence[Any]) -> None:
    """A warning when there are options for sampling and nothing to sample."""
    idle = [name for name in SAMPLING if options.get(name) is not None]
    if idle and not any(map(is_file, sources)):
        warnings.warn(f"{', '.join(idle)} has no effect on frames that are handed over", stacklevel=3)


def check_sampling(source: Any, do_sample_frames: bool | None) -> None:
    """ValueError when do_sample_frames asks for what is not done with this source."""
    if do_sample_frames is False and is_file(source):
        raise ValueError("do_sample_frames=False is for frames: files are always sampled, give their own rate as fps")
    if do_sample_frames and not is_file(source):
        raise ValueError("do_sample_frames=True is for files: frames are taken as they are, choose them before")


def per_video(name: str, value: Any, count: int) -> list[Any]:
    """One value per video of a single one (numbers, None) or a list of them."""
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        if name == "video_metadata" and value is not None and count != 1:
            raise ValueError(f"{name} is one for {count} videos: give a list with one per video")
        values = [value] * count
    else:
        values = list(value)
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} values for {count} videos: give one number, or one per video")
    for rate in values if name == "fps" else ():
        if rate is not None:
            positive(name, rate)
    return values


def positive(name: str, value: Any) -> None:
    """ValueError unless the value is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r}: expected a number above 0")


def fill(frames: Tensor, multiple: int) -> Tensor:
    """Frames [T, ...] with the last one repeated until T is a multiple."""
    missing = -len(frames) % multiple
    return torch.cat([frames, frames[-1:].expand(missing, *frames.shape[1:])]) if missing else frames


def writable(frames: np.ndarray) -> np.ndarray:
    """torch takes only arrays that may be written to."""
    return frames if frames.flags.writeable and frames.flags.c_contiguous else frames.copy()


def resize_frames(frames: Tensor, height: int, width: int, fast: bool = True) -> Tensor:
    """uint8 [T, H, W, 3] -> uint8 [T, height, width, 3], antialiased bicubic."""
    if frames.shape[1:3] == (height, width):
        return frames
    if not fast:
        return torch.stack([resize_rgb(frame.numpy(), height, width) for frame in frames])
    out = frames.new_empty(len(frames), height, width, 3)
    for i in range(0, len(frames), AT_ONCE):
        some = frames[i : i + AT_ONCE].permute(0, 3, 1, 2)
        out[i : i + AT_ONCE] = F.interpolate(some, (height, width), mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    return out


__all__ = ["Clip", "Qwen2VLVideoProcessor"]
