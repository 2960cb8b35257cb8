"""Room calls: tool calls in an answer, whole or piece by piece: text -> the text without them, and the calls.

In: what a model wrote, which was told its tools in the chat template. Out: ToolCall objects, or events as they come.
Does not know tools: whether a name exists and its arguments make sense, the caller says.

The written form is that of the chat template (Hermes style):
    <tool_call>
    {"name": "weather", "arguments": {"city": "Rome"}}
    </tool_call>
Also read: several calls in one tag or one behind the other, a tag that is not closed or not opened, fences, a list,
"parameters" or "args" for arguments, {"function": {...}} around it, arguments as a JSON text, and JSON damaged in a way
that leaves one meaning (answers/literals.py). What leaves more than one, such as a text or a number that the token
limit cut, is no call: it stays in the text, and nothing is guessed.

    events.py    what is told          body.py   where a call ends, what is sure before
    reading.py   JSON -> calls         stream.py   text -> text and calls, whole or in pieces

    parse_calls('Look:\\n<tool_call>\\n{"name": "zoom", "arguments": {"by": 2}}\\n</tool_call>')
    -> ("Look:", [ToolCall("zoom", {"by": 2}, ...)])
"""

from __future__ import annotations

from qwenvl.tasks.calls.events import (
    ArgumentsDelta,
    CallBegin,
    CallBroken,
    CallEnd,
    CallEvent,
    TextDelta,
    ToolCall,
)
from qwenvl.tasks.calls.stream import CallStream, parse_calls

__all__ = [
    "ArgumentsDelta",
    "CallBegin",
    "CallBroken",
    "CallEnd",
    "CallEvent",
    "CallStream",
    "TextDelta",
    "ToolCall",
    "parse_calls",
]
