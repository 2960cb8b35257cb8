"""Checkpoints: what is saved loads, in both key layouts and between us and transformers; what does not fit is one
error that lists it; memory stays near the size of the weights; names of models are folders, ids or errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import QUIET_ENVIRONMENT, FakeHub
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qwenvl.checkpoint import CheckpointError, load_model, resolve, save_model
from qwenvl.checkpoint.names import file_key, module_name
from qwenvl.config import config_from_dict
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

FAMILIES = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen2_vl": Qwen2VLForConditionalGeneration}


def values(family: str = "qwen2_5_vl", tied: bool = True, **changes: Any) -> dict[str, Any]:
    text = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2}
    if family == "qwen2_5_vl":
        vision |= {"hidden_size": 32, "intermediate_size": 44, "out_hidden_size": 48, "fullatt_block_indexes": [1]}
    else:
        vision |= {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
    rope = {"rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}}
    top = {"model_type": family, "tie_word_embeddings": tied, "vision_config": vision}
    return {**text, **rope, **top, **changes}


def build(family: str = "qwen2_5_vl", tied: bool = True, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    torch.manual_seed(3)
    model = FAMILIES[family](config_from_dict(values(family, tied, **changes)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.to(dtype)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied checkpoint in float32 in four shards."""
    folder = tmp_path_factory.mktemp("saved")
    save_model(build(), folder, max_shard_size=90_000)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """`saved`, to be damaged."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def same(left: Any, right: Any) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.feature(17)
@pytest.mark.parametrize("layout", ["modules", "original"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_model_loads_equal(family: str, tied: bool, layout: Any, tmp_path: Path) -> None:
    model = build(family, tied)
    model.generation_config = {"eos_token_id": [2, 3], "temperature": 1e-6}
    save_model(model, tmp_path, layout=layout)
    again = load_model(tmp_path)
    assert same(again, model)
    assert type(again) is FAMILIES[family]
    assert not again.training
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert again.generation_config == model.generation_config
    assert again.config == model.config.replace(dtype="float32")
    assert (again.lm_head.weight is again.model.language_model.embed_tokens.weight) == tied
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        keys = set(file.keys())
        assert file.metadata() == {"format": "pt"}
    assert ("lm_head.weight" in keys) == (not tied)
    assert ("visual.merger.ln_q.weight" in keys) == (layout == "original")
    assert {file_key(name, layout) for name in model.state_dict()} - {"lm_head.weight"} == keys - {"lm_head.weight"}


@pytest.mark.feature(1, 2)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_saves_we_load_and_back(family: str, tied: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    name = FAMILIES[family].__name__
    config = getattr(transformers, name.replace("ForConditionalGeneration", "Config"))(**values(family, tied))
    torch.manual_seed(0)
    oracle = getattr(transformers, name)(config)
    oracle.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    ours = load_model(tmp_path / "theirs")
    assert same(ours, oracle)
    for layout in ("modules", "original"):
        ours.save_pretrained(tmp_path / layout, layout=layout, max_shard_size="60KB")
        again, report = getattr(transformers, name).from_pretrained(tmp_path / layout, output_loading_info=True)
        assert same(again, oracle)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert not report["mismatched_keys"]


def test_shards_index_and_stale_files(saved: Path, tmp_path: Path) -> None:
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    names = sorted(path.name for path in saved.glob("*.safetensors"))
    assert names == [f"model-{i:05d}-of-{len(names):05d}.safetensors" for i in range(1, len(names) + 1)]
    assert len(names) > 3
    assert sorted(set(index["weight_map"].values())) == names
    model = load_model(saved)
    assert set(index["weight_map"]) == set(model.state_dict()) - {"lm_head.weight"}
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    for key, name in index["weight_map"].items():
        with safe_open(saved / name, "pt") as file:
            assert key in set(file.keys())
    assert same(model, build())
    save_model(model, tmp_path, max_shard_size="0.1MB")
    save_model(load_model(tmp_path), tmp_path)  # over the files it is mapped from
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert same(load_model(tmp_path), model)
    save_model(model, tmp_path, max_shard_size=90_000)
    assert not (tmp_path / "model.safetensors").exists()
    assert same(load_model(tmp_path), model)


@pytest.mark.parametrize("size", [0, -1, "5 apples", "GB", True, "0KB"])
def test_wrong_shard_size(size: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_shard_size"):
        save_model(build(), tmp_path / "new", max_shard_size=size)
    assert not (tmp_path / "new").exists()


def test_wrong_layout_and_empty_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout='old'"):
        save_model(build(), tmp_path, layout="old")  # type: ignore[arg-type]
    with torch.device("meta"), pytest.raises(ValueError, match="meta device"):
        save_model(build(), tmp_path)


@pytest.mark.feature(4)
def test_dtypes(tmp_path: Path) -> None:
    model = build(dtype=torch.bfloat16)
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    for dtype in ("auto", None, "bfloat16", torch.bfloat16):
        assert same(load_model(tmp_path, dtype=dtype), model)
    for name in ("float32", "float16"):
        found = load_model(tmp_path, dtype=name)
        assert found.config.dtype == name
        assert same(found, build(dtype=torch.bfloat16).to(getattr(torch, name)))
    (tmp_path / "config.json").write_text(json.dumps({**values(), "torch_dtype": None}))
    assert load_model(tmp_path).dtype == torch.bfloat16
    for wrong in ("int8", torch.int8):
        with pytest.raises(ValueError, match="dtype='int8'"):
            load_model(tmp_path, dtype=wrong)


def test_large_tensors_are_copied_in_pieces(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenvl.checkpoint.stored.COPY_BYTES", 1000)
    assert same(load_model(saved, dtype="bfloat16"), build(dtype=torch.bfloat16))


def test_progress_ends_at_the_whole(saved: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = load_model(saved, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (sum(p.nbytes for p in model.parameters()),) * 2


def test_mapped_weights_can_be_trained_without_touching_the_file(copy: Path) -> None:
    model = load_model(copy)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert same(load_model(copy), build())


@pytest.mark.feature(4, 25)
def test_from_pretrained(saved: Path, tmp_path: Path) -> None:
    cls = Qwen2_5_VLForConditionalGeneration
    assert same(cls.from_pretrained(saved), build())
    assert cls.from_pretrained(str(saved), torch_dtype="bfloat16").dtype == torch.bfloat16
    assert cls.from_pretrained(saved, dtype=torch.float16, device_map="cpu").dtype == torch.float16
    assert cls.from_pretrained(saved, dtype="auto", device_map={"": "cpu"}, attn_implementation="eager").config.dtype

    class Own(Qwen2_5_VLForConditionalGeneration):
        pass

    assert type(Own.from_pretrained(saved)) is Own
    for options, message in (
        ({"dtype": "float32", "torch_dtype": "float16"}, "give one"),
        ({"device_map": {"model.visual": "cpu"}}, "no place for"),
        ({"device_map": "warp:9"}, "warp:9"),
        ({"revision": "main"}, "revision"),
    ):
        with pytest.raises(ValueError, match=message):
            cls.from_pretrained(saved, **options)
    with pytest.raises(ValueError, match="not for Qwen2VLForConditionalGeneration"):
        Qwen2VLForConditionalGeneration.from_pretrained(saved)


def test_names_of_every_layout() -> None:
    tower, decoder = "model.visual.blocks.0.norm1.weight", "model.language_model.layers.0.mlp.up_proj.weight"
    for key in (tower, "visual.blocks.0.norm1.weight"):
        assert module_name(key) == tower
    for key in (decoder, "model.layers.0.mlp.up_proj.weight", "language_model.layers.0.mlp.up_proj.weight"):
        assert module_name(key) == decoder
    assert module_name("language_model.model.layers.0.mlp.up_proj.weight") == decoder
    assert module_name("model.norm.weight") == "model.language_model.norm.weight"
    for key in ("lm_head.weight", "language_model.lm_head.weight"):
        assert module_name(key) == "lm_head.weight"
    assert module_name("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert module_name("visual.rotary_pos_emb.inv_freq") is None
    assert module_name("other.weight") == "other.weight"


def test_tied_head_in_the_file_is_accepted_and_computed_tensors_are_skipped(copy: Path) -> None:
    extra = {"lm_head.weight": torch.zeros(64, 48), "model.rotary_emb.inv_freq": torch.zeros(6)}
    save_file(extra, copy / "extra.safetensors")
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    index["weight_map"].update(dict.fromkeys(extra, "extra.safetensors"))
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(load_model(copy), build())


def edit(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def test_all_that_does_not_fit_is_in_one_error(tmp_path: Path) -> None:
    save_model(build(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.visual.merger.ln_q.weight"], tensors["model.language_model.norm.weight"]
    tensors["model.visual.merger.mlp.0.bias"] = torch.zeros(5)
    tensors["surprise.weight"] = torch.zeros(1)
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.language_model.layers.0.mlp.up_proj.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path)
    text = str(error.value)
    assert "2 missing: model.visual.merger.ln_q.weight, model.language_model.norm.weight" in text
    assert "1 unexpected: surprise.weight" in text
    assert "1 misshaped: model.visual.merger.mlp.0.bias [5] for [128]" in text
    assert "1 given twice: model.l" in text
    assert "\n" not in text


def test_long_lists_are_cut(copy: Path) -> None:
    edit(copy, num_hidden_layers=5)
    with pytest.raises(CheckpointError, match=r"36 missing: .* and 16 more") as error:
        load_model(copy)
    assert str(error.value).count("model.language_model.layers.") == 20
    edit(copy, num_hidden_layers=2, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"1 missing: lm_head\.weight"):
        load_model(copy)


def test_missing_shards_are_named(copy: Path) -> None:
    names = sorted(path.name for path in copy.glob("*.safetensors"))
    for name in names[1:3]:
        (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {names[1]}, {names[2]}, 2 of the {len(names)} files"):
        load_model(copy)


def test_damaged_files_are_named(copy: Path) -> None:
    path = sorted(copy.glob("*.safetensors"))[1]
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole[:20], b"", b"version https://git-lfs.github.com/spec/v1\n", b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{path.name} is damaged"):
            load_model(copy)
    path.write_bytes(whole)
    index = copy / "model.safetensors.index.json"
    for text, message in (("{", "cannot be read"), ("[]", "holds a list"), ("{}", "no weight_map")):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            load_model(copy)


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values()))
    with pytest.raises(CheckpointError, match="no weights"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"\.bin files are not read"):
        load_model(tmp_path)
    save_file({"a": torch.zeros(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not supported: a \(I8\)"):
        load_model(tmp_path)


def test_configs_that_cannot_run(copy: Path) -> None:
    edit(copy, quantization_config={"quant_method": "eetq"})
    with pytest.raises(CheckpointError, match=r"quantized by 'eetq'"):
        load_model(copy)
    vision = {**values()["vision_config"], "out_hidden_size": 64}
    edit(copy, quantization_config=None, vision_config=vision)
    with pytest.raises(CheckpointError, match="width 64"):
        load_model(copy)


def test_repack_without_index_loads(copy: Path) -> None:
    (copy / "model.safetensors.index.json").unlink()
    assert same(load_model(copy), build())


MEASURE = """
import sys, torch
from qwenvl.checkpoint import load_model
def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
load_model(sys.argv[1], dtype="float16")
before = status("VmRSS")
model = load_model(sys.argv[2], dtype=sys.argv[3])
for parameter in model.parameters():
    parameter.detach().view(torch.int16 if parameter.element_size() == 2 else torch.int32).max()
