"""How long the program takes to start and to answer, in terms of `import torch` on the same machine.

    python bench/start.py [rounds]

Runs are interleaved, so that a busy machine slows all of them, and the median of each is shown.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from qwenvl.demo.samples import PICTURES

PROGRAM = str(Path(sys.executable).parent / "qwenvl")
RUNS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import qwenvl": [sys.executable, "-c", "import qwenvl"],
    "import torch": [sys.executable, "-c", "import torch"],
    "qwenvl --help": [PROGRAM, "--help"],
    "qwenvl ask": [PROGRAM, "ask", str(PICTURES / "three-shapes.png"), "Describe this image."],
}


def main(rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in RUNS}
    for _ in range(rounds):
        for name, command in RUNS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    unit = statistics.median(seconds["import torch"])
    print(f"{'run':<18}{'median s':>10}{'x import torch':>16}")
    for name, values in seconds.items():
        print(f"{name:<18}{statistics.median(values):>10.3f}{statistics.median(values) / unit:>16.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
