"""The native library: found, checked against this processor, and loaded once; None where it cannot be used.

It is plain C with AVX-512 intrinsics (csrc/), built when the package is installed, and called through ctypes with the
addresses of tensors. It runs on torch's own OpenMP threads. Without a compiler, on another processor, or with
QWENVL_NATIVE=0 in the environment, the callers in this folder use torch's operators. QWENVL_NATIVE=/path/to/library
loads that file.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
ADDRESS, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni", "fma"}


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library, or None; `reason()` says why."""
    found = _path()
    if isinstance(found, str):
        return None
    loaded = ctypes.CDLL(str(found))
    openmp = _openmp()
    loaded.qv_init(ctypes.c_void_p(openmp))
    return loaded


def native_function(name: str, *types: type) -> Callable[..., None] | None:
    """The native function of that name, its last argument the number of threads; None without a library."""
    loaded = library()
    if loaded is None:
        return None
    function = getattr(loaded, name)
    function.argtypes, function.restype = [*types, INT], None
    return function


def reason() -> str:
    """Why there is no library, "" where there is one."""
    found = _path()
    return found if isinstance(found, str) else ""


@cache
def _path() -> Path | str:
    chosen = os.environ.get("QWENVL_NATIVE", "")
    if chosen == "0":
        return "QWENVL_NATIVE=0 turns it off"
    missing = NEEDED - _processor_flags()
    if missing:
        return f"the processor lacks {', '.join(sorted(missing))}"
    if chosen:
        if not Path(chosen).is_file():
            raise ValueError(f"QWENVL_NATIVE={chosen!r} is no file: expected a library, 0, or nothing")
        return Path(chosen)
    built = sorted(FOLDER.glob("_native*.so"))
    return built[0] if built else "it was not built: install a C compiler, then the package again"


def _processor_flags() -> set[str]:
    """Flags of the first processor, as Linux names them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return set(next((line for line in file if line.startswith("flags")), "").split())
    except OSError:
        return set()


def _openmp() -> int | None:
    """Address of GOMP_parallel in the OpenMP library that torch has loaded; None: one thread."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*.so*")):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
