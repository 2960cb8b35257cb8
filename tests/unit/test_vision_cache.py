"""The cache of embeddings: bounds, pins, counts, files that outlive the process, and what names an item."""

from __future__ import annotations

import multiprocessing
import os
import stat
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny_config, tiny_model
from torch import Tensor

from qwenvl.engine.vision_cache import VisionCache, content_hash, split_item, tower_fingerprint
from qwenvl.model.backends import backend_named
from qwenvl.model.vision import VisionTower
from qwenvl.quantization import quantize_model

PRINT = "0123abcd"
ITEM = 4 * 8 * 2  # bytes of one item below


def key(number: int) -> str:
    return f"{number:064x}"


def item(number: int) -> Tensor:
    return torch.full((4, 8), float(number), dtype=torch.bfloat16)


def held(cache: VisionCache) -> list[int]:
    return [n for n in range(100) if cache.peek(key(n)) is not None]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def on_disk(folder: Path, max_bytes: int = 10**6, memory: int = 10**6) -> VisionCache:
    return VisionCache(memory, folder, max_bytes, PRINT)


def test_what_was_used_longest_ago_goes_first() -> None:
    cache = VisionCache(3 * ITEM)
    for n in (1, 2, 3):
        cache.put(key(n), item(n))
    found = cache.get(key(1))
    assert found is not None
    assert torch.equal(found, item(1))
    assert cache.get(key(9)) is None
    cache.put(key(4), item(4))
    assert (held(cache), len(cache), cache.nbytes) == ([1, 3, 4], 3, 3 * ITEM)
    cache.put(key(4), item(4))
    assert cache.nbytes == 3 * ITEM, "put twice, held once"
    cache.put(key(5), torch.zeros(12, 8, dtype=torch.bfloat16))
    assert (held(cache), cache.nbytes) == ([5], 3 * ITEM)


def test_pinned_items_stay_whatever_the_bound() -> None:
    cache = VisionCache(2 * ITEM)
    for n in range(4):
        cache.put(key(n), item(n), owner="a")
    cache.pin(key(0), "b")
    assert (held(cache), cache.nbytes) == ([0, 1, 2, 3], 4 * ITEM)
    cache.put(key(7), item(7))
    cache.put(key(8), item(8))
    assert held(cache) == [0, 1, 2, 3, 8], "what is not pinned goes first, but for the newest"
    cache.release("a")
    assert held(cache) == [0, 8]
    cache.release("b")
    cache.release("nobody")
    assert (held(cache), cache.nbytes) == ([0, 8], 2 * ITEM)


def test_a_cache_without_room_serves_live_requests() -> None:
    cache = VisionCache(0)
    assert cache, "empty, and a cache all the same"
    cache.put(key(1), item(1))
    cache.pin(key(1), "a")
    cache.pin(key(2), "a")  # before it is there
    cache.put(key(2), item(2))
    cache.put(key(3), item(3))
    assert held(cache) == [1, 2, 3]
    cache.release("a")
    assert (held(cache), cache.nbytes) == ([], 0)


def test_hits_count_once_an_owner_and_misses_once_an_item() -> None:
    cache = VisionCache(10 * ITEM)
    for _ in range(3):
        assert cache.get(key(1), "a") is None
    cache.put(key(1), item(1), "a")
    for _ in range(3):
        cache.get(key(1), "a")
    assert (cache.hits, cache.misses) == (0, 1)
    cache.get(key(1), "b")
    cache.get(key(1), "b")
    cache.get(key(1))
    cache.peek(key(1))
    assert (cache.hits, cache.misses, cache.loaded) == (2, 1, 0)


def test_a_part_of_a_tensor_does_not_keep_the_whole() -> None:
    cache = VisionCache(10**6)
    cache.put(key(1), torch.zeros(1000, 8)[:4])
    kept = cache.peek(key(1))
    assert kept is not None
    assert kept.untyped_storage().nbytes() == kept.nbytes == cache.nbytes


