"""`qwenvl events VIDEO... ["query"]`: when things happen, in seconds of the file; subtitles, clips, a contact sheet."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenvl.cli.inputs import (
    DeviceOption,
    DtypeOption,
    JsonLinesOption,
    MemoryOption,
    ModelOption,
    QuantizeOption,
    check_load,
    check_memory,
    find_model,
    is_media,
    start_assistant,
)
from qwenvl.cli.sources import Record, each, expand, output_names, outputs

if TYPE_CHECKING:
    from qwenvl.media.kinds import SourceKind
    from qwenvl.tasks import Assistant
    from qwenvl.tasks.events import Event

KINDS: tuple[SourceKind, ...] = ("video",)
SHEET_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def events(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar='VIDEO... ["QUERY"]',
            help="Files, folders, patterns or addresses (- reads their names from stdin), then what to look for, such "
            'as "a man opens the door"; without it, all that happens.',
            show_default=False,
        ),
    ],
    model: ModelOption = "demo",
    query: Annotated[str | None, typer.Option("--query", "-q", help="What to look for, as an option.")] = None,
    start: Annotated[float | None, typer.Option(help="Begin of the part to look at, seconds.")] = None,
    end: Annotated[float | None, typer.Option(help="End of the part to look at, seconds.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second that the model sees; 2 when not given.")] = None,
    max_frames: Annotated[
        int | None, typer.Option(help="Most frames of one look; what the model takes when not given.")
    ] = None,
    max_calls: Annotated[
        int, typer.Option(help="Most looks at one video; long ones are looked at more coarsely.")
    ] = 160,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Search a long video at --fps throughout, not coarse to fine.")
    ] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Make one of events that overlap.")] = False,
    prompt: Annotated[str | None, typer.Option(help="Another wording of the question, with {query} in it.")] = None,
    min_confidence: Annotated[float, typer.Option(help="Leave out events that are less sure, 0 to 1.")] = 0.0,
    srt: Annotated[Path | None, typer.Option(help="Subtitles; a folder for several videos.")] = None,
    vtt: Annotated[Path | None, typer.Option(help="Subtitles for web pages; a folder for several videos.")] = None,
    clips: Annotated[Path | None, typer.Option(help="Folder for a video of each event.")] = None,
    margin: Annotated[float, typer.Option(help="Seconds that clips begin earlier and end later.")] = 0.0,
    sheet: Annotated[
        Path | None, typer.Option(help="Picture with a frame of each; a folder for several videos.")
    ] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
    memory: MemoryOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Find when things happen: begin, end (h:mm:ss.mmm of the file) and what, one line each, tabs between.

    The paths of what is written go to stderr.
    """
    sources, query = split_query(arguments, query)
    check_load(dtype, device, quantize)
    check_memory(memory)
    options: dict[str, Any] = {
        "start": start, "end": end, "fps": fps, "max_frames": max_frames, "max_calls": max_calls,
        "exhaustive": exhaustive, "merge": merge, "min_confidence": min_confidence, "prompt": prompt,
    }  # fmt: skip
    files = expand(sources, KINDS)
    targets = _targets(files, srt, vtt, clips, sheet, margin)
    _check(files, query, options)
    found = find_model(model)
    assistants: list[Assistant] = []

    def work(source: str) -> Record:
        from qwenvl.media import open_media
        from qwenvl.tasks.events import events as find

        with open_media(source) as path:
            if not assistants:
                assistants.append(start_assistant(found, dtype, device, quantize=quantize, memory=memory))
            told = find(assistants[0], path, query, **options, on_progress=_progress())
            written = targets[source].write(path, told)
        for name in written.values():
            print(f"wrote {_named(name, clips)}", file=sys.stderr)
        if not told:
            nothing = "found nothing" if query is None else f'found nothing for "{query}"'
            print(nothing if len(files) == 1 else f"{source}: {nothing}", file=sys.stderr)
        data = {"model": model, "query": query, "events": [event.to_dict() for event in told], **written}
        return Record(data, table(told))

    code = each(files, work, as_json)
    if code:
        raise typer.Exit(code)


