"""Reading records of every kind, row by row, each with its file and row number; and splitting them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from jaxalign.data import oasst
from jaxalign.data.files import Problem, Row, Source, read_rows, source_name
from jaxalign.data.formats import CONVERSATIONS, FORMATS, missing
from jaxalign.data.kinds import Demonstration, Preference, Prompt, Ranking, Record, UnpairedPreference
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
    "collect",
    "is_held_out",
    "parse_rows",
    "read_preferences",
    "read_records",
    "split_by_prompt",
    "stream_records",
    "transcript_messages",
]

FormatOption: TypeAlias = Literal["auto", "text", "transcript", "chat", "instruction"]
OnError: TypeAlias = Literal["stop", "skip"]
FIELDS = {*CONVERSATIONS, "prompt", "completion", "label", "text", "instruction", "input", "output"}
FIELDS |= {"chosen", "rejected", "completions", "margin", "label_smoothing"}
SKIP_HINT = "or set data.on_error=skip to leave such rows out"
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
    records: int | None = None  # made of the rows kept; None: one each
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)  # sound, but nothing to learn from, by reason

    @property
    def counts(self) -> dict[str, int]:
        """Rows left out, by kind."""
        return dict(Counter(bad.kind for bad in self.skipped))

    def __str__(self) -> str:
        text = f"{self.kept} of {self.rows} rows kept"
        if self.records not in (None, self.kept):
            text += f", {self.records} records made of them"
        if any(self.left_out.values()):
            text += f" ({', '.join(f'{count} {reason}' for reason, count in self.left_out.items() if count)})"
        if not self.skipped:
            return text
        return f"{text}, {len(self.skipped)} skipped: {tell_skipped(self.skipped)}"


def tell_skipped(skipped: Sequence[BadRow]) -> str:
    """How many rows were left out for what reason, and which.

    >>> tell_skipped([BadRow("a.jsonl", 3, "not JSON", "is not JSON")])
    '1 not JSON (row 3)'
    """
    kinds = []
    for kind, count in Counter(bad.kind for bad in skipped).items():
        rows = [str(bad.row) for bad in skipped if bad.kind == kind]
        kinds.append(f"{count} {kind} (row {', '.join(rows[:5])}{', …' if len(rows) > 5 else ''})")
    return "; ".join(kinds)


def read_records(
    kind: type[R],
    source: Source,
    *,
    columns: Mapping[str, str] | None = None,
    format: FormatOption = "auto",
    on_error: OnError = "stop",
    split: str = "train",
    name: str | None = None,
    data_dir: str | None = None,
    rows_name: str = "rows",
) -> tuple[list[R], ReadReport]:
    """Reads records of one kind from a file, folder, hub id, ``package:file``, or from rows in memory.

    Args:
        kind: :class:`Demonstration`, :class:`Preference`, :class:`Ranking`, :class:`UnpairedPreference` or
            :class:`Prompt`.
        source: what to read; it and ``split``, ``name``, ``data_dir``, ``rows_name`` are those of
            :func:`jaxalign.data.files.read_rows`.
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
    rows = read_rows(source, split=split, name=name, data_dir=data_dir, rows_name=rows_name)
    parsed = parse_rows(kind, rows, columns=columns, format=format, on_error=on_error)
    return collect(source_name(source, rows_name), parsed)


def read_preferences(source: Source, **options: Any) -> tuple[list[Preference], ReadReport]:
    """:func:`read_records` of the kind :class:`Preference`, whose options these are.

    >>> str(read_preferences("jaxalign:assets/brief_pairs.jsonl")[1])
    '160 of 160 rows kept'
    """
    return read_records(Preference, source, **options)


def stream_records(
    kind: type[R],
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    format: FormatOption = "auto",
    on_error: OnError = "stop",
    on_bad: Callable[[BadRow], None] | None = None,
    start: int = 0,
    split: str = "train",
    name: str | None = None,
    data_dir: str | None = None,
) -> Iterator[R]:
    """The records of :func:`read_records` one by one, of files and hub data sets too large to hold.

    What holds for data that are read whole holds here as follows. Order: that of the file, always the same; there is no
    shuffling. Split: :func:`is_held_out` decides on each record alone, so no prompt is on both sides. Resume: ``start``
    is the number of rows that were drawn; they are passed over, read (a line's beginning is found by reading) but
    neither checked nor tokenised again.

    Args:
        kind: as for :func:`read_records`, like the rest.
        path: what to read; hub data sets are streamed.
        columns: what fields are called in this file.
        format: the format of the rows.
        on_error: ``stop`` at the first bad row, or ``skip`` bad rows.
        on_bad: called with every row that is skipped.
        start: rows to pass over.
        split: which split of a folder or hub data set.
        name: configuration of a hub data set.
        data_dir: folder within a hub data set.

    Raises:
        UserError: as :func:`read_records`, but when the row's turn comes; not for a file without sound rows.

    >>> next(stream_records(Prompt, "jaxalign:assets/brief_pairs.jsonl")).row
    1
    """
    rows = itertools.islice(read_rows(path, split=split, name=name, data_dir=data_dir, streaming=True), start, None)
    for found in parse_rows(kind, rows, columns=columns, format=format, on_error=on_error):
        if not isinstance(found, BadRow):
            yield from found
        elif on_bad is not None:
            on_bad(found)


