"""Conversations of several turns, and the loop of `qwenvl chat`, with scripted answers."""

from __future__ import annotations

import io
import json
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scripted_assistant import Asked, ScriptedAssistant, Written
from terminal import CTRL_C, CTRL_D, Terminal

from qwenvl.cli.chat import Opener
from qwenvl.cli.chat_session import Session, lines_of, names_in
from qwenvl.media.sampling import VideoOptions
from qwenvl.tasks.chat import Chat, TooLongError
from qwenvl.types import SamplingParams


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture of 112 x 56 in the current folder."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (112, 56), "white").save("white.png")
    return tmp_path / "white.png"


def drain(chat: Chat, question: str) -> str:
    return "".join(chat.stream(question))


def roles(asked: Asked) -> list[tuple[str, str]]:
    """(role, words) of every message; pictures as [image]."""
    found = []
    for message in asked.messages:
        parts = message["content"] if isinstance(message["content"], list) else [{"text": message["content"]}]
        found.append((message["role"], "".join(p.get("text", f"[{p.get('type')}]") for p in parts)))
    return found


def test_a_conversation_grows(picture: Path) -> None:
    assistant = ScriptedAssistant(["One.", "Two words."])
    chat = Chat(assistant, system="Be short.")
    chat.attach("image", str(picture), Image.open(picture))
    assert drain(chat, "How many?") == "One."
    assert drain(chat, "Sure?") == "Two words."
    assert roles(assistant.asked[1]) == [
        ("system", "Be short."),
        ("user", "[image]How many?"),
        ("assistant", "One."),
        ("user", "Sure?"),
    ]
    assert assistant.asked[1].media == [chat.turns[0].items[0].content]
    assert chat.last is not None
    assert chat.last.text == "Two words."


def test_stopped_answers_are_kept_as_far_as_they_came() -> None:
    chat = Chat(ScriptedAssistant(["one two three"]))
    with closing(chat.stream("Count.")) as pieces:
        assert next(pieces) + next(pieces) == "one two"
    assert [(t.question, t.answer, t.stopped) for t in chat.turns] == [("Count.", "one two", True)]
    assert chat.last is None
    with closing(chat.stream("Again.")) as pieces:
        next(pieces)
        with pytest.raises(KeyboardInterrupt):
            pieces.throw(KeyboardInterrupt())
    assert chat.turns[-1].answer == "one"


def test_an_answer_stopped_before_its_first_word_leaves_no_turn(picture: Path) -> None:
    chat = Chat(ScriptedAssistant(lambda asked: interrupted()))
    chat.attach("image", "white.png", Image.open(picture))
    with pytest.raises(KeyboardInterrupt):
        drain(chat, "What?")
    assert (chat.turns, len(chat.pending)) == ([], 1)


def interrupted() -> str:
    raise KeyboardInterrupt


def test_a_question_that_fails_leaves_the_conversation_as_it_was(picture: Path) -> None:
    chat = Chat(ScriptedAssistant(["fine", ValueError("no such picture")]))
    drain(chat, "First?")
    chat.attach("image", "white.png", Image.open(picture))
    with pytest.raises(ValueError, match="no such picture"):
        drain(chat, "Second?")
    with pytest.raises(ValueError, match="the question is empty"):
        drain(chat, " \n")
    assert (len(chat.turns), len(chat.pending)) == (1, 1)


def test_undo_drop_and_clear(picture: Path) -> None:
    chat = Chat(ScriptedAssistant(["a"]), system="s")
    chat.attach("image", "white.png", Image.open(picture))
    for question in ("1", "2", "3"):
        drain(chat, question)
    assert chat.undo().question == "3"
    assert [turn.question for turn in chat.drop(1)] == ["1"]
    assert [turn.question for turn in chat.turns] == ["2"]
    chat.undo()
    assert chat.undo() is None
    chat.attach("image", "white.png", Image.open(picture))
    drain(chat, "4")
    chat.undo()
    assert len(chat.pending) == 1  # the picture waits for the next question
    chat.clear()
    assert (chat.turns, chat.pending, chat.system) == ([], [], "s")


