"""Reads records of every kind, with file and row number, and splits them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from jaxalign.data import oasst
from jaxalign.data.files import Problem, Row, Source, read_rows, source_name
from jaxalign.data.formats import CONVERSATIONS, FORMATS, missing
from jaxalign.data.kinds import Prompt, Record
from jaxalign.errors import UserError

FormatOption: TypeAlias = Literal["auto", "text", "transcript", "chat", "instruction"]
OnError: TypeAlias = Literal["stop", "skip"]
FIELDS = {*CONVERSATIONS, "prompt", "completion", "label", "text", "instruction", "input", "output"}
FIELDS |= {"chosen", "rejected", "completions", "margin", "label_smoothing"}
R = TypeVar("R", bound=Record)


class BadRow(NamedTuple):
    """A skipped row: its place, a short kind of problem, and what is wrong.

    The text is that of :class:`jaxalign.data.files.Problem`.
    """

    file: str
    row: int
    kind: str
    text: str

    @classmethod
    def of(cls, problem: Problem, file: str, row: int, on_error: OnError) -> BadRow:
        """Returns the row to skip.

        Raises:
            UserError: If ``on_error`` is ``stop``.
        """
        if on_error == "stop":
            raise UserError(f"{file}, row {row}: {problem.text}, or set on_error='skip'.") from None
        return cls(file, row, problem.kind, problem.text)


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """Report on reading a source. ``str()`` of it is one line.

    Attributes:
        rows: Number of rows in the source.
        rows_kept: Number of rows that records were made of.
        skipped: Bad rows.
        records: Number of records; None if every kept row is one record.
        omitted: Number of sound rows without anything to learn from, by reason.
    """

    rows: int
    rows_kept: int
    skipped: tuple[BadRow, ...] = ()
    records: int | None = None
    omitted: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Number of skipped rows by kind of problem."""
        return dict(Counter(bad.kind for bad in self.skipped))

    def __str__(self) -> str:
        text = f"{self.rows_kept} of {self.rows} rows kept"
        if self.records not in (None, self.rows_kept):
            text += f", {self.records} records made of them"
        if any(self.omitted.values()):
            text += f" ({', '.join(f'{count} {reason}' for reason, count in self.omitted.items() if count)})"
        if not self.skipped:
            return text
        return f"{text}, {len(self.skipped)} skipped: {describe_skipped(self.skipped)}"


