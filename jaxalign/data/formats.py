r"""Parses one row into a prompt and what follows it, or returns the problem that makes the row unusable.

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
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from jaxalign.data.files import Problem
from jaxalign.data.messages import Message, messages, misordered, not_a_string, shown, transcript_messages

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


def parse_replies(
    value: Mapping[str, Any], fields: Mapping[str, Any], expected: str | None, needs: str
) -> Replies | Problem:
    """Parses a row's prompt and its completions, of which there may be one or many.

    Args:
        value: The row, of which the field ``prompt`` is read.
        fields: The completions, by their names in error messages.
        expected: The format that is wanted, if any.
        needs: What such rows need, for error messages.
    """
    format = _detect(value, fields, expected, needs)
    if isinstance(format, Problem):
        return format
    prompt = _instruction_prompt(value) if format == "instruction" else value.get("prompt")
    if isinstance(prompt, Problem):
        return prompt
    parsers = {"text": _text, "instruction": _text, "transcript": _transcript, "chat": _chat}
    parsed = parsers[format](prompt, fields)
    if isinstance(parsed, Problem):
        return parsed
    prompt, texts = parsed
    for field, text in zip(fields, texts, strict=True):
        if not text.strip():
            return Problem("empty completion", f"field {field!r} is empty. Write an answer, or remove the row")
    return Replies(prompt, tuple(texts), format)


def parse_demonstration(
    value: Mapping[str, Any], expected: str | None
) -> tuple[PromptText, str | tuple[Message, ...], Format] | Problem:
    """Parses a row's prompt and what follows: a text, or for ``chat`` all messages from the first one to learn.

    A text without a prompt, to learn as a whole, has the prompt ``""``.
    """
    needs = "demonstrations need messages, prompt and completion, instruction and output, or text"
    chat = next((field for field in CONVERSATIONS if value.get(field) is not None), None)
    completion = value.get("completion")
    parsed: Any
    if chat is not None or isinstance(completion, list):
        parsed = _turns(value, chat or "completion")
    elif value.get("instruction") is not None and completion is None:
        parsed = _instruction(value)
    elif completion is not None or value.get("chosen") is not None:  # of preference pairs, the better answer
        field = "chosen" if completion is None else "completion"
        answered = parse_replies(value, {field: value[field]}, expected, needs)
        if isinstance(answered, Problem):
            return answered
        if answered.format != "chat":
            return answered.prompt, answered.replies[0], answered.format
        parsed = answered.prompt, (Message("assistant", answered.replies[0]),), answered.format
    elif value.get("text") is not None:
        parsed = _whole_text(value["text"])
    else:
        return missing("text", value, needs)
    return parsed if isinstance(parsed, Problem) else _require_format(parsed, expected)


def prompt_only(value: Mapping[str, Any], expected: str | None) -> tuple[PromptText, Format] | Problem:
    """Parses the prompt of a row of any kind: its field ``prompt``, or what comes before its last answer."""
    needs = "name the field that contains the prompt"
    chat = next((field for field in CONVERSATIONS if value.get(field) is not None), None)
    parsed: tuple[PromptText, Format] | Problem
    if value.get("prompt") is not None:
        parsed = _given_prompt(value["prompt"])
    elif chat is not None:
        turns = messages(chat, value[chat])
        if isinstance(turns, Problem):
            return turns
        opening = turns[:-1] if turns[-1].role == "assistant" else turns
        parsed = (opening, "chat") if opening else _empty_prompt()
    elif value.get("instruction") is not None:
        text = _instruction_prompt(value)
        parsed = text if isinstance(text, Problem) else (text, "instruction")
    elif side := next((field for field in ANSWERS if value.get(field) is not None), None):
        answer = value[side]
        if side == "completions" and isinstance(answer, list) and answer:
            answer = answer[0]
        answered = parse_replies(value, {side: answer}, expected, needs)
        parsed = answered if isinstance(answered, Problem) else (answered.prompt, answered.format)
    else:
        parsed = missing("prompt", value, needs)
    return parsed if isinstance(parsed, Problem) else _require_format(parsed, expected)


def number(field: str, value: Any) -> float | Problem:
    """Parses a finite number, also in a string as CSV files have it."""
    try:
        result = math.nan if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except (ValueError, OverflowError):
        result = math.nan
    if math.isfinite(result):
        return result
    return Problem("not a number", f"field {field!r} is {shown(value)}. Give a finite number")


def label(field: str, value: Any) -> bool | Problem:
    """Parses true or false, also as 1 or 0 (in Parquet columns with gaps 1.0 or 0.0), or a string as in CSV files."""
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    flag = known.get(str(value).strip().lower()) if isinstance(value, (bool, int, float, str)) else None
    if flag is None:
        return Problem("not a label", f"field {field!r} is {shown(value)}. Give true or false")
    return flag


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


def _detect(value: Mapping[str, Any], fields: Mapping[str, Any], expected: str | None, needs: str) -> Format | Problem:
    """Detects the format of a row, or returns why it does not have one, or not the expected one."""
    for field, side in fields.items():
        if side is None:
            return missing(field, value, needs)
        if not isinstance(side, (str, list)):
            return not_a_string(field, side)
    prompt, kinds = value.get("prompt"), {type(side) for side in fields.values()}
    detected: Format
    if len(kinds) > 1:
        alike = "both" if len(fields) == 2 else "all"
        return Problem(
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
    accepted = _require_format((None, detected), expected)
    return accepted if isinstance(accepted, Problem) else detected


def _require_format(parsed: Any, expected: str | None) -> Any:
    """Returns a parsed row if its format (the last entry) is the expected one, or the problem."""
    if expected in (None, parsed[-1]):
        return parsed
    return Problem(
        "mixed formats",
        f"the row has the format {parsed[-1]!r} where {expected!r} is expected. Keep one format per data set, "
        "or name the right one in format",
    )


def _listed(fields: Mapping[str, Any]) -> str:
    names = list(fields)
    return " and ".join(names) if len(names) < 3 else f"{names[0]} to {names[-1]}"


def _empty_prompt() -> Problem:
    return Problem("empty prompt", "the prompt is empty. Add the prompt, or remove the row")


Parts: TypeAlias = tuple[Any, Sequence[str]]


def _text(prompt: Any, fields: Mapping[str, Any]) -> Parts | Problem:
    return (prompt, list(fields.values())) if isinstance(prompt, str) else not_a_string("prompt", prompt)


def _transcript(_: Any, fields: Mapping[str, Any]) -> Parts | Problem:
    prompts, texts = [], []
    for field, text in fields.items():
        end = text.rfind(ASSISTANT) + len(ASSISTANT)
        if end < len(ASSISTANT) or not re.match(r"\s*(Human|Assistant):", text):
            return Problem(
                "no prompt",
                f"field 'prompt' is missing, and field {field!r} is not a transcript of '\\n\\nHuman:' and "
                "'\\n\\nAssistant:' turns. Add the prompt as a field of its own",
            )
        if "\n\nHuman:" in text[end:]:
            return Problem(
                "ends with a human turn", f"field {field!r} ends with a Human turn. End it with an Assistant turn"
            )
        prompts.append(text[:end])
        texts.append(text[end:])
    if len(set(prompts)) > 1:
        return _unequal_prompts(fields)
    if not transcript_messages(prompts[0]):
        return Problem("empty prompt", "the transcript has no turn before the answer. Add one, or remove the row")
    return prompts[0], texts


def _unequal_prompts(fields: Mapping[str, Any]) -> Problem:
    return Problem(
        "unequal prompts",
        f"{_listed(fields)} differ before their last turn. Write answers to one prompt, or remove the row",
    )


def _chat(prompt: Any, fields: Mapping[str, Any]) -> Parts | Problem:
    sides = []
    for field, value in fields.items():
        turns = (Message("assistant", value),) if isinstance(value, str) else messages(field, value)
        if isinstance(turns, Problem):
            return turns
        if turns[-1].role != "assistant":
            return Problem(
                "no assistant turn",
                f"the last message of field {field!r} is not the assistant's. End it with an answer",
            )
        sides.append(turns)
    opening = sides[0][:-1]
    if any(side[:-1] != opening for side in sides):
        return _unequal_prompts(fields)
    if isinstance(prompt, str):  # a common mixture: the prompt repeated as a string
        if opening and Message("user", prompt) not in opening:
            return _unequal_prompts({"prompt": None, **fields})
        opening = opening or (Message("user", prompt),)
    elif prompt is not None:
        before = messages("prompt", prompt)
        if isinstance(before, Problem):
            return before
        if opening:
            text = f"{_listed(fields)} have several messages next to a field 'prompt'. Move all but the last to it"
            return Problem("several turns", text)
        opening = before
    if not opening:
        return Problem("empty prompt", "the conversation has no message before the answer. Add the prompt")
    return misordered("prompt", [*opening, sides[0][-1]]) or (opening, [side[-1].content for side in sides])


def _turns(value: Mapping[str, Any], field: str) -> tuple[PromptText, tuple[Message, ...], Format] | Problem:
    """Cuts a conversation before the assistant's first turn, or where the field ``completion`` begins."""
    turns = messages(field, value[field])
    if isinstance(turns, Problem):
        return turns
    opening: tuple[Message, ...] | Problem = ()
    given = value.get("prompt") if field == "completion" else None
    if given is not None:
        opening = (Message("user", given),) if isinstance(given, str) else messages("prompt", given)
        if isinstance(opening, Problem):
            return opening
        if turns[0].role != "assistant":
            return Problem(
                "no assistant turn",
                "the first message of field 'completion' is not the assistant's. Begin with the answer",
            )
    if turns[-1].role != "assistant":
        return Problem(
            "no assistant turn", f"the last message of field {field!r} is not the assistant's. End it with an answer"
        )
    for number, turn in enumerate(turns, start=1):
        if turn.role == "assistant" and not turn.content.strip():
            text = f"message {number} of field {field!r} is an empty answer. Write it, or remove the row"
            return Problem("empty completion", text)
    whole = (*opening, *turns)
    cut = len(opening) or next(i for i, turn in enumerate(turns) if turn.role == "assistant")
    return misordered(field, whole) or ((whole[:cut], whole[cut:], "chat") if cut else _empty_prompt())


