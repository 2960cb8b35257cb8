"""How quick this machine is with this model: measured in about a second, and kept in the user's cache folder.

Measured are a block of the tower and layers of the decoder as they run (the same modules and kernels, at small depth,
with weights that mean nothing), attention, a decode step over more weights than the processor's caches hold, the
product with the head, cutting a picture into patches, and the smallest step. Kept under the machine, its cores and
threads, and the versions of this package and torch; `--calibrate` measures anew.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl.machine import cache_folder, machine_name
from qwenvl.planning.memory import PAGE, Config
from qwenvl.planning.weights import Weights
from qwenvl.whole_file import write_whole

if TYPE_CHECKING:
    from qwenvl.model.kv_cache import CacheView
    from qwenvl.model.text import TextModel
    from qwenvl.types import SeqInfo

MOST_WORK = 25e9  # operations of one measured call
MOST_BYTES = 192e6  # of the weights that a measured decode step reads
FEWEST, MOST = 128, 1024  # rows of a measured call
CONTEXT = 2048  # keys that measured queries see
BASE = 250 * 2**20  # bytes of a process with torch, where it cannot be measured
DECODE_ROUNDS, ROUNDS = 5, 2
ENGINE_STEP = 2.0  # a step of the engine, in units of the smallest step of a decoder


@dataclass(frozen=True)
class Speeds:
    """Seconds of: a block of the tower a call and a patch, a pair of its attention; a layer of the decoder a call and a
    token, a pair of its attention; a layer in a decode step; a byte that a step reads; a step beside its layers; a
    pixel that is read and resized; a patch that is cut."""

    block_call: float
    block_row: float
    tower_pair: float
    layer_call: float
    layer_row: float
    text_pair: float
    decode_layer: float
    byte: float
    step: float
    pixel: float
    patch: float


def speeds(config: Config, weights: Weights, anew: bool = False) -> Speeds:
    """The machine's speeds with such a model: those that are kept, or measured now (anew: in any case)."""
    import torch

    path = _file(f"{machine_name()}, {torch.get_num_threads()} threads")
    kept = _read(path)
    name = _signature(config, weights)
    with suppress(TypeError, KeyError):
        if not anew:
            return Speeds(**kept[name])
    measured = measure(config, weights)
    _write(path, {**_read(path), name: asdict(measured)})
    return measured


def base_bytes(anew: bool = False) -> int:
    """Bytes of a process that has imported what answering needs, and loaded nothing; measured in a process once."""
    path = _file("memory")
    kept = _read(path).get("base", {})
    with suppress(TypeError, KeyError, ValueError):
        if not anew:
            return int(kept["bytes"])
    found = _measured_base()
    if found is not None:
        _write(path, {**_read(path), "base": {"bytes": float(found)}})
    return found or BASE


def _measured_base() -> int | None:
    program = (
        "import torch, qwenvl.tasks, qwenvl.engine, qwenvl.checkpoint, qwenvl.processing\n"
        "from qwenvl.machine import resident_bytes\n"
        "print(resident_bytes() or 0)"
    )
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
        return int(done.stdout) or None
    return None


def _signature(config: Config, weights: Weights) -> str:
    """What of a model decides its speeds."""
    vision, text = config.vision_config, config.text_config
    parts = (
        vision.width, vision.mlp_width, vision.num_heads, vision.gated_mlp, text.hidden_size, text.intermediate_size,
        text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads, text.head_dim, text.vocab_size,
        weights.dtype, weights.text, weights.tower, weights.head_scheme,
    )  # fmt: skip
    return " ".join(map(str, parts))


def _file(what: str) -> Path:
    """Where figures of this machine, under these versions, are kept."""
    import torch

    from qwenvl import __version__
    from qwenvl.kernels.native import library

    native = "native" if library() is not None else "torch alone"
    text = f"{machine_name()}; {what}; torch {torch.__version__}; qwenvl {__version__}; {native}; {sys.executable}"
    return cache_folder() / "plan" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _read(path: Path) -> dict[str, dict[str, float]]:
    """What is kept; nothing where the file is not there or damaged."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _write(path: Path, values: dict[str, dict[str, float]]) -> None:
    """Keep figures; without a place to write, they are measured again the next time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(values, indent=1).encode())


def measure(config: Config, weights: Weights) -> Speeds:
    """Measured now, on as many threads as torch has."""
    import torch

    with torch.inference_mode():
        tower = _tower(config, weights)
        decoder = _decoder(config, weights)
        return Speeds(**tower, **decoder, byte=_byte(config, weights), **_pictures())


