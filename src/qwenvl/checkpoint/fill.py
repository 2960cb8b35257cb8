"""A model on the meta device and what is stored for it -> the same model with its weights, each at its place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwenvl.checkpoint.dispatch import dispatch
from qwenvl.checkpoint.names import HEAD
from qwenvl.checkpoint.offload import Keeper, fits
from qwenvl.checkpoint.placement import DeviceMap, plan_placement
from qwenvl.checkpoint.stored import Stored
from qwenvl.kernels.quantized import PackedWeight
from qwenvl.model.backends import require_flash
from qwenvl.model.base import PreTrained
from qwenvl.quantization import QuantizeOptions, Scheme, check_device, finish, pack, packed_bytes, swap


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is to be loaded, as from_pretrained documents it.

    dtype: None or "auto" is that of config.json, or of the files where it says none. device_map, max_memory: as
    plan_placement takes them. offload_folder: for weights on the disk that the checkpoint holds in another form.
    quantize: a word or the scheme of every part; "none" unpacks weights that are packed in the files.
    """

    dtype: str | torch.dtype | None = None
    attn_implementation: str = "sdpa"
    device_map: DeviceMap = None
    max_memory: Mapping[Any, int | str] | None = None
    offload_folder: str | Path | None = None
    quantize: str | QuantizeOptions | None = None


def fill(
    model: PreTrained,
    wanted: Mapping[str, Stored],
    schemes: Mapping[str, Scheme],
    packed: Set[str],
    dtype: torch.dtype,
    options: LoadOptions,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Load every tensor of `model` in `dtype`, and make it ready to run.

    wanted: what is stored for each tensor; a tied head is only there when it comes packed. schemes: of the linears that
    are packed on the way. packed: of `wanted`, the weights that come packed and stay so. All by their names in the
    whole model.
    """
    prefix = model.weights_prefix
    stored = {name.removeprefix(prefix): one for name, one in wanted.items()}
    to_pack = {f"{name.removeprefix(prefix)}.weight": scheme for name, scheme in schemes.items()}
    keep = {name.removeprefix(prefix) for name in packed}
    slots = model.state_dict(keep_vars=True)
    sizes = {name: stored[name].nbytes for name in keep}
    sizes |= {name: packed_bytes(slots[name].shape, scheme) for name, scheme in to_pack.items()}
    keeper = _keeper(model, stored, sizes, to_pack, dtype, options)
    total, done = sum(one.nbytes for one in stored.values()), 0
    for name, one in sorted(stored.items(), key=lambda item: item[1].path):
        if name in to_pack:
            _put(model, name, dtype, keeper.packed(name, pack(one.passing(), to_pack[name])))
        elif name in keep:
            _put(model, name, dtype, keeper.packed(name, one.packed(), one.is_mapped))
        else:
            module, _, leaf = name.rpartition(".")
            value = keeper.tensor(name, one, dtype)
            setattr(model.get_submodule(module), leaf, nn.Parameter(value, slots[name].requires_grad))
        done += one.nbytes
        if on_progress is not None:
            on_progress(done, total)
    model.tie_weights()
    if HEAD in to_pack and HEAD not in stored:
        _put(model, HEAD, dtype, keeper.packed(HEAD, pack(model.text.embed_tokens.weight.detach(), to_pack[HEAD])))
    if to_pack or keep:
        numbers = sum(torch.Size(one.shape).numel() for name, one in stored.items() if name != HEAD or not _tied(model))
        finish(model, numbers * dtype.itemsize)
    assert not any(slot.is_meta for slot in (*model.parameters(), *model.buffers())), "a weight was left out"
    dispatch(model, keeper.placement)


def _keeper(
    model: PreTrained,
    stored: Mapping[str, Stored],
    sizes: Mapping[str, int],
    to_pack: Collection[str],
    dtype: torch.dtype,
    options: LoadOptions,
) -> Keeper:
    """Where everything goes. sizes: bytes of the weights that are packed in the end; to_pack: those that are packed on
    the way. ValueError for places, dtypes and devices that do not go together."""
    ready = stored.keys() - set(to_pack)
    mapped = {name for name in ready if (stored[name].is_mapped if name in sizes else fits(stored[name], dtype))}
    placement = plan_placement(model, options.device_map, options.max_memory, sizes, dtype, mapped)
    if options.attn_implementation == "flash_attention_2":
        require_flash(dtype, placement.main)
    if sizes:
        check_device(placement.main)
    keeper = Keeper(placement, options.offload_folder)
    keeper.check(stored, dtype, to_pack)
    return keeper


def _put(model: PreTrained, name: str, dtype: torch.dtype, weight: PackedWeight) -> None:
    """A packed weight in the place of a linear's. A tied head counts none of its numbers: the embedding does."""
    quantized = swap(model, name.removesuffix(".weight"), weight, dtype)
    if name == HEAD and _tied(model):
        quantized.packed_numbers = 0


def _tied(model: PreTrained) -> bool:
    return bool(model.config.tie_word_embeddings)
