"""The program `qwenvl`: the verbs, and what becomes of errors."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from qwenvl.cli.act import act
from qwenvl.cli.ask import ask
from qwenvl.cli.bench import bench
from qwenvl.cli.chat import chat
from qwenvl.cli.demo import demo
from qwenvl.cli.doctor import doctor
from qwenvl.cli.eval import evaluate
from qwenvl.cli.events import events
from qwenvl.cli.extract import extract
from qwenvl.cli.info import info
from qwenvl.cli.locate import locate
from qwenvl.cli.parse import parse
from qwenvl.cli.plan import plan
from qwenvl.cli.quantize import quantize
from qwenvl.cli.read import read
from qwenvl.cli.train import train

app = typer.Typer(
    name="qwenvl",
    help="Ask Qwen2.5-VL and Qwen2-VL models about pictures. Without --model a small bundled model answers.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong arguments or files, 130 stopped. QWENVL_DEBUG=1 shows traces.",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("ask")(ask)
app.command("chat")(chat)
app.command("locate")(locate)
app.command("read")(read)
app.command("parse")(parse)
app.command("extract")(extract)
app.command("events")(events)
app.command("act")(act)
app.command("info")(info)
app.command("plan")(plan)
app.command("quantize")(quantize)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("demo")(demo)
app.command("bench")(bench)
app.command("doctor")(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from qwenvl import __version__

        typer.echo(f"qwenvl {__version__}")
        raise typer.Exit()


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the verb; `--version` acts in its callback."""


def main() -> None:
    """Run the program on sys.argv. A user's mistake is one line on stderr and exit code 2, never a trace."""
    try:
        app()
    except (ValueError, OSError, MemoryError, ArithmeticError) as error:
        if os.environ.get("QWENVL_DEBUG"):
            raise
        print(f"qwenvl: {one_line(error)}", file=sys.stderr)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        sys.exit(2 if isinstance(error, ValueError | OSError) and not full else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def one_line(error: Exception) -> str:
    """What an error says, on one line. OSError: the file's name and the reason."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
