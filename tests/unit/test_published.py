"""checkpoint/published.py and its layouts: integers that others packed come out exact, whatever holds them; what does
not fit, or cannot be read, is an error that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from qwenvl.checkpoint import integers
from qwenvl.checkpoint.integers import IntegerWeight, kernel_group
from qwenvl.checkpoint.published import mlp_width, published_tensors, settings_of
from qwenvl.checkpoint.stored import CheckpointError, Stored, entries_of
from unit import packers
from unit.packers import Values, awq_gemm, awq_gemv, gptq, int_quantized, natural, packed_quantized, shuffled
from unit.tiny import tiny_config

AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True, "modules_to_not_convert": ["visual"]}
GPTQ = {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": False}
CT = packers.compressed_settings


def stored(folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Stored]:
    save_file({f"model.layers.0.mlp.up_proj.{leaf}": x for leaf, x in tensors.items()}, folder / "model.safetensors")
    return {one.key.rpartition(".")[2]: one for one in published_tensors(folder, settings, entries_of(folder))}


def weight_of(folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> IntegerWeight:
    found = stored(folder, settings, tensors)["weight"]
    assert isinstance(found, IntegerWeight)
    return found


def check(one: IntegerWeight, values: Values) -> None:
    """The plain weight is what the definition says, to the bit; and so is the packed one's."""
    want = values.weight()
    assert one.name == "model.language_model.layers.0.mlp.up_proj.weight"
    assert one.shape == tuple(want.shape)
    assert torch.equal(one.plain(torch.float32), want)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(one.plain(dtype), want.to(dtype))
    if one.is_packed:
        assert torch.equal(one.packed().dequantize(torch.float32), want)


@pytest.mark.feature(2, 21)
@pytest.mark.parametrize(
    ("version", "write", "group"),
    [("gemm", awq_gemm, group) for group in (128, 64, 32, 16, -1)]
    + [("gemv", awq_gemv, group) for group in (128, 64, 32, -1)],
)
def test_awq(version: str, write: Callable[[Values], dict[str, Tensor]], group: int, tmp_path: Path) -> None:
    values = packers.random_values(72, 384, 4, natural(384, group))
    one = weight_of(tmp_path, {**AWQ, "version": version, "group_size": group}, write(values))
    check(one, values)
    assert one.dtype == torch.float16
    assert one.nbytes == sum(x.nbytes for x in write(values).values())


@pytest.mark.feature(2, 21)
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize(("symmetric", "group"), [(True, 128), (False, 128), (False, 32), (True, -1), (False, -1)])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq(bits: int, symmetric: bool, group: int, order: bool, form: str, tmp_path: Path) -> None:
    groups = shuffled(320, group) if order else natural(320, group)  # 320: the last group of 128 is shorter
    values = packers.random_values(40, 320, bits, groups, symmetric)
    settings = {**GPTQ, "bits": bits, "group_size": group, "desc_act": order, "checkpoint_format": form}
    check(weight_of(tmp_path, settings, gptq(values, less_one=form == "gptq")), values)


# As config.json of Qwen2.5-VL-32B-Instruct-AWQ, of Qwen2-VL-2B-Instruct-GPTQ-Int4, of Qwen2.5-Coder-1.5B-Instruct-GPTQ-
# Int4 and of a model by GPTQModel 6 have them.
SEEN: list[tuple[dict[str, Any], bool]] = [
    ({"bits": 4, "group_size": 128, "modules_to_not_convert": ["visual"], "quant_method": "awq", "version": "gemm",
      "zero_point": True}, False),
    ({"bits": 4, "damp_percent": 0.1, "dataset": None, "desc_act": False, "group_size": 128,
      "modules_in_block_to_quantize": None, "quant_method": "gptq", "sym": True, "true_sequential": True}, True),
    ({"batch_size": 1, "bits": 4, "block_name_to_quantize": None, "cache_block_outputs": True, "damp_percent": 0.01,
      "dataset": None, "desc_act": False, "exllama_config": {"version": 1}, "group_size": 128, "max_input_length": None,
      "model_seqlen": None, "module_name_preceding_first_block": None, "modules_in_block_to_quantize": None,
      "pad_token_id": None, "quant_method": "gptq", "sym": True, "tokenizer": None, "true_sequential": True,
      "use_cuda_fp16": False, "use_exllama": True}, True),
    ({"act_group_aware": True, "backend": "auto", "bits": 4, "checkpoint_format": "gptq_v2", "desc_act": False,
      "format": "gptq_v2", "group_size": 128, "meta": {"quantizer": ["optimum:2.1.0", "gptqmodel:6.0.3"]},
      "quant_method": "gptq", "sym": True, "true_sequential": True}, True),
]  # fmt: skip