@pytest.mark.parametrize("wrong", ["", "../../x", "ABC", "12/3"])
def test_keys_are_hexadecimal(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        VisionCache(0).put(wrong, item(1))
    assert on_disk(tmp_path).get(wrong) is None
    with pytest.raises(ValueError, match="tower_fingerprint"):
        VisionCache(0, tmp_path, fingerprint=wrong)


def test_files_outlive_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    on_disk(folder).put(key(1), item(1))
    (path,) = files(folder)
    assert path == folder / PRINT / key(1)[:2] / f"{key(1)}.safetensors"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    cache = on_disk(folder)
    found = cache.get(key(1), "a")
    assert found is not None
    assert torch.equal(found, item(1))
    assert (cache.hits, cache.misses, cache.loaded, len(cache)) == (1, 0, 1, 1)
    cache.get(key(1))
    assert cache.loaded == 1, "then it is in memory"
    assert VisionCache(100, folder, fingerprint="beef").get(key(1)) is None, "another tower"
    changed = path.stat().st_mtime_ns
    cache.put(key(1), item(1))
    assert path.stat().st_mtime_ns == changed, "not written twice"


@pytest.mark.parametrize("damage", ["empty", "cut", "byte", "foreign"])
def test_damaged_files_are_removed(tmp_path: Path, damage: str) -> None:
    on_disk(tmp_path).put(key(1), item(1))
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes({"empty": b"", "cut": data[:-3], "byte": data, "foreign": b"something else"}[damage])
    cache = on_disk(tmp_path)
    assert cache.get(key(1)) is None
    assert not files(tmp_path)
    cache.put(key(1), item(1))
    assert on_disk(tmp_path).get(key(1)) is not None


def test_files_used_longest_ago_go_first_those_of_other_towers_too(tmp_path: Path) -> None:
    VisionCache(0, tmp_path, 10**6, "beef").put(key(50), item(50))
    size = files(tmp_path)[0].stat().st_size
    for n in range(8):
        on_disk(tmp_path).put(key(n), item(n))
    for age, path in enumerate(reversed(files(tmp_path / PRINT))):
        os.utime(path, (1000 - age, 1000 - age))
    (old,) = files(tmp_path / "beef")
    os.utime(old, (1, 1))
    (tmp_path / "notes.txt").write_text("of someone else")
    os.utime(tmp_path / "notes.txt", (1, 1))
    used = on_disk(tmp_path)
    assert used.get(key(0)) is not None  # the oldest but one is used again
    bound = 9 * size
    cache = on_disk(tmp_path, bound)
    for n in range(10, 14):
        cache.put(key(n), item(n))
        kept = [path for path in files(tmp_path) if path.suffix == ".safetensors"]
        assert sum(path.stat().st_size for path in kept) <= bound
    assert not old.exists()
    names = {path.stem for path in kept}
    assert {key(0), *map(key, range(10, 14))} <= names
    assert key(1) not in names
    assert (tmp_path / "notes.txt").exists()
    on_disk(tmp_path, 10).put(key(20), item(20))
    assert key(20) not in {path.stem for path in files(tmp_path)}, "larger than the bound"


def test_left_over_temporary_files_go(tmp_path: Path) -> None:
    on_disk(tmp_path).put(key(1), item(1))
    place = files(tmp_path)[0].parent
    old, new = place / f"{key(2)}.x.tmp", place / f"{key(3)}.x.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    on_disk(tmp_path).put(key(4), item(4))
    assert not old.exists()
    assert new.exists(), "someone may be writing it"


def test_a_folder_that_cannot_be_written_warns_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    cache = on_disk(blocked)
    with pytest.warns(UserWarning, match="not kept in"):
        cache.put(key(1), item(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put(key(2), item(2))
    assert held(cache) == [1, 2]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache = on_disk(tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.warns(UserWarning, match="No space left"):
            cache.put(key(1), item(1))
    assert not files(tmp_path / "cache"), "nothing half is left"
    cache.put(key(2), item(2))
    assert len(files(tmp_path / "cache")) == 1, "it goes on when there is room again"


def _many(folder: str, seed: int, bad: multiprocessing.Queue[int]) -> None:
    cache = VisionCache(0, Path(folder), 20 * 200, PRINT)
    for n in np.random.default_rng(seed).integers(0, 40, 300).tolist():
        found = cache.get(key(n))
        if found is None:
            cache.put(key(n), item(n))
        elif not torch.equal(found, item(n)):
            bad.put(n)


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    bad: multiprocessing.Queue[int] = context.Queue()
    crowd = [context.Process(target=_many, args=(str(tmp_path), seed, bad)) for seed in range(3)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
    assert [process.exitcode for process in crowd] == [0, 0, 0]
    assert bad.empty()
    assert all(path.suffix == ".safetensors" for path in files(tmp_path))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 20 * 200 * 1.3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fingerprint_follows_the_tower(family: str) -> None:
    model = tiny_model(family)
    first = tower_fingerprint(model)
    assert first == tower_fingerprint(tiny_model(family))
    seen = {first}
    with torch.no_grad():
        model.text.embed_tokens.weight.add_(1)
        assert tower_fingerprint(model) == first, "the text model has no part in it"
        for name, tensor in model.visual.named_parameters():
            value = tensor.view(-1)[len(tensor.view(-1)) // 3].item()
            tensor.view(-1)[len(tensor.view(-1)) // 3] = value + 0.125
            seen.add(tower_fingerprint(model))
            tensor.view(-1)[len(tensor.view(-1)) // 3] = value
            assert tower_fingerprint(model) == first, name
        block = model.visual.blocks[0].norm1.weight
        block.copy_(torch.randn(len(block)))
        seen.add(tower_fingerprint(model))
        block.copy_(block.flip(0).clone())
        seen.add(tower_fingerprint(model))
    assert len(seen) == 3 + len(list(model.visual.parameters()))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert tower_fingerprint(model) in seen
    torch.set_num_threads(threads)
    assert tower_fingerprint(model.to(torch.bfloat16)) not in seen
    assert tower_fingerprint(tiny_model(family, vision_config={**vision(family), "hidden_act": "gelu"})) not in seen


def vision(family: str) -> dict[str, object]:
    from tiny import VISION

    return VISION[family]


def test_the_fingerprint_sees_packed_weights() -> None:
    model, other = tiny_model(), tiny_model()
    with torch.no_grad():
        other.visual.blocks[1].mlp.down_proj.weight[0, 0] += 1
    plain = tower_fingerprint(model)
    prints = {plain, *(tower_fingerprint(quantize_model(m, "int8")) for m in (model, other))}
    assert len(prints) == 3


def test_the_content_hash_tells_apart_what_embeds_differently() -> None:
    patches = torch.randint(0, 256, (8, 588), dtype=torch.uint8)
    affine = ((1.0,) * 3, (0.0,) * 3)
    first = content_hash(patches, (1, 4, 2), affine)
    assert first == content_hash(patches.clone(), (1, 4, 2), affine)
    assert first == content_hash(torch.cat((patches, patches), 1)[:, :588], (1, 4, 2), affine)
    changed = patches.clone()
    changed[3, 100] ^= 1
    others = [
        content_hash(changed, (1, 4, 2), affine),
        content_hash(patches, (1, 2, 4), affine),
        content_hash(patches, (1, 4, 2), ((1.0,) * 3, (0.5,) * 3)),
        content_hash(patches, (1, 4, 2)),
        content_hash(patches.view(torch.int8), (1, 4, 2), affine),
        content_hash(patches.view(4, 1176), (1, 4, 2), affine),
    ]
    assert len({first, *others}) == 7
    assert len(first) == 64


def test_splits_worked_by_hand() -> None:
    assert split_item((10, 20, 30), 2400) == [(0, 4), (4, 3), (7, 3)]
    assert split_item((1, 20, 30), 10) == [(0, 1)], "a step is never divided"
    assert split_item((3, 20, 30), 599) == split_item((3, 20, 30), 600) == [(0, 1), (1, 1), (2, 1)]
    assert split_item((3, 20, 30), 1800) == [(0, 3)]
    assert split_item((5, 2, 2), 8) == [(0, 2), (2, 2), (4, 1)]
    for grid, bound in (((0, 2, 2), 8), ((1, 2, 2), 0)):
        with pytest.raises(ValueError, match="at least 1"):
            split_item(grid, bound)


def test_every_step_is_in_one_call_within_the_bound() -> None:
    for time in range(1, 40):
        for bound in range(1, 200, 7):
            parts = split_item((time, 2, 4), bound)
            assert [first for first, _ in parts] == [sum(n for _, n in parts[:i]) for i in range(len(parts))]
            assert sum(steps for _, steps in parts) == time
            assert all(steps * 8 <= max(bound, 8) for _, steps in parts)
            assert max(n for _, n in parts) - min(n for _, n in parts) <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_give_what_the_whole_gives(family: str) -> None:
    torch.manual_seed(0)
    tower = VisionTower(tiny_config(family).vision_config, backend_named("sdpa")).eval()
    grid, step = (5, 6, 10), 60
    pixels = torch.randn(5 * step, 1176)
    with torch.inference_mode():
        whole = tower(pixels, torch.tensor([grid]))
        parts = [
            tower(pixels[first * step : (first + steps) * step], torch.tensor([[steps, *grid[1:]]]))
            for first, steps in split_item(grid, 2 * step)
        ]
    assert len(parts) == 3
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)
