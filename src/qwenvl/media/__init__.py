"""Media: pictures from anywhere in, upright RGB out.

In: a path, file://, http(s):// or data: address, bytes, a PIL picture, an array.
Out: PIL pictures in RGB, upright, on white; sizes, and uint8 pixels at the size the model sees.
Does not know: tokens, prompts, models. Only `pixels` imports torch.
"""

from qwenvl.media.images import load_image
from qwenvl.media.resize import smart_resize
from qwenvl.media.sources import MediaError, MediaPolicy

__all__ = ["MediaError", "MediaPolicy", "load_image", "smart_resize"]
