"""The Auto classes, GenerationConfig, and every documented option of from_pretrained and save_pretrained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint import FAMILIES, build, same, values

import qwenvl
from qwenvl import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForVision2Seq,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)
from qwenvl.checkpoint import save_model

PUBLISHED = {  # Qwen2.5-VL-3B-Instruct's generation_config.json
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.000001,
    "transformers_version": "4.49.0",
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(family, a small checkpoint of it)."""
    path = tmp_path_factory.mktemp(request.param)
    save_model(build(request.param), path)
    return request.param, path


@pytest.mark.feature(4, 5, 7)
def test_auto_classes_pick_the_class_of_the_checkpoint(folder: tuple[str, Path]) -> None:
    family, path = folder
    for auto in (AutoModelForImageTextToText, AutoModelForVision2Seq):
        model = auto.from_pretrained(path, dtype=torch.bfloat16, device_map="cpu")
        assert type(model) is FAMILIES[family]
        assert same(model, build(family).to(torch.bfloat16))
    bare = AutoModel.from_pretrained(str(path))
    assert type(bare).__name__ == FAMILIES[family].__name__.replace("ForConditionalGeneration", "Model")
    assert same(bare, build(family).model)
    config = AutoConfig.from_pretrained(path)
    assert config == build(family).config.replace(dtype="float32")
    longer = AutoConfig.from_pretrained(path, max_position_embeddings=65536)
    assert longer.max_position_embeddings == 65536
    made = AutoModelForImageTextToText.from_config(config, torch_dtype="bfloat16", attn_implementation="eager")
    assert type(made) is FAMILIES[family]
    assert made.dtype == torch.bfloat16
    assert made.attn_implementation == "eager"
    assert AutoConfig.for_model(family, vocab_size=99).vocab_size == 99


@pytest.mark.feature(4, 5)
def test_what_auto_classes_refuse(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    for call, message in (
        (lambda: AutoModelForImageTextToText.from_pretrained(tmp_path), "model_type='llava' is not known"),
        (lambda: AutoConfig.from_pretrained(tmp_path), "model_type='llava'"),
        (lambda: AutoModel.from_config(None), "model_type=None is not known"),
        (lambda: AutoModelForImageTextToText(), "use AutoModelForImageTextToText.from_pretrained"),
        (lambda: AutoModelForCausalLM.from_pretrained("x"), "use AutoModelForImageTextToText"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.feature(4, 5, 25)
def test_every_documented_option_of_from_pretrained(folder: tuple[str, Path]) -> None:
    family, path = folder
    cls = FAMILIES[family]
    plain = cls.from_pretrained(path)
    accepted: list[dict[str, Any]] = [
        {"torch_dtype": "auto"},
        {"dtype": "auto", "device_map": "auto"},
        {"device_map": "balanced"},
        {"device_map": "sequential"},
        {"device_map": torch.device("cpu")},
        {"device_map": {"": "cpu"}},
        {"attn_implementation": None},
        {"low_cpu_mem_usage": True, "trust_remote_code": True, "use_safetensors": True, "quantization_config": None},
        {"cache_dir": path, "local_files_only": True, "token": False},
        {"config": plain.config},
        {"config": plain.config.to_dict()},
        {"config": str(path)},
    ]
    for options in accepted:
        assert same(cls.from_pretrained(path, **options), plain)
    for dtype in (torch.float16, "float16", torch.bfloat16):
        assert cls.from_pretrained(path, torch_dtype=dtype).dtype == getattr(torch, str(dtype).split(".")[-1])
    model, report = cls.from_pretrained(path, output_loading_info=True)
    assert same(model, plain)
    assert report == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    longer = cls.from_pretrained(path, max_position_embeddings=65536, attn_implementation="eager")
    assert longer.config.max_position_embeddings == 65536
    assert longer.attn_implementation == "eager"
    assert not longer.training
    half = plain.half()
    assert half.dtype == torch.float16
    assert half.to(torch.float32).to("cpu").dtype == torch.float32


@pytest.mark.feature(4)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization_config": {"bits": 4}}, "expected TorchAoConfig or BitsAndBytesConfig"),
        ({"ignore_mismatched_sizes": True}, "ignore_mismatched_sizes"),
        ({"use_safetensors": False}, "use_safetensors"),
        ({"variant": "fp16"}, "variant"),
        ({"device": "cpu"}, "does not know the option 'device'"),
        ({"torch_dtyp": "auto"}, "does not know the option 'torch_dtyp'"),
        ({"attn_implementation": "flash"}, "flash"),
        ({"device_map": {"visual": "cpu", "lm_head": 0}}, "has no place for model.language_model"),
        ({"config": 3}, "config is a int"),
        ({"max_position_embeddings": -4}, "max_position_embeddings=-4"),
    ],
)
def test_options_that_are_not_built_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_model(build(), tmp_path)
    with pytest.raises(ValueError, match=message):
        Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, **options)


