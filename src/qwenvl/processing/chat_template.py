"""The chat template: messages -> prompt text, in a jinja2 sandbox.

A checkpoint brings its own text. Where it has none, or has none that knows both pictures and tools, the built-in
text is used, which renders both the way the official checkpoints were trained.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Self

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwenvl.processing.files import read_json

BUILT_IN = """\
{%- set seen = namespace(image=0, video=0) -%}
{%- macro body(content) -%}
  {%- if content is string -%}{{ content }}{%- else -%}
    {%- for item in content -%}
      {%- if item.type == 'image' or 'image' in item or 'image_url' in item -%}
        {%- set seen.image = seen.image + 1 -%}
        {%- if add_vision_id -%}Picture {{ seen.image }}: {% endif -%}
        <|vision_start|><|image_pad|><|vision_end|>
      {%- elif item.type == 'video' or 'video' in item -%}
        {%- set seen.video = seen.video + 1 -%}
        {%- if add_vision_id -%}Video {{ seen.video }}: {% endif -%}
        <|vision_start|><|video_pad|><|vision_end|>
      {%- elif 'text' in item -%}{{ item.text }}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro toolbox() -%}
{{ '\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' }}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}
{%- for tool in tools -%}{{ '\\n' ~ (tool | tojson) }}{%- endfor -%}
{{ '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' }}
{{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n' }}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>' }}
{%- endmacro -%}
{%- if messages and messages[0].role != 'system' -%}
  {{- '<|im_start|>system\\nYou are a helpful assistant.' -}}
  {%- if tools -%}{{ toolbox() }}{%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'tool' -%}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{ '<|im_start|>user' }}{%- endif -%}
    {{ '\\n<tool_response>\\n' }}{{ body(message.content) }}{{ '\\n</tool_response>' }}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{ '<|im_end|>\\n' }}{%- endif -%}
  {%- else -%}
    {{ '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- if message.content -%}{{ body(message.content) }}{%- endif -%}
    {%- if loop.first and message.role == 'system' and tools -%}{{ toolbox() }}{%- endif -%}
    {%- for call in message.tool_calls or [] -%}
      {%- set function = call.function or call -%}
      {%- if not loop.first or message.content -%}{{ '\\n' }}{%- endif -%}
      {{ '<tool_call>\\n{"name": "' ~ function.name ~ '", "arguments": ' }}
      {%- set given = function.arguments -%}
      {{- given if given is string else (given | tojson) -}}
      {{ '}\\n</tool_call>' }}
    {%- endfor -%}
    {{ '<|im_end|>\\n' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


ENDS = range(0x100000, 0x10FFFE)  # private-use characters that guard.py does not use


def _fail(message: str) -> NoReturn:
    raise TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _fail
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


class ChatTemplate(str):
    """A template's text, rendered on demand. Built from None: the built-in one."""

    def __new__(cls, text: str | None = None) -> Self:
        return super().__new__(cls, text or BUILT_IN)

    @property
    def text(self) -> str:
        """The text as a plain string."""
        return str.__str__(self)

    @classmethod
    def from_folder(cls, folder: Path, tokenizer_template: str | None = None) -> Self:
        """The template of a checkpoint: chat_template.json, chat_template.jinja, or tokenizer_config.json's when it
        knows pictures (the text model's does not); else the built-in one."""
        data = read_json(folder / "chat_template.json")
        if data is not None:
            if not isinstance(data.get("chat_template"), str):
                raise ValueError(f'{folder / "chat_template.json"} has no text under "chat_template"')
            return cls(data["chat_template"])
        if (folder / "chat_template.jinja").exists():
            return cls((folder / "chat_template.jinja").read_text("utf-8"))
        return cls(tokenizer_template if tokenizer_template and "vision_start" in tokenizer_template else None)

    @cached_property
    def _compiled(self) -> Any:
        try:
            return _environment().from_string(self.text)
        except TemplateError as error:
            raise ValueError(f"the chat template is not valid: {error}") from None

    def render(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = False,
        add_vision_id: bool = False,
        tools: list[dict[str, Any]] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt text of one conversation.

        messages: {"role", "content"} with content a string or a list of items (type text, image or video).
        add_vision_id: "Picture N: " and "Video N: " before each. tools: function schemas. Where there are tools, calls
        or results, a template that does not know them is replaced by the built-in one. continue_final_message: the
        prompt ends with the last message's text, for the model to go on with. Raises ValueError when there is nothing
        to render, or the template does not know add_vision_id.
        """
        if not messages:
            raise ValueError("the conversation is empty: expected at least one message")
        if add_vision_id and "add_vision_id" not in self:
            raise ValueError("add_vision_id=True has no effect: the checkpoint's chat template does not know it")
        if continue_final_message:
            if add_generation_prompt:
                raise ValueError("continue_final_message and add_generation_prompt exclude each other: give one")
            marked, mark = _with_mark(messages)
            text, found, _ = self.render(marked, False, add_vision_id, tools).rpartition(mark)
            if not found:
                raise ValueError("continue_final_message: the chat template does not write the last message's text")
            return text
        calls = any(message.get("role") == "tool" or message.get("tool_calls") for message in messages)
        if (tools and "tools" not in self) or (calls and "tool_call" not in self):
            return ChatTemplate().render(messages, add_generation_prompt, add_vision_id, tools)
        try:
            return str(
                self._compiled.render(
                    messages=messages,
                    add_generation_prompt=add_generation_prompt,
                    add_vision_id=add_vision_id,
                    tools=tools,
                )
            )
        except (TemplateError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"the chat template cannot render this conversation: {error}") from None


def _with_mark(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """(messages whose last text ends with a mark that nothing else holds, the mark)."""
    last = messages[-1]
    content = last.get("content")
    mark = next(c for c in map(chr, ENDS) if c not in json.dumps(messages, ensure_ascii=False, default=str))
    if isinstance(content, str) and content:
        marked: Any = content + mark
    elif isinstance(content, list) and content and isinstance(content[-1].get("text"), str):
        marked = [*content[:-1], {**content[-1], "text": content[-1]["text"] + mark}]
    else:
        raise ValueError("continue_final_message: the last message does not end with text that could be continued")
    return [*messages[:-1], {**last, "content": marked}], mark
