"""The folder that a pair of GGUF files becomes: its vocabulary gives the ids of the source's, it is made once, and anew
when the files change, and what info shows of it needs no weights."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_writer import FAMILIES, Pair, convert, vocabulary

from qwenvl.cli.model_files import look
from qwenvl.gguf_folder import pair_of, resolve, targets, unfold
from qwenvl.gguf_folder.vocabulary import PIECES

pytestmark = pytest.mark.usefixtures("cache")


# --- the vocabulary


def strings(spellings: list[str], count: int) -> list[str]:
    """Texts of many scripts, spaces and control tokens in any order."""
    draw = random.Random(5)
    letters = "abcXYZ 019.,!?\n\t'\"éüßñ東京ひらがなабвγδ🚀\u200d\u00a0\u0301{}[]()<>|_-=+*/\\\r"
    pieces = [
        *spellings,
        "  ",
        "'re",
        "I've",
        "12345",
        "don't",
        "e\u0301",
        "\n\n",
        "<|im_",
        "image_pad|>",
        "the red cat",
    ]
    made = (
        "".join(
            draw.choice(pieces) if draw.random() < 0.3 else draw.choice(letters) for _ in range(draw.randint(1, 40))
        )
        for _ in range(count)
    )
    return list(made)


def test_text_gets_the_same_ids_and_comes_back(
    sources: dict[str, Path], pairs: dict[str, Pair], tmp_path: Path
) -> None:
    from qwenvl.processing import Tokenizer

    ours = Tokenizer.from_pretrained(unfold(pairs["qwen2_5_vl"].write(tmp_path)))
    source = Tokenizer.from_pretrained(sources["qwen2_5_vl"])
    assert ours.get_vocab() == source.get_vocab()  # without the ids that only fill up the embedding
    assert len(ours) < 480
    assert ours.all_special_ids == source.all_special_ids
    assert ours.control_tokens == source.control_tokens
    assert (ours.eos_token, ours.pad_token) == ("<|im_end|>", "<|endoftext|>")
    texts = strings(list(source.added_tokens), 1500)
    for special in (True, False):
        ids = [source.encode(text, special=special) for text in texts]
        assert [ours.encode(text, special=special) for text in texts] == ids
    assert ours.batch_decode(ids) == source.batch_decode(ids)
    marked = [source.encode(text) for text in texts]
    assert ours.batch_decode(marked, skip_special_tokens=True) == source.batch_decode(marked, skip_special_tokens=True)


def test_the_steps_are_those_of_the_tokenizer() -> None:
    from qwenvl.processing import tokenizer

    assert PIECES == tokenizer.PIECES


def test_ids_with_gaps_keep_their_places(pairs: dict[str, Pair], tmp_path: Path) -> None:
    from qwenvl.processing import Tokenizer

    pair = pairs["qwen2_5_vl"]
    tokens, kinds = list(pair.text["tokenizer.ggml.tokens"]), list(pair.text["tokenizer.ggml.token_type"])
    tokens[470], kinds[470] = "<|extra|>", 3
    changed = {**pair.text, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    found = Tokenizer.from_pretrained(unfold(replace(pair, text=changed).write(tmp_path)))
    assert found.encode("a<|extra|><|im_end|>")[1:] == [470, tokens.index("<|im_end|>")]
    assert found.decode([470]) == "<|extra|>"


def test_a_template_without_pictures_is_not_taken(pairs: dict[str, Pair], tmp_path: Path) -> None:
    from qwenvl.processing import AutoProcessor

    pair = pairs["qwen2_5_vl"]
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    said = []
    for number, template in enumerate((None, "{{ messages[0].role }} text only", "{{ '<|vision_start|>' }} mine")):
        text = pair.text if template is None else {**pair.text, "tokenizer.chat_template": template}
        folder = unfold(replace(pair, text=text).write(tmp_path / str(number)))
        said.append(AutoProcessor.from_pretrained(folder).apply_chat_template(chat, tokenize=False))
    assert said[0] == said[1]
    assert "<|vision_start|><|image_pad|><|vision_end|>What?" in said[0]
    assert said[2] == "<|vision_start|> mine"


def test_large_vocabularies_are_padded_rows(checkpoint: Path) -> None:
    made = vocabulary(checkpoint, 600)
    assert made["tokenizer.ggml.tokens"][-1] == "[PAD599]"


# --- the folder


def test_a_folder_is_made_once(file: Path, cache: Path) -> None:
    folder = unfold(file)
    assert folder.parent == cache / "gguf"
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json",
                     "tokenizer_config.json", "gguf.json"}  # fmt: skip
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert unfold(str(file)) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_changed_file_makes_a_new_folder_and_the_old_one_goes(file: Path) -> None:
    folder = unfold(file)
    os.utime(file, ns=(1, 1))
    newer = unfold(file)
    assert newer != folder
    assert not folder.exists()
    tower = file.parent / "mmproj-tiny-f16.gguf"
    os.utime(tower, ns=(1, 1))
    assert unfold(file) != newer


def test_a_file_that_is_gone_is_told(file: Path) -> None:
    folder = unfold(file)
    file.unlink()
    with pytest.raises(ValueError, match=r"was made of .*tiny\.gguf, which is not there any more"):
        pair_of(folder)


def test_a_cache_that_cannot_be_written_says_what_to_set(file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("QWENVL_CACHE", str(tmp_path / "taken"))
    with pytest.raises(ValueError, match=r"cannot be written .* set QWENVL_CACHE"):
        unfold(file)
    monkeypatch.delenv("QWENVL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert unfold(file).parent == tmp_path / "xdg" / "qwenvl" / "gguf"


def test_processes_that_unfold_at_once_all_succeed(file: Path, tmp_path: Path) -> None:
    code = "import sys; from qwenvl.gguf_folder import unfold; print(unfold(sys.argv[1]))"
    env = {**os.environ, "QWENVL_CACHE": str(tmp_path / "fresh")}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        for _ in range(4)
    ]
    said = [one.communicate(timeout=60) for one in running]
    assert [one.returncode for one in running] == [0] * 4, said
    assert len({out for out, _ in said}) == 1
    assert len(list((tmp_path / "fresh" / "gguf").iterdir())) == 1


def test_the_tower_of_the_same_model_is_taken(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = pairs["qwen2_5_vl"]
    file = pair.write(tmp_path, "Qwen2.5-VL-3B-Instruct-Q4_K_M", "mmproj-Qwen2.5-VL-3B-Instruct-f16.gguf")
    tower = tmp_path / "mmproj-Qwen2.5-VL-3B-Instruct-f16.gguf"
    for name in (
        "mmproj-Qwen2.5-VL-3B-Instruct-bf16",
        "mmproj-Qwen2.5-VL-3B-Instruct-Q8_0",
        "mmproj-Qwen2.5-VL-7B-Instruct-f16",
    ):
        shutil.copy(tower, tmp_path / f"{name}.gguf")

    def chosen() -> str:
        found = pair_of(unfold(file))
        assert found is not None
        return found[1].path.name

    assert chosen() == "mmproj-Qwen2.5-VL-3B-Instruct-f16.gguf"
    tower.unlink()
    assert chosen() == "mmproj-Qwen2.5-VL-3B-Instruct-Q8_0.gguf"
    folder = tmp_path / "Q4_K_M"  # a folder for each quantization, the towers above them
    folder.mkdir()
    file = file.rename(folder / file.name)
    assert chosen() == "mmproj-Qwen2.5-VL-3B-Instruct-Q8_0.gguf"
    assert pair_of(unfold(file, tmp_path / "mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf"))[1].path.name.endswith(
        "7B-Instruct-f16.gguf"
    )  # type: ignore[index]


def test_a_name_that_stands_for_a_file_gives_a_folder(file: Path, sources: dict[str, Path]) -> None:
    assert resolve(str(file)) == unfold(file)
    assert resolve(sources["qwen2_vl"]) == sources["qwen2_vl"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"split_tower": False}, {"join_text": True}, {"swapped": True}])
def test_every_tensor_finds_its_published_name(
    family: str, options: dict[str, bool], sources: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    found = pair_of(unfold(convert(sources[family], **options).write(tmp_path)))  # type: ignore[arg-type]
    assert found is not None
    wanted = {key: tuple(weight.shape) for key, weight in load_file(sources[family] / "model.safetensors").items()}
    assert {one.key: one.shape for one in targets(*found)} == wanted


def test_what_info_shows_comes_from_the_headers(file: Path) -> None:
    found = look(file)
    assert found.parameters == look(found.folder).parameters
    assert found.dtypes["F16"] > 0
    assert {"tiny.gguf", "mmproj-tiny-f16.gguf", "config.json"} <= set(found.files)
    assert found.parameters_by_part["vision tower"] > 0
    code = (
        "import sys; from pathlib import Path; from qwenvl.cli.model_files import look; look(Path(sys.argv[1]))\n"
        "print([name for name in ('torch', 'numpy', 'gguf', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_folder_s_files_are_json_objects(file: Path) -> None:
    for path in unfold(file).iterdir():
        assert isinstance(json.loads(path.read_text("utf-8")), dict), path.name
