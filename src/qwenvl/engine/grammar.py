"""Constrained decoding: which tokens may come next, so that the whole answer is what a Grammar says.

In: Grammar descriptions (types.py), a tokenizer, token after token. Out: for each step the tokens that are allowed.
Does not know logits, the model or what the answer is for.

A grammar is compiled once for a tokenizer and the sizes of the pictures, and kept; each request has a Guide of its
own, whose state is a function of the tokens drawn so far. The automata are llguidance's (an Earley parser over a
lexer of derivatives, masks by a walk over the trie of the vocabulary); where only one text can follow, it forces that
text in the tokens that the tokenizer would make of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from qwenvl.types import Grammar, SamplingParams

from .grammar_schema import Size, grammar_text, knows_pictures

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .request import Request

KEPT = 64  # compiled grammars
CLOSING = (64, 400)  # tokens that are chosen in an end: what is tried first, and then
STEPS = 2000  # of the search for an end, each time
_ENDS = b'}]",'  # what ends things, to be tried before what goes on
_PLAIN = bytes(byte for byte in range(128) if chr(byte).isalnum())
_OTHERS = _PLAIN + bytes(byte for byte in (*range(32, 127), 10, 9, 13) if byte not in _PLAIN + _ENDS)


@runtime_checkable
class Spelled(Protocol):
    """A tokenizer that is not one of the library `tokenizers`: the bytes of its tokens, ids that no text makes, and
    text -> ids."""

    def spellings(self) -> tuple[list[bytes], list[int]]: ...

    def encode(self, text: str) -> list[int]: ...


class Grammars:
    """Compiled grammars of one tokenizer. vocabulary: columns of the model's logits. ends: ids that end an answer.
    sides: of every picture, in the numbers that the model writes; None = pixels of the picture as it sees it."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Collection[int], sides: Size | None = None) -> None:
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, frozenset(ends)
        self._sides = sides
        self._kept: OrderedDict[tuple[Grammar, tuple[Size, ...]], Any] = OrderedDict()

    def guide(self, request: Request, patch: int = 14) -> Guide | None:
        """The guide of a new request, None where it has no grammar. patch: pixels of a patch's side, which tell the
        sizes of the pictures. ValueError for a grammar that cannot be kept to."""
        if request.params.grammar is None:
            return None
        sizes = tuple((item.grid[2] * patch, item.grid[1] * patch) for item in request.items)
        return self.start(request.params.grammar, request.params, sizes)

    def start(self, grammar: Grammar, params: SamplingParams, sizes: tuple[Size, ...] = ()) -> Guide:
        """The guide of an answer about pictures of these sizes (as the model sees them)."""
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else self._ends)}
        matcher = self._compiled(grammar, sizes if knows_pictures(grammar) else ())
        return Guide(matcher, self._backend, self._vocabulary, ends, self._single_bytes, self._tokenizer.decode)

    def _compiled(self, grammar: Grammar, sizes: tuple[Size, ...]) -> Any:
        """A matcher at the beginning of the grammar, to be copied."""
        from llguidance import LLMatcher

        key = (grammar, sizes)
        if key not in self._kept:
            backend = self._backend
            text = grammar_text(grammar, sizes, getattr(self._tokenizer, "added_tokens", ()), self._sides)
            matcher = LLMatcher(backend, text, log_level=0)
            if matcher.is_error():
                fault = " ".join(str(matcher.get_error()).split())[:300]
                raise ValueError(f"this grammar of kind {grammar.kind!r} cannot be read: {fault}")
            self._kept[key] = matcher
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    @cached_property
    def _backend(self) -> Any:
        """The tokenizer as llguidance has it: control tokens are no text, and ids without a token are never allowed."""
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError:
            raise ValueError('grammars need llguidance: pip install "qwenvl[grammar]"') from None
        ends = sorted(self._ends) or None
        if isinstance(self._tokenizer, Spelled):
            return LLTokenizer(TokenizerWrapper(_Wrapped(self._tokenizer, ends)), eos_token=ends)
        text = getattr(self._tokenizer, "backend", None)
        if text is None:
            raise ValueError("a grammar needs the vocabulary: give the engine a tokenizer")
        known = text.get_vocab_size(with_added_tokens=True)
        return LLTokenizer(text.to_str(), n_vocab=max(known, self._vocabulary), eos_token=ends)

    @cached_property
    def _single_bytes(self) -> dict[int, int]:
        """Byte -> the id of the token that is just this byte."""
        backend = self._backend
        found = {}
        for byte in range(256):
            ids = backend.greedy_tokenize(chr(byte)) if byte < 128 else []
            if len(ids) == 1:
                found[byte] = ids[0]
        return found


