"""transformers as a peer of the benchmark: bf16, sdpa, generate(). The worked example of PROTOCOL.md."""

from __future__ import annotations

import random
import time
from typing import Any

SYSTEM = "You are a helpful assistant."


def open_peer(model: str, threads: int, variant: str, cache: str) -> Transformers:
    if variant:
        raise ValueError(f"variant {variant!r} is not known: transformers runs in bf16 only")
    return Transformers(model, threads)


class Clock:
    """A streamer that only notes when each token came; rows of a batch come together."""

    def __init__(self, start: float) -> None:
        self.start, self.times = start, list[float]()

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter() - self.start)

    def end(self) -> None:
        del self.times[0]  # the prompt

    def first(self, count: int) -> list[float]:
        return self.times[:count]


class Transformers:
    """Static batches: transformers has no scheduler for pictures, so `serve` takes what has arrived, 8 at most."""

    def __init__(self, model: str, threads: int) -> None:
        self.folder, self.threads = model, threads

    def about(self) -> dict[str, Any]:
        from importlib.util import find_spec

        import transformers

        note = "" if find_spec("torchvision") else "no torchvision: pictures by the PIL path"
        return {"version": transformers.__version__, "weights": "bf16", "note": note}

    def prepare(self) -> dict[str, Any]:
        return {}

    def load(self) -> dict[str, Any]:
        start = time.perf_counter()
        import torch
        from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        # not AutoProcessor: it needs torchvision for videos. Its work for pictures is done in inputs().
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder, padding_side="left")
        self.images = AutoImageProcessor.from_pretrained(self.folder)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            self.folder, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.do_sample = False
        return {"seconds": time.perf_counter() - start}

    def patches(self, picture: str) -> dict[str, Any]:
        start = time.perf_counter()
        grid = self.pixels([picture])["image_grid_thw"]
        return {"seconds": time.perf_counter() - start, "tokens": int(grid.prod()) // 4}

    def tower(self, picture: str) -> dict[str, Any]:
        made = self.pixels([picture])
        return self.encode(made["pixel_values"], made["image_grid_thw"])

    def frames(self, pictures: list[str]) -> dict[str, Any]:
        made = self.pixels(pictures)  # a video's values are those of its frames, two in a row
        grid = made["image_grid_thw"][:1].clone()
        grid[0, 0] = len(pictures) // 2
        return self.encode(made["pixel_values"][: int(grid.prod())], grid)

    def encode(self, pixels: Any, grid: Any) -> dict[str, Any]:
        start = time.perf_counter()
        self.model.model.visual(pixels.to(self.torch.bfloat16), grid_thw=grid)
        return {"seconds": time.perf_counter() - start, "tokens": int(grid.prod()) // 4}

    def prefill(self, tokens: int, seed: int) -> dict[str, Any]:
        ids = self.ordinary(1, tokens, seed)
        start = time.perf_counter()
        self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return {"seconds": time.perf_counter() - start}

    def decode(self, context: int, batch: int, steps: int, seed: int) -> dict[str, Any]:
        ids = self.ordinary(batch, context, seed)
        times = self.generate({"input_ids": ids, "attention_mask": self.torch.ones_like(ids)}, steps + 1).times
        return {"seconds": times[-1] - times[0], "tokens": batch * steps}

    def answer(self, picture: str, prompt: str, new_tokens: int) -> dict[str, Any]:
        start = time.perf_counter()
        inputs = self.inputs([picture], [[("user", prompt)]])
        clock = self.generate(inputs, new_tokens, start)
        return {"times": clock.times, "prompt_tokens": inputs["input_ids"].shape[1]}

    def chat(self, picture: str, prompt: str, new_tokens: int, follow_up: str, next_tokens: int) -> dict[str, Any]:
        turns, talk = [], [("user", prompt)]
        for wanted in (new_tokens, next_tokens):
            start = time.perf_counter()
            inputs = self.inputs([picture], [talk])
            clock = self.generate(inputs, wanted, start)
            turns.append({"times": clock.times})
            answer = self.tokenizer.decode(self.made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            talk += [("assistant", answer), ("user", follow_up)]
        return {"turns": turns}

    def serve(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        start, answers = time.perf_counter(), list[dict[str, Any]]()
        while len(answers) < len(requests):
            left = requests[len(answers) :]
            time.sleep(max(0.0, left[0]["at"] - (time.perf_counter() - start)))
            ready = [one for one in left if one["at"] <= time.perf_counter() - start][:8]
            inputs = self.inputs([one["picture"] for one in ready], [[("user", one["prompt"])] for one in ready])
            clock = self.generate(inputs, max(one["new_tokens"] for one in ready), start)
            answers += [{"times": clock.first(one["new_tokens"])} for one in ready]
        return {"requests": answers}

    def ordinary(self, count: int, tokens: int, seed: int) -> Any:
        """Ids [count, tokens] of text and no control token."""
        draw = random.Random(seed)
        top = min(150_000, self.model.config.text_config.vocab_size * 3 // 4)
        return self.torch.tensor([[draw.randrange(256, top) for _ in range(tokens)] for _ in range(count)])

    def pixels(self, pictures: list[str]) -> Any:
        from PIL import Image

        return self.images(images=[Image.open(path) for path in pictures], return_tensors="pt")

    def inputs(self, pictures: list[str], talks: list[list[tuple[str, str]]]) -> dict[str, Any]:
        """What the processor gives for conversations whose first message shows a picture, padded on the left."""
        made = dict(self.pixels(pictures))
        texts = []
        for grid, talk in zip(made["image_grid_thw"], talks, strict=True):
            pads = "<|image_pad|>" * (int(grid.prod()) // 4)
            [(_, asked), *others] = talk
            shown = [("system", SYSTEM), ("user", f"<|vision_start|>{pads}<|vision_end|>{asked}"), *others]
            turns = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in shown)
            texts.append(f"{turns}<|im_start|>assistant\n")
        made.update(self.tokenizer(texts, padding=True, return_tensors="pt"))
        made["mm_token_type_ids"] = (made["input_ids"] == self.model.config.image_token_id).int()
        return made

    def generate(self, inputs: dict[str, Any], new_tokens: int, start: float | None = None) -> Clock:
        clock = Clock(time.perf_counter() if start is None else start)
        self.made = self.model.generate(**inputs, max_new_tokens=new_tokens, streamer=clock)
        return clock
