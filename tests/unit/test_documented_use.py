"""The user pages in docs/ name verbs, options and functions that there are; options are spelled alike in all verbs."""

from __future__ import annotations

import ast
import re
import shlex
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from qwenvl.cli.app import app

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("grounding", "extraction", "documents", "parsing", "events", "agents", "chat", "cookbooks", "checkpoints")
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# What a number of tokens is for differs from verb to verb, and so do questions and what a run writes.
OWN_WORDS = {"--out", "--format", "--prompt", "--max-new-tokens", "--json", "--max-frames", "--start", "--end", "--fps",
             "--confidence", "--merge", "--help"}  # fmt: skip
ANSWERING = ("read", "locate", "extract", "parse", "chat", "ask", "act", "events")


def blocks(page: str) -> Iterator[str]:
    """The code of a page: fenced or indented by four."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    yield from re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    for found in re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE):
        if found.strip():
            yield textwrap.dedent(found)


def options(verb: str) -> dict[str, Any]:
    return {name: option for option in COMMANDS[verb].params for name in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_pages(page: str) -> None:
    lines = [line for block in blocks(page) for line in block.splitlines() if re.search(r"(^|\| )qwenvl ", line)]
    for line in lines:
        words = shlex.split(line.split("qwenvl ", 1)[1].split(" > ")[0], comments=True)
        known = options(words[0])
        for word in words[1:]:
            if re.match(r"--?[a-z]", word):
                assert word in known, f"{page}.md: {line}"


@pytest.mark.parametrize("page", PAGES)
def test_python_of_the_pages_names_what_there_is(page: str) -> None:
    for block in blocks(page):
        if not re.search(r"^(from|import) ", block, re.MULTILINE):
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qwenvl"):
                for name in node.names:
                    assert hasattr(import_module(str(node.module)), name.name), f"{page}.md: {name.name}"


def test_options_that_several_verbs_have_say_the_same() -> None:
    said: dict[str, dict[str, list[str]]] = {}
    for verb in ANSWERING:
        for name, option in options(verb).items():
            if name.startswith("--") and name not in OWN_WORDS:
                said.setdefault(name, {}).setdefault(option.help, []).append(verb)
    assert {name: helps for name, helps in said.items() if len(helps) > 1} == {}


@pytest.mark.parametrize("name", ["--model", "--dtype", "--device", "--quantize", "--memory", "--json"])
def test_every_verb_that_answers_has_the_options_of_a_model(name: str) -> None:
    assert [verb for verb in ANSWERING if name not in options(verb)] == []
    if name != "--json":
        assert len({options(verb)[name].help for verb in ANSWERING}) == 1
