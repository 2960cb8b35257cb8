"""The doctor on files: every planted fault is found, by the check that is made for it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from doctor_cases import as_shards, assert_fault, copy_of_the_model, edit_json, edit_weights, finding, findings, named

from qwenvl.checkpoint.hub import demo_folder
from qwenvl.doctor.golden import shipped
from qwenvl.doctor.headers import INDEX, SINGLE, read_header
from qwenvl.processing.chat_template import BUILT_IN

FILES = ("files", "sizes", "index", "hashes", "configuration", "generation")
SETTINGS = ("special ids", "chat template", "control tokens", "preprocessor", "pixels", "boxes", "time ids", "seconds")

pytestmark = pytest.mark.skipif(
    not (demo_folder() / SINGLE).is_file(), reason="this checkout has no bundled checkpoint"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_of_the_model(tmp_path / "model")


def flip(path: Path, place: int) -> None:
    """Turn one bit of a file over."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def test_a_healthy_copy_has_no_fault_in_its_files(folder: Path) -> None:
    as_shards(folder)
    found = findings(folder, (*FILES, *SETTINGS))
    assert [one for one in found.values() if one.verdict in ("warning", "fault")] == []
    assert found["index"].found.startswith("128 tensors in 3 shards")
    assert [name for name, one in found.items() if one.verdict == "skipped"] == ["hashes"]


def test_shards_that_changed_places(folder: Path) -> None:
    first, second, _ = as_shards(folder)
    first.rename(folder / "waiting")
    second.rename(first)
    (folder / "waiting").rename(second)
    assert_fault(finding(folder, "index"), "in another shard", "of 128 tensors")
    assert finding(folder, "sizes").verdict == "ok"


def test_a_shard_that_is_cut_short(folder: Path) -> None:
    path = as_shards(folder)[1]
    size = path.stat().st_size
    os.truncate(path, size - 1000)
    found = findings(folder, ("sizes", "values", "loading", "finite", "cache"))
    assert_fault(found["sizes"], path.name, "cut short", f"{size - 1000:,}", f"{size:,}")
    assert_fault(found["loading"], path.name)
    assert [found[name].verdict for name in ("values", "finite", "cache")] == ["skipped"] * 3
    assert "could not be loaded" in found["finite"].found


def test_a_shard_that_is_missing_or_too_many(folder: Path) -> None:
    paths = as_shards(folder)
    shutil.copy(paths[0], folder / "model-00004-of-00004.safetensors")
    assert finding(folder, "files").verdict == "warning"
    paths[2].unlink()
    assert_fault(finding(folder, "files"), paths[2].name, "1 of 3 shards")


def test_an_index_that_names_other_tensors(folder: Path) -> None:
    as_shards(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.nothing.weight"] = index["weight_map"].pop(sorted(index["weight_map"])[0])
    (folder / INDEX).write_text(json.dumps(index))
    assert_fault(finding(folder, "index"), "model.nothing.weight", "in no shard", "not named there")
    (folder / INDEX).write_text("[]")
    assert_fault(finding(folder, "index"), "weight_map")


@pytest.mark.parametrize("name", ["config.json", SINGLE, "tokenizer.json"])
def test_a_file_that_nothing_works_without(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert finding(folder, "files").verdict == "fault"


def test_a_flipped_byte_in_a_file_with_a_known_hash(folder: Path) -> None:
    assert finding(folder, "hashes", golden=shipped()).verdict == "ok"
    flip(folder / SINGLE, 4_000_000)
    assert_fault(finding(folder, "hashes", golden=shipped()), SINGLE, "golden.json")
    assert finding(folder, "sizes").verdict == "ok"


def test_a_flipped_byte_in_what_was_fetched(tmp_path: Path) -> None:
    cached = tmp_path / "models--owner--name"
    blobs, snapshot = cached / "blobs", cached / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in copy_of_the_model(tmp_path / "model").iterdir():
        content = path.read_bytes()
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        (snapshot / path.name).symlink_to(blobs / name)
    assert finding(snapshot, "hashes").verdict == "ok"
    flip((snapshot / SINGLE).resolve(), 5_000_000)
    assert_fault(finding(snapshot, "hashes"), SINGLE)


def test_a_folder_of_unknown_origin_has_no_known_hashes(folder: Path) -> None:
    found = finding(folder, "hashes")
    assert found.verdict == "skipped"
    assert "no hashes are known" in found.found


def test_headers_that_contradict_themselves(folder: Path) -> None:
    path = folder / SINGLE
    assert read_header(path).size == read_header(path).expected == path.stat().st_size
    content = path.read_bytes()
    path.write_bytes(content + b"0000")
    assert_fault(finding(folder, "sizes"), "too long")
    path.write_bytes(content.replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1))
    assert_fault(finding(folder, "sizes"), "overlap or leave gaps")
    path.write_bytes(content[:100])
    assert_fault(finding(folder, "sizes"), "cut within its header")


def test_what_config_json_leaves_out(folder: Path) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    full = dict(data["vision_config"])
    edit_json(path, vision_config={k: v for k, v in full.items() if k not in ("window_size", "hidden_act")})
    found = finding(folder, "configuration")
    assert found.verdict == "ok"
    assert "hidden_act=silu, window_size=112" in found.found
    edit_json(path, vision_config={k: v for k, v in full.items() if k != "tokens_per_second"})
    assert "tokens_per_second=4" in finding(folder, "configuration").found
    edit_json(path, vision_config={k: v for k, v in full.items() if k != "hidden_size"})
    assert_fault(finding(folder, "configuration"), "3584", "1280")
    path.write_text("{")
    found = findings(folder, ("configuration", "generation", "special ids"))
    assert found["configuration"].verdict == "skipped"
    assert "not valid JSON" in found["configuration"].found
    assert finding(folder, "loading").verdict == "fault"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"eos_token_id": 938}, "940"),
        ({"eos_token_id": [940, 99999]}, "99999"),
        ({"top_p": 3.0}, "top_p=3.0"),
        ({"penalty_alpha": 0.6}, "penalty_alpha=0.6"),
    ],
)
def test_a_generation_config_that_makes_no_sense(folder: Path, change: dict[str, object], word: str) -> None:
    edit_json(folder / "generation_config.json", **change)
    assert_fault(finding(folder, "generation"), word)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"image_token_id": 951}, ("image_token_id is 951", "950", "<|image_pad|>")),
        ("config.json", {"eos_token_id": 3}, ("config.json: eos_token_id is 3", "940")),
        ("generation_config.json", {"pad_token_id": 12}, ("generation_config.json: pad_token_id is 12", "938")),
        ("config.json", {"vocab_size": 900}, ("up to 959", "900 rows")),
        ("tokenizer_config.json", {"eos_token": "<|box_end|>"}, ("eos_token is <|box_end|>",)),
    ],
)
def test_special_ids_that_disagree(folder: Path, file: str, change: dict[str, object], words: tuple[str, ...]) -> None:
    edit_json(folder / file, **change)
    assert_fault(finding(folder, "special ids"), *words)


