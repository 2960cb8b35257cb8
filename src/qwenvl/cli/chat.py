"""`qwenvl chat [PICTURE|VIDEO...]`: questions and answers on the terminal, or one question a line from a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenvl.cli.inputs import (
    DeviceOption,
    DtypeOption,
    EndOption,
    FpsOption,
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
    check_limits,
    check_load,
    check_memory,
    find_model,
    open_pictures,
    start_assistant,
)
from qwenvl.cli.sources import expand

if TYPE_CHECKING:
    from PIL.Image import Image

    from qwenvl.media import Video, VideoOptions
    from qwenvl.tasks.chat import Kind


def chat(
    media: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PICTURE|VIDEO",
            help="What the first question is about: files, folders, patterns or addresses; /image and /video add more.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = "demo",
    system: SystemOption = None,
    drop_oldest: Annotated[
        bool, typer.Option("--drop-oldest", help="Forget the oldest turns, unasked, when the model's context is full.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Stop an answer after so many tokens.")] = 1024,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a turn.")] = False,
) -> None:
    """Talk about pictures and videos, turn by turn; /help lists the commands.

    Ctrl-C stops an answer and keeps what there is of it, Ctrl-D ends. With questions from a pipe, one a line, the exit
    code is 1 when one of them failed.
    """
    from qwenvl.media.kinds import is_video
    from qwenvl.media.sampling import VideoOptions
    from qwenvl.types import SamplingParams

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
    check_limits(min_pixels, max_pixels)
    if "-" in (media or []):
        raise ValueError("- is no picture: stdin has the questions; name pictures as arguments or with /image PATH")
    sources = expand(media or [], ("image", "video"))
    options = VideoOptions(fps=fps, max_frames=max_frames, video_start=start, video_end=end)
    opener = Opener(min_pixels, max_pixels, options)
    kinds: list[Kind] = ["video" if is_video(source) else "image" for source in sources]
    contents = [opener(kind, source, {}) for kind, source in zip(kinds, sources, strict=True)]
    found = find_model(model)

    from qwenvl.cli.chat_session import Session, lines_of
    from qwenvl.tasks.chat import Chat

    assistant = start_assistant(found, dtype, device, min_pixels, max_pixels, quantize=quantize, memory=memory)
    talk = Chat.of(assistant, sampling, system=system)
    for kind, source, content in zip(kinds, sources, contents, strict=True):
        talk.attach(kind, source, content, **opener.options(kind))
    interactive = sys.stdin.isatty()
    session = Session(
        talk, opener, as_json=as_json, interactive=interactive, drop_oldest=drop_oldest,
        found=lambda: assistant.engine.stats.found_tokens, model=model,
    )  # fmt: skip
    session.greet()
    raise typer.Exit(session.run(lines_of(sys.stdin, interactive)))


class Opener:
    """Opens pictures and videos within the limits of the command line; options(kind) are what an item is asked for
    beside its name, so that a saved conversation opens it again in the same way."""

    def __init__(self, min_pixels: int | None, max_pixels: int | None, video: VideoOptions) -> None:
        self._limits, self._video = (min_pixels, max_pixels), video

    def options(self, kind: Kind) -> dict[str, Any]:
        return self._video.given() if kind == "video" else {}

    def __call__(self, kind: Kind, source: str, options: dict[str, Any]) -> Image | Video:
        """The picture or video; options: of a saved item, in place of the command line's. ValueError when it cannot be
        read, or is of another kind."""
        from dataclasses import replace

        from qwenvl.media import VideoOptions, read_video

        if kind == "image":
            (picture,) = open_pictures([source], *self._limits)
            return picture
        try:
            wanted = replace(self._video if not options else VideoOptions(), **options)
        except TypeError:
            raise ValueError(f"{source}: a video with the options {', '.join(options)} cannot be opened here") from None
        least, most = self._limits
        return read_video(
            source, replace(wanted, min_pixels=wanted.min_pixels or least, max_pixels=wanted.max_pixels or most)
        )
