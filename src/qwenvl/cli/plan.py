"""`qwenvl plan MODEL FILE...`: what a question will need on this machine. No weights are loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from qwenvl.cli.inputs import (
    SMALL,
    DtypeOption,
    JsonOption,
    MaxPixelsOption,
    MinPixelsOption,
    QuantizeOption,
    check_limits,
    check_load,
    find_model,
)

if TYPE_CHECKING:
    from qwenvl.planning import Plan


def plan(
    model: Annotated[str, typer.Argument(help="demo, a checkpoint's folder, or its name on the hub.")],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[PICTURE|VIDEO]...", help="What the question is about.")
    ] = None,
    question: Annotated[str, typer.Option(help="The question; its tokens count.")] = "Describe the picture.",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of the answer.")] = 512,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    fps: Annotated[float | None, typer.Option(help="Frames taken from a second of video; 2 when not given.")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Most frames taken from a video; 768 when not given.")] = None,
    start: Annotated[float | None, typer.Option(help="Begin of the part of a video to look at, seconds.")] = None,
    end: Annotated[float | None, typer.Option(help="End of the part of a video to look at, seconds.")] = None,
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = None,
    memory: Annotated[
        str | None, typer.Option(help="What may be used, such as 4GB; what the machine has free when not given.")
    ] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure the machine's speed anew.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show tokens, memory and seconds of a question before anything is loaded, and what to change if it does not fit.

    Sizes come from headers. Seconds are for the CPU, of a model that is loaded; the first time, about two seconds go
    into measuring this machine.
    """
    from qwenvl.machine import parse_bytes

    check_load(dtype, "cpu", quantize)
    check_limits(min_pixels, max_pixels)
    if memory is not None:
        parse_bytes(memory, "--memory")
    found = find_model(model)

    import torch

    from qwenvl.planning import plan as make_plan
    from qwenvl.planning.media import Limits

    if found.parameters < SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # as such a model runs
    limits = Limits(min_pixels, max_pixels, fps, max_frames, start, end)
    made = make_plan(
        found.folder, files or [], question, max_new_tokens=max_new_tokens, limits=limits, dtype=dtype,
        quantize=quantize, memory=memory, calibrate=calibrate,
    )  # fmt: skip
    if as_json:
        print(json.dumps(made.to_dict(), ensure_ascii=False))
        return
    for line in lines(made):
        print(line)


def lines(made: Plan) -> Iterator[str]:
    """The plan as a table for people."""
    from qwenvl.machine import shown

    for item in made.items:
        what = f"{item.frames} frames of " if item.kind == "video" else ""
        change = f"{what}{item.size[0]} x {item.size[1]} -> {item.resized[0]} x {item.resized[1]}"
        yield f"{os.path.basename(item.name):<24}{change:<44}{item.tokens:>9,} tokens"
    total = f"{made.prompt_tokens:,} of {made.context:,} tokens"
    yield f"{'prompt':<24}{f'text {made.text_tokens:,}, answer up to {made.answer_tokens:,}':<44}{total:>16}"
    precision = made.dtype if made.quantize is None else f"{made.quantize}, else {made.dtype}"
    size = made.bytes
    rows = [
        ("process", size.base, "Python, torch, tokenizer"),
        ("weights", size.weights, precision),
        ("pictures", size.media, "pixels and embeddings"),
        ("cache", size.cache, "keys and values of prompt and answer"),
        ("largest step", max(size.tower, size.prefill), "tower" if size.tower > size.prefill else "prompt"),
    ]
    yield ""
    for name, number, remark in rows:
        yield f"{name:<24}{shown(number):>12}  {remark}"
    room = "memory not known" if made.available is None else f"of {shown(made.available)}"
    verdict = {True: "fits", False: "does not fit", None: ""}[made.fits]
    yield f"{'peak':<24}{shown(size.peak):>12}  {room}{': ' + verdict if verdict else ''}"
    for one in made.advice:
        yield f"  {one}"
    if made.seconds is not None:
        times = made.seconds
        yield ""
        yield f"{'first token':<24}{_time(times.first_token):>12}  {_parts(made)}"
        yield f"{'each further token':<24}{_time(times.decode):>12}  {1 / times.decode:,.1f} tokens a second"
        yield f"{'whole answer':<24}{_time(times.total):>12}  of {made.answer_tokens:,} tokens"
    if made.prompt_tokens + made.answer_tokens > made.context:
        yield f"prompt and answer are longer than the {made.context:,} tokens that the model is made for"


def _time(seconds: float) -> str:
    return (
        f"{seconds * 1000:,.1f} ms"
        if seconds < 1
        else f"{seconds:,.1f} s"
        if seconds < 120
        else f"{seconds / 60:,.0f} min"
    )


def _parts(made: Plan) -> str:
    times = made.seconds
    assert times is not None
    return f"reading {_time(times.prepare)}, tower {_time(times.tower)}, prompt {_time(times.prefill)}"
