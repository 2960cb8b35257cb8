"""A request: one prompt, how to answer it, and how far the answer has come.

Positions and delta are computed once, when the request is made, and are pure functions of the prompt: nothing
about them lives on the model. A request can therefore be computed in any chunks, dropped from the cache and
computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwenvl.model.kv_cache import PageTable
from qwenvl.model.rope import mrope_positions
from qwenvl.types import Affine, Completion, FinishReason, SamplingParams

from .loops import LoopGuard
from .vision_cache import content_hash

if TYPE_CHECKING:
    from qwenvl.config import Qwen2_5_VLConfig, Qwen2VLConfig

    from .grammar import Guide
    from .sampler import SamplerState


class RequestState(Enum):
    """Where a request is: not yet in an engine, in the queue, holding a slot, done."""

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, eq=False)
class VisionItem:
    """One picture or video of a prompt: its patches and where its placeholder tokens stand.

    patches: [P, 1176] rows of pixel values, or uint8 pixels, of which affine makes values ([P, 588] where both frames
    are equal). grid: (time, height, width) in patches. The prompt tokens [start, start + tokens) are its placeholders.
    content_hash: of all that; equal pictures have equal hashes whatever they were called.
    """

    patches: Tensor
    grid: tuple[int, int, int]
    start: int
    tokens: int
    content_hash: str
    affine: Affine | None = None


@dataclass(frozen=True)
class Hooks:
    """What a caller computes itself, once a token. process(answer ids, scores [vocabulary]) -> scores, before
    temperature; stop(answer ids, kept scores) -> whether the answer ends with the token just drawn. What they raise
    leaves step()."""

    process: Callable[[list[int], Tensor], Tensor] | None = None
    stop: Callable[[list[int], list[Tensor]], bool] | None = None


@dataclass(eq=False)
class Request:
    """One prompt of L tokens and the state of its answer.

    positions: int64 [3, L]; the token at index i >= L has position i + delta on all three rows. priority:
    larger goes first; equal ones in order of arrival. computed: tokens (of prompt and answer) whose keys and
    values are in the cache. The scheduler's rule is that computed catches up with num_tokens. table: its pages there
    (slot: its slot, in a beam search); page_keys: what they are found by (prefix.py), of which the first `published`
    can be found. found: tokens that did not have to be computed. queued: the step it began to wait in. limit: how
    many tokens may be generated (max_new_tokens, or what the cache leaves). output_ids: everything generated, a stop
    token and the copies of a loop included; completion() leaves these out. guard: against loops, where asked for.
    guide: where the answer is in its grammar, once an engine has the request.
    prompt_embeds: [L, D] in place of the embeddings of prompt_ids, pictures excepted; has_ids: False where prompt_ids
    only hold the places of such embeddings.
    lookup_sources: token sequences beside the prompt that the answer may repeat (the page before, a schema).
    """

    prompt_ids: list[int]
    positions: Tensor
    delta: int
    params: SamplingParams = field(default_factory=SamplingParams)
    items: list[VisionItem] = field(default_factory=list)
    priority: int = 0
    id: str = ""
    prompt_embeds: Tensor | None = None
    has_ids: bool = True
    hooks: Hooks = field(default_factory=Hooks)
    lookup_sources: list[list[int]] = field(default_factory=list)

    state: RequestState = field(default=RequestState.NEW, init=False)
    arrival: int = field(default=0, init=False)
    slot: int | None = field(default=None, init=False)
    table: PageTable = field(default_factory=PageTable, init=False)
    computed: int = field(default=0, init=False)
    page_keys: list[bytes] = field(default_factory=list, init=False)
    published: int = field(default=0, init=False)
    queued: int = field(default=0, init=False)
    found: int = field(default=0, init=False)
    limit: int = field(default=0, init=False)
    output_ids: list[int] = field(default_factory=list, init=False)
    output_logprobs: list[float] = field(default_factory=list, init=False)
    output_scores: list[Tensor] = field(default_factory=list, init=False)
    output_logits: list[Tensor] = field(default_factory=list, init=False)
    text: str = field(default="", init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    stopped_by_token: bool = field(default=False, init=False)
    error: str | None = field(default=None, init=False)
    exception: Exception | None = field(default=None, init=False)
    sampling: SamplerState | None = field(default=None, init=False)
    guard: LoopGuard | None = field(default=None, init=False)
    guide: Guide | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.params.stop_loops is not None:
            self.guard = LoopGuard(self.params.stop_loops)

    @classmethod
    def from_inputs(
        cls,
        inputs: Mapping[str, Any],
        config: Qwen2_5_VLConfig | Qwen2VLConfig,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        id: str = "",
        hooks: Hooks | None = None,
    ) -> Request:
        """The request of ONE prompt as the processor gives it (split a batch with inputs.split_batch first).

        Read from `inputs`: input_ids [L] or [1, L] without padding, pixel_values and image_grid_thw,
        pixel_values_videos, video_grid_thw and second_per_grid_ts; pixel_affine and pixel_affine_videos with uint8
        pixels; inputs_embeds [L, D] and has_ids. Raises
        ValueError when the prompt is empty, an id is not in the vocabulary, or placeholders, grids and patches do not
        agree (with the numbers).
        """
        ids = torch.as_tensor(inputs["input_ids"]).cpu()
        if ids.ndim == 2 and ids.shape[0] == 1:
            ids = ids[0]
        if ids.ndim != 1 or ids.is_floating_point():
            raise ValueError(f"input_ids has shape {tuple(ids.shape)} and dtype {ids.dtype}: expected integers [L]")
        if not len(ids):
            raise ValueError("the prompt is empty: expected at least one token")
        vocabulary = config.text_config.vocab_size
        if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
            wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise ValueError(f"token id {wrong} is not in the model's vocabulary of {vocabulary}")
        merge = config.vision_config.spatial_merge_size
        images = _vision_items(
            ids,
            config.image_token_id,
            inputs.get("pixel_values"),
            inputs.get("image_grid_thw"),
            inputs.get("pixel_affine"),
            merge,
            "image",
        )
        videos = _vision_items(
            ids,
            config.video_token_id,
            inputs.get("pixel_values_videos"),
            inputs.get("video_grid_thw"),
            inputs.get("pixel_affine_videos"),
            merge,
            "video",
        )
        positions, delta = mrope_positions(
            ids,
            config,
            torch.tensor([item.grid for item in images], dtype=torch.long) if images else None,
            torch.tensor([item.grid for item in videos], dtype=torch.long) if videos else None,
            inputs.get("second_per_grid_ts") if videos else None,
        )
        items = sorted(images + videos, key=lambda item: item.start)
        return cls(
            ids.tolist(),
            positions,
            delta,
            params or SamplingParams(),
            items,
            priority,
            id,
            inputs.get("inputs_embeds"),
            bool(inputs.get("has_ids", True)),
            hooks or Hooks(),
        )

    @property
    def known_ids(self) -> list[int]:
        """The ids of the prompt that penalties look at: none where only embeddings were given."""
        return self.prompt_ids if self.has_ids else []

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer so far: what `computed` has to reach before the next one can be
        drawn."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def most_tokens(self) -> int:
        """Room in tokens that the whole answer needs in the cache (its last token is never written there)."""
        return len(self.prompt_ids) + self.limit - 1

    @property
    def first_page(self) -> int:
        """Where it lies in the cache: neighbours there are put side by side in a batch."""
        return self.table.pages[0]

    def reset(self) -> None:
        """Forget what is in the cache; it will be computed again, or found."""
        self.table, self.computed, self.published = PageTable(), 0, 0

    @property
    def finished(self) -> bool:
        return self.state is RequestState.FINISHED

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Ids of the tokens [start, stop) of prompt and answer."""
        length = len(self.prompt_ids)
        answer = self.output_ids[max(start - length, 0) : max(stop - length, 0)]
        return self.prompt_ids[start:stop] + answer

    def positions_of(self, start: int, stop: int) -> Tensor:
        """Positions int64 [3, stop - start] of the tokens [start, stop) of prompt and answer."""
        length = len(self.prompt_ids)
        if stop <= length:
            return self.positions[:, start:stop]
        answer = torch.arange(max(start, length), stop) + self.delta
        return torch.cat((self.positions[:, start:length], answer.expand(3, -1)), dim=1)

    def ended(self) -> FinishReason | None:
        """Why the answer ends with the token just drawn, which is no end by itself; None while it goes on. Called once
        for each such token."""
        stop = self.hooks.stop
        if stop is not None and stop(self.output_ids, self.output_scores):
            return "stop"
        if self.guide is not None and self.guide.complete:
            return "stop"
        if self.guard is not None and self.guard.push(self.output_ids[-1]):
            return "loop"
        return "length" if len(self.output_ids) >= self.limit else None

    @property
    def kept_ids(self) -> list[int]:
        """The ids of the answer: without a stop token, and without all but the first copy of what went in a loop."""
        loop = None if self.guard is None else self.guard.loop
        return self.output_ids[: len(self.output_ids) - self.stopped_by_token if loop is None else loop.kept]

    def completion(self) -> Completion:
        """The answer of a finished request. A stop string is cut from text; token_ids end with the token that
        completed it. Log-probabilities belong to token_ids one by one."""
        if self.finish_reason is None:
            raise ValueError(f"request {self.id!r} is {self.state.value}, not finished: step the engine until it is")
        kept = self.kept_ids
        cut = self.guide is not None and self.finish_reason in ("length", "loop")
        return Completion(
            token_ids=kept,
            text=self.text,
            finish_reason=self.finish_reason,
            logprobs=self.output_logprobs[: len(kept)] if self.params.logprobs else None,
            prompt_tokens=len(self.prompt_ids),
            error=self.error,
            closed=self.guide.close(kept) if cut and self.guide is not None else None,
        )


