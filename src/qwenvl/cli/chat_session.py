"""The loop of `qwenvl chat`: lines in, answers and messages out.

Answers go to stdout, everything else (prompts, messages) to stderr, so that a pipe gets answers alone. A mistake is a
message and the chat goes on.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from qwenvl.cli.app import one_line
from qwenvl.cli.sources import expand, outputs
from qwenvl.tasks.chat import Chat, Kind, TooLongError

if TYPE_CHECKING:
    from qwenvl.tasks.answer import Answer

PROMPT = "> "
EXAMPLE = "Locate all red circles in the picture and output the bounding boxes in JSON format."
COMMANDS = {
    "/image": ("PATH...", "ask about a picture: a file, folder, pattern or address"),
    "/video": ("PATH...", "the same with a video"),
    "/boxes": ("[N] [FILE]", "places in the last answer: print them, and draw them on picture N (the last one)"),
    "/undo": ("", "take the last turn back"),
    "/drop": ("[N]", "forget the oldest N turns (1)"),
    "/clear": ("", "forget all turns"),
    "/system": ("[TEXT]", "another system prompt; without text the model's own"),
    "/save": ("FILE", "write the conversation as JSON"),
    "/load": ("FILE", "take up a conversation from there"),
    "/info": ("", "what the conversation holds"),
    "/help": ("", "this list"),
    "/quit": ("", "end; so does Ctrl-D"),
}
MISTAKES = (ValueError, OSError, MemoryError, ArithmeticError)  # as in app.main: told in a line


class Session:
    """A chat on a terminal or a pipe.

    opener(kind, source, options) -> picture or video; its options(kind) go with what is attached. interactive: somebody
    is there, to be asked and to press Ctrl-C. found(): tokens that the engine has not had to compute, so far.
    """

    def __init__(
        self,
        chat: Chat,
        opener: Any,
        *,
        as_json: bool = False,
        interactive: bool = True,
        drop_oldest: bool = False,
        found: Callable[[], int] = lambda: 0,
        model: str = "demo",
    ) -> None:
        self.chat, self._open, self._found, self._model = chat, opener, found, model
        self._as_json, self._interactive, self._drop_oldest = as_json, interactive, drop_oldest
        self._lines: Iterator[str] = iter(())
        self.failed = 0

    def greet(self) -> None:
        if self._interactive:
            about = f", about {_things(self.chat)}" if self.chat.pending else ""
            say(f"Talking to {self._model}{about}. /help lists the commands, Ctrl-D ends.")

    def run(self, lines: Iterator[str]) -> int:
        """Answer until the lines end or one is /quit; the exit code: 1 when a line of a pipe failed."""
        self._lines = lines
        for line in lines:
            try:
                if not self.handle(line):
                    break
            except MISTAKES as error:
                if os.environ.get("QWENVL_DEBUG") and not self._interactive:
                    raise
                if isinstance(error, BrokenPipeError):  # nobody reads the answers any more
                    raise
                self.failed += 1
                say(f"qwenvl: {one_line(error)}")
                if self._as_json:
                    self._print({"question": line.strip(), "error": one_line(error)})
        return 1 if self.failed and not self._interactive else 0

    def handle(self, line: str) -> bool:
        """One line: a command, or a question. Returns False when the chat is over."""
        text = line.encode(errors="surrogateescape").decode(errors="replace")  # bytes that are no text
        if not text.strip():
            return True
        if not text.startswith("/"):
            self._ask(text.strip())
            return True
        name, _, rest = text.strip().partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name not in COMMANDS:
            raise ValueError(
                f"{name} is no command: /help lists them; a question that begins with / needs a space first"
            )
        getattr(self, f"_{name[1:]}")(rest.strip())
        return True

    def _ask(self, question: str) -> None:
        while True:
            before, turns = self._found(), len(self.chat.turns)
            sources = [item.source for item in self.chat.pending]
            try:
                stopped = self._answer(question)
            except TooLongError as error:
                if not self._agreed(error):
                    raise ValueError(
                        f"the question was not asked: {error}; /drop, /undo and /clear make room, --drop-oldest does "
                        "so unasked"
                    ) from None
                continue
            break
        kept = len(self.chat.turns) > turns
        if stopped:
            say("(stopped)" if kept else "(stopped before the first word: the question is forgotten)")
        elif self.chat.last is not None and self.chat.last.completion.finish_reason == "length":
            say(f"(cut off after {len(self.chat.last.completion.token_ids)} tokens)")
        if self._as_json:
            text = self.chat.turns[-1].answer if kept else ""
            record = {"answer": text, "finish_reason": "abort"} if stopped else _record(self.chat.last)
            head = {"model": self._model, "question": question, "media": sources}
            self._print({**head, **record, "found_tokens": self._found() - before})

    def _answer(self, question: str) -> bool:
        """Stream an answer; whether it was stopped."""
        with stop_key(self._interactive) as is_stopped, closing(self.chat.stream(question)) as pieces:
            try:
                for piece in pieces:
                    if not self._as_json:
                        print(piece, end="", flush=True)
                    if is_stopped():
                        break
                else:
                    return False
                return True
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                return True
            finally:
                if not self._as_json:
                    print(flush=True)

    def _agreed(self, error: TooLongError) -> bool:
        """Drop the oldest turns, where that is wished."""
        oldest = self.chat.turns[: error.oldest]
        items = sum(len(turn.items) for turn in oldest)
        with_items = f" with {items} of its pictures and videos" if items else ""
        turns = f"the oldest {error.oldest} of {counted(len(self.chat.turns), 'turn')}{with_items}"
        if not self._drop_oldest:
            if not self._interactive:
                return False
            say(f"The conversation is too long: it needs {error.needed} positions of {error.limit}.")
            say(f"Forget {turns}, and ask then? [y/N] ", end="")
            if next(self._lines, "").strip().lower() not in ("y", "yes"):
                return False
        self.chat.drop(error.oldest)
        say(f"(forgot {turns})")
        return True

    def _image(self, rest: str) -> None:
        self._attach("image", rest)

    def _video(self, rest: str) -> None:
        self._attach("video", rest)

    def _attach(self, kind: Kind, rest: str) -> None:
        if not rest:
            raise ValueError(f"/{kind} needs a name: /{kind} PATH")
        contents = [(source, self._open(kind, source, {})) for source in expand(names_in(rest), (kind,))]
        for source, content in contents:
            self.chat.attach(kind, source, content, **self._open.options(kind))
        say(f"The next question is about {_things(self.chat)}.")

    def _boxes(self, rest: str) -> None:
        if not self.chat.turns:
            raise ValueError(f"there is no answer yet: ask for places first, such as {EXAMPLE!r}")
        answer, pictures = self.chat.last, [item for item in self.chat.items if item.kind == "image"]
        if not pictures:
            raise ValueError("there is no picture in this conversation: /image PATH adds one")
        if answer is None:
            raise ValueError("the sizes behind the last answer are not known (it was stopped or loaded): ask again")
        number, _, rest_of = rest.partition(" ")
        if not number.isdecimal():
            number, rest_of = str(len(pictures)), rest
        if not 1 <= int(number) <= len(pictures):
            raise ValueError(f"/boxes {number}: there are {len(pictures)} pictures, the first is 1")
        picture = pictures[int(number) - 1]
        places = answer.places(int(number) - 1)
        if not places:
            raise ValueError(f"the last answer names no places: ask for some, such as {EXAMPLE!r}")
        from qwenvl.tasks import draw_boxes, places_to_dicts

        named = Path(names_in(rest_of.strip())[0]) if rest_of.strip() else None
        (file,) = outputs([picture.source], "-boxes.png", named, "/boxes")
        draw_boxes(picture.content, places).save(file)
        found = places_to_dicts(places)
        if self._as_json:
            self._print({"places": found, "drawn": str(file)})
            return
        for place in found:
            numbers = (f"{number:.1f}" for number in place["box" if "box" in place else "point"])
            print(place["label"], *numbers, sep="\t", flush=True)
        say(f"drawn in {file}")

    def _undo(self, rest: str) -> None:
        turn = self.chat.undo()
        say("(there is nothing to take back)" if turn is None else f"(took back: {_short(turn.question)})")
        if self.chat.pending:
            say(f"The next question is about {_things(self.chat)}.")

    def _drop(self, rest: str) -> None:
        if rest and not rest.isdecimal():
            raise ValueError(f"/drop {rest}: expected a number of turns")
        dropped = self.chat.drop(int(rest or 1))
        say(f"(forgot {counted(len(dropped), 'turn')}, {len(self.chat.turns)} left)")

    def _clear(self, rest: str) -> None:
        self.chat.clear()
        say("(forgot everything)")

    def _system(self, rest: str) -> None:
        self.chat.set_system(rest or None)
        say("(the system prompt is set)" if rest else "(the system prompt is the model's own)")

    def _save(self, rest: str) -> None:
        if not rest:
            raise ValueError("/save needs a name: /save FILE")
        self.chat.save(names_in(rest)[0])
        say(f"(saved {counted(len(self.chat.turns), 'turn')} in {rest})")

    def _load(self, rest: str) -> None:
        if not rest:
            raise ValueError("/load needs a name: /load FILE")
        self.chat.load(names_in(rest)[0], self._open)
        say(f"(took up {counted(len(self.chat.turns), 'turn')} from {rest})")

    def _info(self, rest: str) -> None:
        pictures = sum(item.kind == "image" for item in self.chat.items)
        videos = len(self.chat.items) - pictures
        say(f"turns: {len(self.chat.turns)}, pictures: {pictures}, videos: {videos}")
        if self.chat.last is not None:
            used = self.chat.last.completion.prompt_tokens + len(self.chat.last.completion.token_ids)
            say(f"{used} tokens; the model is made for {self.chat.limit} positions.")
        if self.chat.pending:
            say(f"The next question is about {_things(self.chat)}.")

    def _help(self, rest: str) -> None:
        for name, (argument, meaning) in COMMANDS.items():
            say(f"  {name} {argument}".ljust(24) + meaning)
        say("Ctrl-C stops an answer and keeps it; a line that ends with \\ goes on in the next one.")

    @staticmethod
    def _print(record: dict[str, Any]) -> None:
        print(json.dumps(record, ensure_ascii=False), flush=True)


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def names_in(text: str) -> list[str]:
    """The names in what was typed behind a command: one name with spaces where there is such a file, else words, in
    which quotes and backslashes hold spaces as in a shell (so do files that are dropped on a terminal)."""
    if Path(text).exists():
        return [text]
    try:
        return shlex.split(text, posix=os.name != "nt") or [text]
    except ValueError:  # a quote without its other one
        return [text]


def _things(chat: Chat) -> str:
    return ", ".join(f"{_short(item.source)} ({item.content.width} x {item.content.height})" for item in chat.pending)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}"


def _record(answer: Answer | None) -> dict[str, Any]:
    assert answer is not None
    return answer.to_dict()


@contextmanager
def stop_key(wanted: bool) -> Iterator[Callable[[], bool]]:
    """While it is open, the first Ctrl-C only makes the function given return True, so that the engine is left between
    two steps; a second one interrupts at once. Not `wanted`: Ctrl-C is as before."""
    presses: list[int] = []
    if not wanted:
        yield lambda: False
        return

    def pressed(number: int, frame: object) -> None:
        presses.append(number)
        if len(presses) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield lambda: bool(presses)
    finally:
        signal.signal(signal.SIGINT, before)


def lines_of(stream: TextIO, interactive: bool) -> Iterator[str]:
    """The lines of a pipe, or of somebody at a terminal, with line editing and Tab for commands and files where the
    system has it. Ctrl-C gives up a line, Ctrl-D ends."""
    if not interactive:
        for raw in getattr(stream, "buffer", stream):
            yield (raw.decode(errors="replace") if isinstance(raw, bytes) else raw).rstrip("\r\n")
        return
    _edit_lines()
    on_terminal = sys.stdout.isatty()
    while True:
        parts: list[str] = []
        try:
            while not parts or parts[-1].endswith("\\"):
                prompt = ". " if parts else PROMPT
                if not on_terminal:  # input() would write its prompt among the answers
                    say(prompt, end="")
                parts.append(input(prompt if on_terminal else ""))
        except KeyboardInterrupt:
            say("\n(Ctrl-D or /quit ends the chat)")
            continue
        except EOFError:
            say("")
            return
        yield "\n".join(part.removesuffix("\\") for part in parts[:-1]) + ("\n" if parts[1:] else "") + parts[-1]


def _edit_lines() -> None:
    try:
        import readline
    except ImportError:  # Windows: its console edits lines itself
        return
    import glob

    def complete(text: str, state: int) -> str | None:
        begin = readline.get_begidx()
        names = [n for n in COMMANDS if n.startswith(text)] if begin == 0 and "/" not in text[1:] else []
        names = names or [f"{n}/" if os.path.isdir(n) else n for n in sorted(glob.glob(f"{glob.escape(text)}*"))]
        return names[state] if state < len(names) else None

    readline.set_completer_delims(" \t\n")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
