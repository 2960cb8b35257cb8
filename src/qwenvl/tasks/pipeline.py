"""The documented pipeline("image-text-to-text", ...): conversations in, records with the answers out.

It holds a processor and a model and adds no behaviour of its own: apply_chat_template, generate, decode.

    pipe = pipeline("image-text-to-text", model="demo")
    pipe(text=messages, max_new_tokens=20, return_full_text=False)[0]["generated_text"]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import GeneratorType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TASK = "image-text-to-text"
DEFAULT_NEW_TOKENS = 256  # as documented, where neither a call nor generation_config.json says
_FUNCTIONS = ("generation_config", "logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer")

Record = dict[str, Any]


@dataclass
class _Prompt:
    """One thing to answer: a chat (messages), or a text with its pictures."""

    given: Any
    images: Any = None

    @property
    def chat(self) -> bool:
        return not isinstance(self.given, str)


@dataclass
class _Call:
    """The options of one call, by what they are for."""

    generate: dict[str, Any] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=dict)
    full_text: bool = True
    tensors: bool = False
    continued: bool | None = None
    skip_special: bool = True
    clean_up: bool = False
    batch_size: int = 1


def pipeline(
    task: str | None = None,
    model: Any = None,
    config: Any = None,
    tokenizer: Any = None,
    image_processor: Any = None,
    processor: Any = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: int | str | torch.device | None = None,
    device_map: Any = None,
    dtype: Any = None,
    torch_dtype: Any = None,
    trust_remote_code: bool | None = None,
    use_fast: bool | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> ImageTextToTextPipeline:
    """The pipeline of a task; there is one, "image-text-to-text".

    model: a folder, a hub id, "demo", or a loaded model, which needs processor too. processor: a processor, a folder
    or a hub id; None = the model's. device: one device (-1 = the CPU) or device_map; without either the GPU if there
    is one. dtype (torch_dtype): as for from_pretrained, "auto" by default. model_kwargs: more for from_pretrained.
    defaults: options of every call that does not say otherwise. trust_remote_code has no effect: no code of a
    checkpoint is ever run. Raises ValueError for other tasks and for what does not fit together.
    """
    if task is not None and task != TASK:
        raise ValueError(f"task={task!r} is not available: expected {TASK!r}")
    if model is None:
        raise ValueError("model is None: give a folder, a hub id, 'demo' or a loaded model")
    if tokenizer is not None or image_processor is not None:
        raise ValueError("tokenizer and image_processor are parts of the processor here: give processor=")
    named = isinstance(model, str | Path)
    if processor is None and not named:
        raise ValueError("a loaded model comes without its processor: give processor= too")
    if device is not None and device_map is not None:
        raise ValueError(f"device={device!r} and device_map={device_map!r} are both given: give one")
    from qwenvl.checkpoint.auto import AutoModelForImageTextToText
    from qwenvl.checkpoint.placement import plan_placement
    from qwenvl.processing import AutoProcessor

    place = device_map if device is None else "cpu" if device == -1 else device
    hub = {"revision": revision, "token": token}
    where: dict[str, Any] = {name: value for name, value in hub.items() if value is not None}
    if named:
        more = dict(model_kwargs or {})
        chosen = next((value for value in (dtype, torch_dtype, more.pop("dtype", None)) if value is not None), None)
        options = {"dtype": chosen, "device_map": "auto" if place is None else place, "config": config, **where, **more}
        loaded = AutoModelForImageTextToText.from_pretrained(model, **options)
    else:
        given = {"config": config, "dtype": dtype, "torch_dtype": torch_dtype, "model_kwargs": model_kwargs, **where}
        idle = [name for name, value in given.items() if value is not None and value != "auto"]
        if idle:
            raise ValueError(f"{', '.join(idle)} has no effect on a loaded model: leave it out")
        loaded = model if place is None else model.to(plan_placement(model, place).main)
    if processor is None or isinstance(processor, str | Path):
        fast: dict[str, Any] = {} if use_fast is None else {"use_fast": use_fast}
        processor = AutoProcessor.from_pretrained(model if processor is None else processor, **where, **fast)
    return ImageTextToTextPipeline(loaded, processor, **defaults)


class ImageTextToTextPipeline:
    """What pipeline() returns; see its __call__."""

    task = TASK

    def __init__(self, model: Any, processor: Any, **defaults: Any) -> None:
        self.model, self.processor = model, processor
        self.tokenizer, self.image_processor = processor.tokenizer, processor.image_processor
        self._defaults = defaults
        self._read({})  # what is wrong with the defaults is told now

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def generation_config(self) -> Any:
        return self.model.generation_config

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        """Answer. Returns a list of records for one chat or text, a list of such lists for a list of chats or texts,
        an iterator of them for a generator; for images= with a list of texts one list of records.

        text (or the first argument): a chat (list of messages), a list of chats, a text or a list of them. images=
        with text=: a picture or list of pictures for prompts that hold the placeholders; {"images":, "text":} is the
        same as one argument. A record has "input_text", and "generated_text": with return_full_text=True (the
        default) the chat with the answer as one more message, or the text with the answer behind it; with False the
        answer alone. return_tensors=True gives "generated_token_ids" in its place. A chat that ends with an
        assistant's message is continued; continue_final_message decides in any case.

        options: max_new_tokens (256) and all of generate(), directly or in generate_kwargs; stop_sequence; batch_size,
        how many are computed together (1); skip_special_tokens, clean_up_tokenization_spaces; those of the processor,
        such as min_pixels, fps and add_vision_id, directly or in processor_kwargs.
        """
        call = self._read(options)
        if images is None and text is None:
            raise ValueError("there is nothing to answer: give text (a chat, or a text) or images and text")
        if text is None:
            text, images = images, None
        if isinstance(text, GeneratorType):
            return self._each(text, call)
        if _is_chat(text) or isinstance(text, str | Mapping):
            return self._answer([_prompt(text, images)], call)[0]
        if not isinstance(text, Sequence) or not text:
            raise ValueError(f"text is a {type(text).__name__}: expected a chat, a text, or a list of them")
        if images is None:
            return self._answer([_prompt(one, None) for one in text], call)
        prompts = [_prompt(one, mine) for one, mine in zip(text, _shares(images, len(text)), strict=True)]
        return [record for records in self._answer(prompts, call) for record in records]

    def _each(self, given: Iterator[Any], call: _Call) -> Iterator[list[Record]]:
        for one in given:
            yield self._answer([_prompt(one, None)], call)[0]

    def _read(self, options: Mapping[str, Any]) -> _Call:
        """The options of a call, over those of the pipeline."""
        from qwenvl.checkpoint.generation_config import NOT_SUPPORTED, OPTION_NAMES

        values = {**self._defaults, **options}
        call = _Call()
        nested = [dict(source.get("generate_kwargs") or {}) for source in (self._defaults, options)]
        call.generate = {**nested[0], **nested[1]}
        call.process = dict(values.pop("processor_kwargs", None) or {})
        values.pop("generate_kwargs", None)
        full, tensors = values.pop("return_full_text", None), values.pop("return_tensors", None)
        if full is not None and tensors:
            raise ValueError("return_full_text and return_tensors are both given: give one")
        call.full_text, call.tensors = full is not False, bool(tensors)
        call.continued = values.pop("continue_final_message", None)
        call.skip_special = values.pop("skip_special_tokens", True)
        call.clean_up = values.pop("clean_up_tokenization_spaces", None) or False
        call.batch_size = values.pop("batch_size", 1)
        stop = values.pop("stop_sequence", None)
        if stop is not None:
            values["stop_strings"] = [stop] if isinstance(stop, str) else list(stop)
        for name, value in values.items():
            if name not in OPTION_NAMES and name not in NOT_SUPPORTED and name not in _FUNCTIONS:
                call.process[name] = value
            elif name in nested[1]:
                raise ValueError(f"{name} is given twice, directly and in generate_kwargs: give it once")
            else:
                call.generate[name] = value
        if call.generate.get("stop_strings"):
            call.generate.setdefault("tokenizer", self.tokenizer)
        for name in ("return_dict_in_generate", "output_scores", "output_logits", "logprobs"):
            if call.generate.get(name):
                raise ValueError(f"{name} has no place in a record: call model.generate() itself")
        if call.batch_size < 1:
            raise ValueError(f"batch_size={call.batch_size} is not valid: expected at least 1")
        return call

    def _answer(self, prompts: list[_Prompt], call: _Call) -> list[list[Record]]:
        """The records of each prompt, batch_size prompts at a time, chats and texts apart."""
        records: list[list[Record]] = []
        start = 0
        while start < len(prompts):
            same = [self._kind(p, call) == self._kind(prompts[start], call) for p in prompts[start:]]
            count = min(call.batch_size, same.index(False) if False in same else len(same))
            records.extend(self._batch(prompts[start : start + count], call))
            start += count
        return records

    def _kind(self, prompt: _Prompt, call: _Call) -> tuple[bool, bool]:
        """(is a chat, goes on with its last message)."""
        if not prompt.chat:
            return False, False
        ends = prompt.given[-1].get("role") == "assistant"
        return True, ends if call.continued is None else call.continued

    def _batch(self, prompts: list[_Prompt], call: _Call) -> list[list[Record]]:
        chat, continued = self._kind(prompts[0], call)
        process = {"return_tensors": "pt", "padding": len(prompts) > 1, "padding_side": "left", **call.process}
        if chat:
            inputs = self.processor.apply_chat_template(
                [list(prompt.given) for prompt in prompts],
                tokenize=True,
                return_dict=True,
                add_generation_prompt=not continued,
                continue_final_message=continued,
                **process,
            )
        else:
            images = [prompt.images for prompt in prompts]
            shown = None if all(image is None for image in images) else [_listed(image) for image in images]
            inputs = self.processor(images=shown, text=[prompt.given for prompt in prompts], **process)
        out = self.model.generate(**inputs.to(self.device), **self._generate_options(call))
        answers = out[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.post_process_image_text_to_text(
            answers, skip_special_tokens=call.skip_special, clean_up_tokenization_spaces=call.clean_up
        )
        copies = len(out) // len(prompts)
        return [
            [
                {"input_text": prompt.given, "generated_token_ids": out[row]}
                if call.tensors
                else {"input_text": prompt.given, "generated_text": _said(prompt, texts[row], call, continued)}
                for row in range(i * copies, (i + 1) * copies)
            ]
            for i, prompt in enumerate(prompts)
        ]

    def _generate_options(self, call: _Call) -> dict[str, Any]:
        """The call's options with the documented length where nothing says one."""
        sources = (call.generate, call.generate.get("generation_config"), self.generation_config)
        for source in sources:
            for name in ("max_new_tokens", "max_length"):
                said = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
                if said is not None:
                    return call.generate
        return {**call.generate, "max_new_tokens": DEFAULT_NEW_TOKENS}


