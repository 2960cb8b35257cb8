"""`qwenvl quantize MODEL --to int4 --out DIR`: a checkpoint with packed weights, which loads without packing again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qwenvl.cli.info import describe
from qwenvl.cli.inputs import (
    DtypeOption,
    JsonOption,
    MaxPixelsOption,
    check_load,
    find_model,
    is_media,
    start_assistant,
)

if TYPE_CHECKING:
    from qwenvl.checkpoint.quantize_folder import Source, Written
    from qwenvl.cli.model_files import ModelFiles
    from qwenvl.demo.lost import Asked, Before, Lost
    from qwenvl.quantization import QuantizeOptions

ANSWER_TOKENS = 32
SAMPLE_PIXELS = 512 * 28 * 28  # most of a picture for calibration and checks, without --max-pixels: 512 tokens


def quantize(
    model: Annotated[str, typer.Argument(help="demo (bundled), a checkpoint's folder, or its name on the hub.")],
    to: Annotated[Literal["int8", "int4"], typer.Option(help="Bits of the text layers and the head; tower in int8.")],
    out: Annotated[Path, typer.Option(help="The new folder.")],
    group: Annotated[int | None, typer.Option(help="Weights that share a scale; 128 in int8, 32 in int4.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="text, tower or head: leave it as it is; again for more.")
    ] = None,
    dtype: DtypeOption = "auto",
    max_shard_size: Annotated[str, typer.Option(help="Most bytes of a file, such as 5GB.")] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that was quantized before.")] = False,
    calibrate: Annotated[
        list[str] | None, typer.Option(help="Picture, video or folder of such; again for more. Slower, loses less.")
    ] = None,
    question: Annotated[list[str] | None, typer.Option(help="What to ask about them; again for more.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Most questions to calibrate with.")] = 64,
    check: Annotated[int, typer.Option(min=1, help="Questions to measure the loss with.")] = 8,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not measure what is lost.")] = False,
    max_pixels: MaxPixelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pack a checkpoint's weights into a new folder that loads at once, and measure what that lost."""
    check_load(dtype, "cpu", to)
    found = find_model(model)
    max_pixels = max_pixels or min(SAMPLE_PIXELS, describe(found)["max_pixels"] or SAMPLE_PIXELS)
    files = _media(calibrate or [], question)

    from qwenvl.checkpoint.quantize_folder import check_target, open_source
    from qwenvl.checkpoint.save import shard_limit

    check_target(found.folder, out, force)
    limit = shard_limit(max_shard_size)
    source = open_source(found.folder, _options(to, group, keep or []), dtype)
    said = _say(as_json)
    before = None if no_check else _before(found, dtype, files, question, check, max_pixels, said)
    started = time.perf_counter()
    calibrated, note = None, None
    if files:
        calibrated, note = _calibrated(found, source, dtype, files, question, samples, max_pixels, said)
    written = _write(source, out, limit, force, calibrated, note)
    report = _report(written, to, note, time.perf_counter() - started)
    if before is not None:
        lost = _lost(found, out, dtype, before, max_pixels, said)
        report |= {"lost": lost.to_dict()}
        said(f"lost: {lost}")
    _finish(out, report, as_json)


def _options(to: str, group: int | None, keep: list[str]) -> QuantizeOptions:
    """The schemes that the options ask for. ValueError for a group or part that cannot be."""
    from qwenvl.quantization import Scheme, options_of

    options = options_of(to)
    if group is not None:
        if group < 32 or group % 32 or group > 1024:
            raise ValueError(f"--group {group}: expected a multiple of 32 up to 1024")
        assert options.text is not None
        given = Scheme(options.text.kind, group)
        options = replace(options, text=given, head=given)
    unknown = [part for part in keep if part not in ("text", "tower", "head")]
    if unknown:
        raise ValueError(f"--keep {unknown[0]} is not known: expected text, tower or head")
    off: dict[str, Any] = dict.fromkeys(keep)
    if "text" in keep:
        off["exceptions"] = {}  # those of a word are linears of the text layers
    return replace(options, **off)


def _media(sources: list[str], question: list[str] | None) -> list[str]:
    """The pictures and videos behind what --calibrate names. ValueError for what is none, and for questions without."""
    if question and not sources:
        raise ValueError("--question is about pictures for --calibrate, and there are none: give some, or leave it out")
    found: list[str] = []
    for source in sources:
        folder = Path(source)
        inside = sorted(str(path) for path in folder.iterdir() if is_media(str(path))) if folder.is_dir() else [source]
        if not inside:
            raise ValueError(f"--calibrate {source} has no pictures or videos in it: give a folder with some")
        found += inside
    return found


