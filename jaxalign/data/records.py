"""Records of every kind that alignment learns from, read row by row, each with its file and row number.

====================  =====================================================  ========================================
kind                  rows                                                   what they may look like
====================  =====================================================  ========================================
Demonstration         ``messages``; ``prompt``, ``completion``; ``text``;    :mod:`jaxalign.data.formats` says which
                      ``instruction``, ``input``, ``output``; ``chosen``     formats there are: strings, transcripts,
Preference            ``chosen``, ``rejected``, maybe ``prompt``, ``margin`` chats, instructions
Ranking               ``completions`` (best first), maybe ``prompt``
UnpairedPreference    ``completion`` (or ``messages``), ``label``, maybe
                      ``prompt``; or a pair, which makes two
Prompt                ``prompt``, or any row above
====================  =====================================================  ========================================
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

from jaxalign.data.files import Problem, Row, read_rows
from jaxalign.data.formats import (
    FORMATS,
    Format,
    PromptText,
    demonstration,
    label,
    missing,
    number,
    prompt_only,
    replies,
)
from jaxalign.data.messages import Message, transcript_messages
from jaxalign.errors import UserError

__all__ = [
    "BadRow",
    "Demonstration",
    "Message",
    "Preference",
    "Prompt",
    "Ranking",
    "ReadReport",
    "Record",
    "UnpairedPreference",
    "read_preferences",
    "read_records",
    "split_by_prompt",
    "transcript_messages",
]

SKIP_HINT = "or set data.on_error=skip to leave such rows out"
PAIR = ("chosen", "rejected")


class Record:
    """What all kinds of records have in common. Completions are the text that follows the prompt; for ``chat`` the
    assistant's message."""

    prompt: PromptText
    format: Format
    file: str
    row: int

    @property
    def place(self) -> str:
        return f"{self.file}, row {self.row}"

    @property
    def completions(self) -> tuple[str, ...]:
        """The texts that answer the prompt, in the order of a tree's branches."""
        raise NotImplementedError

    @property
    def extras(self) -> dict[str, Any]:
        """What a tree of the record carries besides tokens: the same names for all records of a data set."""
        return {}

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self] | Problem:
        """The records of one row."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Demonstration(Record):
    """What to imitate. A ``chat``'s completion is all messages from the first one to learn from on, and every
    assistant's turn among them counts; a text to model as a whole has the prompt ``""``."""

    prompt: PromptText
    completion: str | tuple[Message, ...]
    format: Format
    file: str = "data"
    row: int = 0

    @property
    def completions(self) -> tuple[str, ...]:
        return (self.completion if isinstance(self.completion, str) else self.completion[-1].content,)

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self] | Problem:
        parts = demonstration(value, expected)
        return parts if isinstance(parts, Problem) else [cls(*parts, file, row)]


@dataclasses.dataclass(frozen=True)
class Preference(Record):
    """Two answers to one prompt, and where they were read; ``margin`` says how much better the chosen one is."""

    prompt: PromptText
    chosen: str
    rejected: str
    format: Format
    file: str = "data"
    row: int = 0
    margin: float | None = None

    @property
    def completions(self) -> tuple[str, ...]:
        return self.chosen, self.rejected

    @property
    def extras(self) -> dict[str, Any]:
        return {} if self.margin is None else {"margin": self.margin}

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self] | Problem:
        fields = {field: value.get(field) for field in PAIR}
        found = replies(value, fields, expected, "preference rows need chosen and rejected")
        margin = None if value.get("margin") is None else number("margin", value["margin"])
        if isinstance(found, Problem) or isinstance(margin, Problem):
            return found if isinstance(found, Problem) else margin  # type: ignore[return-value]
        chosen, rejected = found.replies
        return [cls(found.prompt, chosen, rejected, found.format, file, row, margin)]


