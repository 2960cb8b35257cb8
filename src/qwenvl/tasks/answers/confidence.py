"""How sure a model was of a place: the probabilities of the tokens that wrote its numbers.

In: where the numbers stand in the answer's text, which characters each token wrote, and the tokens' log-probabilities.
Out: one number from 0 to 1.

The confidence of a place is the geometric mean of the probabilities of all tokens that wrote a digit (or sign or point)
of its numbers: exp(mean(log p)). Label, brackets and commas do not count. It says how sharply the model decided for
these numbers rather than others, not whether the thing is there: a neighbouring number may be nearly as good, so 0.5 is
no coin toss. Compare the places of one answer with each other, and choose thresholds on pictures of your own.
Probabilities are the model's own, before temperature, penalties and bans.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from qwenvl.tasks.answers.written import Number


def confidence_of(
    numbers: Sequence[Number], offsets: Sequence[tuple[int, int]], logprobs: Sequence[float]
) -> float | None:
    """The geometric mean; None where no token wrote these characters (the text was changed).

    offsets: (first character, end) of every token's text, in order; of tokens without text, both are the same.
    """
    assert len(offsets) == len(logprobs), (len(offsets), len(logprobs))
    ends = [end for _, end in offsets]  # ascending
    logs: dict[int, float] = {}
    for number in numbers:
        # the first token that ends behind the number's first character, and those that begin before its end
        index = bisect_left(ends, number.start + 1)
        while index < len(offsets) and offsets[index][0] < number.end:
            if offsets[index][1] > offsets[index][0]:
                logs[index] = logprobs[index]
            index += 1
    if not logs:
        return None
    return min(1.0, math.exp(sum(logs.values()) / len(logs)))
