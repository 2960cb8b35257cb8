"""Tool calls: a corpus of answers, the same in pieces, and mutations that must never raise."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from call_corpus import CLICK, CORPUS, NAMES, tag

from qwenvl.processing.chat_template import ChatTemplate
from qwenvl.tasks.calls import (
    ArgumentsDelta,
    CallBegin,
    CallBroken,
    CallEnd,
    CallEvent,
    CallStream,
    TextDelta,
    ToolCall,
    parse_calls,
)

PIECES = ["<tool_call>", "</tool_call>", '"', "'", "{", "}", "[", "]", ",", ":", "\n", "```", "\\", "<", " ", "name",
    '{"name": "f", "arguments": {"a": ', "}}", '"x"', "12", "null", "é", "\ud83d", "//", '{"name"']  # fmt: skip


def streamed(pieces: list[str], names: tuple[str, ...] = ()) -> tuple[CallStream, list[CallEvent]]:
    stream, events = CallStream(names), []
    for piece in pieces:
        events += stream.feed(piece)
    return stream, events + stream.close()


def cut(text: str, chance: random.Random) -> list[str]:
    pieces = []
    while text:
        size = chance.choice((1, 1, 2, 3, 7, 30))
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def told(events: list[CallEvent]) -> list[ToolCall]:
    """The calls as a client puts them together from the events, which must fit each other."""
    calls, arguments, names = list[ToolCall](), dict[int, str](), dict[int, str]()
    for event in events:
        if isinstance(event, CallBegin):
            assert event.index == len(names)
            names[event.index], arguments[event.index] = event.name, ""
        elif isinstance(event, ArgumentsDelta):
            arguments[event.index] += event.text
        elif isinstance(event, CallEnd):
            assert json.loads(arguments[event.index], parse_constant=pytest.fail) == event.call.arguments
            assert names[event.index] == event.call.name
            calls.append(event.call)
    return calls


def plain(calls: list[ToolCall]) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, call.arguments) for call in calls]


@pytest.mark.feature(97)
@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus(name: str) -> None:
    answer, text, calls = CORPUS[name]
    found_text, found = parse_calls(answer, NAMES)
    assert plain(found) == calls
    assert found_text == text


@pytest.mark.parametrize("name", CORPUS)
def test_pieces_give_the_same(name: str) -> None:
    answer, text, calls = CORPUS[name]
    chance = random.Random(name)
    for pieces in [list(answer), [answer], *(cut(answer, chance) for _ in range(5))]:
        stream, events = streamed(pieces, NAMES)
        assert plain(told(events)) == calls
        assert stream.text == text


def test_calls_without_a_tag_need_a_known_name() -> None:
    assert parse_calls(CLICK) == (CLICK, [])
    assert parse_calls(CLICK, ["weather"]) == (CLICK, [])
    assert parse_calls(f"Such as {CLICK}", ["computer_use"])[1] == []  # in the middle of a line it is an example
    assert len(parse_calls(CLICK, ["computer_use"])[1]) == 1


def test_what_goes_out_while_it_comes() -> None:
    """Text at once; the name when it is there; every member of the arguments when it is whole."""
    stream = CallStream()
    assert stream.feed("Look: ") == [TextDelta("Look:")]
    assert stream.feed("<tool") == []
    assert stream.feed('_call>\n{"name": "f", "arguments": {') == [CallBegin(0, "f")]
    assert stream.feed('"a": [1, 2], "te') == [ArgumentsDelta(0, '{"a": [1, 2]')]
    assert stream.feed('xt": "x, </tool_call> y') == []
    assert stream.feed('"') == []
    assert stream.feed("}}") == [ArgumentsDelta(0, ', "text": "x, </tool_call> y"}')]
    assert stream.feed("\n</tool_call>")[-1] == CallEnd(0, ToolCall("f", {"a": [1, 2], "text": "x, </tool_call> y"}))
    assert stream.feed(" Done") == [TextDelta("\nDone")]
    assert stream.close() == []
    assert stream.text == "Look:\nDone"


def test_a_call_that_the_token_limit_cuts_is_told_as_broken() -> None:
    stream, events = streamed(list('Hm.<tool_call>{"name": "f", "arguments": {"a": 1, "b": 2'))
    assert stream.calls == []
    assert [e for e in events if isinstance(e, CallBroken)] == [
        CallBroken(0, '<tool_call>{"name": "f", "arguments": {"a": 1, "b": 2')
    ]
    assert [e.text for e in events if isinstance(e, ArgumentsDelta)] == ['{"a": 1']


def test_a_text_that_is_never_closed_ends_at_a_line_with_a_tag() -> None:
    """No later quote is waited for: what follows goes out at once."""
    events = CallStream().feed('<tool_call>\n{"name": "f", "arguments": {"a": "x}}\n</tool_call>\nNext')
    assert isinstance(events[-2], CallBroken)
    assert events[-1] == TextDelta("\nNext")


@pytest.mark.feature(97)
def test_calls_go_round_through_the_chat_template() -> None:
    """What the template writes for calls of the history is read back."""
    arguments = {"text": 'a "quoted"\n</tool_call> text', "at": [1, 2], "é": None}
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name in ("f", "g")]
    talk = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "Let me.", "tool_calls": calls}]
    rendered = ChatTemplate().render(talk)
    answer = rendered.split("<|im_start|>assistant\n")[1].removesuffix("<|im_end|>\n")
    text, found = parse_calls(answer)
    assert text == "Let me."
    assert plain(found) == [("f", arguments), ("g", arguments)]


def fuzz(rounds: int) -> None:
    chance = random.Random(rounds)
    answers = [answer for answer, _, _ in CORPUS.values()]
    for _ in range(rounds):
        text = chance.choice(answers) + chance.choice(["", "\n", "\n" + chance.choice(answers)])
        for _ in range(chance.randrange(1, 6)):
            at, to = sorted((chance.randrange(len(text) + 1), chance.randrange(len(text) + 1)))
            change = chance.randrange(4)
            if change == 0:
                text = text[:at] + chance.choice(PIECES) + text[at:]
            elif change == 1:
                text = text[:at] + text[min(at + 3, len(text)) :]
            elif change == 2:
                text = text[:at] + text[to:]
            else:
                text = text[:to] + text[at:to] + text[to:]
        names = chance.choice(((), NAMES))
        found_text, calls = parse_calls(text, names)
        stream, events = streamed(cut(text, chance), names)
        assert (stream.text, plain(stream.calls)) == (found_text, plain(calls)), text
        assert plain(told(events)) == plain(calls), text
        for call in calls:
            json.dumps(call.arguments, allow_nan=False).encode()


def test_mutations_never_raise_and_pieces_agree() -> None:
    fuzz(700)


@pytest.mark.slow
def test_many_mutations_never_raise_and_pieces_agree() -> None:
    fuzz(40_000)


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "f", "arguments": {"a": "' + "x, }" * 10_000,
        "<tool_call>" * 3_000,
        '<tool_call>{"' * 2_500,
        '<tool_call>{"</tool_call>' * 2_000,
        "</tool_call>{" * 2_500,
        tag('{"name": "f", "arguments": ' + "[" * 20_000),
        "<tool_call>[" + '{"name": "f"},' * 2_500,
        "<" * 40_000,
        " " * 40_000 + "<tool_call>",
        "<tool_call>" + " " * 40_000,
        '<tool_call>{"name": "' + "\\" * 40_000,
        "```" + "\n" * 20_000 + "```" * 5_000,
    ],
    ids=range(12),
)
def test_hostile_answers_take_linear_time(text: str) -> None:
    started = time.process_time()
    parse_calls(text, NAMES)
    streamed([text[at : at + 8] for at in range(0, len(text), 8)], NAMES)
    assert time.process_time() - started < 3
