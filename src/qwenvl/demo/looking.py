"""The auxiliary losses of the bundled model's training: what covers each vision token, and where words look.

From the tower's output is read what covers each vision token (shape, colour, whose centre it holds, how far the box
reaches); from early layers of the decoder where the box lies in the picture, the digits of its coordinates, and what
happens there. They are used in training only and speed it up many times: without them the model first learns
sentences and looks much later.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl.config import Qwen2_5_VLTextConfig
from qwenvl.demo.gaze import LEVELS, Guide
from qwenvl.demo.lettering import LETTERS
from qwenvl.demo.sights import CELL, EVENTS, IN_QUARTER, PLACES
from qwenvl.demo.world import COLOURS, SHAPES
from qwenvl.training.collate import TrainBatch

HUNDREDS = 6  # first digits of coordinates
TIMES = 26  # classes of the time at which something appears
SLOTS = 4 * IN_QUARTER  # letters of a vision token
BOX_LAYER, DIGIT_LAYER = 1, 3  # decoder layers whose output is read
# (decoder layer, head) taught where to look, for each of gaze.LEVELS
HEADS = (((2, 0),), ((5, 0), (5, 2), (6, 0)), ((2, 2), (3, 2)), ((4, 0), (4, 2), (7, 0)))
GUIDANCE = dict(zip(LEVELS, (0.4, 0.7, 0.4, 0.7), strict=True))  # weights of that


class Looking:
    """The auxiliary loss (see training.trainer.Auxiliary)."""

    def __init__(self, model: nn.Module, config: Qwen2_5_VLTextConfig) -> None:
        width = config.hidden_size
        self._sizes = [1 + len(SHAPES), 1 + len(COLOURS), 2, 4]
        self.module = nn.ModuleDict(
            {
                "tower": nn.Linear(width, sum(self._sizes)),
                "decoder": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, PLACES + 4)),
                "digits": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 6 * (HUNDREDS + 10))),
                "fives": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 6 * 2)),
                "letters": nn.Linear(width, SLOTS * (1 + len(LETTERS))),
                "read": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, SLOTS * (1 + len(LETTERS)))),
                "events": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, EVENTS + TIMES)),
            }
        )
        self._guide = Guide(model, config, HEADS)
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
        targets = torch.cat([x.cells for x in batch.extras if x is not None])
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
            fives = self.module["fives"](later[middle]).float().unflatten(-1, (6, 2)).flatten(0, 1)
            parts["a_fives"] = F.cross_entropy(fives, spoken // 5 % 2) * 0.3
            parts |= self._happenings(later, targets)
        parts |= self._letters(embeds, batch)
        if self._hidden:
            found = self._guide.loss(batch, [[] if x is None else x.gazes for x in batch.extras])
            parts |= {name: cost * GUIDANCE[name] for name, cost in found.items()}
        self._hidden = {}
        return torch.stack(list(parts.values())).sum(), {k: v.item() for k, v in parts.items()}

    def _letters(self, embeds: Tensor, batch: TrainBatch) -> dict[str, Tensor]:
        """Which letters stand in the quarters of each vision token, letters and blanks weighed alike: told by the
        tower, and once more in the decoder."""
        seen = [x for x in batch.extras if x is not None]
        if all(x.letters is None for x in seen):
            return {}
        none = partial(torch.zeros, dtype=torch.long)
        targets = torch.cat([none(len(x.cells), SLOTS) if x.letters is None else x.letters for x in seen])
        heads = [("", "letters", embeds)]
        if self._hidden and batch.packed.vision_index is not None:
            heads.append(("_read", "read", self._hidden["digits"].index_select(0, batch.packed.vision_index)))
        parts = {}
        for name, head, hidden in heads:
            told = self.module[head](hidden).float().unflatten(-1, (SLOTS, -1))
            weight = 1.0 if name == "" else 0.3
            for what, rows in (("letter", targets > 0), ("blank", targets == 0)):
                if bool(rows.any()):
                    parts[f"a_{what}{name}"] = F.cross_entropy(told[rows], targets[rows]) * weight
        return parts

    def _happenings(self, seen: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What happens at each token of clips and second pictures, quiet and eventful ones weighed alike; and when."""
        event, time = targets[:, 18].long(), targets[:, 19].long()
        told = self.module["events"](seen).float()
        parts = {}
        for name, rows in (("a_quiet", event == 0), ("a_event", event > 0)):
            if bool(rows.any()):
                parts[name] = F.cross_entropy(told[rows, :EVENTS], event[rows]) * 0.5
        if bool((time >= 0).any()):
            parts["a_time"] = F.cross_entropy(told[time >= 0, EVENTS:], time[time >= 0]) * 0.3
        return parts
