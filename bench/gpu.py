"""What share of a GPU's own limits the engine reaches with the 7B shape, beside transformers where it is installed.

    python bench/gpu.py [--rounds 5] [--answer 128] [--layers 28] [--no-transformers] [--json out/gpu.json]

Weights are random: only times mean something. Runs of ours and theirs are interleaved, and medians shown. Limits are
measured in the same run: bytes moved by copying 2 GiB (read and written), and a bf16 product of two 8192 x 8192
matrices. Without a CUDA device it says so and ends with code 2. It has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qwenvl.bench.work import Work
from qwenvl.config import Qwen2_5_VLConfig
from qwenvl.engine import Engine, Request
from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration
from qwenvl.types import SamplingParams

COPIED, SIDE = 2**31, 8192  # bytes; rows of the matrices
PROMPTS = (1051, 8192)  # a picture of 999 tokens with its question; a long document
PICTURE = (1036, 756)  # pixels: 37 x 27 = 999 tokens
CONTEXT = 512  # tokens of the prompts that run side by side
TOGETHER = (1, 8, 64)


@dataclass
class Report:
    """Rows of the table: what, whose, the figure, its unit, and its share of a limit where it has one."""

    device: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, what: str, whose: str, figure: float, unit: str, share: float | None = None) -> None:
        self.rows.append({"what": what, "whose": whose, "figure": figure, "unit": unit, "share": share})

    def table(self) -> str:
        lines = [f"{'what':<28}{'whose':<14}{'figure':>12} {'unit':<12}{'of the limit':>12}"]
        for row in self.rows:
            share = "" if row["share"] is None else f"{row['share']:.0%}"
            lines.append(f"{row['what']:<28}{row['whose']:<14}{row['figure']:>12.4g} {row['unit']:<12}{share:>12}")
        return "\n".join(lines)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line; what is wrong ends the program with code 2, as argparse does."""
    parser = argparse.ArgumentParser(prog="bench/gpu.py", description="The engine on one GPU, as shares of its limits.")
    parser.add_argument("--rounds", type=_positive, default=5, help="runs of each kind that count (5)")
    parser.add_argument("--answer", type=_positive, default=128, help="tokens of an answer (128)")
    parser.add_argument("--layers", type=_positive, default=28, help="text layers, fewer where memory is small (28)")
    parser.add_argument("--no-transformers", dest="transformers", action="store_false", help="only ours")
    parser.add_argument("--json", type=Path, help="a file for the figures; its folder is made")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not valid: expected at least 1")
    return number


def configuration(layers: int) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL-7B, with so many of its 28 text layers."""
    text = {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": layers, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112, "patch_size": 14, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "tokens_per_second": 2, "in_channels": 3, "hidden_act": "silu",
    }  # fmt: skip
    return Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=151655, video_token_id=151656,
        vision_start_token_id=151652, vision_end_token_id=151653, bos_token_id=151643, eos_token_id=151645,
        tie_word_embeddings=False,
    )  # fmt: skip


def seconds(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, one after the other in every round, after one round that is not counted. A run that
    returns a float is counted with that instead of its own time."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            wait()
            start = time.perf_counter()
            told = run()
            wait()
            times[name].append(told if isinstance(told, float) else time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def limits(device: str, report: Report, rounds: int, copied: int = COPIED, side: int = SIDE) -> tuple[float, float]:
    """(bytes moved per second by a copy, operations per second of a bf16 product)."""
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    found = seconds({"copy": lambda: target.copy_(source), "matmul": lambda: a @ b}, rounds)
    moved, computed = 2 * copied / found["copy"], 2 * side**3 / found["matmul"]
    report.add("copy", "device", moved / 1e9, "GB/s")
    report.add("bf16 matmul", "device", computed / 1e12, "TFLOP/s")
    return moved, computed


class Ours:
    name = "qwenvl"

    def __init__(self, config: Qwen2_5_VLConfig, device: str) -> None:
        torch.set_default_dtype(torch.bfloat16)  # float32 would need twice the memory
        with torch.device(device):
            self._model = Qwen2_5_VLForConditionalGeneration(config).eval()
        torch.set_default_dtype(torch.float32)
        self._engines: dict[int, Engine] = {}

    def tower(self, patches: torch.Tensor, grid: torch.Tensor) -> None:
        self._model.encode_vision(patches, grid)

    def prefill(self, ids: list[list[int]]) -> None:
        self.together(ids, 1)

    def decode(self, ids: list[list[int]], answer: int) -> float:
        """Seconds of a step behind the prompt's."""
        engine = self._engine(ids)
        engine.add(self._request(ids[0], answer + 1))
        engine.step()
        start = time.perf_counter()
        while engine.has_work:
            engine.step()
        return (time.perf_counter() - start) / answer

    def together(self, ids: list[list[int]], answer: int) -> None:
        self._engine(ids).run([self._request(row, answer) for row in ids])

    def _request(self, ids: list[int], answer: int) -> Request:
        options = SamplingParams(max_new_tokens=answer, ignore_eos=True)
        return Request.from_inputs({"input_ids": torch.tensor(ids)}, self._model.config, options)

    def _engine(self, ids: list[list[int]]) -> Engine:
        """One for each number of requests: graphs and cache stay, prompts are never found again."""
        count, budget = len(ids), max(*PROMPTS, len(ids) * CONTEXT)
        if count not in self._engines:
            limits = {"max_running": count, "token_budget": budget, "prompt_budget": budget}
            self._engines[count] = Engine(self._model, **limits, prefix_cache=False)
        return self._engines[count]


