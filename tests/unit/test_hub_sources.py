"""Other sources than a folder of the Hugging Face hub: repositories of GGUF files, and ModelScope."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import modelscope_standin
import pytest
from hub_server import REPO, FakeHub
from test_hub import ALL, FIRST, SECOND, at_hub, contents, same

from qwenvl.hub import gguf, resolve, verify

NAMES = (
    "README.md",
    "Qwen2.5-VL-7B-Instruct-BF16.gguf",
    "Qwen2.5-VL-7B-Instruct-F16.gguf",
    "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf",
    "Qwen2.5-VL-7B-Instruct-Q4_K.gguf",
    "Qwen2.5-VL-7B-Instruct-UD-Q4_K_XL.gguf",
    "Qwen2.5-VL-7B-Instruct-IQ4_XS.gguf",
    "Q8_0/Qwen2.5-VL-7B-Instruct-Q8_0-00002-of-00002.gguf",
    "Q8_0/Qwen2.5-VL-7B-Instruct-Q8_0-00001-of-00002.gguf",
    "Qwen2.5-VL-7B-Instruct.imatrix.gguf",
    "mmproj-BF16.gguf",
    "mmproj-F16.gguf",
    "mmproj-F32.gguf",
)
EIGHT = [f"Q8_0/Qwen2.5-VL-7B-Instruct-Q8_0-0000{i}-of-00002.gguf" for i in (1, 2)]


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("Q4_K_M", ["Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf"]),
        ("q4_k_m", ["Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf"]),
        ("Q4_K", ["Qwen2.5-VL-7B-Instruct-Q4_K.gguf"]),
        ("f16", ["Qwen2.5-VL-7B-Instruct-F16.gguf"]),
        ("bf16", ["Qwen2.5-VL-7B-Instruct-BF16.gguf"]),
        ("Q4_K_XL", ["Qwen2.5-VL-7B-Instruct-UD-Q4_K_XL.gguf"]),
        ("UD-Q4_K_XL", ["Qwen2.5-VL-7B-Instruct-UD-Q4_K_XL.gguf"]),
        ("Q8_0", EIGHT),
        (EIGHT[1], EIGHT),
        ("qwen2.5-vl-7b-instruct-q8_0-00001-of-00002.gguf", EIGHT),
        ("Qwen2.5-VL-7B-Instruct-IQ4_XS.gguf", ["Qwen2.5-VL-7B-Instruct-IQ4_XS.gguf"]),
    ],
)
def test_a_quantization_is_its_files(part: str, text: list[str]) -> None:
    assert gguf.choose("a/b", NAMES, part) == [*text, "mmproj-F16.gguf"]


@pytest.mark.parametrize("part", ["Q4", "Q4_XS", "K_M_S", "16", "Q5_K_M", "mmproj-F16.gguf", "none.gguf"])
def test_a_quantization_that_is_not_there_is_told_with_those_that_are(part: str) -> None:
    with pytest.raises(ValueError, match=r"BF16, F16, IQ4_XS, Q4_K, Q4_K_M, Q8_0, UD-Q4_K_XL$") as error:
        gguf.choose("a/b", NAMES, part)
    assert f"{part!r}" in str(error.value)


@pytest.mark.parametrize(
    ("towers", "chosen"),
    [
        (("mmproj-F32.gguf", "mmproj-BF16.gguf", "mmproj-Q8_0.gguf"), "mmproj-Q8_0.gguf"),
        (("mmproj-F32.gguf", "mmproj-BF16.gguf"), "mmproj-BF16.gguf"),
        (("Model-7B.mmproj-f16.gguf", "Model-7B.mmproj-Q8_0.gguf"), "Model-7B.mmproj-f16.gguf"),
        (("mmproj-model-f16.gguf", "Q/mmproj-Q8_0.gguf"), "Q/mmproj-Q8_0.gguf"),  # the one beside it
        (("mmproj.gguf",), "mmproj.gguf"),
    ],
)
def test_the_vision_tower_beside_it(towers: tuple[str, ...], chosen: str) -> None:
    assert gguf.choose("a/b", ("Q/x-Q4_0.gguf", *towers), "Q4_0") == ["Q/x-Q4_0.gguf", chosen]


def test_repositories_that_cannot_serve() -> None:
    for names, part, words in (
        (("x-Q4_0.gguf",), "Q4_0", "no vision tower"),
        (("x-Q4_0-00001-of-00003.gguf", "x-Q4_0-00003-of-00003.gguf", "mmproj.gguf"), "Q4_0", "lacks piece 2 of 3"),
        (("x-2B-Q4_0.gguf", "x-7B-Q4_0.gguf", "mmproj.gguf"), "Q4_0", "2 models .* x-2B-Q4_0.gguf, x-7B-Q4_0.gguf"),
        (("model.safetensors",), "Q4_0", "none of the GGUF files"),
    ):
        with pytest.raises(ValueError, match=words):
            gguf.choose("a/b", names, part)


@pytest.fixture
def quantized(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {name: random.Random(name).randbytes(20_000) for name in NAMES}
    with FakeHub(files) as server:
        at_hub(monkeypatch, server.url)
        yield server


@pytest.mark.parametrize("part", ["Q4_K_M", "q8_0"])
def test_a_quantization_is_fetched_with_its_tower(quantized: FakeHub, tmp_path: Path, part: str) -> None:
    text = resolve(f"{REPO}:{part}", cache_dir=tmp_path)
    wanted = gguf.choose(REPO, NAMES, part)
    snapshot = text.parents[len(Path(wanted[0]).parts) - 1]
    assert text == snapshot / wanted[0]
    assert same(snapshot, {name: quantized.files[name] for name in wanted})
    asked = len(quantized.log)
    assert resolve(f"{REPO}:{part}", cache_dir=tmp_path, local_files_only=True) == text
    assert len(quantized.log) == asked
    assert verify(text) == []
    (snapshot / "mmproj-F16.gguf").unlink()
    assert [(problem.file, problem.kind) for problem in verify(text)] == [("mmproj-F16.gguf", "missing")]
    with pytest.raises(ValueError, match=r"without mmproj-F16\.gguf"):
        resolve(f"{REPO}:{part}", cache_dir=tmp_path, local_files_only=True)


def test_a_repository_of_gguf_files_wants_a_quantization(quantized: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"holds GGUF files only: say which, as {REPO}: and one of BF16, F16"):
        resolve(REPO, cache_dir=tmp_path)
    quantized.files["model.safetensors"] = b"x"
    quantized.files["config.json"] = b"{}"
    quantized.commit = "e" * 40
    assert sorted(path.name for path in resolve(REPO, cache_dir=tmp_path, patterns=ALL).iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


# --- ModelScope

LIBRARIES = ["stand-in", pytest.param("real", marks=pytest.mark.skipif(not find_spec("modelscope"), reason="extra"))]
Fetch = Callable[..., Path]


@pytest.fixture
def scope() -> Iterator[FakeHub]:
    with FakeHub(contents()) as server:
        yield server


@pytest.fixture(params=LIBRARIES)
def fetch(request: pytest.FixtureRequest, scope: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    if request.param == "stand-in":
        for name, module in modelscope_standin.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    else:
        import modelscope_hub

        monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
        modelscope_hub.set_default_config(None)  # or it stays with the first test's addresses
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", scope.url)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))

    def fetch(model: str = f"modelscope://{REPO}", **options: Any) -> Path:
        return resolve(model, **{"patterns": ALL, **options})

    return fetch


@pytest.mark.feature(23)
def test_modelscope(
    scope: FakeHub, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fetch()
    assert same(folder, scope.files)
    assert "Revision=master" in scope.log[0].path
    assert folder.is_relative_to(tmp_path / "cache")
    assert len(scope.got(FIRST)) == 1
    asked = len(scope.log)
    assert fetch() == folder
    assert len(scope.log) == asked + 1  # the list
    assert fetch(local_files_only=True) == folder
    assert len(scope.log) == asked + 1
    monkeypatch.setenv("QWENVL_USE_MODELSCOPE", "1")
    assert fetch(REPO) == folder
    assert fetch(f"modelscope://{REPO}", cache_dir=tmp_path / "other").is_relative_to(tmp_path / "other")
    assert fetch(force_download=True) == folder
    assert len(scope.got(FIRST)) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.feature(23)
def test_modelscope_files_are_checked(scope: FakeHub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch()
    assert verify(folder) == []
    (folder / FIRST).write_bytes(bytes(700_000))
    assert [(problem.file, problem.kind) for problem in verify(folder)] == [(FIRST, "hash")]
    with pytest.raises(ValueError, match=rf"{FIRST} has the SHA-256 .* go online"):
        fetch(local_files_only=True)
    assert same(fetch(), scope.files)
    (folder / SECOND).unlink()
    with pytest.raises(ValueError, match=f"without {SECOND}"):
        fetch(local_files_only=True)
    assert same(fetch(), scope.files)


@pytest.mark.feature(23)
def test_modelscope_quantizations(scope: FakeHub, fetch: Fetch) -> None:
    scope.files = {name: random.Random(name).randbytes(2_000) for name in NAMES}
    text = fetch(f"modelscope://{REPO}:q4_k_m")
    assert text.name == "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf"
    assert (text.parent / "mmproj-F16.gguf").exists()


@pytest.mark.feature(23)
def test_modelscope_errors(scope: FakeHub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    for model, options, words in (
        ("modelscope://owner/none", {}, "could not be found on ModelScope"),
        (f"modelscope://{REPO}", {"local_files_only": True}, "not in the cache"),
        (f"modelscope://{REPO}", {"token": False}, "token=False is not for ModelScope"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            fetch(model, **options)
        assert "\n" not in str(error.value)
    scope.flipped[FIRST] = 99
    with pytest.raises(ValueError, match=rf"failed to download.*{FIRST}") as error:
        fetch()
    assert "\n" not in str(error.value)


def test_modelscope_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ValueError, match=r"pip install 'qwenvl\[modelscope\]'"):
        resolve(f"modelscope://{REPO}")
