"""vLLM on the CPU as a peer of the benchmark (PROTOCOL.md): bf16, compiled, its engine in this process.

README.md beside this file says how to install it. variant: "" or "eager" (not compiled; starts sooner).
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

RUNNING = 8  # requests answered together in `serve`
SEQUENCES = 16
LONGEST = 9216  # tokens of a sequence
CACHE_GIB = 1  # keys and values: 131,072 tokens of the 8-layer checkpoint
ADDED = 151_643  # the first id that is no text
TALK = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
NOTE = "{}; prefix cache on; the largest picture is not tried out at start (skip_mm_profiling)"


def open_peer(model: str, threads: int, variant: str, cache: str) -> Vllm:
    return Vllm(model, threads, variant, cache)


class Vllm:
    """The commands of PROTOCOL.md."""

    def __init__(self, model: str, threads: int, variant: str, cache: str) -> None:
        if variant not in ("", "eager"):
            raise ValueError(f"variant {variant!r}: expected eager, or none")
        self._folder, self._eager, self._count = model, variant == "eager", 0
        self.seen: dict[str, int] = {}  # tokens of each request that were told
        os.environ |= {
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # "auto" keeps a core for serving, of two
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
            "VLLM_CACHE_ROOT": str(Path(cache) / "vllm"),
            "TORCHINDUCTOR_CACHE_DIR": str(Path(cache) / "inductor"),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def about(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {
            "version": version("vllm-cpu"),
            "weights": "bf16",
            "note": NOTE.format("eager" if self._eager else "compiled"),
        }

    def prepare(self) -> dict[str, Any]:
        """Compile once: the compiled code stays in `cache`, as it does between a user's starts."""
        self.load()
        return {}

    def load(self) -> dict[str, Any]:
        start = time.perf_counter()
        from transformers import AutoImageProcessor, AutoTokenizer
        from vllm import LLM, SamplingParams

        self.sampling = SamplingParams
        self.tokenizer = AutoTokenizer.from_pretrained(self._folder)
        self.images = AutoImageProcessor.from_pretrained(self._folder)
        self.llm = LLM(
            self._folder,
            dtype="bfloat16",
            enforce_eager=self._eager,
            max_model_len=LONGEST,
            max_num_seqs=SEQUENCES,
            limit_mm_per_prompt={"image": 1, "video": 1},
            skip_mm_profiling=True,
            disable_log_stats=True,
            seed=0,
        )
        self.engine = self.llm.llm_engine
        return {"seconds": time.perf_counter() - start}

    def patches(self, picture: str) -> dict[str, Any]:
        start = time.perf_counter()
        grid = self._pixels([picture])["image_grid_thw"]
        return {"seconds": time.perf_counter() - start, "tokens": int(grid.prod()) // 4}

    def tower(self, picture: str) -> dict[str, Any]:
        made = self._pixels([picture])
        return self._encode(pixel_values=made["pixel_values"], image_grid_thw=made["image_grid_thw"])

    def frames(self, pictures: list[str]) -> dict[str, Any]:
        import torch

        made = self._pixels(pictures)  # a video's values are those of its frames, two in a row
        grid = made["image_grid_thw"][:1].clone()
        grid[0, 0] = len(pictures) // 2
        values = made["pixel_values"][: int(grid.prod())]
        return self._encode(pixel_values_videos=values, video_grid_thw=grid, second_per_grid_ts=torch.ones(1))

    def _encode(self, **inputs: Any) -> dict[str, Any]:
        import torch

        inputs = {name: value.bfloat16() if "pixel" in name else value for name, value in inputs.items()}

        def work(worker: Any) -> tuple[float, int]:
            with torch.inference_mode():
                start = time.perf_counter()
                [embeds] = worker.model_runner.model.embed_multimodal(**inputs)
                return time.perf_counter() - start, len(embeds)

        [(seconds, tokens)] = self.llm.collective_rpc(work)
        return {"seconds": seconds, "tokens": tokens}

    def prefill(self, tokens: int, seed: int) -> dict[str, Any]:
        [prompt] = self._ordinary(1, tokens, seed)
        start = time.perf_counter()
        number = self._add(prompt, 1)
        return {"seconds": self._follow([number], start)[number][0]}

    def decode(self, context: int, batch: int, steps: int, seed: int) -> dict[str, Any]:
        wanted = steps + 2 + batch * context // 1024  # those whose prompt came first are ahead by some steps
        numbers = [self._add(prompt, wanted) for prompt in self._ordinary(batch, context, seed)]
        times = self._follow(numbers, time.perf_counter(), steps)
        self.engine.abort_request(numbers)
        begin, end = max(each[0] for each in times.values()), max(each[-1] for each in times.values())
        tokens = sum(begin < at <= end for each in times.values() for at in each)
        return {"seconds": end - begin, "tokens": tokens}

    def answer(self, picture: str, prompt: str, new_tokens: int) -> dict[str, Any]:
        start = time.perf_counter()
        number = self._add(self._shown(SYSTEM + TALK.format(PICTURE + prompt), picture), new_tokens)
        times = self._follow([number], start)[number]
        return {"times": times, "prompt_tokens": self.asked}

    def chat(self, picture: str, prompt: str, new_tokens: int, follow_up: str, next_tokens: int) -> dict[str, Any]:
        text, turns = self.tokenizer.encode(SYSTEM + TALK.format(PICTURE + prompt)), []
        for wanted in (new_tokens, next_tokens):
            start = time.perf_counter()
            number = self._add(self._shown(text, picture), wanted)
            turns.append({"times": self._follow([number], start)[number]})
            said = [token for token in self.said if token < ADDED]
            text = [*text, *said, *self.tokenizer.encode("<|im_end|>\n" + TALK.format(follow_up))]
        return {"turns": turns}

    def serve(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        start = time.perf_counter()
        times: list[list[float]] = [[] for _ in requests]
        running: dict[str, int] = {}
        added = 0
        while added < len(requests) or running:
            if not running:
                time.sleep(max(0.0, requests[added]["at"] - (time.perf_counter() - start)))
            while (
                added < len(requests)
                and len(running) < RUNNING
                and requests[added]["at"] <= time.perf_counter() - start
            ):
                one = requests[added]
                prompt = self._shown(SYSTEM + TALK.format(PICTURE + one["prompt"]), one["picture"])
                running[self._add(prompt, one["new_tokens"])] = added
                added += 1
            for name, tokens, finished in self._step():
                times[running[name]] += [time.perf_counter() - start] * tokens
                if finished:
                    del running[name]
        return {"requests": [{"times": each} for each in times]}

    def _follow(self, names: list[str], start: float, steps: int = -1) -> dict[str, list[float]]:
        """When the tokens of these requests came. steps: stop so many steps after all had their first."""
        times: dict[str, list[float]] = {name: [] for name in names}
        while self.engine.has_unfinished_requests() and steps != 0:
            steps -= all(times.values())
            for name, tokens, _ in self._step():
                times[name] += [time.perf_counter() - start] * tokens
        return times

    def _step(self) -> list[tuple[str, int, bool]]:
        """One step of the engine: (request, how many tokens are new, whether it is finished) of those that got any."""
        found = []
        for output in self.engine.step():
            ids = output.outputs[0].token_ids
            found.append((output.request_id, len(ids) - self.seen.get(output.request_id, 0), output.finished))
            self.seen[output.request_id] = len(ids)
            self.said, self.asked = list(ids), len(output.prompt_token_ids)
        return found

    def _add(self, prompt: dict[str, Any], new_tokens: int) -> str:
        self._count += 1
        name = str(self._count)
        params = self.sampling(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        self.engine.add_request(name, prompt, params)
        return name

    def _shown(self, text: str | list[int], picture: str) -> dict[str, Any]:
        from PIL import Image

        key = "prompt" if isinstance(text, str) else "prompt_token_ids"
        return {key: text, "multi_modal_data": {"image": Image.open(picture).convert("RGB")}}

    def _ordinary(self, count: int, tokens: int, seed: int) -> list[dict[str, Any]]:
        draw, top = random.Random(seed), len(self.tokenizer) * 3 // 4
        return [{"prompt_token_ids": [draw.randrange(256, top) for _ in range(tokens)]} for _ in range(count)]

    def _pixels(self, pictures: list[str]) -> Any:
        from PIL import Image

        return self.images(images=[Image.open(path).convert("RGB") for path in pictures], return_tensors="pt")