class _Wrapped:
    """A Spelled tokenizer with the attributes that llguidance reads."""

    def __init__(self, tokenizer: Spelled, ends: Sequence[int] | None) -> None:
        self.tokens, self.special_token_ids = tokenizer.spellings()
        self.eos_token_id, self.bos_token_id = (ends[0] if ends else self.special_token_ids[0]), None
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode(errors="replace") if isinstance(text, bytes) else text)


class Guide:
    """Where one answer is in its grammar. `take` every token that is drawn, in order."""

    def __init__(
        self,
        compiled: Any,
        backend: Any,
        vocabulary: int,
        ends: Collection[int],
        single_bytes: dict[int, int],
        decode: Callable[..., str],
    ) -> None:
        self._compiled, self._matcher = compiled, compiled.deep_copy()
        self._ends = np.array(sorted(i for i in ends if i < vocabulary), dtype=np.int64)
        self._all_ends = np.array(sorted({*backend.eos_tokens, *ends}), dtype=np.int64)
        self._end_ids = frozenset(ends)
        self._vocabulary, self._single_bytes, self._decode = vocabulary, single_bytes, decode
        known = backend.vocab_size
        self._bits = np.zeros((known + 31) // 32, dtype=np.int32)
        self._width = min(known, vocabulary)
        self._ended = False

    def banned(self) -> NDArray[np.bool_]:
        """bool [vocabulary], a fresh array: the tokens that may not come next. An end is allowed only where the answer
        may end; all are banned where the automaton ran out of its bounds (`fault` says so)."""
        return ~self._allowed(self._matcher)

    def _allowed(self, matcher: Any) -> NDArray[np.bool_]:
        allowed = np.zeros(self._vocabulary, dtype=np.bool_)
        matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if matcher.is_error():
            return allowed
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little", count=self._width)
        allowed[: self._width] = bits.view(np.bool_)
        allowed[self._all_ends[self._all_ends < self._vocabulary]] = False
        allowed[self._ends] = matcher.is_accepting()
        return allowed

    def take(self, token: int) -> None:
        """Note a token that was drawn."""
        if token in self._end_ids:
            self._ended = True
        else:
            self._matcher.consume_token(token)

    @property
    def fault(self) -> str | None:
        """Why the automaton can go no further, None while it can."""
        if not self._matcher.is_error():
            return None
        return "the grammar is too complex to be followed here: " + str(self._matcher.get_error()).split("\n")[0]

    @property
    def complete(self) -> bool:
        """Whether nothing but the end can follow."""
        return not self._ended and bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def may_end(self) -> bool:
        """Whether the answer so far is a whole one."""
        return bool(self._matcher.is_accepting())

    def forced(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that are the only ones that can come next."""
        return tuple(self._matcher.compute_ff_tokens()[:most]) if most > 0 else ()

    def agree(self, draft: tuple[int, ...]) -> tuple[int, ...]:
        """The beginning of a draft that the grammar allows."""
        return draft[: self._matcher.validate_tokens(list(draft))] if draft else draft

    def close(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str | None:
        """The text of the answer `ids` with a short end that makes it whole; None where none is found, or
        the ids are not of the grammar.

        The search prefers what ends things (a quote, a bracket) to what goes on, and so leaves out all that may be left
        out; what may not is written as short as the grammar lets it be.
        """
        matcher = self._compiled.deep_copy()
        ids = [i for i in ids if i not in self._end_ids]
        if not matcher.consume_tokens(ids):
            return None
        for room in CLOSING:
            end = self._search(matcher.deep_copy(), room, iter(range(STEPS)))
            if end is not None:
                return self._decode([*ids, *end], skip_special_tokens=skip_special_tokens)
        return None

    def _search(self, matcher: Any, room: int, steps: Iterator[int]) -> list[int] | None:
        """Tokens that bring `matcher` to an end, with at most `room` of them chosen; depth first, while there are
        steps."""
        if next(steps, None) is None:
            return None
        begun: list[int] = []
        while not matcher.is_accepting():
            forced = matcher.compute_ff_tokens()
            if not forced:
                break
            if not matcher.consume_tokens(forced):
                return None
            begun += forced
        if matcher.is_accepting():
            return begun
        if room == 0:
            return None
        for token in self._choices(self._allowed(matcher)):
            tried = matcher.deep_copy()
            if tried.consume_token(token):
                end = self._search(tried, room - 1, steps)
                if end is not None:
                    return [*begun, token, *end]
        return None

    def _choices(self, allowed: NDArray[np.bool_]) -> list[int]:
        """Allowed tokens to try, the likeliest to end things first: single characters, and where there are none (inside
        a character of several bytes) the first tokens."""
        found = {byte: i for byte, i in self._single_bytes.items() if i < len(allowed) and allowed[i]}
        inside = {ord("}"), ord("]")} <= found.keys()  # both at once are text
        order = (*(b'"' if inside else b""), *(_OTHERS + _ENDS if inside else _ENDS + _OTHERS))
        return [found[byte] for byte in order if byte in found] or np.flatnonzero(allowed)[:8].tolist()
