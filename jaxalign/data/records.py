"""Preference pairs from the shapes people keep them in, checked row by row.

Three shapes of a row, told apart by looking (or named):

- ``transcript``: ``chosen`` and ``rejected`` are whole conversations as Anthropic writes them,
  ``"\\n\\nHuman: … \\n\\nAssistant: …"``. The prompt is everything through the last ``"\\n\\nAssistant:"`` and must be
  the same on both sides; it is never guessed as the longest common beginning, which can cut a word.
- ``text``: ``prompt``, ``chosen`` and ``rejected`` are strings, the last two what follows the prompt.
- ``chat``: lists of ``{"role", "content"}``: ``prompt`` and two replies of one message, or two conversations without
  ``prompt`` that differ in their last message only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxalign.data.files import Problem, Row, read_rows
from jaxalign.errors import UserError

Format = Literal["text", "transcript", "chat"]
FORMATS = ("text", "transcript", "chat")
ASSISTANT = "\n\nAssistant:"
SKIP_HINT = "or set data.on_error=skip to leave such rows out"


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, and where they were read.

    ``chosen`` and ``rejected`` are the text that follows the prompt; for ``chat`` the assistant's message.
    """

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str
    format: Format
    file: str = "data"
    row: int = 0

    @property
    def place(self) -> str:
        return f"{self.file}, row {self.row}"


