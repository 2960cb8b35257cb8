"""Prompt lookup: what is guessed, when it is given up, and that it changes no answer."""

from __future__ import annotations

import pytest
from scripted import ScriptedModel, script
from test_engine import engine_of, request

from qwenvl.engine.lookup import LONGEST, PAUSE, SHORTEST, Lookup


def test_what_followed_the_last_tokens_is_guessed() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 9, 2, 3])
    assert lookup.draft(3) == (4, 5, 6)
    assert Lookup([7, 1, 2, 1, 2]).draft(5) == (1, 2, 1, 2, 1), "what repeats goes on repeating"
    assert lookup.draft(1) == (4,)
    assert lookup.draft(0) == ()
    lookup.learn(3, 1, [4, 7])
    assert lookup.draft(8) == ()  # nothing follows "4 7" or 7 yet
    assert Lookup([1, 2, 3, 4, 9, 2]).draft(2) == (3, 4), "2 stood only once"
    assert Lookup([1, 2, 3, 2, 4, 9, 2]).draft(2) == (), "2 stood twice"


def test_the_longest_agreement_and_the_latest_place_win() -> None:
    assert Lookup([1, 2, 3, 50, 9, 2, 3, 60, 1, 2, 3]).draft(1) == (50,)
    assert Lookup([8, 2, 3, 50, 9, 2, 3, 60, 7, 2, 3]).draft(1) == (60,)
    assert SHORTEST == 2
    assert LONGEST == 4


def test_a_draft_does_not_reach_over_the_edge_of_a_source() -> None:
    lookup = Lookup([5, 6], sources=[[1, 2, 3], [5, 6, 7, 8]])
    assert lookup.draft(8) == (7, 8)
    assert Lookup([2, 3], sources=[[1, 2, 3]]).draft(4) == ()
    assert Lookup([3], sources=[[1, 2, 3], [4]]).draft(4) == ()


def test_it_stops_where_it_does_not_pay_and_tries_again_later() -> None:
    lookup = Lookup([1, 2] * 50)
    tries = 0
    for _ in range(400):
        draft = lookup.draft(8)
        tries += bool(draft)
        lookup.learn(len(draft), 0, [1] if lookup._ids[-1] == 2 else [2])
    assert 8 < tries < 60
    assert lookup.accepted == 0
    good = Lookup([1, 2] * 50)
    for _ in range(100):
        draft = good.draft(8)
        assert len(draft) == 8
        good.learn(8, 8, [*draft, draft[0]])
    assert PAUSE == 8


@pytest.mark.parametrize("most", [1, 2, 5, 16])
def test_drafts_change_the_steps_and_not_the_answer(most: int) -> None:
    page = "name: Anna; name: Bert; name: Carl; name: Dora; "
    answers = {page: page, "short": "x"}
    plain, model = engine_of(ScriptedModel(script(answers)))
    expected = plain.run([request(model, page), request(model, "short")])
    drafting, fast = engine_of(ScriptedModel(script(answers)), draft_tokens=most)
    done = drafting.run([request(fast, page), request(fast, "short")])
    assert [c.text for c in done] == [c.text for c in expected] == [page, "x"]
    assert done[0].finish_reason == "stop"
    assert len(fast.steps) < len(model.steps) * (0.75 if most == 1 else 0.6)
    stats = drafting.stats
    assert 0 < stats.accepted <= stats.drafted
    assert len(model.steps) - len(fast.steps) == stats.accepted


@pytest.mark.parametrize("limit", range(1, 12))
def test_limits_and_stops_hold_inside_a_draft(limit: int) -> None:
    page = "abcabcabcabcabcabc"
    engine, model = engine_of(ScriptedModel(script({page: page})), draft_tokens=8)
    assert engine.run([request(model, page, max_new_tokens=limit)])[0].text == page[:limit]
    stopped = engine.run([request(model, page, stop=("bcab",))])[0]
    assert (stopped.text, stopped.finish_reason) == ("a", "stop")
    one = engine.run([request(model, page, stop_token_ids=(ord("c"),))])[0]
    assert one.text == "ab"
    events = list(engine.stream(request(model, page)))
    assert "".join(e.text for e in events) == page
    assert [e.token_id for e in events][:-1] == list(page.encode())


def test_other_sources_are_looked_at() -> None:
    words = "the quick brown fox jumps over the lazy dog"
    answers = {"copy": words}
    engine, model = engine_of(ScriptedModel(script(answers)), draft_tokens=8)
    asked = request(model, "copy")
    asked.lookup_sources = [list(words.encode())]
    assert engine.run([asked])[0].text == words
    assert engine.stats.accepted > 20
