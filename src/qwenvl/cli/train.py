"""`qwenvl train`: a model trained on conversations, or the bundled one from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qwenvl.cli.inputs import find_model

if TYPE_CHECKING:
    from qwenvl.training.trainer import Trainer, TrainSettings


def train(
    data: Annotated[str, typer.Argument(help='A JSON Lines file in the LLaVA style, or "demo" (the bundled model).')],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and curve; a run there is continued.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="What to start from (needed with a file).")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps in all.")] = 1000,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 1e-3,
    warmup: Annotated[int, typer.Option(min=0, help="Steps until the peak is reached.")] = 100,
    decay: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the steps in which it falls to 0.")] = 0.4,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Conversations a step (files only; 8).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Order of the data; demo: also which pictures.")] = 1,
    save_minutes: Annotated[float, typer.Option(min=0.0, help="Time between checkpoints.")] = 5.0,
    optimizer: Annotated[
        Literal["adamw", "muon"], typer.Option(help="muon: for the matrices, AdamW for the rest.")
    ] = "adamw",
    short_answers: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="0: every token counts alike, 1: every answer.")
    ] = 0.0,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16, keep weights in float32.")] = True,
) -> None:
    """Train on packed conversations, with loss on the answers only. Stop it at any time and call it again to go on."""
    if data == "demo" and model is not None:
        raise ValueError("`train demo` makes the bundled model from scratch: leave out --model")
    if data == "demo" and batch_size is not None:
        raise ValueError("`train demo` fills its batches by tokens: leave out --batch-size")
    if data != "demo" and model is None:
        raise ValueError("--model is missing: name the checkpoint to start from")
    if data != "demo" and not Path(data).is_file():
        raise ValueError(f"{data} is not a file: expected a JSON Lines file, or demo")
    folder = None if model is None else find_model(model).folder

    from qwenvl.training.trainer import TrainSettings

    settings = TrainSettings(
        steps,
        learning_rate,
        warmup,
        decay,
        save_seconds=60 * save_minutes,
        bf16=bf16,
        optimizer=optimizer,
        short_answers=short_answers,
    )
    if folder is None:
        from qwenvl.demo.recipe import demo_trainer

        trainer = demo_trainer(settings, out, seed)
    else:
        trainer = _file_trainer(Path(data), folder, settings, out, batch_size or 8, seed)
    if trainer.step >= steps:
        raise ValueError(f"{out} is already at step {trainer.step}: raise --steps, or choose another --out")
    _run(trainer, settings)


def _file_trainer(data: Path, folder: Path, settings: TrainSettings, out: Path, batch_size: int, seed: int) -> Trainer:
    """A trainer that starts from the checkpoint in `folder`."""
    from qwenvl.checkpoint import load_model
    from qwenvl.processing import AutoProcessor
    from qwenvl.training.data import Encoder, JsonLines
    from qwenvl.training.trainer import Trainer

    processor = AutoProcessor.from_pretrained(folder)
    source = JsonLines(data, Encoder(processor), batch_size, seed)
    model = load_model(folder, dtype="float32", attn_implementation="eager")
    return Trainer(model, processor, source, settings, out)


def _run(trainer: Trainer, settings: TrainSettings) -> None:
    """Train under a progress bar, then write the weights in bfloat16 and the curve."""
    import torch
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from qwenvl.training.curve import draw_curve

    shown = TextColumn("{task.description}")
    columns = (shown, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        line = bar.add_task("training", total=settings.steps, completed=trainer.step)

        def report(step: int, figures: dict[str, float]) -> None:
            known = {k: figures[k] for k in ("loss", "right") if k in figures}
            text = "  ".join(f"{k} {v:.3f}" for k, v in known.items()) or "looking"
            bar.update(line, completed=step, description=text)

        trainer.run(report)
    if settings.bf16:
        trainer.model.to(torch.bfloat16).save_pretrained(trainer.folder)
    print(f"checkpoint  {trainer.folder}")
    print(f"curve       {draw_curve(trainer.folder)}")
