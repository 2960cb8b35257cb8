"""Configurations: every vintage of config.json reads to the same fields, writes the published layout, and
refuses wrong values by name. The sample files are built from the table of published values."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwenvl.config import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
    Qwen2VLConfig,
    Qwen2VLTextConfig,
    Qwen2VLVisionConfig,
    config_from_dict,
    load_config,
)

COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "sliding_window": 32768,
    "use_sliding_window": False,
    "use_cache": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
}
COLUMNS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "max_window_layers", "tie_word_embeddings", "vocab_size",
)  # fmt: skip
TABLE: dict[str, tuple[Any, ...]] = {
    "qwen2_vl 2B": (1536, 8960, 28, 12, 2, 32768, 28, True, 151936),
    "qwen2_vl 7B": (3584, 18944, 28, 28, 4, 32768, 28, False, 152064),
    "qwen2_5_vl 3B": (2048, 11008, 36, 16, 2, 128000, 70, True, 151936),
    "qwen2_5_vl 7B": (3584, 18944, 28, 28, 4, 128000, 28, False, 152064),
    "qwen2_5_vl 32B": (5120, 27648, 64, 40, 8, 128000, 64, False, 152064),
    "qwen2_5_vl 72B": (8192, 29568, 80, 64, 8, 128000, 80, False, 152064),
}


def published(name: str) -> dict[str, Any]:
    """config.json as the checkpoint `name` was published with."""
    row = dict(zip(COLUMNS, TABLE[name], strict=True))
    family = name.split()[0]
    vision: dict[str, Any] = {"in_chans": 3, "spatial_patch_size": 14}
    if family == "qwen2_vl":
        vision |= {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14}
        vision |= {"hidden_size": row["hidden_size"], "spatial_merge_size": 2, "temporal_patch_size": 2}
        architecture = "Qwen2VLForConditionalGeneration"
    else:
        wide = name.endswith(("32B", "72B"))
        vision |= {"hidden_size": 1280, "intermediate_size": 3456 if wide else 3420, "tokens_per_second": 2}
        vision |= {"out_hidden_size": row["hidden_size"], "hidden_act": "silu"}
        if not name.endswith("32B"):
            vision |= {
                "depth": 32,
                "num_heads": 16,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "window_size": 112,
            }
            vision |= {"temporal_patch_size": 2, "fullatt_block_indexes": [7, 15, 23, 31]}
        vision["model_type"] = "qwen2_5_vl"
        architecture = "Qwen2_5_VLForConditionalGeneration"
    top = {"architectures": [architecture], "model_type": family, "vision_config": vision}
    return copy.deepcopy({**COMMON, **row, **top})


OTHER_TEXT_KEYS = """attention_dropout bos_token_id eos_token_id hidden_act initializer_range rms_norm_eps
rope_theta rope_scaling sliding_window use_sliding_window use_cache"""


def nested(name: str) -> dict[str, Any]:
    """As transformers 4.52 and later re-save it: text fields nested, both type keys, layer_types."""
    flat = published(name)
    text = {key: flat.pop(key) for key in (*COLUMNS, *OTHER_TEXT_KEYS.split())}
    text |= {"model_type": flat["model_type"] + "_text", "torch_dtype": "bfloat16", "vision_token_id": 151654}
    text |= {"layer_types": ["full_attention"] * text["num_hidden_layers"], "image_token_id": None}
    text["rope_scaling"] = {"rope_type": "default", "type": "default", "mrope_section": [16, 24, 24]}
    flat["vision_config"]["in_channels"] = 3
    flat["vision_config"]["model_type"] = flat["model_type"]
    return {**flat, "text_config": text, "tie_word_embeddings": text["tie_word_embeddings"]}


def newest(name: str) -> dict[str, Any]:
    """As transformers 5 saves it: rope_parameters with theta inside, dtype, the head's tie only on top."""
    values = nested(name)
    text = values["text_config"]
    theta = text.pop("rope_theta")
    text["rope_parameters"] = {
        "rope_type": "default",
        "type": "mrope",
        "mrope_section": [16, 24, 24],
        "rope_theta": theta,
    }
    del text["rope_scaling"], text["tie_word_embeddings"], text["torch_dtype"], values["torch_dtype"]
    values["dtype"] = text["dtype"] = "bfloat16"
    values["vision_config"]["model_type"] = values["model_type"] + "_vision"
    return values


