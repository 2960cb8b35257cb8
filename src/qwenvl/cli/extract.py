"""`qwenvl extract PICTURE... --fields "company,date,total"`: what stands in pictures, as JSON or as a table."""

from __future__ import annotations

import csv
import importlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from qwenvl.cli.sources import Record, each, expand

if TYPE_CHECKING:
    from qwenvl.tasks.extraction import Extraction
    from qwenvl.tasks.extraction.schemas import Schema


def extract(
    pictures: PicturesArgument,
    fields: Annotated[str | None, typer.Option(help='Names of fields, such as "company,date,total".')] = None,
    schema: Annotated[Path | None, typer.Option(help="A file with a JSON Schema.")] = None,
    model_class: Annotated[str | None, typer.Option(help="A pydantic model class: module:Class.")] = None,
    instructions: Annotated[str | None, typer.Option(help="Words to add to the question.")] = None,
    model: ModelOption = "demo",
    max_new_tokens: Annotated[int, typer.Option(help="Close what is open after so many tokens.")] = 2048,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this total share.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
    memory: MemoryOption = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a table: a line a picture, a column a field.")] = False,
    as_json: JsonLinesOption = False,
) -> None:
    """Extract fields: a JSON object for each picture, which always fits the schema; boxes are in ORIGINAL pixels.

    Fields that were cut off by --max-new-tokens are named on stderr.
    """
    from qwenvl.tasks.extraction import wanted
    from qwenvl.types import SamplingParams

    sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if as_csv and as_json:
        raise ValueError("--csv and --json are two forms of output: give one of them")
    what = _wish(fields, schema, model_class)
    want = wanted(what)
    if as_csv and not want.columns:
        raise ValueError("--csv needs named fields at the schema's top level, and it has none: leave --csv out")
    _check_installed()
    check_load(dtype, device, quantize)
    check_memory(memory)
    check_limits(min_pixels, max_pixels)
    sources = expand(pictures)
    found = find_model(model)
    if len(sources) == 1:
        open_pictures(sources, min_pixels, max_pixels)

    assistant = start_assistant(found, dtype, device, min_pixels, max_pixels, quantize=quantize, memory=memory)
    from qwenvl.tasks.extraction import ExtractionError, extract_many

    results = extract_many(assistant, sources, what, instructions=instructions, sampling=sampling)

    def work(source: str) -> Record:
        result = next(results)
        if isinstance(result, Exception):
            inner = None if isinstance(result, ExtractionError) else result.__cause__
            raise inner if isinstance(inner, Exception) else result  # without where it stood in a conversation
        if result.cut:
            print(
                f"qwenvl: {source}: --max-new-tokens {max_new_tokens} was reached; not finished: "
                f"{', '.join(result.cut)}",
                file=sys.stderr,
            )
        return Record({"model": model, **result.to_dict()}, _text(source, result, want.columns if as_csv else None))

    if as_csv:
        print(_line(["source", *want.columns]))
    raise typer.Exit(each(sources, work, as_json, headings=not as_csv))


def _text(source: str, result: Extraction, columns: Sequence[str] | None) -> str:
    """A line of the table, or the data with a field a line."""
    from qwenvl.tasks.extraction.extract import row

    if columns is not None:
        return _line([source, *row(result, columns)])
    return json.dumps(result.data, ensure_ascii=False, indent=2)


def _line(values: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(values)
    return out.getvalue()


def _wish(fields: str | None, schema: Path | None, model_class: str | None) -> Schema:
    """What the options say is wanted. ValueError unless it is one of the three, and can be read."""
    given = [
        name for name, value in (("--fields", fields), ("--schema", schema), ("--model-class", model_class)) if value
    ]
    if len(given) != 1:
        raise ValueError(
            f"{' and '.join(given) or 'nothing'} {'say' if given else 'says'} what to extract: give one of --fields, "
            "--schema and --model-class"
        )
    if fields is not None:
        return [name.strip() for name in fields.split(",")]
    if schema is not None:
        try:
            read = json.loads(schema.read_text("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"--schema {schema} is no JSON: {error}") from None
        if not isinstance(read, dict):
            raise ValueError(f"--schema {schema} holds a {type(read).__name__}: expected an object, a JSON Schema")
        return read
    assert model_class is not None
    return _load_class(model_class)


def _load_class(name: str) -> Any:
    """The class of "module:Class", from the current folder too."""
    from qwenvl.tasks.extraction.schemas import ModelClass

    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"--model-class {name}: expected module:Class, such as receipts:Receipt")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"--model-class {name}: {module} cannot be imported: {error}") from None
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, ModelClass):
        raise ValueError(f"--model-class {name}: {module} has no pydantic model class {attribute}")
    return found


def _check_installed() -> None:
    from importlib.util import find_spec

    if find_spec("llguidance") is None:
        raise ValueError('extracting needs llguidance: pip install "qwenvl[grammar]"')
