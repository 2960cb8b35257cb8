"""Quantized weights: which are packed, that loading and swapping give the same model, and what such a model refuses."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, padded_batch, tiny_config, tiny_model
from torch import nn

import qwenvl
from qwenvl.checkpoint import load_model
from qwenvl.cli.info import quantized as quantized_info
from qwenvl.cli.inputs import find_model
from qwenvl.kernels import quantized as kernels
from qwenvl.kernels.quantized import PackedWeight, quantized_linear
from qwenvl.quantization import (
    INT4,
    INT8,
    WORDS,
    QuantizedLinear,
    QuantizeOptions,
    Scheme,
    check_device,
    choose,
    pack,
    packed_bytes,
    quantize_model,
    swap,
    weight_bytes,
)

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "qwenvl")


def packed_of(model: nn.Module) -> dict[str, QuantizedLinear]:
    return {name: part for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        inputs = padded_batch()
        return model(**{**inputs, "pixel_values": inputs["pixel_values"].to(model.dtype)}).logits


def save(folder: Path, family: str = "qwen2_5_vl", dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    tiny_model(family, **changes).to(dtype).save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.mark.parametrize("scheme", [INT8, INT4], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_quantized_linear_is_the_kernel_around_its_packed_weight(scheme: Scheme, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(80, 24, bias=bias).eval().requires_grad_(False).to(torch.bfloat16)
    quantized = QuantizedLinear(linear, pack(linear.weight, scheme), torch.bfloat16)
    x = torch.randn(3, 5, 80).to(torch.bfloat16)
    packed = PackedWeight.pack(linear.weight, scheme.kind, scheme.group)
    assert packed.nbytes == packed_bytes((24, 80), scheme)
    out = quantized(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, quantized_linear(x, packed, linear.bias, torch.bfloat16))
    assert quantized(x, torch.float32).dtype == torch.float32
    exact = linear.float()(x.float())
    error = (out.float() - exact).norm() / exact.norm()
    assert 0 < error < (0.02 if scheme.kind == "int8" else 0.12)
    assert torch.equal(quantized.weight, packed.dequantize(torch.bfloat16))
    assert (quantized.weight.shape, quantized.weight.dtype) == ((24, 80), torch.bfloat16)
    assert repr(quantized) == f"QuantizedLinear(80, 24, {scheme.kind} group {scheme.group}, bias={bias})"


@pytest.mark.parametrize("scheme", [INT8, INT4], ids=str)
def test_a_weight_is_packed_in_pieces(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CHUNK", 64 * 80)
    linear = nn.Linear(80, 150)
    packed = QuantizedLinear(linear, pack(linear.weight, scheme), torch.float32).packed
    monkeypatch.undo()
    expected = PackedWeight.pack(linear.weight, scheme.kind, scheme.group)
    assert (packed.out_features, packed.nbytes) == (150, expected.nbytes)
    assert torch.equal(packed.dequantize(torch.float32), expected.dequantize(torch.float32))


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_are_chosen_by_name(family: str) -> None:
    """Every linear of the model and nothing else: embedding, patch embedding and norms are left."""
    model = tiny_model(family)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    linears = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    text = {name for name in linears if name.startswith("model.language_model.")}
    assert len(text) == 2 * 7
    chosen = choose(shapes, WORDS["int4"])
    assert set(chosen) == linears
    fine = {name for name in text if name.endswith(("k_proj", "v_proj", "o_proj"))}
    assert {name for name, scheme in chosen.items() if scheme == INT4} == (text - fine) | {"lm_head"}
    assert {scheme for name, scheme in chosen.items() if name in fine} == {INT8}
    assert set(choose(shapes, WORDS["int8"]).values()) == {INT8}
    assert set(choose(shapes, QuantizeOptions(INT4, tower=None, head=None))) == text
    assert set(choose(shapes, QuantizeOptions(None, tower=None))) == {"lm_head"}


def test_exceptions_are_words_of_a_name(tmp_path: Path) -> None:
    """Whole words of the dotted name, the last that fits; a word that is nowhere is an error."""
    shapes = {name: tensor.shape for name, tensor in tiny_model().state_dict().items()}
    usual, wide = choose(shapes, QuantizeOptions(INT4, head=INT4)), Scheme("int8", 32)
    given = {"v_proj": INT8, "layers.0": wide, "visual.merger": None, "lm_head": None}
    chosen = choose(shapes, QuantizeOptions(INT4, head=INT4, exceptions=given))
    for name, scheme in usual.items():
        if name.startswith("model.visual.merger.") or name == "lm_head":
            assert name not in chosen
        elif ".layers.0." in name:
            assert chosen[name] == wide
        else:
            assert chosen[name] == (INT8 if name.endswith("v_proj") else scheme)
    assert {name for name in usual if ".layers.0." in name} <= set(chosen)
    text = {name: shape for name, shape in shapes.items() if "language_model" in name}
    assert choose(text, QuantizeOptions(INT4, exceptions={"visual": None, "lm_head": None}))
    for wrong in ("v_porj", "rotary", "layers.1.", "layers.9"):
        with pytest.raises(ValueError, match=f"'{wrong}' is in no name of the model's modules"):
            choose(shapes, QuantizeOptions(INT4, exceptions={wrong: None}))
    model = load_model(save(tmp_path), quantize=QuantizeOptions(INT4, head=None, exceptions={"down_proj": INT8}))
    schemes = {name: part.scheme for name, part in packed_of(model).items() if "language_model" in name}
    assert {scheme for name, scheme in schemes.items() if name.endswith("down_proj")} == {INT8}
    assert {scheme for name, scheme in schemes.items() if not name.endswith("down_proj")} == {INT4}
    assert "text int4 group 32 (12 linears) and int8 group 128 (2 linears)" in str(model.quantization)


def test_ragged_linears_of_the_tower_can_be_left() -> None:
    shapes = {
        "model.visual.blocks.0.mlp.down_proj.weight": (128, 344), "model.visual.blocks.0.attn.qkv.weight": (384, 128),
        "model.language_model.layers.0.mlp.down_proj.weight": (128, 344),
    }  # fmt: skip
    scheme = Scheme("int4", 128)
    left = choose(shapes, QuantizeOptions(scheme, tower=scheme, head=None, whole_groups=True))
    assert set(left) == {name.removesuffix(".weight") for name in shapes if "visual.blocks.0.mlp" not in name}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("word", WORDS)
def test_loading_packs_what_swapping_packs(family: str, tied: bool, word: str, tmp_path: Path) -> None:
    """Weights and biases lie in different files and come in any order."""
    save(tmp_path, family, tie_word_embeddings=tied)
    plain = load_model(tmp_path)
    loaded = load_model(tmp_path, quantize=word)
    swapped = quantize_model(copy.deepcopy(plain), word)
    assert torch.equal(logits(loaded), logits(swapped))
    assert loaded.quantization == swapped.quantization
    assert str(loaded) == str(swapped)
    assert loaded.dtype == torch.bfloat16
    error = (logits(loaded) - logits(plain)).norm() / logits(plain).norm()
    assert 0 < error < (0.1 if word == "int8" else 0.5)
    assert plain.quantization is None
    # The embedding stays, whatever becomes of a head that shares it.
    assert torch.equal(loaded.text.embed_tokens.weight, plain.text.embed_tokens.weight)
    biases = {name: p for name, p in plain.named_parameters() if name.endswith(".bias")}
    assert biases
    assert all(torch.equal(loaded.get_parameter(name), bias) for name, bias in biases.items())
    assert loaded.num_parameters() == plain.num_parameters()
    assert loaded.num_parameters(exclude_embeddings=True) == plain.num_parameters(exclude_embeddings=True)
    assert loaded.num_parameters(only_trainable=True) == 0


def test_what_was_done_is_reported(tmp_path: Path) -> None:
    plain = load_model(save(tmp_path))
    model = load_model(tmp_path, quantize="int4")
    done = model.quantization
    assert {name: part.scheme for name, part in packed_of(model).items()} == done.schemes
    assert done.bytes_before == weight_bytes(plain) == sum(p.nbytes for p in plain.parameters())
    packed = sum(part.packed.nbytes for part in packed_of(model).values())
    assert done.bytes_after == weight_bytes(model) == packed + sum(p.nbytes for p in model.parameters())
    text = "int4 group 32 (8 linears) and int8 group 128 (6 linears)"
    assert str(done).startswith(f"text {text}, tower int8 group 128, head int4 group 32: 0.")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("word", WORDS)
def test_info_tells_the_bytes_beforehand(family: str, tied: bool, word: str, tmp_path: Path) -> None:
    save(tmp_path, family, tie_word_embeddings=tied)
    done = load_model(tmp_path, quantize=word).quantization
    expected = {"to": word, "weight_bytes": done.bytes_before, "quantized_bytes": done.bytes_after}
    assert quantized_info(find_model(str(tmp_path)), word) == expected


def test_parts_can_be_left_as_they_are(tmp_path: Path) -> None:
    save(tmp_path)
    model = load_model(tmp_path, quantize=QuantizeOptions(Scheme("int4", 64), tower=None, head=None))
    assert {name.split(".")[1] for name in packed_of(model)} == {"language_model"}
    assert {part.scheme.group for part in packed_of(model).values()} == {64}
    assert model.lm_head.weight is model.text.embed_tokens.weight
    assert "tower as it was, head as it was" in str(model.quantization)


@pytest.mark.parametrize("family", FAMILIES)
def test_bare_models_are_quantized_likewise(family: str, tmp_path: Path) -> None:
    save(tmp_path, family)
    whole = packed_of(load_model(tmp_path, quantize="int8"))
    kind = "Qwen2_5_VL" if family == "qwen2_5_vl" else "Qwen2VL"
    for name in (f"{kind}Model", f"{kind}TextModel"):
        bare = getattr(qwenvl, name).from_pretrained(tmp_path, load_in_8bit=True)
        packed = packed_of(bare)
        assert packed
        assert {bare.weights_prefix + part for part in packed} == set(bare.quantization.schemes)
        for part, linear in packed.items():
            assert torch.equal(linear.weight, whole[bare.weights_prefix + part].weight)


def test_weights_are_packed_from_the_files_own_numbers(tmp_path: Path) -> None:
    """A float32 file run in bfloat16 is not rounded twice; activations have the dtype asked for."""
    save(tmp_path, dtype=torch.float32, tie_word_embeddings=False)
    wide, narrow = (load_model(tmp_path, dtype, quantize="int8") for dtype in ("float32", "bfloat16"))
    for name, linear in packed_of(wide).items():
        assert torch.equal(packed_of(narrow)[name].packed.dequantize(torch.float32), linear.weight), name
        assert (linear.weight.dtype, packed_of(narrow)[name].weight.dtype) == (torch.float32, torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    assert (logits(wide) - logits(narrow)).norm() / logits(wide).norm() < 0.05


def test_scales_keep_their_dtype_when_the_model_changes_its_own(tmp_path: Path) -> None:
    model = load_model(save(tmp_path, dtype=torch.float32), quantize="int4")
    before = {name: part.weight for name, part in packed_of(model).items()}
    model.half()
    assert model.lm_head.weight.dtype == torch.float16
    assert logits(model).dtype == torch.float32  # as those of every model
    model.to(torch.bfloat16).float()
    assert all(torch.equal(part.weight, before[name]) for name, part in packed_of(model).items())
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


def test_answers_outside_no_grad_and_never_trains(tmp_path: Path) -> None:
    model = load_model(save(tmp_path, dtype=torch.float32), quantize="int8")
    assert not model(**padded_batch()).logits.requires_grad
    with pytest.raises(ValueError, match=r"int8 carry no gradients: use the model loaded without quantize= to train"):
        model.train()(**padded_batch())
    model.eval().enable_input_require_grads()
    with pytest.raises(ValueError, match="carry no gradients"):
        model(**padded_batch())


def test_what_a_quantized_model_refuses(tmp_path: Path) -> None:
    plain = load_model(save(tmp_path / "plain"))
    model = load_model(tmp_path / "plain", quantize="int8")
    refused = "quantized to int8, and packed weights are not part of a state"
    with pytest.raises(ValueError, match=f"lm_head is {refused}"):
        model.lm_head.state_dict(prefix="lm_head.")
    with pytest.raises(ValueError, match=refused):
        model.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="int8 cannot be replaced"):
        model.resize_token_embeddings(72)
    assert model.config.text_config.vocab_size == len(model.text.embed_tokens.weight) == 64
    with pytest.raises(ValueError, match=r"is quantized already \(text int8 group 128"):
        quantize_model(model, "int8")
    with pytest.raises(ValueError, match="cannot be made on the device meta"):
        quantize_model(plain.to("meta"), "int8")


def test_packed_weights_move_with_their_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(save(tmp_path), quantize="int4")
    want, before = logits(model), weight_bytes(model)
    here = {name: part.packed for name, part in packed_of(model).items()}
    moved = copy.deepcopy(model).to("meta")
    for name, part in packed_of(moved).items():
        tensors = part.packed.data, part.packed.scales, *([] if part.packed.zeros is None else [part.packed.zeros])
        assert all(x.device.type == "meta" for x in tensors), name
        assert part.weight.device.type == "meta"
        assert part.weight.shape == here[name].dequantize().shape
        assert here[name].data.is_cpu
    assert weight_bytes(moved) == before
    assert model.to("cpu").lm_head.packed is here["lm_head"], "what is there already is not copied"
    # Where the device has no kernel, weights are unpacked for the product: the same but for the rounding of x.
    monkeypatch.setattr(kernels, "product", lambda: None)
    assert 0 < (logits(model) - want).norm() / want.norm() < 0.05


def test_slowness_off_the_cpu_is_said() -> None:
    with pytest.warns(UserWarning, match="save memory on cuda, and are slow there"):
        check_device(torch.device("cuda", 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_device(torch.device("cpu"))


PEAK = """
import sys, torch
from qwenvl.checkpoint import load_model
from qwenvl.cli.info import quantized as quantized_info
from qwenvl.cli.inputs import find_model
from qwenvl.quantization import weight_bytes
def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
load_model(sys.argv[1], quantize="int8")
before = status("VmRSS")
model = load_model(sys.argv[2], quantize=sys.argv[3])
for parameter in model.parameters():
    parameter.view(torch.int16).max()
