"""Decode steps through CUDA graphs: one launch a step in place of thousands of small ones.

A step in which each request brings one token of its answer is computed by a graph that was captured from
`model.run(PackedBatch)` itself, for a bucket: so many rows, so many keys. All that differs from step to step stands in
one tensor on the device (token, position, length and pages of each row); where keys are written and read, the mask and
the rotation are made from it inside the graph. Rows that no request fills write to a page of the cache that nobody
reads.

Example: 5 requests of which the longest has 300 tokens run in the bucket of 8 rows and 512 keys.

What is here has run on the CPU only, with stand-ins for the capture that replay what they recorded; CudaRecorder needs
a GPU and has not run.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qwenvl.model.attention import Bucket, Plan
from qwenvl.model.kv_cache import PagedCache, Run
from qwenvl.model.rope_types import packed_rotation
from qwenvl.types import PackedBatch, SeqInfo

from .scheduler import Chunk

if TYPE_CHECKING:
    from .runner import Model

LEAST_KEYS = 256
MOST_KEYS = 2**20  # of all rows together: more are left to the ordinary path, which need not gather them
TOKEN, POSITION, LENGTH, PAGES = range(4)  # columns of a graph's input; pages from the fourth on

Replay = Callable[[], None]
Record = Callable[[Callable[[], None]], Replay]


class CudaRecorder:
    """Captures what a function does on a CUDA device; graphs of one recorder share their memory. ValueError for a
    device that has no such graphs."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(
                f"graphs=True needs a model on a CUDA device, and it is on {device.type}: load it with "
                "device_map='cuda', or leave graphs out"
            )
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], None]) -> Replay:
        """A call that does again, on the same memory, what `function` does now. Nothing is computed yet. RuntimeError
        where the function waits for the device or makes tensors from numbers."""
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")  # others may use CUDA
        with torch.cuda.device(self._device), capture:
            function()
        return graph.replay


