"""The files of a checkpoint: all there, whole, where the index says, and with the contents that are known."""

from __future__ import annotations

from pathlib import Path

from qwenvl.doctor.case import Case
from qwenvl.doctor.finding import Notes, Outcome, Unavailable, some
from qwenvl.doctor.golden import file_hash, known_answers
from qwenvl.doctor.headers import INDEX, SINGLE, read_header, read_index, weight_files
from qwenvl.hub import verify

AGAIN = "fetch the file again"
WHOLE = "fetch the checkpoint again"


def present(case: Case) -> Outcome:
    """Every file that a whole checkpoint has, or another one in its place."""
    folder, notes = case.path, Notes()
    there = {path.name for path in folder.iterdir() if path.is_file()}
    if "config.json" not in there:
        notes.fault("config.json is missing", WHOLE)
    pair = case.gguf
    weights = _missing_weights(folder, there, notes) if pair is None else sum(len(one.paths) for one in pair)
    if "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= there:
        notes.fault("there is no tokenizer: neither tokenizer.json nor vocab.json with merges.txt", WHOLE)
    if not {"preprocessor_config.json", "processor_config.json"} & there:
        notes.warn(
            "preprocessor_config.json is missing: pictures are limited by built-in values, not by this model's", WHOLE
        )
    if "tokenizer_config.json" not in there:
        notes.warn("tokenizer_config.json is missing: its special tokens cannot be compared", WHOLE)
    if not {"chat_template.json", "chat_template.jinja"} & there:
        notes.note("no file of its own for the chat template")
    if "generation_config.json" not in there:
        notes.warn("generation_config.json is missing: answers are greedy and end as config.json says", WHOLE)
    return notes.outcome(f"{len(there)} files, {weights} of them with weights")


def _missing_weights(folder: Path, there: set[str], notes: Notes) -> int:
    """How many files with weights there are; notes what is missing."""
    index = read_index(folder)
    found = weight_files(folder)
    if index is not None:
        named = set(index["weight_map"].values())
        if named - there:
            notes.fault(
                f"{len(named - there)} of {len(named)} shards are missing: {some(sorted(named - there))}", WHOLE
            )
        spare = {name for name in there if name.endswith(".safetensors")} - named
        if spare:
            notes.warn(
                f"{some(sorted(spare))} lies there, but {INDEX} does not name it: it is not read", "take it away"
            )
    elif not found:
        others = " (*.bin files are not read)" if any(folder.glob("*.bin")) else ""
        notes.fault(f"there are no weights: neither {SINGLE} nor shards with {INDEX}{others}", WHOLE)
    elif len(found) > 1:
        notes.note(f"{len(found)} files with weights and no {INDEX}: all of them are read")
    return len(found)


def sizes(case: Case) -> Outcome:
    """Each file of weights is as long as its header says."""
    pair = case.gguf  # reading their headers compares them with their sizes
    if pair is not None:
        whole = [path for one in pair for path in one.paths]
        return Outcome("ok", f"{len(whole)} GGUF files, as long as their headers say: {some([p.name for p in whole])}")
    paths, notes, total = weight_files(case.path), Notes(), 0
    if not paths:
        raise Unavailable("there are no weights in safetensors files")
    for path in paths:
        try:
            header = read_header(path)
        except (ValueError, OSError) as error:
            notes.fault(str(error), AGAIN)
            continue
        total += header.size
        if header.size != header.expected:
            kind = "is cut short" if header.size < header.expected else "is too long"
            notes.fault(f"{path.name} {kind}: {header.size:,} bytes, its header asks for {header.expected:,}", AGAIN)
    return notes.outcome(f"{len(paths)} files with {total:,} bytes, as their headers say")


def index(case: Case) -> Outcome:
    """Every tensor lies in the file that the index says, and the index names every tensor."""
    read = read_index(case.path)
    if read is None:
        raise Unavailable(f"there is no {INDEX}: the weights lie in one file")
    listed: dict[str, str] = read["weight_map"]
    lies: dict[str, str] = {}
    total, notes = 0, Notes()
    for path in weight_files(case.path):
        for stored in read_header(path).tensors:
            if stored.key in lies:
                notes.fault(f"{stored.key} is stored twice, in {lies[stored.key]} and {path.name}", WHOLE)
            lies[stored.key], total = path.name, total + stored.nbytes
    elsewhere = [f"{k} (in {lies[k]}, not {f})" for k, f in listed.items() if k in lies and lies[k] != f]
    if elsewhere:
        notes.fault(
            f"{len(elsewhere)} of {len(listed)} tensors lie in another shard than {INDEX} says, so shards have changed "
            f"places or are of another download: {some(elsewhere, 2)}",
            "give the shards their names again, or fetch them again",
        )
    for names, what in ((set(listed) - set(lies), "named there are in no shard"),
                        (set(lies) - set(listed), "in the shards are not named there")):  # fmt: skip
        if names:
            notes.fault(f"{INDEX}: {len(names)} tensors {what}: {some(sorted(names), 3)}", WHOLE)
    said = (read.get("metadata") or {}).get("total_size")
    if said is not None and said != total and not notes.said:
        notes.note(f"total_size says {said:,} bytes, the tensors have {total:,}")
    return notes.outcome(f"{len(listed)} tensors in {len(set(listed.values()))} shards, each where {INDEX} says")


def hashes(case: Case) -> Outcome:
    """The contents of files whose hashes are known: from the download, or from a file of golden answers."""
    notes, checked = Notes(), []
    golden = known_answers(case)
    known, where = (golden.hashes, golden.where) if golden else ({}, "")
    for name, wanted in sorted(known.items()):
        path = case.path / name
        if not path.is_file():
            notes.fault(f"{name} is missing: {where} knows it", AGAIN)
        elif file_hash(path) != wanted:
            notes.fault(f"the contents of {name} are not those that {where} knows", AGAIN)
        checked.append(name)
    pair = case.gguf
    problems = verify(case.path if pair is None else pair[0].paths[0], lambda _: None)
    unknown = [one.file for one in problems if one.kind == "unknown"]
    for problem in problems:
        if problem.kind != "unknown":
            notes.fault(problem.text, AGAIN)
    if not checked and "" in unknown:
        raise Unavailable("no hashes are known for this folder: neither its download nor a golden file tells them")
    sources = [f"{len(checked)} files with weights as {where} knows them"] if checked else []
    if "" not in unknown:
        sources.append("every file whose hash its download kept is as it was announced")
        if unknown:
            notes.note(f"no hash is known for {some(unknown)}")
    return notes.outcome(" and ".join(sources))
