"""Keywords of a processor's call -> what concerns text, pictures and videos; every name is known or refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from qwenvl.media.policy import MediaPolicy

if TYPE_CHECKING:
    import torch

TEXT = ("padding", "padding_side", "return_tensors", "max_length", "pad_to_multiple_of")
PIXELS = ("min_pixels", "max_pixels", "size", "do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize",
          "image_mean", "image_std", "patch_size", "temporal_patch_size", "merge_size", "do_convert_rgb", "fast",
          "input_data_format")  # fmt: skip
SAMPLING = ("fps", "num_frames", "min_frames", "max_frames", "total_pixels", "do_sample_frames", "video_metadata",
            "return_metadata")  # fmt: skip
SHARED = ("policy", "return_mm_token_type_ids", "pixel_dtype")
GROUPS = {"text_kwargs": "text", "images_kwargs": "images", "videos_kwargs": "videos", "processor_kwargs": ""}
ALIASES = {"video_fps": "fps", "nframes": "num_frames", "use_fast": "fast"}
NEUTRAL: dict[str, tuple[Any, ...]] = {  # what others know and we have one answer to
    "truncation": (False, "do_not_truncate"),
    "add_special_tokens": (True, False),  # the template writes them all
    "return_attention_mask": (True,),
    "return_token_type_ids": (False,),
    "return_assistant_tokens_mask": (False,),
    "load_audio_from_video": (False,),
    "sanitize_control_tokens": (True,),
    "data_format": ("channels_first",),
    "documents": ((), []),
    "device": ("cpu",),
}
BACKENDS = ("decord", "torchvision", "torchcodec", "opencv")
OWN_BACKENDS = ("pyav", "av")


class MediaOptions(TypedDict, total=False):
    """What a call of a processor may say about text, pictures and videos; None is as good as nothing.

    padding (True or "longest", "max_length", False), padding_side ("left", "right"), return_tensors ("pt" or None),
    max_length, pad_to_multiple_of: of the rows of ids.
    min_pixels, max_pixels, size, do_resize, ...: settings of the image and the video processor, for this call; in
    images_kwargs or videos_kwargs for one of the two.
    fps (also video_fps; one number, or one per video), num_frames (also nframes), min_frames, max_frames: how files are
    sampled; fps tells of frames that are handed over how many a second they are. total_pixels: of all frames of a
    video. video_metadata, do_sample_frames, return_metadata: see Qwen2VLVideoProcessor.preprocess.
    policy: what may be read. return_mm_token_type_ids: adds mm_token_type_ids (1 picture, 2 video, 0 the rest).
    pixel_dtype: torch.float32, or torch.uint8 for the pixels that the engine takes (see the processors' batch()).
    text_kwargs, images_kwargs, videos_kwargs, processor_kwargs: dicts of the same names, as newer programs give them.
    video_load_backend: pyav; another name warns, for there is one reader. truncation and its like: their neutral value.
    """

    padding: bool | str | None
    padding_side: str | None
    return_tensors: str | None
    max_length: int | None
    pad_to_multiple_of: int | None
    truncation: bool | str | None
    add_special_tokens: bool | None
    min_pixels: int | None
    max_pixels: int | None
    size: Mapping[str, int] | None
    do_resize: bool | None
    resample: int | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: Sequence[float] | None
    image_std: Sequence[float] | None
    patch_size: int | None
    temporal_patch_size: int | None
    merge_size: int | None
    do_convert_rgb: bool | None
    fast: bool | None
    use_fast: bool | None
    input_data_format: str | None
    data_format: str | None
    device: str | None
    fps: float | Sequence[float] | None
    video_fps: float | Sequence[float] | None
    num_frames: int | None
    nframes: int | None
    min_frames: int | None
    max_frames: int | None
    total_pixels: int | None
    do_sample_frames: bool | None
    video_metadata: Any
    return_metadata: bool | None
    video_load_backend: str | None
    policy: MediaPolicy | None
    return_mm_token_type_ids: bool | None
    pixel_dtype: torch.dtype | None
    return_attention_mask: bool | None
    return_token_type_ids: bool | None
    return_assistant_tokens_mask: bool | None
    load_audio_from_video: bool | None
    sanitize_control_tokens: bool | None
    documents: Sequence[Any] | None
    text_kwargs: Mapping[str, Any] | None
    images_kwargs: Mapping[str, Any] | None
    videos_kwargs: Mapping[str, Any] | None
    processor_kwargs: Mapping[str, Any] | None


@dataclass
class CallOptions:
    """The options that were given, sorted; a name appears only where it concerns something."""

    text: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    videos: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.text or self.images or self.videos or self.shared)

    def first(self) -> str:
        """name=value of some option that was given."""
        given = {**self.videos, **self.images, **self.shared, **self.text}
        return "{}={!r}".format(*next(iter(given.items())))


def read_options(given: Mapping[str, Any]) -> CallOptions:
    """The keywords of a call, sorted. TypeError for a keyword nobody knows, ValueError for a name in one of the dicts,
    for one given twice, and for a value we cannot honour; all name it."""
    found = CallOptions()
    for name, value in given.items():
        if name in GROUPS:
            _read_group(name, value, found)
        elif not _take(name, value, found, ("text", "images", "videos", "shared"), ""):
            raise TypeError(f"unknown argument {name!r}: expected some of {', '.join(MediaOptions.__annotations__)}")
    if "fps" in found.videos and "num_frames" in found.videos:
        raise ValueError("fps and num_frames exclude each other: give one")
    return found


def _read_group(group: str, values: Any, found: CallOptions) -> None:
    if values is None:
        return
    if not isinstance(values, Mapping):
        raise ValueError(f"{group} is {type(values).__name__}: expected a dict of options")
    sections = (GROUPS[group],) if GROUPS[group] else ("text", "images", "videos", "shared")
    for name, value in values.items():
        if name in GROUPS and not GROUPS[group]:
            _read_group(name, value, found)
        elif not isinstance(name, str) or not _take(name, value, found, sections, group):
            raise ValueError(f"{group} has {name!r}, which is no option there")


def _take(name: str, value: Any, found: CallOptions, sections: tuple[str, ...], group: str) -> bool:
    """Note an option in the sections it concerns; False when it concerns none."""
    if name == "video_load_backend":
        if value is not None:
            _check_backend(value)
        return "videos" in sections
    if name in NEUTRAL:
        if value is not None and not any(type(value) is type(x) and value == x for x in NEUTRAL[name]):
            raise ValueError(f"{name}={value!r} is not supported: expected {NEUTRAL[name][0]!r}, or leave it out")
        return True
    name = ALIASES.get(name, name)
    where = {"text": TEXT, "images": PIXELS, "videos": (*PIXELS, *SAMPLING), "shared": SHARED}
    concerned = [section for section in sections if name in where[section]]
    if value is None:
        return bool(concerned)
    for section in concerned:
        options = getattr(found, section)
        if name in options and not (options[name] is value or _same(options[name], value)):
            raise ValueError(f"{name} is given twice{' (once in ' + group + ')' if group else ''}: give it once")
        options[name] = value
    return bool(concerned)


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, bool | int | float | str | list | dict) and type(a) is type(b) and bool(a == b)


def _check_backend(value: Any) -> None:
    if value in BACKENDS:
        warnings.warn(f"video_load_backend={value!r} has no effect: videos are read by PyAV", stacklevel=5)
    elif value not in OWN_BACKENDS:
        raise ValueError(f"video_load_backend={value!r}: expected one of {', '.join((*OWN_BACKENDS, *BACKENDS))}")