def _about(files: list[str], question: list[str] | None, count: int) -> list[Asked]:
    """Questions about the caller's files."""
    from qwenvl.cli.inputs import open_media
    from qwenvl.demo import lost
    from qwenvl.media import VideoOptions

    return lost.about(open_media(files, None, None, VideoOptions()), question or list(lost.PROMPTS), count)


def _to_check(found: ModelFiles, files: list[str], question: list[str] | None, count: int) -> list[Asked]:
    """Questions to measure the loss with: fresh ones of the world of the bundled model; for others about the caller's
    files, or about the samples of the package."""
    from qwenvl.demo import lost
    from qwenvl.hub import demo_folder

    if found.folder.resolve() == demo_folder().resolve():
        return lost.of_the_world(count, lost.SEED)
    return _about(files, question, count) if files else lost.about(lost.samples(), lost.PROMPTS, count)


def _before(
    found: ModelFiles,
    dtype: str,
    files: list[str],
    question: list[str] | None,
    count: int,
    max_pixels: int | None,
    said: Callable[[str], None],
) -> Before:
    from qwenvl.demo import lost

    asked = _to_check(found, files, question, count)
    said(f"asking {len(asked)} questions before")
    assistant = start_assistant(found, dtype, "cpu", max_pixels=max_pixels)
    return lost.ask(assistant, asked, ANSWER_TOKENS)


def _calibrated(
    found: ModelFiles,
    source: Source,
    dtype: str,
    files: list[str],
    question: list[str] | None,
    count: int,
    max_pixels: int | None,
    said: Callable[[str], None],
) -> tuple[Any, dict[str, Any]]:
    """The packed weights as they come, and what is said of them in config.json."""
    import torch

    from qwenvl.demo import lost
    from qwenvl.demo.divergence import answer_batch
    from qwenvl.quantization.calibrate import packed_layers

    asked = _about(files, question, count)
    assistant = start_assistant(found, dtype, "cpu", max_pixels=max_pixels)
    requests = [one for one in lost.prepared(assistant, asked, ANSWER_TOKENS) if one.output_ids]
    rows = sum(request.num_tokens for request in requests)
    said(f"calibrating with {len(requests)} answered questions, {rows:,} tokens")
    with torch.no_grad():
        batches = [answer_batch(assistant.model, request) for request in requests]
    weights = packed_layers(assistant.model, batches, source.schemes)
    return weights, {"method": "second moments of inputs", "samples": len(requests), "tokens": rows}


def _write(source: Source, out: Path, limit: int, force: bool, calibrated: Any, note: dict[str, Any] | None) -> Written:
    from qwenvl.checkpoint.quantize_folder import quantize_folder
    from qwenvl.cli.inputs import loading_bar

    with loading_bar("packing" if sys.stderr.isatty() else None) as on_progress:
        return quantize_folder(
            source, out, limit=limit, force=force, calibrated=calibrated, calibration=note, on_progress=on_progress
        )


def _lost(
    found: ModelFiles, out: Path, dtype: str, before: Before, max_pixels: int | None, said: Callable[[str], None]
) -> Lost:
    from qwenvl.demo import lost

    said("asking the same again")
    after = start_assistant(replace(found, folder=out), dtype, "cpu", max_pixels=max_pixels)
    return lost.compare(after, before, ANSWER_TOKENS)


def _report(written: Written, to: str, note: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    return {
        "to": to, "linears": written.linears, "bytes_before": written.bytes_before, "bytes_after": written.bytes_after,
        "calibration": note, "seconds": round(seconds, 1),
    }  # fmt: skip


def _finish(out: Path, report: dict[str, Any], as_json: bool) -> None:
    from qwenvl.checkpoint.packed import write_json
    from qwenvl.checkpoint.quantize_folder import REPORT_NAME

    write_json(out / REPORT_NAME, report)
    if as_json:
        print(json.dumps({"folder": str(out), **report}, ensure_ascii=False))
        return
    before, after = report["bytes_before"] / 2**20, report["bytes_after"] / 2**20
    share = f"{before:,.1f} MiB -> {after:,.1f} MiB ({100 * after / before:.0f} %) in {report['seconds']} s"
    print(f"{out}: {report['linears']} linears packed, {share}")


def _say(as_json: bool) -> Callable[[str], None]:
    return (lambda text: None) if as_json else (lambda text: print(text, file=sys.stderr))
