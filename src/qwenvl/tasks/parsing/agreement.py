"""How far an answer agrees with what is known otherwise: the PDF's own text, and itself."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Any

# Chinese and Japanese are written without spaces: every character counts as a word.
_WORDS = re.compile(r"[぀-ヿ㐀-鿿豈-﫿\U00020000-\U0003ffff]|[^\W_぀-ヿ㐀-鿿豈-﫿]+")
_DIGITS = re.compile(r"\d+")
COUNTED = 20_000  # characters at the end of an answer that are looked at
COPIES = 40  # pieces that differ in nothing but numbers


def agreement(text: str, own: str) -> dict[str, Any] | None:
    """What share of the words of a page's `own` text an answer's `text` has ("found"), and what share of the answer's
    words the page has ("true"); "words": how many its own are. Words are compared as sets with counts, without case,
    order and signs. None where the page has no text of its own."""
    ours, theirs = _count(text), _count(own)
    total, written = theirs.total(), ours.total()
    if not total:
        return None
    both = (ours & theirs).total()
    return {"words": total, "found": round(both / total, 4), "true": round(both / written, 4) if written else 0.0}


def _count(text: str) -> Counter[str]:
    joined = re.sub(r"[-­]\s*\n\s*", "", unicodedata.normalize("NFKC", text))  # words that a line's end divides
    return Counter(_WORDS.findall(joined.casefold()))


def counting(text: str) -> str:
    """The piece that an answer ends with again and again while nothing but its numbers changes ("<li>item #</li>"), as
    a list does that will not end; "" where there is none, or fewer than COPIES."""
    end = _DIGITS.sub("#", text[-COUNTED:])[::-1]
    reach = [0] * len(end)  # Knuth, Morris and Pratt (1977): the longest beginning that ends at each place
    best = ""
    for place in range(1, len(end)):
        known = reach[place - 1]
        while known and end[place] != end[known]:
            known = reach[known - 1]
        known += end[place] == end[known]
        reach[place] = known
        period = place + 1 - known
        if known and place + 1 >= COPIES * period and "#" in end[:period]:
            best = end[:period]
    return best[::-1]
