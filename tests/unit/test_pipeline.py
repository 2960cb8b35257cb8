"""pipeline("image-text-to-text"): the documented forms in, the documented records out, the same as transformers'."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
import torch
from prompts import picture

import qwenvl
from qwenvl import ImageTextToTextPipeline, TextIteratorStreamer, pipeline
from qwenvl.config import config_from_dict

PLACE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def model(processor: Any) -> Any:
    """A tiny random model for the test tokenizer, with weights so large that answers vary."""
    ids = {f"{name}_token_id": processor.tokenizer.convert_tokens_to_ids(f"<|{name}|>")
           for name in ("vision_start", "vision_end")}  # fmt: skip
    ids |= {f"{n}_token_id": processor.tokenizer.convert_tokens_to_ids(f"<|{n}_pad|>") for n in ("image", "video")}
    config = config_from_dict(
        {
            "model_type": "qwen2_5_vl", "vocab_size": 448, "hidden_size": 48, "intermediate_size": 80,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}, "tie_word_embeddings": False,
            "eos_token_id": processor.tokenizer.convert_tokens_to_ids("<|im_end|>"), **ids,
            "vision_config": {
                "depth": 2, "num_heads": 2, "hidden_size": 32, "intermediate_size": 44, "out_hidden_size": 48,
                "fullatt_block_indexes": [1],
            },
        }
    )  # fmt: skip
    torch.manual_seed(1)
    made = qwenvl.Qwen2_5_VLForConditionalGeneration(config).eval()
    for weight in made.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return made


@pytest.fixture
def pipe(model: Any, processor: Any) -> ImageTextToTextPipeline:
    return pipeline("image-text-to-text", model=model, processor=processor, max_new_tokens=6)


def chat(text: str = "What is in the picture?", width: int = 56, **extra: Any) -> list[dict[str, Any]]:
    shown = {"type": "image", "image": picture(width)}
    return [{"role": "user", "content": [shown, {"type": "text", "text": text}]}]


def expected(model: Any, processor: Any, messages: Any, new: int, **template: Any) -> tuple[Any, str]:
    """(the ids, the answer's text) by the three calls that the pipeline stands for."""
    options = {"add_generation_prompt": True, **template}
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", **options)
    out = model.generate(**inputs, max_new_tokens=new)
    return out[0], processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.feature(22)
def test_one_chat(pipe: ImageTextToTextPipeline, model: Any, processor: Any) -> None:
    messages = chat()
    ids, answer = expected(model, processor, messages, 6)
    assert answer
    assert pipe(text=messages, return_full_text=False) == [{"input_text": messages, "generated_text": answer}]
    whole = [*messages, {"role": "assistant", "content": answer}]
    assert pipe(text=messages) == [{"input_text": messages, "generated_text": whole}]
    assert pipe(messages) == pipe(text=messages)
    assert len(messages) == 1, "the caller's list is as it was"
    raw = pipe(text=messages, return_tensors=True)[0]
    assert set(raw) == {"input_text", "generated_token_ids"}
    assert torch.equal(raw["generated_token_ids"], ids)
    longer = pipe(text=messages, max_new_tokens=9, return_full_text=False)[0]["generated_text"]
    assert longer.startswith(answer)
    assert longer == expected(model, processor, messages, 9)[1]


@pytest.mark.feature(22)
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_many_chats_are_answered_as_each_alone(pipe: ImageTextToTextPipeline, batch_size: int) -> None:
    chats = [chat(), chat("And here?", 112), [{"role": "user", "content": "No picture"}], chat("Where is it?", 84)]
    chats.append([*chat(), {"role": "assistant", "content": [{"type": "text", "text": "There is"}]}])
    alone = [pipe(text=one) for one in chats]
    assert pipe(text=chats, batch_size=batch_size) == alone
    assert list(pipe(one for one in chats)) == alone
    assert len({str(one[0]["generated_text"]) for one in alone}) == 5


@pytest.mark.feature(22)
def test_a_chat_that_ends_with_the_assistant_is_continued(pipe: Any, model: Any, processor: Any) -> None:
    begun = [*chat(), {"role": "assistant", "content": [{"type": "text", "text": "There is"}]}]
    how = {"add_generation_prompt": False, "continue_final_message": True}
    _, more = expected(model, processor, begun, 6, **how)
    assert pipe(text=begun, return_full_text=False)[0]["generated_text"] == more
    last = pipe(text=begun)[0]["generated_text"][-1]
    assert last == {"role": "assistant", "content": [{"type": "text", "text": "There is" + more}]}
    assert begun[-1]["content"][0]["text"] == "There is"
    plain = [*chat(), {"role": "assistant", "content": "There is"}]
    assert pipe(text=plain)[0]["generated_text"][-1]["content"] == "There is" + more
    turned = pipe(text=begun, continue_final_message=False)[0]["generated_text"]
    assert turned[-1]["role"] == "assistant"
    assert len(turned) == 3


@pytest.mark.feature(22)
def test_texts_with_pictures_beside_them(pipe: ImageTextToTextPipeline, model: Any, processor: Any) -> None:
    text = f"{PLACE}What is it?"
    record = pipe(images=picture(), text=text)
    assert record == pipe({"images": picture(), "text": text})
    assert record[0]["input_text"] == text
    assert record[0]["generated_text"].startswith(text)
    answer = pipe(images=[picture()], text=text, return_full_text=False)[0]["generated_text"]
    assert record[0]["generated_text"] == text + answer
    many = pipe(images=[picture(), picture(112)], text=[text, text], batch_size=2)
    assert many[0] == record[0]
    assert len(many) == 2
    assert pipe("Only words")[0]["generated_text"].startswith("Only words")
    assert pipe(["Only words", "More words"]) == [pipe("Only words"), pipe("More words")]


@pytest.mark.feature(22, 96)
def test_options_of_generate_and_of_the_processor(pipe: Any, model: Any, processor: Any) -> None:
    messages = chat()
    drawn = {"do_sample": True, "seed": 3, "temperature": 2.0}
    direct = pipe(text=messages, **drawn)
    assert pipe(text=messages, generate_kwargs=drawn) == direct
    assert pipe(text=messages, **{**drawn, "seed": 4}) != direct
    assert len(pipe(text=messages, num_return_sequences=2, num_beams=3)) == 2
    streamer = TextIteratorStreamer(processor, skip_prompt=True, timeout=20.0, skip_special_tokens=True)
    asked = {"text": messages, "generate_kwargs": {"streamer": streamer}, "return_full_text": False}
    records: list[Any] = []
    worker = Thread(target=lambda: records.extend(pipe(**asked)))
    worker.start()
    pieces = list(streamer)
    worker.join()
    assert "".join(pieces) == records[0]["generated_text"]
    full = pipe(text=messages, return_full_text=False)[0]["generated_text"]
    stop = full[1:3]
    cut = pipe(text=messages, stop_sequence=stop, return_full_text=False)[0]["generated_text"]
    assert stop in cut
    assert len(cut) < len(full)
    _, smaller = expected(model, processor, chat(width=560), 6, max_pixels=56 * 56)
    assert pipe(text=chat(width=560), max_pixels=56 * 56, return_full_text=False)[0]["generated_text"] == smaller
    assert pipe(text=messages, processor_kwargs={"min_pixels": 112 * 112}) != pipe(text=messages)


@pytest.mark.feature(22)
def test_256_tokens_where_nothing_else_is_said(model: Any, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    plain = pipeline(model=model, processor=processor)
    generate = model.generate

    def kept(**options: Any) -> Any:
        asked.append(options.get("max_new_tokens"))
        return generate(**{**options, "max_new_tokens": 1})

    monkeypatch.setattr(model, "generate", kept)
    plain(text="words")
    monkeypatch.setattr(model, "generation_config", qwenvl.GenerationConfig(max_new_tokens=3))
    plain(text="words")
    plain(text="words", max_new_tokens=4)
    assert asked == [256, None, 4]


@pytest.mark.feature(22)
def test_a_folder_or_the_bundled_model(tmp_path: Any, model: Any, processor: Any) -> None:
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = pipeline(
        task="image-text-to-text", model=str(tmp_path), device="cpu", torch_dtype="auto", max_new_tokens=6
    )
    options = {"max_new_tokens": 6, "return_full_text": False}
    ours = pipeline("image-text-to-text", model, processor=processor)(text=chat(), **options)
    assert loaded(text=chat(), return_full_text=False)[0]["generated_text"] == ours[0]["generated_text"]
    assert loaded.device.type == "cpu"
    assert loaded.task == "image-text-to-text"
    half = pipeline("image-text-to-text", tmp_path, device_map="cpu", model_kwargs={"dtype": "bfloat16"})
    assert half.dtype == torch.bfloat16


@pytest.mark.feature(22)
def test_records_are_those_of_transformers(tmp_path: Any, model: Any, processor: Any) -> None:
    """The same keys and shapes of results from the same calls, and the same ids."""
    transformers = pytest.importorskip("transformers")
    oracle = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(**model.config.to_dict())
    ).eval()
    oracle.load_state_dict(model.state_dict())
    config = model.config
    oracle.generation_config.suppress_tokens = [
        config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id
    ]  # fmt: skip
    beside = _OracleProcessor(processor)
    theirs = _oracle_pipeline(transformers, oracle, beside)
    ours = pipeline(model=model, processor=processor)
    begun = [*chat(), {"role": "assistant", "content": [{"type": "text", "text": "There is"}]}]
    options = {"max_new_tokens": 4}
    for call in (
        {"text": chat()},
        {"text": chat(), "return_full_text": False},
        {"text": begun},
        {"text": [chat(), chat("And now?")]},
        {"text": chat(), "generate_kwargs": {"num_beams": 2, "num_return_sequences": 2}},
    ):
        assert ours(**call, **options) == theirs(**call, **options)


class _OracleProcessor:
    """Our processor as transformers' pipeline calls it, so that only the pipelines differ."""

    def __init__(self, processor: Any) -> None:
        self._processor, self.tokenizer, self.chat_template = processor, processor.tokenizer, "given"

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        options.pop("processor_kwargs", None)
        return self._processor.apply_chat_template(messages, return_mm_token_type_ids=True, **options)

    def post_process_image_text_to_text(self, *given: Any, **options: Any) -> Any:
        return self._processor.post_process_image_text_to_text(*given, **options)


def _oracle_pipeline(transformers: Any, model: Any, processor: Any) -> Any:
    """transformers' ImageTextToTextPipeline around a processor that is not its own."""
    from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline as Oracle

    made = Oracle.__new__(Oracle)
    made.model, made.processor, made.tokenizer, made.task = model, processor, processor.tokenizer, "image-text-to-text"
    made.image_processor = made.feature_extractor = None
    made.framework, made.device, made.binary_output = "pt", torch.device("cpu"), False
    made.call_count, made._batch_size, made._num_workers = 0, None, None
    made.generation_config = model.generation_config
    made._generate_kwargs, made._generation_defaults = {}, {}
    made.assistant_model = made.assistant_tokenizer = made.prefix = None
    made._preprocess_params, made._forward_params, made._postprocess_params = made._sanitize_parameters()
    return made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "image-to-text"}, "task='image-to-text' is not available: expected 'image-text-to-text'"),
        ({"model": None}, "model is None"),
        ({"processor": None}, "give processor= too"),
        ({"device": "cpu", "device_map": "cpu"}, "are both given"),
        ({"device": "warp:9"}, "warp:9"),
        ({"dtype": "float16"}, "dtype has no effect on a loaded model"),
        ({"tokenizer": object()}, "give processor="),
        ({"batch_size": 0}, "batch_size=0 is not valid"),
        ({"return_full_text": True, "return_tensors": True}, "give one"),
        ({"return_dict_in_generate": True}, "has no place in a record"),
    ],
)
def test_what_is_refused_when_it_is_made(options: dict[str, Any], message: str, model: Any, processor: Any) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**{"task": "image-text-to-text", "model": model, "processor": processor, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to answer"),
        ({"text": 3}, "text is a int"),
        ({"text": [3]}, "an input is a int"),
        ({"text": [{"role": "user", "content": "x"}], "images": ["y"]}, "a chat and images are both given"),
        ({"text": ["a", "b"], "images": ["y"]}, "1 images for 2 texts"),
        ({"text": "a", "generate_kwargs": {"max_new_tokens": 3}, "max_new_tokens": 4}, "max_new_tokens is given twice"),
        ({"text": "a", "warmth": 4}, "warmth"),
        ({"text": "a", "guidance_scale": 4}, "guidance_scale=4"),
        ({"text": {"text": "a", "sound": 1}}, "sound"),
    ],
)
def test_what_is_refused_when_it_is_called(pipe: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        pipe(**options)
