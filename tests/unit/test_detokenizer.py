"""Text by pieces: the pieces join to the whole, half characters and stop strings are withheld."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ByteTokenizer

from qwenvl.engine.detokenizer import Detokenizer, StopStrings, TextStream


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=12) | st.text(max_size=6).map(str.encode))
def test_detokenizer_pieces_join_to_the_whole(data: bytes) -> None:
    detokenizer, whole = Detokenizer(ByteTokenizer()), data.decode(errors="replace")
    text = ""
    for byte in data:
        text += detokenizer.push(byte)
        assert whole.startswith(text)
    assert text + detokenizer.flush() == whole


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
    st.lists(st.text("abc", max_size=4), max_size=6),
)
def test_stop_strings_do_not_depend_on_the_pieces(stops: list[str], pieces: list[str]) -> None:
    def cut(parts: list[str]) -> str:
        stream, text = StopStrings(stops), ""
        for part in parts:
            new, met = stream.push(part)
            text += new
            if met:
                return text
        return text + stream.flush()

    whole = "".join(pieces)
    ends = [(whole.find(s) + len(s), whole.find(s)) for s in stops if s in whole]
    expected = whole[: min(ends)[1]] if ends else whole
    assert cut(pieces) == cut([whole]) == cut(list(whole)) == expected


def test_the_stop_string_complete_first_wins_and_of_two_the_longer() -> None:
    assert StopStrings(["abcd", "c"]).push("xabcd") == ("xab", True)
    assert StopStrings(["abc", "c"]).push("xabcd") == ("x", True)


def test_only_the_part_that_may_become_a_stop_string_is_held() -> None:
    stream = StopStrings(["<end>"])
    assert stream.push("a<e") == ("a", False)
    assert stream.push("<") == ("<e", False)
    assert stream.push("end") == ("", False)
    assert stream.flush() == "<end"
    assert stream.flush() == ""


def test_nothing_comes_out_behind_a_stop_string() -> None:
    stream = TextStream(ByteTokenizer(), ["b"])
    assert [stream.push(byte) for byte in b"ab"] == [("a", False), ("", True)]
    assert stream.flush() == ""


def test_garbage_does_not_hold_what_is_decided() -> None:
    detokenizer = Detokenizer(ByteTokenizer())
    bad = "\N{REPLACEMENT CHARACTER}"
    assert [detokenizer.push(byte) for byte in b"\xff\xff\xe2a"] == ["", bad, bad, bad + "a"]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty string"):
        StopStrings(["a", ""])
