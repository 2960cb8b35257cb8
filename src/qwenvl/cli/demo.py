"""`qwenvl demo`: the whole way once: a picture drawn this moment, then pictures and a video drawn by someone else."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenvl.cli.inputs import ModelOption, QuantizeOption, check_quantize, find_model, start_assistant

if TYPE_CHECKING:
    from qwenvl.tasks import Assistant


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures; made when it is missing.")] = Path("out"),
    seed: Annotated[int | None, typer.Option(min=0, help="Draws the same picture again.")] = None,
    model: ModelOption = "demo",
    quantize: QuantizeOption = None,
) -> None:
    """Draw a picture, ask about it, find what is in it; the same with a shipped picture, two pictures and a video."""
    check_quantize(quantize)
    found = find_model(model)

    import numpy as np
    from PIL import Image

    from qwenvl.demo.questions import describe
    from qwenvl.demo.samples import CLIP, PICTURES
    from qwenvl.demo.world import sample_picture

    out.mkdir(parents=True, exist_ok=True)
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0]) % 100_000
    fresh = sample_picture(np.random.default_rng(seed), training=False)
    path = out / f"fresh-{seed}.png"
    Image.fromarray(fresh.image).save(path)

    started = time.perf_counter()
    assistant = start_assistant(found, quantize=quantize)
    print(f"model     {model}, loaded in {time.perf_counter() - started:.2f} s")
    print(f"\nA picture drawn just now (--seed {seed} draws it again):")
    _show(assistant, path, out)
    print(f"drawn     {describe(fresh)}")
    print("\nA picture that comes with the package:")
    _show(assistant, PICTURES / "three-shapes.png", out)
    print("\nTwo pictures:")
    _ask(assistant, [PICTURES / "three-shapes.png", PICTURES / "one-missing.png"], "What is different?")
    print("\nA video:")
    _ask(assistant, [PICTURES / CLIP], "What moves?")
    _ask(assistant, [PICTURES / CLIP], "When does the blue square appear?")
    print(f'\nYour turn:  qwenvl ask {path} "How many objects are there?"')


def _show(assistant: Assistant, path: Path, out: Path) -> None:
    """Question, answer, boxes and the annotated picture of one file."""
    from qwenvl.media import load_image
    from qwenvl.tasks import draw_boxes, locate, places_to_dicts

    image = load_image(path)
    question = "Describe this image."
    answer = assistant.ask([image], question)
    places = locate(assistant, image, "object")
    target = out / f"{path.stem}-boxes.png"
    draw_boxes(image, places).save(target)
    _line("picture", [f"{path} ({image.width} x {image.height})"])
    _line("question", [question])
    _line("answer", [f"{answer.text}  ({answer.seconds:.2f} s)"])
    rows = []
    for place in places_to_dicts(places):
        numbers = place["box" if "box" in place else "point"]
        rows.append(f"{place['label']:<18}" + " ".join(f"{number:7.1f}" for number in numbers))
    _line("boxes", rows or ["none found"])
    _line("annotated", [str(target)])


def _ask(assistant: Assistant, paths: list[Path], question: str) -> None:
    """Question and answer about files."""
    answer = assistant.ask(paths, question)
    for path in paths:
        _line("file", [str(path)])
    _line("question", [question])
    _line("answer", f"{answer.text}  ({answer.seconds:.2f} s)".splitlines())


def _line(name: str, rows: Iterable[str]) -> None:
    for row in rows:
        print(f"{name:<10}{row}")
        name = ""
