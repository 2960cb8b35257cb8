"""How the bundled model is trained: its config, its curriculum over the synthetic world, and an auxiliary loss.

It learns to look first: for LOOKING steps only the tower is trained, by the auxiliary loss, on pictures without
questions (a third of the cost of a full step). Then it learns to answer, beginning with one large thing.

The auxiliary loss reads what covers each vision token (shape, colour, whose centre it holds, how far the box reaches)
from the tower's output, and where the box lies in the picture from an early layer of the decoder. It is used in
training only and speeds up looking: without it the model first learns sentences and looks much later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl.config import Qwen2_5_VLConfig
from qwenvl.demo.questions import sample_exchange
from qwenvl.demo.vocabulary import corpus, tokenizer_config, train_tokenizer
from qwenvl.demo.world import (
    COLOURS,
    MAX_PIXELS,
    MAX_THINGS,
    MIN_PIXELS,
    SHAPES,
    Picture,
    sample_foreign,
    sample_picture,
)
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration
from qwenvl.processing import ChatTemplate, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Tokenizer
from qwenvl.training.collate import TrainBatch
from qwenvl.training.data import Encoder, Sample, Turn
from qwenvl.training.trainer import Trainer, TrainSettings

SENTENCES = 20_000  # from which the vocabulary is learned
CELL = 28  # pixels of one vision token's side
PLACES = 8  # ordinal classes of the centre tokens
HUNDREDS = 6  # first digits of coordinates
BOX_LAYER, DIGIT_LAYER = 1, 3  # decoder layers whose output the auxiliary loss reads

TEXT = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "max_window_layers": 6, "rms_norm_eps": 1e-6,
    "rope_theta": 20.0, "rope_scaling": {"type": "mrope", "mrope_section": [6, 9, 9]}, "tie_word_embeddings": True,
    "use_sliding_window": False, "initializer_range": 0.03,
}  # fmt: skip
VISION = {
    "depth": 4, "hidden_size": 128, "intermediate_size": 344, "num_heads": 4, "in_channels": 3, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112,
    "out_hidden_size": 192, "fullatt_block_indexes": [1, 3], "hidden_act": "silu", "initializer_range": 0.03,
}  # fmt: skip


def demo_config(tokenizer: Tokenizer) -> Qwen2_5_VLConfig:
    """Config of the bundled model for its vocabulary."""
    name = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        vision_config=VISION,
        image_token_id=name("<|image_pad|>"),
        video_token_id=name("<|video_pad|>"),
        vision_start_token_id=name("<|vision_start|>"),
        vision_end_token_id=name("<|vision_end|>"),
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        torch_dtype="bfloat16",
    )


def demo_processor() -> Qwen2_5_VLProcessor:
    """The processor of the bundled model: its limits, and a vocabulary learned from the world's own sentences."""
    backend = train_tokenizer(corpus(np.random.default_rng(0), SENTENCES))
    template = ChatTemplate()
    tokenizer = Tokenizer(backend, tokenizer_config(backend, template.text))
    return Qwen2_5_VLProcessor(Qwen2VLImageProcessor(MIN_PIXELS, MAX_PIXELS), tokenizer, None, template)


def demo_trainer(settings: TrainSettings, folder: Path, seed: int) -> Trainer:
    """The trainer of `qwenvl train demo`: everything from scratch, or from the state in `folder`."""
    processor = demo_processor()
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(demo_config(processor.tokenizer), attn_implementation="eager")
    eos, pad = processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id
    model.generation_config = {"do_sample": False, "eos_token_id": eos, "pad_token_id": pad, "bos_token_id": pad}
    return Trainer(model, processor, World(Encoder(processor), seed), settings, folder, Looking(model))


@dataclass(frozen=True)
class Lesson:
    """A stretch of the curriculum: up to which step, how many things a picture shows, the share of pictures with large
    ones, and how often each kind of short question is asked."""

    until: int
    max_things: int
    large: float
    kinds: Mapping[str, float]


