"""The loop of every process that is measured: one JSON command a line in, one JSON answer a line out.

    PYTHON -P runner.py FILE --model FOLDER --threads 2 --variant int8 --cache FOLDER

FILE defines open_peer(model, threads, variant, cache); bench/peers/PROTOCOL.md says what it returns. This file needs
the standard library only, since it runs under the interpreters of the peers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from typing import Any, TextIO


def load_file(path: str) -> Any:
    """The module in a file, under a name that hides no library."""
    spec = importlib.util.spec_from_file_location("bench_peer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_peer"] = module
    spec.loader.exec_module(module)
    return module


def obey(peer: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Call the method that a command names; its errors become answers."""
    name = command.pop("do")
    method = getattr(peer, name, None)
    if name.startswith("_") or method is None:
        return {"unsupported": f"it has no {name}"}
    try:
        return dict(method(**command))
    except NotImplementedError as error:
        return {"unsupported": str(error)}
    except Exception as error:
        import traceback

        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def loop(peer: Any, commands: TextIO, answers: TextIO) -> None:
    """Obey until the commands end."""
    for line in iter(commands.readline, ""):
        answers.write(json.dumps(obey(peer, json.loads(line))) + "\n")
        answers.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    for name in ("model", "variant", "cache"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not come between the answers
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    peer = load_file(given.file).open_peer(given.model, given.threads, given.variant, given.cache)
    loop(peer, sys.stdin, answers)


if __name__ == "__main__":
    main()
