"""Golden answers: logits of a fixed question about a drawn picture, from a machine that is trusted.

A golden file holds the ids of the prompt, a greedy answer, and at some places of both the LARGEST logits with their
ids; and the hashes of the weight files. golden.json beside this file is of the bundled model:

    qwenvl doctor demo --dtype float32 --write-golden src/qwenvl/doctor/golden.json

Distances are as in agreement.py, over the logits that are kept. ALLOWED is what another dtype of healthy weights stays
below; measured on the bundled model against float32: 0.002 in float16, 0.014 in bfloat16, 0.042 in int8 and 0.21 in
int4, and 0.58 to 3.4 with two layers exchanged.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl.doctor.finding import Notes, Outcome, Unavailable, one_line

if TYPE_CHECKING:
    from qwenvl.doctor.case import Case

FORMAT = 1
LARGEST = 20
PLACES = 12
NEW = 8
ALLOWED = {"float32": 0.01, "float64": 0.01, "float16": 0.03, "bfloat16": 0.1, "int8": 0.15, "int4": 0.45}
BLOCK = 8 * 2**20


@dataclass(frozen=True)
class Golden:
    """A golden file. where: what to call it. hashes: weight file -> sha256. prompt, answer: ids. places: indexes of
    prompt + answer, with the largest logits there: ids, values, and the standard deviation of the whole row."""

    where: str
    hashes: dict[str, str]
    kind: str  # dtype, or int8, int4
    prompt: list[int]
    answer: list[int]
    places: list[dict[str, Any]]


def shipped() -> Path:
    """The golden file of the bundled model."""
    return Path(str(files("qwenvl"))) / "doctor" / "golden.json"


def known_answers(case: Case) -> Golden | None:
    """The golden file that the case names, or the shipped one for the bundled model; None where none is known.
    ValueError for a file that is none."""
    from qwenvl.hub import demo_folder

    path = case.golden
    if path is None and case.path.resolve() == demo_folder().resolve():
        path = shipped()
    return None if path is None or (not path.is_file() and path == shipped()) else read(path)


def read(path: Path) -> Golden:
    """A golden file; ValueError when it is none, or of another format."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, expected {FORMAT}")
        names = ("hashes", "kind", "prompt", "answer", "places")
        return Golden(path.name, *(data[name] for name in names))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no golden file ({one_line(error)}): write one with --write-golden on a machine you trust"
        ) from error


def write(case: Case, path: Path) -> None:
    """Compute the golden answers of a case and write them."""
    model, inputs = case.load_model(), case.prompt()
    prompt = inputs["input_ids"][0].tolist()
    answer = _answer(case, inputs)
    logits = _logits(case, inputs, answer)
    last = len(prompt) - 1
    places = sorted({i * last // (PLACES - 1) for i in range(PLACES)} | set(range(last, last + len(answer))))
    rows = []
    for place in places:
        top = logits[place].topk(min(LARGEST, logits.shape[1]))
        spread = float(logits[place].std())
        values = [round(value, 5) for value in top.values.tolist()]
        rows.append({"at": place, "ids": top.indices.tolist(), "logits": values, "spread": round(spread, 5)})
    data = {
        "format": FORMAT,
        "model_type": model.config.model_type,
        "parameters": model.num_parameters(),
        "kind": _kind(case),
        "hashes": _weight_hashes(case),
        "prompt": prompt,
        "answer": answer,
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in data.items()]
    lines.append('"places": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def compare(case: Case) -> Outcome:
    """The logits of this model at the places of a golden file."""
    golden = known_answers(case)
    if golden is None:
        raise Unavailable("not known for this model: write a file with --write-golden on a machine you trust")
    inputs, notes = case.prompt(), Notes()
    prompt = inputs["input_ids"][0].tolist()
    if prompt != golden.prompt:
        at = next((i for i, (a, b) in enumerate(zip(prompt, golden.prompt, strict=False)) if a != b), None)
        where = f"token {at}" if at is not None else f"{len(prompt)} tokens in place of {len(golden.prompt)}"
        return Outcome(
            "fault",
            f"the prompt is another one than in {golden.where} ({where})",
            "tokenizer, chat template or preprocessing differ, or the golden file is of another model",
        )
    logits = _logits(case, inputs, golden.answer)
    far = [_distance(logits[row["at"]], row) for row in golden.places]
    mean, allowed = sum(far) / len(far), max(ALLOWED[_kind(case)], ALLOWED[golden.kind])
    lead = len(prompt) - 1
    chosen = logits[lead : lead + len(golden.answer)].argmax(-1).tolist()
    others = sum(a != b for a, b in zip(chosen, golden.answer, strict=True))
    if not mean <= allowed:
        notes.fault(
            f"logits are {mean:.2g} from those of {golden.where} ({golden.kind}), rounding explains {allowed:g}; "
            f"{others} of {len(golden.answer)} answer tokens differ",
            "weights, preprocessing or code are not what they were: see the other checks, fetch the weights again",
        )
    if others and mean <= allowed:
        notes.note(f"{others} of {len(golden.answer)} answer tokens differ at a near tie")
    return notes.outcome(
        f"{len(far)} places of {golden.where} ({golden.kind}): {mean:.1g} apart (rounding explains {allowed:g})"
    )


def _distance(logits: Any, row: dict[str, Any]) -> float:
    import torch

    wanted = torch.tensor(row["logits"])
    return float((logits[row["ids"]] - wanted).square().mean().sqrt()) / max(row["spread"], 1e-6)


def _kind(case: Case) -> str:
    """int8 or int4 where the weights are packed, else the dtype."""
    packed = "int8" if case.model.quantization is not None else ""  # it came packed: its inputs are rounded alike
    return case.quantize or packed or str(case.model.dtype).removeprefix("torch.")


def _answer(case: Case, inputs: dict[str, Any]) -> list[int]:
    from qwenvl.doctor import agreement

    return agreement.write(case.model, [inputs])[0].ids[:NEW]


def _logits(case: Case, inputs: dict[str, Any], answer: list[int]) -> Any:
    """float32 [L + n, vocabulary] of the prompt and an answer, in one pass."""
    import torch

    ids = torch.tensor([answer], device=case.model.device)
    whole = {**inputs, "input_ids": torch.cat((inputs["input_ids"], ids), 1)}
    whole.pop("attention_mask", None)
    with torch.inference_mode():
        return case.model(**whole, use_cache=False).logits[0].float().cpu()


def _weight_hashes(case: Case) -> dict[str, str]:
    from qwenvl.doctor.headers import weight_files

    paths = weight_files(case.path)
    return {path.name: file_hash(path) for path in paths}


def file_hash(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total.update(block)
    return total.hexdigest()
