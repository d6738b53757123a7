"""Conversations: messages in fields, and the turns of transcripts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxalign.data.files import Problem

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {"human": "user", "gpt": "assistant"}


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


def messages(field: str, value: Any) -> tuple[Message, ...]:
    """Returns the messages in a field.

    Raises:
        Problem: If a message is malformed, or their order is not one that a conversation can have.
    """
    if not isinstance(value, list):
        raise not_a_string(field, value)
    if not value:
        raise Problem("empty conversation", f"field {field!r} is an empty list. Give at least one message")
    turns: list[Message] = []
    for number, given in enumerate(value, start=1):
        turn = _message(given)
        if isinstance(given, Mapping) and given.get("tool_calls"):
            text = f"message {number} of field {field!r} has 'tool_calls', which templates write differently. "
            raise Problem("tool calls", text + "Spell the call out in 'content'")
        if turn is None:
            text = f"message {number} of field {field!r} is malformed. Give an object with strings 'role' and 'content'"
            raise Problem("malformed message", text)
        if turn.role not in ROLES:
            text = f"message {number} of field {field!r} has the role {shown(turn.role)}. Give {', '.join(ROLES)}"
            raise Problem("unknown role", text)
        turns.append(turn)
    check_order(field, turns)
    return tuple(turns)


def check_order(field: str, turns: Sequence[Message]) -> None:
    """Raises a :class:`Problem` if the order of the roles is wrong."""
    for number, turn in enumerate(turns, start=1):
        before = turns[number - 2].role if number > 1 else None
        if turn.role in ("system", "developer") and before not in (None, "system", "developer"):
            advice = "A system message must come first"
        elif turn.role == "tool" and number > 1 and before not in ("assistant", "tool"):
            advice = "A tool's message must follow the assistant's"
        elif turn.role in ("user", "assistant") and turn.role == before:
            advice = f"Join the two consecutive messages of the {turn.role}"
        else:
            continue
        raise Problem("roles out of order", f"message {number} of field {field!r} is out of order. {advice}")


def transcript_messages(transcript: str) -> list[Message]:
    r"""Returns the turns of an Anthropic transcript, stripped, without an empty last turn (that of a prompt).

    >>> transcript_messages("\n\nHuman: Why is the sky blue?\n\nAssistant:")
    [Message(role='user', content='Why is the sky blue?')]
    """
    pieces = re.split(r"(?:^|\n\n)(Human|Assistant):", transcript.lstrip())
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [Message(roles[role], text.strip()) for role, text in zip(pieces[1::2], pieces[2::2], strict=True)]
    return turns if turns and turns[-1].content else turns[:-1]


def shown(value: Any) -> str:
    """Returns a value for an error message, cut after 40 characters.

    >>> shown("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…"
    """
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def not_a_string(field: str, value: Any) -> Problem:
    """Returns the problem of a field that contains neither a string nor a list."""
    kind = type(value).__name__
    return Problem("not a string", f"field {field!r} is of type {kind}. Give a string (or chat messages)")


def _message(value: Any) -> Message | None:
    if not isinstance(value, Mapping):
        return None
    if "from" in value and "value" in value:
        role, content = value["from"], value["value"]
        role = SHAREGPT.get(role, role) if isinstance(role, str) else role
    else:
        role, content = value.get("role"), value.get("content")
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)  # the form that multimodal APIs use for plain text
    return Message(role, content) if isinstance(role, str) and isinstance(content, str) else None
