"""Peers of the benchmark that need no library: files that runner.py can run, for tests of what is around them."""

from __future__ import annotations

import sys
from pathlib import Path

from qwenvl.bench.process import Row

FAKE = """
import os, time
def open_peer(model, threads, variant, cache):
    return Fake(model, variant, cache)
class Fake:
    def __init__(self, model, variant, cache):
        self.model, self.variant, self.cache = model, variant, cache
    def note(self, what):
        with open(os.path.join(self.model, "order.txt"), "a") as file:
            file.write(f"{self.variant or 'plain'} {what}\\n")
    def about(self):
        return {"version": "1", "weights": "bf16", "note": ""}
    def prepare(self):
        open(os.path.join(self.cache, "converted"), "w").close()
        return {}
    def load(self):
        print("noise on stdout")
        return {"seconds": 0.0}
    def limits(self):
        return {"gflops": 100.0, "gbs": 10.0}
    def tower(self, picture):
        self.note("tower " + os.path.basename(picture))
        if self.variant == "dies":
            os._exit(3)
        return {"seconds": 2.0 if self.variant else 1.0, "tokens": 9}
    def prefill(self, tokens, seed):
        raise NotImplementedError("it has no text model")
    def patches(self, picture):
        raise ValueError("a bad picture")
    def answer(self, picture, prompt, new_tokens):
        return {"times": [0.5 + i for i in range(new_tokens)], "prompt_tokens": 3}
    def decode(self, context, batch, steps, seed):
        return {"seconds": context * steps * 1e-3, "tokens": batch * steps}
"""


def fake_row(folder: Path, name: str = "qwenvl", variant: str = "") -> Row:
    """A row whose file lies in `folder`. Variant "dies" ends in its first tower; any variant is half as fast."""
    file = folder / "fake.py"
    file.write_text(FAKE)
    return Row(name, file, sys.executable, variant)