@pytest.mark.feature(2, 21)
@pytest.mark.parametrize(("settings", "symmetric"), SEEN)
def test_settings_as_published_files_have_them(settings: dict[str, Any], symmetric: bool, tmp_path: Path) -> None:
    values = packers.random_values(64, 256, 4, natural(256, 128), symmetric)
    is_awq = settings["quant_method"] == "awq"
    tensors = awq_gemm(values) if is_awq else gptq(values, settings.get("checkpoint_format") != "gptq_v2")
    check(weight_of(tmp_path, settings, tensors), values)


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_zeros_that_borrow_from_their_neighbours(bits: int, tmp_path: Path) -> None:
    values = packers.random_values(64, 512, bits, natural(512, 16))
    values.zeros[:, ::3] = 0
    settings = {**GPTQ, "bits": bits, "group_size": 16, "meta": {"quantizer": ["optimum:2.1.0", "gptqmodel:6.0.3"]}}
    check(weight_of(tmp_path, settings, gptq(values, borrows=True)), values)
    check(weight_of(tmp_path, {**settings, "checkpoint_format": "gptq_v2"}, gptq(values, less_one=False)), values)


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("less_one", [True, False])
def test_symmetric_gptq_whose_format_is_said_wrong(less_one: bool, form: str, tmp_path: Path) -> None:
    values = packers.random_values(64, 96, 4, natural(96, 32), symmetric=True)
    settings = {**GPTQ, "group_size": 32, "sym": True, "checkpoint_format": form}
    check(weight_of(tmp_path, settings, gptq(values, less_one)), values)