def split_query(arguments: list[str], query: str | None) -> tuple[list[str], str | None]:
    """(videos, query). The last argument is the query unless it names a video, a folder or a pattern. ValueError when
    there is no video, or a query twice."""
    last = arguments[-1]
    names = is_media(last) or Path(last[:200]).is_dir() or last == "-"
    if not names and not (glob.has_magic(last) and not any(c.isspace() for c in last)):
        if query is not None:
            raise ValueError(f'"{last}" is no video, and --query is given: leave one of them out')
        arguments, query = arguments[:-1], last
    if not arguments:
        raise ValueError(f'no video: give one in front of what to look for, "{query}"')
    if query is not None and not query.strip():
        raise ValueError('the query is empty: say what happens, for example "a man opens the door"')
    return arguments, query


def table(told: list[Event]) -> str:
    """A line an event: begin, end, what, tabs between."""
    from qwenvl.tasks.events.times import written

    return "\n".join("\t".join((written(e.start)[1:], written(e.end)[1:], " ".join(e.text.split()))) for e in told)


def _check(files: list[str], query: str | None, options: dict[str, Any]) -> None:
    """Mistakes that need no model. A single local video is opened for it."""
    from qwenvl.tasks.events.find import check_options, check_video

    check_options(query, **{name: value for name, value in options.items() if name not in ("exhaustive", "merge")})
    if len(files) == 1 and Path(files[0]).exists():
        check_video(files[0], options["start"], options["end"])


@dataclass(frozen=True)
class Targets:
    """Where what is found in one video goes; None = nowhere. name: of its clips."""

    name: str
    srt: Path | None
    vtt: Path | None
    clips: Path | None
    sheet: Path | None
    margin: float

    def write(self, path: Path, told: list[Event]) -> dict[str, Any]:
        """Writes them; by kind, the names of the files."""
        from qwenvl.tasks.events import contact_sheet, cut_clips, to_srt, to_vtt

        written: dict[str, Any] = {}
        if self.srt is not None:
            self.srt.write_text(to_srt(told), "utf-8")
            written["srt"] = str(self.srt)
        if self.vtt is not None:
            self.vtt.write_text(to_vtt(told), "utf-8")
            written["vtt"] = str(self.vtt)
        if self.sheet is not None and told:
            contact_sheet(path, told).save(self.sheet)
            written["sheet"] = str(self.sheet)
        if self.clips is not None and told:
            cut = cut_clips(path, told, self.clips, self.margin, name=self.name)
            written["clips"] = [str(file) for file in cut]
        return written


def _targets(
    files: list[str], srt: Path | None, vtt: Path | None, clips: Path | None, sheet: Path | None, margin: float
) -> dict[str, Targets]:
    """The files of each video. ValueError where they cannot be."""
    if not margin >= 0:
        raise ValueError(f"--margin {margin}: expected seconds, 0 or more")
    if margin and clips is None:
        raise ValueError("--margin is for clips: give --clips FOLDER too")
    if (
        sheet is not None
        and len(files) == 1
        and not sheet.is_dir()
        and sheet.suffix.lower() not in ("", *SHEET_ENDINGS)
    ):
        raise ValueError(
            f"--sheet {sheet} is no picture's name: expected one that ends with {', '.join(SHEET_ENDINGS)}"
        )
    if clips is not None and clips.exists() and not clips.is_dir():
        raise ValueError(f"--clips {clips} is a file: give a folder")

    def named(ending: str, out: Path | None, option: str) -> list[Path | None]:
        return [None] * len(files) if out is None else list(outputs(files, ending, out, option))

    written = (named(".srt", srt, "--srt"), named(".vtt", vtt, "--vtt"), named("-events.png", sheet, "--sheet"))
    rows = zip(output_names(files, ""), *written, strict=True)
    made = [Targets(name, one, other, clips, picture, margin) for name, one, other, picture in rows]
    return dict(zip(files, made, strict=True))


def _named(written: str | list[str], folder: Path | None) -> str:
    if isinstance(written, str):
        return written
    return f"{len(written)} clip{'' if len(written) == 1 else 's'} in {folder}"


def _progress() -> Callable[[int, int], None] | None:
    """Tells on a terminal how many looks are done."""
    if not sys.stderr.isatty():
        return None

    def tell(done: int, planned: int) -> None:
        text = f"looked {done} of {planned} times" if done < planned else ""
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    return tell
