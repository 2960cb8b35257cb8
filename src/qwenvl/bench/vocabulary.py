"""A vocabulary of Qwen2's size and layout without its data: 256 bytes, 151,387 merges, 22 added tokens.

The merges make one token of each word of a list, and of any two or three Latin letters in a row, so that a prompt has
about as many tokens as under the official vocabulary. Nothing is learned and nothing is random: the file is the same
everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from string import ascii_letters

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from qwenvl.demo.vocabulary import ADDED_TOKENS, add_steps

BASE = 151_643  # ids before the added tokens
SPACE = "Ġ"  # how byte-level vocabularies spell a space

Merge = tuple[str, str]


def full_tokenizer(words: Iterable[str], base: int = BASE) -> Tokenizer:
    """A tokenizer with `base` ids before the added tokens. words: Latin ones, each a token with and without a space.

    ValueError when `base` leaves no room for the bytes, or is more than the merges there are.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    merges: list[Merge] = []
    if base < len(vocabulary):
        raise ValueError(f"base={base}: expected at least {len(vocabulary)}, the bytes")
    for left, right in _merges(words):
        if len(vocabulary) == base:
            break
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
    if len(vocabulary) < base:
        raise ValueError(f"base={base} is more than the {len(vocabulary)} tokens that can be made: give more words")
    return _with_parts(Tokenizer(models.BPE(vocab=vocabulary, merges=merges)))


def _merges(words: Iterable[str]) -> Iterator[Merge]:
    """In order of rank: the words letter by letter, with a space before and without (so that these do not cut those),
    then pairs and triples of letters, then these with a space before."""
    words = list(words)
    for word in (*(SPACE + word for word in words), *words):
        yield from ((word[:i], word[i]) for i in range(1, len(word)))
    pairs = ["".join(pair) for pair in product(ascii_letters, repeat=2)]
    yield from ((pair[0], pair[1]) for pair in pairs)
    yield from ((SPACE, letter) for letter in ascii_letters)
    yield from ((pair, letter) for pair in pairs for letter in ascii_letters)
    yield from ((SPACE + pair[0], pair[1]) for pair in pairs)
    yield from ((SPACE + pair, letter) for pair in pairs for letter in ascii_letters)


def _with_parts(tokenizer: Tokenizer) -> Tokenizer:
    """The other steps of Qwen2's tokenizer, and its added tokens."""
    add_steps(tokenizer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=special) for text, special in ADDED_TOKENS])
    return tokenizer
