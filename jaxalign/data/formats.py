"""From one row, as people write it, to a prompt and what follows it; or the problem that keeps the row from being used.

Four formats, told apart by looking (or named):

- ``text``: strings; a completion is what follows the prompt.
- ``transcript``: whole conversations as Anthropic writes them, ``"\\n\\nHuman: … \\n\\nAssistant: …"``, without a field
  ``prompt``. The prompt is everything through the last ``"\\n\\nAssistant:"`` and must be the same for all
  completions of a row; it is never guessed as the longest common beginning, which can cut a word.
- ``chat``: lists of ``{"role", "content"}`` (or ShareGPT's ``{"from", "value"}``): ``prompt`` and replies of one
  message, or conversations without ``prompt`` that differ in their last message only.
- ``instruction``: ``instruction``, ``input`` (may be empty) and ``output``, as Alpaca has them.
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
ANSWERS = ("chosen", "completion", "completions")  # fields whose (first) answer may hold its prompt
CONVERSATIONS = ("messages", "conversations")  # fields that hold a whole chat

PromptText: TypeAlias = str | tuple[Message, ...]


class Answered(NamedTuple):
    """A prompt, the texts that answer it (for ``chat`` the assistant's message), and the format they were found in."""

    prompt: PromptText
    replies: tuple[str, ...]
    format: Format


def replies(
    value: Mapping[str, Any], fields: Mapping[str, Any], expected: str | None, needs: str
) -> Answered | Problem:
    """A row's prompt and its completions, of which there may be one or many.

    Args:
        value: the row, of which the field ``prompt`` is looked at.
        fields: the completions, by the names that problems tell.
        expected: the format that is wanted, if any.
        needs: what such rows need, for rows that lack it.
    """
    found = _detect(value, fields, expected, needs)
    if isinstance(found, Problem):
        return found
    prompt = _instruction_prompt(value) if found == "instruction" else value.get("prompt")
    if isinstance(prompt, Problem):
        return prompt
    parsers = {"text": _text, "instruction": _text, "transcript": _transcript, "chat": _chat}
    parsed = parsers[found](prompt, fields)
    if isinstance(parsed, Problem):
        return parsed
    prompt, texts = parsed
    for field, text in zip(fields, texts, strict=True):
        if not text.strip():
            return Problem("empty completion", f"the answer in field {field!r} is empty: fill it or remove the row")
    return Answered(prompt, tuple(texts), found)


def demonstration(
    value: Mapping[str, Any], expected: str | None
) -> tuple[PromptText, str | tuple[Message, ...], Format] | Problem:
    """A row's prompt and what should follow: a text, or for ``chat`` all messages from the first to learn from on.

    A text without a prompt, to model as a whole, has the prompt ``""``.
    """
    needs = "these rows need messages, prompt and completion, instruction and output, or text"
    chat = next((field for field in CONVERSATIONS if value.get(field) is not None), None)
    completion = value.get("completion")
    found: Any
    if chat is not None or isinstance(completion, list):
        found = _turns(value, chat or "completion")
    elif value.get("instruction") is not None and completion is None:
        found = _instruction(value)
    elif completion is not None or value.get("chosen") is not None:  # of preference pairs, the better answer
        field = "chosen" if completion is None else "completion"
        answered = replies(value, {field: value[field]}, expected, needs)
        if isinstance(answered, Problem):
            return answered
        if answered.format != "chat":
            return answered.prompt, answered.replies[0], answered.format
        found = answered.prompt, (Message("assistant", answered.replies[0]),), answered.format
    elif value.get("text") is not None:
        found = _whole_text(value["text"])
    else:
        return missing("text", value, needs)
    return found if isinstance(found, Problem) else _expect(found, expected)


def prompt_only(value: Mapping[str, Any], expected: str | None) -> tuple[PromptText, Format] | Problem:
    """The prompt of a row of any kind: its field ``prompt``, or what comes before its last answer."""
    needs = "name the field that holds the prompt"
    chat = next((field for field in CONVERSATIONS if value.get(field) is not None), None)
    found: tuple[PromptText, Format] | Problem
    if value.get("prompt") is not None:
        found = _given_prompt(value["prompt"])
    elif chat is not None:
        turns = messages(chat, value[chat])
        if isinstance(turns, Problem):
            return turns
        opening = turns[:-1] if turns[-1].role == "assistant" else turns
        found = (opening, "chat") if opening else _empty_prompt()
    elif value.get("instruction") is not None:
        text = _instruction_prompt(value)
        found = text if isinstance(text, Problem) else (text, "instruction")
    elif side := next((field for field in ANSWERS if value.get(field) is not None), None):
        answer = value[side]
        if side == "completions" and isinstance(answer, list) and answer:
            answer = answer[0]
        answered = replies(value, {side: answer}, expected, needs)
        found = answered if isinstance(answered, Problem) else (answered.prompt, answered.format)
    else:
        found = missing("prompt", value, needs)
    return found if isinstance(found, Problem) else _expect(found, expected)


def number(field: str, value: Any) -> float | Problem:
    """A finite number, also as a string, as CSV files have it."""
    try:
        found = math.nan if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except (ValueError, OverflowError):
        found = math.nan
    if math.isfinite(found):
        return found
    return Problem("not a number", f"field {field!r} is {shown(value)} where a finite number is needed")


def label(field: str, value: Any) -> bool | Problem:
    """True or false, also as 1 or 0 (in Parquet columns with gaps 1.0 or 0.0), or a string, as CSV files have it."""
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    found = known.get(str(value).strip().lower()) if isinstance(value, (bool, int, float, str)) else None
    if found is None:
        return Problem("not a label", f"field {field!r} is {shown(value)} where true or false is needed")
    return found


def missing(field: str, value: Mapping[str, Any], needs: str) -> Problem:
    """A field that is not there."""
    has = ", ".join(map(shown, list(value)[:8])) + (", …" if len(value) > 8 else "") or "no fields"
    return Problem(
        f"missing field {field}",
        f"field {field!r} is missing (the row has {has}): {needs}, so rename or add the field",
    )


def _detect(value: Mapping[str, Any], fields: Mapping[str, Any], expected: str | None, needs: str) -> Format | Problem:
    """The format of a row, or what keeps it from having one, or from having the expected one."""
    for field, side in fields.items():
        if side is None:
            return missing(field, value, needs)
        if not isinstance(side, (str, list)):
            return not_a_string(field, side)
    prompt, kinds = value.get("prompt"), {type(side) for side in fields.values()}
    found: Format
    if len(kinds) > 1:
        alike = "both" if len(fields) == 2 else "all"
        return Problem(
            "mixed formats", f"of {_listed(fields)} some are strings, others chat messages: write {alike} alike"
        )
    if kinds == {list} or isinstance(prompt, list):
        found = "chat"
    elif prompt is None and value.get("instruction") is not None:
        found = "instruction"
    elif prompt is None or expected == "transcript":
        found = "transcript"
    else:
        found = "text"
    accepted = _expect((None, found), expected)
    return accepted if isinstance(accepted, Problem) else found


def _expect(found: Any, expected: str | None) -> Any:
    """What was found, if its format (the last entry) is the expected one."""
    if expected in (None, found[-1]):
        return found
    return Problem(
        "mixed formats",
        f"the row has the shape of format {found[-1]!r} where {expected!r} is expected: keep one format per data set, "
        "or name the right one in data.format",
    )


def _listed(fields: Mapping[str, Any]) -> str:
    names = list(fields)
    return " and ".join(names) if len(names) < 3 else f"{names[0]} to {names[-1]}"


def _empty_prompt() -> Problem:
    return Problem("empty prompt", "there is nothing before the answer: add the prompt or remove the row")


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
                f"there is no field 'prompt', and field {field!r} is not a transcript of '\\n\\nHuman:' and "
                "'\\n\\nAssistant:' turns: add the prompt as a field of its own",
            )
        if "\n\nHuman:" in text[end:]:
            return Problem(
                "ends with a human turn", f"the transcript in field {field!r} must end with an Assistant turn"
            )
        prompts.append(text[:end])
        texts.append(text[end:])
    if len(set(prompts)) > 1:
        return _unequal_prompts(fields)
    if not transcript_messages(prompts[0]):
        return Problem("empty prompt", "the transcript has no turn before the answer: add one or remove the row")
    return prompts[0], texts


