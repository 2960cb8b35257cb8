"""Processing: conversations, pictures and videos in, model inputs out; ids in, text out.

In: messages as the documents write them, or rendered prompts with pictures and videos.
Out: BatchFeature (input_ids, attention_mask, pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw,
second_per_grid_ts), sizes of every picture and video and times of frames, decoded text.
Does not know: models, engine, HTTP.
"""

from qwenvl.processing.auto import AutoImageProcessor, AutoProcessor, AutoTokenizer, AutoVideoProcessor
from qwenvl.processing.batch_feature import BatchFeature
from qwenvl.processing.chat_template import ChatTemplate
from qwenvl.processing.image_processor import Qwen2VLImageProcessor
from qwenvl.processing.processor import Qwen2_5_VLProcessor, Qwen2VLProcessor
from qwenvl.processing.tokenizer import Tokenizer
from qwenvl.processing.video_processor import Qwen2VLVideoProcessor

__all__ = [
    "AutoImageProcessor",
    "AutoProcessor",
    "AutoTokenizer",
    "AutoVideoProcessor",
    "BatchFeature",
    "ChatTemplate",
    "Qwen2VLImageProcessor",
    "Qwen2VLProcessor",
    "Qwen2VLVideoProcessor",
    "Qwen2_5_VLProcessor",
    "Tokenizer",
]