def words(messages: list[dict[str, Any]]) -> int:
    """Positions as the tests count them: ten a picture, one a word."""
    parts = [
        p for m in messages for p in (m["content"] if isinstance(m["content"], list) else [{"text": m["content"]}])
    ]
    return sum(len(p["text"].split()) if "text" in p else 10 for p in parts)


def test_a_full_context_says_how_many_turns_are_too_many(picture: Path) -> None:
    assistant = ScriptedAssistant(["five words are in it"])
    chat = Chat(assistant, SamplingParams(max_new_tokens=20), limit=60, count=words)
    chat.attach("image", "white.png", Image.open(picture))
    drain(chat, "a b c")  # 10 + 3, and 5
    drain(chat, "a b c")  # 26 in all
    drain(chat, "a b")
    with pytest.raises(TooLongError, match=r"takes 61 positions .* model has 60: it goes on without the oldest turn$"):
        drain(chat, "a b c d e f g h")
    chat.drop(1)
    assert drain(chat, "a b c d e f g h") == "five words are in it"
    with pytest.raises(ValueError, match="take 50 positions, and this model has 60 with 20 of them for the answer"):
        drain(chat, "a " * 50)
    assert len(chat.turns) == 3


def test_the_oldest_turns_are_as_many_as_it_needs() -> None:
    chat = Chat(ScriptedAssistant(["a " * 10]), SamplingParams(max_new_tokens=10), limit=60, count=words)
    for _ in range(4):
        drain(chat, "q")
    with pytest.raises(TooLongError) as caught:
        drain(chat, "q " * 30)
    assert caught.value.oldest == 3


def test_an_answer_gets_the_room_that_is_left() -> None:
    assistant = ScriptedAssistant(["a"])
    chat = Chat(assistant, SamplingParams(max_new_tokens=1000), limit=300, count=words)
    drain(chat, "a " * 100)
    assert assistant.asked[0].sampling.max_new_tokens == 200


def test_short_chats_are_not_counted() -> None:
    """Counting prepares a prompt: while it is plain that everything fits, it is not done."""

    def never(messages: list[dict[str, Any]]) -> int:
        raise AssertionError("counted")

    chat = Chat(ScriptedAssistant(["a"]), limit=4096, count=never)
    for _ in range(5):
        drain(chat, "What?")


def opener(kind: str, source: str, options: dict[str, Any]) -> Any:
    return Opener(None, None, VideoOptions())(kind, source, options)


def test_saved_conversations_are_taken_up_again(picture: Path) -> None:
    assistant = ScriptedAssistant(["Weiß.", "Ja."])
    chat = Chat(assistant, system="Kurz.")
    chat.attach("image", "white.png", Image.open(picture), max_pixels=3136)
    drain(chat, "Welche Farbe — größer?")
    chat.save("talk.json")
    saved = json.loads(Path("talk.json").read_text("utf-8"))["messages"]
    assert saved[1]["content"][0] == {"type": "image", "image": str(picture), "max_pixels": 3136}

    again = Chat(assistant)
    again.load("talk.json", opener)
    assert (again.system, again.turns[0].answer, again.turns[0].items[0].content.size) == ("Kurz.", "Weiß.", (112, 56))
    drain(again, "Sicher?")
    first, second = assistant.asked
    assert roles(second)[:2] == roles(first)
    assert second.messages[1]["content"][0]["max_pixels"] == 3136


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no conversation"),
        ("[]", "the conversation is empty"),
        ('{"messages": 3}', "a conversation is a list of messages"),
        ('[{"role": "user", "content": "hi"}]', "expected user and assistant in turn, up to an answer; found user"),
        ('[{"role": "boss", "content": "hi"}]', "has role 'boss'"),
        (
            '[{"role": "user", "content": [{"image": "gone.png"}]}, {"role": "assistant", "content": "a"}]',
            r"gone\.png does not exist",
        ),
        ('[{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": ""}]', "names no file"),
    ],
)
def test_what_is_no_conversation_leaves_the_one_there_is(picture: Path, content: str, says: str) -> None:
    Path("bad.json").write_text(content)
    chat = Chat(ScriptedAssistant(["a"]))
    drain(chat, "q")
    with pytest.raises(ValueError, match=says):
        chat.load("bad.json", opener)
    assert len(chat.turns) == 1


def run(chat: Chat, *lines: str, **options: Any) -> int:
    session = Session(chat, Opener(None, None, VideoOptions()), **{"interactive": False, **options})
    return session.run(iter(lines))