LOOKING, PICTURES = 1800, 20  # steps of looking only, and how many pictures each has
FIRST = {"colour": 1, "shape": 1, "exists": 1, "point": 1}
WHOLE = {"count": 1.5, "colour": 1, "shape": 1.5, "exists": 2, "where": 1.5, "relation": 2, "point": 1}
LONG = ("describe", "locate")  # every sample has one of these
LONG_FIRST = (
    0.35  # share of samples that begin with it; the short answers can be read off it there, so mostly it is last
)
LESSONS = (
    Lesson(LOOKING + 150, 1, 0.7, FIRST),
    Lesson(LOOKING + 400, 2, 0.4, WHOLE),
    Lesson(10**9, MAX_THINGS, 0.15, WHOLE),
)
FOREIGN, IDENTITY = 0.04, 0.04  # share of samples: pictures outside the world, questions without a picture
EMPTY = 0.05  # share of pictures that may show nothing


class World:
    """A training source (see training.data.Source) that draws new pictures for every step."""

    def __init__(self, encoder: Encoder, seed: int, token_budget: int = 3000, turns: int = 4) -> None:
        self._encoder, self._seed, self._budget, self._turns = encoder, seed, token_budget, turns

    def batch(self, step: int) -> list[Sample]:
        """Samples of about token_budget tokens in all; a pure function of (seed, step)."""
        rng = np.random.default_rng([self._seed, step])
        if step < LOOKING:
            return [self._look(rng) for _ in range(PICTURES)]
        lesson = next(x for x in LESSONS if step < x.until)
        samples: list[Sample] = []
        used = 0
        while used < self._budget:
            samples.append(self._sample(rng, lesson))
            used += len(samples[-1].token_ids)
        return samples

    def _look(self, rng: np.random.Generator) -> Sample:
        """A picture with no question: nothing in it carries an answer."""
        picture = sample_foreign(rng) if rng.random() < FOREIGN else sample_picture(rng)
        sample = self._encoder.encode([picture.image], [Turn("", "", images=1)], extra=cell_targets(picture))
        return replace(sample, answer=torch.zeros_like(sample.answer))

    def _sample(self, rng: np.random.Generator, lesson: Lesson) -> Sample:
        draw = rng.random()
        if draw < IDENTITY:
            exchanges = [sample_exchange(rng, None, "identity") for _ in range(2)]
            return self._encoder.encode([], [Turn(e.question, e.answer) for e in exchanges])
        if draw < IDENTITY + FOREIGN:
            picture = sample_foreign(rng)
            kinds = ["foreign"] * 2
        else:
            least = 0 if rng.random() < EMPTY else 1
            picture = sample_picture(rng, lesson.max_things, min_things=least, large=rng.random() < lesson.large)
            names = list(lesson.kinds)
            weights = np.array(list(lesson.kinds.values()))
            kinds = list(rng.choice(names, self._turns, replace=False, p=weights / weights.sum()))
            place = 0 if rng.random() < LONG_FIRST else len(kinds)
            kinds.insert(place, LONG[int(rng.integers(len(LONG)))])
        turns: list[Turn] = []
        for kind in kinds:
            exchange = sample_exchange(rng, picture, kind)
            if exchange is not None:
                turns.append(Turn(exchange.question, exchange.answer, images=int(not turns)))
        if not turns:
            return self._sample(rng, lesson)
        return self._encoder.encode([picture.image], turns, extra=cell_targets(picture))


