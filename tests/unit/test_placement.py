"""Where weights go: planning by device_map and max_memory, and models whose weights lie on the disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import padded_batch, tiny_config, tiny_model

from qwenvl.checkpoint import placement
from qwenvl.checkpoint.offload import Keeper
from qwenvl.checkpoint.placement import Placement, plan_placement, spread, tensor_bytes
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration

CPU = torch.device("cpu")
LAYERS = "model.language_model.layers"
pytestmark = pytest.mark.feature(4, 25)


def meta_model(layers: int = 8, **changes: Any) -> Any:
    """Layers of equal size that are large beside the rest, on the meta device."""
    with torch.device("meta"):
        config = tiny_config(num_hidden_layers=layers, intermediate_size=4096, **changes)
        return Qwen2_5_VLForConditionalGeneration(config)


def under(places: dict[str, Any], name: str) -> Any:
    return Placement(places, CPU).place_of(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model in bfloat16."""
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path, **options: Any) -> Any:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, **options)


# --- planning ---


def test_gpus_come_first_then_the_cpu_then_the_disk() -> None:
    model = meta_model()
    sizes = tensor_bytes(model)
    layer = sum(size for name, size in sizes.items() if name.startswith(f"{LAYERS}.0."))
    rest = sum(sizes.values()) - 8 * layer
    most = {0: rest + 4 * layer, 1: 2 * layer + 8, "cpu": 2 * layer + 8}
    places = spread(model, "sequential", most, sizes)
    found = [under(places, f"{LAYERS}.{i}.mlp.up_proj.weight") for i in range(8)]
    assert under(places, "model.visual.patch_embed.proj.weight") == 0
    assert sorted(found, key=[0, 1, "cpu", "disk"].index) == found
    assert {*found} == {0, 1, "cpu", "disk"}
    for device, limit in most.items():
        held = sum(size for name, size in sizes.items() if under(places, name) == device)
        assert held <= limit
    for i in range(8):  # a layer lies in one place
        names = [name for name in sizes if name.startswith(f"{LAYERS}.{i}.")]
        assert len({under(places, name) for name in names}) == 1


@pytest.mark.parametrize("word", ["auto", "balanced"])
def test_gpus_share_evenly(word: str) -> None:
    model = meta_model(12)
    sizes = tensor_bytes(model)
    total = sum(sizes.values())
    places = spread(model, word, {0: total, 1: total, 2: total}, sizes)
    held = [sum(size for name, size in sizes.items() if under(places, name) == gpu) for gpu in range(3)]
    assert min(held) > 0.2 * total


def test_low_zero_keeps_the_first_gpu_free() -> None:
    model = meta_model(12)
    sizes = tensor_bytes(model)
    total = sum(sizes.values())
    places = spread(model, "balanced_low_0", {0: total, 1: total, 2: total}, sizes)
    assert sum(size for name, size in sizes.items() if under(places, name) == 0) < 0.1 * total


