"""Processing: conversations and pictures in, model inputs out; ids in, text out.

In: messages as the documents write them, or rendered prompts with pictures.
Out: BatchFeature (input_ids, attention_mask, pixel_values, image_grid_thw), sizes of every picture, decoded text.
Does not know: models, engine, HTTP.
"""

from qwenvl.processing.auto import AutoProcessor
from qwenvl.processing.batch_feature import BatchFeature
from qwenvl.processing.chat_template import ChatTemplate
from qwenvl.processing.image_processor import Qwen2VLImageProcessor
from qwenvl.processing.processor import Qwen2_5_VLProcessor, Qwen2VLProcessor
from qwenvl.processing.tokenizer import Tokenizer

__all__ = [
    "AutoProcessor",
    "BatchFeature",
    "ChatTemplate",
    "Qwen2VLImageProcessor",
    "Qwen2VLProcessor",
    "Qwen2_5_VLProcessor",
    "Tokenizer",
]
