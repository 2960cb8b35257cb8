"""`qwenvl eval demo`: the bundled model measured on fresh pictures of its world."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from qwenvl.cli.inputs import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuantizeOption,
    check_load,
    find_model,
    start_assistant,
)


def evaluate(
    suite: Annotated[Literal["demo"], typer.Argument(help="demo: drawn pictures, each with its truth.")],
    pictures: Annotated[int, typer.Option(min=1, help="Pictures for each task.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Other seed, other pictures; none of them is trained on.")] = 0,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given several times.")] = None,
    model: ModelOption = "demo",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
    mistakes: Annotated[int, typer.Option(min=0, help="Show so many wrong answers of each task.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on fresh pictures, greedily, and compare with the bars of the bundled one."""
    from qwenvl.demo.evaluate import BATCH, TASKS, use_sizes_of_the_world
    from qwenvl.demo.evaluate import evaluate as measure

    tasks = task or list(TASKS)
    for name in tasks:
        if name not in TASKS:
            raise ValueError(f"--task {name} is not known: expected one of {', '.join(TASKS)}")
    check_load(dtype, device, quantize)
    found = find_model(model)

    from rich.console import Console
    from rich.progress import Progress

    assistant = start_assistant(found, dtype, device, max_running=BATCH, quantize=quantize)
    use_sizes_of_the_world(assistant.processor)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("answers", total=pictures * len(tasks))
        report = measure(assistant.ask_many, pictures, seed, tasks, lambda count: bar.advance(line, count))
    if as_json:
        print(json.dumps({"model": model, **report.to_dict()}, ensure_ascii=False))
        return
    print(f"{'task':<22}{'score':>8}{'bar':>8}{'answers':>9}")
    for row in report.rows:
        wanted = "" if row.bar is None else f"{row.bar:.2f}"
        print(f"{row.name:<22}{row.value:>8.3f}{wanted:>8}{row.count:>9}{'' if row.met else '  below'}")
    for name in tasks:
        for wrong in [m for m in report.mistakes if m.task == name][:mistakes]:
            print(f"\n{name} {wrong.seed[2]}: {wrong.question}\n  wanted: {wrong.wanted}\n  got:    {wrong.got}")