def describe_skipped(skipped: Sequence[BadRow]) -> str:
    """Returns how many rows were skipped for which reason, with their numbers.

    >>> describe_skipped([BadRow("a.jsonl", 3, "not JSON", "is not JSON")])
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
    rows_name: str = "rows",
    **part: Any,
) -> tuple[list[R], ReadReport]:
    """Reads records of one kind from a file, folder, hub id, ``package:file``, or from rows in memory.

    Args:
        kind: :class:`Demonstration`, :class:`Preference`, :class:`Ranking`, :class:`UnpairedPreference` or
            :class:`Prompt`.
        source: See :func:`jaxalign.data.files.read_rows`, as for ``rows_name``.
        columns: Names of fields in this source, as ``{"prompt": "question", "completion": "answer"}``.
        format: The format of the rows; ``auto`` is that of the first sound row.
        on_error: ``stop`` at the first bad row, or ``skip`` bad rows and report them.
        rows_name: The name of rows in memory in error messages.
        part: Which part of a folder or hub data set: ``split``, ``name`` and ``data_dir`` of ``read_rows``.

    Returns:
        The records in the order of the source, and a report on what was read and skipped.

    Raises:
        UserError: If the source is missing, empty or broken, at the first bad row (``stop``), or if no row is sound.

    >>> records, report = read_records(Prompt, "jaxalign:assets/brief_pairs.jsonl")
    >>> str(report), sorted(records[0].fields)
    ('160 of 160 rows kept', ['chosen', 'prompt', 'rejected'])
    """
    rows = read_rows(source, rows_name=rows_name, **part)
    parsed = parse_rows(kind, rows, columns=columns, format=format, on_error=on_error)
    return collect(source_name(source, rows_name), parsed)


def stream_records(
    kind: type[R],
    source: Source,
    *,
    columns: Mapping[str, str] | None = None,
    format: FormatOption = "auto",
    on_error: OnError = "stop",
    on_bad: Callable[[BadRow], None] | None = None,
    start: int = 0,
    **part: Any,
) -> Iterator[R]:
    """Yields the records of :func:`read_records` one by one, for sources too large for memory.

    The order is that of the source: records are not shuffled. :func:`is_held_out` splits by each record alone, so no
    prompt is on both sides. To resume, set ``start`` to the number of rows read before. These rows are read again
    (only reading shows where a line begins), but not parsed.

    Args:
        kind: See :func:`read_records`, as for the remaining arguments.
        source: What to read. Hub data sets are streamed.
        columns: Names of fields in this source.
        format: The format of the rows.
        on_error: ``stop`` at the first bad row, or ``skip`` bad rows.
        on_bad: Called with every skipped row.
        start: Number of rows to pass over.
        part: Which part of a folder or hub data set.

    Raises:
        UserError: As :func:`read_records`, when the row is reached. A source without sound rows does not raise.

    >>> next(stream_records(Prompt, "jaxalign:assets/brief_pairs.jsonl")).row
    1
    """
    rows = itertools.islice(read_rows(source, streaming=True, **part), start, None)
    for parsed in parse_rows(kind, rows, columns=columns, format=format, on_error=on_error):
        if not isinstance(parsed, BadRow):
            yield from parsed
        elif on_bad is not None:
            on_bad(parsed)


def parse_rows(
    kind: type[R],
    rows: Iterable[Row],
    *,
    columns: Mapping[str, str] | None = None,
    format: FormatOption = "auto",
    on_error: OnError = "stop",
) -> Iterator[list[R] | BadRow]:
    """Yields the records of every row, or what is wrong with it. See :func:`read_records` for the arguments.

    >>> list(parse_rows(Prompt, [Row("a.jsonl", 1, {"prompt": "Why?"})]))
    [[Prompt(prompt='Why?', format='text', fields={'prompt': 'Why?'}, file='a.jsonl', row=1)]]
    """
    if format not in ("auto", *FORMATS):
        raise UserError(f"format is {format!r}. Give auto, {', '.join(FORMATS)}.")
    if on_error not in ("stop", "skip"):
        raise UserError(f"on_error is {on_error!r}. Give stop or skip.")
    # Rows of prompts may have any fields, for rewards.
    unknown = [field for field in columns or {} if field not in FIELDS and kind is not Prompt]
    if unknown:
        known = ", ".join(sorted(FIELDS))
        raise UserError(f"columns has the unknown key {unknown[0]!r}. Give {known}.")
    first: R | None = None
    for row in rows:
        expected = first.format if first else None if format == "auto" else format
        try:
            records = _parse(kind, row, columns or {}, expected)
            if first and records:
                _compare_extras(records[0], first)
        except Problem as problem:
            yield BadRow.of(problem, row.file, row.number, on_error)
        else:
            first = first or next(iter(records), None)
            yield records


def collect(name: str, parsed: Iterable[list[R] | BadRow]) -> tuple[list[R], ReadReport]:
    """Collects what :func:`parse_rows` yields in a list and a report.

    Args:
        name: The source, for error messages.
        parsed: Records or a bad row, for every row.

    Raises:
        UserError: If there are zero records.
    """
    rows = list(parsed)
    skipped = tuple(row for row in rows if isinstance(row, BadRow))
    records = [record for row in rows if not isinstance(row, BadRow) for record in row]
    if not records and skipped:
        first = skipped[0]
        raise UserError(f"{name}: no row of {len(skipped)} can be used. {first.file}, row {first.row}: {first.text}.")
    if not records and rows:
        raise UserError(f"{name}: the {len(rows)} rows contain nothing to learn from. Give rows with answers.")
    if not records:
        raise UserError(f"{name}: the source has no rows. Give at least one row.")
    return records, ReadReport(len(rows), len(rows) - len(skipped), skipped, len(records))


def _parse(kind: type[R], row: Row, columns: Mapping[str, str], expected: str | None) -> list[R]:
    value = row.checked
    for field, column in columns.items():
        if value.get(column) is None:
            raise missing(column, value, f"the option columns names it as the {field}")
    value = {**value, **{field: value[column] for field, column in columns.items()}}
    parts = oasst.rows(value, kind) if oasst.is_tree(value) else [value]
    return [record for part in parts for record in kind.parse(part, expected, row.file, row.number)]


def _compare_extras(record: Record, first: Record) -> None:
    """Raises if a record has other extras than the first: a batch is an array, so all must have them."""
    for name in sorted(record.extras.keys() ^ first.extras.keys()):
        has = "is set, but not" if name in record.extras else "is missing, but set"
        text = f"field {name!r} {has} in the rows before. Give it in all rows or in none"
        raise Problem(f"{name} not in all rows", text)


def split_by_prompt(records: Sequence[R], *, holdout: int | float, seed: int = 0) -> tuple[list[R], list[R]]:
    """Splits records into (train, held out) so that no prompt is on both sides.

    Prompts are held out in the order of a hash of (seed, prompt) until there are enough records. So the split does not
    depend on the order of the records. Both sides keep this order. A record without a prompt is hashed by its text.

    Args:
        records: Records of any kind.
        holdout: Records to hold out, as a count (int) or a share (float). The records of the last prompt may exceed it.
        seed: Another seed gives another split.

    Returns:
        Training records and held-out records.

    Raises:
        UserError: If nothing is left to train on.
    """
    wanted = round(holdout * len(records)) if isinstance(holdout, float) else holdout
    if not 0 <= wanted < len(records):
        raise UserError(
            f"holdout is {holdout} of {len(records)} records, which leaves nothing to train on. Hold out fewer."
        )
    keyed = [(_split_key(record, seed), record) for record in records]
    # The key of the last record to hold out. Its prompt may have more records.
    last = sorted(key for key, _ in keyed)[wanted - 1] if wanted else b""
    train = [record for key, record in keyed if key > last]
    if not train:
        raise UserError(
            f"holdout is {holdout}, which leaves nothing to train on: records share prompts. Hold out fewer."
        )
    return train, [record for key, record in keyed if key <= last]


def is_held_out(record: Record, *, share: float, seed: int = 0) -> bool:
    """Returns whether a record of a stream belongs to the held-out ``share``, by a hash of (seed, prompt).

    >>> records = [Prompt(f"{i}?", "text") for i in range(1000)]
    >>> 80 < sum(is_held_out(record, share=0.1) for record in records) < 120
    True
    """
    return int.from_bytes(_split_key(record, seed)[:8]) < share * 2**64


def _split_key(record: Record, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{record.prompt or record.completions!r}".encode()).digest()
