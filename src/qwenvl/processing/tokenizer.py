"""The tokenizer: text <-> ids over the `tokenizers` library, from a checkpoint's files.

Added tokens (<|im_start|>, <|image_pad|>, <tool_call>, ...) count as such only where the caller says so:
`encode(text)` reads them, as the ecosystem does; `encode(text, special=False)` and the closed pieces of guard.py take
their spelling as plain text, which is how strings of users are encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from operator import index
from pathlib import Path
from typing import Any, Self, overload

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from qwenvl.processing.batch_feature import BatchFeature
from qwenvl.processing.files import read_json
from qwenvl.processing.guard import Piece

# How Qwen2 cuts text before merging: contractions, words with one leading mark, single digits, marks, line ends,
# spaces.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UNTIDY = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
          (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip

CONTENT_MARKS = frozenset(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad") for end in ("start", "end"))
NAMES = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}

Ids = Sequence[int] | torch.Tensor


class Tokenizer:
    """Ids of text and text of ids. Attributes: eos_token_id, pad_token_id, padding_side, model_max_length,
    chat_template (the text in tokenizer_config.json, or None), added_tokens (spellings), and those of them that make
    turns and places for pictures, control_tokens."""

    def __init__(self, backend: Backend, config: dict[str, Any]) -> None:
        self.backend, self.config = backend, config
        backend.no_truncation()  # a file may ask for it, but a prompt is never cut silently
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        self.all_special_ids = sorted(number for number, token in added.items() if token.special)
        self.added_tokens = tuple(sorted((token.content for token in added.values()), key=len, reverse=True))
        special = {token.content for token in added.values() if token.special}
        self.control_tokens = tuple(sorted(special - CONTENT_MARKS))
        self._spellings = re.compile("|".join(map(re.escape, self.added_tokens)) or r"(?!)")
        self.padding_side: str = config.get("padding_side", "right")
        self.model_max_length = int(config.get("model_max_length", 131072))
        self.chat_template: str | None = config.get("chat_template")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Reads tokenizer.json (or vocab.json and merges.txt) and tokenizer_config.json of a folder."""
        folder = Path(folder)
        config = read_json(folder / "tokenizer_config.json") or {}
        if (folder / "tokenizer.json").exists():
            try:
                backend = Backend.from_file(str(folder / "tokenizer.json"))
            except Exception as error:  # the library raises bare Exception
                raise ValueError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None
        elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            backend = _from_vocabulary(folder)
        else:
            raise ValueError(f"{folder} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt")
        _add_tokens(backend, config.get("added_tokens_decoder", {}), folder / "tokenizer_config.json")
        if not backend.get_added_tokens_decoder():
            raise ValueError(
                f"{folder} has no added tokens (<|im_start|>, ...): expected them in tokenizer_config.json"
            )
        return cls(backend, config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, with padding_side as it is now."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({**NAMES, **self.config, "padding_side": self.padding_side}, indent=2, ensure_ascii=False)
            + "\n",
            "utf-8",
        )

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Entries without the added tokens."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    @property
    def eos_token(self) -> str:
        return _content(self.config.get("eos_token") or NAMES["eos_token"])

    @property
    def pad_token(self) -> str:
        return _content(self.config.get("pad_token") or NAMES["pad_token"])

    @property
    def eos_token_id(self) -> int:
        return self.convert_tokens_to_ids(self.eos_token)

    @property
    def pad_token_id(self) -> int:
        return self.convert_tokens_to_ids(self.pad_token)

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id, added ones included."""
        return self.backend.get_vocab(with_added_tokens=True)

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """The id of one token, or of each. ValueError when the vocabulary has no such token."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        number = self.backend.token_to_id(tokens)
        if number is None:
            raise ValueError(f"the vocabulary has no token {tokens!r}")
        return int(number)

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Ids) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Ids) -> str | list[str]:
        """One token or several as the vocabulary spells them. ValueError for an id outside it."""
        if not isinstance(ids, int):
            return [self.convert_ids_to_tokens(i) for i in _plain(ids)]
        token = self.backend.id_to_token(ids) if ids >= 0 else None
        if token is None:
            raise ValueError(f"id {ids} is not in the vocabulary of {len(self)} tokens")
        return str(token)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text. special=False: what spells an added token is plain text like all the rest."""
        return self.encode_pieces([(text, special)])

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        """Ids of the pieces' joined text. An added token counts when no character of it is of a closed piece; the text
        is cut at the spelling of one that does not count, and nowhere else."""
        text, closed, end = "".join(piece for piece, _ in pieces), [], 0
        for piece, is_open in pieces:
            end += len(piece)
            if piece and not is_open:
                closed.append((end - len(piece), end))
        ids: list[int] = []
        done = 0
        for match in self._spellings.finditer(text) if closed else ():
            if any(start < match.end() and match.start() < stop for start, stop in closed):
                ids += self.backend.encode(text[done : match.start()], add_special_tokens=False).ids
                ids += self._encode_spelling(match.group())
                done = match.end()
        return ids + self.backend.encode(text[done:], add_special_tokens=False).ids

    def _encode_spelling(self, token: str) -> list[int]:
        """Ids of an added token's spelling as plain text."""
        cut = self.backend.pre_tokenizer.pre_tokenize_str(token)
        return [found.id for word, _ in cut for found in self.backend.model.tokenize(word)]

    def __call__(
        self,
        text: str | Sequence[str],
        padding: bool | str = False,
        padding_side: str | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """input_ids and attention_mask of one text or several; control tokens in the text count."""
        rows = [self.encode(t) for t in ([text] if isinstance(text, str) else text)]
        result = self.pad(rows, padding, padding_side, return_tensors)
        if isinstance(text, str) and return_tensors is None:
            return BatchFeature({name: value[0] for name, value in result.items()})
        return BatchFeature(result)

    def pad(
        self,
        rows: list[list[int]],
        padding: bool | str = True,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> dict[str, Any]:
        """input_ids and attention_mask of rows; padding=True (or "longest") fills up to the longest row, "max_length"
        to max_length, on `padding_side` (default: the tokenizer's), and on to a multiple where one is given. Nothing
        is ever cut: ValueError for a row above max_length. return_tensors: None (lists) or "pt" (int64 [B, S])."""
        side = padding_side or self.padding_side
        if side not in ("left", "right"):
            raise ValueError(f"padding_side={side!r}: expected left or right")
        if padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding={padding!r}: expected True, False, 'longest' or 'max_length'")
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors={return_tensors!r}: expected 'pt' or None")
        longest = max(map(len, rows), default=0)
        if padding == "max_length" and max_length is None:
            raise ValueError("padding='max_length' needs max_length")
        if max_length is not None and longest > max_length:
            raise ValueError(f"a prompt has {longest} tokens, max_length={max_length}: prompts are never cut")
        masks = [[1] * len(row) for row in rows]
        if padding and padding != "do_not_pad":
            width = max_length if padding == "max_length" and max_length is not None else longest
            width += -width % (pad_to_multiple_of or 1)
            fills = [width - len(row) for row in rows]
            pad = self.pad_token_id
            left = side == "left"
            masks = [[0] * n * left + m + [0] * n * (not left) for n, m in zip(fills, masks, strict=True)]
            rows = [[pad] * n * left + r + [pad] * n * (not left) for n, r in zip(fills, rows, strict=True)]
        if return_tensors == "pt":
            if len({len(row) for row in rows}) > 1:
                raise ValueError("rows of different length make no tensor: give padding=True")
            return {"input_ids": torch.tensor(rows, dtype=torch.long), "attention_mask": torch.tensor(masks)}
        return {"input_ids": rows, "attention_mask": masks}

    def decode(
        self, token_ids: int | Ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """Text of ids. clean_up_tokenization_spaces: take out spaces before marks (default: as the files say)."""
        ids = _plain(token_ids)
        text = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = bool(self.config.get("clean_up_tokenization_spaces", False))
        if clean_up_tokenization_spaces:
            for spaced, tidy in UNTIDY:
                text = text.replace(spaced, tidy)
        return text

    def batch_decode(
        self,
        sequences: Iterable[Ids] | torch.Tensor,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """decode() of every row."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]


def _plain(ids: int | Ids) -> list[int]:
    """Ids as Python integers; one id counts as a list of one."""
    if isinstance(ids, torch.Tensor):
        ids = ids.tolist()
    return [index(i) for i in ids] if isinstance(ids, Iterable) else [index(ids)]


def _content(token: str | dict[str, Any]) -> str:
    """Files spell a token as text or as {"content": text, ...}."""
    return token if isinstance(token, str) else str(token["content"])


def _from_vocabulary(folder: Path) -> Backend:
    """The backend of vocab.json and merges.txt, without added tokens."""
    backend = Backend(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _add_tokens(backend: Backend, listed: dict[str, dict[str, Any]], path: Path) -> None:
    """Add the tokens that `path` lists under their ids and the backend does not know. ValueError when an id differs."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for number, token in sorted(listed.items(), key=lambda item: int(item[0])):
        text = token["content"]
        if text not in known:
            added = AddedToken(text, special=token.get("special", False), normalized=token.get("normalized", False))
            backend.add_tokens([added])
        if backend.token_to_id(text) != int(number):
            raise ValueError(
                f"{path} gives {text} the id {number}, the vocabulary makes it {backend.token_to_id(text)}: "
                "the files are not of one checkpoint"
            )
