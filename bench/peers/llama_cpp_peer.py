"""llama.cpp as a peer of the benchmark (PROTOCOL.md), through the C functions that llama-cpp-python wraps: its classes
take one conversation at a time. The order is that of llama.cpp's server: a prompt is computed whole, then all decode
together. variant: "bf16", "q8_0", "q4_0" or "q4_k_m", with the tower in bf16. README.md says how to install it.
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = {"bf16": (32, "bf16"), "q8_0": (7, "int8"), "q4_0": (2, "int4"), "q4_k_m": (15, "int4")}  # file type, its like
RUNNING = 8  # requests answered together in `serve`
SEQUENCES = 16
CELLS = 24576  # tokens that the cache holds, of all sequences
BATCH = 2048  # tokens of one call
TALK = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
CONVERT = """
import sys
source, model, target, *more = sys.argv[1:]
sys.path[:0] = [source, source + "/gguf-py"]
import convert_hf_to_gguf as tool
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"  # known by a hash, which made-up vocabularies fail
sys.argv = ["convert", model, "--outfile", target, "--outtype", "bf16", *more]
tool.main()
"""


def open_peer(model: str, threads: int, variant: str, cache: str) -> LlamaCpp:
    return LlamaCpp(model, threads, variant or "bf16", cache)


class LlamaCpp:
    """The commands of PROTOCOL.md. LLAMA_CPP_SOURCE in the environment: llama.cpp's source tree, for `prepare`."""

    def __init__(self, model: str, threads: int, variant: str, cache: str) -> None:
        if variant not in KINDS:
            raise ValueError(f"variant {variant!r}: expected one of {', '.join(KINDS)}")
        self._checkpoint, self._threads, self._variant = model, threads, variant
        self._text, self._vision = Path(cache) / f"{variant}.gguf", Path(cache) / "mmproj.gguf"

    def about(self) -> dict[str, Any]:
        from importlib.metadata import version

        note = f"weights {self._variant}, tower bf16, cache of keys and values float16"
        return {"version": version("llama-cpp-python"), "weights": KINDS[self._variant][1], "note": note}

    def prepare(self) -> dict[str, Any]:
        whole = self._text.with_name("bf16.gguf")
        if not self._vision.exists():
            self._convert(self._vision, "--mmproj")
        if not self._text.exists() and not whole.exists():
            self._convert(whole)
        if not self._text.exists():
            import llama_cpp

            params = llama_cpp.llama_model_quantize_default_params()
            params.nthread, params.ftype = self._threads, KINDS[self._variant][0]
            part = self._text.with_suffix(".part")
            done = llama_cpp.llama_model_quantize(str(whole).encode(), str(part).encode(), ctypes.byref(params))
            if done != 0:
                raise RuntimeError(f"llama_model_quantize gave {done} for {self._variant}")
            part.rename(self._text)
            whole.unlink()
        return {}

    def _convert(self, target: Path, *more: str) -> None:
        source = os.environ.get("LLAMA_CPP_SOURCE", "")
        if not Path(source, "convert_hf_to_gguf.py").is_file():
            raise NotImplementedError(f"LLAMA_CPP_SOURCE={source!r}: expected llama.cpp's source tree (see README.md)")
        part = target.with_suffix(".part")
        subprocess.run([sys.executable, "-c", CONVERT, source, self._checkpoint, part, *more], check=True)
        part.rename(target)

    def load(self) -> dict[str, Any]:
        start = time.perf_counter()
        import llama_cpp
        import numpy
        from llama_cpp import mtmd_cpp

        self.lib, self.mtmd, self.numpy = llama_cpp, mtmd_cpp, numpy
        llama_cpp.llama_backend_init()
        plain = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(self._text).encode(), plain)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max, params.kv_unified = CELLS, BATCH, SEQUENCES, True
        params.n_threads = params.n_threads_batch = self._threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.words = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        eyes = mtmd_cpp.mtmd_context_params_default()
        eyes.use_gpu, eyes.n_threads = False, self._threads
        self.eyes = mtmd_cpp.mtmd_init_from_file(str(self._vision).encode(), self.model, eyes)
        if not (self.model and self.context and self.eyes):
            raise RuntimeError(f"llama.cpp could not open {self._text} and {self._vision}; its reason is in the log")
        return {"seconds": time.perf_counter() - start}

    def patches(self, picture: str) -> dict[str, Any]:
        start = time.perf_counter()
        chunks = self._chunks(self.mtmd.mtmd_default_marker().decode(), [picture])
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": self._media(chunks, lambda one: 0)}

    def tower(self, picture: str) -> dict[str, Any]:
        return self.frames([picture])

    def frames(self, pictures: list[str]) -> dict[str, Any]:
        marker = self.mtmd.mtmd_default_marker().decode()
        chunks = self._chunks(marker * len(pictures), pictures, mergeable=len(pictures) > 1)
        start = time.perf_counter()
        tokens = self._media(chunks, lambda one: self.mtmd.mtmd_encode_chunk(self.eyes, one))
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    def prefill(self, tokens: int, seed: int) -> dict[str, Any]:
        self.lib.llama_memory_clear(self.memory, False)
        [ids] = self._ordinary(1, tokens, seed)
        start = time.perf_counter()
        self._extend(ids, 0, 0)
        return {"seconds": time.perf_counter() - start}

    def decode(self, context: int, batch: int, steps: int, seed: int) -> dict[str, Any]:
        self.lib.llama_memory_clear(self.memory, False)
        prompts = self._ordinary(batch, context, seed)
        last = [(row, context, self._extend(ids, 0, row)) for row, ids in enumerate(prompts)]
        start = time.perf_counter()
        for _ in range(steps):
            last = self._step(last)
        return {"seconds": time.perf_counter() - start, "tokens": batch * steps}

    def answer(self, picture: str, prompt: str, new_tokens: int) -> dict[str, Any]:
        start = time.perf_counter()
        self.lib.llama_memory_clear(self.memory, False)
        place, token, tokens = self._ask(picture, prompt, 0)
        return {"times": self._go_on(place, token, new_tokens, start)[0], "prompt_tokens": tokens}

    def chat(self, picture: str, prompt: str, new_tokens: int, follow_up: str, next_tokens: int) -> dict[str, Any]:
        start = time.perf_counter()
        self.lib.llama_memory_clear(self.memory, False)
        place, token, _ = self._ask(picture, prompt, 0)
        first, place, token = self._go_on(place, token, new_tokens, start)
        start = time.perf_counter()
        added = [token, *self._ids("<|im_end|>\n" + TALK.format(follow_up))]
        token = self._extend(added, place, 0)
        second = self._go_on(place + len(added), token, next_tokens, start)[0]
        return {"turns": [{"times": first}, {"times": second}]}

    def serve(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        start = time.perf_counter()
        self.lib.llama_memory_clear(self.memory, False)
        times: list[list[float]] = [[] for _ in requests]
        running: dict[int, tuple[int, int, int]] = {}  # request -> its sequence, place and last token
        added = 0
        while added < len(requests) or running:
            if not running:
                time.sleep(max(0.0, requests[added]["at"] - (time.perf_counter() - start)))
            free = set(range(RUNNING)) - {row for row, _, _ in running.values()}
            while added < len(requests) and free and requests[added]["at"] <= time.perf_counter() - start:
                row = free.pop()
                running[added] = row, *self._ask(requests[added]["picture"], requests[added]["prompt"], row)[:2]
                times[added].append(time.perf_counter() - start)
                added += 1
            for number, (row, _, _) in list(running.items()):
                if len(times[number]) >= requests[number]["new_tokens"]:
                    self.lib.llama_memory_seq_rm(self.memory, row, -1, -1)
                    del running[number]
            if running:
                running = dict(zip(running, self._step(list(running.values())), strict=True))
                for number in running:
                    times[number].append(time.perf_counter() - start)
        return {"requests": [{"times": each} for each in times]}

    def _ask(self, picture: str, prompt: str, row: int) -> tuple[int, int, int]:
        """Compute a prompt with a picture: the place after it, the first token of the answer, and its length."""
        chunks = self._chunks(SYSTEM + TALK.format(self.mtmd.mtmd_default_marker().decode() + prompt), [picture])
        place = ctypes.c_int32(0)
        whole = (self.eyes, self.context, chunks, 0, row, BATCH, True, ctypes.byref(place))
        if self.mtmd.mtmd_helper_eval_chunks(*whole) != 0:
            raise RuntimeError("llama.cpp could not compute the prompt; its reason is in the log")
        tokens = self.mtmd.mtmd_helper_get_n_tokens(chunks)
        self.mtmd.mtmd_input_chunks_free(chunks)
        return place.value, self._likeliest(-1), tokens

    def _go_on(self, place: int, token: int, count: int, start: float) -> tuple[list[float], int, int]:
        """Decode sequence 0 to `count` tokens, the given one included: their times, and the last one's place and id."""
        last, times = [(0, place, token)], [time.perf_counter() - start]
        while len(times) < count:
            last = self._step(last)
            times.append(time.perf_counter() - start)
        return times, last[0][1], last[0][2]

    def _chunks(self, text: str, pictures: list[str], mergeable: bool = False) -> Any:
        """What a text with markers and pictures become: ids, and values for the tower. To be freed by the caller."""
        images = [self.mtmd.mtmd_helper_bitmap_init_from_file(self.eyes, p.encode(), False) for p in pictures]
        for image in images if mergeable else []:
            self.mtmd.mtmd_bitmap_set_mergeable(image, True)
        data = text.encode()
        given = self.mtmd.mtmd_input_text(data, len(data), False, True)
        chunks = self.mtmd.mtmd_input_chunks_init()
        array = (self.mtmd.mtmd_bitmap_p_ctypes * len(images))(*images)
        if self.mtmd.mtmd_tokenize(self.eyes, chunks, ctypes.byref(given), array, len(images)) != 0:
            raise RuntimeError(f"llama.cpp could not take {pictures}; its reason is in the log")
        for image in images:
            self.mtmd.mtmd_bitmap_free(image)
        return chunks

    def _media(self, chunks: Any, work: Callable[[Any], int]) -> int:
        """Do something with each picture's chunk and free them all; how many tokens they are."""
        lib, tokens = self.mtmd, 0
        for one in [lib.mtmd_input_chunks_get(chunks, i) for i in range(lib.mtmd_input_chunks_size(chunks))]:
            if lib.mtmd_input_chunk_get_type(one) == lib.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                tokens += lib.mtmd_input_chunk_get_n_tokens(one)
                if work(one) != 0:
                    raise RuntimeError("llama.cpp could not encode a picture; its reason is in the log")
        lib.mtmd_input_chunks_free(chunks)
        return tokens

    def _ids(self, text: str) -> list[int]:
        data = text.encode()
        found = (ctypes.c_int32 * (len(data) + 8))()
        return found[: self.lib.llama_tokenize(self.vocab, data, len(data), found, len(found), False, True)]

    def _ordinary(self, count: int, tokens: int, seed: int) -> list[list[int]]:
        draw = random.Random(seed)
        return [[draw.randrange(256, min(150_000, self.words * 3 // 4)) for _ in range(tokens)] for _ in range(count)]

    def _extend(self, ids: list[int], place: int, row: int) -> int:
        """Append ids to a sequence; the likeliest token after them."""
        for begin in range(0, len(ids), BATCH):
            part = ids[begin : begin + BATCH]
            self._run([(row, place + begin + i, token) for i, token in enumerate(part)], each=False)
        return self._likeliest(-1)

    def _step(self, last: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """One token more of each (sequence, place, token)."""
        self._run(last, each=True)
        return [(row, place + 1, self._likeliest(i)) for i, (row, place, _) in enumerate(last)]

    def _run(self, cells: list[tuple[int, int, int]], each: bool) -> None:
        """each: logits of all cells, else of the last."""
        batch = self.batch
        batch.n_tokens = len(cells)
        for i, (row, place, token) in enumerate(cells):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, place, 1, row
            batch.logits[i] = each or i == len(cells) - 1
        if self.lib.llama_decode(self.context, batch) != 0:
            raise RuntimeError(f"llama_decode failed on {len(cells)} tokens; its reason is in the log")

    def _likeliest(self, index: int) -> int:
        logits = self.lib.llama_get_logits_ith(self.context, index)
        return int(self.numpy.ctypeslib.as_array(logits, (self.words,)).argmax())