def parse_rows(
    kind: type[R],
    rows: Iterable[Row],
    *,
    columns: Mapping[str, str] | None = None,
    format: FormatOption = "auto",
    on_error: OnError = "stop",
) -> Iterator[list[R] | BadRow]:
    """The records of each row, or what is wrong with it; arguments as for :func:`read_records`.

    >>> list(parse_rows(Prompt, [Row("a.jsonl", 1, {"prompt": "Why?"})]))
    [[Prompt(prompt='Why?', format='text', fields={'prompt': 'Why?'}, file='a.jsonl', row=1)]]
    """
    if format not in ("auto", *FORMATS):
        raise UserError(f"data.format is {format!r}: it must be auto, {', '.join(FORMATS)}")
    if on_error not in ("stop", "skip"):
        raise UserError(f"data.on_error is {on_error!r}: it must be stop or skip")
    unknown = [field for field in columns or {} if field not in FIELDS and kind is not Prompt]  # its rows hold anything
    if unknown:
        known = ", ".join(sorted(FIELDS))
        raise UserError(f"data.columns names {unknown[0]!r}, which is no field of ours: give {known}")
    first: R | None = None
    for row in rows:
        expected = first.format if first else None if format == "auto" else format
        found = _parse(kind, row, columns or {}, expected)
        if first and not isinstance(found, Problem) and found:
            found = _unlike(found[0], first) or found
        if not isinstance(found, Problem):
            first = first or next(iter(found), None)
            yield found
        elif on_error == "stop":
            raise UserError(f"{row.file}, row {row.number}: {found.text}, {SKIP_HINT}")
        else:
            yield BadRow(row.file, row.number, *found)


def collect(name: str, parsed: Iterable[list[R] | BadRow]) -> tuple[list[R], ReadReport]:
    """What :func:`parse_rows` found, as a list and a report.

    Raises:
        UserError: if there are no records.
    """
    records: list[R] = []
    skipped: list[BadRow] = []
    kept = 0
    for found in parsed:
        if isinstance(found, BadRow):
            skipped.append(found)
        else:
            records += found
            kept += 1
    if not records and skipped:
        first = skipped[0]
        raise UserError(f"{name}: no row of {len(skipped)} can be used: {first.file}, row {first.row}: {first.text}")
    if not records and kept:
        raise UserError(f"{name}: nothing to learn from in any of the {kept} rows: give a file that says more")
    if not records:
        raise UserError(f"{name}: there are no rows: give a file with at least one")
    return records, ReadReport(kept + len(skipped), kept, tuple(skipped), len(records))


def _parse(kind: type[R], row: Row, columns: Mapping[str, str], expected: str | None) -> list[R] | Problem:
    value = row.value
    if isinstance(value, Problem):
        return value
    for field, theirs in columns.items():
        if value.get(theirs) is None:
            return missing(theirs, value, f"data.columns says that it holds the {field}")
    value = {**value, **{field: value[theirs] for field, theirs in columns.items()}}
    records: list[R] = []
    parts = oasst.rows(value, kind) if oasst.is_tree(value) else [value]
    if isinstance(parts, Problem):
        return parts
    for part in parts:
        found = kind.parse(part, expected, row.file, row.number)
        if isinstance(found, Problem):
            return found
        records += found
    return records


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
    keys = [_draw(record, seed) for record in records]
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


def is_held_out(record: Record, *, share: float, seed: int = 0) -> bool:
    """Whether a record belongs to the held-out ``share`` of a stream, by a hash of (seed, prompt) alone.

    >>> made = [Prompt(f"{i}?", "text") for i in range(1000)]
    >>> 80 < sum(is_held_out(record, share=0.1) for record in made) < 120
    True
    """
    return int.from_bytes(_draw(record, seed)[:8]) < share * 2**64


def _draw(record: Record, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{record.prompt or record.completions!r}".encode()).digest()
