"""The code blocks of the documents that qwenvl follows, and how they are made to run offline.

The documents are no part of this repository: they are read from `../shared/documents` when that folder is there.
Some of them are pages with fenced blocks, some are the text of a rendered page, where the fences are gone and some
blocks stand in one line; both are read here.

What is changed in a block before it runs is all in this file: names of imports, names of models, where pictures and
videos lie, the device, and the mistakes of the documents themselves (`MISTAKES`).
"""

from __future__ import annotations

import ast
import builtins
import codeop
import io
import json
import linecache
import re
import symtable
import tokenize
from base64 import b64encode
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DOCUMENTS = Path(__file__).parents[3] / "shared" / "documents"

FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OPENING = re.compile(r"(?:^|\.)(\s*)(?=import torch\b|from PIL|>>> |conversation = |min_pixels = )")
MEDIA = re.compile(r'"(?:file://)?/path/to/[^"]*"|"https?://[^"]*"|"data:image;base64,[^"]*"')

# What a document got wrong, and what it means: (document, as it stands, as it should be).
MISTAKES = [
    ("000", "Gemma3ForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),  # imports another model's class
    ("000", "vision_infos=[vision_infos]", 'return_tensors="pt"'),  # no such argument; lists are not model inputs
    ("000", "model.generate(inputs.input_ids, max_length=30)", "model.generate(**inputs, max_new_tokens=30)"),
    ("000", "tokenizer.batch_decode", "processor.batch_decode"),  # no name `tokenizer` in the example
    ("002", "vision_infos=[vision_infos]", 'return_tensors="pt"'),
    ("002", "model.generate(inputs.input_ids, max_length=30)", "model.generate(**inputs, max_new_tokens=30)"),
    ("002", "tokenizer.batch_decode", "processor.batch_decode"),
    ("001", "    fps=fps,\n", ""),  # no name `fps`, and **video_kwargs holds it
    ("003", "ipnuts", "inputs"),
    ("003", "/path/to/video.jpg", "/path/to/video.mp4"),
]

# What changes because it runs offline, on one core, after the import line was changed.
SUBSTITUTIONS = [
    ("from transformers import", "from qwenvl import"),
    ("from qwen_vl_utils import", "from qwenvl import"),
    ("import requests\n", ""),
    ("requests.get(url, stream=True).raw", 'open(url, "rb")'),
    ("device=0", 'device="cpu"'),
    ('"cuda"', '"cpu"'),
]


@dataclass(frozen=True)
class Block:
    """A code block: of which document (its number), from which line on, in which language ("" if none is named)."""

    document: str
    line: int
    language: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.document}:{self.line}"

    def free_names(self) -> set[str]:
        """Names that the block uses and does not make."""
        table = symtable.symtable(runnable_text(self), self.name, "exec")
        tables = [table, *_inner(table)]
        symbols = [s for t in tables for s in t.get_symbols() if s.is_referenced() and (t is table or s.is_global())]
        used = {s.get_name() for s in symbols}
        return used - self.made_names() - set(dir(builtins))

    def made_names(self) -> set[str]:
        """Names that the block leaves behind."""
        symbols = symtable.symtable(runnable_text(self), self.name, "exec").get_symbols()
        return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}


def _inner(table: symtable.SymbolTable) -> list[symtable.SymbolTable]:
    return [t for child in table.get_children() for t in (child, *_inner(child))]


def read_blocks() -> list[Block]:
    """Every code block of every document, in order; [] where the documents are not."""
    blocks = []
    for path in sorted(DOCUMENTS.glob("*.txt")):
        text = path.read_text("utf-8")
        blocks += _fenced(path.name[:3], text) if "```" in text else _rendered(path.name[:3], text)
    return blocks


def _fenced(document: str, text: str) -> list[Block]:
    return [Block(document, text[: m.start()].count("\n") + 2, m[1], m[2]) for m in FENCED.finditer(text)]