class Theirs:
    name = "transformers"

    def __init__(self, config: Qwen2_5_VLConfig, device: str) -> None:
        import transformers

        made, kind = transformers.Qwen2_5_VLConfig(**config.to_dict()), transformers.Qwen2_5_VLForConditionalGeneration
        with torch.device(device):
            model = kind._from_config(made, dtype=torch.bfloat16, attn_implementation="sdpa")
        self._model, self._device = model.eval(), device

    def tower(self, patches: torch.Tensor, grid: torch.Tensor) -> None:
        self._model.model.visual(patches, grid)

    def prefill(self, ids: list[list[int]]) -> None:
        self._model(torch.tensor(ids, device=self._device), logits_to_keep=1, use_cache=True)

    def decode(self, ids: list[list[int]], answer: int) -> float:
        """Seconds of a step: what an answer takes beyond that of one token, by tokens."""
        times = []
        for length in (1, answer + 1):
            start = time.perf_counter()
            self.together(ids, length)
            times.append(time.perf_counter() - start)
        return (times[1] - times[0]) / answer

    def together(self, ids: list[list[int]], answer: int) -> None:
        rows = torch.tensor(ids, device=self._device)
        options = {"max_new_tokens": answer, "min_new_tokens": answer, "do_sample": False, "pad_token_id": 0}
        self._model.generate(rows, attention_mask=torch.ones_like(rows), **options).tolist()


def prompts(count: int, length: int) -> list[list[int]]:
    return torch.randint(0, 1000, (count, length)).tolist()  # below the control tokens


@torch.inference_mode()
def measure(rows: list[Any], work: Work, device: str, options: argparse.Namespace, report: Report) -> None:
    """Every phase, with a share of the limits where there is one."""
    moved, computed = limits(device, report, options.rounds)

    def compare(what: str, run: Callable[[Any], Any], best: float = 0.0, tokens: int = 0) -> None:
        """best: the seconds that the limits allow; 0 = no such bound. tokens: shown as so many a second."""
        found = seconds({row.name: partial(run, row) for row in rows}, options.rounds)
        for name, value in found.items():
            figure, unit = (tokens / value, "tokens/s") if tokens else (value, "s")
            report.add(what, name, figure, unit, best / value if best else None)

    height, width = work.grid(PICTURE)
    grid = torch.tensor([[1, height, width]], device=device)
    patches = torch.randn(height * width, 1176, device=device, dtype=torch.bfloat16)
    compare(
        f"tower, {height * width // 4} tokens", lambda row: row.tower(patches, grid), work.tower(PICTURE) / computed
    )
    for n in PROMPTS:
        ids = prompts(1, n)
        compare(f"prefill, {n} tokens", lambda row, ids=ids: row.prefill(ids), work.prefill(n) / computed)
    ids, step = prompts(1, CONTEXT), work.step([CONTEXT + options.answer // 2], "bf16") / moved
    compare("decode, a token of one", lambda row: row.decode(ids, options.answer), step)
    for n in TOGETHER:
        ids = prompts(n, CONTEXT)
        compare(f"{n} together", lambda row, ids=ids: row.together(ids, options.answer), tokens=n * options.answer)


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    if not torch.cuda.is_available():
        print("bench/gpu.py needs a CUDA device, and torch finds none: nothing was measured", file=sys.stderr)
        return 2
    config, report = configuration(options.layers), Report(torch.cuda.get_device_name())
    rows: list[Any] = [Ours(config, "cuda")]
    if options.transformers:
        try:
            rows.append(Theirs(config, "cuda"))
        except ImportError as error:
            print(f"without transformers: {error}", file=sys.stderr)
    measure(rows, Work(config), "cuda", options, report)
    print(f"{report.device}, torch {torch.__version__}, {options.layers} text layers\n{report.table()}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {**asdict(report), "torch": torch.__version__, "layers": options.layers}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
