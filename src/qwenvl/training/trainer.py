"""The training loop: packed batches, answer-only loss, warm-up / stable / decay schedule, exact resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl.training.collate import TrainBatch, collate
from qwenvl.training.data import Processor, Source
from qwenvl.training.optimizers import OptimizerName, build_optimizers


@dataclass(frozen=True)
class TrainSettings:
    """steps: optimizer steps in all. learning_rate: the peak, after `warmup` steps; it stays there and falls linearly
    to zero over the last `decay` share of the steps (Hu et al. 2024). save_seconds: time between checkpoints.
    optimizer: see build_optimizers. short_answers: power by which a token counts less in a longer answer; 0 counts
    every token alike, 1 every answer alike (a "Yes." then weighs as much as a list of boxes)."""

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.25
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    save_seconds: float = 300.0
    bf16: bool = True
    optimizer: OptimizerName = "adamw"
    short_answers: float = 0.0

    def rate(self, step: int) -> float:
        """Learning rate of a step counted from 0."""
        falling = max(1, round(self.steps * self.decay))
        left = (self.steps - step) / falling
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup), max(0.0, left))


class Auxiliary(Protocol):
    """A loss beside the answers, used in training only. Its parameters are trained with the model's and saved with
    the trainer's state, never with the checkpoint."""

    @property
    def module(self) -> nn.Module: ...

    def loss(self, embeds: Tensor, batch: TrainBatch) -> tuple[Tensor, dict[str, float]]:
        """embeds: the tower's [V, D]. Returns the term to add and figures for the log."""


class Trainer:
    """Trains `model` on `source`; writes checkpoints, log.jsonl and state.pt into `folder`.

    Resumes from `folder` when it holds a state. Raises ValueError when the loss is not finite.
    """

    def __init__(
        self,
        model: Any,
        processor: Processor,
        source: Source,
        settings: TrainSettings,
        folder: Path,
        auxiliary: Auxiliary | None = None,
    ) -> None:
        self.model, self.processor, self.source = model, processor, source
        self.settings, self.folder, self.auxiliary = settings, folder, auxiliary
        self.step = 0
        modules = [model] if auxiliary is None else [model, auxiliary.module]
        self.optimizers = build_optimizers(
            settings.optimizer, modules, settings.learning_rate, settings.weight_decay, settings.betas
        )
        self._parameters = [p for o in self.optimizers for group in o.param_groups for p in group["params"]]
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.pt").exists():
            self._restore()

    def run(self, report: Callable[[int, dict[str, float]], None] = lambda step, figures: None) -> None:
        """Train to settings.steps; `report(step, figures)` after every step."""
        self.model.train()
        saved = time.monotonic()
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            while self.step < self.settings.steps:
                figures = self.train_step(collate(self.source.batch(self.step), self.model.config))
                self.step += 1
                log.write(json.dumps({"step": self.step, **{k: round(v, 5) for k, v in figures.items()}}) + "\n")
                log.flush()
                report(self.step, figures)
                if time.monotonic() - saved > self.settings.save_seconds:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """Forward, backward and update on one batch; returns its figures."""
        began = time.perf_counter()
        rate = self.settings.rate(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.settings.bf16):
            loss, figures = self._loss(batch)
        if not math.isfinite(loss.item()):
            raise ValueError(
                f"the loss of step {self.step} is {loss.item()}: lower the learning rate or check the data"
            )
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, self.settings.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        seconds = time.perf_counter() - began
        return {
            **figures,
            "norm": float(norm),
            "lr": rate,
            "tokens": len(batch.packed.token_ids),
            "seconds": seconds,
        }

    def _loss(self, batch: TrainBatch) -> tuple[Tensor, dict[str, float]]:
        packed = batch.packed
        embeds = None
        if len(batch.grids):
            pixels = self.processor.image_processor.normalize(batch.patches)
            embeds = packed.vision_embeds = self.model.encode_vision(pixels, batch.grids)
        else:
            packed.vision_index = None
        if embeds is not None and self.auxiliary is not None and not len(batch.targets):
            return self.auxiliary.loss(embeds, batch)  # nothing to answer: the tower alone is trained
        logits = self.model.run(packed)
        weights = batch.lengths.to(torch.float32) ** -self.settings.short_answers
        answers = (F.cross_entropy(logits, batch.targets, reduction="none") * weights).sum() / weights.sum()
        right = (logits.detach().argmax(-1) == batch.targets).float().mean()
        figures = {"loss": answers.item(), "right": right.item()}
        if self.auxiliary is None or embeds is None:
            return answers, figures
        beside, more = self.auxiliary.loss(embeds, batch)
        return answers + beside, figures | more

    def save(self) -> None:
        """Checkpoint in the official layout plus state.pt, each replaced at once."""
        self.model.save_pretrained(self.folder)
        self.processor.save_pretrained(self.folder)
        state = {
            "step": self.step,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "model": self.model.state_dict(),
        }
        if self.auxiliary is not None:
            state["auxiliary"] = self.auxiliary.module.state_dict()
        torch.save(state, self.folder / "state.tmp")
        (self.folder / "state.tmp").replace(self.folder / "state.pt")

    def _restore(self) -> None:
        state = torch.load(self.folder / "state.pt", map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        if self.auxiliary is not None:
            self.auxiliary.module.load_state_dict(state["auxiliary"])
