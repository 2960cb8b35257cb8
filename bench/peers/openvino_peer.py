"""OpenVINO GenAI as a peer of the benchmark (PROTOCOL.md). README.md beside this file says how to install it.

Everything goes through the continuous batching pipeline. Its prefix cache is off, except for `chat`, whose second turn
is what the cache is for. variant: the weights' format of optimum-cli, "fp16" (computes in bf16), "int8" or "int4".
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RUNNING = 8  # requests answered together in `serve`
LONGEST = 16384  # tokens of one step: prompts are not cut, as in the library's own pipeline for single requests
ORDINARY = 256  # the first id that is text and no single byte
NOTE = "activations bf16, cache of keys and values 8 bits (its default); tower: from the decoded picture, with resizing"


def open_peer(model: str, threads: int, variant: str, cache: str) -> OpenVino:
    return OpenVino(model, threads, variant or "fp16", cache)


class OpenVino:
    """The commands of PROTOCOL.md. variant: see above."""

    def __init__(self, model: str, threads: int, variant: str, cache: str) -> None:
        if variant not in ("fp16", "int8", "int4"):
            raise ValueError(f"variant {variant!r}: expected fp16, int8 or int4")
        self._model, self._threads, self._variant = model, threads, variant
        self._folder = Path(cache) / f"openvino-{variant}"
        self._pipe: Any = None
        self._keeps: bool | None = None  # whether the open pipeline has a prefix cache
        self._count, self._vocabulary = 0, list[str]()

    def about(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {
            "version": version("openvino-genai"),
            "weights": "bf16" if self._variant == "fp16" else self._variant,
            "note": NOTE,
        }

    def prepare(self) -> dict[str, Any]:
        if not (self._folder / "openvino_config.json").is_file():
            program = Path(sys.executable).parent / "optimum-cli"
            subprocess.run(
                [program, "export", "openvino", "-m", self._model, "--task", "image-text-to-text",
                 "--weight-format", self._variant, self._folder],
                check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        return {}

    def load(self) -> dict[str, Any]:
        start = time.perf_counter()
        self._open(keeps=False)
        return {"seconds": time.perf_counter() - start}

    def tower(self, picture: str) -> dict[str, Any]:
        return self._encode(images=[image(picture)])

    def frames(self, pictures: list[str]) -> dict[str, Any]:
        import numpy as np
        import openvino as ov
        import openvino_genai as genai
        from PIL import Image

        frames = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in pictures])
        known = genai.VideoMetadata()
        known.frames_indices = list(range(len(pictures)))
        return self._encode(images=[], videos=[ov.Tensor(frames)], videos_metadata=[known])

    def _encode(self, **media: Any) -> dict[str, Any]:
        """The library embeds a request's picture when the request is added. The rest of it is done, but not timed."""
        pipe = self._open(keeps=False)
        start = time.perf_counter()
        handle = pipe.add_request(self._number(), "\n", generation_config=greedy(1, template=False), **media)
        seconds = time.perf_counter() - start
        drain(pipe)
        around = 3  # start and end of the picture, and the end of line
        return {"seconds": seconds, "tokens": handle.get_perf_metrics().get_num_input_tokens() - around}

    def prefill(self, tokens: int, seed: int) -> dict[str, Any]:
        pipe = self._open(keeps=False)
        prompt = self._prompts(1, tokens, seed)[0]
        start = time.perf_counter()
        handle = pipe.add_request(self._number(), prompt, generation_config=greedy(1, template=False))
        drain(pipe)
        seconds = time.perf_counter() - start
        got = handle.get_perf_metrics().get_num_input_tokens()
        if got != tokens:
            raise RuntimeError(f"a prompt of {tokens} tokens was wanted, the library counts {got}")
        return {"seconds": seconds}

    def answer(self, picture: str, prompt: str, new_tokens: int) -> dict[str, Any]:
        pipe = self._open(keeps=False)
        start = time.perf_counter()
        handle = self._ask(pipe, picture, prompt, new_tokens)
        times: list[float] = []
        while pipe.has_non_finished_requests():
            pipe.step()
            times += [time.perf_counter() - start] * arrived(handle)
        return {"times": times, "prompt_tokens": handle.get_perf_metrics().get_num_input_tokens()}

    def decode(self, context: int, batch: int, steps: int, seed: int) -> dict[str, Any]:
        pipe = self._open(keeps=False)
        config = greedy(steps + 2 + batch * context // 1024, template=False)
        prompts = self._prompts(batch, context, seed)
        handles = [pipe.add_request(self._number(), prompt, generation_config=config) for prompt in prompts]
        waiting = set(range(batch))
        while waiting:
            pipe.step()
            waiting -= {i for i in waiting if arrived(handles[i])}
        for handle in handles:
            arrived(handle)
        start, tokens = time.perf_counter(), 0
        for _ in range(steps):
            pipe.step()
            tokens += sum(arrived(handle) for handle in handles)
        seconds = time.perf_counter() - start
        for handle in handles:
            handle.cancel()
        drain(pipe)
        return {"seconds": seconds, "tokens": tokens}

    def serve(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        pipe, start = self._open(keeps=False), time.perf_counter()
        times: list[list[float]] = [[] for _ in requests]
        running: dict[int, Any] = {}
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
                running[added] = self._ask(pipe, one["picture"], one["prompt"], one["new_tokens"])
                added += 1
            pipe.step()
            for number, handle in list(running.items()):
                times[number] += [time.perf_counter() - start] * arrived(handle)
                if len(times[number]) >= requests[number]["new_tokens"]:
                    del running[number]
        drain(pipe)
        return {"requests": [{"times": each} for each in times]}

    def chat(self, picture: str, prompt: str, new_tokens: int, follow_up: str, next_tokens: int) -> dict[str, Any]:
        pipe = self._open(keeps=True)
        turns = []
        pipe.start_chat()
        for number, (text, wanted) in enumerate(((prompt, new_tokens), (follow_up, next_tokens))):
            clock = stopwatch()
            images = [image(picture)] if number == 0 else []
            pipe.generate([text], images=[images], generation_config=[greedy(wanted)], streamer=clock)
            turns.append({"times": clock.times})
        pipe.finish_chat()
        return {"turns": turns}

    def _open(self, keeps: bool) -> Any:
        """The pipeline with or without prefix cache; another one is closed first."""
        if self._keeps is not keeps:
            import openvino_genai as genai

            self._pipe, self._keeps = None, None
            scheduler = genai.SchedulerConfig()
            scheduler.enable_prefix_caching = keeps
            scheduler.max_num_batched_tokens = LONGEST
            self._pipe = genai.ContinuousBatchingPipeline(
                self._folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": self._threads}
            )
            self._keeps = keeps
        return self._pipe

    def _ask(self, pipe: Any, picture: str, prompt: str, new_tokens: int) -> Any:
        return pipe.add_request(self._number(), prompt, images=[image(picture)], generation_config=greedy(new_tokens))

    def _number(self) -> int:
        self._count += 1
        return self._count

    def _prompts(self, count: int, tokens: int, seed: int) -> list[str]:
        """Different texts of exactly so many tokens: the library takes no ids for such a model. Letters that are one
        token stay one on a line of their own, and so does the end of the line."""
        if not self._vocabulary:
            words = json.loads((Path(self._model) / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
            plain = [word for word, number in words.items() if number >= ORDINARY and word.isascii() and word.isalpha()]
            tokenizer = self._pipe.get_tokenizer()
            found = random.Random(0).sample(plain, min(4096, len(plain)))
            self._vocabulary = [w for w in found if tokenizer.encode(w).input_ids.shape[1] == 1]
        draw = random.Random(seed)
        made = []
        for _ in range(count):
            text = "\n".join(draw.choice(self._vocabulary) for _ in range((tokens + 1) // 2))
            made.append(text if tokens % 2 else text + "\n")
        return made


def image(path: str) -> Any:
    import numpy as np
    import openvino as ov
    from PIL import Image

    return ov.Tensor(np.asarray(Image.open(path).convert("RGB"))[None])


def greedy(new_tokens: int, template: bool = True) -> Any:
    import openvino_genai as genai

    return genai.GenerationConfig(
        max_new_tokens=new_tokens, ignore_eos=True, do_sample=False, apply_chat_template=template
    )


def arrived(handle: Any) -> int:
    """How many tokens came since the last call."""
    if not handle.can_read():
        return 0
    return sum(len(output.generated_ids) for output in handle.read().values())


def drain(pipe: Any) -> None:
    while pipe.has_non_finished_requests():
        pipe.step()


def stopwatch() -> Any:
    """A streamer that notes when tokens come, in seconds from now."""
    import openvino_genai as genai

    class Stopwatch(genai.StreamerBase):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.times = time.perf_counter(), list[float]()

        def write(self, token: int | list[int]) -> Any:
            self.times += [time.perf_counter() - self.start] * (len(token) if isinstance(token, list) else 1)
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    return Stopwatch()
