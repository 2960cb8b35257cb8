"""qwenvl: Qwen2.5-VL and Qwen2-VL on plain PyTorch.

    from qwenvl import Assistant
    print(Assistant("demo").ask(["picture.png"], "What is in the picture?").text)

The documented classes are at this level; each is imported when it is first asked for, so that `import qwenvl`
costs milliseconds and no torch. docs/structures.md maps the rooms behind them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_ROOM_OF = {
    "Assistant": "tasks",
    "AutoProcessor": "processing",
    "BatchFeature": "processing",
    "Box": "tasks",
    "Completion": "types",
    "Engine": "engine",
    "ImageSize": "types",
    "Point": "tasks",
    "Qwen2VLConfig": "config",
    "Qwen2VLForConditionalGeneration": "model.qwen_vl",
    "Qwen2VLImageProcessor": "processing",
    "Qwen2VLProcessor": "processing",
    "Qwen2VLTextConfig": "config",
    "Qwen2VLVisionConfig": "config",
    "Qwen2_5_VLConfig": "config",
    "Qwen2_5_VLForConditionalGeneration": "model.qwen_vl",
    "Qwen2_5_VLProcessor": "processing",
    "Qwen2_5_VLTextConfig": "config",
    "Qwen2_5_VLVisionConfig": "config",
    "Request": "engine",
    "SamplingParams": "types",
    "TextIteratorStreamer": "engine",
    "draw_boxes": "tasks",
    "load_image": "media",
    "locate": "tasks",
    "parse_boxes": "tasks",
    "smart_resize": "media",
}

__all__ = [
    "Assistant",
    "AutoProcessor",
    "BatchFeature",
    "Box",
    "Completion",
    "Engine",
    "ImageSize",
    "Point",
    "Qwen2VLConfig",
    "Qwen2VLForConditionalGeneration",
    "Qwen2VLImageProcessor",
    "Qwen2VLProcessor",
    "Qwen2VLTextConfig",
    "Qwen2VLVisionConfig",
    "Qwen2_5_VLConfig",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2_5_VLProcessor",
    "Qwen2_5_VLTextConfig",
    "Qwen2_5_VLVisionConfig",
    "Request",
    "SamplingParams",
    "TextIteratorStreamer",
    "__version__",
    "draw_boxes",
    "load_image",
    "locate",
    "parse_boxes",
    "smart_resize",
]

if TYPE_CHECKING:
    from qwenvl.config import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLTextConfig,
        Qwen2_5_VLVisionConfig,
        Qwen2VLConfig,
        Qwen2VLTextConfig,
        Qwen2VLVisionConfig,
    )
    from qwenvl.engine import Engine, Request, TextIteratorStreamer
    from qwenvl.media import load_image, smart_resize
    from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
    from qwenvl.processing import (
        AutoProcessor,
        BatchFeature,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
    )
    from qwenvl.tasks import Assistant, Box, Point, draw_boxes, locate, parse_boxes
    from qwenvl.types import Completion, ImageSize, SamplingParams


def __getattr__(name: str) -> Any:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module 'qwenvl' has no attribute {name!r}; it has {', '.join(_ROOM_OF)}")
    value = getattr(import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_ROOM_OF))
