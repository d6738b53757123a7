"""Training examples: records read from a source or from memory, split, and tokenised into prompt trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from jaxalign.data.feedback import Signals, read_feedback
from jaxalign.data.files import Source, source_name
from jaxalign.data.kinds import Record
from jaxalign.data.records import ReadReport, read_records, split_by_prompt
from jaxalign.data.tokenize import tokenize_completions
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.reporting import Report, silent

R = TypeVar("R", bound=Record)


def read_examples(
    kind: type[R],
    source: Source | None = None,
    *,
    rows: Source | None = None,
    eval_source: Source | None = None,
    eval_rows: Source | None = None,
    holdout: int | float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    report: Report = silent,
    **options: Any,
) -> tuple[list[R], list[R]]:
    """Reads records to train on and records to evaluate on.

    Args:
        kind: A record class of :mod:`jaxalign.data.kinds`.
        source: A file, folder, hub id or ``package:file``.
        rows: Rows in memory; they replace ``source``.
        eval_source: What to evaluate on. By default part of the training records is held out.
        eval_rows: Rows in memory; they replace ``eval_source``.
        holdout: Records to hold out, as a count (int) or a share (float). No prompt is on both sides.
        seed: Another seed gives another split.
        limit: Maximum number of records, before the split.
        report: Receives a line about every source that was read.
        options: Options of :func:`read_source`.

    Returns:
        Training records and evaluation records.

    Raises:
        UserError: For a bad source or row, or a split that leaves nothing to train on.

    >>> from jaxalign.data.kinds import Preference
    >>> pairs = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(4)]
    >>> train, held_out = read_examples(Preference, rows=pairs, holdout=1)
    >>> len(train), len(held_out)
    (3, 1)
    """
    chosen = source if rows is None else rows
    if chosen is None:
        raise UserError("The examples are missing. Give a path or rows.")
    records = read_source(kind, chosen, report=report, **options)[0][:limit]
    other = eval_source if eval_rows is None else eval_rows
    if other is None:
        return split_by_prompt(records, holdout=holdout, seed=seed)
    return records, read_source(kind, other, report=report, rows_name="eval_rows", **options)[0]


def read_source(
    kind: type[R],
    source: Source,
    *,
    signals: Signals | None = None,
    rows_name: str = "rows",
    report: Report = silent,
    **options: Any,
) -> tuple[list[R], ReadReport]:
    """Reads the records of one source and reports a line about it.

    Args:
        kind: A record class of :mod:`jaxalign.data.kinds`.
        source: A path, or rows in memory.
        signals: Fields of a log that say whether an answer was liked, see
            :func:`jaxalign.data.feedback.read_feedback`. None, or signals without fields: rows have labels.
        rows_name: The name of rows in memory in reports and error messages.
        report: Receives the line.
        options: Options of :func:`jaxalign.data.records.read_records`.

    Returns:
        The records, and a report on what was read and skipped.

    Raises:
        UserError: For a bad source or row.
    """
    records: Any
    if signals is not None and signals.fields:
        records, result = read_feedback(source, signals, rows_name=rows_name, **options)
    else:
        records, result = read_records(kind, source, rows_name=rows_name, **options)
    report(f"{source_name(source, rows_name)}: {result}")
    return records, result


def tokenize_examples(
    records: Sequence[Record],
    tokenizer: Any,
    purpose: str,
    *,
    report: Report = silent,
    **options: Any,
) -> tuple[list[Tree], dict[str, int]]:
    """Tokenises records into prompt trees, reports a line about it, and counts what was cut.

    Args:
        records: Any number of records of one kind.
        tokenizer: A ``transformers`` tokenizer.
        purpose: What the trees are for (``training``, ``held out``), for the line and the names of the counts.
        report: Receives the line.
        options: Options of :func:`jaxalign.data.tokenize.tokenize_completions`.

    Returns:
        The trees, and counts that serve as metrics: ``training/prompts_truncated`` and so on. Both are empty without
        records.

    Raises:
        UserError: If a record cannot be tokenised, or the limits leave nothing to learn.
    """
    if not records:
        return [], {}
    trees, result = tokenize_completions(records, tokenizer, **options)
    report(f"{purpose}: {result}")
    counts = {"examples": result.examples, "tokens": result.tokens, "skipped": len(result.skipped)}
    counts |= {name: getattr(result, name) for name in ("prompts_truncated", "completions_truncated")}
    return trees, {f"{purpose.replace(' ', '_')}/{name}": count for name, count in counts.items()}
