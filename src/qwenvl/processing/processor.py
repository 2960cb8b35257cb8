"""The processor: conversations or prompts with pictures -> what the model's forward() and generate() take."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import torch

from qwenvl.media.images import ImageSource
from qwenvl.processing.batch_feature import BatchFeature
from qwenvl.processing.chat_template import BUILT_IN, ChatTemplate
from qwenvl.processing.guard import Guard, Messages, Tools
from qwenvl.processing.image_processor import Qwen2VLImageProcessor
from qwenvl.processing.messages import PictureItem, read_conversation
from qwenvl.processing.tokenizer import Ids, Tokenizer

IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"

Conversation = list[dict[str, Any]]


class Qwen2_5_VLProcessor:
    """Image processor, tokenizer and chat template in one, as documented.

    Pads on the left where a generation prompt is asked for (answers then start in one column) and on the
    tokenizer's padding_side otherwise; padding_side= decides in any case.
    """

    image_processor_class = "Qwen2VLImageProcessor"

    def __init__(
        self,
        image_processor: Qwen2VLImageProcessor | None = None,
        tokenizer: Tokenizer | None = None,
        video_processor: None = None,
        chat_template: str | ChatTemplate | None = None,
    ) -> None:
        if tokenizer is None:
            raise ValueError("tokenizer is None: a processor needs one")
        if video_processor is not None:
            raise ValueError("video_processor is not supported yet in this version: leave it out")
        self.image_processor = image_processor or Qwen2VLImageProcessor()
        self.tokenizer = tokenizer
        self.chat_template = chat_template if isinstance(chat_template, ChatTemplate) else ChatTemplate(chat_template)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        size: dict[str, int] | None = None,
        fast: bool = False,
        padding_side: str | None = None,
    ) -> Self:
        """Processor of a checkpoint's folder or hub id. min_pixels, max_pixels, size, fast: as for the image processor;
        padding_side: as for the tokenizer; in place of what the files say."""
        folder = processor_folder(folder)
        tokenizer = Tokenizer.from_pretrained(folder)
        tokenizer.padding_side = padding_side or tokenizer.padding_side
        template = ChatTemplate.from_folder(folder, tokenizer.chat_template)
        images = Qwen2VLImageProcessor.from_pretrained(
            folder, min_pixels=min_pixels, max_pixels=max_pixels, size=size, fast=fast
        )
        return cls(images, tokenizer, None, template)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes preprocessor_config.json, the tokenizer's files and chat_template.json."""
        folder = Path(folder)
        self.image_processor.save_pretrained(folder)
        path = folder / "preprocessor_config.json"
        data = {**json.loads(path.read_text("utf-8")), "processor_class": type(self).__name__}
        path.write_text(json.dumps(data, indent=2) + "\n", "utf-8")
        self.tokenizer.save_pretrained(folder)
        template = {"chat_template": self.chat_template.text}
        (folder / "chat_template.json").write_text(json.dumps(template, indent=2, ensure_ascii=False) + "\n", "utf-8")

    def apply_chat_template(
        self,
        conversation: Conversation | list[Conversation],
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        padding: bool | str | None = None,
        padding_side: str | None = None,
        add_vision_id: bool = False,
        tools: list[dict[str, Any]] | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Any:
        """One conversation or a list of them -> prompt text, ids, or everything the model needs.

        tokenize=False: the text (str, or a list for a list). tokenize=True: ids; with return_dict=True the pictures
        that the items name are loaded too and a BatchFeature is returned (input_ids, attention_mask, pixel_values,
        image_grid_thw). min_pixels, max_pixels: limits for this call; those of an item go before them.

        What users typed is never read as a control token here. The text form cannot carry that difference: a control
        token spelt in it counts when it is tokenized later.
        """
        if not isinstance(conversation, list | tuple):
            raise ValueError(f"a conversation is a list of messages (dicts), not {type(conversation).__name__}")
        batched = bool(conversation) and not isinstance(conversation[0], dict)
        talks: list[Conversation] = list(conversation) if batched else [conversation]  # type: ignore[list-item, arg-type]
        read = [read_conversation(talk) for talk in talks]

        def render(messages: Messages, tools: Tools) -> str:
            return self.chat_template.render(messages, add_generation_prompt, add_vision_id, tools)

        if not tokenize:
            given = {"return_dict": return_dict, "return_tensors": return_tensors, "padding": padding,
                     "padding_side": padding_side, "min_pixels": min_pixels, "max_pixels": max_pixels}  # fmt: skip
            for name, value in given.items():
                if value not in (None, False):
                    raise ValueError(f"{name}={value!r} has no effect on text: give tokenize=True")
            texts = [render(messages, tools) for messages, _ in read]
            return texts if batched else texts[0]
        pictures = [picture for _, found in read for picture in found]
        for picture in pictures:
            if picture.source is None:
                raise ValueError("an image item has no picture (image, url or path): it cannot be tokenized")
            picture.min_pixels = min_pixels if picture.min_pixels is None else picture.min_pixels
            picture.max_pixels = max_pixels if picture.max_pixels is None else picture.max_pixels
        guard = Guard(self.tokenizer.added_tokens, self.tokenizer.control_tokens)
        encoded = [self.tokenizer.encode_pieces(guard.render(render, messages, tools)) for messages, _ in read]
        side = padding_side or ("left" if add_generation_prompt else None)
        fill = padding if padding is not None else batched
        result = self._assemble(encoded, pictures, fill, side, return_tensors)
        if return_dict:
            return result
        return result["input_ids"] if batched or return_tensors else result["input_ids"][0]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: ImageSource | Sequence[Any] | None = None,
        videos: None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> BatchFeature:
        """Rendered prompts with their pictures, in order of appearance -> BatchFeature.

        Each <|image_pad|> becomes as many tokens as its picture has. Control tokens in the text count: the text is
        taken to come from apply_chat_template. Raises ValueError when placeholders and pictures differ in number.
        """
        if videos is not None:
            raise ValueError("video input is not supported yet in this version: leave out videos")
        if text is None or text == "" or (not isinstance(text, str) and not list(text)):
            raise ValueError("text is empty: give a prompt, or a list of prompts")
        texts = [text] if isinstance(text, str) else list(text)
        encoded = [self.tokenizer.encode(t) for t in texts]
        self._check_shares(images, encoded)
        pictures = [PictureItem(x, min_pixels, max_pixels) for x in _flat(images)]
        return self._assemble(encoded, pictures, padding, padding_side, return_tensors)

    def _check_shares(self, images: Any, encoded: list[list[int]]) -> None:
        """Pictures in nested lists, one list a prompt, must be as many as each prompt has places for."""
        if not isinstance(images, list | tuple) or not any(isinstance(x, list | tuple) for x in images):
            return
        if len(images) != len(encoded):
            raise ValueError(f"images holds {len(images)} lists for {len(encoded)} prompts: give one per prompt")
        pad = self.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        for i, (given, row) in enumerate(zip(images, encoded, strict=True)):
            if len(_flat(given)) != row.count(pad):
                raise ValueError(
                    f"prompt {i} has {row.count(pad)} places for pictures ({IMAGE_PAD}), "
                    f"{len(_flat(given))} pictures were given"
                )

    def decode(self, token_ids: int | Ids, **options: Any) -> str:
        """tokenizer.decode."""
        return self.tokenizer.decode(token_ids, **options)

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """tokenizer.batch_decode."""
        return self.tokenizer.batch_decode(sequences, **options)

    def post_process_image_text_to_text(
        self,
        generated_outputs: torch.Tensor | Sequence[Any],
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[str]:
        """Texts of generated ids (B, S) or (S,)."""
        rows = generated_outputs.tolist() if isinstance(generated_outputs, torch.Tensor) else list(generated_outputs)
        if rows and isinstance(rows[0], int):
            rows = [rows]
        return self.tokenizer.batch_decode(rows, skip_special_tokens, clean_up_tokenization_spaces)

    def _assemble(
        self,
        encoded: list[list[int]],
        pictures: list[PictureItem],
        padding: bool | str,
        side: str | None,
        return_tensors: str | None,
    ) -> BatchFeature:
        """Placeholders expanded, rows padded, pixels beside them."""
        pad, video = (self.tokenizer.convert_tokens_to_ids(token) for token in (IMAGE_PAD, VIDEO_PAD))
        if any(video in row for row in encoded):
            raise ValueError(f"the prompt holds {VIDEO_PAD}: video input is not supported yet in this version")
        if not all(encoded):
            raise ValueError("a prompt is empty: give text")
        wanted = sum(row.count(pad) for row in encoded)
        if wanted != len(pictures):
            raise ValueError(
                f"the text has {wanted} places for pictures ({IMAGE_PAD}), {len(pictures)} pictures were given"
            )
        pixels = BatchFeature({})
        counts = iter(())
        if pictures:
            pixels = self.image_processor.preprocess(
                [p.source for p in pictures],
                [p.min_pixels for p in pictures],
                [p.max_pixels for p in pictures],
                [p.size for p in pictures],
            )
            merge = self.image_processor.merge_size**2
            counts = iter((pixels["image_grid_thw"].prod(-1) // merge).tolist())
        rows = [[token for t in row for token in ([t] * next(counts) if t == pad else [t])] for row in encoded]
        data = self.tokenizer.pad(rows, padding, side, return_tensors)
        return BatchFeature({**data, **pixels}, pixels.image_sizes)


class Qwen2VLProcessor(Qwen2_5_VLProcessor):
    """The same for Qwen2-VL."""


def processor_folder(model: str | Path) -> Path:
    """A local folder, "demo" (the bundled model), or the processor files of a hub id. Raises ValueError for any other
    name."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    name = str(model)
    if name == "demo":
        return Path(str(files("qwenvl"))) / "demo" / "checkpoint"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{name} is neither a folder nor a hub id of the form owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.jinja"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError) as error:
        raise ValueError(f"{name} is not a local folder and could not be fetched from the hub: {error}") from None


def _flat(images: Any) -> list[Any]:
    """Pictures of one prompt or of many, in one list."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [x for item in images for x in (_flat(item) if isinstance(item, list | tuple) else [item])]
    return [images]


__all__ = ["BUILT_IN", "Qwen2VLProcessor", "Qwen2_5_VLProcessor", "processor_folder"]
