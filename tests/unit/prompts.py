"""Messages, pictures and prompt texts that tests of processing share."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

CONTROL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>",
    "<|box_start|>",
)  # fmt: skip
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
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
