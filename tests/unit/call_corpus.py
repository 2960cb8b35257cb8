"""Answers with tool calls as models write them, well formed and damaged, with what is in them."""

from __future__ import annotations

from typing import Any

Calls = list[tuple[str, dict[str, Any]]]

CLICK = '{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [658, 364]}}'
CLICKED: Calls = [("computer_use", {"action": "left_click", "coordinate": [658, 364]})]
ROME: Calls = [("weather", {"city": "Rome"})]


def tag(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


# name: (answer, text without calls, calls)
CORPUS: dict[str, tuple[str, str, Calls]] = {
    "plain": (tag(CLICK), "", CLICKED),
    "one line": (f"<tool_call>{CLICK}</tool_call>", "", CLICKED),
    "thought first": (f"I click on Send.\n{tag(CLICK)}", "I click on Send.", CLICKED),
    "text behind": (f"{tag(CLICK)}\nThat sends it.", "That sends it.", CLICKED),
    "text on both sides": (f"Now.\n\n{tag(CLICK)}\n\nDone.", "Now.\nDone.", CLICKED),
    "two calls": (f'{tag(CLICK)}\n{tag(CLICK.replace("658", "1"))}', "", [
        *CLICKED, ("computer_use", {"action": "left_click", "coordinate": [1, 364]})]),
    "two objects in one tag": (tag('{"name": "a", "arguments": {"x": 1}}\n{"name": "b", "arguments": {}}'), "", [
        ("a", {"x": 1}), ("b", {})]),
    "a list in one tag": (tag('[{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {"y": []}}]'), "", [
        ("a", {"x": 1}), ("b", {"y": []})]),
    "never closed": (f"<tool_call>\n{CLICK}", "", CLICKED),
    "never closed, then prose": (f"<tool_call>\n{CLICK}\nI am done.", "I am done.", CLICKED),
    "never closed, last brace missing": (f"<tool_call>\n{CLICK[:-1]}", "", CLICKED),
    "first never closed": (f"<tool_call>\n{CLICK}\n{tag(CLICK)}", "", CLICKED * 2),
    "never opened": (f"{CLICK}\n</tool_call>", "", CLICKED),
    "never opened, thought first": (f"I click.\n{CLICK}\n</tool_call>", "I click.", CLICKED),
    "opened by another word": (f"addCriterion\n{CLICK}\n</tool_call>", "addCriterion", CLICKED),
    "opened twice": (f"<tool_call>\n<tool_call>\n{CLICK}\n</tool_call>", "<tool_call>", CLICKED),
    "closed twice": (f"{tag(CLICK)}\n</tool_call>", "</tool_call>", CLICKED),
    "brace missing": (tag(CLICK[:-1]), "", CLICKED),
    "both braces missing": (tag(CLICK[:-2]), "", CLICKED),
    "bracket and braces missing": (tag(CLICK[:-3]), "", CLICKED),
    "brace too many": (tag(CLICK + "}"), "", CLICKED),
    "double braces": (tag("{" + CLICK + "}"), "", CLICKED),
    "brackets crossed": (tag(CLICK.replace("364]", "364}")), "", CLICKED),
    "a tuple": (tag(CLICK.replace("[658, 364]", "(658, 364)")), "", CLICKED),
    "fenced within": (tag(f"```json\n{CLICK}\n```"), "", CLICKED),
    "fenced within, no word": (tag(f"```\n{CLICK}\n```"), "", CLICKED),
    "fence never closed": (tag(f"```json\n{CLICK}"), "", CLICKED),
    "fenced, no tag": (f"I click.\n```json\n{CLICK}\n```", "I click.", CLICKED),
    "bare, no tag": (CLICK, "", CLICKED),
    "bare behind a thought": (f"I click on it.\n{CLICK}", "I click on it.", CLICKED),
    "arguments as JSON text": (tag('{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}'), "", ROME),
    "arguments as damaged JSON text": (tag('{"name": "weather", "arguments": "{\'city\': \'Rome\',}"}'), "", ROME),
    "arguments as empty text": (tag('{"name": "weather", "arguments": ""}'), "", [("weather", {})]),
    "arguments null": (tag('{"name": "weather", "arguments": null}'), "", [("weather", {})]),
    "no arguments": (tag('{"name": "weather"}'), "", [("weather", {})]),
    "arguments first": (tag('{"arguments": {"city": "Rome"}, "name": "weather"}'), "", ROME),
    "parameters": (tag('{"name": "weather", "parameters": {"city": "Rome"}}'), "", ROME),
    "function and parameters": (tag('{"function": "weather", "parameters": {"city": "Rome"}}'), "", ROME),
    "function and args": (tag('{"function": "weather", "args": {"city": "Rome"}}'), "", ROME),
    "function around": (tag('{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}'), "",
        ROME),
    "function around, arguments beside": (tag('{"function": {"name": "weather"}, "arguments": {"city": "Rome"}}'), "",
        ROME),
    "id beside": (tag('{"id": "call_1", "type": "function", "name": "weather", "arguments": {"city": "Rome"}}'), "",
        ROME),
    "flat": (tag('{"name": "weather", "city": "Rome"}'), "", ROME),
    "single quotes": (tag("{'name': 'weather', 'arguments': {'city': 'Rome'}}"), "", ROME),
    "Python's words": (tag("{'name': 'f', 'arguments': {'a': True, 'b': None, 'c': False}}"), "", [
        ("f", {"a": True, "b": None, "c": False})]),
    "trailing commas": (tag('{"name": "f", "arguments": {"a": [1, 2,], "b": 3,},}'), "", [
        ("f", {"a": [1, 2], "b": 3})]),
    "a comma missing": (tag('{"name": "f" "arguments": {"a": 1 "b": 2}}'), "", [("f", {"a": 1, "b": 2})]),
    "names without quotes": (tag('{name: "weather", arguments: {city: "Rome"}}'), "", ROME),
    "smart quotes": (tag("{“name”: “weather”, “arguments”: {“city”: “Rome”}}"), "", ROME),
    "a comment": (tag('{"name": "weather", // look\n "arguments": {"city": "Rome"}}'), "", ROME),
    "a raw line end in a text": (tag('{"name": "f", "arguments": {"text": "a\nb"}}'), "", [("f", {"text": "a\nb"})]),
    "quotes within a text": (tag('{"name": "f", "arguments": {"text": "say "hi" now", "n": 1}}'), "", [
        ("f", {"text": 'say "hi" now', "n": 1})]),
    "escapes": (tag(r'{"name": "f", "arguments": {"text": "\"\\n\" \u00e9 \t \/"}}'), "", [
        ("f", {"text": '"\\n" é \t /'})]),
    "other letters": (tag('{"name": "f", "arguments": {"text": "北京 naïve 🙂"}}'), "", [
        ("f", {"text": "北京 naïve 🙂"})]),
    "a closing tag in a text": (tag('{"name": "f", "arguments": {"text": "a</tool_call>b"}}'), "", [
        ("f", {"text": "a</tool_call>b"})]),
    "an opening tag in a text": (tag('{"name": "f", "arguments": {"text": "a <tool_call>{} b"}}'), "", [
        ("f", {"text": "a <tool_call>{} b"})]),
    "brackets in a text": (tag('{"name": "f", "arguments": {"text": "}]{[,"}}'), "", [("f", {"text": "}]{[,"})]),
    "nested": (tag('{"name": "f", "arguments": {"a": {"b": [{"c": {}}], "d": [[1]]}, "e": {}}}'), "", [
        ("f", {"a": {"b": [{"c": {}}], "d": [[1]]}, "e": {}})]),
    "a key twice": (tag('{"name": "f", "arguments": {"a": 1, "a": 2}}'), "", [("f", {"a": 2})]),
    "numbers": (tag('{"name": "f", "arguments": {"a": -1.5e3, "b": 0}}'), "", [("f", {"a": -1500.0, "b": 0})]),
    "not a number": (tag('{"name": "f", "arguments": {"a": NaN, "b": 1e999}}'), "", [("f", {"a": None, "b": None})]),
    "arguments twice": (tag('{"name": "f", "arguments": {"a": 1}, "arguments": {"b": 2}}'), "", [("f", {"a": 1})]),
    "an open text, then a good call on the same line": (
        '<tool_call>{"name": "f", "arguments": {"a": "x}}</tool_call>'
        '<tool_call>{"name": "a", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "x}}</tool_call>', [("a", {})]),
    "wide space": (tag('\n\n  {  "name" :\t"weather" ,\n"arguments"\n: { "city" : "Rome" }  }  \n\n'), "", ROME),
    "the second is cut off": (f'{tag(CLICK)}\n<tool_call>\n{{"name": "computer_use", "arguments": {{"action": "ty',
        '<tool_call>\n{"name": "computer_use", "arguments": {"action": "ty', CLICKED),
    # What leaves more than one meaning is no call, and nothing of it is lost.
    "cut in a number": ('<tool_call>\n{"name": "f", "arguments": {"a": 12',
        '<tool_call>\n{"name": "f", "arguments": {"a": 12', []),
    "cut in a text": ('<tool_call>\n{"name": "f", "arguments": {"a": "12',
        '<tool_call>\n{"name": "f", "arguments": {"a": "12', []),
    "cut behind a member": ('<tool_call>\n{"name": "f", "arguments": {"a": "12"',
        '<tool_call>\n{"name": "f", "arguments": {"a": "12"', []),
    "cut behind the name": ('<tool_call>\n{"name": "f"', '<tool_call>\n{"name": "f"', []),
    "cut in the tag": ("I click.\n<tool_ca", "I click.\n<tool_ca", []),
    "a text that is never closed": (tag('{"name": "f", "arguments": {"a": "x}}'),
        tag('{"name": "f", "arguments": {"a": "x}}'), []),
    "no name": (tag('{"arguments": {"a": 1}}'), tag('{"arguments": {"a": 1}}'), []),
    "arguments that are no object": (tag('{"name": "f", "arguments": [1]}'),
        tag('{"name": "f", "arguments": [1]}'), []),
    "empty tag": ("<tool_call>\n</tool_call>", "<tool_call>\n</tool_call>", []),
    "prose in the tag": (tag("click on Send"), tag("click on Send"), []),
    "the words for it": ("Write <tool_call> and </tool_call>.", "Write <tool_call> and </tool_call>.", []),
    "no call": ("There are 3 stars.", "There are 3 stars.", []),
    "JSON that is none": ('[{"bbox_2d": [1, 2, 3, 4], "label": "x"}]', '[{"bbox_2d": [1, 2, 3, 4], "label": "x"}]', []),
    "nothing": ("", "", []),
    "space at both ends stays": ("  a\n", "  a\n", []),
}  # fmt: skip
NAMES = ("computer_use", "weather", "f", "a", "b")
