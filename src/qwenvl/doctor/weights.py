"""Every weight, read from the files one tensor at a time: numbers that are none, zeros, constants, copies, and layers
whose scale stands out.

Thresholds are for trained models: a tensor of one value, a bias of zeros and two equal matrices do not come out of
training. Matrices are compared with the same matrix of the nearest layers; vectors (norms, biases) differ far more
between layers in healthy models and are not.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor

from qwenvl.checkpoint.formats import stored_tensors
from qwenvl.checkpoint.names import EMBEDDING, HEAD, module_name
from qwenvl.checkpoint.published import settings_of
from qwenvl.config import read_config
from qwenvl.doctor.case import Case, Once
from qwenvl.doctor.finding import Notes, Outcome, Unavailable, some
from qwenvl.doctor.headers import sound_tensors

AT_ONCE = 2**22  # numbers that are looked at together, 16 MiB as float32
FLOATS = ("F64", "F32", "F16", "BF16")
HOLE = 0.01  # part of a matrix's rows that may be zeros; tables of tokens excepted
STANDS_OUT = 30.0  # times the scale of the neighbours, or a part of it
NEIGHBOURS = 4
AGAIN = "fetch the file again; where that does not help, the checkpoint was saved damaged"


@dataclass(frozen=True)
class Look:
    """One tensor in numbers. rms: root of the mean square. empty_rows: how many of its rows hold only zeros. first:
    its first numbers, which with the others tell copies."""

    name: str
    file: str
    shape: tuple[int, ...]
    finite: bool
    low: float
    high: float
    rms: float
    empty_rows: int
    first: tuple[float, ...]

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) > 1 and min(self.shape[0], math.prod(self.shape[1:])) > 1


def look(name: str, file: str, tensor: Tensor) -> Look:
    """Numbers of a tensor, a few rows at a time."""
    rows = tensor.reshape(tensor.shape[0], -1) if tensor.ndim > 1 else tensor.reshape(1, -1)
    step = max(1, AT_ONCE // max(1, rows.shape[1]))
    low, high, square, empty = math.inf, -math.inf, 0.0, 0
    finite = True
    for start in range(0, len(rows), step):
        part = rows[start : start + step].to(torch.float32)
        least, most = torch.aminmax(part, dim=1)  # not-a-number goes through
        finite = finite and bool(torch.isfinite(least).all() and torch.isfinite(most).all())
        low, high = min(low, float(least.min())), max(high, float(most.max()))
        empty += int(((least == 0) & (most == 0)).sum())
        square += float(torch.linalg.vector_norm(part, dim=1).double().square().sum())
    first = tuple(rows[0, :4].to(torch.float32).tolist())
    return Look(
        name, file, tuple(tensor.shape), finite, low, high, math.sqrt(square / max(1, rows.numel())), empty, first
    )


def _looks(case: Case) -> list[Look]:
    """A look at every tensor of numbers with fractions; kept, so that both checks read the files once."""
    kept = vars(case).setdefault("_looks", Once(lambda: list(_all(case))))
    return list(kept())


def _all(case: Case) -> Iterator[Look]:
    if case.gguf is not None or settings_of(case.path, read_config(case.path)) is not None:  # packed ones, unpacked
        for one in stored_tensors(case.path):
            yield look(one.name or one.key, one.path.name, one.passing())
        return
    for stored in sound_tensors(case.path):
        if stored.kind in FLOATS and stored.nbytes:
            # Opened for each tensor: what was read of a mapped file counts as ours until it is closed.
            with safe_open(case.path / stored.file, framework="pt") as file:
                yield look(module_name(stored.key) or stored.key, stored.file, file.get_tensor(stored.key))


def values(case: Case) -> Outcome:
    """No tensor holds what is no number, only zeros or one value; no matrix has a hole or is a copy of another."""
    looks, notes = _looks(case), Notes()
    broken = [one for one in looks if not one.finite]
    if broken:
        where = some([f"{one.name} (in {one.file})" for one in broken])
        notes.fault(f"{len(broken)} tensors hold NaN or infinity: {where}", AGAIN)
    whole = [one for one in looks if one.finite and math.prod(one.shape) > 1]
    zero = [one for one in whole if one.low == one.high == 0]
    biases = [one.name for one in zero if one.name.endswith(".bias")]
    if biases:
        notes.fault(
            f"{len(biases)} biases are all zeros, as if they had been dropped: {some(biases)}",
            "convert the checkpoint again with its biases: q, k and v of these models have them",
        )
    others = [one.name for one in zero if not one.name.endswith(".bias")]
    if others:
        notes.fault(f"{len(others)} weights are all zeros: {some(others)}", AGAIN)
    constant = [one.name for one in whole if one.low == one.high != 0 and one.is_matrix]
    if constant:
        notes.fault(f"{len(constant)} matrices hold one value only: {some(constant)}", AGAIN)
    holes = [one for one in whole if one.low < one.high and _has_hole(one)]
    if holes:
        where = some([f"{one.name} ({one.empty_rows} of {one.shape[0]} rows, in {one.file})" for one in holes])
        notes.fault(f"{len(holes)} matrices have rows of zeros, as a download with holes has: {where}", AGAIN)
    for names in _copies(whole):
        notes.fault(f"{' and '.join(names)} hold the same numbers: one is a copy of the other", AGAIN)
    return notes.outcome(f"{len(looks)} tensors: finite, none of zeros or of one value, no two matrices alike")


def _has_hole(one: Look) -> bool:
    table = one.name in (EMBEDDING, HEAD)  # rows of tokens that there are not may be zeros
    return one.is_matrix and not table and one.empty_rows > HOLE * one.shape[0]


def _copies(looks: list[Look]) -> list[list[str]]:
    """Names of matrices that hold the same, in groups; head and embedding may."""
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for one in looks:
        if one.is_matrix and one.low < one.high and one.name not in (EMBEDDING, HEAD):
            groups[one.shape, one.rms, one.low, one.high, one.first].append(one.name)
    return [names for names in groups.values() if len(names) > 1]


def scales(case: Case) -> Outcome:
    """Each matrix has about the scale of the same matrix in the nearest layers."""
    families: dict[str, list[tuple[int, Look]]] = defaultdict(list)
    for one in _looks(case):
        found = re.search(r"\.(\d+)\.", one.name)
        if found and one.is_matrix and one.finite:
            families[one.name.replace(found[0], ".*.", 1)].append((int(found[1]), one))
    notes, compared, widest = Notes(), 0, 1.0
    for layers in families.values():
        for layer, one in layers if len(layers) > 2 else ():
            near = sorted((abs(other - layer), look.rms) for other, look in layers if other != layer)[:NEIGHBOURS]
            usual = statistics.median(rms for _, rms in near)
            compared += 1
            if not usual or not one.rms:
                continue  # zeros: "values" tells
            times = max(one.rms / usual, usual / one.rms)
            widest = max(widest, times)
            if times > STANDS_OUT:
                word = "larger" if one.rms > usual else "smaller"
                notes.fault(
                    f"{one.name} (in {one.file}) is {times:,.0f} times {word} in scale than in the layers beside it",
                    "the layer is damaged or was put in a wrong place: fetch the checkpoint again",
                )
    if not compared:
        raise Unavailable("there are no layers to compare")
    return notes.outcome(f"{compared} matrices: at most {widest:.1f} times the scale of their neighbours")


def tied_head(case: Case) -> Outcome:
    """Where config.json ties the head to the embedding, a head in the files has to be the same."""
    if case.gguf is not None:
        raise Unavailable("the weights lie in GGUF files")
    if not case.config.tie_word_embeddings:
        raise Unavailable("the head is a matrix of its own (tie_word_embeddings is false)")
    lies = {module_name(stored.key): stored for stored in sound_tensors(case.path)}
    head, table = lies.get(HEAD), lies.get(EMBEDDING)
    if head is None or table is None:
        return Outcome("ok", "the head is the embedding, and the files hold it once")
    tensors = []
    for stored in (head, table):
        with safe_open(case.path / stored.file, framework="pt") as file:
            tensors.append(file.get_tensor(stored.key))
    if torch.equal(*tensors):
        return Outcome("ok", "the files hold the head beside the embedding, and they are equal")
    return Outcome(
        "fault",
        f"{head.key} differs from {table.key}, but config.json ties them: the head in the files is not used",
        "set tie_word_embeddings to false if the head was trained by itself",
    )
