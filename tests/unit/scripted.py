"""A scripted model and a byte tokenizer: they drive the rooms above the model fast, and check what these pass
down.

The model keeps its only state in the KV cache it is given: keys hold token ids (or vision embeddings), values
hold positions. It answers by a function of the history it reads back from there, so a wrong slot, a wrong
length or a token computed twice changes the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from qwenvl.types import PackedBatch

EOS, IMAGE, VIDEO, VISION_START, VISION_END, VOCABULARY = 256, 257, 258, 259, 260, 264
LOST = ord("?")
ASK = 3  # the byte that ends a prompt and starts the answer

Answer = Callable[[list[int]], "int | Tensor"]


def prompt(text: str) -> list[int]:
    return [*text.encode(), ASK]


def script(answers: Mapping[str, str]) -> Answer:
    """An answer function: prompt text -> answer text, then the end token."""

    def answer(history: list[int]) -> int:
        ask = history.index(ASK)
        words, said = (
            answers[bytes(i for i in history[:ask] if i < 256).decode()].encode(),
            history[ask + 1 :],
        )
        if bytes(said) != words[: len(said)]:
            return LOST  # only behind a draft that is wrong; anywhere else this spoils the answer
        return words[len(said)] if len(said) < len(words) else EOS

    return answer


class ByteTokenizer:
    """Token = byte; ids from 256 are special and decode to <id>."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        special = "" if skip_special_tokens else "<{}>"
        return b"".join(bytes([i]) if i < 256 else special.format(i).encode() for i in token_ids).decode(
            errors="replace"
        )


class ScriptedModel:
    """See the module. steps: new tokens of each sequence, a tuple for each run. encoded: grids, one for each
    call."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.steps: list[tuple[int, ...]] = []
        self.encoded: list[list[list[int]]] = []
        self.histories: list[tuple[list[int], list[int]]] = []
        self.config = SimpleNamespace(
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=VISION_START,
            vision_end_token_id=VISION_END,
            eos_token_id=EOS,
            pad_token_id=0,
            text_config=SimpleNamespace(
                vocab_size=VOCABULARY, num_hidden_layers=1, num_key_value_heads=1, head_dim=1, context_length=4096
            ),
            vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2),
        )

    def encode_vision(self, pixel_values: Tensor, grid_thw: Tensor, affine: object = None) -> Tensor:
        """The mean of each 4 patches' first column: [P / 4, 1]."""
        self.encoded.append(grid_thw.tolist())
        if torch.isnan(pixel_values).any():
            raise FloatingPointError("not a number in the pixels")
        return pixel_values[:, :1].view(-1, 4, 1).mean(dim=1)

    def run(self, batch: PackedBatch) -> Tensor:
        assert torch.is_inference_mode_enabled()
        assert batch.kv is not None
        assert batch.logits_index is not None
        self.steps.append(batch.seq.q_lens)
        keys = batch.token_ids.float()
        if batch.vision_embeds is not None:
            keys[batch.vision_index] = batch.vision_embeds[:, 0]
        batch.kv.write(0, keys.view(-1, 1, 1), batch.positions[0].float().view(-1, 1, 1))
        rows = []
        for row in batch.logits_index.tolist():
            index = next(i for i, end in enumerate(batch.seq.cu_q[1:]) if row < end)
            key, value = batch.kv.read(0, index)
            end = key.shape[1] - (batch.seq.cu_q[index + 1] - 1 - row)  # rows before the last see no draft behind them
            history = [round(k) for k in key.flatten().tolist()[:end]]
            self.histories.append((history, [round(p) for p in value.flatten().tolist()[:end]]))
            rows.append(self._logits(history))
        return torch.stack(rows) if rows else torch.zeros(0, VOCABULARY)

    def _logits(self, history: list[int]) -> Tensor:
        answer = self._answer(history)
        if isinstance(answer, Tensor):
            return answer
        return torch.nn.functional.one_hot(torch.tensor(answer), VOCABULARY) * 10.0
