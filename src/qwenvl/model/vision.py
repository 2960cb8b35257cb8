"""The vision tower of both families: patches of any number of pictures in, one embedding per 2 x 2 patches out.

Qwen2.5-VL attends within windows of 112 px in most blocks and over whole frames in a few; Qwen2-VL over whole
frames in all. Windows are never masked and never looped over: cells are sorted so that windows of equal size lie
side by side, and each size is one batched product. Tokens stay in that order from block to block and change
order only where full and windowed blocks meet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from qwenvl.config import Qwen2_5_VLVisionConfig, Qwen2VLVisionConfig
from qwenvl.model.attention import Backend, Plan, attend, plan
from qwenvl.model.layers import GatedMLP, PlainMLP, Recompute, norm_named
from qwenvl.model.rope import rotate, vision_rotation
from qwenvl.types import SeqInfo

NORM_EPS = 1e-6
VisionConfig = Qwen2_5_VLVisionConfig | Qwen2VLVisionConfig


@dataclass(frozen=True)
class Order:
    """An order of the merged cells, and the attention of blocks that work in it.

    index: int64 [V], the cell (in picture order) at each place. layout: segments of patches that see each other.
    """

    index: Tensor
    layout: Plan


@dataclass(frozen=True)
class TowerLayout:
    """All that the grids of a batch decide: patch coordinates [P, 2] in picture order, and the two orders."""

    coordinates: Tensor
    full: Order
    windows: Order | None


def tower_layout(grid_thw: Tensor, merge: int, window: int | None, device: torch.device) -> TowerLayout:
    """Layout for pictures of grids int64 [n, 3] (in patches); `window`: side of a window in merged cells, or None.

    Example: one frame of 3 x 5 cells with window 4 has windows of 3 x 4 and 3 x 1 cells; the order puts the three
    cells of the small one first.
    """
    frames, rows, columns, windows = [], [], [], []
    frame_base = window_base = 0
    for t, h, w in (grid_thw // torch.tensor([1, merge, merge], device=grid_thw.device)).tolist():
        shape = (t, h, w)
        time, row, column = (a.ravel() for a in np.indices(shape))
        frames.append(frame_base + time)
        rows.append(row)
        columns.append(column)
        if window is not None:
            across, down = -(-w // window), -(-h // window)
            windows.append(window_base + (time * down + row // window) * across + column // window)
            window_base += t * down * across
        frame_base += t
    row, column = np.concatenate(rows), np.concatenate(columns)
    inner = np.indices((merge, merge)).reshape(2, 1, -1)
    coordinates = np.stack([(row[:, None] * merge + inner[0]).ravel(), (column[:, None] * merge + inner[1]).ravel()], 1)
    return TowerLayout(
        torch.from_numpy(coordinates).to(device),
        _order(np.concatenate(frames), merge * merge, device),
        _order(np.concatenate(windows), merge * merge, device) if window is not None else None,
    )


def _order(segment: np.ndarray, patches_per_cell: int, device: torch.device) -> Order:
    """Cells sorted by (size of their segment, segment, picture order). segment: int [V], that of each cell."""
    sizes = np.bincount(segment)
    index = np.lexsort((segment, sizes[segment]))
    lengths = np.sort(sizes) * patches_per_cell
    layout = plan(SeqInfo.from_lengths(lengths.tolist()), device, pad=False)
    return Order(torch.from_numpy(index).to(device), layout)


class PatchEmbed(nn.Module):
    """Patches as rows of pixels -> tokens. The weight has the checkpoint's conv3d shape [width, 3, 2, 14, 14];
    kernel and stride are equal, so it is one matrix product."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.width, kernel, stride=kernel, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.linear(pixels, self.proj.weight.flatten(1))


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self._heads, self._backend = config.num_heads, backend

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], layout: Plan) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self._heads, -1)).unbind(1)
        out = attend(rotate(q, rotation), rotate(k, rotation), v, layout, self._backend, causal=False)
        return self.proj(out.flatten(1))


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.norm1 = norm_named(config.norm, config.width, NORM_EPS)
        self.norm2 = norm_named(config.norm, config.width, NORM_EPS)
        self.attn = VisionAttention(config, backend)
        self.mlp: nn.Module = (
            GatedMLP(config.width, config.mlp_width, config.hidden_act, bias=True)
            if config.gated_mlp
            else PlainMLP(config.width, config.mlp_width, config.hidden_act)
        )

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], layout: Plan) -> Tensor:
        x = x + self.attn(self.norm1(x), rotation, layout)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nn.Module):
    """The four patches of a cell side by side -> one embedding of the text model's width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self._wide = config.width * config.spatial_merge_size**2
        self.ln_q = norm_named(config.norm, config.width, NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(self._wide, self._wide), nn.GELU(), nn.Linear(self._wide, config.out_width))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).view(-1, self._wide))


class VisionTower(nn.Module):
    """Pixels [P, channels * temporal * 14 * 14] and grids [n, 3] -> embeddings [V, out_width], V = P / 4."""

    recompute: Recompute | None = None  # gradient checkpointing, when it is on

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config, backend) for _ in range(config.depth))
        self.merger = PatchMerger(config)
        cell = config.patch_size * config.spatial_merge_size
        self._window = None if config.window_size is None else config.window_size // cell

    def forward(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        expected = int(grid_thw.prod(-1).sum())
        if pixel_values.ndim != 2 or pixel_values.shape[0] != expected:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, grids {grid_thw.tolist()} need {expected} rows"
            )
        config = self.config
        merge = config.spatial_merge_size
        layout = tower_layout(grid_thw, merge, self._window, pixel_values.device)
        cosine, sine = vision_rotation(layout.coordinates, config.width // config.num_heads)
        orders = [
            layout.full if layout.windows is None or i in config.fullatt_block_indexes else layout.windows
            for i in range(config.depth)
        ]
        rotations: dict[int, tuple[Tensor, Tensor]] = {}
        x = self.patch_embed(pixel_values.to(self.patch_embed.proj.weight.dtype))
        for order in orders:
            if id(order) not in rotations:
                rotations[id(order)] = (
                    _cells(cosine, order.index, merge).to(x.dtype),
                    _cells(sine, order.index, merge).to(x.dtype),
                )
        x = _cells(x, orders[0].index, merge)
        for block, order, following in zip(self.blocks, orders, [*orders[1:], orders[-1]], strict=True):
            if self.recompute is not None and self.training:
                x = self.recompute(block, x, rotations[id(order)], order.layout)
            else:
                x = block(x, rotations[id(order)], order.layout)
            if following is not order:
                x = _cells(x, _places(order.index)[following.index], merge)
        return self.merger(x)[_places(orders[-1].index)]


def _places(index: Tensor) -> Tensor:
    """The inverse permutation: where each cell lies."""
    places = torch.empty_like(index)
    places[index] = torch.arange(len(index), device=index.device)
    return places


def _cells(x: Tensor, index: Tensor, merge: int) -> Tensor:
    """Reorder x [P, ...] by whole cells of merge * merge patches."""
    return x.unflatten(0, (-1, merge * merge)).index_select(0, index).flatten(0, 1)
