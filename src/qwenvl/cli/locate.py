"""`qwenvl locate PICTURE... "what"`: places in pixels of the pictures as they are on disk, and annotated copies."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenvl.cli.inputs import (
    DeviceOption,
    DtypeOption,
    JsonLinesOption,
    MaxPixelsOption,
    MemoryOption,
    MinPixelsOption,
    ModelOption,
    QuantizeOption,
    check_limits,
    check_load,
    check_memory,
    find_model,
    is_media,
    open_pictures,
    start_assistant,
)
from qwenvl.cli.sources import Record, each, expand, outputs

if TYPE_CHECKING:
    from PIL.Image import Image

    from qwenvl.tasks import Assistant, Box, Point

FORMATS = ("table", "json", "coco", "yolo")
MIN_TOKENS = 1024
MinTokensOption = Annotated[
    int | None,
    typer.Option(help="Enlarge smaller pictures to so many tokens; 1024 when neither this nor --min-pixels is given."),
]


def locate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar='PICTURE... "WHAT"',
            help="Files, folders, patterns or addresses (- reads their names from stdin), then what to find, for "
            'example "red circle".',
            show_default=False,
        ),
    ],
    model: ModelOption = "demo",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder, or the file for one picture; NAME-boxes.png in the current folder if not given."),
    ] = None,
    also: Annotated[list[str] | None, typer.Option(help="Another thing to find; may be given several times.")] = None,
    points: Annotated[bool, typer.Option("--points", help="Points in place of boxes.")] = False,
    refine: Annotated[bool, typer.Option("--refine", help="Look again at a crop around each find.")] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="A column more, and in the drawing: how sure the model is, 0 to 1.")
    ] = False,
    form: Annotated[str, typer.Option("--format", help="table, json, coco (one object) or yolo (files).")] = "table",
    min_tokens: MinTokensOption = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
    memory: MemoryOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Find things: label, x1 y1 x2 y2 (a point: x y) in ORIGINAL pixels, one line each, tabs between.

    Draws them too: the paths go to stderr. With --format yolo nothing is drawn, but NAME.txt for each picture and
    classes.txt are written to --out; names that are in a classes.txt there keep their numbers.
    """
    sources, things = _split(arguments, also or [])
    form = _form(form, as_json, points)
    check_limits(min_pixels, max_pixels)
    check_load(dtype, device, quantize)
    check_memory(memory)
    least = check_min_tokens(min_tokens, min_pixels)
    files = expand(sources)
    targets = output_files(files, ".txt" if form == "yolo" else "-boxes.png", out)
    found = find_model(model)
    if len(files) == 1:
        open_pictures(files, min_pixels, max_pixels)
    assistants: list[Assistant] = []
    finds: list[tuple[str, tuple[int, int], list[Box | Point]]] = []

    def work(source: str) -> Record:
        from qwenvl.tasks import locate as find
        from qwenvl.tasks import places_to_dicts

        (image,) = open_pictures([source], min_pixels, max_pixels)
        if not assistants:
            assistants.append(
                start_assistant(found, dtype, device, min_pixels, max_pixels, quantize=quantize, memory=memory)
            )
        places = find(assistants[0], image, things, as_points=points, refine=refine, min_tokens=least)
        finds.append((source, image.size, places))
        target = _draw(image, places, targets[source], confidence) if form != "yolo" else None
        size = {"width": image.width, "height": image.height}
        data = {"model": model, **size, "places": places_to_dicts(places), "drawn": target}
        told = f"drawn in {target}" if target else "" if places else f"found no {' or '.join(things)}"
        if told:
            print(told if len(files) == 1 else f"{source}: {told}", file=sys.stderr)
        return Record(data, table(places, confidence) if form == "table" else "")

    code = each(files, work, form == "json", headings=form == "table")
    if form == "coco":
        from qwenvl.tasks.exports import to_coco

        print(json.dumps(to_coco(finds), ensure_ascii=False))
    elif form == "yolo":
        _write_yolo(finds, targets)
    if code:
        raise typer.Exit(code)


