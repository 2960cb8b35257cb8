"""The engine: requests in, tokens out, streamed.

In: Request (prompt ids, M-RoPE positions computed once, picture patches, SamplingParams). Out: StreamEvent
and Completion. Does not know: HTTP, messages, tasks, files; of the tokenizer only `decode`.

    engine.step():  scheduler -> chunks -> runner (vision, packed batch, model.run) -> sampler -> text ->
    events

The documented `model.generate(**inputs)` is this engine with one request a row (generate.py): there is no
second decoding loop; beam search (beam.py) is a way to choose, over the same runner and slots. One engine belongs to
one thread.
"""

from .engine import Engine
from .events import EngineStats, StreamEvent
from .generate import generate
from .outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput,
    GenerateOutput,
    compute_transition_scores,
)
from .request import Hooks, Request, VisionItem
from .streamers import TextIteratorStreamer, TextStreamer

__all__ = [
    "Engine",
    "EngineStats",
    "GenerateBeamDecoderOnlyOutput",
    "GenerateDecoderOnlyOutput",
    "GenerateOutput",
    "Hooks",
    "Request",
    "StreamEvent",
    "TextIteratorStreamer",
    "TextStreamer",
    "VisionItem",
    "compute_transition_scores",
    "generate",
]
