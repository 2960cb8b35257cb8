"""Conversations -> the pictures and videos that they name, resized: the interface of the package qwen-vl-utils.

In: messages as the documents write them. Out: what the processor takes as images= and videos=.
Sizes, frames and frame rates are those of qwen-vl-utils 0.0.10, the release that the documents describe. Different on
purpose: pictures are turned upright as their EXIF says and every kind of transparency becomes white (as everywhere in
this package), sources must pass a `MediaPolicy`, and an option that is not known is an error and not ignored.
Legend: T frames, h and w sides in pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image

from qwenvl.media.images import load_image
from qwenvl.media.policy import DEFAULT_POLICY, MediaPolicy
from qwenvl.media.resize import FACTOR, smart_resize
from qwenvl.media.sampling import IMAGE_MAX_PIXELS, IMAGE_MIN_PIXELS, VideoOptions
from qwenvl.media.videos import Video, read_video

if TYPE_CHECKING:
    from torch import Tensor

Item: TypeAlias = Mapping[str, Any]
MERGE = 2  # patches of a side that become one token
IMAGE_KEYS = ("image", "image_url", "url", "path")
VIDEO_KEYS = ("video", "video_url", "url", "path")
SIZE_OPTIONS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
VIDEO_OPTIONS = (*SIZE_OPTIONS, "total_pixels", "fps", "sample_fps", "nframes", "min_frames", "max_frames",
                 "video_start", "video_end")  # fmt: skip


def process_vision_info(
    conversations: Sequence[Any],
    return_video_kwargs: bool = False,
    return_video_metadata: bool = False,
    image_patch_size: int = FACTOR // MERGE,
    policy: MediaPolicy = DEFAULT_POLICY,
) -> tuple[Any, ...]:
    """(images, videos) of one conversation or a list of them, in order of appearance; None where there are none.

    images: what `fetch_image` gives; videos: what `fetch_video` gives. return_video_kwargs adds a third part for the
    processor, {"fps": [frames a second really sampled, one for each video]}. return_video_metadata makes each video a
    pair (video, metadata). policy: what may be read. Raises ValueError (MediaError for what cannot be had or read).
    Example: process_vision_info([{"role": "user", "content": "Hello"}]) == (None, None).
    """
    images: list[Image.Image] = []
    videos: list[Any] = []
    rates: list[float] = []
    for item in extract_vision_info(conversations):
        if _is_video(item):
            video, rate = fetch_video(
                item, image_patch_size * MERGE, True, return_video_metadata=return_video_metadata, policy=policy
            )
            videos.append(video)
            rates.append(rate)
        else:
            images.append(fetch_image(item, image_patch_size=image_patch_size, policy=policy))
    found = (images or None, videos or None)
    return (*found, {"fps": rates}) if return_video_kwargs else found


def extract_vision_info(conversations: Sequence[Any]) -> list[dict[str, Any]]:
    """The items of one conversation or a list of them that are pictures or videos, in order, as they were given.

    An item is known by its "type" or, without one, by its key: image, image_url, video or video_url.
    """
    given = [conversations] if isinstance(conversations, Mapping) else list(conversations)
    talks = [given] if given and isinstance(given[0], Mapping) else given
    found = []
    for talk in talks:
        for message in talk:
            if not isinstance(message, Mapping):
                raise ValueError(f"a message is {type(message).__name__}: expected a dict with role and content")
            content = message.get("content")
            for item in content if isinstance(content, list | tuple) else ():
                if isinstance(item, Mapping) and _is_media(item):
                    found.append(item)
    return found  # type: ignore[return-value]  # the caller's own dicts


def fetch_image(
    ele: Item, size_factor: int = FACTOR, *, image_patch_size: int | None = None, policy: MediaPolicy = DEFAULT_POLICY
) -> Image.Image:
    """The item's picture in RGB, upright, on white, at the size the model sees (Pillow's bicubic kernel).

    ele: the picture under image, image_url, url or path (whatever `load_image` takes; {"url": ...} too), with
    min_pixels and max_pixels (default 4 and 16384 tokens), or resized_height and resized_width. Sides become multiples
    of size_factor, which is image_patch_size x 2. Raises ValueError.
    Example: fetch_image({"image": "photo.jpg", "resized_height": 280, "resized_width": 420}).size == (420, 280).
    """
    factor = _factor(size_factor, image_patch_size)
    _known(ele, (*IMAGE_KEYS, *SIZE_OPTIONS), "picture")
    image = load_image(_source(ele, IMAGE_KEYS, "picture"), policy)
    height, width = _size(image.height, image.width, ele, factor)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def fetch_video(
    ele: Item,
    image_factor: int = FACTOR,
    return_video_sample_fps: bool = False,
    return_video_metadata: bool = False,
    *,
    image_patch_size: int | None = None,
    policy: MediaPolicy = DEFAULT_POLICY,
) -> Any:
    """The item's video, sampled and resized: a float tensor [T, 3, h, w] with values 0 to 255, T even.

    ele: the video under video, video_url, url or path: a path, an address or bytes; with fps or nframes, min_frames,
    max_frames, video_start, video_end, min_pixels, max_pixels, total_pixels, resized_height and resized_width. The
    tensor's attribute `frame_times` holds the seconds of every frame as the file says them. A list of frames (whatever
    `load_image` takes) gives a list of PIL pictures instead, each sized like a picture of its own and an odd number
    filled up with the last; its fps (or sample_fps) says how far apart they are, 2 a second unless given.

    return_video_sample_fps: (video, fps) with T / frames in the range x frames a second of the file. With
    return_video_metadata the video is a pair (video, {"fps": of the file, "frames_indices": [...], "total_num_frames":
    frames in the range}). Raises ValueError.
    """
    if _factor(image_factor, image_patch_size) != FACTOR:
        raise ValueError(f"image_factor={image_factor} of a video: expected {FACTOR} (patches of 14)")
    _known(ele, (*VIDEO_KEYS, *VIDEO_OPTIONS), "video")
    source = _source(ele, VIDEO_KEYS, "video")
    video: Tensor | list[Image.Image]
    if isinstance(source, list | tuple):
        video, rate, metadata = _listed(source, ele, policy)
    else:
        _sides(ele)
        options = {name: ele[name] for name in VIDEO_OPTIONS if ele.get(name) is not None}
        read = read_video(source, VideoOptions(**options), policy)
        video, rate, metadata = _tensor(read), read.fps, _metadata(read)
    result: Any = (video, metadata) if return_video_metadata else video
    return (result, rate) if return_video_sample_fps else result


def _tensor(video: Video) -> Tensor:
    """The frames as the processor takes them, with their times beside them."""
    import torch

    frames = torch.from_numpy(video.frames).permute(0, 3, 1, 2)
    tensor = frames.to(torch.float32, memory_format=torch.contiguous_format)
    tensor.frame_times = video.times  # type: ignore[attr-defined]  # torch has no place of its own for it
    return tensor


def _metadata(video: Video) -> dict[str, Any]:
    """As the package tells it: total_num_frames is of the range that was sampled, whose ends are always taken."""
    total = video.indices[-1] - video.indices[0] + 1
    fps = video.fps * total / len(video.indices)
    return {"fps": fps, "frames_indices": list(video.indices), "total_num_frames": total}


def _listed(frames: Sequence[Any], ele: Item, policy: MediaPolicy) -> tuple[list[Image.Image], float, dict[str, Any]]:
    """(frames as pictures, frames a second, metadata) of a video given as a list of frames."""
    if not frames:
        raise ValueError("a video is an empty list: expected its frames")
    for name in VIDEO_OPTIONS:
        if name not in (*SIZE_OPTIONS, "fps", "sample_fps") and ele.get(name) is not None:
            warnings.warn(f"{name} has no effect on a video that is given as a list of frames", stacklevel=3)
    sizes = {name: ele[name] for name in SIZE_OPTIONS if ele.get(name) is not None}
    pictures = [fetch_image({"image": frame, **sizes}, policy=policy) for frame in frames]
    pictures += pictures[-1:] * (len(pictures) % 2)
    rates = [ele[name] for name in ("fps", "sample_fps") if ele.get(name) is not None]
    if len(set(rates)) > 1:
        raise ValueError(f"a list of frames has fps={rates[0]} and sample_fps={rates[1]}: give one of them")
    rate = float(rates[0]) if rates else 2.0
    if not rate > 0:
        raise ValueError(f"a list of frames has fps={rate}: expected a number above 0")
    number = len(pictures)
    return pictures, rate, {"fps": rate, "frames_indices": list(range(number)), "total_num_frames": number}


def _size(height: int, width: int, ele: Item, factor: int) -> tuple[int, int]:
    """(h, w) of a picture: the size asked for, else its own, within the limits."""
    low, high = IMAGE_MIN_PIXELS // FACTOR**2 * factor**2, IMAGE_MAX_PIXELS // FACTOR**2 * factor**2
    asked = _sides(ele)
    if asked is not None:
        height, width = asked
    else:
        high = high if ele.get("max_pixels") is None else ele["max_pixels"]
        low = (low if low <= high else factor**2) if ele.get("min_pixels") is None else ele["min_pixels"]
    smart = smart_resize(height, width, factor, low, high)  # checks as well
    # A side that rounds to nothing counts as one token here before the limits are looked at.
    h, w = (max(factor, round(side / factor) * factor) for side in (height, width))
    return (h, w) if low <= h * w <= high else smart


def _sides(ele: Item) -> tuple[int, int] | None:
    """(resized_height, resized_width), if given."""
    height, width = ele.get("resized_height"), ele.get("resized_width")
    for name in SIZE_OPTIONS:
        value = ele.get(name)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name}={value!r}: expected a number of pixels, 1 or more")
    if (height is None) != (width is None):
        raise ValueError("resized_height and resized_width belong together, one of them is missing")
    if height is None or width is None:
        return None
    for name in ("min_pixels", "max_pixels"):
        if ele.get(name) is not None:
            warnings.warn(f"{name} has no effect beside resized_height and resized_width", stacklevel=4)
    return height, width


def _factor(factor: int, patch: int | None) -> int:
    """The number that sides are multiples of."""
    if patch is not None:
        factor = patch * MERGE
    if factor < 1 or factor == FACTOR // MERGE:
        raise ValueError(
            f"size_factor={factor}: expected patch size x {MERGE}, {FACTOR} for the models of this package"
        )
    return factor


def _is_media(item: Item) -> bool:
    named = any(item.get(key) is not None for key in ("image", "image_url", "video", "video_url"))
    return named or item.get("type") in ("image", "image_url", "video", "video_url")


def _is_video(item: Item) -> bool:
    if item.get("type") in ("video", "video_url"):
        return True
    return item.get("type") not in ("image", "image_url") and not any(
        item.get(key) is not None for key in ("image", "image_url")
    )


def _source(ele: Item, keys: tuple[str, ...], kind: str) -> Any:
    """What stands under the one key that names the media."""
    given = [key for key in keys if ele.get(key) is not None]
    if len(given) != 1:
        says = f"names its {kind} twice ({', '.join(given)})" if given else f"names no {kind}"
        raise ValueError(f"an item with the keys {', '.join(ele)} {says}: expected one of {', '.join(keys)}")
    source = ele[given[0]]
    if isinstance(source, Mapping):
        _known({k: v for k, v in source.items() if (k, v) != ("detail", "auto")}, ("url",), kind)
        source = source.get("url")
    return source


def _known(ele: Item, keys: tuple[str, ...], kind: str) -> None:
    unknown = [key for key, value in ele.items() if key not in ("type", *keys) and value is not None]
    if unknown:
        raise ValueError(f"the item of a {kind} has unknown fields {', '.join(unknown)}: expected {', '.join(keys)}")