TOP_FIELDS = """image_token_id video_token_id vision_start_token_id vision_end_token_id tie_word_embeddings
dtype model_type architectures eos_token_id bos_token_id pad_token_id vision_token_id"""
TEXT_FIELDS = """head_dim rope_theta mrope_section rope_scaling rope_type layer_types rms_norm_eps hidden_act
attention_dropout sliding_window initializer_range"""
VISION_FIELDS = """depth width num_heads mlp_width out_width hidden_act norm gated_mlp window_size in_channels
patch_size fullatt_block_indexes spatial_merge_size temporal_patch_size tokens_per_second initializer_range"""


def model_fields(config: Any) -> dict[str, Any]:
    """What the model code reads, out of a configuration of either family."""
    parts = {"text_config": (*COLUMNS, *TEXT_FIELDS.split()), "vision_config": VISION_FIELDS.split()}
    out = {name: getattr(config, name) for name in TOP_FIELDS.split()}
    for part, names in parts.items():
        out |= {f"{part}.{name}": getattr(getattr(config, part), name) for name in names}
    return out


@pytest.mark.feature(1, 2)
@pytest.mark.parametrize("name", TABLE)
def test_published_files_read_as_the_table_says(name: str) -> None:
    config = config_from_dict(published(name))
    assert tuple(getattr(config, column) for column in COLUMNS) == TABLE[name]
    text, vision = config.text_config, config.vision_config
    assert (text.head_dim, text.mrope_section, text.rope_type, text.rope_theta) == (
        128,
        (16, 24, 24),
        "default",
        1e6,
    )
    assert text.layer_types == ("full_attention",) * text.num_hidden_layers
    assert (vision.depth, vision.width, vision.num_heads, vision.in_channels) == (32, 1280, 16, 3)
    assert (vision.out_width, vision.patch_size, vision.spatial_merge_size) == (text.hidden_size, 14, 2)
    assert (config.dtype, config.torch_dtype, config.vision_token_id) == ("bfloat16", "bfloat16", 151654)
    if name.startswith("qwen2_vl"):
        assert (vision.norm, vision.gated_mlp, vision.mlp_width, vision.hidden_act) == (
            "layer",
            False,
            5120,
            "quick_gelu",
        )
        assert vision.window_size is None
        assert vision.tokens_per_second is None
        assert vision.fullatt_block_indexes == tuple(range(32))
    else:
        width = 3456 if name.endswith(("32B", "72B")) else 3420
        assert (vision.norm, vision.gated_mlp, vision.mlp_width, vision.hidden_act) == (
            "rms",
            True,
            width,
            "silu",
        )
        assert (vision.window_size, vision.fullatt_block_indexes) == (112, (7, 15, 23, 31))
        assert vision.tokens_per_second == 2


@pytest.mark.feature(9)
@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("vintage", [nested, newest])
def test_every_vintage_means_the_same(name: str, vintage: Any) -> None:
    assert model_fields(config_from_dict(vintage(name))) == model_fields(config_from_dict(published(name)))


@pytest.mark.parametrize("vintage", [published, nested, newest])
@pytest.mark.parametrize("name", TABLE)
def test_read_write_read_is_equal(name: str, vintage: Any, tmp_path: Path) -> None:
    config = config_from_dict({**vintage(name), "quantization_config": {"bits": 4}})
    config.save_pretrained(tmp_path / "new")
    again = load_config(tmp_path / "new")
    assert again == config
    assert type(config).from_pretrained(tmp_path / "new") == config
    assert again.quantization_config == {"bits": 4}
    assert again.to_json_string() == config.to_json_string()


@pytest.mark.parametrize("name", TABLE)
def test_what_was_published_is_written_again(name: str) -> None:
    given, written = published(name), config_from_dict(published(name)).to_dict()
    vision_given, vision_written = given.pop("vision_config"), written.pop("vision_config")
    assert {key: written.get(key) for key in given} == given
    assert {key: vision_written.get(key) for key in vision_given if key != "model_type"} == {
        key: value for key, value in vision_given.items() if key != "model_type"
    }
    assert not {"text_config", "dtype", "rope_parameters", "layer_types", "head_dim"} & set(written)


