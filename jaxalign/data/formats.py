r"""Parses one row into a prompt and what follows it, or raises the problem that makes the row unusable.

Four formats are recognised (or named by the caller):

- ``text``: strings; a completion is what follows the prompt.
- ``transcript``: whole conversations as Anthropic writes them, ``"\n\nHuman: … \n\nAssistant: …"``, without a field
  ``prompt``. The prompt ends with the last ``"\n\nAssistant:"`` and must be the same for all
  completions of a row. It is never guessed as the longest common beginning, which can cut a word.
- ``chat``: lists of ``{"role", "content"}`` (or ShareGPT's ``{"from", "value"}``): ``prompt`` and replies of one
  message, or conversations without ``prompt`` that differ in their last message only.
- ``instruction``: ``instruction``, ``input`` (may be empty) and ``output``, as in Alpaca.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

from jaxalign.data.files import Problem
from jaxalign.data.messages import Message, check_order, messages, not_a_string, shown, transcript_messages

Format = Literal["text", "transcript", "chat", "instruction"]
FORMATS = ("text", "transcript", "chat", "instruction")
ASSISTANT = "\n\nAssistant:"
# Fields whose (first) answer may contain its prompt.
ANSWERS = ("chosen", "completion", "completions")
# Fields that contain a whole chat.
CONVERSATIONS = ("messages", "conversations")

PromptText: TypeAlias = str | tuple[Message, ...]


class Replies(NamedTuple):
    """A prompt, the texts that answer it (for ``chat`` the assistant's message), and the format of the row."""

    prompt: PromptText
    replies: tuple[str, ...]
    format: Format


def parse_replies(value: Mapping[str, Any], fields: Mapping[str, Any], expected: str | None, needs: str) -> Replies:
    """Parses a row's prompt and its completions, of which there may be one or many.

    Args:
        value: The row, of which the field ``prompt`` is read.
        fields: The completions, by their names in error messages.
        expected: The format that is wanted, if any.
        needs: What such rows need, for error messages.

    Raises:
        Problem: If the row cannot be used, as for every parser of this module.
    """
    format = _detect(value, fields, expected, needs)
    prompt = _instruction_prompt(value) if format == "instruction" else value.get("prompt")
    parsers = {"text": _text, "instruction": _text, "transcript": _transcript, "chat": _chat}
    prompt, texts = parsers[format](prompt, fields)
    for field, text in zip(fields, texts, strict=True):
        _check_answer(field, text)
    return Replies(prompt, tuple(texts), format)


def parse_demonstration(
    value: Mapping[str, Any], expected: str | None
) -> tuple[PromptText, str | tuple[Message, ...], Format]:
    """Parses a row's prompt and what follows: a text, or for ``chat`` all messages from the first one to learn.

    A text without a prompt, to learn as a whole, has the prompt ``""``.
    """
    needs = "demonstrations need messages, prompt and completion, instruction and output, or text"
    chat = first_field(value, CONVERSATIONS)
    answer = first_field(value, ("completion", "chosen"))  # of preference pairs, the better answer
    if chat is not None or isinstance(value.get("completion"), list):
        return _require_format((*_turns(value, chat or "completion"), "chat"), expected)
    if value.get("instruction") is not None and answer != "completion":
        return _require_format((*_instruction(value), "instruction"), expected)
    if answer is not None:
        prompt, (reply,), format = parse_replies(value, {answer: value[answer]}, expected, needs)
        return prompt, (Message("assistant", reply),) if format == "chat" else reply, format
    if value.get("text") is None:
        raise missing("text", value, needs)
    return _require_format(("", _whole_text(value["text"]), "text"), expected)


def prompt_only(value: Mapping[str, Any], expected: str | None) -> tuple[PromptText, Format]:
    """Parses the prompt of a row of any kind: its field ``prompt``, or what comes before its last answer."""
    needs = "name the field that contains the prompt"
    if value.get("prompt") is not None:
        return _require_format(_given_prompt(value["prompt"]), expected)
    if chat := first_field(value, CONVERSATIONS):
        turns = messages(chat, value[chat])
        opening = turns[:-1] if turns[-1].role == "assistant" else turns
        return _require_format((opening or _empty_prompt(), "chat"), expected)
    if value.get("instruction") is not None:
        return _require_format((_instruction_prompt(value), "instruction"), expected)
    if side := first_field(value, ANSWERS):
        answer = value[side]
        if side == "completions" and isinstance(answer, list) and answer:
            answer = answer[0]
        prompt, _, format = parse_replies(value, {side: answer}, expected, needs)
        return prompt, format
    raise missing("prompt", value, needs)


def first_field(value: Mapping[str, Any], fields: Iterable[str]) -> str | None:
    """Returns the first of the fields that has a value in the row, or None.

    >>> first_field({"messages": None, "completion": "Air."}, ("messages", "completion"))
    'completion'
    """
    return next((field for field in fields if value.get(field) is not None), None)


def number(field: str, value: Any) -> float:
    """Parses a finite number, also in a string as CSV files have it."""
    try:
        result = math.nan if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except (ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise Problem("not a number", f"field {field!r} is {shown(value)}. Give a finite number")
    return result


def flag(value: Any) -> bool | None:
    """Parses true or false, also as 1 or 0 (in Parquet columns with gaps 1.0 or 0.0), or a string as in CSV files.

    >>> flag("False"), flag(1.0), flag("perhaps")
    (False, True, None)
    """
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    return known.get(str(value).strip().lower()) if isinstance(value, (bool, int, float, str)) else None


def label(field: str, value: Any) -> bool:
    """Parses a field that must be true or false, see :func:`flag`."""
    parsed = flag(value)
    if parsed is None:
        raise Problem("not a label", f"field {field!r} is {shown(value)}. Give true or false")
    return parsed


def missing(field: str, value: Mapping[str, Any], needs: str) -> Problem:
    """Returns the problem of a field that is missing or null.

    Args:
        field: The field.
        value: The row.
        needs: What such rows need.
    """
    has = ", ".join(map(shown, list(value)[:8])) + (", …" if len(value) > 8 else "") or "no fields"
    state = "null" if field in value else f"missing (the row has {has})"
    advice = "Give it a value" if field in value else "Rename or add the field"
    return Problem(f"missing field {field}", f"field {field!r} is {state}. {needs[0].upper()}{needs[1:]}. {advice}")


def _detect(value: Mapping[str, Any], fields: Mapping[str, Any], expected: str | None, needs: str) -> Format:
    """Returns the format of a row, which must be the expected one."""
    for field, side in fields.items():
        if side is None:
            raise missing(field, value, needs)
        if not isinstance(side, (str, list)):
            raise not_a_string(field, side)
    prompt, kinds = value.get("prompt"), {type(side) for side in fields.values()}
    detected: Format
    if len(kinds) > 1:
        alike = "both" if len(fields) == 2 else "all"
        raise Problem(
            "mixed formats", f"some of {_listed(fields)} are strings, others chat messages. Write {alike} alike"
        )
    if kinds == {list} or isinstance(prompt, list):
        detected = "chat"
    elif prompt is None and value.get("instruction") is not None:
        detected = "instruction"
    elif prompt is None or expected == "transcript":
        detected = "transcript"
    else:
        detected = "text"
    return _require_format((detected,), expected)[0]


def _require_format(parsed: Any, expected: str | None) -> Any:
    """Returns a parsed row if its format (the last entry) is the expected one."""
    if expected not in (None, parsed[-1]):
        raise Problem(
            "mixed formats",
            f"the row has the format {parsed[-1]!r} where {expected!r} is expected. Keep one format per data set, "
            "or name the right one in format",
        )
    return parsed


def _listed(fields: Mapping[str, Any]) -> str:
    names = list(fields)
    return " and ".join(names) if len(names) < 3 else f"{names[0]} to {names[-1]}"


def _empty_prompt() -> NoReturn:
    raise Problem("empty prompt", "the prompt is empty. Add the prompt, or remove the row")


def _check_answer(field: str, text: str) -> None:
    if not text.strip():
        raise Problem("empty completion", f"field {field!r} is empty. Write an answer, or remove the row")


def _check_last(field: str, turns: Sequence[Message]) -> None:
    if turns[-1].role != "assistant":
        text = f"the last message of field {field!r} is not the assistant's. End it with an answer"
        raise Problem("no assistant turn", text)


Parts: TypeAlias = tuple[Any, Sequence[str]]


def _text(prompt: Any, fields: Mapping[str, Any]) -> Parts:
    if not isinstance(prompt, str):
        raise not_a_string("prompt", prompt)
    return prompt, list(fields.values())


def _transcript(_: Any, fields: Mapping[str, Any]) -> Parts:
    prompts, texts = [], []
    for field, text in fields.items():
        end = text.rfind(ASSISTANT) + len(ASSISTANT)
        if end < len(ASSISTANT) or not re.match(r"\s*(Human|Assistant):", text):
            raise Problem(
                "no prompt",
                f"field 'prompt' is missing, and field {field!r} is not a transcript of '\\n\\nHuman:' and "
                "'\\n\\nAssistant:' turns. Add the prompt as a field of its own",
            )
        if "\n\nHuman:" in text[end:]:
            raise Problem(
                "ends with a human turn", f"field {field!r} ends with a Human turn. End it with an Assistant turn"
            )
        prompts.append(text[:end])
        texts.append(text[end:])
    if len(set(prompts)) > 1:
        raise _unequal_prompts(fields)
    if not transcript_messages(prompts[0]):
        raise Problem("empty prompt", "the transcript has no turn before the answer. Add one, or remove the row")
    return prompts[0], texts


def _unequal_prompts(fields: Mapping[str, Any]) -> Problem:
    return Problem(
        "unequal prompts",
        f"{_listed(fields)} differ before their last turn. Write answers to one prompt, or remove the row",
    )


def _chat(prompt: Any, fields: Mapping[str, Any]) -> Parts:
    sides = []
    for field, value in fields.items():
        sides.append((Message("assistant", value),) if isinstance(value, str) else messages(field, value))
        _check_last(field, sides[-1])
    opening = sides[0][:-1]
    if any(side[:-1] != opening for side in sides):
        raise _unequal_prompts(fields)
    if isinstance(prompt, str):  # a common mixture: the prompt repeated as a string
        if opening and Message("user", prompt) not in opening:
            raise _unequal_prompts({"prompt": None, **fields})
        opening = opening or (Message("user", prompt),)
    elif prompt is not None:
        before = messages("prompt", prompt)
        if opening:
            text = f"{_listed(fields)} have several messages next to a field 'prompt'. Move all but the last to it"
            raise Problem("several turns", text)
        opening = before
    if not opening:
        raise Problem("empty prompt", "the conversation has no message before the answer. Add the prompt")
    check_order("prompt", [*opening, sides[0][-1]])
    return opening, [side[-1].content for side in sides]


def _turns(value: Mapping[str, Any], field: str) -> tuple[PromptText, tuple[Message, ...]]:
    """Cuts a conversation before the assistant's first turn, or where the field ``completion`` begins."""
    turns = messages(field, value[field])
    opening: tuple[Message, ...] = ()
    given = value.get("prompt") if field == "completion" else None
    if given is not None:
        opening = (Message("user", given),) if isinstance(given, str) else messages("prompt", given)
        if turns[0].role != "assistant":
            raise Problem(
                "no assistant turn",
                "the first message of field 'completion' is not the assistant's. Begin with the answer",
            )
    _check_last(field, turns)
    for number, turn in enumerate(turns, start=1):
        if turn.role == "assistant" and not turn.content.strip():
            text = f"message {number} of field {field!r} is an empty answer. Write it, or remove the row"
            raise Problem("empty completion", text)
    whole = (*opening, *turns)
    check_order(field, whole)
    cut = len(opening) or next(i for i, turn in enumerate(turns) if turn.role == "assistant")
    return whole[:cut] or _empty_prompt(), whole[cut:]


def _instruction_prompt(value: Mapping[str, Any]) -> str:
    parts = {field: value.get(field) or "" for field in ("instruction", "input")}
    for field, part in parts.items():
        if not isinstance(part, str):
            raise not_a_string(field, part)
    return "\n\n".join(part for part in parts.values() if part.strip()) or _empty_prompt()


def _instruction(value: Mapping[str, Any]) -> tuple[PromptText, str]:
    prompt, output = _instruction_prompt(value), value.get("output")
    if output is None:
        raise missing("output", value, "instruction rows need instruction and output")
    if not isinstance(output, str):
        raise not_a_string("output", output)
    _check_answer("output", output)
    return prompt, output


def _whole_text(text: Any) -> str:
    if not isinstance(text, str):
        raise not_a_string("text", text)
    if not text.strip():
        raise Problem("empty text", "field 'text' is empty. Remove the row")
    return text


def _given_prompt(prompt: Any) -> tuple[PromptText, Format]:
    if isinstance(prompt, str):
        written = re.match(r"\s*Human:", prompt) and prompt.rstrip().endswith(ASSISTANT)
        return (prompt, "transcript" if written else "text") if prompt.strip() else _empty_prompt()
    turns = messages("prompt", prompt)
    if turns[-1].role == "assistant":
        raise Problem("no open turn", "the last message of field 'prompt' is the assistant's. Remove the answer")
    return turns, "chat"
