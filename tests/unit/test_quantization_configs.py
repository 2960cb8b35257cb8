"""quantization/configs.py: the documents' TorchAoConfig and BitsAndBytesConfig, and their namesakes elsewhere."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_config, tiny_model

import qwenvl
from qwenvl.checkpoint import load_model
from qwenvl.quantization import (
    INT8,
    WORDS,
    BitsAndBytesConfig,
    QuantizeOptions,
    Scheme,
    TorchAoConfig,
    options_of_config,
)

CLASS = qwenvl.Qwen2_5_VLForConditionalGeneration


class Algorithm(enum.Enum):
    TINYGEMM = "tinygemm"
    HQQ = "hqq"


@dataclass
class Int4WeightOnlyConfig:
    """As torchao has it."""

    group_size: int = 128
    set_inductor_config: bool = True
    int4_packing_format: str = "plain"
    int4_choose_qparams_algorithm: Algorithm = Algorithm.TINYGEMM
    use_hqq: bool = False
    version: int = 2


@dataclass
class Int8WeightOnlyConfig:
    """As torchao has it."""

    group_size: int | None = None
    set_inductor_config: bool = True


@dataclass
class Int8DynamicActivationInt8WeightConfig:
    """As torchao has it."""

    layout: Any = field(default_factory=object)
    weight_only_decode: bool = False


@dataclass
class Float8WeightOnlyConfig:
    """As torchao has it."""


class TheirBitsAndBytesConfig:
    """As transformers has it: names with an underscore, more settings than are set, an enum beside them."""

    def __init__(self, load_in_8bit: bool = False, load_in_4bit: bool = False, **changes: Any) -> None:
        self.quant_method = SimpleNamespace(value="bitsandbytes")
        self._load_in_8bit, self._load_in_4bit = load_in_8bit, load_in_4bit
        self.llm_int8_threshold, self.bnb_4bit_quant_type = 6.0, "fp4"
        self.llm_int8_skip_modules = None
        vars(self).update(changes)


def int4(group: int, head: bool = False, **exceptions: None) -> QuantizeOptions:
    scheme = Scheme("int4", group)
    return QuantizeOptions(scheme, scheme, scheme if head else None, exceptions, whole_groups=True)


EIGHT = QuantizeOptions(INT8, INT8, head=None)
MEANT: list[tuple[Any, QuantizeOptions]] = [
    (TorchAoConfig("int4_weight_only", group_size=128), int4(128)),
    (TorchAoConfig("int4_weight_only"), int4(128)),
    (TorchAoConfig(quant_type="int4_weight_only", group_size=32, use_hqq=False, inner_k_tiles=8), int4(32)),
    (TorchAoConfig("int4_weight_only", ["visual"], group_size=64), int4(64, head=True, visual=None)),
    (TorchAoConfig("int4_weight_only", modules_to_not_convert=[]), int4(128, head=True)),
    (TorchAoConfig("int8_weight_only"), EIGHT),
    (TorchAoConfig("int8_dynamic_activation_int8_weight"), EIGHT),
    (TorchAoConfig(Int4WeightOnlyConfig()), int4(128)),
    (TorchAoConfig(Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d", version=1)), int4(32)),
    (TorchAoConfig(Int8WeightOnlyConfig()), EIGHT),
    (TorchAoConfig(Int8WeightOnlyConfig(group_size=64)), QuantizeOptions(Scheme("int8", 64), Scheme("int8", 64), None)),
    (TorchAoConfig(Int8DynamicActivationInt8WeightConfig()), EIGHT),
    (SimpleNamespace(quant_type=Int4WeightOnlyConfig(64), modules_to_not_convert=None, quant_type_kwargs={}), int4(64)),
    ({"quant_method": "torchao", "quant_type": "int4_weight_only", "quant_type_kwargs": {"group_size": 64}}, int4(64)),
    ({"quant_type": "int4_weight_only", "group_size": 64}, int4(64)),
    (BitsAndBytesConfig(load_in_8bit=True), WORDS["int8"]),
    (BitsAndBytesConfig(load_in_4bit=True, llm_int8_threshold=0.0), WORDS["int4"]),
    (TheirBitsAndBytesConfig(load_in_4bit=True), WORDS["int4"]),
    ({"load_in_4bit": True, "other": None, "bnb_4bit_compute_dtype": "float32"}, WORDS["int4"]),
    ({"_load_in_8bit": True, "_load_in_4bit": False, "quant_method": "bitsandbytes"}, WORDS["int8"]),
]


@pytest.mark.feature(4, 20)
@pytest.mark.parametrize(("config", "meant"), MEANT, ids=lambda value: type(value).__name__)
def test_what_is_asked_for(config: Any, meant: QuantizeOptions) -> None:
    assert options_of_config(config) == meant


@pytest.mark.parametrize("skipped", ["llm_int8_skip_modules"])
def test_skipped_modules_are_left_as_they_are(skipped: str) -> None:
    for kind in (BitsAndBytesConfig, TheirBitsAndBytesConfig):
        options = options_of_config(kind(load_in_4bit=True, **{skipped: ["visual", "lm_head"]}))
        assert options.exceptions == {**WORDS["int4"].exceptions, "visual": None, "lm_head": None}
        assert options.text == WORDS["int4"].text


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TorchAoConfig("autoquant"), "quant_type 'autoquant' is not built"),
        (
            lambda: TorchAoConfig("int3_weight_only"),
            "'int3_weight_only' is not known: expected one of int4_weight_only",
        ),
        (lambda: TorchAoConfig(Float8WeightOnlyConfig()), "'Float8WeightOnlyConfig' is not known"),
        (
            lambda: TorchAoConfig("int4_weight_only", group_size=100),
            "group_size=100 of int4: expected 32, 64, 128, 256",
        ),
        (lambda: TorchAoConfig("int8_weight_only", group_size=48), "group_size=48 of int8: expected a multiple of 32"),
        (lambda: TorchAoConfig("int4_weight_only", use_hqq=True), "use_hqq=True is not built: leave it out"),
        (lambda: TorchAoConfig("int4_weight_only", layout="marlin_sparse"), "layout='marlin_sparse' is not built"),
        (lambda: TorchAoConfig("int4_weight_only", grop_size=32), "grop_size=32 is not built"),
        (
            lambda: TorchAoConfig(Int4WeightOnlyConfig(int4_choose_qparams_algorithm=Algorithm.HQQ)),
            "HQQ.* is not built",
        ),
        (lambda: TorchAoConfig("int8_weight_only", include_input_output_embeddings=True), "embeddings=True is not"),
        (lambda: TorchAoConfig("int4_weight_only", "visual"), "expected a list of names, got the text 'visual'"),
        (lambda: BitsAndBytesConfig(), "expected one of load_in_8bit and load_in_4bit to be True, got 0"),
        (lambda: BitsAndBytesConfig(load_in_8bit=True, load_in_4bit=True), "to be True, got 2"),
        (lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "bnb_4bit_quant_type='nf4' is not"),
        (lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True), "double_quant=True is not"),
        (lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=4.0), "llm_int8_threshold=4.0 is not built"),
        (lambda: options_of_config({"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}), "compute_dtype"),
        (lambda: options_of_config(TheirBitsAndBytesConfig(load_in_8bit=True, outliers=3)), "outliers=3 is not built"),
        (lambda: options_of_config({"quant_method": "awq", "bits": 4}), r"\(quant_method awq\) is not known: expected"),
        (lambda: options_of_config("int4"), "quantization_config='int4' is not known"),
    ],
)
def test_what_is_not_built_is_named(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.feature(20)
def test_the_documents_call(tmp_path: Path) -> None:
    """Groups of 128 in the text model and the tower, as the documents' library packs: not the head, and no linear of
    the tower that does not fill its groups."""
    text = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = tiny_config(
        **text, rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]},
        vision_config={**tiny_config().vision_config.to_dict(), "hidden_size": 128, "out_hidden_size": 128,
                       "intermediate_size": 200, "num_heads": 4},
    )  # fmt: skip
    CLASS(config).save_pretrained(tmp_path)
    model = CLASS.from_pretrained(
        tmp_path,
        dtype="bfloat16",
        device_map="cpu",
        quantization_config=TorchAoConfig("int4_weight_only", group_size=128),
    )
    schemes = model.quantization.schemes
    assert set(schemes.values()) == {Scheme("int4", 128)}
    assert {name.split(".")[1] for name in schemes} == {"language_model", "visual"}
    assert "model.visual.blocks.0.attn.qkv" in schemes
    assert not any("visual" in name and name.endswith("down_proj") for name in schemes)
    down = model.language_model.layers[0].mlp.down_proj.packed
    assert (down.kind, down.group, down.scales.shape[1]) == ("int4", 128, 2)
    assert "text int4 group 128, tower int4 group 128, head as it was" in str(model.quantization)


@pytest.mark.feature(4)
def test_all_ways_to_say_a_word_mean_the_same(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    for word, name in (("int8", "load_in_8bit"), ("int4", "load_in_4bit")):
        expected = load_model(tmp_path, quantize=word).quantization
        given: list[dict[str, Any]] = [
            {"quantize": word},
            {name: True},
            {"quantization_config": {name: True}},
            {"quantization_config": BitsAndBytesConfig(**{name: True})},  # type: ignore[arg-type]
        ]
        for options in given:
            assert CLASS.from_pretrained(tmp_path, **options).quantization == expected
    assert CLASS.from_pretrained(tmp_path, load_in_8bit=False, load_in_4bit=False).quantization is None
    with pytest.raises(ValueError, match="load_in_8bit and load_in_4bit are all given"):
        CLASS.from_pretrained(tmp_path, load_in_8bit=True, load_in_4bit=True)
    with pytest.raises(ValueError, match="quantize='int3' is not known: expected one of int8, int4"):
        CLASS.from_pretrained(tmp_path, quantize="int3")