@pytest.mark.parametrize("name", TABLE)
def test_transformers_reads_what_we_write(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = config_from_dict(newest(name))
    config.save_pretrained(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.model_type == config.model_type
    assert theirs.tie_word_embeddings == config.tie_word_embeddings
    for field in (*COLUMNS, "rms_norm_eps", "hidden_act", "attention_dropout", "initializer_range"):
        if field != "tie_word_embeddings":
            assert getattr(theirs.text_config, field) == getattr(config.text_config, field), field
    assert tuple(theirs.text_config.layer_types) == config.layer_types
    rope = theirs.text_config.rope_parameters
    assert (rope["rope_theta"], rope["rope_type"], rope["mrope_section"]) == (1e6, "default", [16, 24, 24])
    own = {item.name for item in dataclasses.fields(config.vision_config)} - {"extra", "dtype"}
    for field in own:
        found, expected = getattr(theirs.vision_config, field), getattr(config.vision_config, field)
        assert (tuple(found) if isinstance(found, list) else found) == expected, field
    assert str(theirs.dtype) == "torch.bfloat16"


def test_we_read_what_transformers_writes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name in TABLE:
        (tmp_path / "config.json").write_text(json.dumps(published(name)))
        transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
        ours, straight = load_config(tmp_path / "saved"), config_from_dict(published(name))
        skip = {"text_config.sliding_window"}  # transformers writes null where the window is not used
        expected = {key: value for key, value in model_fields(straight).items() if key not in skip}
        assert {key: value for key, value in model_fields(ours).items() if key not in skip} == expected


@pytest.mark.feature(8, 9, 10, 13, 14)
def test_documented_defaults() -> None:
    flat = Qwen2_5_VLConfig()
    documented = {
        "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_act": "silu",
        "max_position_embeddings": 32768, "initializer_range": 0.02, "rms_norm_eps": 1e-05,
        "use_cache": True, "tie_word_embeddings": False, "rope_theta": 1000000.0,
        "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 80,
        "attention_dropout": 0.0, "rope_scaling": None,
    }  # fmt: skip
    for config in (flat, Qwen2VLConfig(), Qwen2_5_VLTextConfig(), Qwen2VLTextConfig()):
        assert {name: getattr(config, name) for name in documented} == documented
    ids = (flat.image_token_id, flat.video_token_id, flat.vision_start_token_id, flat.vision_end_token_id)
    assert ids == (151655, 151656, 151652, 151653)
    vision = Qwen2_5_VLVisionConfig()
    documented = {
        "depth": 32, "hidden_size": 3584, "hidden_act": "silu", "intermediate_size": 3420, "num_heads": 16,
        "in_channels": 3, "in_chans": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "tokens_per_second": 4, "window_size": 112, "out_hidden_size": 3584,
        "fullatt_block_indexes": (7, 15, 23, 31), "initializer_range": 0.02,
    }  # fmt: skip
    assert {name: getattr(vision, name) for name in documented} == documented
    assert flat.vision_config.out_width == flat.hidden_size  # so that the default model fits together
    old = Qwen2VLVisionConfig()
    assert (old.embed_dim, old.hidden_size, old.mlp_ratio, old.hidden_act) == (1280, 3584, 4, "quick_gelu")


@pytest.mark.feature(8, 9)
def test_both_signatures_and_flat_wins() -> None:
    small = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
    text = Qwen2_5_VLTextConfig(**small)
    vision = Qwen2_5_VLVisionConfig(hidden_size=64, num_heads=2, out_hidden_size=256)
    as_objects = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    as_dicts = Qwen2_5_VLConfig(text_config=small, vision_config={"hidden_size": 64, "num_heads": 2})
    flat = Qwen2_5_VLConfig(**small, vision_config=vision)
    assert as_objects == as_dicts == flat
    assert as_objects.text_config == text
    both = Qwen2_5_VLConfig(
        text_config=text,
        hidden_size=512,
        num_attention_heads=4,
        num_hidden_layers=3,
        tie_word_embeddings=True,
    )
    assert (both.hidden_size, both.head_dim, both.num_key_value_heads) == (512, 128, 1)
    assert len(both.layer_types) == 3
    assert both.text_config.tie_word_embeddings
    assert Qwen2_5_VLConfig(text_config={"tie_word_embeddings": True}).tie_word_embeddings
    theta = Qwen2_5_VLConfig(text_config=newest("qwen2_5_vl 3B")["text_config"], rope_theta=5e5)
    assert (theta.rope_theta, theta.mrope_section) == (5e5, (16, 24, 24))
    with pytest.raises(ValueError, match="text_config"):
        Qwen2_5_VLConfig(text_config=Qwen2VLTextConfig())
    with pytest.raises(ValueError, match="model_type"):
        Qwen2_5_VLConfig(text_config=nested("qwen2_vl 2B")["text_config"])


def test_replace_checks_again_and_follows() -> None:
    config = config_from_dict(published("qwen2_5_vl 3B"))
    changed = config.replace(num_hidden_layers=2, torch_dtype="float32", tie_word_embeddings=False)
    assert (len(changed.layer_types), changed.dtype, changed.tie_word_embeddings) == (2, "float32", False)
    assert changed.text_config.dtype == "float32"
    assert not changed.text_config.tie_word_embeddings
    assert config.replace(num_attention_heads=32, rope_scaling={"mrope_section": [8, 12, 12]}).head_dim == 64
    text = config.text_config.replace(tie_word_embeddings=False, dtype="float16")
    replaced = config.replace(text_config=text)
    assert (replaced.tie_word_embeddings, replaced.dtype) == (False, "float16")
    with pytest.raises(ValueError, match="num_key_value_heads"):
        config.replace(num_key_value_heads=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dtype = "float32"  # type: ignore[misc]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 8190}, "hidden_size=8190"),
    ({"hidden_size": "8192"}, "hidden_size='8192'"),
    ({"hidden_size": True}, "hidden_size=True"),
    ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
    ({"vocab_size": -1}, "vocab_size=-1"),
    ({"vocab_size": 1.5}, "vocab_size=1.5"),
    ({"num_key_value_heads": 7}, "num_key_value_heads=7"),
    ({"head_dim": 33}, "head_dim=33"),
    ({"hidden_act": "mish"}, "hidden_act='mish'"),
    ({"rms_norm_eps": -1e-6}, "rms_norm_eps=-1e-06"),
    ({"rope_theta": 0}, "rope_theta=0"),
    ({"rope_theta": float("nan")}, "rope_theta=nan"),
    ({"attention_dropout": 1.0}, "attention_dropout=1.0"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'"),
    ({"dtype": "int4"}, "dtype='int4'"),
    ({"dtype": "float32", "torch_dtype": "float16"}, "torch_dtype='float16'"),
    ({"eos_token_id": [1, "2"]}, "eos_token_id="),
    ({"image_token_id": -1}, "image_token_id=-1"),
    ({"architectures": "Some"}, "architectures='Some'"),
    ({"max_window_layers": -1}, "max_window_layers=-1"),
    ({"sliding_window": 0}, "sliding_window=0"),
    ({"layer_types": ["full_attention"]}, "layer_types="),
    ({"layer_types": ["other"] * 80}, "layer_types="),
    ({"layer_types": ["sliding_attention"] * 80}, "use_sliding_window"),
    ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 23]}}, "mrope_section="),
    ({"rope_scaling": {"type": "mrope", "mrope_section": [64]}}, "mrope_section="),
    ({"rope_scaling": {"type": "spiral"}}, "rope_type='spiral'"),
    ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2}}, "rope_type='yarn'"),
    ({"rope_scaling": {"type": ["mrope"]}}, "rope_type="),
    ({"rope_scaling": {"type": "yarn"}}, "'factor'"),
    ({"rope_scaling": {"type": "longrope", "short_factor": 1, "long_factor": [1.0] * 64}}, "'short_factor'"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 64, "long_factor": [1.0]}}, "64 numbers"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 64}}, "'long_factor'"),
    ({"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 1}}, "'high_freq_factor'"),
    ({"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}}, "above low_freq"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "'factor'"),
    ({"rope_scaling": {"type": "linear", "factor": "2"}}, "'factor'"),
    ({"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 32}}, "'beta_fast'"),
    ({"rope_scaling": {"type": "mrope", "factor": 2}}, "'factor'"),
    ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}}, "'beta_fast'"),
    ({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": 1}}, "'truncate'"),
    ({"rope_scaling": {"type": "yarn", "factor": 2, "atention_factor": 1}}, "'atention_factor'"),
    ({"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 1.5}}, "original_max"),
    ({"rope_scaling": {"type": "mrope", "partial_rotary_factor": 0.5}}, "'partial_rotary_factor'"),
    ({"rope_scaling": {"type": "mrope", "mrope_interleaved": True}}, "'mrope_interleaved'"),
    ({"rope_scaling": {"type": "mrope", "mrope_section": 64}}, "mrope_section=64"),
    ({"rope_scaling": {"type": "linear", "factor": 2}, "type": "yarn", "factor": 4}, "type='yarn'"),
    ({"rope_scaling": "mrope"}, "rope_scaling='mrope'"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_scaling="),
    ({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}, "rope_theta=1.0"),
    ({"head_dim": 64}, "mrope_section="),
    ({"text_config": 3}, "text_config=3"),
    ({"text_config": {"hidden_size": 8190}}, "hidden_size=8190"),
    ({"vision_config": []}, "vision_config="),
    ({"vision_config": {"hidden_size": 100}}, "hidden_size=100"),
    ({"vision_config": {"window_size": 100}}, "window_size=100"),
    ({"vision_config": {"depth": 4}}, "fullatt_block_indexes="),
    ({"vision_config": {"fullatt_block_indexes": 7}}, "fullatt_block_indexes=7"),
    ({"vision_config": {"patch_size": [14, 14]}}, "patch_size="),
    ({"vision_config": {"in_chans": 3, "in_channels": 4}}, "in_chans=3"),
    ({"vision_config": {"hidden_act": "relu6"}}, "hidden_act='relu6'"),
    ({"vision_config": {"tokens_per_second": -2}}, "tokens_per_second=-2"),
    ({"vision_config": {"model_type": "qwen2_vl"}}, "model_type='qwen2_vl'"),
    ({"model_type": "qwen2_vl"}, "model_type='qwen2_vl'"),
]


@pytest.mark.parametrize(("values", "named"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_values_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=r"expected|give one") as error:
        Qwen2_5_VLConfig(**values)
    assert named in str(error.value)


def test_wrong_values_of_qwen2_vl() -> None:
    with pytest.raises(ValueError, match="embed_dim=100"):
        Qwen2VLConfig(vision_config={"embed_dim": 100})
    with pytest.raises(ValueError, match="mlp_ratio"):
        Qwen2VLVisionConfig(mlp_ratio="4")


@pytest.mark.feature(10)
def test_window_layers_full_ones_come_first() -> None:
    windows = Qwen2_5_VLTextConfig(num_hidden_layers=4, max_window_layers=1, use_sliding_window=True)
    assert windows.layer_types == ("full_attention", *["sliding_attention"] * 3)
    assert set(Qwen2_5_VLTextConfig(max_window_layers=1).layer_types) == {"full_attention"}
    given = Qwen2_5_VLTextConfig(
        num_hidden_layers=2, use_sliding_window=True, layer_types=["sliding_attention", "full_attention"]
    )
    assert given.layer_types == ("sliding_attention", "full_attention")
    assert Qwen2_5_VLTextConfig.from_dict(given.to_dict()) == given
    assert Qwen2_5_VLTextConfig.from_dict(windows.to_dict()) == windows


@pytest.mark.feature(3)
def test_qvq_is_a_qwen2_vl_of_72b() -> None:
    """QvQ-72B-Preview's config.json: the size of Qwen2-VL-72B, its model_type and its architecture."""
    values = published("qwen2_vl 7B")
    values |= {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64}
    values |= {"num_key_value_heads": 8, "max_position_embeddings": 128000, "max_window_layers": 80}
    values["vision_config"]["hidden_size"] = 8192
    config = config_from_dict(values)
    assert type(config) is Qwen2VLConfig
    assert config.architectures == ("Qwen2VLForConditionalGeneration",)
    assert (config.head_dim, config.vision_config.out_width, config.context_length) == (128, 8192, 128000)


@pytest.mark.feature(8, 9, 10, 12, 13)
@pytest.mark.parametrize("name", ["Qwen2_5_VL", "Qwen2VL"])
def test_models_of_the_documented_defaults(name: str) -> None:
    """`Cfg()` and `ForConditionalGeneration(configuration)`, without the memory of 72 billion numbers."""
    import torch

    import qwenvl

    configuration = getattr(qwenvl, f"{name}Config")()
    with torch.device("meta"):
        model = getattr(qwenvl, f"{name}ForConditionalGeneration")(configuration)
        text = getattr(qwenvl, f"{name}TextModel")(configuration.text_config)
    assert model.config is configuration
    assert tuple(model.lm_head.weight.shape) == (152064, 8192)
    assert len(text.layers) == 80


@pytest.mark.feature(8, 9, 10, 13, 14)
@pytest.mark.parametrize("name", ["Qwen2_5_VLTextConfig", "Qwen2_5_VLVisionConfig", "Qwen2VLTextConfig",
                                  "Qwen2VLVisionConfig"])  # fmt: skip
def test_defaults_are_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    import qwenvl

    ours, theirs = getattr(qwenvl, name)(), getattr(transformers, name)()
    compared = 0
    for item in dataclasses.fields(type(theirs)):
        value = getattr(theirs, item.name)
        if hasattr(ours, item.name) and item.name not in ("dtype", "rope_parameters", "architectures"):
            found = getattr(ours, item.name)
            found = list(found) if isinstance(found, tuple) and isinstance(value, list) else found
            if item.name == "sliding_window":  # transformers drops the number where it is not used
                value = 4096
            assert found == value, item.name
            compared += 1
    assert compared >= (19 if "Text" in name else 11)


def test_own_dict_is_left_alone() -> None:
    values = newest("qwen2_5_vl 3B")
    before = copy.deepcopy(values)
    config = config_from_dict(values)
    config.to_dict()["rope_scaling"]["mrope_section"][0] = 0
    assert values == before
    assert config.mrope_section == (16, 24, 24)


def test_head_count_follows_when_left_null() -> None:
    assert Qwen2_5_VLTextConfig(num_attention_heads=64, num_key_value_heads=None).num_key_value_heads == 64
    wide = Qwen2_5_VLTextConfig(hidden_size=100, num_attention_heads=4, num_key_value_heads=2, head_dim=128)
    assert wide.to_dict()["head_dim"] == 128
    assert Qwen2_5_VLTextConfig.from_dict(wide.to_dict()) == wide


def test_unknown_keys_are_kept_and_others_are_no_attribute() -> None:
    config = Qwen2_5_VLConfig(my_note="hello")
    assert config.my_note == "hello"
    assert config.to_dict()["my_note"] == "hello"
    with pytest.raises(AttributeError, match="hiden_size"):
        _ = config.hiden_size
    assert copy.deepcopy(config) == config


def test_parts_read_from_a_whole_file(tmp_path: Path) -> None:
    whole = config_from_dict(published("qwen2_5_vl 3B"))
    whole.save_pretrained(tmp_path)
    assert Qwen2_5_VLTextConfig.from_pretrained(tmp_path) == whole.text_config
    assert Qwen2_5_VLVisionConfig.from_pretrained(tmp_path) == whole.vision_config
    assert Qwen2_5_VLConfig.from_pretrained(tmp_path, dtype="float32").dtype == "float32"
    with pytest.raises(ValueError, match="model_type='qwen2_5_vl'"):
        Qwen2VLConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Qwen2VLTextConfig"):
        Qwen2VLTextConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "not valid JSON"),
        ("[]", "object of keys"),
        ("{}", "model_type=None"),
        ('{"model_type": "llama"}', "model_type='llama'"),
        ('{"model_type": "qwen2_vl", "vocab_size": 0}', "vocab_size=0"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_config_imports_no_torch() -> None:
    code = "import qwenvl.config, sys; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