def _said(prompt: _Prompt, answer: str, call: _Call, continued: bool) -> Any:
    """ "generated_text" of a record."""
    if not call.full_text:
        return answer
    if not prompt.chat:
        return prompt.given + answer
    messages = list(prompt.given)
    if not continued:
        return [*messages, {"role": "assistant", "content": answer}]
    content = messages[-1]["content"]
    if isinstance(content, str):
        content = content + answer
    else:
        content = [*content[:-1], {**content[-1], "text": content[-1]["text"] + answer}]
    return [*messages[:-1], {**messages[-1], "content": content}]


def _prompt(given: Any, images: Any) -> _Prompt:
    """What one argument asks for; ValueError where it is neither chat nor text."""
    if isinstance(given, Mapping) and "text" in given and "role" not in given:
        unknown = set(given) - {"text", "images", "image"}
        if unknown or images is not None:
            raise ValueError(f"an input with {', '.join(sorted(map(str, given)))} is not known: give images and text")
        return _prompt(given["text"], given.get("images", given.get("image")))
    if _is_chat(given):
        if images is not None:
            raise ValueError(
                "a chat and images are both given: put each picture into a message's content, as "
                "{'type': 'image', 'url': ...}"
            )
        return _Prompt(given)
    if not isinstance(given, str):
        raise ValueError(f"an input is a {type(given).__name__}: expected a chat (list of messages) or a text")
    return _Prompt(given, images)


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and isinstance(value[0], Mapping)
        and ("role" in value[0] or "content" in value[0])
    )


def _shares(images: Any, count: int) -> list[Any]:
    """The pictures of each of `count` texts; ValueError when they are not as many."""
    shares = list(images) if isinstance(images, list | tuple) else [images]
    if len(shares) != count:
        raise ValueError(f"{len(shares)} images for {count} texts: give a picture, or a list of pictures, for each")
    return shares


def _listed(images: Any) -> list[Any]:
    return [] if images is None else list(images) if isinstance(images, list | tuple) else [images]
