"""The processor: conversations or prompts with pictures and videos -> what forward() and generate() take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import torch

from qwenvl.gguf_folder import resolve
from qwenvl.media.policy import DEFAULT_POLICY, MediaPolicy
from qwenvl.processing.batch_feature import BatchFeature
from qwenvl.processing.chat_template import BUILT_IN, ChatTemplate
from qwenvl.processing.clips import flat_videos
from qwenvl.processing.expand import check_places, check_shares, expand, token_counts, token_types
from qwenvl.processing.guard import Guard, Messages, Piece, Tools
from qwenvl.processing.handover import as_picture
from qwenvl.processing.image_processor import Qwen2VLImageProcessor, channels_first, flat, lift_units, with_fast
from qwenvl.processing.messages import PictureItem, Talk, VideoItem, named, read_conversation
from qwenvl.processing.options import CallOptions, MediaOptions, read_options
from qwenvl.processing.tokenizer import Ids, Tokenizer
from qwenvl.processing.video_processor import (
    Qwen2VLVideoProcessor,
    check_sampling,
    clip_metadata,
    per_video,
    warn_of_idle_options,
)

IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"

Conversation = Sequence[Mapping[str, Any]]


class Qwen2_5_VLProcessor:
    """Image processor, video processor, tokenizer and chat template in one, as documented.

    Pads on the left where a generation prompt is asked for (answers then start in one column) and on the
    tokenizer's padding_side otherwise; padding_side= decides in any case. policy: what may be read, where a call does
    not say it.
    """

    image_processor_class = "Qwen2VLImageProcessor"
    video_processor_class = "Qwen2VLVideoProcessor"
    model_input_names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "pixel_values_videos",
                         "video_grid_thw", "second_per_grid_ts")  # fmt: skip
    image_token, video_token = IMAGE_PAD, VIDEO_PAD

    def __init__(
        self,
        image_processor: Qwen2VLImageProcessor | None = None,
        tokenizer: Tokenizer | None = None,
        video_processor: Qwen2VLVideoProcessor | None = None,
        chat_template: str | None = None,
        *,
        policy: MediaPolicy = DEFAULT_POLICY,
    ) -> None:
        if tokenizer is None:
            raise ValueError("tokenizer is None: a processor needs one")
        for name, value, kind in (
            ("image_processor", image_processor, Qwen2VLImageProcessor),
            ("tokenizer", tokenizer, Tokenizer),
            ("video_processor", video_processor, Qwen2VLVideoProcessor),
        ):
            if value is not None and not isinstance(value, kind):
                raise ValueError(f"{name} is {type(value).__name__}: expected {kind.__name__}")
        self.image_processor = image_processor or Qwen2VLImageProcessor()
        self.video_processor = video_processor or Qwen2VLVideoProcessor()
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.policy = policy

    @property
    def chat_template(self) -> ChatTemplate:
        """The template's text; a plain string or None (the built-in one) may be put in its place."""
        return self._chat_template

    @chat_template.setter
    def chat_template(self, text: str | None) -> None:
        self._chat_template = text if isinstance(text, ChatTemplate) else ChatTemplate(text)

    @property
    def image_token_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(IMAGE_PAD)

    @property
    def video_token_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(VIDEO_PAD)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        size: Mapping[str, int] | None = None,
        fast: bool | None = None,
        use_fast: bool | None = None,
        padding_side: str | None = None,
        chat_template: str | None = None,
        policy: MediaPolicy = DEFAULT_POLICY,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """Processor of a checkpoint's folder or hub id. min_pixels, max_pixels, size: as for the image and the video
        processor; fast (use_fast): as for the image processor; padding_side: as for the tokenizer; chat_template; in
        place of what the files say. revision, token, local_files_only, cache_dir: for the hub. trust_remote_code has
        no effect: no code of a checkpoint is ever run."""
        folder = resolve(folder, revision, token, local_files_only, cache_dir)
        tokenizer = Tokenizer.from_pretrained(folder)
        tokenizer.padding_side = padding_side or tokenizer.padding_side
        template = ChatTemplate(chat_template) if chat_template else None
        template = template or ChatTemplate.from_folder(folder, tokenizer.chat_template)
        limits: dict[str, Any] = {"min_pixels": min_pixels, "max_pixels": max_pixels, "size": size}
        images = Qwen2VLImageProcessor.from_pretrained(folder, **with_fast({**limits, "fast": fast}, use_fast))
        videos = Qwen2VLVideoProcessor.from_pretrained(folder, **limits)
        return cls(images, tokenizer, videos, template, policy=policy)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes preprocessor_config.json, video_preprocessor_config.json, the tokenizer's files and
        chat_template.json."""
        folder = Path(folder)
        self.image_processor.save_pretrained(folder)
        self.video_processor.save_pretrained(folder)
        for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
            data = {**json.loads((folder / name).read_text("utf-8")), "processor_class": type(self).__name__}
            (folder / name).write_text(json.dumps(data, indent=2) + "\n", "utf-8")
        self.tokenizer.save_pretrained(folder)
        template = {"chat_template": self.chat_template.text}
        (folder / "chat_template.json").write_text(json.dumps(template, indent=2, ensure_ascii=False) + "\n", "utf-8")

    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        chat_template: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        add_vision_id: bool = False,
        return_dict: bool = False,
        **options: Unpack[MediaOptions],
    ) -> Any:
        """One conversation or a list of them -> prompt text, ids, or everything the model needs.

        tokenize=False: the text (str, or a list for a list). tokenize=True: ids; with return_dict=True the pictures
        and videos that the items name are loaded too and the BatchFeature of __call__ is returned. options: see
        MediaOptions; what an item says goes before them, they go before the processor's settings. A list of
        conversations is padded unless padding=False.

        What users typed is never read as a control token here. The text form cannot carry that difference: a control
        token spelt in it counts when it is tokenized later.
        """
        given = read_options(options)
        if not isinstance(conversation, list | tuple):
            raise ValueError(f"a conversation is a list of messages (dicts), not {type(conversation).__name__}")
        batched = bool(conversation) and not isinstance(conversation[0], Mapping)
        template = self.chat_template if chat_template is None else ChatTemplate(chat_template)
        if batched:
            talks = [read_conversation(talk, f"conversation {i}") for i, talk in enumerate(conversation)]
        else:
            talks = [read_conversation(conversation)]

        def render(messages: Messages, tools: Tools) -> str:
            return template.render(messages, add_generation_prompt, add_vision_id, tools, continue_final_message)

        if not tokenize:
            if return_dict or given:
                name = "return_dict=True" if return_dict else given.first()
                raise ValueError(f"{name} has no effect on text: give tokenize=True")
            texts = [render(talk.messages, tools) for talk in talks]
            return texts if batched else texts[0]
        rows = [self.tokenizer.encode_pieces(self._pieces(render, talk, tools)) for talk in talks]
        if add_generation_prompt:
            given.text.setdefault("padding_side", "left")
        given.text.setdefault("padding", batched)
        result = self._assemble(
            rows, [p for talk in talks for p in talk.pictures], [v for talk in talks for v in talk.videos], given
        )
        if return_dict:
            return result
        return result["input_ids"] if batched or given.text.get("return_tensors") else result["input_ids"][0]

    def _pieces(self, render: Any, talk: Talk, tools: Tools) -> list[Piece]:
        """The rendered prompt, cut where what users typed spells a token."""
        for kind, key, items in (("picture", "image", talk.pictures), ("video", "video", talk.videos)):
            for item in items:
                if item.source is None:
                    raise ValueError(f"{item.where}: there is no {kind} ({key}, url or path), it cannot be tokenized")
        guard = Guard(self.tokenizer.added_tokens, self.tokenizer.control_tokens)
        return guard.render(render, talk.messages, tools)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        **options: Unpack[MediaOptions],
    ) -> BatchFeature:
        """Rendered prompts with their pictures and videos, in order of appearance -> BatchFeature: input_ids and
        attention_mask, with pictures pixel_values and image_grid_thw, with videos pixel_values_videos, video_grid_thw
        and second_per_grid_ts; its image_sizes, video_sizes and video_times tell what became of each.

        images, videos: as Qwen2VLImageProcessor.preprocess and Qwen2VLVideoProcessor.preprocess take them; one list,
        or one list per prompt. options: see MediaOptions.
        Each <|image_pad|> and <|video_pad|> becomes as many tokens as its picture or video has. Control tokens in the
        text count: the text is taken to come from apply_chat_template. Raises ValueError when placeholders and what
        was given differ in number.
        """
        given = read_options(options)
        if text is None or text == "" or (not isinstance(text, str) and not list(text)):
            raise ValueError("text is empty: give a prompt, or a list of prompts")
        texts = [text] if isinstance(text, str) else list(text)
        if not all(isinstance(t, str) for t in texts):
            raise ValueError("text holds something else than strings: give a prompt, or a list of prompts")
        rows = [self.tokenizer.encode(t) for t in texts]
        if isinstance(images, list | tuple) and any(isinstance(x, list | tuple) for x in images):
            check_shares([len(flat(x)) for x in images], rows, self.image_token_id, IMAGE_PAD, "pictures")
        sources, shares = flat_videos(videos)
        check_shares(shares, rows, self.video_token_id, VIDEO_PAD, "videos")
        pictures = [PictureItem(x, where=f"images, picture {i}") for i, x in enumerate(flat(images))]
        clips = [VideoItem(x, where=f"videos, video {i}") for i, x in enumerate(sources)]
        return self._assemble(rows, pictures, clips, given)

    def decode(self, token_ids: int | Ids, **options: Any) -> str:
        """tokenizer.decode."""
        return self.tokenizer.decode(token_ids, **options)

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """tokenizer.batch_decode."""
        return self.tokenizer.batch_decode(sequences, **options)

    def post_process_image_text_to_text(
        self,
        generated_outputs: torch.Tensor | np.ndarray | Sequence[Any],
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool = False,
        **options: Any,
    ) -> list[str]:
        """Texts of generated ids (B, S) or (S,); `options` go to batch_decode."""
        is_array = isinstance(generated_outputs, torch.Tensor | np.ndarray)
        rows = generated_outputs.tolist() if is_array else list(generated_outputs)  # type: ignore[union-attr]
        if rows and isinstance(rows[0], int):
            rows = [rows]
        return self.tokenizer.batch_decode(rows, skip_special_tokens, clean_up_tokenization_spaces, **options)

    def _assemble(
        self, rows: list[list[int]], pictures: list[PictureItem], videos: list[VideoItem], given: CallOptions
    ) -> BatchFeature:
        """Placeholders expanded, rows padded, pixels beside them."""
        image, video = self.image_token_id, self.video_token_id
        if not all(rows):
            raise ValueError("a prompt is empty: give text")
        check_places(rows, image, IMAGE_PAD, len(pictures), "pictures")
        check_places(rows, video, VIDEO_PAD, len(videos), "videos")
        seen = self._pictures(pictures, given) if pictures else BatchFeature({})
        clips = self._videos(videos, given) if videos else BatchFeature({})
        counts = {image: self._counts(seen, given.images), video: self._counts(clips, given.videos)}
        data = self.tokenizer.pad(expand(rows, counts), **{"padding": False, **given.text})
        if given.shared.get("return_mm_token_type_ids"):
            ids = data["input_ids"]
            types = token_types(ids.tolist() if isinstance(ids, torch.Tensor) else ids, image, video)
            data["mm_token_type_ids"] = torch.tensor(types) if isinstance(ids, torch.Tensor) else types
        return BatchFeature({**data, **seen, **clips}, seen.image_sizes, clips.video_sizes, clips.video_times)

    def _counts(self, pixels: BatchFeature, options: Mapping[str, Any]) -> list[int]:
        """Tokens of each picture or video."""
        grids = pixels.get("image_grid_thw", pixels.get("video_grid_thw"))
        merge = options.get("merge_size", self.image_processor.merge_size)
        return [] if grids is None else token_counts(grids, merge)

    def _pictures(self, items: list[PictureItem], given: CallOptions) -> BatchFeature:
        """Pixels and grids of pictures, each under its own limits; an error names the picture."""
        options, policy = dict(given.images), given.shared.get("policy", self.policy)
        first = channels_first(options.pop("input_data_format", None))
        sources, options = lift_units([item.source for item in items], options)
        settings = self.image_processor.changed(**options)
        prepared = []
        for item, source in zip(items, sources, strict=True):
            with named(item.where):
                picture = as_picture(source, policy, first)
                prepared.append(settings.prepare(picture, item.min_pixels, item.max_pixels, item.size))
        return settings.batch(prepared, given.shared.get("pixel_dtype", torch.float32))

    def _videos(self, items: list[VideoItem], given: CallOptions) -> BatchFeature:
        """Pixels, grids and seconds of videos, each with its own options; an error names the video."""
        options, policy = dict(given.videos), given.shared.get("policy", self.policy)
        first = channels_first(options.pop("input_data_format", None))
        sample, want_metadata = options.pop("do_sample_frames", None), options.pop("return_metadata", False)
        rates = per_video("fps", options.pop("fps", None), len(items))
        about = per_video("video_metadata", options.pop("video_metadata", None), len(items))
        total = options.pop("total_pixels", None)
        warn_of_idle_options(options, [item.source for item in items])
        settings = self.video_processor.changed(**options)
        clips = []
        for item, rate, metadata in zip(items, rates, about, strict=True):
            with named(item.where):
                check_sampling(item.source, sample)
                own = {"total_pixels": total, **item.options}
                if "nframes" not in own:
                    own.setdefault("fps", rate)
                clips.append(settings.prepare(item.source, own, policy, metadata, first))
        dtype = given.shared.get("pixel_dtype", torch.float32)
        result = settings.batch(clips, given.text.get("return_tensors"), dtype)
        if want_metadata:
            result["video_metadata"] = [clip_metadata(clip) for clip in clips]
        return result


class Qwen2VLProcessor(Qwen2_5_VLProcessor):
    """The same for Qwen2-VL."""


__all__ = ["BUILT_IN", "Qwen2VLProcessor", "Qwen2_5_VLProcessor"]
