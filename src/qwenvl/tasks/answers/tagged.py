"""Places written between tags and in round brackets: XML points and boxes, the control tokens of Qwen2-VL.

In: text. Out: Written.

    <points x1="3" y1="4" x2="5" y2="6" alt="dot">dot</points>          pixels of the resized picture
    <point>[3, 4]</point>  <box>1 2 30 40</box>  <bbox x1="1" y1="2" x2="30" y2="40" label="dot"/>
    <|object_ref_start|>cat<|object_ref_end|><|box_start|>(10,20),(300,400)<|box_end|>      thousandths
    <|quad_start|>(1,2),(30,2),(30,40),(1,40)<|quad_end|>  <ref>cat</ref><box>(10,20),(300,400)</box>
    cat(10,20),(300,400)                                                the same, where decoding dropped the tokens
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import pairwise

from qwenvl.tasks.answers.written import Number, Written, numbers_within, to_float
from qwenvl.tasks.places import Frame

_TOKENS = re.compile(
    r"(?:<\|object_ref_start\|>|<ref>)(?P<label>[^<]*)"
    r"|<\|(?P<kind>box|quad|point)_start\|>(?P<body>[^<]*)(?P<end><\|(?:box|quad|point)_end\|>)?"
)
_TAGS = re.compile(
    r"<(?P<tag>points?|point_2d|box|bbox|bbox_2d|quad|polygon|rect|object)\b(?P<attributes>[^<>]*)(?P<close>>)?"
    r"(?:(?P<body>(?<=>)[^<]*)(?P<end></\w+>)?)?",
    re.IGNORECASE,
)
_ATTRIBUTE = re.compile(r"(?<![\w:-])([\w:-]++)\s*+=\s*+(?:\\?\"([^\"\\]*)\\?\"|\\?'([^'\\]*)\\?'|([^\s\"'<>\\/]+))")
_PAIR = re.compile(r"\(\s*+([-+]?\d+(?:\.\d+)?)\s*+[,，]\s*+([-+]?\d+(?:\.\d+)?)\s*+\)")  # noqa: RUF001
_NAMED = re.compile(r"(x|y)(\d*)")
_BEFORE = re.compile(r"[^\n()<>{}\[\]]*\Z")
_LONGEST_LABEL = 80  # of a label that no tag marks


def tagged_places(text: str) -> list[Written]:
    """Every place between tags, in the order of the text."""
    found = [*_tokens(text), *_elements(text)] if "<" in text else []
    return sorted(found, key=lambda written: written.at)


def _tokens(text: str) -> Iterator[Written]:
    label, begin = "", 0
    for match in _TOKENS.finditer(text):
        if match["label"] is not None:
            label, begin = match["label"].strip(), match.start()
            continue
        whole = match["end"] is not None
        numbers = numbers_within(text, *match.span("body")) or []
        fits = len(numbers) in ((2, 4, 6, 8) if whole else (8,) if match["kind"] == "quad" else (4,))
        if fits:
            yield Written(label, tuple(numbers), "thousandths", begin or match.start(), match.end())


def _elements(text: str) -> Iterator[Written]:
    label = ""
    for match in _TAGS.finditer(text):
        tag = match["tag"].lower()
        attributes = _attributes(text, match)
        named = {name: value for name, (value, *_) in attributes.items()}
        closed = match["end"] is not None
        said = html.unescape(match["body"] or "").strip()
        numbers = numbers_within(text, *match.span("body")) if said and (closed or match.end() < len(text)) else None
        alternative = next((named[key] for key in ("label", "alt", "ref", "name", "text") if key in named), "")
        if tag == "object":
            label = html.unescape(alternative).strip()
        own = html.unescape(alternative).strip() or label
        if numbers:
            frame: Frame = "thousandths" if tag in ("box", "quad") and "(" in said else "resized"
            before = _ref_before(text, match.start()) if tag in ("box", "quad") else ""
            yield from _shaped(tag, own or before, numbers, frame, match)
            continue
        phrase = said if closed else ""
        numbers = _coordinates(attributes)
        if tag in ("box", "bbox", "bbox_2d", "rect", "object") and len(numbers) != 4:
            continue
        yield from _shaped(tag, phrase or own, numbers, "resized", match)


def _shaped(tag: str, label: str, numbers: list[Number], frame: Frame, match: re.Match[str]) -> Iterator[Written]:
    step = 2 if tag.startswith("point") else len(numbers)
    if len(numbers) % 2 or not numbers:
        return
    end = match.end() if match["end"] else max(match.end("attributes"), numbers[-1].end)
    for index in range(0, len(numbers), step):
        yield Written(label, tuple(numbers[index : index + step]), frame, match.start(), end)


def _ref_before(text: str, at: int) -> str:
    """The label of <ref>label</ref> right before a place."""
    start = text.rfind("<ref>", max(0, at - 400), at)
    if start < 0:
        return ""
    return text[start + 5 : at].split("</ref>")[0].split("<")[0].strip()


def _attributes(text: str, match: re.Match[str]) -> dict[str, tuple[str, int, int]]:
    """Name -> value with its first and last character. A value that the end of the text may have cut is left out."""
    found = {}
    for one in _ATTRIBUTE.finditer(text, *match.span("attributes")):
        group = next(g for g in (2, 3, 4) if one[g] is not None)
        if group != 4 or one.end() < len(text):
            found[one[1].lower()] = (one[group], *one.span(group))
    return found


def _coordinates(attributes: dict[str, tuple[str, int, int]]) -> list[Number]:
    """x1, y1, x2, y2, ... (or x, y) in the order of their numbers; x without its y is left out."""
    named: dict[str, dict[str, Number]] = {}
    for name, (value, start, end) in attributes.items():
        parts = _NAMED.fullmatch(name)
        try:
            number = Number(to_float(value), start, end)
        except ValueError:
            continue
        if parts is not None:
            named.setdefault(parts[2], {})[parts[1]] = number
    return [pair[axis] for pair in named.values() if len(pair) == 2 for axis in ("x", "y")]


def bracketed_places(text: str) -> list[Written]:
    """(x1,y1),(x2,y2) in thousandths, after its label; four pairs with commas between them are a quad."""
    runs: list[list[re.Match[str]]] = []
    for pair in _PAIR.finditer(text):
        if runs and re.fullmatch(r"\s*[,，]?\s*", text[runs[-1][-1].end() : pair.start()][:40]):  # noqa: RUF001
            runs[-1].append(pair)
        else:
            runs.append([pair])
    found: list[Written] = []
    before = 0
    for run in runs:
        label = _label_before(text, before, run[0].start())
        for part in _parts(text, run):
            numbers = [_number(pair, group) for pair in part for group in (1, 2)]
            found.append(Written(label, tuple(numbers), "thousandths", part[0].start(), part[-1].end()))
        before = run[-1].end()
    return found


def _parts(text: str, run: list[re.Match[str]]) -> list[list[re.Match[str]]]:
    """Pairs that stand together -> the places that they are; a pair that is alone is none."""
    joined = all("," in text[a.end() : b.start()] for a, b in pairwise(run))
    if len(run) == 4 and joined:
        return [run]
    return [run[i : i + 2] for i in range(0, len(run) - 1, 2)]


def _number(pair: re.Match[str], group: int) -> Number:
    return Number(to_float(pair[group]), *pair.span(group))


def _label_before(text: str, start: int, end: int) -> str:
    """The words of the line in front of a place."""
    found = _BEFORE.search(text[max(start, end - _LONGEST_LABEL) : end])
    return found[0].strip(" ,;:\t-*") if found is not None else ""
