"""The list of checks, and the loop over it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from qwenvl.doctor import agreement, files, folders, golden, pictures, positions, running, speed, text, weights
from qwenvl.doctor.case import Case
from qwenvl.doctor.finding import ORDER, Check, Finding, Outcome, Unavailable, Verdict, one_line

CHECKS: tuple[Check, ...] = (
    Check("files", "what a checkpoint's folder holds", files.present),
    Check("sizes", "the bytes of the weight files, against their headers", files.sizes),
    Check("index", "the index of the shards, against their headers", files.index),
    Check("hashes", "the contents of files, where their hashes are known", files.hashes, long=True),
    Check("configuration", "config.json: its layout, and what it leaves out", folders.configuration),
    Check("generation", "generation_config.json: what ends an answer, and the sampling", folders.generation),
    Check("special ids", "ids of control tokens, in all files that name them", text.special_ids),
    Check("chat template", "prompts rendered from known conversations", text.template),
    Check("control tokens", "control tokens that a user typed stay text", text.typed_tokens),
    Check("preprocessor", "patches, mean, deviation and limits, against the vision tower", pictures.settings),
    Check("pixels", "tokens and values of drawn pictures, against the rules", pictures.pixels),
    Check("boxes", "places in answers, back in original pixels", pictures.boxes),
    Check("time ids", "positions of pictures and videos, against the formula", positions.time_ids),
    Check("seconds", "what the processor says of the time between frames", positions.seconds),
    Check("values", "every weight: not a number, zeros, constants, copies", weights.values, long=True),
    Check("scales", "the scale of each layer beside its neighbours'", weights.scales, long=True),
    Check("tied head", "the head, where it is the embedding", weights.tied_head, long=True),
    Check("loading", "the tensors, against config.json", running.loading),
    Check("finite", "every layer's output on a drawn picture", running.finite),
    Check("float16", "the largest number of every layer, against float16's 65,504", running.half_precision, long=True),
    Check("batch", "prompts alone and padded in a batch", agreement.batch, long=True),
    Check("chunks", "a prompt whole and in chunks", agreement.chunks, long=True),
    Check("cache", "answers with cached keys, against one pass without", agreement.cached, long=True),
    Check("back ends", "attention computed in every way there is", agreement.back_ends, long=True),
    Check("kernels", "native kernels, against torch's operators", agreement.kernels, long=True),
    Check("golden", "logits, against those that are known", golden.compare),
    Check("speed", "times of this model, against what the machine can do", speed.shares, long=True),
)


@dataclass(frozen=True)
class Report:
    """What an examination found. verdict: the worst of all."""

    case: Case
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def verdict(self) -> Verdict:
        return max((finding.verdict for finding in self.findings), key=ORDER.index, default="ok")

    def of(self, verdict: Verdict) -> list[Finding]:
        """The findings with this verdict."""
        return [finding for finding in self.findings if finding.verdict == verdict]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        case = self.case
        return {
            "model": str(case.path),
            "dtype": case.dtype,
            "device": case.device,
            "quantize": case.quantize,
            "quick": case.quick,
            "verdict": self.verdict,
            "counts": {verdict: len(self.of(verdict)) for verdict in ORDER},
            "seconds": round(self.seconds, 2),
            "findings": [finding.to_dict() for finding in self.findings],
        }


def examine(case: Case, names: Collection[str] | None = None, on_check: Callable[[str], None] | None = None) -> Report:
    """Run the checks on a case, in order. names: some of CHECKS' names (None: all). on_check is told each name before
    it runs. Nothing that a check raises leaves here, but for KeyboardInterrupt and its like."""
    unknown = sorted(set(names or ()) - {check.name for check in CHECKS})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such check; expected some of {', '.join(c.name for c in CHECKS)}")
    start, findings = time.perf_counter(), []
    for check in CHECKS:
        if names is None or check.name in names:
            if on_check is not None:
                on_check(check.name)
            outcome = _run(check, case)
            findings.append(Finding(check.name, check.looks_at, outcome.verdict, outcome.found, outcome.advice))
    return Report(case, tuple(findings), time.perf_counter() - start)


def _run(check: Check, case: Case) -> Outcome:
    """A check's outcome; what it raised is a fault, unless it is a reason to skip it."""
    if case.quick and check.long:
        return Outcome("skipped", "left out by --quick")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is for the checks to say
            return check.run(case)
    except Unavailable as error:
        return Outcome("skipped", str(error))
    except Exception as error:
        return Outcome("fault", one_line(error), "see the message; the check could not be finished")
