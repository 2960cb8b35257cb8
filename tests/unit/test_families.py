"""The two families as they were published: sizes, classes, grouped heads, and a longer context by its number alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenvl import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
from qwenvl.checkpoint import load_model, save_model
from qwenvl.config import config_from_dict, load_config

CLASSES: dict[str, Any] = {
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen2_vl": Qwen2VLForConditionalGeneration,
}
# hidden, intermediate, layers, heads, key-value heads, tied, vocabulary -> bytes of the published bfloat16 files
PUBLISHED: dict[str, tuple[tuple[Any, ...], int]] = {
    "qwen2_vl 2B": ((1536, 8960, 28, 12, 2, True, 151936), 4417971200),
    "qwen2_vl 7B": ((3584, 18944, 28, 28, 4, False, 152064), 16582751232),
    "qwen2_vl 72B and QvQ-72B-Preview": ((8192, 29568, 80, 64, 8, False, 152064), 146811120640),
    "qwen2_5_vl 3B": ((2048, 11008, 36, 16, 2, True, 151936), 7509245952),
    "qwen2_5_vl 7B": ((3584, 18944, 28, 28, 4, False, 152064), 16584333312),
    "qwen2_5_vl 32B": ((5120, 27648, 64, 40, 8, False, 152064), 66905436672),
    "qwen2_5_vl 72B": ((8192, 29568, 80, 64, 8, False, 152064), 146821554688),
}
FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "tie_word_embeddings", "vocab_size",
)  # fmt: skip


def small(family: str = "qwen2_5_vl", **changes: Any) -> dict[str, Any]:
    """config.json of a small model in the layout of the published files."""
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "in_chans": 3}
    if family == "qwen2_5_vl":
        vision |= {"hidden_size": 32, "intermediate_size": 44, "out_hidden_size": 48, "fullatt_block_indexes": [1]}
    else:
        vision |= {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
    values = {
        "model_type": family, "vocab_size": 64, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rope_theta": 1000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}, "tie_word_embeddings": False,
        "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "image_token_id": 60, "video_token_id": 61,
        "vision_start_token_id": 58, "vision_end_token_id": 59, "torch_dtype": "float32", "vision_config": vision,
    }  # fmt: skip
    return {**values, **changes}


def build(family: str = "qwen2_5_vl", **changes: Any) -> Any:
    torch.manual_seed(0)
    return CLASSES[family](config_from_dict(small(family, **changes))).eval()


@pytest.mark.feature(1, 2, 3)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_to_the_byte(name: str) -> None:
    """The parameters of every published model, built without memory, fill its files exactly."""
    row, size = PUBLISHED[name]
    family = name.split()[0]
    values = dict(zip(FIELDS, row, strict=True))
    vision: dict[str, Any] = {"hidden_size": values["hidden_size"], "embed_dim": 1280}
    if family == "qwen2_5_vl":
        wide = name.endswith(("32B", "72B"))
        vision = {"hidden_size": 1280, "out_hidden_size": values["hidden_size"]}
        vision |= {"intermediate_size": 3456 if wide else 3420, "tokens_per_second": 2}
    with torch.device("meta"):
        model = CLASSES[family](config_from_dict({"model_type": family, **values, "vision_config": vision}))
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) == size


@pytest.mark.feature(3)
def test_qvq_loads_with_the_class_of_its_architecture(tmp_path: Path) -> None:
    """QvQ-72B-Preview says qwen2_vl and Qwen2VLForConditionalGeneration, and holds the published tensor names."""
    save_model(build("qwen2_vl"), tmp_path, layout="original")
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Qwen2VLForConditionalGeneration"]
    model = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path, torch_dtype="auto")
    assert type(load_model(tmp_path)) is Qwen2VLForConditionalGeneration
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape[1] > 2


@pytest.mark.feature(4, 5)
@pytest.mark.parametrize("family", CLASSES)
def test_from_pretrained_takes_both_spellings_of_the_type(family: str, tmp_path: Path) -> None:
    save_model(build(family), tmp_path)
    load = CLASSES[family].from_pretrained
    assert load(tmp_path, torch_dtype="auto", device_map="auto").dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16):
        for option in ("dtype", "torch_dtype"):
            model = load(str(tmp_path), **{option: dtype}, attn_implementation="sdpa")
            assert model.dtype == dtype
            assert type(model) is CLASSES[family]


@pytest.mark.feature(7)
@pytest.mark.parametrize("family", CLASSES)
def test_both_model_types_are_known(family: str, checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_model(build(family), tmp_path)
    assert load_config(tmp_path).model_type == family
    assert type(load_model(tmp_path)) is CLASSES[family]
    name = type(AutoProcessor.from_pretrained(tmp_path)).__name__
    assert name == CLASSES[family].__name__.replace("ForConditionalGeneration", "Processor")


@pytest.mark.feature(7)
def test_another_model_type_is_named_with_what_is_known() -> None:
    with pytest.raises(ValueError, match=r"'llava'.*qwen2_5_vl or qwen2_vl"):
        config_from_dict({"model_type": "llava"})


@pytest.mark.feature(12)
@pytest.mark.parametrize("family", CLASSES)
def test_a_configuration_makes_a_random_model(family: str) -> None:
    config = config_from_dict(small(family))
    torch.manual_seed(0)
    model, other = CLASSES[family](config), CLASSES[family](config)
    assert model.config is config
    own, others = dict(model.named_parameters()), dict(other.named_parameters())
    matrices = [name for name, weight in own.items() if weight.ndim > 1]
    assert len(matrices) > 20
    assert all(not torch.equal(own[name], others[name]) for name in matrices)
    assert all(weight.isfinite().all() for weight in own.values())


@pytest.mark.feature(16)
@pytest.mark.parametrize("heads", [1, 2])
@torch.no_grad()
def test_grouped_heads_are_shared_heads(heads: int) -> None:
    """1 (multi-query) or 2 (grouped-query) key-value heads answer as 4 (multi-head) that repeat them."""
    grouped, full = build(num_key_value_heads=heads), build(num_key_value_heads=4)
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if ".k_proj." in name or ".v_proj." in name:
            assert weight.shape[0] == heads * 12
            weights[name] = weight.unflatten(0, (heads, 12)).repeat_interleave(4 // heads, 0).flatten(0, 1)
    full.load_state_dict(weights)
    ids = torch.tensor([[5, 9, 33, 7, 21, 40]])
    expected = full(ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(grouped(ids).logits, expected)


@pytest.mark.feature(62, 66)
@pytest.mark.parametrize("side", ["left", "right"])
def test_cut_answers_of_a_padded_batch_are_those_alone(side: str) -> None:
    model = build()
    prompts = [[5, 9, 33, 7, 21], [40, 6]]
    options = {"max_new_tokens": 5, "eos_token_id": [63], "pad_token_id": 0}
    rows = [[0] * (5 - len(p)) + p if side == "left" else p + [0] * (5 - len(p)) for p in prompts]
    input_ids = torch.tensor(rows)
    generated_ids = model.generate(input_ids, attention_mask=(input_ids != 0).long(), **options)
    trimmed = [out[len(inp) :].tolist() for inp, out in zip(input_ids, generated_ids, strict=True)]
    for prompt, cut in zip(prompts, trimmed, strict=True):
        alone = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
        assert cut == alone + [0] * (len(cut) - len(alone))


@pytest.mark.feature(77)
def test_a_longer_context_is_a_larger_number(tmp_path: Path) -> None:
    """Only max_position_embeddings changes in config.json: answers stay, and longer prompts work."""
    save_model(build(), tmp_path)
    short = load_model(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 65536}))
    long = load_model(tmp_path)
    assert (short.config.max_position_embeddings, long.config.max_position_embeddings) == (64, 65536)
    ids = torch.randint(3, 50, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(long(ids[:, :60]).logits, short(ids[:, :60]).logits)
        positions = torch.arange(100).expand(3, 1, 100)
        near, far, wide = (long(ids, position_ids=p).logits for p in (positions, positions + 65000, positions * 600))
    assert (far - near).abs().max() < 0.02 * near.abs().max()  # only distances count, however far
    assert (wide - near).abs().max() > 0.2 * near.abs().max()
    assert long.generate(ids, max_new_tokens=3).shape[1] > 100
