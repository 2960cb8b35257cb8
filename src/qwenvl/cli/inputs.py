"""What several verbs take: option types, and arguments checked before torch is imported.

A wrong file or name is found here in well under a second: the checks read headers, pictures and indexes only.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from PIL.Image import Image

    from qwenvl.cli.model_files import ModelFiles
    from qwenvl.media import Video, VideoOptions
    from qwenvl.tasks import Assistant

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="demo (bundled), a folder, a .gguf file, or a name on the hub: owner/name, owner/name:Q4_K_M, "
        "modelscope://owner/name.",
    ),
]
DtypeOption = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")]
DeviceOption = Annotated[str, typer.Option(help="auto (a GPU where there is one and the model is large), cpu, cuda...")]
QuantizeOption = Annotated[
    str | None,
    typer.Option(help="int8 or int4: pack the weights while loading. none: unpack those of a quantized checkpoint."),
]
MemoryOption = Annotated[
    str | None, typer.Option(help="What the program may have, such as 4GB; what can never fit is refused.")
]
MinPixelsOption = Annotated[int | None, typer.Option(help="Enlarge pictures below this area.")]
MaxPixelsOption = Annotated[int | None, typer.Option(help="Shrink pictures above this area.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line and input.")]
PicturesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="PICTURE",
        help="Files, folders, patterns or addresses; - reads their names from stdin.",
        show_default=False,
    ),
]

# How tokens are drawn and which frames are taken, as `ask` and `chat` have them.
TemperatureOption = Annotated[float, typer.Option(help="0 takes the likeliest token each time.")]
TopKOption = Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0 is off.")]
TopPOption = Annotated[float, typer.Option(help="Sample from the likeliest tokens of this total share.")]
MinPOption = Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest one.")]
RepetitionPenaltyOption = Annotated[float, typer.Option(help="Above 1: avoid tokens seen before.")]
SeedOption = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
FpsOption = Annotated[float | None, typer.Option(help="Frames taken from a second of video; 2 when not given.")]
MaxFramesOption = Annotated[int | None, typer.Option(help="Most frames taken from a video; 768 when not given.")]
StartOption = Annotated[float | None, typer.Option(help="Begin of the part of a video to look at, seconds.")]
EndOption = Annotated[float | None, typer.Option(help="End of the part of a video to look at, seconds.")]
SystemOption = Annotated[str | None, typer.Option(help="System prompt in place of the template's own.")]

# Parameters below which a second thread gains next to nothing, and costs most of the time wherever another program
# uses the cores: a token of the bundled model is hundreds of operations of microseconds, each waiting for all threads.
SMALL = 50_000_000

_SCHEME = re.compile(r"^(https?://|file:|data:)", re.IGNORECASE)


def split_question(arguments: list[str], stdin_has_text: bool) -> tuple[list[str], str]:
    """(pictures and videos, question) of `ask`'s arguments.

    The last argument is the question. "-" in its place, or no question and text waiting on stdin: read from stdin.
    Raises ValueError when there is no question, or an empty one.
    """
    pictures, question = arguments[:-1], (arguments[-1] if arguments else None)
    if question == "-" or (stdin_has_text and (question is None or is_media(question))):
        pictures = pictures if question in ("-", None) else arguments
        question = sys.stdin.read()
    elif question is None or is_media(question):
        raise ValueError("no question: give it as the last argument, in quotes, or on stdin")
    if not question.strip():
        raise ValueError('the question is empty: write one as the last argument, for example "What is this?"')
    return pictures, question.strip()


def is_media(argument: str) -> bool:
    """Whether an argument names a picture, video or PDF and is no question: an address, a file, or a word that ends
    like one."""
    from qwenvl.media.kinds import kind_of

    if _SCHEME.match(argument):
        return True
    try:
        if Path(argument).is_file():
            return True
    except (OSError, ValueError):  # too long or not a possible name, so no file
        return False
    return not re.search(r"\s", argument) and kind_of(argument) is not None


def open_pictures(sources: list[str], min_pixels: int | None, max_pixels: int | None) -> list[Image]:
    """The pictures, upright RGB, checked to be of a shape that the model takes. ValueError names the wrong one."""
    check_limits(min_pixels, max_pixels)
    return [_picture(source) for source in sources]


def open_media(
    sources: list[str], min_pixels: int | None, max_pixels: int | None, options: VideoOptions
) -> list[Image | Video]:
    """Pictures and videos, told apart by name, read and checked as `open_pictures` does. ValueError names the wrong
    one, and video options without a video."""
    from qwenvl.media import VideoOptions, read_video
    from qwenvl.media.kinds import is_video

    check_limits(min_pixels, max_pixels)
    if options != VideoOptions() and not any(map(is_video, sources)):
        raise ValueError(
            "--fps, --max-frames, --start and --end are for videos, and there is none here: leave them out"
        )
    limits = replace(options, min_pixels=min_pixels, max_pixels=max_pixels)
    return [read_video(source, limits) if is_video(source) else _picture(source) for source in sources]


def _picture(source: str) -> Image:
    from qwenvl.media import load_image, smart_resize
    from qwenvl.media.policy import shown

    picture = load_image(source)
    try:
        smart_resize(picture.height, picture.width)
    except ValueError as error:
        raise ValueError(f"{shown(source)}: {error}") from None
    return picture


def find_model(model: str) -> ModelFiles:
    """The files of a model whose configuration reads and whose weight files are all there. ValueError otherwise."""
    from qwenvl.checkpoint.hub import resolve
    from qwenvl.cli.model_files import look

    return look(resolve(model))


def start_assistant(
    found: ModelFiles,
    dtype: str = "auto",
    device: str = "auto",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    max_running: int = 8,
    quantize: str | None = None,
    memory: str | None = None,
) -> Assistant:
    """Import torch and load the model. A small one runs on one thread of the CPU unless the user says otherwise, and
    one that is quantized here on the CPU, unless a GPU is named."""
    import torch

    from qwenvl.tasks import Assistant

    small = found.parameters < SMALL
    if small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch sees no such GPU here; use --device cpu")
    if device == "auto":
        device = "cuda" if not small and quantize in (None, "none") and torch.cuda.is_available() else "cpu"
    with loading_bar(None if small or not sys.stderr.isatty() else "loading") as on_progress:
        return Assistant(
            found.folder,
            dtype=dtype,
            device=device,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            max_running=max_running,
            on_progress=on_progress,
            quantize=quantize,
            memory=memory,
        )


@contextmanager
def loading_bar(title: str | None) -> Iterator[Callable[[int, int], None] | None]:
    """A bar with bytes and the time left on stderr, gone when done; without a title, none."""
    if title is None:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task(title)
        yield lambda done, total: bar.update(line, completed=done, total=total)


def check_limits(min_pixels: int | None, max_pixels: int | None) -> None:
    """ValueError unless the limits are positive and in order."""
    for name, value in (("--min-pixels", min_pixels), ("--max-pixels", max_pixels)):
        if value is not None and value < 1:
            raise ValueError(f"{name} {value} is not an area: give a number of pixels, 1 or more")
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        raise ValueError(f"--min-pixels {min_pixels} is above --max-pixels {max_pixels}: lower it")


def check_load(dtype: str, device: str, quantize: str | None = None) -> None:
    """ValueError unless weights can be loaded as `dtype`, `device` is of a kind that we run on, and `quantize` is a
    word that we know."""
    known = ("auto", "float32", "bfloat16", "float16")
    if dtype not in known:
        raise ValueError(f"--dtype {dtype} is not known: expected one of {', '.join(known)}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"--device {device} is not known: expected auto, cpu, cuda or cuda:0")
    check_quantize(quantize)


def check_memory(memory: str | None) -> None:
    """ValueError unless `memory` is left out or a size."""
    from qwenvl.machine import parse_bytes

    if memory is not None:
        parse_bytes(memory, "--memory")


def check_quantize(quantize: str | None) -> None:
    """ValueError unless `quantize` is left out or a word that we know."""
    if quantize not in (None, "int8", "int4", "none"):
        raise ValueError(f"--quantize {quantize} is not known: expected int8, int4 or none")
