"""Tensors of GGUF files: every type is read to the last bit as its format says, and packed for the kernels exactly
where it can be, else within half a thousandth; a tiny model of each family answers from its pair as from its source."""

from __future__ import annotations

import os
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_writer import FAMILIES, KINDS, Written, convert, encode, random_blocks, write_gguf
from safetensors.torch import load_file

from qwenvl.checkpoint import CheckpointError, load_model, save_model
from qwenvl.checkpoint import gguf as room
from qwenvl.checkpoint.gguf import GgufWeight, gguf_tensors
from qwenvl.checkpoint.gguf_blocks import UNPACK
from qwenvl.gguf_folder import read_gguf, unfold
from qwenvl.gguf_folder.names import Piece, Target
from qwenvl.hub import demo_folder

QUANTIZED = [kind for kind in KINDS if kind not in ("F32", "F16", "BF16", "Q8_1")]
EXACT = ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL")


pytestmark = pytest.mark.usefixtures("cache")


def stored(folder: Path, *tensors: Written, key: str = "model.layers.0.mlp.up_proj.weight") -> GgufWeight:
    """What the loader sees of tensors that lie below one another in a file."""
    path = write_gguf(folder / "a.gguf", {}, {f"t{number}": one for number, one in enumerate(tensors)})
    pieces = tuple(Piece(one, 0, one.shape[0]) for one in read_gguf(path).tensors.values())
    return GgufWeight(Target(key, (sum(piece.stop for piece in pieces), *tensors[0].shape[1:]), pieces))


# --- what blocks stand for


def half(block: bytes, at: int) -> float:
    return float(struct.unpack_from("<e", block, at)[0])


def six_bits(packed: bytes, group: int) -> tuple[int, int]:
    """Scale and low of a group of Q4_K, as ggml's get_scale_min_k4 has them."""
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    low_bits = packed[group + 4]
    return low_bits & 15 | packed[group - 4] >> 6 << 4, low_bits >> 4 | packed[group] >> 6 << 4


