"""The doctor: is this checkpoint, on this machine, with this code, what it should be?

finding   what a check says: Finding, Outcome, and the exceptions that are no faults
case      Case: the model under examination; what of it can be read, made once
checks    the list of checks and the loop over it: examine(case) -> Report
headers, files, folders  the files: all there, whole, where the index says, with known hashes; their settings
text      special ids and the chat template
pictures  preprocessing, and boxes back in original pixels
weights   values and scales of every tensor
running   the model computes finite numbers; what float16 would do
agreement batched = alone = in chunks = cached = with another back end
positions times of videos against a formula written out
golden    logits that a trusted machine gave, compared and written (golden.json: those of the bundled model)
speed     this model's times as shares of the machine's limits
report    a Report -> text, table, JSON

In: a folder and how to load it. Out: a list of findings, each with a verdict and what to do. A check that breaks is a
finding, never an exception. Reads only, but for the golden file that a caller asks for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenvl.doctor.case import Case
    from qwenvl.doctor.checks import CHECKS, Report, examine
    from qwenvl.doctor.finding import Finding

__all__ = ["CHECKS", "Case", "Finding", "Report", "examine"]

_FILE_OF = {"Case": "case", "Finding": "finding"}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: `--help` needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF.get(name, 'checks')}"), name)