def output_files(files: list[str], ending: str, out: Path | None) -> dict[str, Path]:
    """Where what belongs to each picture is written. ValueError for a folder that cannot be, and a single file's name
    that is not of the kind that is written."""
    from PIL import Image

    targets = outputs(files, ending, out)
    known = Image.registered_extensions() if ending.endswith(".png") else {".txt": ""}
    if out is not None and targets == [out] and out.suffix.lower() not in known:
        raise ValueError(f"--out {out} is no name for what is written: end it with {Path('x' + ending).suffix}")
    return dict(zip(files, targets, strict=True))


def _split(arguments: list[str], also: list[str]) -> tuple[list[str], list[str]]:
    """(pictures, things). ValueError when one of them is missing."""
    sources, what = arguments[:-1], arguments[-1]
    if is_media(what) or Path(what).is_dir():
        raise ValueError('what to locate is missing: name a thing as the last argument, for example "red circle"')
    if not sources:
        raise ValueError(f'no picture: give one in front of what to locate, "{what}"')
    things = [what, *also]
    if not all(thing.strip() for thing in things):
        raise ValueError('what to locate is empty: name a thing, for example "red circle"')
    return sources, [thing.strip() for thing in things]


def _form(form: str, as_json: bool, points: bool) -> str:
    if form not in FORMATS:
        raise ValueError(f"--format {form} is not known: expected one of {', '.join(FORMATS)}")
    if as_json and form not in ("table", "json"):
        raise ValueError(f"--json and --format {form} are two forms of output: give one of them")
    if form == "yolo" and points:
        raise ValueError("--format yolo takes boxes: leave --points out")
    return "json" if as_json else form


def check_min_tokens(min_tokens: int | None, min_pixels: int | None) -> int | None:
    """How many tokens a picture should have at least; None = leave sizes to the checkpoint and --min-pixels."""
    if min_tokens is None:
        return MIN_TOKENS if min_pixels is None else None
    if min_pixels is not None:
        raise ValueError("--min-tokens and --min-pixels say the same twice: give one of them")
    if min_tokens < 0:
        raise ValueError(f"--min-tokens {min_tokens} is not valid: expected a number of tokens, or 0 to leave sizes")
    return min_tokens or None


def table(places: Sequence[Box | Point], confidence: bool) -> str:
    """One line a place: label and numbers, tabs between; line ends and tabs within a label become spaces."""
    from qwenvl.tasks import places_to_dicts

    lines = []
    for place in places_to_dicts(places):
        cells = [" ".join(place["label"].split())]
        cells += [f"{number:.1f}" for number in place["box" if "box" in place else "point"]]
        if confidence:
            cells.append(f"{place['confidence']:.3f}" if "confidence" in place else "-")
        lines.append("\t".join(cells))
    return "\n".join(lines)


def _draw(image: Image, places: Sequence[Box | Point], target: Path, confidence: bool) -> str | None:
    """The path of the annotated picture; None, and no file, where there is nothing to draw."""
    from qwenvl.tasks import draw_boxes

    if not places:
        return None
    draw_boxes(image, places, confidence=confidence).save(target)
    return str(target)


def _class(place: Box | Point) -> str:
    """A label as a line of classes.txt."""
    return " ".join(place.label.split())


def _write_yolo(finds: Sequence[tuple[str, tuple[int, int], Sequence[Box | Point]]], targets: dict[str, Path]) -> None:
    """NAME.txt for every picture and classes.txt beside the first of them; a line about each on stdout. The names of an
    earlier run keep their places in classes.txt, as its label files count them."""
    from qwenvl.tasks.exports import to_yolo

    if not finds:
        return
    path = targets[finds[0][0]].parent / "classes.txt"
    known = path.read_text("utf-8").splitlines() if path.exists() else []
    classes = list(dict.fromkeys([*known, *(_class(place) for _, _, places in finds for place in places)]))
    for source, size, found in finds:
        places = [replace(place, label=_class(place)) for place in found]
        targets[source].write_text("".join(f"{line}\n" for line in to_yolo(places, size, classes)), "utf-8")
        print(f"{source}\t{targets[source]}\t{len(places)}")
    path.write_text("".join(f"{name}\n" for name in classes), "utf-8")
