"""Media: pictures and videos from anywhere in, upright RGB out.

In: a path, file://, http(s):// or data: address, bytes, a PIL picture, an array, a list of frames; conversations.
Out: PIL pictures in RGB, upright, on white; sampled RGB frames with their real times; uint8 pixels at the size the
model sees. What may be read is a `MediaPolicy`.
Does not know: tokens, prompts, models. Only `pixels` imports torch when it is imported.
"""

from qwenvl.media.images import load_image
from qwenvl.media.policy import MediaError, MediaPolicy
from qwenvl.media.resize import smart_resize
from qwenvl.media.sampling import VideoOptions, smart_nframes
from qwenvl.media.sources import open_media
from qwenvl.media.videos import Video, read_video
from qwenvl.media.vision_info import extract_vision_info, fetch_image, fetch_video, process_vision_info

__all__ = [
    "MediaError",
    "MediaPolicy",
    "Video",
    "VideoOptions",
    "extract_vision_info",
    "fetch_image",
    "fetch_video",
    "load_image",
    "open_media",
    "process_vision_info",
    "read_video",
    "smart_nframes",
    "smart_resize",
]