@pytest.mark.feature(21)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("strategy", "group"), [("group", 128), ("group", 32), ("channel", -1)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_pack_quantized(
    bits: int, symmetric: bool, strategy: str, group: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    values = packers.random_values(40, 384, bits, natural(384, group), symmetric, dtype)
    size = group if group > 0 else None
    settings = CT("pack-quantized", num_bits=bits, strategy=strategy, group_size=size, symmetric=symmetric)
    check(weight_of(tmp_path, settings, packed_quantized(values, symmetric)), values)


@pytest.mark.feature(21)
def test_pack_quantized_with_act_order_odd_sizes_and_early_zeros(tmp_path: Path) -> None:
    values = packers.random_values(33, 96, 4, shuffled(96, 32), symmetric=False)
    settings = CT("pack-quantized", num_bits=4, strategy="group", group_size=32, symmetric=False, actorder="group")
    check(weight_of(tmp_path, settings, packed_quantized(values, False, ordered=True)), values)
    values = packers.random_values(33, 91, 4, natural(91, -1), symmetric=False)
    settings = CT("pack-quantized", num_bits=4, strategy="channel", symmetric=False)
    tensors = packed_quantized(values, False) | {"weight_g_idx": torch.full((91,), -1, dtype=torch.int32)}
    check(weight_of(tmp_path, settings, tensors), values)
    tensors["weight_zero_point"] = torch.from_numpy(values.zeros - 8).to(torch.int8)
    check(weight_of(tmp_path, settings, tensors), values)


@pytest.mark.feature(21)
@pytest.mark.parametrize("form", ["int-quantized", "naive-quantized"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_int_quantized(bits: int, symmetric: bool, form: str, tmp_path: Path) -> None:
    values = packers.random_values(40, 96, bits, natural(96, -1), symmetric, torch.bfloat16)
    settings = CT(form, num_bits=bits, strategy="channel", symmetric=symmetric)
    tensors = int_quantized(values, symmetric)
    check(weight_of(tmp_path, settings, tensors | {"input_scale": torch.ones(1)}), values)
    tensors["weight_scale"] = values.scales[:, 0].contiguous()
    if not symmetric:
        tensors["weight_zero_point"] = tensors["weight_zero_point"][:, 0].contiguous()
    check(weight_of(tmp_path, settings, tensors), values)


def test_one_scale_for_a_whole_tensor(tmp_path: Path) -> None:
    values = packers.random_values(40, 96, 8, natural(96, -1), True)
    values.scales[:] = values.scales[0, 0]
    tensors = int_quantized(values, True) | {"weight_scale": values.scales[0].clone()}
    check(weight_of(tmp_path, CT("int-quantized", num_bits=8, strategy="tensor", symmetric=True), tensors), values)


@pytest.mark.parametrize(
    ("group", "k", "taken"),
    [
        (128, 8192, 128), (128, 320, 128), (96, 192, 96), (192, 384, 96), (1024, 4096, 128), (16, 96, 16), (48, 96, 48),
        (320, 320, 80), (8192, 8192, 128), (300, 300, 128), (24, 96, None), (24, 24, 128),
    ],
)  # fmt: skip
def test_groups_as_the_kernels_take_them(group: int, k: int, taken: int | None) -> None:
    assert kernel_group(group, k) == taken


def test_groups_that_the_kernels_do_not_take_are_plain(tmp_path: Path) -> None:
    values = packers.random_values(16, 96, 4, natural(96, 24))
    one = weight_of(tmp_path, {**AWQ, "group_size": 24}, awq_gemm(values))
    assert not one.is_packed
    check(one, values)


def test_weights_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integers, "CHUNK", 1)
    monkeypatch.setattr(integers, "COPY_BYTES", 1000)
    values = packers.random_values(104, 96, 4, shuffled(96, 32))
    check(weight_of(tmp_path, {**GPTQ, "group_size": 32}, gptq(values)), values)
    check(weight_of(tmp_path, {**AWQ, "group_size": 32}, awq_gemm(packers.random_values(104, 96, 4, natural(96, 32)))),
          packers.random_values(104, 96, 4, natural(96, 32)))  # fmt: skip


def test_rows_with_scales_beyond_float16_share_an_exponent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integers, "CHUNK", 1)
    values = packers.random_values(96, 96, 4, natural(96, 32), True, torch.bfloat16)
    values.scales[40:] *= 2**-12
    settings = CT("pack-quantized", num_bits=4, group_size=32)
    check(weight_of(tmp_path, settings, packed_quantized(values, True)), values)


def test_g_idx_may_be_left_out_or_empty_without_act_order(tmp_path: Path) -> None:
    values = packers.random_values(16, 96, 4, natural(96, 32))
    tensors = gptq(values)
    settings = {**GPTQ, "group_size": 32}
    check(weight_of(tmp_path, settings, tensors | {"g_idx": torch.zeros(96, dtype=torch.int32)}), values)
    del tensors["g_idx"]
    check(weight_of(tmp_path, settings, tensors), values)
    with pytest.raises(CheckpointError, match=r"no model\.layers\.0\.mlp\.up_proj\.g_idx"):
        stored(tmp_path, {**settings, "desc_act": True}, tensors)


def test_other_tensors_are_plain(tmp_path: Path) -> None:
    values = packers.random_values(16, 96, 4, natural(96, 32))
    found = stored(tmp_path, {**AWQ, "group_size": 32}, awq_gemm(values) | {"bias": torch.ones(16)})
    assert set(found) == {"weight", "bias"}
    assert torch.equal(found["bias"].plain(torch.float32), torch.ones(16))
    assert not found["bias"].is_packed
    assert set(stored(tmp_path, {**AWQ, "group_size": 32}, {"weight": torch.ones(4, 4)})) == {"weight"}
    with pytest.raises(CheckpointError, match="qweight"):  # a stray word is no weight
        stored(tmp_path, CT("pack-quantized", num_bits=4, group_size=32), awq_gemm(values))


def test_single_modules_of_other_bits(tmp_path: Path) -> None:
    values = packers.random_values(16, 96, 8, natural(96, 32))
    dynamic = {"-:.*visual": {}, "+:.*up_proj": {"bits": 8, "group_size": 32}}
    check(weight_of(tmp_path, {**GPTQ, "group_size": 128, "dynamic": dynamic}, gptq(values)), values)
    groups = {
        "all": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128}},
        "some": {"targets": ["re:.*up_proj"], "weights": {"num_bits": 8, "group_size": 32, "symmetric": False}},
    }
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    check(weight_of(tmp_path, settings, packed_quantized(values, False)), values)


