"""Cards of text: what is said to be printed is printed, within the size limits, and graded by character errors."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from qwenvl.demo.questions import KINDS, possible
from qwenvl.demo.reading import (
    MIN_LETTER,
    Fonts,
    capital_height,
    edit_distance,
    grade_reading,
    sample_card,
    sample_reading,
)


@pytest.fixture(scope="module")
def fonts() -> Fonts:
    return Fonts(files=(None,))  # Pillow's own: there on every machine


def test_cards(fonts: Fonts) -> None:
    rng = np.random.default_rng(0)
    cards = [sample_card(rng, fonts) for _ in range(60)]
    assert Counter(len(c.lines) for c in cards).keys() == {1, 2, 3}
    for card in cards:
        assert card.kind == "text"
        assert card.image.shape == (card.height, card.width, 3)
        assert all(line and line == line.strip() for line in card.lines)
        assert not any(possible(card, kind) for kind in KINDS)
        exchange = sample_reading(rng, card)
        assert exchange.answer == "\n".join(card.lines)
        assert grade_reading(exchange, f" {exchange.answer}\n") == {"cer": 0.0}
        assert grade_reading(exchange, "") == {"cer": 1.0}
        assert 0 < grade_reading(exchange, exchange.answer[:-1])["cer"] <= 1
    with pytest.raises(ValueError, match="expected 1, 2 or 3"):
        sample_card(rng, fonts, max_lines=4)


def test_text_is_inside_and_visible(fonts: Fonts) -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        card = sample_card(rng, fonts, max_lines=1)
        grey = card.image.astype(float) @ np.array([0.299, 0.587, 0.114])
        border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
        far = np.abs(grey - np.median(border)) > 40
        assert far.any()  # letters stand out
        rows = np.flatnonzero(far[3:-3, 3:-3].any(axis=1))
        scale = card.resized_height / card.height
        assert (rows[-1] - rows[0] + 3) * scale >= MIN_LETTER * 0.7  # lower-case letters without stems are lower


def test_same_seed_same_card_and_font_sizes(fonts: Fonts) -> None:
    a, b = (sample_card(np.random.default_rng(9), fonts) for _ in range(2))
    assert a.lines == b.lines
    assert np.array_equal(a.image, b.image)
    assert capital_height(fonts.load(None, 40)) > capital_height(fonts.load(None, 20)) >= 10
    assert fonts.load(None, 40) is fonts.load(None, 40)


def test_edit_distance() -> None:
    for a, b, count in (("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0), ("ab", "ba", 2)):
        assert edit_distance(a, b) == edit_distance(b, a) == count
