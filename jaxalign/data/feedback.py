"""Reads unpaired preferences from a product's logs: what users did with its answers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxalign.data.files import Problem, Row, Source, read_rows, source_name
from jaxalign.data.formats import ASSISTANT, CONVERSATIONS, first_field, flag, label, number
from jaxalign.data.kinds import PAIR, UnpairedPreference
from jaxalign.data.records import FormatOption, OnError, ReadReport, collect, parse_rows
from jaxalign.errors import UserError

READ, UNLABELLED, CONFLICT = "read", "without a signal", "with conflicting signals"


@dataclasses.dataclass(frozen=True)
class Signals:
    """Fields of a log that say whether an answer was liked. Other fields are ignored.

    A row with conflicting signals is omitted, and so is a row without a signal.

    Args:
        up: field with the number of votes up
        down: field with the number of votes down
        min_votes: the number of votes by which one side must lead
        accepted: field that is true if the user accepted the answer, false if the user rejected it
        rejected: field that is true if the user rejected the answer
        edited: field with the answer as the user corrected it, or true if there was a correction; a corrected answer
            was not liked, and the correction is an answer that is (the same answer again is not a correction)
        regenerated: field that is true, or a count above 0, if the user asked for another answer
        stars: field with a rating
        stars_liked: the lowest rating of an answer that was liked
        stars_disliked: the highest rating of an answer that was not
    """

    up: str | None = None
    down: str | None = None
    min_votes: int = 1
    accepted: str | None = None
    rejected: str | None = None
    edited: str | None = None
    regenerated: str | None = None
    stars: str | None = None
    stars_liked: float = 4.0
    stars_disliked: float = 2.0

    @property
    def fields(self) -> list[str]:
        """The log's fields that are read."""
        named = (self.up, self.down, self.accepted, self.rejected, self.edited, self.regenerated, self.stars)
        return [field for field in named if field is not None]

    def read(self, value: Mapping[str, Any]) -> set[bool]:
        """Returns all labels that a row supports: True for liked, False for not.

        Raises:
            Problem: If a field cannot be understood.

        >>> Signals(up="likes", stars="rating").read({"likes": 2, "rating": 1}) == {True, False}
        True
        """
        labels: set[bool] = set()
        up, down, again = (_count(field, value) for field in (self.up, self.down, self.regenerated))
        if abs(up - down) >= self.min_votes:
            labels.add(up > down)
        if again:
            labels.add(False)
        for field, meanings in ((self.accepted, {True: True, False: False}), (self.rejected, {True: False})):
            if field and (cell := _cell(field, value)) is not None and (accepted := label(field, cell)) in meanings:
                labels.add(meanings[accepted])
        if self.stars and (cell := _cell(self.stars, value)) is not None:
            rating = number(self.stars, cell)
            labels |= {True} if rating >= self.stars_liked else {False} if rating <= self.stars_disliked else set()
        return labels | {False} if _edit(self.edited, value) else labels


def read_feedback(
    source: Source,
    signals: Signals,
    *,
    columns: Mapping[str, str] | None = None,
    format: FormatOption = "auto",
    on_error: OnError = "stop",
    rows_name: str = "rows",
    **part: str | None,
) -> tuple[list[UnpairedPreference], ReadReport]:
    """Reads a log into unpaired preferences, one for every answer that was clearly liked or not.

    The same answer to the same prompt counts once. It is omitted where its rows disagree. The report counts both.

    Args:
        source: A log (a path, or rows in memory). Its rows contain ``prompt`` and ``completion``, or ``messages``.
        signals: The fields that say what was liked.
        columns: Names of fields in this source.
        format: See :func:`jaxalign.data.records.read_records`.
        on_error: ``stop`` at the first bad row, or ``skip`` bad rows and report them.
        rows_name: The name of rows in memory in error messages.
        part: Which part of a folder or hub data set: ``split``, ``name`` and ``data_dir`` of ``read_rows``.

    Returns:
        The records, and a report on what was read, skipped and omitted.

    Raises:
        UserError: As :func:`jaxalign.data.records.read_records`; also for signals without fields, for fields that
            do not occur in any row, and for thresholds that contradict each other.
    """
    if not signals.fields:
        raise UserError("signals has no fields. Name one that says whether an answer was liked, such as up.")
    if signals.min_votes < 1 or not signals.stars_disliked < signals.stars_liked:
        raise UserError(
            f"signals has min_votes={signals.min_votes}, stars_disliked={signals.stars_disliked} and "
            f"stars_liked={signals.stars_liked}. Give 1 vote or more, and liked ratings above disliked ones."
        )
    counts: Counter[str] = Counter()
    rows = read_rows(source, rows_name=rows_name, **part)  # type: ignore[arg-type]
    labelled = _labelled(rows, signals, columns or {}, counts)
    parsed = parse_rows(UnpairedPreference, labelled, columns=columns, format=format, on_error=on_error)
    records, report = collect(source_name(source, rows_name), parsed)
    settled, doubts = settle(records)
    if not settled:
        place = source_name(source, rows_name)
        raise UserError(f"{place}: the rows contradict each other about every answer. Check signals.")
    omitted = {reason: counts[reason] for reason in (UNLABELLED, CONFLICT)}
    # An edited answer's row gives two records, so that a bad row may be counted twice.
    skipped = tuple({(bad.file, bad.row): bad for bad in report.skipped}.values())
    rows_kept = counts[READ] - sum(omitted.values()) - len(skipped)
    return settled, ReadReport(counts[READ], rows_kept, skipped, len(settled), {**omitted, **doubts})