AWQ_32, GPTQ_32 = {**AWQ, "group_size": 32}, {**GPTQ, "group_size": 32}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quantized by 'bitsandbytes'"),
        ({}, "quantized by None"),
        ({**AWQ_32, "bits": 8}, "awq to 8 bits"),
        ({**AWQ_32, "version": "gemv_fast"}, "gemv_fast"),
        ({**AWQ_32, "backend": "llm-awq"}, "llm-awq"),
        ({**AWQ_32, "group_size": "128"}, "group_size='128'"),
        ({**AWQ_32, "group_size": 0}, "groups of 0"),
        ({**GPTQ_32, "bits": 3}, "gptq to 3 bits"),
        ({**GPTQ_32, "bits": 2}, "gptq to 2 bits"),
        ({**GPTQ_32, "checkpoint_format": "marlin"}, "format 'marlin'"),
        ({**GPTQ_32, "is_marlin_format": True}, "format 'marlin'"),
        ({**GPTQ_32, "rotation": "hadamard"}, "rotation='hadamard'"),
        (CT("float-quantized", num_bits=8), "float-quantized"),
        (CT("marlin-24", num_bits=4), "marlin-24"),
        (CT("naive-quantized", num_bits=8) | {"config_groups": {"a": {"weights": {"type": "float"}}}}, "type float"),
        ({**CT("pack-quantized", num_bits=4), "config_groups": None}, "config_groups"),
        ({**CT("pack-quantized", num_bits=4), "transform_config": {"R1": 1}}, "transform_config"),
        ({**CT("pack-quantized", num_bits=4), "sparsity_config": {"format": "sparse-bitmask"}}, "sparse-bitmask"),
    ],
)
def test_what_cannot_be_read_is_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = packers.random_values(16, 96, 4, natural(96, 32))
    with pytest.raises(CheckpointError, match=message) as caught:
        stored(tmp_path, settings, awq_gemm(values))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (CT("pack-quantized", num_bits=3, group_size=32), "3 bits"),
        (CT("pack-quantized", num_bits=4, strategy="block"), "strategy 'block'"),
        ({**CT("pack-quantized", num_bits=4), "config_groups": {"a": {"targets": ["re:.*k_proj"]}}}, "no group of"),
    ],
)
def test_what_a_group_of_linears_cannot_have(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = packers.random_values(16, 96, 4, natural(96, 32), True)
    with pytest.raises(CheckpointError, match=message):
        stored(tmp_path, settings, packed_quantized(values, True))


def damage(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {**tensors, name: change(tensors[name]).contiguous()}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda t: {k: x for k, x in t.items() if k != "qzeros"}, r"no model\.layers\.0\.mlp\.up_proj\.qzeros"),
        (lambda t: {k: x for k, x in t.items() if k != "scales"}, r"no model\.layers\.0\.mlp\.up_proj\.scales"),
        (damage("scales", lambda x: x[:2]), r"up_proj\.scales .* is F16 \[2, 16\]: expected .* \[3, 16\]"),
        (damage("qzeros", lambda x: x[:, :1]), r"up_proj\.qzeros .* is I32 \[3, 1\]: expected I32 \[3, 2\]"),
        (damage("qweight", lambda x: x[0]), r"up_proj\.qweight .* shape \[16\]: expected a matrix"),
        (damage("qweight", lambda x: x.long()), r"up_proj\.qweight .* is I64"),
        (damage("g_idx", lambda x: x[:90]), r"up_proj\.g_idx .* is I32 \[90\]: expected .* \[96\]"),
        (damage("g_idx", lambda x: x * 2), r"up_proj\.g_idx .* groups from 0 to 4, expected 0 to 2"),
        (damage("g_idx", lambda x: x - 1), r"up_proj\.g_idx .* groups from -1 to 1"),
        (damage("g_idx", lambda x: x.clamp(max=1)), r"up_proj\.g_idx .* gives group 1 64 inputs, expected 32"),
        (damage("scales", lambda x: x / 0), r"up_proj\.scales .* not finite"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(harm: Any, message: str, tmp_path: Path) -> None:
    tensors = gptq(packers.random_values(16, 96, 4, natural(96, 32)))
    with pytest.raises(CheckpointError, match=message) as caught:
        weight_of(tmp_path, GPTQ_32, harm(tensors)).plain(torch.float32)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage("weight_shape", lambda x: x * 2), r"weight_shape .* says \[32, 192\]"),
        (damage("weight_zero_point", lambda x: x[:1]), r"weight_zero_point .* is I32 \[1, 3\]: expected .* \[2, 3\]"),
        (damage("weight_scale", lambda x: x.int()), r"weight_scale .* is I32"),
        (lambda t: {k: x for k, x in t.items() if k != "weight_scale"}, r"no .*weight_scale"),
    ],
)  # fmt: skip
def test_compressed_tensors_that_do_not_fit_are_named(harm: Any, message: str, tmp_path: Path) -> None:
    tensors = packed_quantized(packers.random_values(16, 96, 4, natural(96, 32)), False)
    settings = CT("pack-quantized", num_bits=4, group_size=32, symmetric=False)
    with pytest.raises(CheckpointError, match=message):
        stored(tmp_path, settings, harm(tensors))


