"""qwenvl as a runner of the benchmark. The only file here that knows processor, model and engine.

Everything goes the way of a user's call: Assistant, its processor's inputs, Request, Engine.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenvl.engine import Engine, Request
    from qwenvl.tasks import Assistant
    from qwenvl.types import SamplingParams

RUNNING = 8  # requests answered together, of all rows
ORDINARY = 256  # the first id that is text and no single byte


def open_peer(model: str, threads: int, variant: str, cache: str) -> Ours:
    return Ours(model, threads, variant)


class Ours:
    """The commands of PROTOCOL.md. variant: "" (the checkpoint's dtype), or what `quantize` takes."""

    def __init__(self, model: str, threads: int, variant: str) -> None:
        self._folder, self._threads, self._variant = model, threads, variant
        self._loaded: Assistant | None = None

    @property
    def _assistant(self) -> Assistant:
        if self._loaded is None:
            raise RuntimeError("the command `load` has to come first")
        return self._loaded

    def about(self) -> dict[str, Any]:
        from qwenvl import __version__

        return {"version": __version__, "weights": self._variant or "bf16", "note": ""}

    def prepare(self) -> dict[str, Any]:
        return {}

    def load(self) -> dict[str, Any]:
        start = time.perf_counter()
        import torch

        from qwenvl.tasks import Assistant

        torch.set_num_threads(self._threads)
        quantize: dict[str, Any] = {"quantize": self._variant} if self._variant else {}
        self._loaded = Assistant(self._folder, max_running=RUNNING, draft_tokens=0, **quantize)
        return {"seconds": time.perf_counter() - start}

    def patches(self, picture: str) -> dict[str, Any]:
        start = time.perf_counter()
        inputs = self._pixels(picture)
        return {"seconds": time.perf_counter() - start, "tokens": int(inputs["image_grid_thw"].prod()) // 4}

    def tower(self, picture: str) -> dict[str, Any]:
        inputs = self._pixels(picture)
        return self._encode(inputs["pixel_values"], inputs["image_grid_thw"], inputs["pixel_affine"])

    def frames(self, pictures: list[str]) -> dict[str, Any]:
        import torch
        from PIL import Image

        processor = self._assistant.processor.video_processor
        inputs = processor([[Image.open(path) for path in pictures]], do_resize=False, pixel_dtype=torch.uint8)
        return self._encode(inputs["pixel_values_videos"], inputs["video_grid_thw"], inputs["pixel_affine_videos"])

    def _pixels(self, picture: str) -> Any:
        """What the engine takes of a picture."""
        import torch

        return self._assistant.processor.image_processor(picture, pixel_dtype=torch.uint8)

    def _encode(self, pixels: Any, grid: Any, affine: Any) -> dict[str, Any]:
        import torch

        start = time.perf_counter()
        with torch.inference_mode():
            embeds = self._assistant.model.encode_vision(pixels, grid, affine)
        return {"seconds": time.perf_counter() - start, "tokens": len(embeds)}

    def prefill(self, tokens: int, seed: int) -> dict[str, Any]:
        [request] = self._texts(1, tokens, seed, new_tokens=1)
        times = follow(self._assistant.engine, [request])
        return {"seconds": times[0][0]}

    def decode(self, context: int, batch: int, steps: int, seed: int) -> dict[str, Any]:
        """An engine of its own, so that more than RUNNING run together; it is dropped with what is unanswered."""
        from qwenvl.engine import Engine

        engine = Engine(self._assistant.model, None, max_running=batch)
        spare = (
            2 + batch * context // 1024
        )  # those whose prompt came first are ahead by the steps of the others' prompts
        times = follow(engine, self._texts(batch, context, seed, steps + spare), steps)
        start, end = max(each[0] for each in times), max(each[-1] for each in times)
        return {"seconds": end - start, "tokens": sum(start < at <= end for each in times for at in each)}

    def answer(self, picture: str, prompt: str, new_tokens: int) -> dict[str, Any]:
        start = time.perf_counter()
        request, _ = self._assistant.prepare([picture], prompt, greedy(new_tokens))
        times = follow(self._assistant.engine, [request], since=start)
        return {"times": times[0], "prompt_tokens": len(request.prompt_ids)}

    def chat(self, picture: str, prompt: str, new_tokens: int, follow_up: str, next_tokens: int) -> dict[str, Any]:
        first = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]}
        turns: list[dict[str, Any]] = []
        messages: list[dict[str, Any]] = [first]
        for wanted in (new_tokens, next_tokens):
            start = time.perf_counter()
            request = self._request(messages, wanted)
            times = follow(self._assistant.engine, [request], since=start)
            turns.append({"times": times[0]})
            said = {"role": "assistant", "content": request.completion().text}
            messages += [said, {"role": "user", "content": follow_up}]
        return {"turns": turns}

    def serve(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        engine, start = self._assistant.engine, time.perf_counter()
        waiting, times = list(requests), {}
        while waiting or engine.has_work:
            if not engine.has_work:
                time.sleep(max(0.0, waiting[0]["at"] - (time.perf_counter() - start)))
            while waiting and waiting[0]["at"] <= time.perf_counter() - start:
                one = waiting.pop(0)
                request, _ = self._assistant.prepare([one["picture"]], one["prompt"], greedy(one["new_tokens"]))
                times[engine.add(request)] = list[float]()
            step(engine, times, start)
        return {"requests": [{"times": each} for each in times.values()]}

    def _texts(self, count: int, tokens: int, seed: int, new_tokens: int) -> list[Request]:
        """Requests with prompts of ordinary ids, all different."""
        from qwenvl.engine import Request

        draw, config = random.Random(seed), self._assistant.model.config
        top = min(150_000, config.text_config.vocab_size * 3 // 4)
        return [
            Request.from_inputs(
                {"input_ids": [draw.randrange(ORDINARY, top) for _ in range(tokens)]}, config, greedy(new_tokens)
            )
            for _ in range(count)
        ]

    def _request(self, messages: list[dict[str, Any]], new_tokens: int) -> Request:
        import torch

        from qwenvl.engine import Request

        inputs = self._assistant.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            pixel_dtype=torch.uint8,
        )  # fmt: skip
        return Request.from_inputs(inputs, self._assistant.model.config, greedy(new_tokens))


def greedy(new_tokens: int) -> SamplingParams:
    """Exactly so many tokens, the likeliest ones."""
    from qwenvl.types import SamplingParams

    return SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)


def follow(
    engine: Engine, requests: list[Request], steps: int | None = None, since: float | None = None
) -> list[list[float]]:
    """When each token of each request came, in seconds since `since` (default: now).

    steps: stop so many steps after the last request got its first token, whatever is unanswered.
    """
    start = time.perf_counter() if since is None else since
    times: dict[str, list[float]] = {engine.add(request): [] for request in requests}
    done = 0
    while engine.has_work and done != steps:
        done += all(times.values())
        step(engine, times, start)
    return list(times.values())


def step(engine: Engine, times: dict[str, list[float]], start: float) -> None:
    """One step of the engine; notes when its tokens came. RuntimeError where a request failed."""
    for event in engine.step():
        if event.error is not None:
            raise RuntimeError(event.error)
        if event.token_id is not None:
            times[event.request_id].append(time.perf_counter() - start)