def _rendered(document: str, text: str) -> list[Block]:
    """Blocks of a page without fences: from a line that opens one as far as Python can follow."""
    lines, blocks, number = text.splitlines(), [], 0
    while number < len(lines):
        opening = OPENING.search(lines[number])
        code, length = _follow(lines[number:], opening) if opening else ("", 1)
        if code:
            blocks.append(Block(document, number + 1, "", code))
        number += max(1, length)
    return blocks


def _follow(lines: list[str], opening: re.Match[str]) -> tuple[str, int]:
    """The longest program that the lines begin with, and how many lines it takes."""
    indent, taken = opening[1], []
    best, length = "", 0
    for count, line in enumerate([lines[0][opening.start(1) :], *lines[1:]], 1):
        if line.strip() and not line.startswith(indent):
            break
        taken.append(unfold(line.removeprefix(indent).removeprefix(">>> ")))
        try:
            whole = codeop.compile_command("\n".join(taken) + "\n", symbol="exec") is not None
        except SyntaxError:
            break
        if whole:
            best, length = "\n".join(taken), count
    body = ast.parse(best).body
    while body and isinstance(body[-1], ast.Expr) and isinstance(body[-1].value, ast.Name | ast.Constant):
        body.pop()  # a heading of one word, or what the example prints
    end = body[-1].end_lineno if body else 0
    tail = best.splitlines()[end:]
    comments = next((i for i, line in enumerate(tail) if line and not line.startswith("#")), len(tail))
    return "\n".join(best.splitlines()[: end + comments]) + "\n", length


def unfold(line: str) -> str:
    """A program that lost its line ends, with one put back before each statement and around each comment."""
    out = []
    for piece in re.split(r"\s+(?=# )", line):
        comment, code = "", piece
        if piece.startswith("#"):
            end = re.search(r"\s(?=\w+ = )", piece)
            comment, code = (piece, "") if end is None else (piece[: end.start()], piece[end.end() :])
        out += [part for part in (comment, _split_statements(code)) if part]
    return "\n".join(out)


def _split_statements(code: str) -> str:
    """A line end wherever two operands stand side by side outside brackets."""
    depth, cuts, first, before = 0, [], "", None
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type not in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP):
                continue
            depth += (token.string in "([{") - (token.string in ")]}")
            starts = token.type == tokenize.NAME and depth == 0 and before is not None and before.end != token.start
            if starts and _is_operand(before) and not (first == "from" and token.string == "import"):
                cuts.append(token.start[1])
                first = token.string
            first, before = first or token.string, token
    except (tokenize.TokenError, IndentationError):
        pass  # the first line of a longer program: its brackets close further down
    edges = [0, *cuts, len(code)]
    return "\n".join(code[a:b].rstrip() for a, b in pairwise(edges)) if cuts else code


def _is_operand(token: tokenize.TokenInfo) -> bool:
    words = ("import", "from", "as", "in", "for", "if", "else", "not", "and", "or", "is", "lambda", "return", "print")
    if token.type == tokenize.OP:
        return token.string in ")]}"
    return token.string not in words


def runnable_text(block: Block) -> str:
    """The block with the mistakes corrected and the imports renamed; models, pictures and videos as they stand."""
    code = block.code
    for document, wrong, right in MISTAKES:
        code = code.replace(wrong, right) if document == block.document else code
    for old, new in SUBSTITUTIONS:
        code = code.replace(old, new)
    return code


def expected_prompts(block: Block) -> list[str]:
    """The prompts that the comments of a block promise."""
    return [json.loads(f'"{text}"') for text in re.findall(r"^# Excepted output: '(.*)'$", block.code, re.MULTILINE)]


