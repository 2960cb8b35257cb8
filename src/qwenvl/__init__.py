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
    "Agent": "tasks.agents",
    "Answer": "tasks",
    "Assistant": "tasks",
    "AutoConfig": "checkpoint",
    "AutoImageProcessor": "processing",
    "AutoModel": "checkpoint",
    "AutoModelForCausalLM": "checkpoint",
    "AutoModelForImageTextToText": "checkpoint",
    "AutoModelForVision2Seq": "checkpoint",
    "AutoProcessor": "processing",
    "AutoTokenizer": "processing",
    "BaseModelOutputWithPast": "model.outputs",
    "BatchFeature": "processing",
    "BitsAndBytesConfig": "quantization",
    "Box": "tasks",
    "Completion": "types",
    "Document": "tasks.documents",
    "Engine": "engine",
    "Event": "tasks",
    "Extraction": "tasks",
    "GenerateBeamDecoderOnlyOutput": "engine",
    "GenerateDecoderOnlyOutput": "engine",
    "GenerationConfig": "checkpoint",
    "Grammar": "types",
    "ImageSize": "types",
    "ImageTextToTextPipeline": "tasks.pipeline",
    "LoopRule": "types",
    "MediaError": "media",
    "MediaPolicy": "media",
    "Point": "tasks",
    "Qwen2VLCausalLMOutputWithPast": "model.outputs",
    "Qwen2VLConfig": "config",
    "Qwen2VLForConditionalGeneration": "model.qwen_vl",
    "Qwen2VLImageProcessor": "processing",
    "Qwen2VLModel": "model.bare",
    "Qwen2VLModelOutputWithPast": "model.outputs",
    "Qwen2VLProcessor": "processing",
    "Qwen2VLTextConfig": "config",
    "Qwen2VLTextModel": "model.bare",
    "Qwen2VLVideoProcessor": "processing",
    "Qwen2VLVisionConfig": "config",
    "Qwen2_5_VLCausalLMOutputWithPast": "model.outputs",
    "Qwen2_5_VLConfig": "config",
    "Qwen2_5_VLForConditionalGeneration": "model.qwen_vl",
    "Qwen2_5_VLModel": "model.bare",
    "Qwen2_5_VLModelOutputWithPast": "model.outputs",
    "Qwen2_5_VLProcessor": "processing",
    "Qwen2_5_VLTextConfig": "config",
    "Qwen2_5_VLTextModel": "model.bare",
    "Qwen2_5_VLVisionConfig": "config",
    "Request": "engine",
    "SamplingParams": "types",
    "TextIteratorStreamer": "engine",
    "TextStreamer": "engine",
    "TorchAoConfig": "quantization",
    "Video": "media",
    "VideoOptions": "media",
    "classify": "tasks",
    "draw_boxes": "tasks",
    "events": "tasks.events",
    "extract": "tasks",
    "extract_vision_info": "media",
    "fetch_image": "media",
    "fetch_video": "media",
    "load_image": "media",
    "locate": "tasks",
    "parse": "tasks.parsing",
    "parse_boxes": "tasks",
    "parse_calls": "tasks",
    "parse_events": "tasks",
    "pipeline": "tasks.pipeline",
    "places_of": "tasks",
    "process_vision_info": "media",
    "read_answer": "tasks.documents",
    "read_text": "tasks",
    "read_video": "media",
    "smart_nframes": "media",
    "smart_resize": "media",
    "spot_text": "tasks",
    "to_coco": "tasks",
    "to_detections": "tasks",
    "to_yolo": "tasks",
}