def test_where_settings_are_said(tmp_path: Path) -> None:
    assert settings_of(tmp_path, {}) is None
    assert settings_of(tmp_path, {"quantization_config": AWQ}) == AWQ
    assert settings_of(tmp_path, {"text_config": {"quantization_config": AWQ}}) == AWQ
    with pytest.raises(CheckpointError, match="'awq'; expected an object"):
        settings_of(tmp_path, {"quantization_config": "awq"})
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 128}', "utf-8")
    assert settings_of(tmp_path, {}) == {"quant_method": "gptq", "bits": 4, "group_size": 128}


def shapes(width: int, layers: int = 2, hidden: int = 48, **changes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    names = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
    out = {f"model.language_model.layers.{i}.mlp.{name}.weight": s for i in range(layers) for name, s in names.items()}
    return {**out, **{f"model.language_model.layers.1.mlp.{name}.weight": shape for name, shape in changes.items()}}


@pytest.mark.feature(2)
def test_a_padded_mlp_is_found_by_its_tensors() -> None:
    config = tiny_config(intermediate_size=80)
    assert mlp_width(config, shapes(80)) is None
    with pytest.warns(UserWarning, match="intermediate_size 80, and all layers have 96"):
        assert mlp_width(config, shapes(96)) == 96
    with pytest.warns(UserWarning, match="96"):
        assert mlp_width(config.text_config, shapes(96)) == 96
    assert mlp_width(config, shapes(64)) is None
    assert mlp_width(config, shapes(96, layers=1)) is None
    assert mlp_width(config, shapes(96, up_proj=(80, 48))) is None
    assert mlp_width(config, shapes(96, hidden=64)) is None
    assert mlp_width(config, {}) is None
