"""Packed weights in files: what is written loads again without packing, the same to the last bit; a folder is whole or
not there; what does not fit is said."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny import FAMILIES, padded_batch, tiny_model

from qwenvl.checkpoint import CheckpointError, load_model, packed, quantize_folder
from qwenvl.checkpoint.formats import stored_tensors
from qwenvl.checkpoint.packed import ALIGNMENT, Form, describe, forms_in
from qwenvl.checkpoint.quantize_folder import MARK, Source, check_target, open_source
from qwenvl.kernels.quantized import PackedWeight
from qwenvl.quantization import INT4, INT8, QuantizedLinear, QuantizeOptions, Scheme, options_of

OPTIONS = QuantizeOptions(Scheme("int4", 32), INT8, Scheme("int4", 32))


def packed_of(model: Any) -> dict[str, PackedWeight]:
    return {name: part.packed for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        inputs = padded_batch()
        return model(**{**inputs, "pixel_values": inputs["pixel_values"].to(model.dtype)}).logits


def same(a: Any, b: Any) -> None:
    """Two models with the same packed and plain weights, to the last bit."""
    first, second = packed_of(a), packed_of(b)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        other = second[name]
        assert (weight.kind, weight.group, weight.exponent) == (other.kind, other.group, other.exponent)
        for leaf in packed.LEAVES:
            x, y = getattr(weight, leaf), getattr(other, leaf)
            assert (x is None) == (y is None)
            assert x is None or torch.equal(x, y), (name, leaf)
    for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.equal(x, y), name
    assert torch.equal(logits(a), logits(b))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "plain", max_shard_size="20KB")
    return tmp_path / "plain"


@pytest.mark.feature(4)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", ["modules", "original"])
def test_a_saved_model_loads_as_it_was(family: str, tied: bool, layout: str, tmp_path: Path) -> None:
    tiny_model(family, tie_word_embeddings=tied).to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    model = load_model(tmp_path / "plain", quantize="int4")
    model.save_pretrained(tmp_path / "packed", max_shard_size="20KB", layout=layout)
    again = load_model(tmp_path / "packed")
    same(model, again)
    assert again.quantization.schemes == model.quantization.schemes
    assert again.quantization.bytes_after == model.quantization.bytes_after
    again.save_pretrained(tmp_path / "packed")  # into the files that it is mapped from
    same(model, load_model(tmp_path / "packed"))
    assert not [path for path in (tmp_path / "packed").iterdir() if "-of-" in path.name or path.suffix == ".tmp"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("word", ["int8", "int4"])
def test_a_quantized_folder_is_what_loading_packs(family: str, word: str, tmp_path: Path) -> None:
    tiny_model(family).to(torch.bfloat16).save_pretrained(tmp_path / "plain", max_shard_size="20KB")
    (tmp_path / "plain" / "vocab.txt").write_text("a b")
    (tmp_path / "plain" / "scores.json").write_text("{}")
    told: list[tuple[int, int]] = []
    written = quantize_folder.quantize_folder(
        open_source(tmp_path / "plain", options_of(word)), tmp_path / "out", limit=30_000,
        on_progress=lambda *at: told.append(at),
    )  # fmt: skip
    model = load_model(tmp_path / "out")
    same(load_model(tmp_path / "plain", quantize=word), model)
    assert (tmp_path / "out" / "vocab.txt").read_text() == "a b"
    assert not (tmp_path / "out" / "scores.json").exists()
    assert told[-1] == (written.bytes_after, written.bytes_after)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert written.bytes_after == sum(one.nbytes for one in stored_tensors(tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("plain", "out")] == []


def test_every_source_is_saved(tmp_path: Path) -> None:
    """int8 with zeros of its own, and an order of columns: what other programs' checkpoints have."""
    model = tiny_model().to(torch.bfloat16)
    part = model.text.layers[0].mlp.down_proj
    q = torch.randint(0, 256, (48, 80), dtype=torch.uint8)
    weight = PackedWeight.from_values(
        q, torch.rand(48, 5) + 0.5, torch.rand(48, 5) * 100, kind="int8", group=16, order=torch.randperm(80)
    )
    from qwenvl.quantization import finish, swap

    swap(model, "model.language_model.layers.0.mlp.down_proj", weight, model.dtype)
    finish(model, 1)
    model.save_pretrained(tmp_path)
    same(model, load_model(tmp_path))
    assert part.in_features == 80


def test_packed_tensors_lie_on_whole_cache_lines(plain: Path, tmp_path: Path) -> None:
    quantize_folder.quantize_folder(open_source(plain, OPTIONS), tmp_path / "out")
    for weight in packed_of(load_model(tmp_path / "out")).values():
        assert weight.data.data_ptr() % ALIGNMENT == 0
        assert weight.scales.data_ptr() % ALIGNMENT == 0
    path = tmp_path / "out" / "model.safetensors"
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert (length + 8) % ALIGNMENT == 0
    with safe_open(path, framework="pt") as file:  # the library's own reader takes it
        assert len(list(file.keys())) > 50


