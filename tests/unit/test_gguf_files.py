"""GGUF files without their weights: headers, and the configuration of a pair; what is no such file, cut short, of
another model or without its tower is one line that says so."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_writer import FAMILIES, KINDS, Pair, Written, convert, encode, random_blocks, save_checkpoint, write_gguf

from qwenvl.config import load_config
from qwenvl.gguf_folder import Gguf, GgufTensor, pair_of, read_gguf, unfold
from qwenvl.gguf_folder.configs import generation_config, model_config, preprocessor_config

pytestmark = pytest.mark.usefixtures("cache")


# --- headers


def test_a_header_says_what_was_written(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": "qwen2vl", "a.flag": True, "a.number": 7, "a.small": -3, "a.float": 0.5,
        "a.text": "größer 🚀", "a.list": [1, 2, 3], "a.words": ["", "x", "ab c"], "a.floats": [0.25, 4.0],
    }  # fmt: skip
    tensors = {name: random_blocks(name, (3, 512)) for name in KINDS if name not in ("F32", "F16", "BF16")}
    tensors["cube"] = Written("F16", (2, 3, 4), bytes(48))
    for version, alignment in ((2, 32), (3, 32), (3, 64)):
        path = write_gguf(tmp_path / "a.gguf", metadata, tensors, version=version, alignment=alignment)
        found = read_gguf(path)
        assert {key: found.metadata[key] for key in metadata} == metadata
        assert {name: (one.kind, one.shape) for name, one in found.tensors.items()} == {
            name: (one.kind, one.shape) for name, one in tensors.items()
        }
        data = path.read_bytes()
        assert all(data[one.start : one.start + one.nbytes] == tensors[one.name].data for one in found.tensors.values())


def test_the_library_reads_the_same_header(tmp_path: Path, pairs: dict[str, Pair]) -> None:
    gguf = pytest.importorskip("gguf")
    text = pairs["qwen2_vl"].write(tmp_path)
    for path in (text, tmp_path / "mmproj-tiny-f16.gguf"):
        ours, theirs = read_gguf(path), gguf.GGUFReader(path)
        fields = {name: one.contents() for name, one in theirs.fields.items() if not name.startswith("GGUF.")}
        assert fields == ours.metadata
        assert [
            (t.name, tuple(map(int, t.shape[::-1])), t.tensor_type.name, t.data_offset, t.n_bytes)
            for t in theirs.tensors
        ] == [(t.name, t.shape, t.kind, t.start, t.nbytes) for t in ours.tensors.values()]


def test_every_cut_of_a_file_is_told(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "a.gguf", {"k": "v", "n": [1, 2], "w": ["a", "b"]}, {"t": random_blocks("Q4_0", (2, 32))}
    )
    data = path.read_bytes()
    last = len(data) - 28  # padding behind the last tensor may be missing
    for size in range(last):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"a\.gguf"):
            read_gguf(path)
    path.write_bytes(data[:last])
    assert read_gguf(path).tensors["t"].nbytes == 36


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_bytes(b"\x08\x00\x00\x00not a model at all, some text"), "is no GGUF file"),
        (lambda path: path.write_bytes(b""), "is no GGUF file, or empty"),
        (lambda path: write_gguf(path, {"a": 1}, {}, order=">"), "is big endian: convert it"),
        (lambda path: write_gguf(path, {"a": 1}, {}, version=1), "of version 1: expected 2 or 3"),
        (lambda path: write_gguf(path, {"a": 1}, {}, version=9), "of version 9: expected 2 or 3"),
        (lambda path: write_gguf(path, {}, {"t": Written("77", (1, 32), bytes(64))}), "t is of type 77, which is not"),
        (lambda path: write_gguf(path, {}, {"t": Written("31", (1, 32), bytes(64))}), "rearranged for one processor"),
        (lambda path: write_gguf(path, {}, {"t": Written("Q4_0", (2, 33), bytes(64))}), "no blocks of 32"),
        (lambda path: write_gguf(path, {}, {"t": Written("F32", (1, 1, 1, 1, 1), bytes(4))}), "has 5 dimensions"),
        (lambda path: path.unlink(), "cannot be read: No such file"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "a.gguf"
    path.touch()
    change(path)
    with pytest.raises(ValueError, match=said) as told:
        read_gguf(path)
    assert str(path) in str(told.value)


def test_lengths_beyond_the_file_are_damage_and_cost_nothing(tmp_path: Path) -> None:
    huge = struct.pack("<Q", 2**62)
    for tail in (
        huge,  # the length of a key
        struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + struct.pack("<I", 8) + huge,  # a list of texts
        struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + struct.pack("<I", 4) + huge,  # a list of numbers
        struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + struct.pack("<I", 9) + huge,  # a list of lists
    ):
        (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + tail)
        with pytest.raises(ValueError, match="cut short or damaged"):
            read_gguf(tmp_path / "a.gguf")


def test_a_split_model_is_read_whole(tmp_path: Path, pairs: dict[str, Pair]) -> None:
    pair = pairs["qwen2_5_vl"]
    names = list(pair.text_tensors)
    parts = [dict.fromkeys(names[:5]), dict.fromkeys(names[5:9]), dict.fromkeys(names[9:])]
    for number, part in enumerate(parts, 1):
        metadata = {**(pair.text if number == 1 else {}), "split.no": number - 1, "split.count": 3}
        path = tmp_path / f"tiny-Q8_0-{number:05}-of-00003.gguf"
        write_gguf(path, metadata, {name: pair.text_tensors[name] for name in part})
    write_gguf(tmp_path / "mmproj.gguf", pair.tower, pair.tower_tensors)
    folder = unfold(tmp_path / "tiny-Q8_0-00002-of-00003.gguf")  # any part stands for the whole
    assert folder == unfold(tmp_path / "tiny-Q8_0-00001-of-00003.gguf")
    found = pair_of(folder)
    assert found is not None
    assert list(found[0].tensors) == names
    assert [tensor.path.name[10:15] for tensor in found[0].tensors.values()] == ["00001"] * 5 + ["00002"] * 4 + [
        "00003"
    ] * len(parts[2])
    (tmp_path / "tiny-Q8_0-00003-of-00003.gguf").unlink()
    with pytest.raises(ValueError, match=r"one of 3 parts, of which tiny-Q8_0-00003-of-00003\.gguf cannot be found"):
        unfold(tmp_path / "tiny-Q8_0-00001-of-00003.gguf")


# --- configuration


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_is_that_of_the_source(
    family: str, sources: dict[str, Path], pairs: dict[str, Pair], tmp_path: Path
) -> None:
    found = load_config(unfold(pairs[family].write(tmp_path))).to_dict()
    wanted = load_config(sources[family]).to_dict()
    unsaid = {
        "initializer_range",
        "max_window_layers",
        "sliding_window",
        "pad_token_id",
        "torch_dtype",
        "vision_token_id",
    }
    assert {name: value for name, value in found.items() if name not in unsaid | {"vision_config"}} == {
        name: value for name, value in wanted.items() if name not in unsaid | {"vision_config"}
    }
    assert found["torch_dtype"] == "bfloat16"  # F16 files are rounded from what was published in bfloat16
    for config in (found, wanted):
        config["vision_config"].pop("initializer_range")
    assert found["vision_config"] == wanted["vision_config"]


def a_file(architecture: str, metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Gguf:
    """A header that no file has."""
    path = Path(f"{architecture}.gguf")
    tensors = {name: GgufTensor(name, shape, "F16", path, 0, 0) for name, shape in shapes.items()}
    return Gguf(path, (path,), {"general.architecture": architecture, **metadata}, tensors)


TOKENS = [
    f"<|{name}|>"
    for name in ("endoftext", "im_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
]
# hidden, intermediate, layers, heads, kv heads, vocabulary, tied, context; gate or not, width of the vision MLP
PUBLISHED = {
    "2-2B": (1536, 8960, 28, 12, 2, 151936, True, 32768, False, 5120),
    "2-7B": (3584, 18944, 28, 28, 4, 152064, False, 32768, False, 5120),
    "2-72B": (8192, 29568, 80, 64, 8, 152064, False, 32768, False, 5120),
    "2.5-3B": (2048, 11008, 36, 16, 2, 151936, True, 128000, True, 3420),
    "2.5-7B": (3584, 18944, 28, 28, 4, 152064, False, 128000, True, 3420),
    "2.5-32B": (5120, 27648, 64, 40, 8, 152064, False, 128000, True, 3456),
    "2.5-72B": (8192, 29568, 80, 64, 8, 152064, False, 128000, True, 3456),
}


def published(name: str, **tower: Any) -> tuple[Gguf, Gguf]:
    """The headers of a published size, as far as its configuration needs them."""
    hidden, mlp, layers, heads, kv, rows, tied, context, gated, width = PUBLISHED[name]
    text = {
        "qwen2vl.block_count": layers, "qwen2vl.context_length": context, "qwen2vl.embedding_length": hidden,
        "qwen2vl.feed_forward_length": mlp, "qwen2vl.attention.head_count": heads,
        "qwen2vl.attention.head_count_kv": kv, "qwen2vl.rope.freq_base": 1e6,
        "qwen2vl.rope.dimension_sections": [16, 24, 24, 0],
        "qwen2vl.attention.layer_norm_rms_epsilon": struct.unpack("f", struct.pack("f", 1e-6))[0],
        "tokenizer.ggml.tokens": TOKENS,
    }  # fmt: skip
    vision = {
        "clip.projector_type": "qwen2.5vl_merger" if gated else "qwen2vl_merger", "clip.vision.block_count": 32,
        "clip.vision.embedding_length": 1280, "clip.vision.attention.head_count": 16, "clip.vision.patch_size": 14,
        "clip.vision.projection_dim": hidden, **tower,
    }  # fmt: skip
    shapes = {"mm.2.weight": (hidden, 5120), "v.blk.0.ffn_up.weight": (width, 1280)}
    shapes |= {"v.patch_embd.weight": (1280, 3, 14, 14), "v.patch_embd.weight.1": (1280, 3, 14, 14)}
    shapes |= {"v.blk.0.ffn_gate.weight": (width, 1280)} if gated else {}
    ends = {"token_embd.weight": (rows, hidden)} | ({} if tied else {"output.weight": (rows, hidden)})
    return a_file("qwen2vl", text, ends), a_file("clip", vision, shapes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_has_its_configuration(name: str) -> None:
    hidden, mlp, layers, heads, kv, rows, tied, context, gated, width = PUBLISHED[name]
    config = model_config(*published(name))
    text, vision = config.text_config, config.vision_config
    assert config.model_type == ("qwen2_5_vl" if gated else "qwen2_vl")
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (hidden, mlp, layers)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (heads, kv, 128)
    assert (text.vocab_size, config.tie_word_embeddings, text.max_position_embeddings) == (rows, tied, context)
    assert (text.rope_theta, text.rms_norm_eps, text.mrope_section) == (1e6, 1e-6, (16, 24, 24))
    assert (vision.depth, vision.width, vision.num_heads, vision.mlp_width, vision.out_width) == (
        32,
        1280,
        16,
        width,
        hidden,
    )
    if gated:
        assert (vision.window_size, vision.tokens_per_second) == (112, 2)
        assert vision.fullatt_block_indexes == (7, 15, 23, 31)


@pytest.mark.parametrize(
    ("said", "blocks"),
    [
        ({}, (7, 15, 23, 31)),
        ({"clip.vision.n_wa_pattern": 8}, (7, 15, 23, 31)),
        ({"clip.vision.n_wa_pattern": 0}, (7, 15, 23, 31)),  # the 32B, whose config.json leaves the blocks out
        ({"clip.vision.fullatt_block_indexes": []}, (7, 15, 23, 31)),
        ({"clip.vision.fullatt_block_indexes": [3, 9, 31]}, (3, 9, 31)),
        ({"clip.vision.n_wa_pattern": 16}, (15, 31)),
        ({"clip.projector_type": "qwen2vl_merger", "clip.vision.projection_dim": 1280}, (7, 15, 23, 31)),  # early files
    ],
)
def test_which_blocks_see_everything(said: dict[str, Any], blocks: tuple[int, ...]) -> None:
    config = model_config(*published("2.5-32B", **said))
    assert config.model_type == "qwen2_5_vl"
    assert config.vision_config.fullatt_block_indexes == blocks


def test_stretched_positions_come_along() -> None:
    text, tower = published("2.5-7B")
    text.metadata.update({"qwen2vl.rope.scaling.type": "yarn", "qwen2vl.rope.scaling.factor": 4.0,
                          "qwen2vl.rope.scaling.original_context_length": 32768})  # fmt: skip
    config = model_config(text, tower)
    assert config.rope_type == "yarn"
    assert config.text_config.context_length == 131072
    text.metadata["qwen2vl.rope.scaling.type"] = "longrope"
    with pytest.raises(ValueError, match="positions are scaled by 'longrope': expected none, linear or yarn"):
        model_config(text, tower)


def test_numbers_are_the_published_ones_again() -> None:
    _, tower = published("2.5-7B")
    for key, values in (("mean", [0.48145466, 0.4578275, 0.40821073]), ("std", [0.26862954, 0.26130258, 0.27577711])):
        tower.metadata[f"clip.vision.image_{key}"] = list(struct.unpack("3f", struct.pack("3f", *values)))
    made = preprocessor_config(tower, "qwen2_5_vl")
    assert made["image_mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert made["image_std"] == [0.26862954, 0.26130258, 0.27577711]
    assert (made["min_pixels"], made["max_pixels"], made["patch_size"], made["merge_size"]) == (3136, 12845056, 14, 2)
    half = [struct.unpack("f", struct.pack("f", 0.1))[0]] * 3
    tower.metadata.update({"clip.vision.image_mean": half, "clip.vision.image_max_pixels": 1003520})
    made = preprocessor_config(tower, "qwen2_5_vl")
    assert (made["image_mean"], made["max_pixels"]) == ([0.1, 0.1, 0.1], 1003520)


def test_sampling_is_the_family_s_unless_the_file_says_something() -> None:
    text, _ = published("2.5-7B")
    assert generation_config(text, "qwen2_5_vl") == {
        "bos_token_id": 0, "pad_token_id": 0, "eos_token_id": [1, 0], "do_sample": True, "temperature": 1e-6,
        "repetition_penalty": 1.05,
    }  # fmt: skip
    assert generation_config(text, "qwen2_vl")["top_k"] == 1
    text.metadata.update({"general.sampling.temp": 0.5, "tokenizer.ggml.padding_token_id": 4})
    found = generation_config(text, "qwen2_5_vl")
    assert (found["temperature"], found["do_sample"], found["pad_token_id"]) == (0.5, True, 4)
    assert found["eos_token_id"] == [1, 0]  # whatever is used to pad, <|endoftext|> ends an answer
    assert "repetition_penalty" not in found


# --- what does not fit


def test_other_models_are_named(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = pairs["qwen2_5_vl"]
    cases = {
        "llama": "is a llama model: expected qwen2vl",
        "qwen2": "is a qwen2 model: expected qwen2vl",
        "qwen25vl": "qwen25vl file as Ollama writes them",
        "clip": "is the vision tower: give the file of the text model",
    }
    for number, (architecture, said) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        file = replace(pair, text={**pair.text, "general.architecture": architecture}).write(folder)
        with pytest.raises(ValueError, match=said) as told:
            unfold(file)
        assert str(file) in str(told.value)
    file = replace(pair, tower={**pair.tower, "clip.projector_type": "qwen3vl_merger"}).write(tmp_path / "q3")
    with pytest.raises(ValueError, match=r"a tower of type qwen3vl_merger: expected an mmproj file of qwen2vl_merger"):
        unfold(file)


def test_a_tower_of_another_size_is_refused(pairs: dict[str, Pair], tmp_path: Path, checkpoint: Path) -> None:
    other = save_checkpoint(tmp_path / "other", checkpoint, hidden_size=96, vision_config={
        "depth": 2, "hidden_size": 32, "intermediate_size": 44, "num_heads": 2, "patch_size": 14, "window_size": 112,
        "out_hidden_size": 96, "fullatt_block_indexes": [1], "tokens_per_second": 2,
    }, rope_scaling={"type": "mrope", "mrope_section": [4, 4, 4]})  # fmt: skip
    strange = convert(other)
    file = replace(pairs["qwen2_5_vl"], tower=strange.tower, tower_tensors=strange.tower_tensors).write(
        tmp_path / "pair"
    )
    with pytest.raises(ValueError, match=r"gives width 96, and .*tiny\.gguf takes 64: they are of different models"):
        unfold(file)


def test_without_a_tower_there_is_no_folder(file: Path, tmp_path: Path) -> None:
    (file.parent / "mmproj-tiny-f16.gguf").unlink()
    with pytest.raises(ValueError, match=r"has no mmproj\*\.gguf beside it, so no vision tower"):
        unfold(file)
    with pytest.raises(ValueError, match=r"mmproj\.gguf is not there"):
        unfold(file, tmp_path / "mmproj.gguf")


def test_missing_tensors_and_keys_are_named(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = pairs["qwen2_5_vl"]
    text = dict(pair.text_tensors)
    del text["blk.1.ffn_down.weight"]
    with pytest.raises(ValueError, match=r"announces 2 blocks, and mlp.down_proj.weight does not fit in \[1\]"):
        unfold(replace(pair, text_tensors=text).write(tmp_path / "a"))
    metadata = {key: value for key, value in pair.text.items() if "head_count" not in key}
    with pytest.raises(ValueError, match=r"has no qwen2vl\.attention\.head_count, which a qwen2vl file needs"):
        unfold(replace(pair, text=metadata).write(tmp_path / "b"))
    tower = {name: one for name, one in pair.tower_tensors.items() if not name.startswith("mm.")}
    with pytest.raises(ValueError, match=r"has no tensor mm\.2\.weight"):
        unfold(replace(pair, tower_tensors=tower).write(tmp_path / "c"))
    strange = {**pair.text_tensors, "blk.0.attn_sinks.weight": encode(torch.ones(4), "F32")}
    with pytest.raises(ValueError, match=r"tensors that are not known: blk\.0\.attn_sinks\.weight"):
        unfold(replace(pair, text_tensors=strange).write(tmp_path / "d"))
    words = ["x" if token == "<|image_pad|>" else token for token in pair.text["tokenizer.ggml.tokens"]]
    with pytest.raises(ValueError, match=r"vocabulary lacks <\|image_pad\|>: it is no vision-language model"):
        unfold(replace(pair, text={**pair.text, "tokenizer.ggml.tokens": words}).write(tmp_path / "e"))
    for key, value in (("model", "llama"), ("pre", "gpt-4o")):
        with pytest.raises(ValueError, match=r"vocabulary cut by .*: expected gpt2, cut by 'qwen2'"):
            unfold(replace(pair, text={**pair.text, f"tokenizer.ggml.{key}": value}).write(tmp_path / key))