def _vision_items(
    ids: Tensor, token_id: int, patches: Any, grids: Any, affine: Affine | None, merge: int, kind: str
) -> list[VisionItem]:
    """The items of one kind in a prompt, in order; checks counts of placeholders, grids and patches."""
    places = (ids == token_id).nonzero().squeeze(1).tolist()
    if grids is None or patches is None:
        if places or (grids is None) != (patches is None):
            given = "neither" if grids is None and patches is None else "only one"
            raise ValueError(
                f"the prompt has {len(places)} {kind} tokens, but {given} of {kind} grids and pixel values is given"
            )
        return []
    shapes = [tuple(int(n) for n in grid) for grid in torch.as_tensor(grids).tolist()]
    counts = [t * h * w // merge**2 for t, h, w in shapes]
    if len(places) != sum(counts):
        raise ValueError(
            f"the prompt has {len(places)} {kind} tokens, but its {len(shapes)} {kind} grids need "
            f"{sum(counts)}: expand the placeholders with the processor that made the pixel values"
        )
    rows = [t * h * w for t, h, w in shapes]
    patches = torch.as_tensor(patches)
    if patches.shape[0] != sum(rows):
        raise ValueError(f"{kind} pixel values have {patches.shape[0]} patches, but the grids need {sum(rows)}")
    items, place = [], 0
    for (t, h, w), count, part in zip(shapes, counts, patches.split(rows), strict=True):
        if not count:
            raise ValueError(f"{kind} grid {(t, h, w)} holds no token: expected positive multiples of {merge}")
        start, end = places[place], places[place + count - 1]
        if end - start + 1 != count:
            raise ValueError(
                f"{kind} grid {(t, h, w)} needs {count} tokens in a row, but other tokens at {start} to "
                f"{end} divide them"
            )
        items.append(VisionItem(part, (t, h, w), start, count, content_hash(part, (t, h, w), affine), affine))
        place += count
    return items
