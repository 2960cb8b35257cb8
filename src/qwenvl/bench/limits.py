"""The machine's own limits, as a runner: how fast torch multiplies and how fast memory is read, on all threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qwenvl.planning.calibration import timed

SIDE = 2048
BYTES = 2**29  # well beyond any cache
ROUNDS = 7


def open_peer(model: str, threads: int, variant: str, cache: str) -> Limits:
    return Limits(threads)


class Limits:
    """matmul: two bf16 matrices of SIDE x SIDE. read: the best of three readers over BYTES of float32."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def load(self) -> dict[str, Any]:
        import torch

        torch.set_num_threads(self._threads)
        self._pair = [torch.randn(SIDE, SIDE).bfloat16() for _ in range(2)]
        self._long = torch.randn(BYTES // 4)
        return {}

    def limits(self) -> dict[str, Any]:
        """GFLOP/s and GB/s, medians of ROUNDS runs after one that is not counted."""
        import torch

        (a, b), x = self._pair, self._long
        readers: list[Callable[[], Any]] = [x.sum, x.max, lambda: torch.dot(x, x)]
        return {
            "gflops": 2 * SIDE**3 / timed(lambda: a @ b, ROUNDS) / 1e9,
            "gbs": BYTES / min(timed(reader, ROUNDS) for reader in readers) / 1e9,
        }
