"""The planner: what a question will need on this machine, before anything is loaded.

media        pictures and videos -> sizes, grids and tokens, from their headers
weights      a checkpoint's headers -> bytes of the weights in a precision, and what a step reads of them
memory       a configuration -> bytes of the largest step, of the cache, of what a request holds
advice       what to change where it does not fit, computed
calibration  how quick this machine is, measured with the model's own layers at small depth, and kept
seconds      sizes and speeds -> seconds
planner      plan(model, media) -> Plan

The engine admits by the same functions (engine/admission.py). Knows no engine; nothing here loads weights.

    print(plan("Qwen2.5-VL-3B-Instruct", ["page.png"], quantize="int4", memory="8GB").peak_bytes)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenvl.planning.planner import Plan, plan

__all__ = ["Plan", "plan"]

_FILE_OF = {"Plan": "planner", "plan": "planner"}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: `--help` needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