def _instruction_prompt(value: Mapping[str, Any]) -> str | Problem:
    parts = []
    for field in ("instruction", "input"):
        part = value.get(field) or ""
        if not isinstance(part, str):
            return not_a_string(field, part)
        parts.append(part)
    return "\n\n".join(part for part in parts if part.strip()) or _empty_prompt()


def _instruction(value: Mapping[str, Any]) -> tuple[PromptText, str, Format] | Problem:
    prompt, output = _instruction_prompt(value), value.get("output")
    if isinstance(prompt, Problem):
        return prompt
    if output is None:
        return missing("output", value, "instruction rows need instruction and output")
    if not isinstance(output, str):
        return not_a_string("output", output)
    if not output.strip():
        return Problem("empty completion", "field 'output' is empty. Write an answer, or remove the row")
    return prompt, output, "instruction"


def _whole_text(text: Any) -> tuple[PromptText, str, Format] | Problem:
    if not isinstance(text, str):
        return not_a_string("text", text)
    return ("", text, "text") if text.strip() else Problem("empty text", "field 'text' is empty. Remove the row")


def _given_prompt(prompt: Any) -> tuple[PromptText, Format] | Problem:
    if isinstance(prompt, str):
        written = re.match(r"\s*Human:", prompt) and prompt.rstrip().endswith(ASSISTANT)
        return (prompt, "transcript" if written else "text") if prompt.strip() else _empty_prompt()
    turns = messages("prompt", prompt)
    if isinstance(turns, Problem):
        return turns
    if turns[-1].role == "assistant":
        return Problem("no open turn", "the last message of field 'prompt' is the assistant's. Remove the answer")
    return turns, "chat"
