"""The doctor on weights and on what computes: every planted fault is found and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_cases import (
    BLOCK,
    LAYER,
    assert_fault,
    copy_of_the_model,
    edit_json,
    edit_weights,
    exchange,
    finding,
    findings,
    named,
)
from tiny import VISION
from torch import Tensor

from qwenvl.checkpoint import save_model
from qwenvl.checkpoint.hub import demo_folder
from qwenvl.config import config_from_dict
from qwenvl.doctor import CHECKS, Case, examine
from qwenvl.doctor import golden as golden_file
from qwenvl.doctor.positions import expected
from qwenvl.model.qwen_vl import Qwen2VLForConditionalGeneration

DEMO = demo_folder()
AGREEMENT = ("batch", "chunks", "cache", "back ends", "kernels")

pytestmark = pytest.mark.skipif(
    not (DEMO / "model.safetensors").is_file(), reason="this checkout has no bundled checkpoint"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_of_the_model(tmp_path / "model")


def test_the_bundled_model_is_healthy() -> None:
    names = [check.name for check in CHECKS if check.name != "speed"]
    report = examine(Case(DEMO), names)
    assert report.of("fault") == report.of("warning") == []
    skipped = {one.check for one in report.of("skipped")}
    assert skipped <= {"index", "kernels"}  # one file; machines without native code
    assert report.verdict == "ok"


def test_not_a_number_in_one_weight(folder: Path) -> None:
    name = named(folder, "layers.3.mlp.up_proj.weight")
    edit_weights(folder, lambda tensors: tensors[name][7].fill_(float("nan")))
    found = findings(folder, ("values", "finite", "float16", "batch", "cache", "golden"), golden=golden_file.shipped())
    assert_fault(found["values"], f"{LAYER}.3.mlp.up_proj.weight", "model.safetensors")
    assert_fault(found["finite"], f"{LAYER}.3.mlp")
    assert found["float16"].verdict == "skipped"
    assert_fault(found["golden"])


def test_infinity_in_one_weight(folder: Path) -> None:
    name = named(folder, "blocks.1.norm1.weight")
    edit_weights(folder, lambda tensors: tensors[name][3].fill_(float("inf")))
    assert_fault(finding(folder, "values"), f"{BLOCK}.1.norm1.weight")


@pytest.mark.parametrize("ending", ["layers.1.self_attn.q_proj.bias", "blocks.2.attn.qkv.bias"])
def test_a_bias_that_was_dropped(folder: Path, ending: str) -> None:
    name = named(folder, ending)
    edit_weights(folder, lambda tensors: tensors[name].zero_())
    found = findings(folder, ("values", "loading"))
    assert_fault(found["values"], ending, "all zeros")
    assert found["loading"].verdict == "ok"


def test_weights_of_zeros_holes_and_copies(folder: Path) -> None:
    zero, hole, copy, constant = (
        named(folder, f"layers.{i}.mlp.{part}.weight")
        for i, part in ((0, "up_proj"), (1, "up_proj"), (2, "up_proj"), (3, "gate_proj"))
    )

    def damage(tensors: dict[str, Tensor]) -> None:
        tensors[zero].zero_()
        tensors[hole][100:140] = 0
        tensors[copy].copy_(tensors[named(DEMO, "layers.4.mlp.up_proj.weight")])
        tensors[constant].fill_(0.5)

    edit_weights(folder, damage)
    found = finding(folder, "values")
    assert_fault(found, "all zeros", f"{LAYER}.1.mlp.up_proj.weight (40 of 512 rows", "one value only")
    assert f"{LAYER}.2.mlp.up_proj.weight and {LAYER}.4.mlp.up_proj.weight hold the same" in found.found


def test_float16_overflows_in_a_named_block(folder: Path) -> None:
    name = named(folder, "blocks.2.mlp.down_proj.weight")
    edit_weights(folder, lambda tensors: tensors[name].mul_(2000))
    found = findings(folder, ("values", "scales", "finite", "float16"))
    assert found["float16"].verdict == "warning"
    assert f"the first {BLOCK}.2.mlp" in found["float16"].found
    assert found["finite"].verdict == found["values"].verdict == "ok"
    assert_fault(found["scales"], f"{BLOCK}.2.mlp.down_proj.weight", "larger")
    assert_fault(finding(folder, "finite", dtype="float16"), f"{BLOCK}.2.mlp.down_proj", "float16")


def test_weights_of_another_layer(folder: Path) -> None:
    left, right = (named(folder, f"layers.{i}.mlp.up_proj.weight").removesuffix("mlp.up_proj.weight") for i in (1, 2))
    edit_weights(folder, lambda tensors: exchange(tensors, left, right))
    found = findings(folder, ("values", "scales", "loading", "finite", "golden"), golden=golden_file.shipped())
    assert_fault(found.pop("golden"), "logits are", "golden.json")
    assert {one.verdict for one in found.values()} == {"ok"}


def test_a_head_that_is_not_the_embedding(folder: Path) -> None:
    table = named(folder, "embed_tokens.weight")
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[table].clone()}))
    assert finding(folder, "tied head").verdict == "ok"
    edit_weights(folder, lambda tensors: tensors["lm_head.weight"].mul_(2))
    assert_fault(finding(folder, "tied head"), "lm_head.weight")


def test_positions_by_hand() -> None:
    assert expected([1, ((1, 1, 2), 0.0), 1]) == [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]
    # 3 steps of 1.5 positions: times 0, 1, 3; the text goes on behind the largest of all three rows
    assert expected([((3, 1, 1), 1.5), 1]) == [[0, 1, 3, 4], [0, 0, 0, 4], [0, 0, 0, 4]]


def test_seconds_that_are_cast_to_whole_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl.model import rope

    right = rope._grid_positions
    monkeypatch.setattr(rope, "_grid_positions", lambda grid, merge, step: right(grid, merge, float(int(step / 2) * 2)))
    assert_fault(finding(folder, "time ids"), "mrope_positions", "time of token")


def test_text_that_goes_on_within_a_video(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl.engine import request

    right = request.mrope_positions

    def early(*arguments: Any) -> tuple[Tensor, int]:
        positions, delta = right(*arguments)
        positions[:, -2:] -= 30
        return positions, delta - 30

    monkeypatch.setattr(request, "mrope_positions", early)
    found = finding(folder, "time ids")
    assert_fault(found, "the engine")
    assert "mrope_positions" not in found.found


def test_a_processor_that_says_other_seconds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl.processing.video_processor import Qwen2VLVideoProcessor

    right = Qwen2VLVideoProcessor.batch

    def whole(self: Any, *arguments: Any, **named: Any) -> Any:
        made = right(self, *arguments, **named)
        made["second_per_grid_ts"] = [float(int(s)) for s in made["second_per_grid_ts"]]
        return made

    monkeypatch.setattr(Qwen2VLVideoProcessor, "batch", whole)
    assert_fault(finding(folder, "seconds"), "at 4 frames a second", "0 s")


@pytest.mark.parametrize("ignored", ["causal", "mask"])
def test_a_back_end_that_ignores_who_may_be_seen(monkeypatch: pytest.MonkeyPatch, ignored: str) -> None:
    from qwenvl.model import backends

    right = backends.sdpa

    def blind(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
        return right(q, k, v, causal and ignored != "causal", None if ignored == "mask" else mask)

    monkeypatch.setattr(backends, "sdpa", blind)
    assert_fault(finding(DEMO, "back ends"), "sdpa", "prompts" if ignored == "causal" else "decode steps")


def test_padding_that_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl.model import padding

    monkeypatch.setattr(padding, "_new_part", lambda mask, shape, seen: torch.ones(shape, dtype=torch.bool))
    found = finding(DEMO, "batch")
    assert_fault(found, "prompt 2, padded on the left")
    assert "on the right" not in found.found  # what comes behind is never seen


def test_an_answer_that_depends_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from qwenvl.model import text

    right = text.plan
    monkeypatch.setattr(text, "plan", lambda *a, **b: replace(right(*a, **b), decode_mask=None))
    assert_fault(finding(DEMO, "batch", dtype="float32"), "among others")


def test_chunks_at_wrong_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl.engine import runner

    right = runner._positions

    def restart(chunks: Any) -> Tensor:
        found = right(chunks)
        part = chunks[0].start > 0 and chunks[0].stop < len(chunks[0].request.prompt_ids)
        return found - found.min() if part else found

    monkeypatch.setattr(runner, "_positions", restart)
    found = findings(DEMO, ("chunks", "cache"))
    assert_fault(found["chunks"], "in chunks of 13")
    assert found["cache"].verdict == "ok"


def test_answers_that_forget_the_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl.engine import runner

    right = runner._positions

    def plain(chunks: Any) -> Tensor:
        if chunks[0].start < len(chunks[0].request.prompt_ids):
            return right(chunks)
        return torch.tensor([chunk.start for chunk in chunks]).expand(3, -1)

    monkeypatch.setattr(runner, "_positions", plain)
    found = finding(DEMO, "cache")
    assert_fault(found, "prompt 0, the engine")
    assert "past_key_values" not in found.found


def test_native_code_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl.kernels.native import reason
    from qwenvl.model import attention

    if reason():
        pytest.skip(reason())
    right = attention.native.attention
    monkeypatch.setattr(attention.native, "attention", lambda *a, **b: right(*a, **b) * 1.5)
    assert_fault(finding(DEMO, "kernels"), "a prompt")


def test_golden_answers_are_those_of_the_bundled_model() -> None:
    known = golden_file.read(golden_file.shipped())
    assert known.hashes == {"model.safetensors": golden_file.file_hash(DEMO / "model.safetensors")}, (
        "the model has changed: qwenvl doctor demo --dtype float32 --write-golden src/qwenvl/doctor/golden.json"
    )
    found = finding(DEMO, "golden", dtype="float32")
    assert found.verdict == "ok"
    assert "19 places" in found.found


def test_golden_answers_are_written_and_compared(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    golden_file.write(Case(folder, quantize="int8"), path)
    data = json.loads(path.read_text())
    assert (data["kind"], len(data["answer"]), len(data["places"][0]["ids"])) == ("int8", 8, 20)
    assert finding(folder, "golden", golden=path).verdict == "ok"
    edit_json(path, prompt=data["prompt"][:-1])
    assert_fault(finding(folder, "golden", golden=path), "another one")
    edit_json(path, format=2)
    assert_fault(finding(folder, "golden", golden=path), "format 2")
    found = finding(folder, "golden")
    assert (found.verdict, found.found[:9]) == ("skipped", "not known")


def test_speed_is_told_as_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl.bench import limits
    from qwenvl.doctor import speed

    for name, value in (("SIDE", 128), ("BYTES", 2**20), ("ROUNDS", 1)):
        monkeypatch.setattr(limits, name, value)
    found = finding(DEMO, "speed")
    assert found.verdict == "ok"
    assert "% of" in found.found
    monkeypatch.setattr(speed, "LARGE", 0)
    monkeypatch.setattr(speed, "SLOW", 1e9)
    assert finding(DEMO, "speed").verdict == "warning"


def test_a_check_that_breaks_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenvl.doctor.headers.read_header", lambda path: 1 / 0)
    assert_fault(finding(folder, "values"), "ZeroDivisionError")
    with pytest.raises(ValueError, match="no such check"):
        examine(Case(folder), ["nonsense"])


def test_quick_leaves_out_what_is_long() -> None:
    report = examine(Case(DEMO, quick=True))
    assert {one.check for one in report.of("skipped")} - {"index"} == {check.name for check in CHECKS if check.long}
    assert {one.check for one in report.of("ok")} >= {"loading", "finite", "golden", "time ids"}


def test_a_model_of_the_other_family_is_healthy(folder: Path) -> None:
    torch.manual_seed(0)
    data = json.loads((folder / "config.json").read_text())
    data |= {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"], "hidden_size": 48,
             "intermediate_size": 80, "num_hidden_layers": 3, "torch_dtype": "float32",
             "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]},
             "vision_config": {**VISION["qwen2_vl"], "model_type": "qwen2_vl"}}  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config_from_dict(data))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.02)
    save_model(model, folder)
    found = findings(folder, [check.name for check in CHECKS if check.name != "speed"])
    assert [one for one in found.values() if one.verdict in ("fault", "warning")] == []
    assert "frame numbers" in found["time ids"].found
