"""What a grammar costs a token, at the official vocabulary's size: compiling, the mask, and all that the sampler does.

    python bench/grammar.py [--rounds 3]

The vocabulary is that of `qwenvl bench` (152,064 columns of logits), with pieces of JSON as Qwen's has them. Answers
are given: each token's logit is the largest, so that the sampler draws it, greedily and at temperature 1. The overhead
is the time of Sampler.sample with the grammar less that without, on the same logits (mask, its application, the step of
the automaton, all included), in seconds of the processor, which other programs do not lengthen. Where xgrammar is
installed, it is timed beside llguidance on the schemas of the tests, and both are asked which instances they accept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwenvl.bench.vocabulary import full_tokenizer
from qwenvl.engine.grammar import Grammars
from qwenvl.engine.sampler import Sampler
from qwenvl.processing import Tokenizer
from qwenvl.types import Grammar, SamplingParams

COLUMNS = 152_064
PIECES = ('",', '":', '"}', '"},', '"]', '"],', "}]", "}]}", '[{"', '{"', "},", "],", "[]", '""', '"",')
SIZE = (1260, 812)
BOX = {"type": "array", "format": "bbox_2d"}
TEXT = {"type": "string"}


def fixed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def forms() -> dict[str, tuple[dict[str, Any], Any]]:
    """Schemas and the answers to them."""
    names = ("company", "date", "address", "total")
    receipt = {
        "company": "Corner Cafe & Bakery",
        "date": "2024-03-12",
        "address": "12 Main Street, Größe",
        "total": "1,250.00",
    }
    find = fixed({"bbox_2d": BOX, "label": {"enum": [f"kind {i}" for i in range(80)]}})
    finds = [{"bbox_2d": [12 * i, 7 * i, 12 * i + 345, 7 * i + 123], "label": f"kind {i}"} for i in range(40)]
    field = fixed({"value": TEXT, "bbox_2d": BOX, "kind": {"enum": [f"kind_{i}" for i in range(30)]}})
    many = {f"field_number_{i}": field for i in range(60)}
    page = {
        key: {"value": "Some text, about so long", "bbox_2d": [12, 345, 1000, 812], "kind": "kind_7"} for key in many
    }
    free = {"type": "object", "additionalProperties": {"type": ["string", "number", "array"], "items": TEXT}}
    anything = {
        "a name": "Some text that is as long as a line of a page is, and a little longer",
        "n": [*"abc"],
        "m": 1.5,
    }
    return {
        "receipt": (fixed(dict.fromkeys(names, TEXT)), receipt),
        "80 kinds of boxes": ({"type": "array", "items": find}, finds),
        "form of 60 fields with boxes": (fixed(many), page),
        "free keys": (free, anything),
    }  # fmt: skip


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def milliseconds(values: list[float]) -> str:
    one = f"{1e3 * statistics.median(values):8.3f}{1e3 * quantile(values, 0.99):8.3f}{1e3 * max(values):8.3f}"
    return one


def steps(
    sampler: Sampler, grammars: Grammars, grammar: Grammar, ids: list[int], temperature: float
) -> Iterator[float]:
    """Seconds that the grammar adds to each token."""
    params = SamplingParams(temperature=temperature, seed=0, grammar=grammar)
    guided = sampler.start([], params, None, grammars.start(grammar, params, (SIZE,)))
    plain = sampler.start([], params)
    luck = torch.Generator().manual_seed(0)
    noise = torch.randn((1, COLUMNS), generator=luck)
    for number, token in enumerate(ids):
        times = {}
        for state in (plain, guided) if number % 2 else (guided, plain):
            logits = noise.clone()
            logits[0, token] = 100.0
            started = time.process_time()
            (drawn,) = sampler.sample(logits, [state])
            times[state is guided] = time.process_time() - started
            assert drawn.token == token, "the grammar forbids the answer"
        yield times[True] - times[False]


def overhead(tokenizer: Tokenizer, rounds: int) -> None:
    ends = [tokenizer.eos_token_id]
    started = time.process_time()
    grammars = Grammars(tokenizer, COLUMNS, ends)
    grammars.start(Grammar("regex", "a"), SamplingParams())
    print(f"vocabulary read in {time.process_time() - started:.2f} s, once for an engine\n")
    print(
        f"{'answer':<30}{'tokens':>7}{'compile ms':>12}{'':6}ms a token, median / p99 / most: greedy{'':4}temperature 1"
    )
    sampler = Sampler(COLUMNS, (), torch.device("cpu"), ends)
    for name, (schema, value) in forms().items():
        grammar = Grammar.json_schema(schema)
        started = time.process_time()
        grammars.start(grammar, SamplingParams(), (SIZE,))
        compiled = 1e3 * (time.process_time() - started)
        ids = tokenizer.encode(json.dumps(value, ensure_ascii=False), special=False)
        columns = ""
        for temperature in (0.0, 1.0):
            taken = [t for _ in range(rounds) for t in steps(sampler, grammars, grammar, ids, temperature)]
            columns += f"{milliseconds(taken):>32}"
        print(f"{name:<30}{len(ids):>7}{compiled:>12.1f}{columns}")


class OurMatcher:
    """llguidance, as the engine uses it."""

    def __init__(self, grammars: Grammars, schema: dict[str, Any]) -> None:
        self._guide = grammars.start(Grammar.json_schema(schema), SamplingParams())

    def mask(self) -> Any:
        matcher, bits = self._guide._matcher, self._guide._bits
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        return bits

    def take(self, token: int) -> bool:
        self._guide.take(token)
        return self._guide._matcher.is_error() is False


class PeerMatcher:
    """xgrammar, compiling anew each time, JSON in the same style."""

    def __init__(self, compiler: Any, schema: dict[str, Any]) -> None:
        import xgrammar

        compiled = compiler.compile_json_schema(
            json.dumps(schema), any_whitespace=False, separators=(", ", ": "), strict_mode=False
        )
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._bits = torch.zeros((1, (COLUMNS + 31) // 32), dtype=torch.int32)

    def mask(self) -> Any:
        self._matcher.fill_next_token_bitmask(self._bits, 0)
        return self._bits[0].numpy()

    def take(self, token: int) -> bool:
        return bool(self._matcher.accept_token(token))


def libraries(tokenizer: Tokenizer) -> None:
    """Both libraries on the tests' schemas."""
    try:
        import xgrammar
    except ImportError:
        print("\nxgrammar is not installed: no comparison")
        return
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "unit"))
    from grammar_cases import INSTANCES, SCHEMAS
    from jsonschema import Draft202012Validator

    end = tokenizer.eos_token_id
    grammars = Grammars(tokenizer, COLUMNS, [end])
    grammars.start(Grammar("regex", "a"), SamplingParams())
    spelled = {number: token for token, number in tokenizer.get_vocab().items()}
    words = [spelled.get(i, f"<|none{i}|>") for i in range(COLUMNS)]
    info = xgrammar.TokenizerInfo(
        words, vocab_type=xgrammar.VocabType.BYTE_LEVEL, vocab_size=COLUMNS, stop_token_ids=[end]
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    print(f"\n{'':<14}{'compile ms':>12}{'worst':>8}{'':4}mask ms, median / p99 / most{'':8}wrong verdicts")
    for name in ("llguidance", "xgrammar"):
        compiled, masks, wrong, asked = list[float](), list[float](), list[str](), 0
        for case, schema in SCHEMAS.items():
            valid = Draft202012Validator(schema)
            for value in INSTANCES[case]:
                grammars._kept.clear()  # compiled anew each time
                started = time.process_time()
                matcher: Any = OurMatcher(grammars, schema) if name == "llguidance" else PeerMatcher(compiler, schema)
                compiled.append(time.process_time() - started)
                good = True
                for token in [*tokenizer.encode(json.dumps(value, ensure_ascii=False), special=False), end]:
                    started = time.process_time()
                    bits = matcher.mask()
                    masks.append(time.process_time() - started)
                    allowed = bool(np.unpackbits(bits.view(np.uint8), bitorder="little")[token])
                    if not allowed or not (token == end or matcher.take(token)):
                        good = False
                        break
                asked += 1
                if good != valid.is_valid(value):
                    wrong.append(f"{case} {json.dumps(value, ensure_ascii=False)}")
        print(
            f"{name:<14}{1e3 * statistics.median(compiled):>12.2f}{1e3 * max(compiled):>8.1f}{milliseconds(masks):>32}"
            f"{'':8}{len(wrong)} of {asked}" + "".join(f"\n{'':16}{one}" for one in wrong)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    words = {word for path in Path(__file__).parent.parent.glob("**/*.md") for word in path.read_text("utf-8").split()}
    latin = sorted(word for word in words if word.isascii() and word.isalpha())
    tokenizer = Tokenizer(full_tokenizer([*PIECES, *latin]), {})
    overhead(tokenizer, arguments.rounds)
    libraries(tokenizer)


if __name__ == "__main__":
    main()
