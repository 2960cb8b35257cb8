"""Which rows a run has: ours in the kinds of weights asked for, and the peers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from qwenvl.bench.process import Row
from qwenvl.bench.summary import OURS

OUR_FILE = Path(__file__).with_name("ours.py")
PEERS = Path(__file__).parents[3] / "bench" / "peers"  # in a checkout
ENDING = "_peer.py"  # of its files
KINDS = ("none", "int8", "int4")


def our_rows(kinds: Sequence[str]) -> list[Row]:
    """Rows of qwenvl. kinds: "none" (the checkpoint's dtype), "int8", "int4". ValueError for others, or none."""
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"--quantize {','.join(kinds)} is not valid: expected some of {', '.join(KINDS)}")
    return [Row(OURS if k == "none" else f"{OURS} {k}", OUR_FILE, sys.executable, k.replace("none", "")) for k in kinds]


def peer_rows(asked: Sequence[str]) -> list[Row]:
    """Rows of peers. asked: NAME[:VARIANT][=PYTHON], for bench/peers/NAME_peer.py or a file NAME that ends so. Nothing
    asked: those whose name is a library here; ["none"]: no peer. ValueError for a file or Python that is not there."""
    if list(asked) == ["none"]:
        return []
    return [_peer(text) for text in asked or [name for name in _known() if find_spec(name) is not None]]


def _known() -> list[str]:
    return sorted(path.name.removesuffix(ENDING) for path in PEERS.glob(f"*{ENDING}"))


def _peer(text: str) -> Row:
    what, _, python = text.partition("=")
    name, _, variant = what.partition(":")
    file = Path(name) if name.endswith(ENDING) else PEERS / f"{name}{ENDING}"
    if not file.is_file():
        raise ValueError(f"--peer {text}: there is no {file}; known are {', '.join(_known()) or 'none: no checkout'}")
    if python and not Path(python).is_file():
        raise ValueError(f"--peer {text}: there is no Python {python}")
    label = file.name.removesuffix(ENDING)
    return Row(f"{label} {variant}".strip(), file.absolute(), python or sys.executable, variant)
