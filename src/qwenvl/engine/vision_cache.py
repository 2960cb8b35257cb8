"""Embeddings of pictures and videos by content: equal content is encoded once, whatever it was called.

In memory, bounded in bytes, what was used longest ago goes first; what live requests show stays. With a folder also in
files, which outlive the process (vision_folder.py).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qwenvl

from .vision_folder import VisionFolder, is_hex

FOLDER_BYTES = 8 * 2**30
NOTED_MISSES = 4096
SAMPLED = 512  # numbers of each tensor in a fingerprint
SUMS = 64  # parts of each tensor


class VisionCache:
    """Embeddings [V, D] by content hash (hexadecimal). Not thread-safe.

    max_bytes: of what is held in memory. Pinned items, and the one that came last, are never dropped; where they alone
    have more bytes, the bound is exceeded by as much, and nothing else is held. folder: where files are kept too, None
    = nowhere; max_folder_bytes: of all files there; fingerprint: that of the tower, for files only. device: where
    embeddings that come from files are put.

    hits: items found, counted once an owner; misses: items asked for and not found, counted once until they are put;
    loaded: how many of the hits came from files. Tensors that are handed out are the cache's own: do not change them.
    """

    def __init__(
        self,
        max_bytes: int,
        folder: Path | None = None,
        max_folder_bytes: int = FOLDER_BYTES,
        fingerprint: str = "",
        device: torch.device | str = "cpu",
    ) -> None:
        if max_bytes < 0 or max_folder_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes} and max_folder_bytes={max_folder_bytes}: expected 0 or more")
        self._max_bytes, self._device = max_bytes, device
        self._files = None if folder is None else VisionFolder(Path(folder), max_folder_bytes, fingerprint)
        self._held: OrderedDict[str, Tensor] = OrderedDict()  # the last used one at the end
        self._owners: dict[str, set[str]] = {}  # by key
        self._pins: dict[str, set[str]] = {}  # by owner
        self._missed: set[str] = set()
        self.nbytes = self.hits = self.misses = self.loaded = 0

    def __len__(self) -> int:
        """Items in memory."""
        return len(self._held)

    def __bool__(self) -> bool:
        """An empty cache is a cache all the same."""
        return True

    def get(self, key: str, owner: str | None = None) -> Tensor | None:
        """Embeddings from memory, else from a file, else None. owner: what is found is pinned for it."""
        embeds = self._held.get(key)
        if embeds is None:
            embeds = self._load(key)
        if embeds is None:
            self._note_miss(key)
            return None
        self._held.move_to_end(key)
        if owner is None or owner not in self._owners.get(key, ()):
            self.hits += 1
        if owner is not None:
            self.pin(key, owner)
        return embeds

    def peek(self, key: str) -> Tensor | None:
        """Embeddings that are in memory, without counting this as a use."""
        return self._held.get(key)

    def put(self, key: str, embeds: Tensor, owner: str | None = None) -> None:
        """Keep embeddings, in memory and in a file; they stay at least until the next call. owner: pin them for it."""
        if not is_hex(key):
            raise ValueError(f"key {key!r}: expected a hash of hexadecimal digits")
        self._missed.discard(key)
        if owner is not None:
            self.pin(key, owner)
        self._hold(key, embeds)
        if self._files is not None:
            self._files.write(key, embeds)

    def pin(self, key: str, owner: str) -> None:
        """Never drop this item, there or yet to come, until release(owner)."""
        self._owners.setdefault(key, set()).add(owner)
        self._pins.setdefault(owner, set()).add(key)

    def release(self, owner: str) -> None:
        """End all pins of an owner; nothing happens when it has none."""
        for key in self._pins.pop(owner, ()):
            self._owners[key].discard(owner)
            if not self._owners[key]:
                del self._owners[key]
        self._shrink()

    def restart(self) -> None:
        """End all pins, and count anew what is held: a caller was interrupted in the middle of something."""
        self._owners.clear()
        self._pins.clear()
        self.nbytes = sum(embeds.nbytes for embeds in self._held.values())

    def _note_miss(self, key: str) -> None:
        if key in self._missed:
            return
        self.misses += 1
        if len(self._missed) >= NOTED_MISSES:
            self._missed.clear()
        self._missed.add(key)

    def _load(self, key: str) -> Tensor | None:
        """From a file into memory."""
        embeds = None if self._files is None or not is_hex(key) else self._files.read(key)
        if embeds is None:
            return None
        self.loaded += 1
        self._missed.discard(key)
        return self._hold(key, embeds.to(self._device))

    def _hold(self, key: str, embeds: Tensor) -> Tensor:
        embeds = embeds.detach()
        if embeds.untyped_storage().nbytes() > embeds.nbytes:
            embeds = embeds.clone()  # a part of something larger would keep all of it
        old = self._held.pop(key, None)
        self.nbytes += embeds.nbytes - (0 if old is None else old.nbytes)
        self._held[key] = embeds
        self._shrink(newest=key)
        return embeds

    def _shrink(self, newest: str | None = None) -> None:
        """Drop what was used longest ago and is not pinned, until the bound is met."""
        if self.nbytes <= self._max_bytes:
            return
        for key in [key for key in self._held if key not in self._owners and key != newest]:
            self.nbytes -= self._held.pop(key).nbytes
            if self.nbytes <= self._max_bytes:
                return


def content_hash(patches: Tensor, grid: tuple[int, int, int], affine: Any = None) -> str:
    """SHA-256 over all that decides an item's embeddings: grid, dtype, columns, what makes values of uint8 pixels
    (affine) and the patches themselves."""
    digest = hashlib.sha256(f"{tuple(grid)} {patches.dtype} {patches.shape[1]} {affine}".encode())
    digest.update(patches.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def split_item(grid: tuple[int, int, int], max_patches: int) -> list[tuple[int, int]]:
    """Calls of the tower for one item of a grid (time, height, width) in patches: (first step, steps) of each, in
    order, of nearly equal size. Patches attend within their own temporal step only, and the tower knows rows and
    columns but no times, so the embeddings are the same, one behind the other.

    No call has more than max_patches patches, but for a step that alone has more: it cannot be divided. The rows of a
    call are patches[first * height * width : (first + steps) * height * width], its grid is (steps, height, width).
    Example: ((10, 20, 30), 2400) -> [(0, 4), (4, 3), (7, 3)]. ValueError where a number is below 1.
    """
    if min(*grid, max_patches) < 1:
        raise ValueError(f"grid {grid} and max_patches={max_patches}: expected numbers of at least 1")
    time, height, width = grid
    calls = -(-time // max(1, max_patches // (height * width)))
    small, larger = divmod(time, calls)
    starts = [i * small + min(i, larger) for i in range(calls + 1)]
    return [(first, end - first) for first, end in pairwise(starts)]


def tower_fingerprint(model: Any) -> str:
    """Hash of what embeddings depend on: the version of this package, the tower's configuration, the backend of its
    attention, its modules as they are, and of every tensor its name, shape, dtype, 512 numbers spread over it and the
    sums of 64 parts.

    The sums are exact (of 8-byte words, modulo 2 ** 64): they do not depend on the machine, and any single change is
    seen. Unseen are changes that cancel out within a part and miss the numbers, such as words of a part in another
    order, and weights in attributes that are neither tensors nor dataclasses of tensors.
    """
    about = (qwenvl.__version__, model.config.vision_config, getattr(model, "attn_implementation", None))
    digest = hashlib.sha256(repr(about).encode())
    for name, module in model.visual.named_modules():
        digest.update(f"{name} {type(module).__name__} {module.extra_repr()}".encode())
        for key, tensor in _tensors_of(module):
            digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().contiguous().flatten()
            if flat.storage_offset() * flat.itemsize % 8:
                flat = flat.clone()  # words begin where storage lets them
            raw = flat.view(torch.uint8)
            whole = len(raw) // 8 * 8
            sums = torch.stack([part.sum() for part in raw[:whole].view(torch.int64).tensor_split(SUMS)])
            for piece in (sums, flat[:: max(1, len(flat) // SAMPLED)].contiguous(), raw[whole:]):
                digest.update(piece.view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()[:32]


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own tensors: parameters, buffers, and those of packed weights, which are dataclasses."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)
    for name, value in vars(module).items():
        for part in fields(value) if is_dataclass(value) else ():
            if isinstance(tensor := getattr(value, part.name), Tensor):
                yield f"{name}.{part.name}", tensor