def timed(run: Callable[[], object], rounds: int) -> float:
    """Seconds of a call: the median of some after one that is not counted."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _rows(weights: int) -> int:
    """How many rows a measured call has, so that it does not take long."""
    return int(min(max(MOST_WORK / (2 * weights), FEWEST), MOST)) // 64 * 64


def _line(run: Callable[[int], float], few: int, many: int) -> tuple[float, float]:
    """(seconds a call, seconds a row) from calls with few and with many rows."""
    short, long = run(few), run(many)
    row = max(long - short, long / 10) / (many - few)
    return max(short - few * row, 0.0), row


def _tower(config: Config, weights: Weights) -> dict[str, float]:
    import torch

    from qwenvl.model.attention import attend, plan, sdpa
    from qwenvl.planning.samples import filled, tower_block
    from qwenvl.types import SeqInfo

    vision, dtype = config.vision_config, getattr(torch, weights.dtype)
    block, cpu = tower_block(config, weights.tower, dtype), torch.device("cpu")
    heads, size = vision.num_heads, vision.width // vision.num_heads
    many = _rows(vision.width * (4 * vision.width + 3 * vision.mlp_width))

    def run(rows: int) -> float:
        x, rotation = filled((rows, vision.width), dtype), filled((rows, 1, size // 2), torch.float32)
        layout = plan(SeqInfo.from_lengths([64] * (rows // 64)), cpu, pad=False)
        return timed(lambda: block(x, (rotation, rotation), layout), 9 if rows == 64 else ROUNDS)

    q = filled((MOST, heads, size), dtype)
    whole = plan(SeqInfo.from_lengths([MOST]), cpu, pad=False)
    pair = timed(lambda: attend(q, q, q, whole, sdpa, causal=False), ROUNDS) / MOST**2
    call, row = _line(run, 64, many)
    return {"block_call": call, "block_row": row, "tower_pair": pair}


def _decoder(config: Config, weights: Weights) -> dict[str, float]:
    import torch

    from qwenvl.model.attention import attend, plan, sdpa
    from qwenvl.planning.samples import decoder, filled, layer_weights

    text, dtype, cpu = config.text_config, getattr(torch, weights.dtype), torch.device("cpu")
    depth = int(min(max(MOST_BYTES * text.num_hidden_layers // max(weights.layers, 1), 1), text.num_hidden_layers))
    model, share = decoder(config, depth, weights.text, dtype)
    layer, small = model.layers[0], model.config

    def run(rows: int) -> float:
        x, rotation = filled((rows, text.hidden_size), dtype), filled((rows, 1, text.head_dim // 2), torch.float32)
        view, seq = _view(small, dtype, rows, 0)
        layout = plan(seq, cpu, cached=True)
        return timed(lambda: layer(x, (rotation, rotation), layout, view), 9 if rows == 32 else ROUNDS)

    q = filled((512, text.num_attention_heads, text.head_dim), dtype)
    k = filled((512, text.num_key_value_heads, text.head_dim), dtype)
    view, seq = _view(small, dtype, 512, CONTEXT - 512)
    layout = plan(seq, cpu, cached=True)
    pair = timed(lambda: attend(q, k, k, layout, sdpa, causal=True, kv=view), ROUNDS) / (512 * (CONTEXT - 256))
    call, row = _line(run, 32, _rows(int(layer_weights(text) / share)))
    smallest = _smallest(config, dtype)
    step = max(_step(model, dtype, DECODE_ROUNDS) - smallest, 0.0)
    return {
        "layer_call": call, "layer_row": row * share, "text_pair": pair, "decode_layer": step / depth * share,
        "step": ENGINE_STEP * smallest,
    }  # fmt: skip


def _view(text: Any, dtype: Any, new: int, cached: int) -> tuple[CacheView, SeqInfo]:
    """A fresh cache with one sequence, and what it looks like."""
    from qwenvl.model.kv_cache import PagedCache, PageTable
    from qwenvl.types import SeqInfo

    pages = -(-(cached + new) // PAGE)
    table = PageTable()
    for page in range(pages):
        table.append(page)
    return PagedCache(text, pages, PAGE, dtype).view([table], [cached], [new]), SeqInfo.from_lengths([new], [cached])


def _step(model: TextModel, dtype: Any, rounds: int) -> float:
    """Seconds of a decode step of a decoder without its head."""
    import torch

    from qwenvl.types import PackedBatch

    view, seq = _view(model.config, dtype, 1, 64)
    one = torch.zeros(1, dtype=torch.long)
    batch = PackedBatch(one, one.expand(3, 1), seq, view, logits_index=one)
    return timed(lambda: model.hidden(batch, one), rounds)


def _smallest(config: Config, dtype: Any) -> float:
    """Seconds of the smallest decode step: what is not products."""
    from qwenvl.planning.samples import decoder

    text = config.text_config
    tiny = {"hidden_size": text.head_dim, "intermediate_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1}
    model, _ = decoder(config.replace(text_config=text.replace(**tiny)), 1, None, dtype)
    return _step(model, dtype, 25)


def _byte(config: Config, weights: Weights) -> float:
    """Seconds a byte of the head, read for one row."""
    import torch

    from qwenvl.kernels.linear import linear
    from qwenvl.kernels.quantized import quantized_linear
    from qwenvl.planning.samples import any_packed, filled

    text, dtype = config.text_config, getattr(torch, weights.dtype)
    each = weights.head / text.vocab_size
    rows = int(min(text.vocab_size, MOST_BYTES // 2 // each)) // 32 * 32
    x = filled((1, text.hidden_size), dtype)
    if weights.head_scheme is not None:
        packed = any_packed(rows, text.hidden_size, weights.head_scheme)
        return timed(lambda: quantized_linear(x, packed), DECODE_ROUNDS) / packed.nbytes
    weight = filled((rows, text.hidden_size), dtype)
    return timed(lambda: linear(x, weight, None, torch.float32), DECODE_ROUNDS) / weight.nbytes


def _pictures() -> dict[str, float]:
    """Reading and cutting a picture of 1024 x 768."""
    import io

    import numpy as np
    from PIL import Image

    from qwenvl.media.images import load_image
    from qwenvl.processing.image_processor import Qwen2VLImageProcessor

    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((1024, 768), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    data, processor = file.getvalue(), Qwen2VLImageProcessor()
    picture = load_image(data)
    read = timed(lambda: load_image(data), ROUNDS)
    cut = timed(lambda: processor.patches(picture, 756, 1008, 1), ROUNDS)
    pixels, patches = 1024 * 768, 54 * 72
    return {"pixel": (read + cut / 2) / pixels, "patch": cut / 2 / patches}