@dataclasses.dataclass(frozen=True)
class Ranking(Record):
    """Two or more answers to one prompt, the best one first."""

    prompt: PromptText
    ranked: tuple[str, ...]
    format: Format
    file: str = "data"
    row: int = 0

    @property
    def completions(self) -> tuple[str, ...]:
        return self.ranked

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self] | Problem:
        needs, ranked = "ranking rows need completions, the best first", value.get("completions")
        if ranked is None:
            return missing("completions", value, needs)
        if not isinstance(ranked, list) or len(ranked) < 2:
            return Problem("no ranking", "field 'completions' must be a list of two answers or more, the best first")
        fields = {f"completions[{i}]": answer for i, answer in enumerate(ranked)}
        found = replies(value, fields, expected, needs)
        return found if isinstance(found, Problem) else [cls(found.prompt, found.replies, found.format, file, row)]


@dataclasses.dataclass(frozen=True)
class UnpairedPreference(Record):
    """One answer that was liked (``label`` True) or not."""

    prompt: PromptText
    completion: str
    label: bool
    format: Format
    file: str = "data"
    row: int = 0

    @property
    def completions(self) -> tuple[str, ...]:
        return (self.completion,)

    @property
    def extras(self) -> dict[str, Any]:
        return {"label": self.label}

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self] | Problem:
        needs = "these rows need completion and label, or chosen and rejected"
        if all(value.get(field) is not None for field in PAIR):
            fields, labels = {field: value[field] for field in PAIR}, [True, False]
        else:
            field = "messages" if value.get("completion") is None and value.get("messages") else "completion"
            if value.get(field) is not None and value.get("label") is None:
                return missing("label", value, needs)
            liked = label("label", value.get("label")) if value.get(field) is not None else False
            if isinstance(liked, Problem):
                return liked
            fields, labels = {field: value.get(field)}, [liked]
            value = {key: part for key, part in value.items() if key != "prompt" or field == "completion"}
        found = replies(value, fields, expected, needs)
        if isinstance(found, Problem):
            return found
        pairs = zip(found.replies, labels, strict=True)
        return [cls(found.prompt, reply, liked, found.format, file, row) for reply, liked in pairs]


@dataclasses.dataclass(frozen=True)
class Prompt(Record):
    """Something to answer, with the whole row it stands in (``fields``), for rewards that need more of it."""

    prompt: PromptText
    format: Format
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    file: str = "data"
    row: int = 0

    @property
    def completions(self) -> tuple[str, ...]:
        return ()

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self] | Problem:
        parts = prompt_only(value, expected)
        return parts if isinstance(parts, Problem) else [cls(*parts, dict(value), file, row)]


R = TypeVar("R", bound=Record)


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


def read_records(
    kind: type[R],
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    format: Literal["auto", "text", "transcript", "chat", "instruction"] = "auto",
    on_error: Literal["stop", "skip"] = "stop",
    split: str = "train",
    name: str | None = None,
    data_dir: str | None = None,
) -> tuple[list[R], ReadReport]:
    """Records of one kind out of a file, folder, hub id or ``package:file``.

    Args:
        kind: :class:`Demonstration`, :class:`Preference`, :class:`Ranking`, :class:`UnpairedPreference` or
            :class:`Prompt`.
        path: what to read; it and ``split``, ``name``, ``data_dir`` are those of :func:`jaxalign.data.files.read_rows`.
        columns: what fields are called in this file, as ``{"prompt": "question", "completion": "answer"}``.
        format: the format of the rows; ``auto`` takes that of the first sound row for all.
        on_error: ``stop`` at the first bad row, or ``skip`` bad rows and report them.

    Returns:
        The records in the order of the file, and what was read and left out.

    Raises:
        UserError: if the file is missing, empty or broken, at the first bad row (``stop``), or if no row is sound.

    >>> records, report = read_records(Prompt, "jaxalign:assets/brief_pairs.jsonl")
    >>> str(report), sorted(records[0].fields)
    ('160 of 160 rows kept', ['chosen', 'prompt', 'rejected'])
    """
    if format not in ("auto", *FORMATS):
        raise UserError(f"data.format is {format!r}: it must be auto, {', '.join(FORMATS)}")
    if on_error not in ("stop", "skip"):
        raise UserError(f"data.on_error is {on_error!r}: it must be stop or skip")
    records: list[R] = []
    skipped: list[BadRow] = []
    kept = 0
    for row in read_rows(path, split=split, name=name, data_dir=data_dir):
        expected = records[0].format if records else None if format == "auto" else format
        found = _parse(kind, row, columns or {}, expected)
        if not isinstance(found, Problem) and records:
            found = _unlike(found[0], records[0]) or found
        if not isinstance(found, Problem):
            records += found
            kept += 1
        elif on_error == "stop":
            raise UserError(f"{row.file}, row {row.number}: {found.text}, {SKIP_HINT}")
        else:
            skipped.append(BadRow(row.file, row.number, *found))
    if not records:
        if not skipped:
            raise UserError(f"{path}: there are no rows: give a file with at least one")
        first = skipped[0]
        raise UserError(f"{path}: no row of {len(skipped)} can be used: {first.file}, row {first.row}: {first.text}")
    return records, ReadReport(kept + len(skipped), kept, tuple(skipped))


