"""The optimizers of a run: AdamW alone, or Muon for the matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

OptimizerName = Literal["adamw", "muon"]


def build_optimizers(
    name: OptimizerName,
    modules: Iterable[nn.Module],
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> list[torch.optim.Optimizer]:
    """Optimizers over every trainable parameter of `modules`, each parameter once.

    Weight decay goes to matrices, not to norms and biases. "muon" (Jordan et al. 2024, torch.optim.Muon with updates
    scaled to AdamW's size, so that one learning rate serves both) takes the two-dimensional weights of layers;
    embeddings and everything else stay with AdamW. ValueError for another name.
    """
    if name not in ("adamw", "muon"):
        raise ValueError(f"optimizer={name!r}: expected adamw or muon")
    parts = [part for module in modules for part in module.modules()]
    embeddings = {id(part.weight) for part in parts if isinstance(part, nn.Embedding)}
    own = {id(p): p for part in parts for p in part.parameters(recurse=False) if p.requires_grad}
    muon = [p for key, p in own.items() if name == "muon" and p.ndim == 2 and key not in embeddings]
    taken = {id(p) for p in muon}
    rest = [p for key, p in own.items() if key not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas, fused=True)
    if not muon:
        return [adamw]
    matrices = torch.optim.Muon(muon, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return [matrices, adamw]
