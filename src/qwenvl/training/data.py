"""Conversations -> samples: token ids, which of them are answers, and the pictures as uint8 patches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from qwenvl.media.images import load_image
from qwenvl.media.videos import Video
from qwenvl.processing.image_processor import Qwen2VLImageProcessor
from qwenvl.processing.processor import Qwen2_5_VLProcessor, Qwen2VLProcessor

Processor = Qwen2_5_VLProcessor | Qwen2VLProcessor
MARK = "\x01{}\x01"


@dataclass
class Turn:
    """One question and its answer. `images`, `videos`: how many pictures, then videos, stand before the question.

    cuts: rising places (characters of the answer) at which a token must begin. A model that reads letter by letter is
    taught with a cut at every letter; what it then writes decodes to the same text.
    """

    question: str
    answer: str
    images: int = 0
    videos: int = 0
    cuts: Sequence[int] = ()


@dataclass
class Sample:
    """One conversation, ready to pack.

    token_ids int64 [L]; answer bool [L], True on tokens that carry loss (the answers with their end token);
    patches uint8 [P, 1176] of its pictures or of its videos; grids int64 [n, 3] of its pictures; video_grids int64
    [m, 3] and seconds (of one step of two frames) of its videos. A sample has pictures or videos, not both.
    shown: what the model is given in place of token_ids where an answer was spoilt on purpose, so that it learns to go
    on after a mistake; what it should say is always token_ids.
    starts: the token at which each text begins, question and answer in turn; extra: whatever the source wants to hand
    on to an auxiliary loss.
    """

    token_ids: Tensor
    answer: Tensor
    patches: Tensor
    grids: Tensor
    starts: list[int] = field(default_factory=list)
    extra: Any = None
    video_grids: Tensor = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.long))
    seconds: list[float] = field(default_factory=list)
    shown: Tensor | None = None


class Source(Protocol):
    """Where samples come from. The batch of a step is a pure function of the step, so that a run resumes exactly."""

    def batch(self, step: int) -> list[Sample]: ...


@dataclass
class Encoder:
    """Conversations -> Sample, by the processor's own chat template, tokenizer and picture limits.

    The template is rendered once per shape of conversation with marks in place of the texts, so that user text is
    always tokenized as plain text, never as control tokens.
    """

    processor: Processor
    _skeletons: dict[tuple[tuple[int, int], ...], list[list[int] | int]] = field(default_factory=dict)

    def encode(
        self, images: list[np.ndarray], turns: list[Turn], extra: Any = None, videos: Sequence[Video] = ()
    ) -> Sample:
        """`images`: uint8 [H, W, 3] in order of appearance, or `videos`. ValueError when their number is not what the
        turns ask for, and for a conversation with both."""
        wanted, wanted_videos = sum(t.images for t in turns), sum(t.videos for t in turns)
        if (wanted, wanted_videos) != (len(images), len(videos)):
            raise ValueError(
                f"the conversation has {len(images)} pictures and {len(videos)} videos, its turns ask for {wanted} and "
                f"{wanted_videos}"
            )
        if images and videos:
            raise ValueError("a training conversation with pictures and videos is not supported: give one kind")
        tokenizer, settings = self.processor.tokenizer, self.processor.image_processor
        prepared = [prepare(image, settings) for image in images]
        clips = [self.processor.video_processor.prepare(video) for video in videos]
        for clip in clips:
            grid = settings.grid(clip.frames, clip.size.resized_height, clip.size.resized_width)
            prepared.append((clip.patches, torch.tensor(grid)))
        counts = iter(int(grid.prod()) // settings.merge_size**2 for _, grid in prepared)
        texts = [part for turn in turns for part in ([turn.question], pieces(turn.answer, turn.cuts))]
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        pads = [tokenizer.convert_tokens_to_ids(pad) for pad in ("<|image_pad|>", "<|video_pad|>")]
        ids: list[int] = []
        answer: list[bool] = []
        starts: list[int] = []
        for piece in self._skeleton(tuple((t.images, t.videos) for t in turns)):
            if isinstance(piece, int):
                is_answer = bool(piece % 2)
                starts.append(len(ids))
                new = [token for part in texts[piece] for token in tokenizer.encode(part, special=False)]
                ids += [*new, end] if is_answer else new
                answer += [is_answer] * (len(new) + is_answer)
            else:
                for token in piece:
                    repeat = next(counts) if token in pads else 1
                    ids += [token] * repeat
                    answer += [False] * repeat
        none = torch.zeros(0, 3, dtype=torch.long)
        grids = torch.stack([g for _, g in prepared]) if prepared else none
        return Sample(
            torch.tensor(ids),
            torch.tensor(answer),
            torch.cat([p for p, _ in prepared]) if prepared else torch.zeros(0, 0, dtype=torch.uint8),
            none if videos else grids,
            starts,
            extra,
            grids if videos else none,
            [settings.temporal_patch_size / clip.fps for clip in clips],
        )

    def _skeleton(self, media: tuple[tuple[int, int], ...]) -> list[list[int] | int]:
        """The rendered template cut at the texts: token ids, or the number of a text (odd: an answer, whose end
        token is left to encode())."""
        if media not in self._skeletons:
            messages: list[dict[str, Any]] = []
            for i, (images, videos) in enumerate(media):
                parts: list[dict[str, Any]] = [{"type": "image"}] * images + [{"type": "video"}] * videos
                messages.append({"role": "user", "content": [*parts, {"type": "text", "text": MARK.format(2 * i)}]})
                messages.append({"role": "assistant", "content": MARK.format(2 * i + 1)})
            rendered = str(self.processor.chat_template.render(messages))
            pieces: list[list[int] | int] = []
            for i in range(2 * len(media)):
                before, _, rendered = rendered.partition(MARK.format(i))
                pieces += [self.processor.tokenizer.encode(before, special=True), i]
                if i % 2:
                    rendered = rendered.removeprefix("<|im_end|>")
            self._skeletons[media] = [*pieces, self.processor.tokenizer.encode(rendered)]
        return self._skeletons[media]


def pieces(text: str, cuts: Sequence[int]) -> list[str]:
    """The text cut at these places, each part to be tokenized by itself."""
    return [text[a:b] for a, b in pairwise([0, *cuts, len(text)]) if a < b]


def prepare(image: np.ndarray, settings: Qwen2VLImageProcessor) -> tuple[Tensor, Tensor]:
    """uint8 [H, W, 3] -> (uint8 patches [P, 1176], grid int64 [3]) by the processor's limits."""
    height, width = settings.target_size(*image.shape[:2])
    patches = settings.patches(image, height, width)
    return patches, torch.tensor([1, height // settings.patch_size, width // settings.patch_size])


class JsonLines:
    """A JSON Lines file in the LLaVA style: {"image": path or [paths], "conversations": [{"from": "human",
    "value": "<image>\\n..."}, {"from": "gpt", "value": "..."}]}; picture paths are relative to the file."""

    def __init__(self, path: Path, encoder: Encoder, batch_size: int, seed: int) -> None:
        self._folder, self._encoder, self._size, self._seed = path.parent, encoder, batch_size, seed
        self._rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not self._rows:
            raise ValueError(f"{path} has no conversation: expected one JSON object a line")
        for number, row in enumerate(self._rows, 1):
            if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
                raise ValueError(f'{path}, line {number}: expected an object with a list "conversations"')

    def batch(self, step: int) -> list[Sample]:
        """Samples step * size ... of an endless row of epochs, each shuffled by (seed, epoch)."""
        samples = []
        for place in range(step * self._size, (step + 1) * self._size):
            epoch, index = divmod(place, len(self._rows))
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._rows))
            samples.append(self._sample(self._rows[order[index]]))
        return samples

    def _sample(self, row: dict[str, Any]) -> Sample:
        paths = row.get("image", [])
        paths = [paths] if isinstance(paths, str) else paths
        values = [str(message["value"]) for message in row["conversations"]]
        turns = [
            Turn(q.replace("<image>\n", "").replace("<image>", ""), a, q.count("<image>"))
            for q, a in zip(values[::2], values[1::2], strict=True)
        ]
        return self._encoder.encode([np.asarray(load_image(self._folder / p)) for p in paths], turns)