__all__ = [
    "Agent",
    "Answer",
    "Assistant",
    "AutoConfig",
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForVision2Seq",
    "AutoProcessor",
    "AutoTokenizer",
    "BaseModelOutputWithPast",
    "BatchFeature",
    "BitsAndBytesConfig",
    "Box",
    "Completion",
    "Document",
    "Engine",
    "Event",
    "Extraction",
    "GenerateBeamDecoderOnlyOutput",
    "GenerateDecoderOnlyOutput",
    "GenerationConfig",
    "Grammar",
    "ImageSize",
    "ImageTextToTextPipeline",
    "LoopRule",
    "MediaError",
    "MediaPolicy",
    "Point",
    "Qwen2VLCausalLMOutputWithPast",
    "Qwen2VLConfig",
    "Qwen2VLForConditionalGeneration",
    "Qwen2VLImageProcessor",
    "Qwen2VLModel",
    "Qwen2VLModelOutputWithPast",
    "Qwen2VLProcessor",
    "Qwen2VLTextConfig",
    "Qwen2VLTextModel",
    "Qwen2VLVideoProcessor",
    "Qwen2VLVisionConfig",
    "Qwen2_5_VLCausalLMOutputWithPast",
    "Qwen2_5_VLConfig",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2_5_VLModel",
    "Qwen2_5_VLModelOutputWithPast",
    "Qwen2_5_VLProcessor",
    "Qwen2_5_VLTextConfig",
    "Qwen2_5_VLTextModel",
    "Qwen2_5_VLVisionConfig",
    "Request",
    "SamplingParams",
    "TextIteratorStreamer",
    "TextStreamer",
    "TorchAoConfig",
    "Video",
    "VideoOptions",
    "__version__",
    "classify",
    "draw_boxes",
    "events",
    "extract",
    "extract_vision_info",
    "fetch_image",
    "fetch_video",
    "load_image",
    "locate",
    "parse",
    "parse_boxes",
    "parse_calls",
    "parse_events",
    "pipeline",
    "places_of",
    "process_vision_info",
    "read_answer",
    "read_text",
    "read_video",
    "smart_nframes",
    "smart_resize",
    "spot_text",
    "to_coco",
    "to_detections",
    "to_yolo",
]

if TYPE_CHECKING:
    from qwenvl.checkpoint import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForVision2Seq,
        GenerationConfig,
    )
    from qwenvl.config import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLTextConfig,
        Qwen2_5_VLVisionConfig,
        Qwen2VLConfig,
        Qwen2VLTextConfig,
        Qwen2VLVisionConfig,
    )
    from qwenvl.engine import (
        Engine,
        GenerateBeamDecoderOnlyOutput,
        GenerateDecoderOnlyOutput,
        Request,
        TextIteratorStreamer,
        TextStreamer,
    )
    from qwenvl.media import (
        MediaError,
        MediaPolicy,
        Video,
        VideoOptions,
        extract_vision_info,
        fetch_image,
        fetch_video,
        load_image,
        process_vision_info,
        read_video,
        smart_nframes,
        smart_resize,
    )
    from qwenvl.model.bare import Qwen2_5_VLModel, Qwen2_5_VLTextModel, Qwen2VLModel, Qwen2VLTextModel
    from qwenvl.model.outputs import (
        BaseModelOutputWithPast,
        Qwen2_5_VLCausalLMOutputWithPast,
        Qwen2_5_VLModelOutputWithPast,
        Qwen2VLCausalLMOutputWithPast,
        Qwen2VLModelOutputWithPast,
    )
    from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
    from qwenvl.processing import (
        AutoImageProcessor,
        AutoProcessor,
        AutoTokenizer,
        BatchFeature,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )
    from qwenvl.quantization import BitsAndBytesConfig, TorchAoConfig
    from qwenvl.tasks import (
        Answer,
        Assistant,
        Box,
        Event,
        Extraction,
        Point,
        classify,
        draw_boxes,
        extract,
        locate,
        parse_boxes,
        parse_calls,
        parse_events,
        places_of,
        read_text,
        spot_text,
        to_coco,
        to_detections,
        to_yolo,
    )
    from qwenvl.tasks.agents import Agent
    from qwenvl.tasks.documents import Document, read_answer
    from qwenvl.tasks.events import events
    from qwenvl.tasks.parsing import parse
    from qwenvl.tasks.pipeline import ImageTextToTextPipeline, pipeline
    from qwenvl.types import Completion, Grammar, ImageSize, LoopRule, SamplingParams


def __getattr__(name: str) -> Any:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module 'qwenvl' has no attribute {name!r}; it has {', '.join(_ROOM_OF)}")
    value = getattr(import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_ROOM_OF))