class BadRow(NamedTuple):
    """A row that was left out, and why."""

    file: str
    row: int
    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """What reading kept and left out. ``str()`` of it is a line for people."""

    rows: int
    kept: int
    skipped: tuple[BadRow, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Rows left out, by kind."""
        return dict(Counter(bad.kind for bad in self.skipped))

    def __str__(self) -> str:
        if not self.skipped:
            return f"{self.kept} of {self.rows} rows kept"
        kinds = []
        for kind, count in self.counts.items():
            rows = [str(bad.row) for bad in self.skipped if bad.kind == kind]
            kinds.append(f"{count} {kind} (row {', '.join(rows[:5])}{', …' if len(rows) > 5 else ''})")
        return f"{self.kept} of {self.rows} rows kept, {len(self.skipped)} skipped: {'; '.join(kinds)}"


def read_preferences(
    path: str | Path,
    *,
    format: Literal["auto", "text", "transcript", "chat"] = "auto",
    on_error: Literal["stop", "skip"] = "stop",
    split: str = "train",
    name: str | None = None,
    data_dir: str | None = None,
) -> tuple[list[Preference], ReadReport]:
    """Preference pairs of a file, folder, hub id or ``package:file``.

    Args:
        path: what to read; it and ``split``, ``name``, ``data_dir`` are those of :func:`jaxalign.data.files.read_rows`.
        format: the shape of the rows; ``auto`` takes that of the first sound row for all.
        on_error: ``stop`` at the first bad row, or ``skip`` bad rows and report them.

    Returns:
        The pairs in the order of the file, and what was read and left out.

    Raises:
        UserError: if the file is missing, empty or broken, at the first bad row (``stop``), or if no row is sound.
    """
    if format not in ("auto", *FORMATS):
        raise UserError(f"data.format is {format!r}: it must be auto, {', '.join(FORMATS)}")
    if on_error not in ("stop", "skip"):
        raise UserError(f"data.on_error is {on_error!r}: it must be stop or skip")
    records: list[Preference] = []
    skipped: list[BadRow] = []
    expected = None if format == "auto" else format
    for row in read_rows(path, split=split, name=name, data_dir=data_dir):
        record = _preference(row, expected)
        if isinstance(record, Preference):
            records.append(record)
            expected = expected or record.format
        elif on_error == "stop":
            raise UserError(f"{row.file}, row {row.number}: {record.text}, {SKIP_HINT}")
        else:
            skipped.append(BadRow(row.file, row.number, *record))
    if not records:
        if not skipped:
            raise UserError(f"{path}: there are no rows: give a file with at least one")
        first = skipped[0]
        raise UserError(f"{path}: no row of {len(skipped)} can be used: {first.file}, row {first.row}: {first.text}")
    return records, ReadReport(len(records) + len(skipped), len(records), tuple(skipped))


def split_by_prompt(
    records: Sequence[Preference], *, holdout: int | float, seed: int = 0
) -> tuple[list[Preference], list[Preference]]:
    """Split into (train, held out) so that no prompt is on both sides.

    Prompts are taken in the order of a hash of (seed, prompt) until the held-out part has enough pairs; the order of
    the records changes nothing, and each side keeps it.

    Args:
        records: the pairs.
        holdout: pairs to hold out, as a count (int) or a share (float); pairs of the last prompt taken may exceed it.
        seed: another seed, another split.

    Raises:
        UserError: if nothing is left to train on.
    """
    wanted = round(holdout * len(records)) if isinstance(holdout, float) else holdout
    if not 0 <= wanted < len(records):
        raise UserError(f"data.holdout={holdout} of {len(records)} pairs leaves nothing to train on: hold out fewer")
    keys = [hashlib.sha256(f"{seed}\0{record.prompt!r}".encode()).digest() for record in records]
    held: set[bytes] = set()
    count = 0
    for key, size in sorted(Counter(keys).items()):
        if count >= wanted:
            break
        held.add(key)
        count += size
    if count == len(records):
        raise UserError(
            f"data.holdout={holdout} leaves nothing to train on, as the pairs share prompts: hold out fewer"
        )
    train = [record for record, key in zip(records, keys, strict=True) if key not in held]
    return train, [record for record, key in zip(records, keys, strict=True) if key in held]


def transcript_messages(transcript: str) -> list[Message]:
    """The turns of an Anthropic transcript, contents stripped; an empty last turn (a prompt's) is left out.

    >>> transcript_messages("\\n\\nHuman: Why is the sky blue?\\n\\nAssistant:")
    [Message(role='user', content='Why is the sky blue?')]
    """
    pieces = re.split(r"(?:^|\n\n)(Human|Assistant):", transcript.lstrip())
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [Message(roles[who], said.strip()) for who, said in zip(pieces[1::2], pieces[2::2], strict=True)]
    return turns if turns and turns[-1].content else turns[:-1]


def _preference(row: Row, expected: str | None) -> Preference | Problem:
    value = row.value
    if isinstance(value, Problem):
        return value
    found = _detect(value, expected)
    if isinstance(found, Problem):
        return found
    parsed = {"text": _text, "transcript": _transcript, "chat": _chat}[found](value)
    if isinstance(parsed, Problem):
        return parsed
    prompt, chosen, rejected = parsed
    for field, completion in (("chosen", chosen), ("rejected", rejected)):
        if not completion.strip():
            return Problem("empty completion", f"the answer in field {field!r} is empty: fill it or remove the row")
    return Preference(prompt, chosen, rejected, found, row.file, row.number)  # type: ignore[arg-type]


def _detect(value: Mapping[str, Any], expected: str | None) -> str | Problem:
    """The shape of a row, or what keeps it from having one, or from having the expected one."""
    for field in ("chosen", "rejected"):
        if value.get(field) is None:
            has = ", ".join(repr(key) for key in value) or "no fields"
            return Problem(
                f"missing field {field}",
                f"field {field!r} is missing (the row has {has}): preference rows need chosen and rejected, "
                "so rename or add the field",
            )
        if not isinstance(value[field], (str, list)):
            return _not_a_string(field, value[field])
    prompt, kinds = value.get("prompt"), {type(value["chosen"]), type(value["rejected"])}
    if kinds == {list}:
        found = "chat"
    elif kinds != {str}:
        return Problem(
            "mixed formats", "one of chosen and rejected is a string, the other chat messages: write both alike"
        )
    elif prompt is None or expected == "transcript":
        found = "transcript"
    else:
        found = "text"
    if expected not in (None, found):
        return Problem(
            "mixed formats",
            f"the row has the shape of format {found!r} where {expected!r} is expected: keep one format per data set, "
            "or name the right one in data.format",
        )
    return found


def _not_a_string(field: str, value: Any) -> Problem:
    kind = type(value).__name__
    return Problem("not a string", f"field {field!r} is of type {kind} where a string (or chat messages) is needed")


Parts = tuple[Any, str, str]


def _text(value: Mapping[str, Any]) -> Parts | Problem:
    if not isinstance(value["prompt"], str):
        return _not_a_string("prompt", value["prompt"])
    return value["prompt"], value["chosen"], value["rejected"]


def _transcript(value: Mapping[str, Any]) -> Parts | Problem:
    parts = []
    for field in ("chosen", "rejected"):
        text = value[field]
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
        parts.append((text[:end], text[end:]))
    (prompt, chosen), (other, rejected) = parts
    if prompt != other:
        return _unequal_prompts()
    if not transcript_messages(prompt):
        return Problem("empty prompt", "the transcript has no turn before the answer: add one or remove the row")
    return prompt, chosen, rejected


def _unequal_prompts() -> Problem:
    return Problem(
        "unequal prompts",
        "chosen and rejected differ before their last turn: both must answer one prompt, so mend or remove the row",
    )


def _chat(value: Mapping[str, Any]) -> Parts | Problem:
    sides = []
    for field in ("chosen", "rejected"):
        messages = _messages(field, value[field])
        if isinstance(messages, Problem):
            return messages
        if messages[-1].role != "assistant":
            return Problem("no assistant turn", f"the last message of field {field!r} must be the assistant's")
        sides.append(messages)
    chosen, rejected = sides
    if chosen[:-1] != rejected[:-1]:
        return _unequal_prompts()
    prompt, opening = value.get("prompt"), chosen[:-1]
    if isinstance(prompt, str):  # a common mixture: the prompt once more as a string
        if opening and Message("user", prompt) not in opening:
            return _unequal_prompts()
        opening = opening or (Message("user", prompt),)
    elif prompt is not None:
        messages = _messages("prompt", prompt)
        if isinstance(messages, Problem):
            return messages
        if opening:
            text = (
                "beside a field 'prompt', chosen and rejected must be one assistant message each: move the rest to it"
            )
            return Problem("several turns", text)
        opening = messages
    if not opening:
        return Problem("empty prompt", "the conversation has no message before the answer: add the prompt")
    return opening, chosen[-1].content, rejected[-1].content


def _messages(field: str, value: Any) -> tuple[Message, ...] | Problem:
    if not isinstance(value, list):
        return _not_a_string(field, value)
    if not value:
        return Problem("empty conversation", f"field {field!r} is an empty list: it needs at least one message")
    for number, message in enumerate(value, start=1):
        parts = [message.get(key) for key in ("role", "content")] if isinstance(message, Mapping) else [None]
        if not all(isinstance(part, str) for part in parts):
            text = f"message {number} of field {field!r} must be an object with strings 'role' and 'content'"
            return Problem("malformed message", text)
    return tuple(Message(message["role"], message["content"]) for message in value)