def read_preferences(path: str | Path, **options: Any) -> tuple[list[Preference], ReadReport]:
    """:func:`read_records` of the kind :class:`Preference`, whose options these are.

    >>> str(read_preferences("jaxalign:assets/brief_pairs.jsonl")[1])
    '160 of 160 rows kept'
    """
    return read_records(Preference, path, **options)


def _parse(kind: type[R], row: Row, columns: Mapping[str, str], expected: str | None) -> list[R] | Problem:
    value = row.value
    if isinstance(value, Problem):
        return value
    for field, theirs in columns.items():
        if value.get(theirs) is None:
            return missing(theirs, value, f"data.columns says that it holds the {field}")
    return kind.parse({**value, **{field: value[theirs] for field, theirs in columns.items()}}, expected, *row[:2])


def _unlike(record: Record, first: Record) -> Problem | None:
    """A batch is an array: what one record carries, all must."""
    differing = sorted(record.extras.keys() ^ first.extras.keys())
    if not differing:
        return None
    has = "has a" if differing[0] in record.extras else "has no"
    text = f"the row {has} {differing[0]!r}, unlike the rows before it: give it to all rows or to none"
    return Problem(f"{differing[0]} not in all rows", text)


def split_by_prompt(records: Sequence[R], *, holdout: int | float, seed: int = 0) -> tuple[list[R], list[R]]:
    """Split into (train, held out) so that no prompt is on both sides.

    Prompts are taken in the order of a hash of (seed, prompt) until the held-out part has enough records; the order of
    the records changes nothing, and each side keeps it. What has no prompt goes by its text.

    Args:
        records: of any kind.
        holdout: records to hold out, as a count (int) or a share (float); those of the last prompt taken may exceed it.
        seed: another seed, another split.

    Raises:
        UserError: if nothing is left to train on.
    """
    wanted = round(holdout * len(records)) if isinstance(holdout, float) else holdout
    if not 0 <= wanted < len(records):
        raise UserError(f"data.holdout={holdout} of {len(records)} records leaves nothing to train on: hold out fewer")
    keys = [hashlib.sha256(f"{seed}\0{record.prompt or record.completions!r}".encode()).digest() for record in records]
    held: set[bytes] = set()
    count = 0
    for key, size in sorted(Counter(keys).items()):
        if count >= wanted:
            break
        held.add(key)
        count += size
    if count == len(records):
        raise UserError(
            f"data.holdout={holdout} leaves nothing to train on, as the records share prompts: hold out fewer"
        )
    train = [record for record, key in zip(records, keys, strict=True) if key not in held]
    return train, [record for record, key in zip(records, keys, strict=True) if key in held]
