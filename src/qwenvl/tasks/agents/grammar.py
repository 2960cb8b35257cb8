"""What a constrained answer of an agent is: thoughts, then one action that can be read, with points on the screenshot.

In: the name of a tool. Out: a Grammar. Made of the table that read_action reads by (actions.py): an action has the
fields it needs, and may have those it can use; whatever this grammar lets be written, read_action takes.
"""

from __future__ import annotations

from typing import Any

from qwenvl.tasks.agents.actions import ACTIONS, FIELDS
from qwenvl.tasks.agents.schemas import Tool
from qwenvl.tasks.extraction.grammars import tool_call_grammar
from qwenvl.types import Grammar

CALL_TOKENS = 256  # of an answer, that thoughts leave to the call


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The JSON Schema of a call's arguments: one branch an action."""
    branches = []
    for action, (required, optional) in ACTIONS[tool].items():
        fields = {name: dict(field.schema) for name, field in FIELDS.items() if name in (*required, *optional)}
        branches.append(
            {
                "type": "object",
                "properties": {"action": {"const": action}, **fields},
                "required": ["action", *required],
                "additionalProperties": False,
            }
        )
    return {"anyOf": branches}


def action_grammar(tool: Tool, thought: bool | int = True) -> Grammar:
    """One call of this tool, on the last picture of the prompt. thought: whether text may come before it; a number: of
    at most so many tokens."""
    return tool_call_grammar([{"name": tool, "parameters": arguments_schema(tool)}], thought=thought)