def test_a_pipe_gets_one_answer_a_line_and_failures_are_told(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assistant = ScriptedAssistant(["Yes.", "Größer, 日本."])
    lines = ["/image white.png", "White?", "", "/image gone.png", "/frob", " /etc is what?", "/quit", "never"]
    assert run(Chat(assistant), *lines) == 1
    out, err = capsys.readouterr()
    assert out == "Yes.\nGrößer, 日本.\n"
    assert "qwenvl: gone.png does not exist" in err
    assert "/frob is no command: /help lists them" in err
    assert [asked.question for asked in assistant.asked] == ["White?", "/etc is what?"]


def test_json_is_one_object_a_turn(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = '[{"bbox_2d": [28, 0, 56, 28], "label": "dot"}]'
    chat = Chat(ScriptedAssistant(["Yes.", boxes]))
    assert run(chat, "/image white.png", "White?", "/info", "/load x", "Dots?", "/boxes", as_json=True) == 1
    first, failed, second, drawn = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["question"], first["media"], first["answer"]) == ("White?", ["white.png"], "Yes.")
    assert first["found_tokens"] == 0
    assert failed["error"].startswith("x: No such file")
    assert second["places"][0]["box"] == [28.0, 0.0, 56.0, 28.0]
    assert drawn["drawn"] == "white-boxes.png"


def test_boxes_are_printed_and_drawn(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (224, 112), "white").save("second.png")
    answers = ['[{"bbox_2d": [28, 0, 56, 28], "label": "dot"}]']
    lines = ("/image white.png", "/image second.png", "Dots?", "/boxes", "/boxes 1 first-boxes.png", "/boxes 3")
    assert run(Chat(ScriptedAssistant(answers)), *lines) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[1:] == ["dot\t28.0\t0.0\t56.0\t28.0"] * 2
    assert "drawn in second-boxes.png" in err
    assert "/boxes 3: there are 2 pictures" in err
    with Image.open("first-boxes.png") as drawn:
        assert drawn.size == (112, 56)
        assert len(drawn.getcolors()) > 1


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["/boxes"], "there is no answer yet"),
        (["Hello?", "/boxes"], "no picture in this conversation"),
        (["/image white.png", "Hello?", "/boxes"], "the last answer names no places"),
        (["/image"], "/image needs a name"),
        (["/video white.png"], "white.png is a picture: expected a video"),
        (["/drop x"], "/drop x: expected a number of turns"),
        (["/save"], "/save needs a name"),
        (["/save gone/x.json"], "gone/x.json: No such file"),
    ],
)
def test_mistakes_are_told(picture: Path, capsys: pytest.CaptureFixture[str], lines: list[str], says: str) -> None:
    assert run(Chat(ScriptedAssistant(["hi"])), *lines) == 1
    assert says in capsys.readouterr().err


def test_full_contexts_of_pipes(capsys: pytest.CaptureFixture[str]) -> None:
    def chat() -> Chat:
        sampling = SamplingParams(max_new_tokens=10)
        return Chat(ScriptedAssistant(["a " * 10]), sampling, limit=60, count=words)

    lines = ["q"] * 4 + ["q " * 30]
    assert run(chat(), *lines) == 1
    assert "--drop-oldest does so unasked" in capsys.readouterr().err
    assert run(chat(), *lines, drop_oldest=True) == 0
    assert "(forgot the oldest 3 of 4 turns)" in capsys.readouterr().err


def test_cut_off_answers_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Chat(ScriptedAssistant([Written("abc", "length")])), "q") == 0
    assert "(cut off after 3 tokens)" in capsys.readouterr().err


def test_lines_that_are_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.TextIOWrapper(io.BytesIO("Größe?\r\n".encode() + b"caf\xe9?\n"), "utf-8")
    assert list(lines_of(stream, interactive=False)) == ["Größe?", "caf\ufffd?"]


def test_names_behind_commands(picture: Path) -> None:
    Path("my holiday.png").write_bytes(b"")
    assert names_in("my holiday.png") == ["my holiday.png"]
    assert names_in("'a b.png' c\\ d.png") == ["a b.png", "c d.png"]
    assert names_in("it's.png") == ["it's.png"]