class SparedCache(PagedCache):
    """A PagedCache with one page more than it is asked for, the last, for the rows of a graph that no request fills.
    When it grows, that page becomes one of the others, blank as they are, and the last is the spare one again."""

    def __init__(
        self,
        config: object,
        pages: int,
        page: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(config, pages + 1, page, dtype, device)  # type: ignore[arg-type]

    @property
    def spare(self) -> int:
        """The page that nobody owns."""
        return self.pages - 1


class StaticView:
    """A KVView of one token each of B sequences, whose places are tensors: new, int64 [B], where the keys of this step
    are written, and all, int64 [B, K], where those of each sequence are read."""

    def __init__(self, cache: PagedCache, new: Tensor, every: Tensor) -> None:
        self._cache, self._new, self._every = cache, new, every
        self.runs: list[list[Run]] = []  # read by native code, which runs on the CPU

    def storage(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._cache.keys[layer], self._cache.values[layer]

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        for store, rows in zip(self.storage(layer), (key, value), strict=True):
            store.index_copy_(1, self._new, rows.transpose(0, 1).to(store.dtype))

    def read(self, layer: int, index: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a decode step reads all of its sequences together: read_batch")

    def read_batch(self, layer: int, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        assert rows == tuple(range(len(self._every))), "all sequences are one bucket"
        keys, values = (
            store.index_select(1, self._every.flatten()).unflatten(1, self._every.shape).transpose(0, 1)
            for store in self.storage(layer)
        )
        return keys, values


@dataclass(frozen=True)
class _Step:
    """A captured bucket: write `inputs`, call `replay`, read `logits`."""

    inputs: Tensor  # int64 [B, PAGES + pages]
    logits: Tensor  # float32 [B, vocabulary], shared by all buckets of B rows
    replay: Replay


class Graphs:
    """The captured steps of one model. Weights may change in place, but not move.

    recorder: device -> what captures there (CudaRecorder). A cache that has grown lies elsewhere: its steps are
    captured anew. A capture that fails is warned of once, and everything runs uncaptured from then on.
    """

    def __init__(self, model: Model, recorder: Callable[[torch.device], Record] | None = None) -> None:
        self._model, self._recorder = model, recorder or CudaRecorder
        self._record = self._recorder(model.device)
        self._cache: Callable[[], PagedCache | None] = lambda: None
        self._steps: dict[tuple[int, int], _Step] = {}
        self._logits: dict[int, Tensor] = {}
        self._rotation: tuple[Tensor, Tensor] | None = None
        self._failed = False

    def run(self, chunks: list[Chunk], cache: object) -> Tensor | None:
        """Logits [N, vocabulary] of a step in which each chunk is the last token of an answer, valid until the next
        step; keys and values go to the cache. None, and nothing done, when the step is another one, too large, or
        cannot be captured."""
        if self._failed or not isinstance(cache, SparedCache) or not all(map(_is_decode, chunks)):
            return None
        rows, keys = row_bucket(len(chunks)), key_bucket(max(chunk.stop for chunk in chunks))
        furthest = max(chunk.start + chunk.request.delta for chunk in chunks)
        if rows * keys > MOST_KEYS or furthest >= self._model.config.text_config.context_length:
            return None
        if self._cache() is not cache:
            self._forget()
            self._cache = weakref.ref(cache)
        inputs = torch.from_numpy(_inputs(chunks, rows, -(-keys // cache.page), cache))
        step = self._steps.get((rows, keys))
        if step is None:
            try:
                step = self._steps[rows, keys] = self._capture(inputs.to(self._model.device), cache)
            except RuntimeError as error:  # of CUDA, and of the memory
                self._forget()
                self._failed = True
                warnings.warn(f"decode steps run without CUDA graphs: capturing one failed: {error}", stacklevel=2)
                return None
        else:
            step.inputs.copy_(inputs)
        step.replay()
        return step.logits[: len(chunks)]

    def _forget(self) -> None:
        self._steps.clear()
        self._record = self._recorder(self._model.device)  # memory that graphs no longer share is given back

    def _capture(self, inputs: Tensor, cache: SparedCache) -> _Step:
        """The step of the bucket that `inputs` has the shape of. It is computed once before it is captured, so that
        libraries are set up; what is written twice is the same."""
        if self._rotation is None:
            config = self._model.config.text_config
            every = torch.arange(config.context_length, device=inputs.device)
            self._rotation = packed_rotation(every.expand(3, -1), config, [len(every)])
        rotation = self._rotation
        warm = self._model.run(self._batch(inputs, cache, rotation))
        logits = self._logits.setdefault(len(inputs), warm)

        def compute() -> None:
            logits.copy_(self._model.run(self._batch(inputs, cache, rotation)))

        return _Step(inputs, logits, self._record(compute))

    def _batch(self, inputs: Tensor, cache: SparedCache, rotation: tuple[Tensor, Tensor]) -> PackedBatch:
        """The packed batch of a step, all of it on the device and made from `inputs` alone."""
        rows, config = len(inputs), self._model.config.text_config
        tokens, positions, lengths = inputs[:, TOKEN], inputs[:, POSITION], inputs[:, LENGTH].unsqueeze(1)
        places = inputs[:, PAGES:].unsqueeze(2) * cache.page + torch.arange(cache.page, device=inputs.device)
        places = places.flatten(1)
        index = torch.arange(places.shape[1], device=inputs.device)
        seen = index < lengths
        new = places.gather(1, lengths - 1).squeeze(1)
        every = torch.where(seen, places, places[:, :1])  # what is masked is a number all the same: 0 * nan is nan
        layout = Plan(
            SeqInfo.from_lengths([1] * rows),
            (Bucket(tuple(range(rows)), 0, 1, None, None, None),),
            seen.view(rows, 1, 1, -1),
        )
        if (window := config.sliding_window) is not None:
            layout.memo[window] = 0, (seen & (index >= lengths - window)).view(rows, 1, 1, -1)
        cos, sin = (part.index_select(0, positions) for part in rotation)
        return PackedBatch(
            token_ids=tokens,
            positions=positions.expand(3, -1),
            seq=layout.seq,
            kv=StaticView(cache, new, every),
            rotation=(cos, sin),
            layout=layout,
        )


def row_bucket(count: int) -> int:
    """1, 2, 4, then multiples of 8."""
    return next((size for size in (1, 2, 4) if count <= size), -(-count // 8) * 8)


def key_bucket(length: int) -> int:
    """256 times a power of two."""
    return max(LEAST_KEYS, 1 << (length - 1).bit_length())


def _is_decode(chunk: Chunk) -> bool:
    """Whether a chunk is one token of an answer, the last: those count on in all three rows of positions."""
    return chunk.start >= len(chunk.request.prompt_ids) and chunk.tokens == 1 and chunk.wants_logits


def _inputs(chunks: list[Chunk], rows: int, pages: int, cache: SparedCache) -> np.ndarray:
    """int64 [rows, PAGES + pages]; a row that no chunk fills is a sequence in the spare page, each at its own place."""
    table = np.zeros((rows, PAGES + pages), dtype=np.int64)
    table[:, LENGTH] = np.arange(rows) % cache.page + 1
    table[:, PAGES:] = cache.spare
    for row, chunk in zip(table, chunks, strict=False):
        request = chunk.request
        token = request.output_ids[chunk.start - len(request.prompt_ids)]
        row[:PAGES] = token, chunk.start + request.delta, chunk.stop
        at = PAGES
        for first, count in request.table.runs(1, -(-chunk.stop // cache.page)):
            row[at : at + count] = np.arange(first, first + count)
            at += count
    return table