@pytest.mark.feature(17)
def test_save_pretrained_options(tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path / "a", max_shard_size="50KB", safe_serialization=True)
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    assert same(Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "a"), model)
    model.save_pretrained(tmp_path / "b", is_main_process=False)
    assert not (tmp_path / "b").exists()
    for options, message in (
        ({"push_to_hub": True}, "huggingface_hub"),
        ({"safe_serialization": False}, "only written as safetensors"),
        ({"max_shard": "1GB"}, "does not know the option 'max_shard'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(tmp_path / "c", **options)


@pytest.mark.feature(41)
def test_generation_config_travels_with_the_model(tmp_path: Path) -> None:
    model = build()
    assert model.generation_config == GenerationConfig()
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "generation_config.json").exists()
    (tmp_path / "generation_config.json").write_text(json.dumps(PUBLISHED))
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    settings = loaded.generation_config
    assert settings.temperature == 1e-6
    assert settings.eos_token_id == [151645, 151643]
    assert settings.max_new_tokens is None
    settings.max_new_tokens = 3
    loaded.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert written == {**PUBLISHED, "max_new_tokens": 3}
    assert GenerationConfig.from_pretrained(tmp_path / "again") == settings
    ids = torch.tensor([[5, 6, 7]])
    assert loaded.generate(ids, eos_token_id=[63]).shape[1] <= 6
    other = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path, generation_config=GenerationConfig(max_new_tokens=2)
    )
    assert other.generate(ids, eos_token_id=[63]).shape[1] <= 5


def test_generation_config_knows_its_options(tmp_path: Path) -> None:
    made = GenerationConfig(do_sample=True, top_p=0.9)
    made.update(top_k=4)
    assert repr(made) == "GenerationConfig(do_sample=True, top_k=4, top_p=0.9)"
    made.save_pretrained(tmp_path / "new")
    assert GenerationConfig.from_pretrained(tmp_path / "new") == made == made.to_dict()
    with pytest.raises(ValueError, match="warmth=3 is not an option"):
        GenerationConfig(warmth=3)
    with pytest.raises(AttributeError, match="no option 'warmth'"):
        _ = made.warmth
    with pytest.warns(UserWarning, match="has warmth, which has no effect"):
        assert GenerationConfig.from_dict({"warmth": 3}).to_dict() == {"warmth": 3}
    with pytest.raises(ValueError, match=r"has no generation_config\.json"):
        GenerationConfig.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        GenerationConfig.from_pretrained(tmp_path)


@pytest.mark.feature(4)
def test_demo_is_a_name_for_every_class() -> None:
    config = AutoConfig.from_pretrained("demo")
    assert isinstance(config, Qwen2_5_VLConfig)
    assert GenerationConfig.from_pretrained("demo").eos_token_id is not None
    assert isinstance(AutoModelForImageTextToText.from_pretrained("demo"), Qwen2_5_VLForConditionalGeneration)
    with pytest.raises(ValueError, match="not for Qwen2VLForConditionalGeneration"):
        Qwen2VLForConditionalGeneration.from_pretrained("demo")


@pytest.mark.feature(6)
def test_auto_processor_takes_the_limits() -> None:
    processor = qwenvl.AutoProcessor.from_pretrained("demo", min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28)
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert (processor.image_processor.min_pixels, processor.image_processor.max_pixels) == (3136, 12544)


def test_configs_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values()))
    code = (
        "import sys; from qwenvl import AutoConfig, GenerationConfig; AutoConfig.from_pretrained(sys.argv[1]);"
        "GenerationConfig(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.feature(19)
def test_flash_attention_without_a_gpu_fails_at_load() -> None:
    with pytest.raises(ValueError, match=r"runs on a GPU.*attn_implementation='sdpa'"):
        Qwen2_5_VLForConditionalGeneration.from_pretrained("demo", attn_implementation="flash_attention_2")