def test_equal_layers_take_one_line() -> None:
    forms = {f"model.layers.{i}.q_proj": Form("int4", 32, (64, 48), -16) for i in (0, 1, 2, 3, 5, 7, 8)}
    forms |= {"model.layers.4.q_proj": Form("int8", 128, (64, 48), -16), "lm_head": Form("int4", 32, (64, 48))}
    forms |= {"visual.merger.mlp.0": Form("int8", 128, (64, 48)), "visual.merger.mlp.2": Form("int8", 128, (64, 48))}
    said = describe(forms, {"samples": 3})
    assert [row["names"] for row in said["packed"]] == [
        "model.layers.{0-3,5,7-8}.q_proj", "model.layers.{4}.q_proj", "lm_head", "visual.merger.mlp.0",
        "visual.merger.mlp.2",
    ]  # fmt: skip
    assert forms_in(json.loads(json.dumps(said))) == forms


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said.update(version=2), "version 2, this program reads 1"),
        (lambda said: said["packed"].pop(), "do not name the same packed weights"),
        (lambda said: said["packed"][0].update(names="model.nowhere"), "do not name the same packed weights"),
        (lambda said: said["packed"][0].update(shape=[64, 4800]), "not as config.json says"),
        (lambda said: said["packed"][0].update(kind="int4"), "not as config.json says"),
        (lambda said: said["packed"][0].pop("group"), "quantization_config is damaged"),
        (lambda said: said.update(packed=None), "quantization_config is damaged"),
    ],
)
def test_what_does_not_fit_is_refused(change: Any, message: str, plain: Path, tmp_path: Path) -> None:
    quantize_folder.quantize_folder(open_source(plain, OPTIONS), tmp_path / "out")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    change(values["quantization_config"])
    (tmp_path / "out" / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "out")


def test_sources_that_cannot_be_packed(plain: Path, tmp_path: Path) -> None:
    quantize_folder.quantize_folder(open_source(plain, OPTIONS), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"quantized already \(qwenvl\)"):
        open_source(tmp_path / "out", OPTIONS)
    with pytest.raises(ValueError, match=r"nothing of .* would be packed"):
        open_source(plain, QuantizeOptions(None, None, None))


def test_targets(plain: Path, tmp_path: Path) -> None:
    source, out = open_source(plain, OPTIONS), tmp_path / "out"
    out.mkdir()  # an empty one will do
    quantize_folder.quantize_folder(source, out)
    with pytest.raises(ValueError, match="is there already"):
        check_target(plain, out, force=False)
    (out / "old.txt").touch()
    quantize_folder.quantize_folder(source, out, force=True)
    assert not (out / "old.txt").exists()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").touch()
    with pytest.raises(ValueError, match="is no folder of quantized weights"):
        check_target(plain, tmp_path / "letters", force=True)
    for place in (plain, plain.parent):
        with pytest.raises(ValueError, match="holds the checkpoint that is to be quantized"):
            check_target(plain, place, force=True)
    (tmp_path / "new.part").mkdir()
    with pytest.raises(ValueError, match="not from an interrupted run"):
        check_target(plain, tmp_path / "new", force=False)


def test_an_interrupted_run_leaves_nothing_that_looks_whole(plain: Path, tmp_path: Path) -> None:
    source, out = open_source(plain, OPTIONS), tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_folder.quantize_folder(source, out, limit=30_000, on_progress=stop)
    assert not out.exists()
    part = tmp_path / "out.part"
    assert (part / MARK).exists()
    with pytest.raises(ValueError, match=r"config\.json"):
        load_model(part)
    quantize_folder.quantize_folder(source, out)  # starts over
    assert not part.exists()
    same(load_model(plain, quantize=OPTIONS), load_model(out))


def test_no_room(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"has 0\.00 GB free, the packed weights take"):
        quantize_folder.quantize_folder(open_source(plain, OPTIONS), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]


def test_weights_packed_elsewhere_take_their_places(plain: Path, tmp_path: Path) -> None:
    source = open_source(plain, QuantizeOptions(INT4, tower=INT8, head=INT4))

    def packed_weights() -> Iterator[tuple[str, PackedWeight]]:
        for name in [*(n for n in source.schemes if "language_model" in n), "lm_head"]:
            weight = torch.full(forms_of(source)[name], 0.5 if name == "lm_head" else 0.25)
            yield name, PackedWeight.pack(weight, "int4", 32)

    quantize_folder.quantize_folder(source, tmp_path / "out", calibrated=packed_weights(), calibration={"samples": 1})
    model = load_model(tmp_path / "out")
    for name, weight in packed_of(model).items():
        if "visual" not in name:
            wanted = 0.5 if name == "lm_head" else 0.25
            torch.testing.assert_close(weight.dequantize(), torch.full(weight_shape(weight), wanted), rtol=1e-3, atol=0)
    assert model.config.extra["quantization_config"]["calibration"] == {"samples": 1}


def forms_of(source: Source) -> dict[str, tuple[int, ...]]:
    embedding = "model.language_model.embed_tokens.weight"
    return {name: source.stored.get(f"{name}.weight", source.stored[embedding]).shape for name in source.schemes}


def weight_shape(weight: PackedWeight) -> tuple[int, int]:
    return weight.out_features, weight.in_features