def rehearsal(block: Block, blocks: list[Block], wanted: set[str]) -> list[Block]:
    """The other blocks of the document that make the names `wanted`, in the order to run them: the nearest one before
    it that makes a name, or, as rendered pages put notes before the program, the first one after it."""
    own = [b for b in blocks if b.document == block.document]
    here, order = own.index(block), []

    def add(reader: Block, names: set[str]) -> None:
        for name in sorted(names):
            makers = [b for b in (*reversed(own[: own.index(reader)]), *own[here + 1 :]) if name in b.made_names()]
            if makers and makers[0] not in order:
                add(makers[0], makers[0].free_names())
                order.append(makers[0])

    add(block, wanted)
    return order


@dataclass
class Played:
    """What a block left: its names, the value of its last line, and each value that `messages` had."""

    names: dict[str, Any]
    value: Any
    messages: list[Any]
    rest: list[ast.stmt]  # what comes after `messages` was last set

    def again(self, messages: Any) -> Played:
        """The rest of the program with other messages."""
        names = {**self.names, "messages": messages}
        return _execute(self.rest, names)


def _execute(body: list[ast.stmt], names: dict[str, Any], title: str = "a block") -> Played:
    played = Played(names, None, [], body)
    for number, statement in enumerate(body):
        if isinstance(statement, ast.Expr):
            played.value = eval(compile(ast.Expression(statement.value), title, "eval"), names)
            continue
        exec(compile(ast.Module([statement], []), title, "exec"), names)
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "messages":
            played.messages.append(names["messages"])
            played.rest = body[number + 1 :]
    return played


class Stage:
    """Where blocks run: a folder with the pictures and videos that they name, and the models that stand in.

    picture: a file for every picture. folder: an empty one. qwen2_vl: a Qwen2-VL checkpoint, made when first asked for.
    """

    def __init__(self, picture: Path, folder: Path, qwen2_vl: Any) -> None:
        self.folder = folder
        self._qwen2_vl = qwen2_vl
        self._picture = picture

    def code(self, block: Block) -> str:
        """The program to run."""
        code = MEDIA.sub(lambda found: json.dumps(self._medium(found[0][1:-1])), runnable_text(block))
        if '"Qwen/Qwen2-VL' in code:
            code = re.sub(r'"Qwen/Qwen2-VL[^"]*"', lambda _: json.dumps(str(self._qwen2_vl())), code)
        return re.sub(r'"Qwen/Qwen2\.5-VL[^"]*"', '"demo"', code)

    def play(self, block: Block, blocks: list[Block], wanted: set[str] | None = None) -> Played:
        """The block after those others of its document that it needs; wanted: names needed besides its own."""
        names: dict[str, Any] = {}
        for earlier in rehearsal(block, blocks, block.free_names() | (wanted or set())):
            self._run(earlier, names)
        return self._run(block, names)

    def _run(self, block: Block, names: dict[str, Any]) -> Played:
        """The program in `names`; a traceback shows its lines."""
        code, title = self.code(block), f"<{block.name}>"
        linecache.cache[title] = (len(code), None, code.splitlines(keepends=True), title)
        return _execute(ast.parse(code).body, names, title)

    def _medium(self, name: str) -> str:
        """A local file in place of an address, in the form that the document shows: file:// stays file://."""
        if name.startswith("data:"):
            jpeg = io.BytesIO()
            Image.open(self._picture).convert("RGB").save(jpeg, "JPEG", quality=95)
            return name.partition(",")[0] + "," + b64encode(jpeg.getvalue()).decode()
        path = self.folder / name.rpartition("/")[2]
        if not path.exists():
            if path.suffix == ".mp4":
                write_video(path)
            else:
                Image.open(self._picture).convert("RGB").save(path, quality=95)
        return path.as_uri() if name.startswith("file://") else str(path)


def write_video(path: Path, seconds: int = 8, fps: int = 4, size: tuple[int, int] = (168, 112)) -> None:
    """An MP4 in which a red square moves to the right over white."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(seconds * fps):
            frame = np.full((size[1], size[0], 3), 255, np.uint8)
            left = 4 * number
            frame[40:72, left : left + 32] = (220, 30, 30)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