def by_definition(kind: str, block: bytes) -> list[float]:
    """The weights of one block, one after the other, in exact arithmetic."""
    if kind == "Q8_0":
        return [half(block, 0) * q for q in struct.unpack_from("<32b", block, 2)]
    if kind == "Q4_0":
        q = [block[2 + i % 16] >> 4 * (i // 16) & 15 for i in range(32)]
        return [half(block, 0) * (one - 8) for one in q]
    if kind == "Q4_K":
        out = []
        for i in range(256):
            scale, low = six_bits(block[4:16], i // 32)
            q = block[16 + i // 64 * 32 + i % 32] >> 4 * (i // 32 % 2) & 15
            out.append(half(block, 0) * scale * q - half(block, 2) * low)
        return out
    assert kind == "Q6_K", kind
    out = []
    for i in range(256):
        chunk, quarter, place = i // 128, i % 128 // 32, i % 32
        low_bits = block[chunk * 64 + quarter % 2 * 32 + place] >> 4 * (quarter // 2) & 15
        high_bits = block[128 + chunk * 32 + place] >> 2 * quarter & 3
        scale = struct.unpack_from("<b", block, 192 + i // 16)[0]
        out.append(half(block, 208) * scale * ((low_bits | high_bits << 4) - 32))
    return out


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_K", "Q6_K"])
def test_blocks_are_read_as_the_format_defines_them(kind: str, tmp_path: Path) -> None:
    written = random_blocks(kind, (5, 512))
    size = KINDS[kind][2]
    blocks = [written.data[at : at + size] for at in range(0, len(written.data), size)]
    wanted = torch.tensor([weight for block in blocks for weight in by_definition(kind, block)], dtype=torch.float64)
    found = stored(tmp_path, written).plain(torch.float32).double().flatten()
    largest = wanted.abs().max()
    assert (found - wanted).abs().max() <= largest * 2**-22  # two roundings to float32
    assert largest > 0


@pytest.mark.parametrize("kind", QUANTIZED)
def test_every_type_is_the_library_s_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    written = random_blocks(kind, (40, 1024))
    weight = stored(tmp_path, written)
    data = np.frombuffer(written.data, np.uint8).reshape(40, -1)
    with np.errstate(over="ignore"):
        wanted = torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]))
    found = weight.plain(torch.float32)
    assert torch.equal(found.view(torch.int32), wanted.view(torch.int32))
    assert torch.equal(weight.plain(torch.bfloat16), wanted.to(torch.bfloat16))
    assert weight.is_packed == (kind in UNPACK and kind != "MXFP4")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_the_library_s_own_quantizers_are_read(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 0.02
    number = gguf.GGMLQuantizationType[kind]
    data = gguf.quants.quantize(weight.numpy(), number)
    found = stored(tmp_path, Written(kind, (64, 256), data.tobytes())).plain(torch.float32)
    assert torch.equal(found, torch.from_numpy(gguf.quants.dequantize(data, number)))
    assert (found - weight).abs().max() < 0.02 * (0.05 if kind == "Q8_0" else 0.4)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_floats_are_read_and_mapped(kind: str, tmp_path: Path) -> None:
    source = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    weight = stored(tmp_path, encode(source, kind))
    own = source.to(weight.dtype)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(weight.plain(dtype), own.to(dtype))
        assert torch.equal(weight.load(dtype, torch.device("cpu")), own.to(dtype))
    weight.load(weight.dtype, torch.device("cpu")).zero_()  # mapped privately
    assert torch.equal(weight.passing(), own)
    assert not weight.is_packed


def test_pieces_and_chunks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = [random_blocks("Q8_0", (rows, 64), seed) for seed, rows in enumerate((41, 7, 50))]
    weight = stored(tmp_path, *written)
    whole, packed = weight.plain(torch.float32), weight.packed()
    assert torch.equal(packed.dequantize(), whole)
    apart = [stored(tmp_path, one).plain(torch.float32) for one in written]
    assert torch.equal(torch.cat(apart), whole)
    weight = stored(tmp_path, *written)
    monkeypatch.setattr(room, "CHUNK", 64)
    assert torch.equal(weight.plain(torch.float32), whole)
    again = weight.packed()
    assert torch.equal(again.data, packed.data)
    assert torch.equal(again.scales, packed.scales)
    mixed = stored(tmp_path, written[0], encode(whole[41:], "F16"))
    assert not mixed.is_packed
    assert torch.equal(mixed.plain(torch.float32), torch.cat((whole[:41], whole[41:].half().float())))


# --- packed for the kernels


@pytest.mark.parametrize("kind", sorted(UNPACK.keys() - {"MXFP4"}))
def test_packing_changes_little_or_nothing(kind: str, tmp_path: Path) -> None:
    weight = stored(tmp_path, random_blocks(kind, (70, 512)))
    plain, packed = weight.plain(torch.float32), weight.packed()
    group = packed.group
    assert (packed.kind, group) == weight.form
    found = packed.dequantize()
    if kind in EXACT:
        assert torch.equal(found, plain)
    error = (found - plain).view(70, -1, group).abs().amax(-1)
    largest = plain.view(70, -1, group).abs().amax(-1)
    # Scales of 6 bits on random integers: lows that are many times what the group spans cost more, see the bound.
    span = plain.view(70, -1, group).amax(-1) - plain.view(70, -1, group).amin(-1)
    assert (error <= 2**-10 * torch.maximum(largest, span)).all()


def q4_k(scale: float, low: float, scales: list[int], lows: list[int], q: int) -> bytes:
    """One block of Q4_K with all integers the same."""
    low_four = [s | m << 4 for s, m in zip((x & 15 for x in scales[4:]), (x & 15 for x in lows[4:]), strict=True)]
    first = [s & 63 | big >> 4 << 6 for s, big in zip(scales[:4], scales[4:], strict=True)]
    second = [m & 63 | big >> 4 << 6 for m, big in zip(lows[:4], lows[4:], strict=True)]
    return struct.pack("<ee", scale, low) + bytes(first + second + low_four) + bytes([q | q << 4]) * 128


@pytest.mark.parametrize(
    ("scale", "low"), [(0.0, 0.0), (0.0, 0.01), (0.01, 0.0), (6e-8, 0.01), (6e-8, 6e-8), (1e-4, 30.0), (-0.01, 0.02)]
)
def test_flat_groups_and_tiny_scales_keep_their_values(scale: float, low: float, tmp_path: Path) -> None:
    block = q4_k(scale, low, [0, 1, 63, 17, 40, 33, 0, 5], [0, 0, 63, 1, 2, 50, 9, 0], 11)
    weight = stored(tmp_path, Written("Q4_K", (1, 256), block))
    plain, found = weight.plain(torch.float32), weight.packed().dequantize()
    assert found.isfinite().all()
    span = plain.abs().view(8, 32).amax(-1, keepdim=True)
    assert ((found - plain).view(8, 32).abs() <= 2**-10 * span).all()


def test_the_head_of_a_tied_model_comes_packed_and_the_embedding_plain(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    found = {one.key: one for one in gguf_tensors(unfold(convert(sources["qwen2_5_vl"], "Q8_0").write(tmp_path))) or []}
    assert not found["model.embed_tokens.weight"].is_packed
    assert found["lm_head.weight"].is_packed
    assert torch.equal(found["lm_head.weight"].packed().dequantize(), found["model.embed_tokens.weight"].passing())
    plain = {one.key for one in gguf_tensors(unfold(convert(sources["qwen2_5_vl"], "F16").write(tmp_path))) or []}
    assert "lm_head.weight" not in plain


# --- what cannot be read


def test_without_the_library_its_types_are_refused_by_name(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = convert(sources["qwen2_5_vl"], "Q8_0")
    pair.text_tensors["blk.0.ffn_up.weight"] = random_blocks("TQ2_0", (96, 256))
    folder = unfold(pair.write(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf has TQ2_0 weights, .* pip install 'qwenvl\[gguf\]'"):
        gguf_tensors(folder)
    assert gguf_tensors(unfold(convert(sources["qwen2_5_vl"], "Q8_0").write(tmp_path / "b")))  # needs no library


def test_types_that_nobody_reads_are_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pair = convert(sources["qwen2_5_vl"], "Q8_0")
    pair.text_tensors["blk.0.ffn_up.weight"] = random_blocks("Q8_1", (96, 64))
    with pytest.raises(CheckpointError, match="Q8_1 weights, which cannot be read here"):
        gguf_tensors(unfold(pair.write(tmp_path)))


def test_scales_that_are_no_numbers_are_damage(tmp_path: Path) -> None:
    block = struct.pack("<e", float("nan")) + bytes(32)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight of .*a\.gguf \(Q8_0\): scales are not all finite"):
        stored(tmp_path, Written("Q8_0", (1, 32), block)).packed()
    for scale, low in ((float("nan"), 0.1), (0.1, float("nan")), (float("inf"), 0.1)):
        block = q4_k(scale, low, [1] * 8, [1] * 8, 3)
        with pytest.raises(CheckpointError, match=r"\(Q4_K\): (scales|zeros) are not all finite"):
            stored(tmp_path, Written("Q4_K", (1, 256), block)).packed()


def test_a_file_that_was_cut_since_is_told(tmp_path: Path) -> None:
    weight = stored(tmp_path, random_blocks("Q8_0", (64, 64)))
    os.truncate(weight.path, weight.path.stat().st_size - 64)
    with pytest.raises(CheckpointError, match=r"a\.gguf ends within t0: it was changed"):
        weight.plain(torch.float32)


def test_other_folders_have_no_such_tensors(checkpoint: Path) -> None:
    assert gguf_tensors(checkpoint) is None


# --- whole models


def inputs(model: Any) -> dict[str, torch.Tensor]:
    """A prompt with a picture of 6 tokens."""
    image = model.config.image_token_id
    ids = torch.tensor([[9, 8, model.config.vision_start_token_id, *[image] * 6, 20, 21, 22]])
    pixels = torch.randn(24, 1176, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels,
            "image_grid_thw": torch.tensor([[1, 6, 4]])}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {"kind": "F32"}, {"kind": "F16"}, {"kind": "BF16", "tower_kind": "BF16"}, {"kind": "F32", "split_tower": False},
        {"kind": "F32", "join_text": True}, {"kind": "F32", "swapped": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)  # fmt: skip
def test_a_pair_is_the_model_it_was_made_of(
    family: str, options: dict[str, Any], sources: dict[str, Path], tmp_path: Path
) -> None:
    source = load_model(sources[family], dtype="float32")
    model = load_model(unfold(convert(sources[family], **options).write(tmp_path)), dtype="float32")
    assert type(model) is type(source)
    rounded = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[options["kind"]]
    for name, weight in source.state_dict().items():
        found = model.state_dict()[name]
        assert found.shape == weight.shape, name
        kept = weight if weight.ndim < 2 or ("patch" in name and rounded == torch.bfloat16) else weight.to(rounded)
        assert torch.equal(found, kept.float()), name
    if options["kind"] == "F32":
        given = {**inputs(source), "max_new_tokens": 12, "do_sample": False, "repetition_penalty": 1.0}
        assert model.generate(**given).tolist() == source.generate(**given).tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_packed_weights_stay_packed_and_give_the_same_logits(
    family: str, kind: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    folder = unfold(convert(sources[family], kind).write(tmp_path))
    packed, plain = load_model(folder, dtype="float32"), load_model(folder, dtype="float32", quantize="none")
    assert packed.quantization is not None
    assert plain.quantization is None
    assert str(packed.quantization).startswith(f"text int{kind[1]} group 32")
    with torch.inference_mode():
        found, wanted = (model(**inputs(model)).logits for model in (packed, plain))
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    source = load_file(sources[family] / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    far = (
        plain.state_dict()["model.language_model.layers.0.mlp.up_proj.weight"] - source
    ).abs().max() / source.abs().max()
    assert 0 < far < (0.005 if kind == "Q8_0" else 0.13)


def test_the_tower_may_be_packed_too(sources: dict[str, Path], tmp_path: Path) -> None:
    """q, k and v of the tower are three tensors of a file, and one packed weight."""
    folder = unfold(convert(sources["qwen2_vl"], "Q8_0", tower_kind="Q8_0").write(tmp_path))
    packed, plain = load_model(folder, dtype="float32"), load_model(folder, dtype="float32", quantize="none")
    assert "tower int8 group 32" in str(packed.quantization)
    with torch.inference_mode():
        found, wanted = (model(**inputs(model)).logits for model in (packed, plain))
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.skipif(
    not (demo_folder() / "model.safetensors").is_file(), reason="this checkout has no bundled checkpoint"
)
def test_the_bundled_model_answers_from_its_pair_as_from_its_folder(tmp_path: Path) -> None:
    from qwenvl.demo.samples import PICTURES
    from qwenvl.tasks import Assistant

    folder = unfold(convert(published_layout(tmp_path / "bundled"), "BF16", tower_kind="BF16").write(tmp_path / "pair"))
    questions = [([path], "Describe the picture.") for path in sorted(PICTURES.glob("*.png"))[:3]]
    limits = {"min_pixels": 28224, "max_pixels": 112896}  # a pair knows none
    pair, source = (Assistant(one, **limits).ask_many(questions) for one in (folder, demo_folder()))
    assert [one.text for one in pair] == [one.text for one in source]
    assert all(len(one.text) > 10 for one in pair)


def published_layout(folder: Path) -> Path:
    """The bundled checkpoint with the names of tensors that the published ones have."""
    save_model(load_model(demo_folder()), folder, layout="original")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder() / name, folder)
    return folder