def cell_targets(picture: Picture) -> Tensor:
    """What lies on each vision token: float32 [V, 18] with columns shape, colour (0 = nothing, else 1 + index),
    is centre, ordinal of the thing, its box from the token's centre (left, top, right, bottom, pixels), its box in the
    picture (x1, y1, x2, y2, pixels of the resized picture), and what answers say: box and point on the grid."""
    rows, columns = picture.resized_height // CELL, picture.resized_width // CELL
    targets = np.zeros((rows, columns, 18), np.float32)
    x, y = np.meshgrid(np.arange(columns) * CELL + CELL / 2, np.arange(rows) * CELL + CELL / 2)
    best = np.full((rows, columns), 0.25 * CELL * CELL)
    for place, thing in enumerate(picture.things):
        x1, y1, x2, y2 = picture.resized_box(thing)
        covered = np.clip(np.minimum(x2, x + CELL / 2) - np.maximum(x1, x - CELL / 2), 0, CELL) * np.clip(
            np.minimum(y2, y + CELL / 2) - np.maximum(y1, y - CELL / 2), 0, CELL
        )
        centre = np.zeros((rows, columns), bool)
        centre[min(rows - 1, int((y1 + y2) / 2 // CELL)), min(columns - 1, int((x1 + x2) / 2 // CELL))] = True
        mine = (covered > best) | centre
        best = np.where(centre, np.inf, np.where(mine, covered, best))
        values = np.empty((int(mine.sum()), 18), np.float32)
        values[:, 0], values[:, 1] = 1 + SHAPES.index(thing.shape), 1 + list(COLOURS).index(thing.colour)
        values[:, 2], values[:, 3] = centre[mine], min(place, PLACES - 1)
        values[:, 4], values[:, 5] = x[mine] - x1, y[mine] - y1
        values[:, 6], values[:, 7] = x2 - x[mine], y2 - y[mine]
        values[:, 8:] = (x1, y1, x2, y2, *picture.answer_box(thing), *picture.answer_point(thing))
        targets[mine] = values
    return torch.from_numpy(targets.reshape(-1, 18))


class Looking:
    """The auxiliary loss (see training.trainer.Auxiliary)."""

    def __init__(self, model: nn.Module) -> None:
        width = TEXT["hidden_size"]
        assert isinstance(width, int)
        self._sizes = [1 + len(SHAPES), 1 + len(COLOURS), 2, 4]
        self.module = nn.ModuleDict(
            {
                "tower": nn.Linear(width, sum(self._sizes)),
                "decoder": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, PLACES + 4)),
                "digits": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 6 * (HUNDREDS + 10))),
            }
        )
        self._hidden: dict[str, Tensor] = {}
        for name, layer in (("decoder", BOX_LAYER), ("digits", DIGIT_LAYER)):
            part = model.get_submodule(f"model.language_model.layers.{layer}")
            part.register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._hidden[name] = output

    def loss(self, embeds: Tensor, batch: TrainBatch) -> tuple[Tensor, dict[str, float]]:
        """Cross entropies of shape, colour, centre and ordinal, and absolute errors of boxes in units of 28 px.

        Tokens that hold a thing's centre count twice for shape, colour and reach: answers are read there. Without a
        run of the decoder (a batch of looking only) its two terms are left out.
        """
        targets = torch.cat([x for x in batch.extras if x is not None])
        shape, colour, centre, reach = self.module["tower"](embeds).float().split(self._sizes, dim=-1)
        on, middle = targets[:, 0] > 0, targets[:, 2] > 0
        parts = {"a_centre": F.cross_entropy(centre, targets[:, 2].long()) * 2}
        for name, rows in (("", slice(None)), ("_middle", middle)):
            if isinstance(rows, slice) or bool(rows.any()):
                parts["a_shape" + name] = F.cross_entropy(shape[rows], targets[rows, 0].long())
                parts["a_colour" + name] = F.cross_entropy(colour[rows], targets[rows, 1].long())
        if bool(on.any()):
            parts["a_reach"] = F.l1_loss(reach[on], targets[on, 4:8] / CELL)
            parts["a_reach_middle"] = F.l1_loss(reach[middle], targets[middle, 4:8] / CELL)
        if self._hidden and batch.packed.vision_index is not None and bool(on.any()):
            seen, later = (self._hidden[x].index_select(0, batch.packed.vision_index) for x in ("decoder", "digits"))
            order, box = self.module["decoder"](seen).float().split([PLACES, 4], dim=-1)
            parts["a_order"] = F.cross_entropy(order[middle], targets[middle, 3].long()) * 0.3
            parts["a_box"] = F.l1_loss(box[on], targets[on, 8:12] / CELL) * 0.5
            digits = self.module["digits"](later[middle]).float().unflatten(-1, (6, HUNDREDS + 10)).flatten(0, 1)
            spoken = targets[middle, 12:18].flatten().long()
            parts["a_hundreds"] = F.cross_entropy(digits[:, :HUNDREDS], spoken // 100) * 0.5
            parts["a_tens"] = F.cross_entropy(digits[:, HUNDREDS:], spoken // 10 % 10) * 0.5
        self._hidden = {}
        return torch.stack(list(parts.values())).sum(), {k: v.item() for k, v in parts.items()}