print(status("VmHWM") - before, weight_bytes(model))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_peak_memory_is_the_quantized_model_and_one_tensor(tmp_path: Path) -> None:
    width, rows, mlp = 1024, 24000, 8192
    config = tiny_config(
        hidden_size=width, vocab_size=rows, intermediate_size=mlp, num_attention_heads=16, num_hidden_layers=4,
        vision_config={**tiny_config().vision_config.to_dict(), "out_hidden_size": width},
        rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]}, tie_word_embeddings=False,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    try:
        qwenvl.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path / "large")
    finally:
        torch.set_default_dtype(torch.float32)
    save(tmp_path / "small")
    largest, whole = 2 * rows * width, 2 * (2 * rows * width + 4 * 3 * width * mlp)
    for word in WORDS:
        command = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "large"), word]
        out = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        peak, weights = map(int, out.stdout.split())
        assert weights < 0.7 * whole
        assert peak < weights + 1.3 * largest, f"{word}: {peak / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ask", "Hi", "--quantize", "int5"), "--quantize int5 is not known: expected int8, int4 or none"),
        (("demo", "--quantize", "8"), "--quantize 8 is not known"),
        (("info", "--quantize", "int2"), "--quantize int2 is not known"),
    ],
)
def test_the_program_refuses_in_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_linear_is_swapped_in_place() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ModuleDict({"a": nn.Linear(32, 8)})).eval()
    part = model.get_submodule("1.a")
    assert isinstance(part, nn.Linear)
    quantized = swap(model, "1.a", pack(part.weight.detach(), INT8), torch.float32)
    assert model.get_submodule("1.a") is quantized
    assert quantized.bias is part.bias
    assert not quantized.training
