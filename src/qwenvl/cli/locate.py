"""`qwenvl locate PICTURE "what"`: places in pixels of the picture as it is on disk, and a copy with them drawn in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from qwenvl.cli.inputs import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxPixelsOption,
    MinPixelsOption,
    ModelOption,
    QuantizeOption,
    check_load,
    find_model,
    open_pictures,
    start_assistant,
)


def locate(
    picture: Annotated[str, typer.Argument(help="A file, or an http(s)://, file:// or data: address.")],
    what: Annotated[str, typer.Argument(help='What to find, for example "red circle".')],
    model: ModelOption = "demo",
    out: Annotated[
        Path | None, typer.Option(help="The annotated picture; PICTURE-boxes.png in this folder if not given.")
    ] = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find things: label, x1 y1 x2 y2 (a point: x y) in ORIGINAL pixels, one line each, tabs between.

    The annotated picture's path goes to stderr.
    """
    if not what.strip():
        raise ValueError('what to locate is empty: name a thing, for example "red circle"')
    check_load(dtype, device, quantize)
    target = out if out is not None else Path(annotated_name(picture))
    if not target.parent.is_dir():
        raise ValueError(f"--out {target}: the folder {target.parent} does not exist")
    found = find_model(model)
    (image,) = open_pictures([picture], min_pixels, max_pixels)

    from qwenvl.tasks import draw_boxes, places_to_dicts
    from qwenvl.tasks import locate as find

    assistant = start_assistant(found, dtype, device, min_pixels, max_pixels, quantize=quantize)
    places = find(assistant.ask, image, what)
    if places:
        draw_boxes(image, places).save(target)
    drawn = str(target) if places else None
    if as_json:
        size = {"width": image.width, "height": image.height}
        report = {"model": model, "picture": picture, **size, "places": places_to_dicts(places), "drawn": drawn}
        print(json.dumps(report, ensure_ascii=False))
        return
    for place in places_to_dicts(places):
        print(place["label"], *(f"{number:.1f}" for number in place["box" if "box" in place else "point"]), sep="\t")
    print(f"drawn in {drawn}" if drawn else f"found no {what.strip()}", file=sys.stderr)


def annotated_name(picture: str) -> str:
    """The name of the annotated copy, in the current folder: "shots/cat.jpg" -> "cat-boxes.png"."""
    if picture.lower().startswith("data:"):
        return "picture-boxes.png"
    return f"{Path(picture.split('?')[0]).stem or 'picture'}-boxes.png"
