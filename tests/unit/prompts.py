"""Messages, pictures and prompt texts that tests of processing share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONTROL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>",
    "<|box_start|>",
)  # fmt: skip
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
READY: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
OFFICIAL = (  # the behaviour of the published text without tools, in the shortest form
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    + SYSTEM.replace("\n", "{{ '\\n' }}")
    + "{% endif %}"
    "<|im_start|>{{ m.role }}{{ '\\n' }}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}" + PICTURE + "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)  # fmt: skip


def user(*items: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(items)}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def picture(width: int = 56, height: int = 84) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def frames(count: int, height: int, width: int) -> np.ndarray:
    """uint8 [T, H, W, 3], every frame another."""
    return np.random.default_rng([count, height, width]).integers(0, 256, (count, height, width, 3), np.uint8)


def clip_file(path: Path, seconds: float = 2, rate: int = 10, size: tuple[int, int] = (64, 48)) -> Path:
    """A video file; size: (width, height). Its grey level tells the frame: 5 a frame."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(int(seconds * rate)):
            pixels = np.full((size[1], size[0], 3), i * 5 % 256, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path