print(status("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_peak_memory_is_near_the_weights(saved: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 1024, "vocab_size": 24000, "intermediate_size": 4096, "num_attention_heads": 16}
    section = {"rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}, "num_hidden_layers": 3}
    vision = {**values()["vision_config"], "out_hidden_size": 1024}
    config = config_from_dict(values(**sizes, **section, vision_config=vision, dtype="bfloat16"))
    torch.set_default_dtype(torch.bfloat16)
    try:
        save_model(Qwen2_5_VLForConditionalGeneration(config), tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    for dtype, least in (("bfloat16", 120e6), ("float32", 240e6)):
        command = [sys.executable, "-c", MEASURE, str(saved), str(tmp_path), dtype]
        out = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        peak, weights = map(int, out.stdout.split())
        assert weights > least
        assert peak < 1.15 * weights, f"{dtype}: {peak / weights:.2f} x the weights"


def test_resolve_folders_and_names_that_are_none(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    file = tmp_path / "weights.bin"
    file.write_bytes(b"")
    started = time.monotonic()
    for wrong, message in (
        (file, "is a file"),
        ("no-such-model", "not a folder"),
        (tmp_path / "none", "not a folder"),
        ("./a/b", "not a folder"),
        ("a/b/c", "not a folder"),
        ("a b/c", "not a folder"),
        ("", "not a folder"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            resolve(wrong)
        assert "\n" not in str(error.value)
    assert time.monotonic() - started < 1


def test_the_bundled_model_is_demo_or_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("qwenvl.hub.find.demo_folder", lambda: tmp_path)
    assert resolve("demo") == resolve(None) == tmp_path
    monkeypatch.setattr("qwenvl.hub.find.demo_folder", lambda: tmp_path / "none")
    with pytest.raises(ValueError, match="bundled model"):
        resolve("demo")


RESOLVE = """
import sys
from qwenvl.checkpoint import resolve
assert "torch" not in sys.modules
try:
    print(resolve(sys.argv[1], local_files_only=len(sys.argv) > 2))
except ValueError as error:
    print("refused:", error)
"""


@pytest.fixture
def hub(saved: Path) -> Iterator[str]:
    with FakeHub({path.name: path.read_bytes() for path in saved.iterdir()} | {"notes.md": b"not wanted"}) as server:
        yield server.url


def fetch(name: str, endpoint: str, home: Path, *more: str) -> str:
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **QUIET_ENVIRONMENT}
    env = {key: value for key, value in env.items() if key not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    command = [sys.executable, "-c", RESOLVE, name, *more]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.feature(4, 6)
def test_a_hub_model_is_fetched_once_and_loads(hub: str, tmp_path: Path) -> None:
    folder = Path(fetch("owner/tiny", hub, tmp_path))
    assert same(load_model(folder), build())
    assert not (folder / "notes.md").exists()
    assert Path(fetch("owner/tiny", hub, tmp_path, "local")) == folder
    assert Path(fetch("owner/tiny", "http://127.0.0.1:9", tmp_path)) == folder  # the hub is away, the cache is here


def test_unknown_hub_names_are_refused_in_one_line(hub: str, tmp_path: Path) -> None:
    for endpoint in (hub, "http://127.0.0.1:9"):
        started = time.monotonic()
        said = fetch("owner/none", endpoint, tmp_path)
        assert time.monotonic() - started < 5
        assert said.startswith("refused: 'owner/none' ")
        assert endpoint in said
        assert ("could not be found" if endpoint == hub else "no connection") in said
        assert "\n" not in said