DRIVER = """
import sys, time
sys.path.insert(0, {folder!r})
from dataclasses import dataclass
from scripted_assistant import ScriptedAssistant
from qwenvl.cli.chat import Opener
from qwenvl.cli.chat_session import Session, lines_of
from qwenvl.media.sampling import VideoOptions
from qwenvl.tasks.chat import Chat
from qwenvl.types import SamplingParams

class Slow(ScriptedAssistant):
    def stream_reply(self, *given, **options):
        return SlowStream(super().stream_reply(*given, **options))

class SlowStream:
    def __init__(self, stream):
        self.stream, self.answer = stream, stream.answer
    def __iter__(self):
        for piece in self.stream:
            yield piece
            time.sleep({pause})

def words(messages):
    return sum(len(str(message["content"]).split()) for message in messages)

answers = ["Now " + " ".join(map(str, range(200))) if {long} else "Short.", "Grüße."]
chat = Chat(Slow(answers), SamplingParams(max_new_tokens=8), limit={limit}, count=words)
session = Session(chat, Opener(None, None, VideoOptions()), model="scripted")
session.greet()
sys.exit(session.run(lines_of(sys.stdin, True)))
"""


def driver(pause: float = 0.05, long: bool = True, limit: int | None = None) -> list[str]:
    code = DRIVER.format(folder=str(Path(__file__).parent), pause=pause, long=long, limit=limit)
    return [sys.executable, "-c", code]


terminals = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")


@terminals
def test_a_key_stops_the_answer_and_the_chat_goes_on(picture: Path) -> None:
    with Terminal(driver()) as terminal:
        terminal.wait_for("Talking to scripted. /help lists the commands, Ctrl-D ends.\n> ")
        terminal.type("Count.\r")
        terminal.wait_for("Now 0 1 2")
        terminal.type(CTRL_C)
        terminal.wait_for("(stopped)\n> ")
        terminal.type("/save talk.json\r")
        terminal.wait_for("(saved 1 turn in talk.json)\n> ")
        terminal.type("Hallo?\r")
        terminal.wait_for("Grüße.\n> ")
        terminal.type("half a line")
        terminal.wait_for("half a line")
        terminal.type(CTRL_C)
        terminal.wait_for("(Ctrl-D or /quit ends the chat)\n> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    answer = json.loads(Path("talk.json").read_text())["messages"][1]["content"]
    assert answer.startswith("Now 0 1 2")
    assert not answer.endswith("199")


@terminals
def test_a_terminal_edits_lines_completes_and_asks(picture: Path) -> None:
    with Terminal(driver(pause=0, long=False, limit=40)) as terminal:
        terminal.wait_for("> ")
        terminal.type("/ima\t\rwhat?\r")
        terminal.wait_for("/image needs a name")
        terminal.wait_for("Short.\n> ")
        terminal.type("two \\\rlines \x7f?\r")  # a line that goes on, and a character taken back
        terminal.wait_for("Grüße.\n> ")
        terminal.type("word " * 20 + "\r")
        terminal.wait_for("Forget the oldest ")
        terminal.wait_for("[y/N] ")
        terminal.type("n\r")
        terminal.wait_for("the question was not asked")
        terminal.wait_for("> ")
        terminal.type("word " * 20 + "\r")
        terminal.wait_for("[y/N] ")
        terminal.type("y\r")
        terminal.wait_for("(forgot the oldest")
        terminal.wait_for("Grüße.\n> ")
        terminal.type("/help\r")
        terminal.wait_for("/undo")
        terminal.wait_for("> ")
        terminal.type("/quit\r")
        assert terminal.end() == 0


def test_ctrl_c_in_a_pipe_ends_the_program() -> None:
    """Nobody is there to go on: the interrupt passes through, and what it replaced stays in force."""

    def interrupt(asked: Asked) -> str:
        signal.raise_signal(signal.SIGINT)
        return "never"

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(Chat(ScriptedAssistant(interrupt)), "q")
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_press_interrupts_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    def press_twice(asked: Asked) -> str:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return "never"

    chat = Chat(ScriptedAssistant(press_twice))
    assert run(chat, "q", interactive=True) == 0
    assert "(stopped before the first word: the question is forgotten)" in capsys.readouterr().err
    assert chat.turns == []