def _unequal_prompts(fields: Mapping[str, Any]) -> Problem:
    return Problem(
        "unequal prompts",
        f"{_listed(fields)} differ before their last turn: they must answer one prompt, so mend or remove the row",
    )


def _chat(prompt: Any, fields: Mapping[str, Any]) -> Parts | Problem:
    sides = []
    for field, value in fields.items():
        turns = (Message("assistant", value),) if isinstance(value, str) else messages(field, value)
        if isinstance(turns, Problem):
            return turns
        if turns[-1].role != "assistant":
            return Problem("no assistant turn", f"the last message of field {field!r} must be the assistant's")
        sides.append(turns)
    opening = sides[0][:-1]
    if any(side[:-1] != opening for side in sides):
        return _unequal_prompts(fields)
    if isinstance(prompt, str):  # a common mixture: the prompt once more as a string
        if opening and Message("user", prompt) not in opening:
            return _unequal_prompts({"prompt": None, **fields})
        opening = opening or (Message("user", prompt),)
    elif prompt is not None:
        before = messages("prompt", prompt)
        if isinstance(before, Problem):
            return before
        if opening:
            text = f"beside a field 'prompt', {_listed(fields)} must be one assistant message each: move the rest to it"
            return Problem("several turns", text)
        opening = before
    if not opening:
        return Problem("empty prompt", "the conversation has no message before the answer: add the prompt")
    return misordered("prompt", [*opening, sides[0][-1]]) or (opening, [side[-1].content for side in sides])


def _turns(value: Mapping[str, Any], field: str) -> tuple[PromptText, tuple[Message, ...], Format] | Problem:
    """A conversation, cut before the first assistant's turn, or where the field ``completion`` begins."""
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
            return Problem("no assistant turn", "the first message of field 'completion' must be the assistant's")
    if turns[-1].role != "assistant":
        return Problem("no assistant turn", f"the last message of field {field!r} must be the assistant's")
    for number, turn in enumerate(turns, start=1):
        if turn.role == "assistant" and not turn.content.strip():
            text = f"message {number} of field {field!r} is an empty answer: fill it or remove the row"
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
        return Problem("empty completion", "the answer in field 'output' is empty: fill it or remove the row")
    return prompt, output, "instruction"


def _whole_text(text: Any) -> tuple[PromptText, str, Format] | Problem:
    if not isinstance(text, str):
        return not_a_string("text", text)
    return ("", text, "text") if text.strip() else Problem("empty text", "field 'text' is empty: remove the row")


def _given_prompt(prompt: Any) -> tuple[PromptText, Format] | Problem:
    if isinstance(prompt, str):
        written = re.match(r"\s*Human:", prompt) and prompt.rstrip().endswith(ASSISTANT)
        return (prompt, "transcript" if written else "text") if prompt.strip() else _empty_prompt()
    turns = messages("prompt", prompt)
    if isinstance(turns, Problem):
        return turns
    if turns[-1].role == "assistant":
        return Problem("no open turn", "the last message of field 'prompt' is the assistant's: leave the answer out")
    return turns, "chat"
