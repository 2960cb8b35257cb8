"""`qwenvl ask PICTURE|VIDEO... "question"`: the answer, streamed to stdout."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from qwenvl.cli.inputs import (
    DeviceOption,
    DtypeOption,
    EndOption,
    FpsOption,
    JsonOption,
    MaxFramesOption,
    MaxPixelsOption,
    MemoryOption,
    MinPixelsOption,
    MinPOption,
    ModelOption,
    QuantizeOption,
    RepetitionPenaltyOption,
    SeedOption,
    StartOption,
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    check_load,
    check_memory,
    find_model,
    open_media,
    split_question,
    start_assistant,
)


def ask(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar='[PICTURE|VIDEO]... "QUESTION"',
            help="Files, http(s)://, file:// or data: addresses, then the question; - reads it from stdin.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = "demo",
    system: SystemOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many tokens.")] = 512,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionPenaltyOption = 1.0,
    seed: SeedOption = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    fps: FpsOption = None,
    max_frames: MaxFramesOption = None,
    start: StartOption = None,
    end: EndOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question about pictures and videos, or about none."""
    from qwenvl.media.sampling import VideoOptions
    from qwenvl.types import SamplingParams

    sources, question = split_question(arguments or [], not sys.stdin.isatty())
    sampling = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    check_load(dtype, device, quantize)
    check_memory(memory)
    found = find_model(model)
    options = VideoOptions(fps=fps, max_frames=max_frames, video_start=start, video_end=end)
    media = open_media(sources, min_pixels, max_pixels, options)

    assistant = start_assistant(found, dtype, device, min_pixels, max_pixels, quantize=quantize, memory=memory)
    stream = assistant.stream(media, question, sampling, system=system)
    for piece in stream:
        if not as_json:
            print(piece, end="", flush=True)
    if as_json:
        print(json.dumps({"model": model, "media": sources, **stream.answer.to_dict()}, ensure_ascii=False))
    else:
        print()