def test_packed_weights_count_as_what_they_are() -> None:
    model = meta_model()
    plain = tensor_bytes(model)
    packed = {name: size // 8 for name, size in plain.items() if name.endswith("_proj.weight") and LAYERS in name}
    most = {0: sum(plain.values()) // 4, "cpu": sum(plain.values())}
    before = spread(model, "sequential", most, plain)
    after = spread(model, "sequential", most, tensor_bytes(model, packed))

    def on_gpu(places: dict[str, Any]) -> int:
        return sum(under(places, f"{LAYERS}.{i}.mlp.up_proj.weight") == 0 for i in range(8))

    assert on_gpu(before) < on_gpu(after) == 8


def test_tied_weights_stay_together() -> None:
    model = meta_model(vocab_size=4096, tie_word_embeddings=True)
    sizes = tensor_bytes(model)
    assert "lm_head.weight" not in sizes
    table = sizes["model.language_model.embed_tokens.weight"]
    for share in (2, 3, 4):
        places = spread(model, "sequential", {0: share * table, "cpu": 10 * table}, sizes)
        assert under(places, "lm_head.weight") == under(places, "model.language_model.embed_tokens.weight")


def test_dtype_counts() -> None:
    model = meta_model()
    assert 2 * sum(tensor_bytes(model, None, torch.bfloat16).values()) == sum(tensor_bytes(model).values())


def test_auto_without_a_gpu_goes_by_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = meta_model()
    total = sum(tensor_bytes(model).values())
    monkeypatch.setattr(placement.torch.accelerator, "current_accelerator", lambda check_available=False: None)
    monkeypatch.setattr(placement, "available_memory", lambda: 2 * total)
    assert plan_placement(model, "auto").modules == {"": "cpu"}
    monkeypatch.setattr(placement, "available_memory", lambda: total // 2)
    assert set(plan_placement(model, "auto").modules.values()) == {"cpu", "disk"}
    assert plan_placement(model, "auto", mapped=tensor_bytes(model).keys()).modules == {"": "cpu"}  # needs no memory
    monkeypatch.setattr(placement, "available_memory", lambda: None)  # cannot be found out
    assert plan_placement(model, "auto").modules == {"": "cpu"}


def test_no_accelerate_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    model = meta_model()
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert plan_placement(model, "auto", {"cpu": "1TB"}).modules == {"": "cpu"}  # nothing to plan
    with pytest.raises(ValueError, match=r"pip install 'qwenvl\[train\]'"):
        plan_placement(model, "auto", {"cpu": "1MB"})


@pytest.mark.parametrize("place", ["cpu", None, CPU, {"": "cpu"}, {"": CPU}])
def test_one_place_for_all(place: Any) -> None:
    found = plan_placement(meta_model(), place)
    assert not found.is_spread
    assert found.main == CPU


def test_names_of_older_layouts_are_known() -> None:
    given = {
        "visual": "cpu",
        "model.embed_tokens": "cpu",
        "model.layers": "disk",
        "model.norm": "cpu",
        "lm_head": "cpu",
    }
    found = plan_placement(meta_model(), given)
    assert found.is_disk(f"{LAYERS}.3.mlp.up_proj.weight")
    assert not found.is_disk("model.visual.blocks.0.norm1.weight")


def test_layer_1_is_not_layer_10() -> None:
    found = plan_placement(meta_model(11), {"": "cpu", f"{LAYERS}.1": "disk"})
    assert found.is_disk(f"{LAYERS}.1.input_layernorm.weight")
    assert not found.is_disk(f"{LAYERS}.10.input_layernorm.weight")


@pytest.mark.parametrize(
    ("given", "more", "said"),
    [
        ({"": "cpu", "model.visul": "disk"}, {}, "did you mean model.visual"),
        ({"model.visual": "cpu"}, {}, "no place for model.language_model"),
        ({"": "cuda:7"}, {}, "'cuda:7' cannot be used"),
        ({"": 99}, {}, "99 cannot be used"),
        ({"": "meta"}, {}, "holds no numbers"),
        ({"": "cpu", "lm_head": "disk"}, {}, "they are one tensor"),
        ("everywhere", {}, "'everywhere' cannot be used"),
        ("cpu", {"max_memory": {"cpu": "4GB"}}, "has no effect"),
        ("auto", {"max_memory": {"cpu": "much"}}, "not an amount of memory"),
        ("auto", {"max_memory": {99: "4GB"}}, "99 cannot be used"),
    ],
)
def test_what_cannot_be_is_refused(given: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan_placement(meta_model(tie_word_embeddings=True), given, **more)


# --- models on the disk ---

SPLIT = {"": "cpu", "model.visual": "disk", f"{LAYERS}.1": "disk"}


def answers(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a forward, ids of generate(), which is the engine."""
    batch = {**padded_batch(), "pixel_values": padded_batch()["pixel_values"].to(model.dtype)}
    with torch.no_grad():
        logits = model(**batch).logits
    ids = model.generate(**batch, max_new_tokens=6, do_sample=False)
    return logits, ids


@pytest.mark.parametrize("split", [SPLIT, {"": "disk"}], ids=["some", "all"])
@pytest.mark.parametrize("options", [{}, {"dtype": "float32"}, {"quantize": "int8"}, {"quantize": "int4"}], ids=str)
def test_the_disk_gives_the_same_bits(folder: Path, tmp_path: Path, split: Any, options: Any) -> None:
    whole = load(folder, **options)
    placed = load(folder, device_map=split, offload_folder=tmp_path / "off", **options)
    assert placed.hf_device_map == split
    assert placed.device == CPU
    for one, other in zip(answers(whole), answers(placed), strict=True):
        assert torch.equal(one, other)
    written = sorted(path.name for path in (tmp_path / "off").glob("*"))
    assert bool(written) == bool(options)  # what the checkpoint holds as it is wanted is not written again
    assert all(name.endswith(".bin") for name in written)


def test_auto_with_little_memory_spreads(folder: Path, tmp_path: Path) -> None:
    size = sum(tensor_bytes(load(folder)).values())
    placed = load(folder, device_map="auto", max_memory={"cpu": size // 2}, offload_folder=tmp_path / "off")
    assert "disk" in placed.hf_device_map.values()
    assert torch.equal(answers(placed)[0], answers(load(folder))[0])


def test_the_folder_is_asked_for_before_anything_is_read(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"give offload_folder=\.\.\."):
        load(folder, device_map=SPLIT, dtype="float32")
    load(folder, device_map=SPLIT)


def test_weights_on_the_disk_are_pages_of_files(folder: Path, tmp_path: Path) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    placed = load(folder, device_map=SPLIT, dtype="float32", offload_folder=tmp_path / "off")
    weight = placed.get_submodule(f"{LAYERS}.1").mlp.up_proj.weight
    assert mapped_file(weight).startswith(f"{tmp_path / 'off'}/{LAYERS}.1.mlp.up_proj.weight")
    assert not mapped_file(placed.get_submodule(f"{LAYERS}.0").mlp.up_proj.weight).startswith("/tmp")
    with torch.no_grad():
        weight.zero_()  # private: the file stays as it was
    again = load(folder, dtype="float32").get_submodule(f"{LAYERS}.1").mlp.up_proj.weight
    assert torch.equal(torch.from_file(mapped_file(weight), size=again.numel()), again.flatten())


def mapped_file(x: torch.Tensor) -> str:
    """The file whose pages a tensor lies in, or ""."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= x.data_ptr() < last:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


def test_a_second_load_leaves_the_first_alone(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"device_map": {"": "disk"}, "dtype": "float32", "offload_folder": tmp_path / "off"}
    first = load(folder, **options)
    before = answers(first)[0]
    other = tiny_model(hidden_act="gelu").to(torch.bfloat16)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    other.save_pretrained(tmp_path / "other")
    load(tmp_path / "other", **options)
    assert torch.equal(answers(first)[0], before)


def test_a_folder_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "off").write_text("a file")
    with pytest.raises(ValueError, match="offload_folder"):
        load(folder, device_map=SPLIT, dtype="float32", offload_folder=tmp_path / "off")


def test_a_packed_weight_that_is_mapped_already_is_not_written(tmp_path: Path) -> None:
    from qwenvl.kernels.quantized import PackedWeight

    weight = PackedWeight.pack(torch.randn(64, 64), "int4")
    keeper = Keeper(Placement({"": "disk"}, CPU), tmp_path)
    assert keeper.packed("x.weight", weight, is_mapped=True) is weight
    kept = keeper.packed("x.weight", weight)
    assert kept.data.data_ptr() != weight.data.data_ptr()
    assert torch.equal(kept.dequantize(), weight.dequantize())
