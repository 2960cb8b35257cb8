"""Chat template: prompts of text, pictures and tools, and where the text comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompts import OFFICIAL, PICTURE, SYSTEM, text, user

from qwenvl.processing import (
    ChatTemplate,
)


@pytest.mark.feature(50, 51, 52, 53, 60)
def test_prompt_of_text_and_pictures() -> None:
    render = ChatTemplate().render
    assert render([{"role": "user", "content": "Hi"}]) == f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n"
    talk = [
        {"role": "system", "content": [text("Be brief.")]},
        user(text("A "), {"type": "image"}, text(" B")),
        {"role": "assistant", "content": "C"},
        user({"type": "image"}, {"type": "image"}),
    ]
    assert render(talk, add_generation_prompt=True) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nA {PICTURE} B<|im_end|>\n"
        f"<|im_start|>assistant\nC<|im_end|>\n<|im_start|>user\n{PICTURE}{PICTURE}<|im_end|>\n<|im_start|>assistant\n"
    )
    numbered = render(talk, add_vision_id=True)
    assert f"A Picture 1: {PICTURE} B" in numbered
    assert f"Picture 2: {PICTURE}Picture 3: {PICTURE}" in numbered


@pytest.mark.feature(52)
def test_the_builtin_text_is_the_published_one_where_there_are_no_tools() -> None:
    talks = [
        [user({"type": "image"}, text("{{ 1 }} what\n\nis it? "))],
        [{"role": "system", "content": ""}, user(text(" x "))],
    ]
    for talk in talks:
        for prompt in (False, True):
            assert ChatTemplate().render(talk, prompt) == ChatTemplate(OFFICIAL).render(talk, prompt)


TOOL = {"type": "function", "function": {"name": "weather", "description": "Wetter für 'jetzt'", "parameters": {}}}
TOOLBOX = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
    "function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "weather", "description": "Wetter für \'jetzt\'", "parameters": {}}}\n'
    "</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call><|im_end|>\n"
)


@pytest.mark.parametrize("template", [None, OFFICIAL])
def test_tools_calls_and_results(template: str | None) -> None:
    talk = [
        user({"type": "image"}, text("Weather?")),
        {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"at": "Köln"}}},
            {"type": "function", "function": {"name": "weather", "arguments": '{"at": "Rom"}'}}]},
        {"role": "tool", "content": "5"},
        {"role": "tool", "content": [text("9")]},
    ]  # fmt: skip
    rest = (
        f"<|im_start|>user\n{PICTURE}Weather?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
        '{"name": "weather", "arguments": {"at": "Köln"}}\n</tool_call>\n<tool_call>\n'
        '{"name": "weather", "arguments": {"at": "Rom"}}\n</tool_call><|im_end|>\n<|im_start|>user\n'
        "<tool_response>\n5\n</tool_response>\n<tool_response>\n9\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    rendered = ChatTemplate(template).render(talk, add_generation_prompt=True, tools=[TOOL])
    assert rendered == "<|im_start|>system\nYou are a helpful assistant." + TOOLBOX + rest
    assert ChatTemplate(template).render(talk, add_generation_prompt=True) == SYSTEM + rest
    talk.insert(0, {"role": "system", "content": "Be brief."})
    assert (
        ChatTemplate(template)
        .render(talk, True, tools=[TOOL])
        .startswith("<|im_start|>system\nBe brief." + TOOLBOX + "<|im_start|>user")
    )
    talk[2]["content"] = "Let me see."
    assert "assistant\nLet me see.\n<tool_call>" in ChatTemplate(template).render(talk, tools=[TOOL])


def test_where_the_template_comes_from(tmp_path: Path) -> None:
    builtin = ChatTemplate().text
    assert ChatTemplate.from_folder(tmp_path).text == builtin
    assert ChatTemplate.from_folder(tmp_path, "a text model's, with tools").text == builtin
    assert ChatTemplate.from_folder(tmp_path, OFFICIAL).text == OFFICIAL
    (tmp_path / "chat_template.jinja").write_text("b")
    assert ChatTemplate.from_folder(tmp_path, OFFICIAL).text == "b"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "c"}')
    assert ChatTemplate.from_folder(tmp_path, OFFICIAL).text == "c"
    (tmp_path / "chat_template.json").write_text("[")
    with pytest.raises(ValueError, match=r"chat_template\.json"):
        ChatTemplate.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "not valid"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 1 + 'a' }}", "cannot render"),
    ],
)
def test_a_bad_template_is_a_clear_error(template: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ChatTemplate(template).render([{"role": "user", "content": "x"}])


def test_a_template_knows_the_day() -> None:
    assert len(ChatTemplate("{{ strftime_now('%Y-%m-%d') }}").render([{"role": "user", "content": ""}])) == 10


def test_numbers_before_pictures_need_a_template_that_writes_them() -> None:
    with pytest.raises(ValueError, match="add_vision_id"):
        ChatTemplate(OFFICIAL).render([user({"type": "image"})], add_vision_id=True)