def test_tokenizer_files_of_two_checkpoints(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    added = json.loads(path.read_text())["added_tokens_decoder"]
    edit_json(path, added_tokens_decoder={**added, "950": added["951"], "951": added["950"]})
    assert_fault(finding(folder, "special ids"), "not of one checkpoint")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>", ("a picture", "<|vision_start|>")),
        ("{%- endfor -%}", "", ("not valid",)),
        ("{{ '<|im_end|>\\n' }}", "{{ '<|im_end|>' }}", ("is written",)),
        ("<|im_start|>assistant\\n", "<|im_start|>bot\\n", ("assistant",)),
        ("item.type == 'video'", "item.kind.name == 'video'", ("cannot render",)),
    ],
)
def test_a_chat_template_that_is_broken(folder: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    assert old in BUILT_IN
    edit_json(folder / "chat_template.json", chat_template=BUILT_IN.replace(old, new))
    assert_fault(finding(folder, "chat template"), *words)


def test_a_template_with_a_system_prompt_of_its_own_is_fine(folder: Path) -> None:
    text = BUILT_IN.replace("You are a helpful assistant.", "Think step by step.")
    edit_json(folder / "chat_template.json", chat_template=text)
    found = finding(folder, "chat template")
    assert found.verdict == "ok"
    assert "Think step by step." in found.found


def test_control_tokens_that_users_can_type(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl.processing.guard import Guard

    monkeypatch.setattr(Guard, "render", lambda self, template, messages, tools: [(template(messages, tools), True)])
    assert_fault(finding(folder, "control tokens"), "<|image_pad|>")


@pytest.mark.parametrize(
    ("change", "checks", "words"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, ("preprocessor", "pixels"), "0.5"),
        ({"image_std": [0.2, 0.3, 0.3]}, ("preprocessor", "pixels"), "0."),
        ({"patch_size": 16}, ("preprocessor", "pixels"), "16"),
        ({"merge_size": 4}, ("preprocessor",), "merge_size is 4"),
        ({"rescale_factor": 1 / 127.5}, ("preprocessor", "pixels"), "off by"),
        ({"do_normalize": False}, ("preprocessor", "pixels"), "off by"),
    ],
)
def test_wrong_preprocessing_constants(
    folder: Path, change: dict[str, object], checks: tuple[str, ...], words: str
) -> None:
    edit_json(folder / "preprocessor_config.json", **change)
    found = findings(folder, checks)
    assert [one.verdict for one in found.values()] == ["fault"] * len(checks)
    assert words in " ".join(one.found for one in found.values())


def test_limits_that_contradict_each_other(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", size={"shortest_edge": 28224, "longest_edge": 5000000})
    found = finding(folder, "preprocessor")
    assert found.verdict == "warning"
    assert "112,896" in found.found


def test_a_bias_that_is_missing(folder: Path) -> None:
    name = named(folder, "layers.2.self_attn.k_proj.bias")
    edit_weights(folder, lambda tensors: tensors.__delitem__(name))
    assert_fault(finding(folder, "loading"), "1 missing", "layers.2.self_attn.k_proj.bias")


def test_a_tensor_of_another_shape(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=500)
    assert_fault(finding(folder, "loading"), "misshaped", "500")


def test_boxes_and_sizes_by_a_wrong_rule(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl.processing.pixels import PixelSettings
    from qwenvl.tasks import answers

    monkeypatch.setattr(PixelSettings, "target_size", lambda self, height, width, *limits: (height // 28 * 28 + 28, 56))
    assert_fault(finding(folder, "pixels"), "by the rule")
    monkeypatch.undo()
    right = answers.make_place

    def wrong(label: str, values: Any, size: Any, *rest: Any) -> Any:
        return right(label, values, type(size)(*[size.resized_width] * 4), *rest)

    monkeypatch.setattr(answers, "make_place", wrong)
    assert_fault(finding(folder, "boxes"), "expected")
