"""The vision tower of both families: patches of any number of pictures in, one embedding per 2 x 2 patches out.

Qwen2.5-VL attends within windows of 112 px in most blocks and over whole frames in a few; Qwen2-VL over whole
frames in all. Windows are never masked and never looped over: cells are sorted so that windows of equal size lie
side by side, and each size is one batched product. Tokens stay in that order from block to block and change
order only where full and windowed blocks meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qwenvl.config import Qwen2_5_VLVisionConfig, Qwen2VLVisionConfig
from qwenvl.kernels.rows import rotate_rows
from qwenvl.model.attention import Backend, Plan, attend, plan
from qwenvl.model.layers import GatedMLP, Linear, PlainMLP, Recompute, add_norm, norm_named
from qwenvl.model.rope import vision_rotation
from qwenvl.types import Affine, SeqInfo

NORM_EPS = 1e-6
VisionConfig = Qwen2_5_VLVisionConfig | Qwen2VLVisionConfig
Product = tuple[Tensor, Tensor | None]  # weight and bias
KEPT_PRODUCTS = 4


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
    """Patches as rows of pixels [P, K] -> tokens [P, width]. The weight has the checkpoint's conv3d shape
    [width, 3, 2, 14, 14]; kernel and stride are equal, so it is one matrix product.

    K is 3 * 2 * 14 * 14 = 1176 (channel, frame, y, x), or 3 * 14 * 14 = 588 where the frames of a row are equal and
    given once, as those of a picture are. Floats are values as the model sees them. uint8 are pixels and come with
    affine = (scale, shift), three numbers each: what the model sees of channel c is pixel * scale[c] + shift[c].

    The sum of equal frames and the affine are folded into the weight, in float64. Pixels enter the product as
    pixel - 128, which every dtype holds exactly: on pictures the tokens in bfloat16 are then nearer to the exact ones
    than those of rounded values are. Folded weights are kept for as long as the weight is the same tensor at the same
    version; a change through `.data`, which has no version, is not seen where it keeps the memory.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.width, kernel, stride=kernel, bias=False)
        self._kept: dict[tuple[int, Affine | None], tuple[Tensor, tuple[Any, ...], Product]] = {}

    def forward(self, pixels: Tensor, affine: Affine | None = None) -> Tensor:
        weight, columns = self.proj.weight, pixels.shape[1]
        whole = weight[0].numel()
        if columns not in (whole, whole // weight.shape[2]):
            raise ValueError(
                f"pixel_values has {columns} columns: expected {whole}, or {whole // weight.shape[2]} for equal frames"
            )
        if (pixels.dtype == torch.uint8) != (affine is not None):
            raise ValueError(
                f"pixel_values are {pixels.dtype} {'without' if affine is None else 'with'} an affine: uint8 pixels "
                "need the one that the processor gives with them, other values are taken as they are"
            )
        if affine is None and columns == whole:
            return nn.functional.linear(pixels.to(weight.dtype), weight.flatten(1))
        if affine is not None:
            pixels = (pixels ^ 128).view(torch.int8)  # two's complement: pixel - 128
        return nn.functional.linear(pixels.to(weight.dtype), *self._product(columns, affine))

    def _product(self, columns: int, affine: Affine | None) -> Product:
        """The folded weight and bias, made again when the weight has changed."""
        weight = self.proj.weight
        if weight.is_inference() or (torch.is_grad_enabled() and weight.requires_grad):
            return _folded(weight, columns, affine)
        kept, state = self._kept.get((columns, affine)), (weight._version, weight.data_ptr(), weight.dtype)
        if kept is None or kept[0] is not weight or kept[1] != state:
            with torch.inference_mode(False), torch.no_grad():
                kept = (weight, state, _folded(weight, columns, affine))
            if len(self._kept) >= KEPT_PRODUCTS:
                self._kept.clear()
            self._kept[columns, affine] = kept
        return kept[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}


def _folded(weight: Tensor, columns: int, affine: Affine | None) -> Product:
    """Weight [width, columns] and bias [width] (None without affine) that take pixel - 128, or values of equal frames
    (without affine), to what weight [width, channels, frames, y, x] makes of the values."""
    exact = weight.double().flatten(3)
    if columns != weight[0].numel():
        exact = exact.sum(2, keepdim=True)
    if affine is None:
        return _rounded(exact, weight.dtype).flatten(1), None
    scale, shift = (exact.new_tensor(x).view(-1, 1, 1) for x in affine)
    bias = (exact * (128 * scale + shift)).sum((1, 2, 3))
    return _rounded(exact * scale, weight.dtype).flatten(1), bias.to(weight.dtype)


def _rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 [..., n] in another dtype. In half precision the error of each number is carried to the next, so that
    errors cancel where neighbouring pixels are alike, as they are in pictures."""
    if torch.finfo(dtype).bits > 16:
        return exact.to(dtype)
    rounded, carry = [], torch.zeros_like(exact[..., 0])
    for column in exact.unbind(-1):
        wanted = column + carry
        rounded.append(wanted.to(dtype))
        carry = (wanted - rounded[-1]).detach()
    return torch.stack(rounded, -1)


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.qkv = Linear(config.width, 3 * config.width)
        self.proj = Linear(config.width, config.width)
        self._heads, self._backend = config.num_heads, backend

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], layout: Plan) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self._heads, -1)).unbind(1)
        q, k = rotate_rows(q, *rotation), rotate_rows(k, *rotation)
        out = attend(q, k, v, layout, self._backend, causal=False)
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
        x, normed = add_norm(self.norm2, x, self.attn(self.norm1(x), rotation, layout))
        return x + self.mlp(normed)


class PatchMerger(nn.Module):
    """The four patches of a cell side by side -> one embedding of the text model's width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self._wide = config.width * config.spatial_merge_size**2
        self.ln_q = norm_named(config.norm, config.width, NORM_EPS)
        self.mlp = nn.Sequential(Linear(self._wide, self._wide), nn.GELU(), Linear(self._wide, config.out_width))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).view(-1, self._wide))


class VisionTower(nn.Module):
    """Pixels [P, channels * temporal * 14 * 14] and grids [n, 3] -> embeddings [V, out_width], V = P / 4.

    uint8 pixels with their affine, and rows that hold equal frames once, are taken too (see PatchEmbed)."""

    recompute: Recompute | None = None  # gradient checkpointing, when it is on

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config, backend) for _ in range(config.depth))
        self.merger = PatchMerger(config)
        cell = config.patch_size * config.spatial_merge_size
        self._window = None if config.window_size is None else config.window_size // cell

    def forward(self, pixel_values: Tensor, grid_thw: Tensor, affine: Affine | None = None) -> Tensor:
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
        x = self.patch_embed(pixel_values, affine)
        for order in orders:
            if id(order) not in rotations:
                rotations[id(order)] = _cells(cosine, order.index, merge), _cells(sine, order.index, merge)
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