def settle(records: Iterable[UnpairedPreference]) -> tuple[list[UnpairedPreference], dict[str, int]]:
    """Returns every answer to a prompt once, without those with both labels, and counts of what was omitted.

    >>> once = UnpairedPreference("Why?", " Air.", True, "text")
    >>> settle([once, once, dataclasses.replace(once, prompt="How?", label=False)])[1]
    {'repeated': 1, 'in conflict with another row': 0}
    """
    answers: dict[Any, list[UnpairedPreference]] = {}
    for record in records:
        answers.setdefault((record.prompt, record.completion), []).append(record)
    clear = [rows for rows in answers.values() if len({record.label for record in rows}) == 1]
    unclear = sum(map(len, answers.values())) - sum(map(len, clear))
    repeated = sum(map(len, clear)) - len(clear)
    return [rows[0] for rows in clear], {"repeated": repeated, "in conflict with another row": unclear}


def _labelled(rows: Iterable[Row], signals: Signals, columns: Mapping[str, str], counts: Counter[str]) -> Iterator[Row]:
    """Yields the rows with a label, and one more row for every correction.

    Raises:
        UserError: At the end, for a field that does not occur in any row, or if no row has a label.
    """
    rows = list(rows)
    sound = [row.value for row in rows if not isinstance(row.value, Problem)]
    edits = (_cell(signals.edited, value) for value in sound)
    # In a file without types, a column contains flags if every cell is one: "0" may also be the corrected answer.
    flags = all(flag(edit) is not None for edit in edits if isinstance(edit, str))
    for row in rows:
        counts[READ] += 1
        value = row.value
        if isinstance(value, Problem):
            yield row
            continue
        answer = _answer(value, columns)
        try:
            if answer is None and all(value.get(field) is not None for field in PAIR):
                text = "the row is a pair (chosen and rejected), which signals cannot label. Remove one of them"
                raise Problem("a pair", text)
            edit = _edit(signals.edited, value, flags=flags)
            if isinstance(edit, str) and answer is not None and edit.strip() == answer.strip():
                edit = False  # such logs store the last version of every answer
            labels = signals.read(value if signals.edited is None else {**value, signals.edited: bool(edit)})
        except Problem as problem:
            yield row._replace(value=problem)
            continue
        if len(labels) != 1:
            counts[CONFLICT if labels else UNLABELLED] += 1
        else:
            yield row._replace(value={**value, "label": labels == {True}})
            if isinstance(edit, str):
                yield row._replace(value={**_with_answer(value, columns, edit), "label": True})
    if not sound:
        return
    if unseen := set(signals.fields) - {field for value in sound for field in value}:
        text = f"field {min(unseen)!r} of signals does not occur in any row. Name one that the rows have."
        raise UserError(f"{row.file}: {text}")
    if counts[UNLABELLED] + counts[CONFLICT] == counts[READ]:
        text = f"none of the {counts[READ]} rows clearly says whether its answer was liked. Check signals."
        raise UserError(f"{row.file}: {text}")


def _answer(value: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    """Returns the answer's text, or None if it cannot be determined."""
    given = _given(value, columns)[1]
    if isinstance(given, list) and given and isinstance(given[-1], Mapping):
        given = given[-1].get("content", given[-1].get("value"))
    if not isinstance(given, str):
        return None
    return given.rpartition(ASSISTANT)[2] if _is_transcript(value, columns, given) else given


def _given(value: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str | None, Any]:
    """Returns the field that contains the answer, and its value."""
    field = first_field(value, [columns.get(field, field) for field in ("completion", *CONVERSATIONS)])
    return field, value.get(field or "")


def _is_transcript(value: Mapping[str, Any], columns: Mapping[str, str], answer: str) -> bool:
    return value.get(columns.get("prompt", "prompt")) is None and ASSISTANT in answer


def _with_answer(value: Mapping[str, Any], columns: Mapping[str, str], answer: str) -> dict[str, Any]:
    """Returns the row with another answer in it."""
    field, given = _given(value, columns)
    if field is None:  # a bad row stays bad, and is reported later
        return dict(value)
    if isinstance(given, list):
        return {**value, field: [*given[:-1], {"role": "assistant", "content": answer}]}
    if isinstance(given, str) and _is_transcript(value, columns, given):
        answer = f"{given[: given.rfind(ASSISTANT) + len(ASSISTANT)]} {answer.strip()}"
    return {**value, field: answer}


def _cell(field: str | None, value: Mapping[str, Any]) -> Any:
    """Returns the value of a field; None without a field, without a value, or for an empty string."""
    cell = None if field is None else value.get(field)
    return None if cell == "" else cell


def _count(field: str | None, value: Mapping[str, Any]) -> float:
    """Returns a count, also from true or false; 0 where the row has none."""
    cell = _cell(field, value)
    if field is None or cell is None:
        return 0
    known = flag(cell)
    count = number(field, cell) if known is None else int(known)
    if count < 0:
        raise Problem("not a count", f"field {field!r} is {cell!r}. Give a number of 0 or more")
    return count


def _edit(field: str | None, value: Mapping[str, Any], *, flags: bool = True) -> bool | str:
    """Returns the correction, or whether there was one.

    With ``flags``, a text such as "true" or "0" says only whether there was one.
    """
    cell = _cell(field, value)
    if field is None or cell is None:
        return False
    return cell if isinstance(cell, str) and (not flags or flag(cell) is None) else label(field, cell)
