"""`qwenvl read PICTURE...`: the text of pictures; with --boxes, where each line or word stands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qwenvl.cli.inputs import (
    DeviceOption,
    DtypeOption,
    JsonLinesOption,
    MaxPixelsOption,
    MemoryOption,
    MinPixelsOption,
    ModelOption,
    PicturesArgument,
    QuantizeOption,
    check_limits,
    check_load,
    check_memory,
    find_model,
    open_pictures,
    start_assistant,
)
from qwenvl.cli.locate import MinTokensOption, check_min_tokens, output_files, table
from qwenvl.cli.sources import Record, each, expand

if TYPE_CHECKING:
    from qwenvl.tasks import Assistant


def read(
    pictures: PicturesArgument,
    model: ModelOption = "demo",
    boxes: Annotated[
        str | None, typer.Option(help="line or word: text, x1 y1 x2 y2 in ORIGINAL pixels, tabs between.")
    ] = None,
    in_order: Annotated[
        bool, typer.Option("--in-order", help="Boxes from the top left, in place of the model's order.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="With --boxes: draw them; a folder, or the file for one picture.")
    ] = None,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="With --boxes: how sure the model is, as in `locate`.")
    ] = False,
    min_tokens: MinTokensOption = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
    memory: MemoryOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Read the text in pictures, in reading order. For pages with layout, tables and PDF files there is `parse`."""
    if boxes not in (None, "line", "word"):
        raise ValueError(f"--boxes {boxes} is not known: expected line or word")
    for name, given in (("--out", out is not None), ("--in-order", in_order), ("--confidence", confidence)):
        if given and boxes is None:
            raise ValueError(f"{name} is for boxes: add --boxes line or --boxes word")
    check_limits(min_pixels, max_pixels)
    check_load(dtype, device, quantize)
    check_memory(memory)
    least = check_min_tokens(min_tokens, min_pixels)
    files = expand(pictures)
    drawn = output_files(files, "-text.png", out) if out is not None else {}
    found = find_model(model)
    if len(files) == 1:
        open_pictures(files, min_pixels, max_pixels)
    assistants: list[Assistant] = []

    def work(source: str) -> Record:
        from qwenvl.tasks import draw_boxes, places_to_dicts
        from qwenvl.tasks.reading import read_text, spot_text

        (image,) = open_pictures([source], min_pixels, max_pixels)
        if not assistants:
            assistants.append(
                start_assistant(found, dtype, device, min_pixels, max_pixels, quantize=quantize, memory=memory)
            )
        data: dict[str, Any] = {"model": model, "width": image.width, "height": image.height}
        if boxes is None:
            text = read_text(assistants[0], image, min_tokens=least)
            return Record({**data, "text": text}, text)
        level: Literal["line", "word"] = "line" if boxes == "line" else "word"
        places = spot_text(assistants[0], image, level, in_reading_order=in_order, min_tokens=least)
        target = str(drawn[source]) if places and source in drawn else None
        if target is not None:
            draw_boxes(image, places, confidence=confidence).save(target)
        told = f"drawn in {target}" if target else "" if places else "found no text"
        if told:
            print(told if len(files) == 1 else f"{source}: {told}", file=sys.stderr)
        data |= {"level": level, "places": places_to_dicts(places), "drawn": target}
        return Record(data, table(places, confidence))

    code = each(files, work, as_json)
    if code:
        raise typer.Exit(code)
